"""Oxford-IIIT Pet as tensorflow-datasets has it: 3,680 images to train and 3,669 to measure on."""

import functools

import tensorflow_datasets as tfds

from kerasseg.data.prepared import PreparedDataset

# O. M. Parkhi et al.: Cats and Dogs, 2012. In the order of the trimaps' values 1, 2, 3.
CLASSES = ("pet", "background", "border")


def open_dataset() -> PreparedDataset:
    return PreparedDataset(
        "oxford_iiit_pet",
        functools.partial(tfds.builder, "oxford_iiit_pet"),
        CLASSES,
        records={"train": "train", "val": "test"},
        name_feature="file_name",
        label_feature="segmentation_mask",
        first_label=1,
    )
