"""Which picture it was that TensorFlow could not decode: its own errors do not say."""

import contextlib
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorflow as tf

from kerasseg.data.datasets import Dataset, open_dataset

OF_A_PICTURE = (
    tf.errors.DataLossError,
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.UnknownError,
)
"""What TensorFlow raises where a picture cannot be had, and elsewhere too."""


# Where in a graph it happened, around what a decoder has to say.
_OF_THE_GRAPH = re.compile(r"\{\{.*?\}\}|\[Op:.*")


@contextlib.contextmanager
def naming_unreadable(dataset: str | Path, then: str = "start again") -> Iterator[None]:
    """Where an error inside is one of `OF_A_PICTURE`, all pictures are decoded to find out which it was.

    Args:
        dataset: name or folder, as `open_dataset` takes it.
        then: what to do when that picture is right.

    Raises:
        ValueError: it names the first that cannot be decoded as training does.
    """
    try:
        yield
    except OF_A_PICTURE as error:
        print("TensorFlow could not read or use something: looking whether it is a picture", file=sys.stderr)
        if found := first_unreadable(open_dataset(dataset)):
            raise ValueError(
                f"{found}; copy the file again from its source, or remove it (`python -m training.check_data` names "
                f"all such files), and {then}"
            ) from error
        raise


def first_unreadable(dataset: Dataset) -> str | None:
    """Which picture or label map cannot be decoded as training does, and why; None where all can."""
    wanted = [(split, name) for split in dataset.splits for name in dataset.image_names(split)]
    labeled = {(split, name) for split in dataset.splits for name in dataset.label_names(split)}

    def reason(item: tuple[str, str]) -> str | None:
        split, name = item
        what = dataset.describe(split, name)
        try:
            size = dataset.tf_image(split, tf.constant(name)).shape[:2]
            if item in labeled:
                what = f"the label map of {what}"
                if dataset.load_label(split, name).shape != size:
                    return f"{what} is not of its size"
        except (OSError, ValueError, *OF_A_PICTURE) as error:
            return f"{what} cannot be read ({_OF_THE_GRAPH.sub('', str(error)).strip()})"
        return None

    with ThreadPoolExecutor() as pool:
        return next(filter(None, pool.map(reason, wanted)), None)
