import numpy as np
import pytest

from tests.training.annotations.sources import drawn, image, import_, write_text

HEAD = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version><meta><task><labels>
<label><name>road</name><color>#0000ff</color></label>
<label><name>car</name><color>#ff8000</color></label>
<label><name>sky</name><color>#00ff00</color></label>
</labels></task></meta>"""
ROAD = '<polygon label="road" points="1,1;9,1;9,9;1,9" z_order="{}"></polygon>'


@pytest.fixture
def source(tmp_path):
    for name in ("a", "b"):
        image(tmp_path / f"source/images/{name}.png")
    return tmp_path / "source"


def xml(source, *images: str, head: str = HEAD):
    return write_text(source / "annotations.xml", head, *images, "</annotations>")


def entry(name: str, *shapes: str, size: str = 'width="16" height="12"', more: str = "") -> str:
    return f'<image id="0" name="{name}" {size} {more}>{"".join(shapes)}</image>'


def test_z_order_masks_boxes_and_colours(source, capsys):
    box = '<box label="car" xtl="3" ytl="3" xbr="6" ybr="5" z_order="0"></box>'
    mask = '<mask label="car" rle="1, 2, 1, 2" left="8" top="8" width="3" height="2" z_order="5"></mask>'
    xml(source, entry("a.png", mask, ROAD.format(1), box), entry("b.png", box, ROAD.format(0), box))
    result = import_(capsys, source)
    assert (result.status, result.classes) == (0, ["background", "road", "car"])
    expected = drawn((1, 1, 1, 9, 9))  # the box of a lower z_order lies under it
    expected[8:10, 8:11][np.array([[0, 1, 1], [0, 1, 1]], bool)] = 2
    np.testing.assert_array_equal(result.labels("a"), expected)
    np.testing.assert_array_equal(result.labels("b"), drawn((1, 1, 1, 9, 9), (2, 3, 3, 6, 5)))
    assert '"palette": [[0, 0, 0], [0, 0, 255], [255, 128, 0]]' in (result.out / "classes.json").read_text()
    assert result.warned("sky: a class without annotation")


def test_turned_boxes_and_ellipses(source, capsys):
    box = '<box label="car" xtl="2" ytl="5" xbr="10" ybr="7" rotation="90"></box>'
    ellipse = '<ellipse label="car" cx="4" cy="4" rx="3" ry="1" rotation="90"></ellipse>'
    xml(source, entry("a.png", box), entry("b.png", ellipse))
    result = import_(capsys, source)
    np.testing.assert_array_equal(result.labels("a"), drawn((1, 5, 2, 7, 10)))
    expected = drawn()
    expected[1:7, 3:5] = 1
    y, x = np.mgrid[:12, :16] + 0.5
    np.testing.assert_array_equal(result.labels("b"), ((x - 4) ** 2 + ((y - 4) / 3) ** 2 <= 1).astype(int))


def test_subsets_are_splits_and_images_without_shapes_unlabelled(source, capsys):
    image(source / "images/Train/c.png")
    xml(
        source,
        entry("a.png", ROAD.format(0), more='subset="Validation"'),
        entry("c.png", ROAD.format(0), more='subset="Train"'),
        entry("b.png", '<polyline label="road" points="1,1;2,2"></polyline>', more='subset="Train"'),
    )
    result = import_(capsys, source)
    assert result.files() == ["train/b.png", "train/c.png", "val/a.png"]
    assert result.files("labels") == ["train/c.png", "val/a.png"]
    assert result.warned("b.png: shapes of the kind polyline, which have no area")


def test_bad_shapes_and_images_are_named(source, capsys):
    xml(
        source,
        entry("a.png", ROAD.format(0), '<polygon label="road" points="1,1;2,2"></polygon>'),
        entry("b.png", ROAD.format(0), '<polygon label="road" points="1,1;x,2;3,3"></polygon>'),
        entry("a.png", ROAD.format(0)),
        entry("lost.png", ROAD.format(0)),
    )
    result = import_(capsys, source)
    assert result.status == 0
    assert result.warned("a.png: a shape of too few points")
    assert result.warned("b.png: a shape with coordinates that are no numbers")
    assert result.warned("images/a.png: an image that is listed twice")
    assert result.warned("lost.png: an image that is missing")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([HEAD, "<track></track></annotations>"], 'export the task as "CVAT for images"'),
        ([HEAD, "<image>"], "is not XML that can be read"),
        (['<!DOCTYPE a [<!ENTITY b "c">]>', "<annotations></annotations>"], "defines entities"),
    ],
)
def test_xml_that_cannot_be_used(source, capsys, lines, words):
    write_text(source / "annotations.xml", *lines)
    result = import_(capsys, source)
    assert result.status == 2
    assert words in result.lines[-1]
    assert not list(source.parent.glob("*imported*")) + list(source.parent.glob(".*"))
