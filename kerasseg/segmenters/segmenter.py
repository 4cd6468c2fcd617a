"""The base of every segmenter: RGB pixels of any size in, class logits of that size out."""

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import keras

from kerasseg.checks import require_one_of
from kerasseg.keras_internals import all_layers
from kerasseg.layers import AtrousConv2D, AtrousDepthwiseConv2D, CropLike, PadToMultiple, PixelNormalization, Upsample
from kerasseg.segmenters.backbones import Maps, backbone_spec, build_backbone
from kerasseg.segmenters.weights import LoadedWeights, load_weights


class Segmenter(keras.Model):
    """Image (B,H,W,3), RGB in 0..255, any H and W, to class logits (B,H,W,K), float32.

    Normalisation, padding to the stride, upsampling and cropping are part of the graph. A subclass gives `build_head`.

    Args:
        backbone: a key of `BACKBONES`.
        num_classes: K, background included.
        output_stride: of the backbone, 8 or 16, for a head that reads dilated features (`DILATES`) on a backbone that
            can be dilated. Otherwise the backbone keeps its own, and this is not used.
        weights: `"imagenet"` (of the backbone), `"none"`, or the path of a file that `load_weights` reads, of the
            backbone only or of the whole segmenter; `loaded_weights` says what was loaded. Not part of the
            configuration: a saved model brings its weights with it.
        drop_path: stochastic depth of the backbone, as `build_backbone` takes it.
        head_config: further arguments of `build_head`.

    Raises:
        ValueError: for an unknown backbone, one that the head does not fit or that has no stochastic depth, fewer than
            two classes, an output stride that is not 8 or 16, or weights that are not available.
    """

    build_head: ClassVar[Callable[..., tuple[keras.Model, float]]]
    """A subclass gives it: the layers after the backbone.

    It takes symbolic features, their strides in pixels, num_classes, and fields of its own; it returns the model from
    features to logits (B,h,w,K), and the stride of those logits, which may be a fraction.
    """
    MAPS: ClassVar[Maps] = "pyramid"
    """Which features it takes."""
    FITS: ClassVar[Literal["pyramid", "plain", "any"]] = "pyramid"
    """Which backbones: those with features of several strides, plain transformers, or any."""
    DILATES: ClassVar[bool] = False
    """Whether the backbone is dilated to `output_stride`."""
    RATES: ClassVar[tuple[int, ...]] = ()
    """The published dilation rates of the head's 3x3 convolutions, for the output stride `RATES_STRIDE` and training
    crops of `RATES_CROP` pixels a side."""
    RATES_STRIDE: ClassVar[int] = 16
    RATES_CROP: ClassVar[int] = 513

    def __init__(
        self,
        backbone: str = "resnet50",
        num_classes: int = 21,
        output_stride: int = 16,
        weights: str = "none",
        name: str | None = None,
        drop_path: float = 0.0,
        **head_config,
    ):
        if num_classes < 2:
            raise ValueError(f"num_classes counts the background too, so it is at least 2; got {num_classes}")
        # === Layers ===
        stride = self.stride_on(backbone, output_stride)
        from_file = weights not in ("imagenet", "none")
        features = build_backbone(
            backbone, stride, "none" if from_file else weights, maps=self.MAPS, drop_path=drop_path
        )
        head, logits_stride = self.build_head(features.outputs, features.strides, num_classes, **head_config)

        # === Functional graph ===
        image_BHW3 = keras.Input((None, None, 3), name="image")
        x = PixelNormalization(backbone_spec(backbone).pixels, name="pixels")(image_BHW3)
        x = PadToMultiple(stride, backbone_spec(backbone).border, name="pad")(x)
        logits = head(features(x))
        logits = Upsample(logits_stride, dtype="float32", name="upsample")(logits)
        logits_BHWK = CropLike(dtype="float32", name="crop")([logits, image_BHW3])
        super().__init__(image_BHW3, logits_BHWK, name=name)

        # === Config ===
        self.backbone = features
        self.head = head
        self.backbone_name = backbone
        self.num_classes = num_classes
        self.output_stride = stride
        self.drop_path = drop_path
        self.head_config = head_config

        # === Weights ===
        self.loaded_weights: LoadedWeights | None = None
        if from_file:
            self.loaded_weights = load_weights(self, weights, backbone_spec(backbone).build)

    @classmethod
    def stride_on(cls, backbone: str, output_stride: int) -> int:
        """Stride of the backbone's last features, pixels, where `output_stride` is asked for.

        Raises:
            ValueError: an unknown backbone, one that the head does not fit, or an output stride that is not 8 or 16.
        """
        spec = backbone_spec(backbone)
        if cls.FITS == "plain" and not spec.plain:
            raise ValueError(
                f"{cls.__name__} reads a plain transformer, and {backbone} has features of several strides"
            )
        if cls.FITS == "pyramid" and spec.plain:
            raise ValueError(
                f"{cls.__name__} reads features of several strides, and {backbone} is a plain transformer of one: "
                "choose the segmenter dpt"
            )
        if not (cls.DILATES and spec.dilates):
            return spec.stride
        require_one_of("output_stride", output_stride, (8, 16))
        return spec.stride_of(output_stride)

    @classmethod
    def published_rates(cls, output_stride: int) -> tuple[int, ...]:
        """`RATES` for another output stride: the same distances in pixels."""
        return tuple(rate * cls.RATES_STRIDE // output_stride for rate in cls.RATES)

    @classmethod
    def named_rates(cls, rates: Sequence[int] | None, output_stride: int) -> dict[str, int]:
        """The head's rates by the names of their layers. The names hold the published rates, whatever the rates are, so
        that weights find their layers. ValueError for another number of rates, or one below 1."""
        published = cls.published_rates(output_stride)
        rates = published if rates is None else tuple(rates)
        if len(rates) != len(published) or min(rates) < 1:
            raise ValueError(f"{cls.__name__} takes {len(published)} rates of 1 or more; got {rates}")
        return {f"aspp_rate{known}": rate for known, rate in zip(published, rates, strict=True)}

    @property
    def features(self) -> tuple[str, ...]:
        """Name of the layer where the backbone ends, as `CutSegmenter` has it."""
        return (self.backbone.name,)

    def encode(self, images_BHW3, training: bool = False) -> list:
        """The backbone's features, the finest first."""
        return self.backbone(self.get_layer("pad")(self.get_layer("pixels")(images_BHW3)), training=training)

    def decode(self, features, images_BHW3, training: bool = False, head: keras.Model | None = None):
        """Logits (B,H,W,K) from what `encode` gave for these images, or those of another `head` (`second_head`)."""
        logits = (head or self.head)(features, training=training)
        return self.get_layer("crop")([self.get_layer("upsample")(logits), images_BHW3])

    def second_head(self, num_classes: int, name: str) -> keras.Model:
        """Another head of the same kind, untrained, with `num_classes` outputs; for `decode`."""
        head, _ = self.build_head(self.backbone.outputs, self.backbone.strides, num_classes, **self.head_config)
        head = keras.Model(head.inputs, head.outputs[0], name=name)
        head.output_stride = self.output_stride
        return head

    def get_config(self):
        return {
            "backbone": self.backbone_name,
            "num_classes": self.num_classes,
            "output_stride": self.output_stride,
            "name": self.name,
            "drop_path": self.drop_path,
            **self.head_config,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def fitting_rates(segmenter: type[Segmenter], crop: Sequence[int], output_stride: int) -> tuple[int, ...]:
    """Dilation rates of a head with which every tap of its convolutions learns from training crops of that size.

    A tap whose distance is the length of the crop's map is in the padding at every position: it gets no gradient and
    keeps its random weights, which then count on larger images. The published rates stay where they fit; otherwise
    they shrink by the same factor as the crop.

    Args:
        segmenter: the class.
        crop: height and width, pixels.
        output_stride: of the backbone.
    """
    published = segmenter.published_rates(output_stride)
    if max(published, default=0) < min(map_size(crop, output_stride)):
        return published
    return tuple(max(1, round(rate * min(crop) / segmenter.RATES_CROP)) for rate in published)


def scaled_rates(rates: Sequence[int], stride: int, other: int) -> tuple[int, ...] | None:
    """Dilation rates for features of one stride as rates for another: the same distances in pixels. None for none."""
    return tuple(max(1, round(rate * stride / other)) for rate in rates) or None


def map_size(crop: Sequence[int], output_stride: int) -> tuple[int, ...]:
    """Height and width of the backbone's last map for images of that size, which are padded to its stride."""
    return tuple(-(-side // output_stride) for side in crop)


def dead_taps(network: keras.Model, crop: Sequence[int]) -> dict[str, int]:
    """The dilated convolutions of a network some of whose taps get no gradient from training crops of that size, as
    `fitting_rates` explains: their dilation by their names."""
    if not hasattr(network, "output_stride"):  # no network of ours with dilated convolutions
        return {}
    # A map of one position holds only the middle tap of any convolution, so it says nothing about the others.
    size = max(2, min(map_size(crop, network.output_stride)))
    dilated = (layer for layer in all_layers(network) if isinstance(layer, AtrousConv2D | AtrousDepthwiseConv2D))
    reach = {layer.name: max(layer.dilation_rate) * (max(layer.kernel_size) // 2) for layer in dilated}
    return {name: rate for name, rate in sorted(reach.items(), key=lambda item: item[::-1]) if rate >= size}
