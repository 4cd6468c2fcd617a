"""Finds the image that TensorFlow could not decode: its own errors do not name it."""

import contextlib
import sys
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorflow as tf

from kerasseg.data.datasets import SPLITS, Dataset, open_dataset
from kerasseg.data.folder import reason_of
from kerasseg.data.problems import FileError, naming_file

DECODING_ERRORS = (
    tf.errors.DataLossError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.UnknownError,
)
"""TensorFlow's errors for an image that it cannot read; it raises them for other reasons too."""


@contextlib.contextmanager
def naming_unreadable(
    dataset: str | Path, then: str = "start again", splits: Collection[str] = SPLITS
) -> Iterator[None]:
    """After an error of `DECODING_ERRORS` inside, all images are decoded to find the one that caused it.

    Args:
        dataset: name or folder, as `open_dataset` takes it.
        then: what to do when that image is repaired.
        splits: the splits that are read inside.

    Raises:
        ValueError: it names the first image that cannot be decoded.
    """
    try:
        yield
    except DECODING_ERRORS as error:
        print("TensorFlow could not read or use something: checking whether it is an image", file=sys.stderr)
        if found := first_unreadable(open_dataset(dataset), splits):
            raise ValueError(f"{found} (`kerasseg check` names all such files); then {then}") from error
        raise


def first_unreadable(dataset: Dataset, splits: Collection[str] = SPLITS) -> str | None:
    """The first image or label map that training cannot decode, why, and what to do; None where all can be decoded."""
    wanted = [(split, name) for split in dataset.splits if split in splits for name in dataset.image_names(split)]
    labeled = {(split, name) for split in splits if split in dataset.splits for name in dataset.label_names(split)}

    def reason(item: tuple[str, str]) -> str | None:
        what = dataset.describe(*item)
        try:
            size = dataset.load_image(*item).shape[:2]
            if item in labeled and (found := dataset.load_label(*item).shape) != size:
                with naming_file(f"the label map of {what}"):
                    raise FileError("size", "{1}x{0} for {3}x{2}".format(*found, *size))
        except DECODING_ERRORS as error:  # in a record, which has no file of its own
            return f"{what} cannot be read ({reason_of(error)})"
        except (OSError, ValueError) as error:
            is_named = isinstance(error.__cause__, FileError) or getattr(error, "filename", None)
            return str(error) if is_named else f"{what} cannot be read ({error})"
        return None

    with ThreadPoolExecutor() as pool:
        return next(filter(None, pool.map(reason, wanted)), None)
