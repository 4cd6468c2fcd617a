"""What stands in each annotation tool's file, by hand or by the tool's own package."""

import base64
import io
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kerasseg.data.rle import coco_counts, decode_runs
from serving.batch.annotations import coco, cvat, label_studio, labelme
from serving.batch.annotations.contract import Segmented, is_background, masks
from serving.common.areas import coco_rle
from tests.serving.toy_model import model_info
from training.annotations.rle import decode_brush

CLASSES = ("background", "cat", "dog & <bird>")
LABELS = np.array([[0, 1, 1, 2], [0, 0, 1, 2], [0, 0, 0, 2]])


def segmented(labels_HW=LABELS, polygons=None, classes=CLASSES, source="/disk/photos/b/a.jpg", name="b/a.jpg"):
    return Segmented(
        source=source,
        name=name,
        labels_HW=labels_HW,
        classes=classes,
        model="toy/1",
        confidence=0.5,
        polygons=polygons,
    )


def test_compressed_run_lengths_are_those_of_pycocotools():
    mask_HW = np.zeros((6, 8), int)
    mask_HW[1:4, 2:5] = mask_HW[5, 7] = mask_HW[0, 0] = 1
    assert coco.compressed(coco_rle(mask_HW)[1]["counts"]) == "01<2G000`0N"  # by pycocotools 2.0.11
    mask_HW = np.zeros((300, 200), int)
    mask_HW[10:290, 20:180] = 1
    assert coco.compressed(coco_rle(mask_HW)[1]["counts"]) == "jk5h8d" + "0" * 318 + "Vk5"


def test_compressed_run_lengths_of_any_length_come_back():
    random = np.random.default_rng(0)
    for bits in range(1, 40):
        counts = random.integers(0, 2**bits, random.integers(1, 50)).tolist()
        assert coco_counts(coco.compressed(counts)) == counts


def test_masks_lie_in_their_boxes():
    assert [mask[:5] for mask in masks(LABELS)] == [(0, 0, 0, 3, 3), (1, 1, 0, 2, 2), (2, 3, 0, 1, 3)]
    assert [mask.counts for mask in masks(LABELS)] == [[0, 1, 2, 2, 1, 3], [0, 2, 1, 1], [0, 3]]
    random = np.random.default_rng(1)
    for _ in range(50):
        labels_HW = random.integers(0, 4, random.integers(1, 12, 2)).astype(np.uint8)
        for mask in masks(labels_HW, frozenset([1])):
            drawn_HW = np.zeros(labels_HW.shape, bool)
            box = decode_runs(mask.counts, mask.height, mask.width, "C")
            drawn_HW[mask.top : mask.top + mask.height, mask.left : mask.left + mask.width] = box
            np.testing.assert_array_equal(drawn_HW, labels_HW == mask.label)
            assert box.any(axis=1)[[0, -1]].all() and box.any(axis=0)[[0, -1]].all()
            assert mask.label != 1


def test_coco_in_both_forms():
    first, second = coco.piece(segmented())["annotations"]
    assert first == {
        "category_id": 1,
        "segmentation": {"size": [3, 4], "counts": coco.compressed([3, 1, 2, 2, 4])},
        "area": 3,
        "bbox": [1, 0, 2, 2],
        "iscrowd": 0,
    }
    _, polygon = coco.piece(segmented(polygons=0.0))["annotations"]
    assert polygon["bbox"] == second["bbox"] == [3, 0, 1, 3]
    assert polygon["area"] == second["area"] == 3
    [points] = polygon["segmentation"]
    assert {tuple(points[i : i + 2]) for i in range(0, 10, 2)} == {(3, 0), (4, 0), (4, 3), (3, 3), (3, 2)}


def test_coco_numbers_images_and_annotations():
    """Ids of annotations begin at 1: pycocotools takes 0 for no match."""
    pieces = [("ä\udcff.jpg", coco.piece(segmented())), ("b.jpg", coco.piece(segmented(np.full((3, 4), 2))))]
    info = model_info()
    content = json.loads("".join(coco.assemble(lambda: pieces, info)))
    assert [(image["id"], image["file_name"]) for image in content["images"]] == [(1, "ä\ufffd.jpg"), (2, "b.jpg")]
    found = [(each["id"], each["image_id"], each["category_id"]) for each in content["annotations"]]
    assert found == [(1, 1, 1), (2, 1, 2), (3, 2, 2)]
    assert [(each["id"], each["name"]) for each in content["categories"]] == list(enumerate(info.classes))


def test_cvat_elements():
    piece = cvat.piece(segmented())
    text = "".join(cvat.assemble(lambda: [('a "b"\x01&.png', piece)], model_info()))
    root = ElementTree.fromstring(text)
    image = root.find("image")
    assert dict(image.attrib) == {"id": "0", "name": 'a "b"\ufffd&.png', "width": "4", "height": "3"}
    assert [mask.get("label") for mask in image] == ["cat", "dog & <bird>"]
    at = image[0].attrib
    assert [at[name] for name in ("rle", "left", "top", "width", "height")] == ["0, 2, 1, 1", "1", "0", "2", "2"]
    assert [label.findtext("color") for label in root.iterfind("meta/task/labels/label")] == ["#000000", "#010203"]
    polygon = ElementTree.fromstring(cvat.piece(segmented(polygons=0.0))["shapes"][1])
    assert set(polygon.get("points").split(";")) == {"3,0", "4,0", "4,3", "3,3", "3,2"}


def test_label_studio_task():
    task = label_studio.piece(segmented())
    [prediction] = task["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("toy/1", 0.5)
    assert "annotations" not in task
    by_name = {result["value"]["brushlabels"][0]: result["value"]["rle"] for result in prediction["result"]}
    assert list(by_name) == ["cat", "dog & <bird>"]
    np.testing.assert_array_equal(decode_brush(by_name["cat"], 3, 4), LABELS == 1)
    [_, polygon] = label_studio.piece(segmented(polygons=0.0))["predictions"][0]["result"]
    assert polygon["value"]["polygonlabels"] == ["dog & <bird>"]
    points = {(x, round(y, 3)) for x, y in polygon["value"]["points"]}
    assert points == {(75, 0), (100, 0), (100, 100), (75, 100), (75, 66.667)}


@pytest.mark.parametrize("polygons", [None, 0.0])
def test_label_studios_configuration_fits_its_tasks(polygons):
    info = model_info()
    [(name, text)] = label_studio.extras(info, polygons is not None).items()
    root = ElementTree.fromstring(text)
    assert name.endswith(".xml")
    for result in label_studio.piece(segmented(polygons=polygons))["predictions"][0]["result"]:
        tag = root.find(f".//*[@name='{result['from_name']}']")
        assert tag.tag.lower() == result["type"]
        assert tag.get("toName") == result["to_name"] == root.find("Image").get("name")
    assert [label.get("value") for label in tag] == list(info.classes)
    assert root.find("Image").get("value") == "$image"


@pytest.mark.parametrize(
    ("source", "name", "expected"),
    [
        ("/disk/my photos/b/a#1.jpg", "b/a#1.jpg", "my%20photos/b/a%231.jpg"),
        ("/a.jpg", "a.jpg", "a.jpg"),
        ("/elsewhere/a.jpg", "elsewhere/a.jpg", "elsewhere/a.jpg"),  # of a list, outside of its folder
        ("/photos/\udcff+.jpg", "\udcff+.jpg", "photos/%FF%2B.jpg"),
        ("/photos/ba.jpg", "a.jpg", "a.jpg"),
    ],
)
def test_images_are_named_from_the_folder_that_holds_input(source, name, expected):
    assert label_studio.url(source, name) == f"/data/local-files/?d={expected}"


def test_labelme_file(tmp_path):
    path = tmp_path / "out" / "labelme" / "b" / "a.json"
    content = json.loads(labelme.contents(segmented(source=str(tmp_path / "photos/b/a.jpg")), path))
    assert content["imagePath"] == "../../../photos/b/a.jpg"
    assert (content["imageHeight"], content["imageWidth"], content["imageData"]) == (3, 4, None)
    cat, dog = content["shapes"]
    assert (cat["label"], cat["shape_type"], cat["points"]) == ("cat", "mask", [[1, 0], [2, 1]])
    assert (dog["label"], dog["points"]) == ("dog & <bird>", [[3, 0], [3, 2]])
    with Image.open(io.BytesIO(base64.b64decode(cat["mask"]))) as mask:
        np.testing.assert_array_equal(np.asarray(mask), [[True, True], [False, True]])
    content = json.loads(labelme.contents(segmented(polygons=0.0), path))
    assert [shape["shape_type"] for shape in content["shapes"]] == ["polygon", "polygon"]


def test_a_labelme_file_that_was_saved_again_is_known(tmp_path):
    path = tmp_path / "a.json"
    assert not labelme.is_edited(path)
    path.write_bytes(labelme.contents(segmented(), path))
    assert not labelme.is_edited(path)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))  # as labelme does
    assert labelme.is_edited(path)


@pytest.mark.parametrize("name", ["background", "Background", "_background_", "__background__", " background "])
def test_a_background_is_written_only_where_nothing_else_is(name):
    """`import_data` takes an image without shapes for one that nobody has annotated."""
    assert is_background(name)
    classes = (name, *CLASSES[1:])
    assert [each["category_id"] for each in coco.piece(segmented(classes=classes))["annotations"]] == [1, 2]
    for polygons in (None, 0.0):
        image = segmented(np.zeros((3, 4), int), polygons, classes)
        [only] = coco.piece(image)["annotations"]
        assert (only["category_id"], only["area"], only["bbox"]) == (0, 12, [0, 0, 4, 3])


def test_class_0_is_written_where_it_is_no_background():
    assert [each["category_id"] for each in coco.piece(segmented(classes=("road", "car")))["annotations"]] == [0, 1, 2]


def test_specks_only_leave_their_surroundings():
    labels_HW = np.zeros((20, 30), int)
    labels_HW[5, 5] = 1
    [only] = coco.piece(segmented(labels_HW, 3.0))["annotations"]
    assert (only["category_id"], only["area"]) == (0, 600)


def test_255_classes():
    labels_HW = np.arange(255, dtype=np.uint8).reshape(15, 17)
    image = segmented(labels_HW, classes=tuple(f"class {number}" for number in range(255)))
    for piece in (coco.piece(image)["annotations"], cvat.piece(image)["shapes"]):
        assert len(piece) == 255
    assert len(label_studio.piece(image)["predictions"][0]["result"]) == 255
    assert len(json.loads(labelme.contents(image, Path("/a.json")))["shapes"]) == 255
