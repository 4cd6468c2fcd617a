"""Datasets, labelled/unlabelled splits, augmentation and the tf.data pipelines."""

from kerasseg.data.augment import Augmentation
from kerasseg.data.datasets import DATASETS, Dataset, default_palette, open_dataset
from kerasseg.data.folder import FolderDataset
from kerasseg.data.pipeline import eval_dataset, train_dataset
from kerasseg.data.splits import Split, evenly_spaced, make_split

__all__ = [
    "DATASETS",
    "Augmentation",
    "Dataset",
    "FolderDataset",
    "Split",
    "default_palette",
    "eval_dataset",
    "evenly_spaced",
    "make_split",
    "open_dataset",
    "train_dataset",
]
