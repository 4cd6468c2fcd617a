"""Datasets, labelled/unlabelled splits, augmentation and the tf.data pipelines."""

from kerasseg.data.augment import Augmentation
from kerasseg.data.datasets import DATASETS, Dataset, default_palette, open_dataset
from kerasseg.data.folder import FolderDataset
from kerasseg.data.pipeline import eval_dataset, train_dataset
from kerasseg.data.shrunk import ShrunkDataset, auto_size
from kerasseg.data.splits import Split, evenly_spaced, make_split
from kerasseg.data.unreadable import naming_unreadable
from kerasseg.data.weighting import class_weights, resolve_class_weights

__all__ = [
    "DATASETS",
    "Augmentation",
    "Dataset",
    "FolderDataset",
    "ShrunkDataset",
    "Split",
    "auto_size",
    "class_weights",
    "default_palette",
    "eval_dataset",
    "evenly_spaced",
    "make_split",
    "naming_unreadable",
    "open_dataset",
    "resolve_class_weights",
    "train_dataset",
]
