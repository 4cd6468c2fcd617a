"""Weights of classes for the labelled loss, from the pixels of the labelled images.

Legend: K classes; N labelled images.
"""

import numpy as np

from kerasseg.checks import first_few, require_one_of
from kerasseg.data.datasets import Dataset, count_pixels
from kerasseg.data.splits import Split

SCHEMES = ("inverse_log", "effective_number")


def class_weights(dataset: Dataset, split: Split, scheme: str) -> tuple[float, ...]:
    """One weight per class, the larger the rarer the class; their mean over the labelled pixels is 1.

    With n_c the labelled pixels of class c and f_c their share of all:

    - "inverse_log": 1 / ln(1.02 + f_c) (ENet, Paszke et al. 2016, arXiv:1606.02147). The weights of two classes differ
      by a factor of 36 at most.
    - "effective_number": (1 - beta) / (1 - beta^n_c) (Cui et al. 2019, arXiv:1901.05555). In the paper beta is
      (M - 1) / M, where M is the number of distinct samples of a class. Here M is the mean number of labelled pixels of
      an image, since the pixels of one image are much alike. So a class that would fill several images has nearly the
      weight of any other such class, and a class that would fill a small part of one image has M / n_c times that. The
      weights do not depend on the resolution, and they become more alike as more images are labelled. The paper's
      values of beta, 0.9 to 0.9999, are for images. There are many more pixels, so for pixels they give all classes the
      same weight.

    A class without a pixel gets the weight of the rarest class that has one.

    Raises:
        ValueError: an unknown scheme, or no labelled image has a pixel of a class.
    """
    require_one_of("class weights", scheme, SCHEMES)
    pixels_K = count_pixels(dataset, "train", split.labeled)[:, : dataset.num_classes].sum(axis=0)
    total = int(pixels_K.sum())
    if not total:
        raise ValueError("no labelled image has a pixel of a class, so classes cannot be weighed by their pixels")
    share_K = pixels_K / total
    counted_K = np.where(pixels_K > 0, pixels_K, pixels_K[pixels_K > 0].min())
    if scheme == "inverse_log":
        weight_K = 1.0 / np.log(1.02 + counted_K / total)
    else:
        distinct = max(total / len(split.labeled), 2.0)
        beta = 1.0 - 1.0 / distinct
        weight_K = (1.0 - beta) / -np.expm1(counted_K * np.log(beta))  # 1 - beta^n, exact for small n too
    return tuple((weight_K / (share_K @ weight_K)).tolist())


def parse_class_weights(text: str) -> str | tuple[float, ...]:
    """The value of --class-weights: `none`, a scheme's name, or numbers separated by commas.

    Raises:
        ValueError: it is none of these, or the numbers are no weights.
    """
    text = text.strip()
    if text in ("none", *SCHEMES):
        return text
    try:
        weights = tuple(float(number) for number in text.split(","))
    except ValueError:
        weights = ()
    # Infinity and what is no number fail here, too.
    if not weights or not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
        raise ValueError(
            f"--class-weights must be none, {', '.join(SCHEMES)}, or numbers 0 or more separated by commas, one per "
            f"class and not all 0; got {text!r}"
        )
    return weights


def resolve_class_weights(text: str, dataset: Dataset, split: Split) -> tuple[float, ...]:
    """The weights that --class-weights stands for, one per class; () for `none`. Given numbers are taken as they are.

    Raises:
        ValueError: neither a scheme nor numbers, or not as many numbers as there are classes.
    """
    weights = parse_class_weights(text)
    if weights == "none":
        return ()
    if isinstance(weights, str):
        return class_weights(dataset, split, weights)
    if len(weights) != dataset.num_classes:
        raise ValueError(
            f"--class-weights must be {dataset.num_classes} numbers, one for each class of {dataset.name!r} "
            f"({first_few(dataset.classes)}); got {len(weights)}"
        )
    return weights
