"""Compares the exported graph with the trained model on natural images, and writes a report.

Shapes: N images of one size, H and W their height and width; K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from kerasseg.losses import IGNORE_LABEL
from kerasseg.metrics import ConfusionMatrix, scores
from serving.common.windows import softmax

Predictor = Callable[[np.ndarray], dict[str, np.ndarray]]
"""uint8 (N,H,W,3) to {"labels": uint8 (N,H,W), "confidence": float32 (N,H,W)}, and further outputs."""

BATCHES = (1, 2, 3)

LARGE = 2**20
"""Images of more pixels than this are compared one at a time."""

MARGIN = 1e-4
"""Where the probabilities of the two most probable classes differ by less than this, both answers are right."""


@dataclass(frozen=True)
class Sample:
    """An image uint8 (H,W,3) and, where there is one, its true label map uint8 (H,W), 255 = ignore."""

    image_HWC: np.ndarray
    labels_HW: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest differences that an exported graph may have."""

    error: float
    """Largest absolute difference of any pixel's confidence, reliability, or softmax of the logits, and of any of the
    features, as a share of the largest one."""
    agreement: float
    """Smallest share of pixels with the same label, where the margin is clear, for each size and batch."""
    miou_loss: float
    """Largest loss of mIoU, 0..1."""


Precision = Literal["fp32", "fp16", "int8"]

LIMITS: dict[Precision, Limits] = {
    "fp32": Limits(error=1e-3, agreement=0.999, miou_loss=1e-3),
    # In other arithmetic, answers must be as good, not the same; here agreement only shows whether something is broken.
    "fp16": Limits(error=1.0, agreement=0.9, miou_loss=5e-3),
    "int8": Limits(error=1.0, agreement=0.5, miou_loss=5e-3),
}
"""The limits for each precision."""


def parity_report(
    reference: Predictor,
    formats: dict[str, Predictor],
    samples: Sequence[Sample],
    num_classes: int,
    limits: Limits,
    working_size: int | None = None,
) -> dict[str, Any]:
    """Compares exported graphs with the model they come from.

    Args:
        reference: the trained model: uint8 (N,H,W,3) to "labels" and "confidence" as the graphs have them; "margin", by
            how much their probability exceeds that of the second class; and "reliability", "logits" and "features"
            where the graphs have them.
        formats: the exported graphs by name.
        samples: images to compare on, at least one; resized to several sizes, and batched. Those with
            labels also give an mIoU, each at its own size.
        limits: what decides whether a format passes.
        working_size: the longer side to which the model shrinks larger images, pixels; twice as large ones are compared
            too.

    Returns:
        The content for `model.json`: `"passed"`, `"margin"`, `"limits"`, `"images"`, `"mIoU": {"keras": ...}`,
        and in `"formats"` for each of them `"passed"`, `"mIoU"`, `"mIoU_change"`, `"cases"` (one for each size
        and batch) and their worst `"agreement"`, `"agreement_where_clear"`, `"largest_confidence_error"`, and the same
        error of reliability, of the softmax of logits and of features (of the largest one) where there are any.
    """
    results: dict[str, dict[str, Any]] = {name: {"cases": []} for name in formats}
    for images_NHWC in _batches(samples, working_size):
        expected = reference(images_NHWC)
        for name, predict in formats.items():
            results[name]["cases"].append(_compare(expected, predict(images_NHWC)))

    labelled = [
        sample for sample in samples if sample.labels_HW is not None and (sample.labels_HW != IGNORE_LABEL).any()
    ]
    own_miou = _miou(reference, labelled, num_classes) if labelled else None
    for name, result in results.items():
        cases = result["cases"]
        errors = {key: max(case[key] for case in cases) for key in cases[0] if key.startswith("largest_")}
        result |= errors
        result["agreement"] = min(case["agreement"] for case in cases)
        result["agreement_where_clear"] = min(case["agreement_where_clear"] for case in cases)
        result["mIoU"] = _miou(formats[name], labelled, num_classes) if labelled else None
        result["mIoU_change"] = None if own_miou is None else result["mIoU"] - own_miou
        # In this form a NaN fails.
        result["passed"] = bool(
            all(case[key] <= limits.error for case in cases for key in errors)
            and result["agreement_where_clear"] >= limits.agreement
            and (not labelled or -result["mIoU_change"] <= limits.miou_loss)
        )
    return {
        "passed": all(result["passed"] for result in results.values()),
        "margin": MARGIN,
        "limits": vars(limits),
        "images": len(samples),
        "mIoU": {"keras": own_miou},
        "formats": results,
    }


def _sizes(height: int, width: int, working_size: int | None = None) -> list[tuple[int, int]]:
    """At least four sizes: small, odd, no multiple of any stride, the images' own, and larger ones than the working
    size."""
    own = [(height // 2 | 1, width // 2 | 1), (height, width), (height + 3, width + 5)]
    if working_size is not None and max(height, width) < 2 * working_size:
        longest = max(height, width)
        own.append((2 * working_size * height // longest | 1, 2 * working_size * width // longest | 1))
    return list(dict.fromkeys([(33, 47), (64, 96), *own]))


def _batches(samples: Sequence[Sample], working_size: int | None = None):
    """Batches of natural images (N,H,W,3), every size of `_sizes` with every number of `BATCHES`."""
    own_height, own_width = samples[0].image_HWC.shape[:2]
    for height, width in _sizes(own_height, own_width, working_size):
        images = [
            np.asarray(Image.fromarray(samples[index % len(samples)].image_HWC).resize((width, height)))
            for index in range(max(BATCHES))
        ]
        for batch in BATCHES if height * width <= LARGE else BATCHES[:1]:
            yield np.stack(images[:batch])


def _compare(expected: dict[str, np.ndarray], outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    batch, height, width = expected["labels"].shape
    same_NHW = outputs["labels"] == expected["labels"]
    clear_NHW = expected["margin"] > MARGIN
    errors: dict[str, np.ndarray] = {
        name: outputs[name] - expected[name] for name in ("confidence", "reliability") if name in outputs
    }
    if "logits" in outputs:
        errors["logits"] = softmax(outputs["logits"]) - softmax(expected["logits"])
    if "features" in outputs:
        errors["features"] = (outputs["features"] - expected["features"]) / np.abs(expected["features"]).max()
    return {
        "batch": batch,
        "size": [height, width],
        "agreement": float(same_NHW.mean()),
        "agreement_where_clear": float(same_NHW[clear_NHW].mean()) if clear_NHW.any() else 1.0,
    } | {f"largest_{name}_error": float(np.abs(error).max()) for name, error in errors.items()}


def _miou(predict: Predictor, samples: Sequence[Sample], num_classes: int) -> float:
    confusion = ConfusionMatrix(num_classes)
    for sample in samples:
        confusion.update_state(sample.labels_HW, predict(sample.image_HWC[None])["labels"][0])
    found = scores(confusion.matrix).mean_iou
    assert found is not None  # some pixel has a class
    return found
