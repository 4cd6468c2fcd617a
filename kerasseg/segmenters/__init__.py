"""Segmenters: image (B,H,W,3) to class logits (B,H,W,K)."""

from kerasseg.segmenters.backbones import BACKBONES, build_backbone
from kerasseg.segmenters.cut import CutSegmenter, cut, require_parts
from kerasseg.segmenters.deeplab_v2 import DeepLabV2
from kerasseg.segmenters.deeplab_v3plus import DeepLabV3Plus
from kerasseg.segmenters.segmenter import Segmenter, dead_taps, fitting_rates
from kerasseg.segmenters.weights import LoadedWeights, load_weights

SEGMENTERS: dict[str, type[Segmenter]] = {"deeplab_v2": DeepLabV2, "deeplab_v3plus": DeepLabV3Plus}


def build_segmenter(name: str, **arguments) -> Segmenter:
    """The segmenter of that name, `arguments` as its class takes them; ValueError lists the valid names."""
    if name not in SEGMENTERS:
        raise ValueError(f"segmenter must be one of {', '.join(SEGMENTERS)}; got {name!r}")
    return SEGMENTERS[name](**arguments)


__all__ = [
    "BACKBONES",
    "SEGMENTERS",
    "CutSegmenter",
    "DeepLabV2",
    "DeepLabV3Plus",
    "LoadedWeights",
    "Segmenter",
    "build_backbone",
    "build_segmenter",
    "cut",
    "dead_taps",
    "fitting_rates",
    "load_weights",
    "require_parts",
]
