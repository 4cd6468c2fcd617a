"""The multi-label classifier of MLMT (Mittal et al. 2019, section 3.2): which classes does an image hold?"""

import keras

from kerasseg.keras_internals import all_layers
from kerasseg.layers import PadToMultiple, PixelNormalization
from kerasseg.segmenters.backbones import backbone_spec, build_backbone
from kerasseg.segmenters.cut import CutSegmenter, require_parts

STRIDE = 32


def build_classifier(backbone: str, num_classes: int, weights: str = "none", name: str = "classifier") -> keras.Model:
    """Image (B,H,W,3), RGB in 0..255, any size, to one logit per class (B,K), background included.

    Args:
        backbone, weights: as `build_backbone` takes them; the backbone keeps its own output stride.
        num_classes: K.

    The last layer starts from zeros: an untrained classifier gives every class 0.5, and rules none out.
    """
    image_BHW3 = keras.Input((None, None, 3), name="image")
    spec = backbone_spec(backbone)
    x = PixelNormalization(spec.pixels, name="pixels")(image_BHW3)
    x = PadToMultiple(spec.stride_of(STRIDE), spec.border, name="pad")(x)
    features = build_backbone(backbone, STRIDE, weights)(x)
    return keras.Model(image_BHW3, _logits(features[-1], num_classes), name=name)


def build_classifier_like(segmenter: keras.Model, name: str = "classifier") -> keras.Model:
    """A classifier of the segmenter's backbone and classes that starts from the backbone's present weights.

    Raises:
        ValueError: it is not known where the segmenter's backbone ends.
    """
    require_parts(segmenter, "mlmt's classifier")
    num_classes = segmenter.output_shape[-1]
    if isinstance(segmenter, CutSegmenter):
        image_BHW3 = keras.Input((None, None, 3), name="image")
        backbone = keras.models.clone_model(segmenter.backbone)
        if not segmenter.backbone.trainable:  # by `freeze_backbone`, which is about the segmenter
            for layer in all_layers(backbone):
                layer.trainable = True
        features = keras.tree.flatten(backbone(image_BHW3))
        classifier = keras.Model(image_BHW3, _logits(features[-1], num_classes), name=name)
    else:
        classifier = build_classifier(segmenter.backbone_name, num_classes, name=name)
    start_from_backbone(classifier, segmenter)
    return classifier


def start_from_backbone(classifier: keras.Model, segmenter: keras.Model) -> None:
    """Gives a classifier built by `build_classifier_like` the present weights of the segmenter's backbone."""
    classifier.get_layer(segmenter.backbone.name).set_weights(segmenter.backbone.get_weights())


def _logits(features_BhwF, num_classes: int):
    """(B,K), from the mean over the image."""
    x = keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool")(features_BhwF)
    return keras.layers.Dense(num_classes, kernel_initializer="zeros", dtype="float32", name="logits")(x)
