"""Images over HTTP: every form in, every form out, and what is refused."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from serving.common.areas import coco_rle
from serving.common.artifact import Tensor, open_artifact
from serving.common.images import load_image, overlay
from serving.http.image_codec import choose_output
from tests.serving.http_calls import SEGMENT, error_of, index_of
from tests.serving.images import encoded, encoded_image, expected_labels
from tests.serving.toy_model import CLASSES, PALETTE, write_toy_model


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_image_as_body_and_as_form(client, format):
    contents = encoded_image(10, 14, format=format)
    np.testing.assert_array_equal(index_of(client.post(SEGMENT, content=contents)), expected_labels(contents))
    as_curl = {"Content-Type": "application/x-www-form-urlencoded"}  # what --data-binary says by itself
    np.testing.assert_array_equal(
        index_of(client.post(SEGMENT, content=contents, headers=as_curl)), expected_labels(contents)
    )
    form = {"files": {"image": ("a.jpg", contents)}, "data": {"note": "ignored"}}
    np.testing.assert_array_equal(index_of(client.post(SEGMENT, **form)), expected_labels(contents))
    np.testing.assert_array_equal(index_of(client.post(f"{SEGMENT}/versions/1", **form)), expected_labels(contents))


def test_an_image_taken_sideways_is_answered_upright(client):
    exif = Image.Exif()
    exif[0x0112] = 6
    contents = encoded_image(6, 12, format="JPEG", quality=95, exif=exif)
    labels_HW = index_of(client.post(SEGMENT, content=contents))
    assert labels_HW.shape == (12, 6)
    np.testing.assert_array_equal(labels_HW, expected_labels(contents))


@pytest.mark.parametrize("asked", [{"params": {"output": "overlay"}}, {"headers": {"Accept": "image/jpeg"}}])
def test_overlay(client, asked):
    contents = encoded(Image.new("RGB", (32, 16), (200, 100, 40)))
    response = client.post(SEGMENT, content=contents, **asked)
    assert response.headers["content-type"] == "image/jpeg"
    tinted = load_image(response.content)
    expected = overlay(load_image(contents), expected_labels(contents), PALETTE)
    np.testing.assert_allclose(tinted.astype(int), expected.astype(int), atol=3)


def test_overlay_of_another_opacity(client):
    contents = encoded(Image.new("RGB", (32, 16), (200, 100, 40)))
    tinted = load_image(client.post(SEGMENT, params={"output": "overlay", "opacity": 1}, content=contents).content)
    np.testing.assert_allclose(tinted.astype(int), np.broadcast_to(PALETTE[3], tinted.shape), atol=3)


@pytest.mark.parametrize("asked", [{"params": {"output": "areas"}}, {"headers": {"Accept": "application/json"}}])
def test_class_areas(client, asked):
    image_HWC = np.zeros((4, 5, 3), np.uint8)
    image_HWC[0] = (200, 51, 0)
    response = client.post(SEGMENT, content=encoded(Image.fromarray(image_HWC)), **asked)
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {
        "id": response.headers["x-request-id"],
        "model_name": "toy",
        "model_version": "1",
        "height": 4,
        "width": 5,
        "classes": [
            {"label": 0, "name": CLASSES[0], "pixels": 15, "share": 0.75},
            {"label": 3, "name": CLASSES[3], "pixels": 5, "share": 0.25},
        ],
        "mean_confidence": pytest.approx(0.2 / 4),
    }


@pytest.mark.parametrize(
    "asked", [{"params": {"output": "rle"}}, {"headers": {"Accept": "application/x-coco-rle+json"}}]
)
def test_run_lengths(client, asked):
    contents = encoded_image(6, 8)
    answer = client.post(SEGMENT, content=contents, **asked).json()
    found = {entry["label"]: entry["rle"] for entry in answer["classes"]}
    assert found == coco_rle(expected_labels(contents))


def test_a_map_of_the_model(client):
    contents = encoded_image(6, 8)
    response = client.post(SEGMENT, params={"output": "confidence"}, content=contents)
    with Image.open(io.BytesIO(response.content)) as grey:
        assert grey.mode == "L"
        np.testing.assert_array_equal(np.asarray(grey), load_image(contents)[..., 1])


@pytest.mark.parametrize(
    ("accept", "output"),
    [
        ("*/*", "labels"),
        ("text/html,application/xhtml+xml,image/avif,image/webp,*/*;q=0.8", "labels"),
        ("image/*", "labels"),
        ("image/jpeg, image/png;q=0.5", "overlay"),
        ("image/png;q=0.5, application/json", "areas"),
        ("image/png;q=x, image/jpeg;q=0.1", "overlay"),
    ],
)
def test_accept_decides(toy_model, accept, output):
    assert choose_output({}, accept, open_artifact(toy_model).info) == output


def test_maps_are_what_has_a_value_in_each_pixel(tmp_path):
    kinds = {"labels": ("UINT8", 3), "confidence": ("FP32", 3), "reliability": ("FP32", 3), "logits": ("FP32", 4)}
    outputs = tuple(
        Tensor(name=name, datatype=datatype, shape=(-1,) * rank, description="")
        for name, (datatype, rank) in kinds.items()
    )
    info = open_artifact(write_toy_model(tmp_path / "toy", 1, outputs=outputs)).info
    assert choose_output({"output": "reliability"}, "*/*", info) == "reliability"
    with pytest.raises(ValueError, match="expected labels, overlay, areas, rle, confidence, reliability$"):
        choose_output({"output": "logits"}, "*/*", info)


def test_errors_of_images(client):
    def error(status, content=None, **options):
        content = encoded_image() if content is None else content
        return error_of(client.post(SEGMENT, content=content, **options), status)

    assert "image cannot be read: damaged GIF data" in error(400, b"GIF89a")
    assert "image cannot be read" in error(400, b"")
    assert "image cannot be read" in error(400, encoded_image(40, 40)[:-30])
    assert error(400, params={"output": "x"}) == "output is x: expected labels, overlay, areas, rle, confidence"
    assert error(400, params={"opacity": "nan"}) == "opacity is nan: expected a number from 0 to 1"
    assert error(400, params={"timeout": "soon"}) == "timeout is soon: expected a number from 0 to inf"
    assert "this can be had: image/png, image/jpeg" in error(406, headers={"Accept": "text/html, image/png;q=0"})
    assert "boundary" in error(400, headers={"Content-Type": "multipart/form-data"}).lower()
    two = {"a": ("a.png", encoded_image()), "b": ("b.png", encoded_image())}
    assert "the form has 2 files" in error_of(client.post(SEGMENT, files=two), 400)
    assert error_of(client.get(SEGMENT), 405) == "Method Not Allowed"
    assert error_of(client.get("/nowhere"), 404) == "Not Found"


def test_images_made_to_take_long(client):
    jpeg = encoded_image(16, 16, format="JPEG")
    assert "too many pieces" in error_of(client.post(SEGMENT, content=jpeg[:2] + b"\xff" * 200_000 + jpeg[2:]), 400)
    form = b'--edge\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n\r\n'
    response = client.post(
        SEGMENT, content=form * 100 + b"--edge--\r\n", headers={"Content-Type": "multipart/form-data; boundary=edge"}
    )
    assert error_of(response, 400) == "the form has more than 63 parts: send one image a request"
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1200, 3), np.uint8)
    response = client.post(SEGMENT, params={"output": "rle"}, content=encoded(Image.fromarray(noise), compress_level=0))
    assert error_of(response, 400) == "the labels change more than 1048576 times: ask for output=labels"


def test_what_curl_makes_of_a_file_is_told(client):
    """-d in place of --data-binary: without line ends and zero bytes; or without the @, so that the name comes."""

    def told(content, kind="application/x-www-form-urlencoded"):
        return "curl --data-binary @FILE" in error_of(
            client.post(SEGMENT, content=content, headers={"Content-Type": kind}), 400
        )

    for format in ("JPEG", "PNG", "WEBP"):
        lost = re.sub(rb"[\r\n\0]", b"", encoded_image(40, 40, format=format))
        assert told(lost) and not told(lost, "image/png")
        assert not told(encoded_image(40, 40, format=format)[:-50])
    assert told(b"photo.jpg") and not told(b'{"image": 1}', "application/json")
