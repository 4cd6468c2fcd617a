"""Segmenters: image (B,H,W,3) to class logits (B,H,W,K)."""

from typing import Literal

from kerasseg.checks import require_one_of
from kerasseg.segmenters.backbones import BACKBONES, backbone_spec, build_backbone, require_drop_path
from kerasseg.segmenters.cut import CutSegmenter, cut, require_parts
from kerasseg.segmenters.deeplab_v2 import DeepLabV2
from kerasseg.segmenters.deeplab_v3plus import DeepLabV3Plus
from kerasseg.segmenters.dpt import DPT
from kerasseg.segmenters.fpn import FPN
from kerasseg.segmenters.segformer import SegFormer
from kerasseg.segmenters.segmenter import Segmenter, dead_taps, fitting_rates
from kerasseg.segmenters.weights import LoadedWeights, load_weights

SegmenterName = Literal["deeplab_v2", "deeplab_v3plus", "segformer", "fpn", "dpt"]
SEGMENTERS: dict[str, type[Segmenter]] = {
    "deeplab_v2": DeepLabV2,
    "deeplab_v3plus": DeepLabV3Plus,
    "segformer": SegFormer,
    "fpn": FPN,
    "dpt": DPT,
}


def build_segmenter(name: str, **arguments) -> Segmenter:
    """The segmenter of that name, `arguments` as its class takes them; ValueError lists the valid names."""
    require_one_of("segmenter", name, SEGMENTERS)
    return SEGMENTERS[name](**arguments)


__all__ = [
    "BACKBONES",
    "DPT",
    "FPN",
    "SEGMENTERS",
    "CutSegmenter",
    "DeepLabV2",
    "DeepLabV3Plus",
    "LoadedWeights",
    "SegFormer",
    "Segmenter",
    "SegmenterName",
    "backbone_spec",
    "build_backbone",
    "build_segmenter",
    "cut",
    "dead_taps",
    "fitting_rates",
    "load_weights",
    "require_drop_path",
    "require_parts",
]
