"""What every segmenter has in common: RGB pixels of any size in, class logits of that size out."""

from collections.abc import Callable
from typing import ClassVar

import keras

from kerasseg.layers import CropLike, PadToMultiple, PixelNormalization, Upsample
from kerasseg.segmenters.backbones import backbone_spec, build_backbone
from kerasseg.segmenters.weights import LoadedWeights, load_weights


class Segmenter(keras.Model):
    """Image (B,H,W,3), RGB in 0..255, any H and W, to class logits (B,H,W,K), float32.

    Normalisation, padding to the stride, upsampling and cropping are part of the graph. A subclass gives `build_head`.

    Args:
        backbone: a key of `BACKBONES`.
        num_classes: K, background included.
        output_stride: of the backbone, 8 or 16.
        weights: `"imagenet"` (of the backbone), `"none"`, or the path of a file that `load_weights` reads, of the
            backbone alone or of the whole segmenter; what became of it is in `loaded_weights`. Not part of the
            configuration: a saved model brings its weights with it.
        head_config: what `build_head` takes beside the three above.

    Raises:
        ValueError: for an unknown backbone, fewer than two classes, an output stride that is not 8 or 16, or weights
            that cannot be had.
    """

    build_head: ClassVar[Callable[..., tuple[keras.Model, int]]]
    """Given by a subclass: the layers after the backbone.

    Takes symbolic features `[low_level, high_level]`, num_classes and output_stride, and fields of its own; returns the
    model from features to logits (B,h,w,K), and the stride of those logits.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        num_classes: int = 21,
        output_stride: int = 16,
        weights: str = "none",
        name: str | None = None,
        **head_config,
    ):
        if num_classes < 2:
            raise ValueError(f"num_classes counts the background too, so it is at least 2; got {num_classes}")
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride must be 8 or 16; got {output_stride!r}")
        # === Layers ===
        from_file = weights not in ("imagenet", "none")
        features = build_backbone(backbone, output_stride, "none" if from_file else weights)
        head, stride = self.build_head(features.outputs, num_classes, output_stride, **head_config)

        # === Functional graph ===
        image_BHW3 = keras.Input((None, None, 3), name="image")
        x = PixelNormalization(backbone_spec(backbone).pixels, name="pixels")(image_BHW3)
        x = PadToMultiple(output_stride, name="pad")(x)
        logits = head(features(x))
        logits = Upsample(stride, dtype="float32", name="upsample")(logits)
        logits_BHWK = CropLike(dtype="float32", name="crop")([logits, image_BHW3])
        super().__init__(image_BHW3, logits_BHWK, name=name)

        # === Config ===
        self.backbone = features
        self.head = head
        self.backbone_name = backbone
        self.num_classes = num_classes
        self.output_stride = output_stride
        self.head_config = head_config

        # === Weights ===
        self.loaded_weights: LoadedWeights | None = None
        if from_file:
            self.loaded_weights = load_weights(self, weights, backbone_spec(backbone).build)

    def encode(self, images_BHW3, training: bool = False) -> list:
        """The backbone's features `[low_level, high_level]`."""
        return self.backbone(self.get_layer("pad")(self.get_layer("pixels")(images_BHW3)), training=training)

    def decode(self, features, images_BHW3, training: bool = False, head: keras.Model | None = None):
        """Logits (B,H,W,K) from what `encode` gave for these images, or those of another `head` (`second_head`)."""
        logits = (head or self.head)(features, training=training)
        return self.get_layer("crop")([self.get_layer("upsample")(logits), images_BHW3])

    def second_head(self, num_classes: int, name: str) -> keras.Model:
        """Another head of the same kind, untrained, with `num_classes` outputs; for `decode`."""
        head, _ = self.build_head(self.backbone.outputs, num_classes, self.output_stride, **self.head_config)
        return keras.Model(head.inputs, head.outputs[0], name=name)

    def get_config(self):
        return {
            "backbone": self.backbone_name,
            "num_classes": self.num_classes,
            "output_stride": self.output_stride,
            "name": self.name,
            **self.head_config,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)
