import dataclasses

import numpy as np
import pytest

from export.parity import BATCHES, LARGE, LIMITS, Sample, _batches, _sizes, parity_report

K = 4


def probabilities(images_NHWC):
    """A model to compare with: classes by brightness of the red channel, never quite sure."""
    centers = np.arange(K) * 64 + 31.5
    scores = np.exp(-(((images_NHWC[..., :1] - centers) / 40.0) ** 2))
    return (scores / scores.sum(-1, keepdims=True)).astype(np.float32)


def exact(images_NHWC):
    return {
        "labels": probabilities(images_NHWC).argmax(-1).astype(np.uint8),
        "confidence": probabilities(images_NHWC).max(-1),
    }


@pytest.fixture
def samples():
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 30, 3), np.uint8)
    return [Sample(image, image[..., 0] // 64) for image in images]


def answered(probabilities_NHWK):
    second_NHW, first_NHW = np.moveaxis(np.sort(probabilities_NHWK)[..., -2:], -1, 0)
    labels_NHW = probabilities_NHWK.argmax(-1).astype(np.uint8)
    return {"labels": labels_NHW, "confidence": first_NHW, "margin": first_NHW - second_NHW}


def reference(images_NHWC):
    return answered(probabilities(images_NHWC))


def report_of(predict, samples):
    return parity_report(reference, {"other": exact, "onnx": predict}, samples, K, LIMITS["fp32"])


def test_equal_graphs_pass(samples):
    report = report_of(exact, samples)
    assert report["passed"] is True
    result = report["formats"]["onnx"]
    assert (result["largest_confidence_error"], result["agreement"], result["mIoU_change"]) == (0.0, 1.0, 0.0)
    assert result["mIoU"] == report["mIoU"]["keras"] == 1.0
    assert len({tuple(case["size"]) for case in result["cases"]}) >= 4
    assert {case["batch"] for case in result["cases"]} == {1, 2, 3}


def test_figures_are_those_of_the_difference(samples):
    def wrong_corner(images_NHWC):
        outputs = exact(images_NHWC)
        outputs["labels"][:, 0, 0] = (outputs["labels"][:, 0, 0] + 1) % K
        outputs["confidence"][:, 0, 0] += 0.125
        return outputs

    report = report_of(wrong_corner, samples)
    result = report["formats"]["onnx"]
    assert report["passed"] is False
    assert (report["formats"]["other"]["passed"], result["passed"]) == (True, False)
    assert result["largest_confidence_error"] == pytest.approx(0.125, abs=1e-6)
    smallest = min(height * width for height, width in _sizes(20, 30))
    assert result["agreement"] == pytest.approx(1 - 1 / smallest)
    # One pixel of 600 in each of three images; the truth, the reference's answer, has every class.
    assert -0.01 < result["mIoU_change"] < -0.001


@pytest.mark.parametrize("damage", [np.nan, 2e-3])
def test_confidence_alone_can_fail(samples, damage):
    report = report_of(lambda images: exact(images) | {"confidence": exact(images)["confidence"] + damage}, samples)
    assert report["passed"] is False


def test_agreement_alone_can_fail(samples):
    """A tenth of the pixels off in one of the sizes only."""

    def wrong_when_small(images_NHWC):
        outputs = exact(images_NHWC)
        if images_NHWC.shape[1:3] == (33, 47):
            outputs["labels"][:, ::10] = (outputs["labels"][:, ::10] + 1) % K
        return outputs

    report = report_of(wrong_when_small, samples)
    assert report["passed"] is False
    assert report["formats"]["onnx"]["agreement_where_clear"] < 0.95
    assert report["formats"]["onnx"]["mIoU_change"] == 0


def test_ties_may_go_either_way(samples):
    """At equal probabilities argmax depends on the last bit: such pixels do not count as clear."""

    def undecided(images_NHWC):
        even = np.full((*images_NHWC.shape[:3], K), 0.2, np.float32)
        even[..., 1:3] = 0.3
        return even

    report = parity_report(
        lambda images: answered(undecided(images)),
        {
            "onnx": lambda images: {
                "labels": np.full(images.shape[:3], 2, np.uint8),
                "confidence": np.full(images.shape[:3], 0.3, np.float32),
            }
        },
        [Sample(sample.image_HWC) for sample in samples],
        K,
        LIMITS["fp32"],
    )
    result = report["formats"]["onnx"]
    assert (report["passed"], result["agreement"], result["agreement_where_clear"]) == (True, 0.0, 1.0)
    assert (result["mIoU"], result["mIoU_change"]) == (None, None)


@pytest.mark.parametrize("size", [(33, 47), (64, 96), (1, 1), (360, 480)])
def test_at_least_four_sizes_odd_ones_among_them(size):
    sizes = _sizes(*size)
    assert size in sizes
    assert len(set(sizes)) >= 4
    assert any(height % 2 and width % 2 for height, width in sizes)


def test_larger_sizes_than_the_working_size_are_among_them():
    assert (59, 81) in _sizes(20, 27, working_size=40)
    assert _sizes(90, 120, working_size=40) == _sizes(90, 120)


def test_large_images_are_compared_one_at_a_time():
    side = int(LARGE**0.5) + 1
    shapes = [images.shape for images in _batches([Sample(np.zeros((side, side, 3), np.uint8))])]
    assert {shape[0] for shape in shapes if shape[1] * shape[2] > LARGE} == {1}
    assert {shape[0] for shape in shapes} == set(BATCHES)


@pytest.mark.parametrize("name", ["reliability", "logits", "features"])
def test_further_outputs_are_compared_too(samples, name):
    """A reliability that is off by 0.25 in one pixel; logits that only differ by what softmax does not see, or do;
    features that are off by a quarter of the largest."""

    def further(images_NHWC, off=0.0):
        if name == "features":
            return {name: np.array([[40.0, 10.0 + 40 * off]] * len(images_NHWC), np.float32)}
        logits_NHWK = np.log(probabilities(images_NHWC))
        value = logits_NHWK + 3.0 if name == "logits" else exact(images_NHWC)["confidence"] ** 2
        value[0, 0, 0] += off * np.eye(K)[0] if name == "logits" else off
        return {name: value.astype(np.float32)}

    def report(off):
        return parity_report(
            lambda images: reference(images) | further(images),
            {"onnx": lambda images: exact(images) | further(images, off)},
            samples,
            K,
            LIMITS["fp32"],
        )

    assert report(0.0)["passed"] and report(0.0)["formats"]["onnx"][f"largest_{name}_error"] < 1e-6
    wrong = report(0.25)
    assert wrong["passed"] is False
    assert 0.01 < wrong["formats"]["onnx"][f"largest_{name}_error"] <= 0.25 + 1e-6


def test_another_precision_may_lose_as_much_as_is_said_and_gain_what_it_likes(samples):
    def worse(images_NHWC):
        outputs = exact(images_NHWC)
        outputs["labels"][:, :2] = 0
        return outputs

    limits = dataclasses.replace(LIMITS["int8"], agreement=0.5)
    truth = [Sample(sample.image_HWC, exact(sample.image_HWC[None])["labels"][0]) for sample in samples]
    loss = -parity_report(reference, {"onnx": worse}, truth, K, limits)["formats"]["onnx"]["mIoU_change"]
    assert 0.02 < loss < 0.2
    for allowed, passed in ((loss * 1.01, True), (loss * 0.99, False)):
        limits = dataclasses.replace(limits, miou_loss=allowed)
        assert parity_report(reference, {"onnx": worse}, truth, K, limits)["passed"] is passed
    wrong_truth = [Sample(sample.image_HWC, np.zeros_like(sample.labels_HW)) for sample in samples]
    limits = dataclasses.replace(limits, miou_loss=0.0)
    assert parity_report(reference, {"onnx": worse}, wrong_truth, K, limits)["passed"] is True
