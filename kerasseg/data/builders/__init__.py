"""tensorflow-datasets builders of published datasets; importing this package registers them for `tfds.load`."""

# isort: off
import kerasseg  # noqa: F401 (first: it prepares the start of TensorFlow)

# isort: on
from kerasseg.data.builders.ade20k import Ade20k
from kerasseg.data.builders.cityscapes import Cityscapes19
from kerasseg.data.builders.coco import Coco81
from kerasseg.data.builders.coco_stuff import CocoStuff
from kerasseg.data.builders.pascal_context import PascalContext
from kerasseg.data.builders.voc2012 import Voc2012

__all__ = ["Ade20k", "Cityscapes19", "Coco81", "CocoStuff", "PascalContext", "Voc2012"]
