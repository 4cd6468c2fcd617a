import ast
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kerasseg.data import Augmentation, builders, default_palette, eval_dataset, make_split, open_dataset, train_dataset
from kerasseg.data.check import require_sound
from kerasseg.data.unreadable import first_unreadable
from kerasseg.visualize import voc_palette
from tests.kerasseg.data import archives


@pytest.mark.parametrize(
    ("name", "make", "train", "val", "classes"),
    [
        ("voc2012", archives.voc2012, "2008_000002", "2007_000033", 21),
        ("pascal_context", archives.pascal_context, "2008_000002", "2008_000007", 60),
        ("cityscapes", archives.cityscapes, "aachen_000000_000019", "munster_000000_000019", 19),
        ("ade20k", archives.ade20k, "ADE_train_00000002", "ADE_val_00000001", 150),
        ("coco", archives.coco, "000000000009", "000000000139", 81),
        ("coco_stuff", archives.coco_stuff, "000000000009", "000000000139", 171),
    ],
)
def test_images_by_name_inside_and_outside_of_the_graph(tfds_directories, capsys, name, make, train, val, classes):
    manual, data = tfds_directories
    make(manual)
    dataset = open_dataset(name)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0].startswith(f"preparing {name} in {data}/array_record/")
    assert err.splitlines()[0].endswith(f"once; archives are looked for in {manual}")
    assert (dataset.name, dataset.splits, dataset.num_classes) == (name, ("train", "val"), classes)
    assert train in dataset.image_names("train") and val in dataset.image_names("val")
    assert dataset.label_names("train") == dataset.image_names("train") == tuple(sorted(dataset.image_names("train")))
    for split in dataset.splits:
        names = tf.data.Dataset.from_tensor_slices(list(dataset.image_names(split)))
        pairs = names.map(lambda n, s=split: (dataset.tf_image(s, n), dataset.tf_label(s, n)))
        for n, (image, label) in zip(dataset.image_names(split), pairs, strict=True):
            np.testing.assert_array_equal(image, dataset.load_image(split, n))
            np.testing.assert_array_equal(label, dataset.load_label(split, n))
            assert set(np.unique(label)) <= {*range(classes), 255}
    if name == "cityscapes":  # lossless
        np.testing.assert_array_equal(dataset.load_image("train", train), archives.image(train))
    else:
        assert np.abs(dataset.load_image("train", train).astype(int) - archives.image(train)).mean() < 60
    colors = {
        "cityscapes": ((128, 64, 128), (244, 35, 232)),
        "ade20k": ((120, 120, 120), (180, 120, 120)),
        "coco": ((0, 0, 0), (220, 20, 60)),
    }
    if name in colors:
        assert (dataset.palette[:2], len(dataset.palette)) == (colors[name], classes)
    else:
        usual = default_palette(classes, background=dataset.classes[0] == "background")
        assert dataset.palette == (voc_palette(classes) if name == "voc2012" else usual)
    with pytest.raises(ValueError, match=f"{name} has no train image {val!r}"):
        dataset.load_label("train", val)
    with pytest.raises(ValueError, match="no split 'test'; it has train, val"):
        dataset.image_names("test")


def test_a_dataset_is_prepared_once(tfds_directories, capsys):
    manual, data = tfds_directories
    archives.voc2012(manual)
    first = open_dataset("voc2012")
    for path in manual.iterdir():
        path.unlink()
    capsys.readouterr()
    again = open_dataset("voc2012")
    assert capsys.readouterr().err == ""
    assert again.image_names("train") == first.image_names("train")
    # The names are kept beside the records, in their order; without them the records tell.
    index = data / "array_record/voc2012/1.0.0/train_names.txt"
    names = index.read_text().splitlines()
    assert sorted(names) == list(first.image_names("train")) != names
    index.unlink()
    np.testing.assert_array_equal(
        open_dataset("voc2012").load_label("train", "2008_000002"), archives.sbd_label("2008_000002")
    )
    assert index.read_text().splitlines() == names


KILLED = """
import os, signal
from kerasseg.data import builders, open_dataset
from tests.kerasseg.data import archives

generate = builders.Voc2012._generate_examples

def some(self, items):
    yield from list(generate(self, items))[:3]
    os.kill(os.getpid(), signal.SIGKILL)

builders.Voc2012.COUNTS = archives.VOC2012_COUNTS
builders.Voc2012.require_published = lambda *_: None
builders.Voc2012._generate_examples = some
open_dataset("voc2012")
"""


@pytest.mark.slow
def test_what_a_killed_preparation_leaves_is_not_trusted(tfds_directories, capsys):
    manual, data = tfds_directories
    archives.voc2012(manual)
    killed = subprocess.run([sys.executable, "-c", KILLED], cwd=Path(__file__).parents[3], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (left,) = (data / "array_record/voc2012").iterdir()
    assert len(open_dataset("voc2012").image_names("train")) == 5
    told = f"{left} was left by a preparation that was cut short: delete it, unless one is running"
    assert capsys.readouterr().err.splitlines()[0] == told


@pytest.mark.slow
def test_training_and_evaluation_batches(tfds_directories):
    archives.voc2012(tfds_directories[0])
    dataset = open_dataset("voc2012")
    split = make_split(dataset, "2", seed=0)
    batches = train_dataset(dataset, split, Augmentation(crop=(24, 32), scale=(1, 1), flip=False), batch_size=2)
    x, labels = next(iter(batches))
    assert x["unlabeled"].shape == (2, 24, 32, 3)
    expected = np.stack([dataset.load_label("train", name) for name in split.labeled])
    assert sorted(labels.numpy().tolist()) == sorted(expected.tolist())
    assert len(list(eval_dataset(dataset, "val"))) == 2


def test_a_damaged_record_is_named(tfds_directories, monkeypatch):
    archives.voc2012(tfds_directories[0])
    dataset = open_dataset("voc2012")
    name, record = dataset.image_names("train")[1], dataset._record

    def damaged(split, wanted):
        return b"\xff" * 40 if wanted == name else record(split, wanted)

    monkeypatch.setattr(dataset, "_record", damaged)
    assert first_unreadable(dataset).startswith(f"the train image {name!r} of voc2012 cannot be read (")
    assert first_unreadable(dataset, splits=("val",)) is None


def test_splits_of_other_projects(tfds_directories, tmp_path):
    archives.voc2012(tfds_directories[0])
    archives.cityscapes(tfds_directories[0])
    file = tmp_path / "labeled.txt"
    file.write_text("JPEGImages/2007_000039.jpg SegmentationClassAug/2007_000039.png\n2008_000002\n")
    assert make_split(open_dataset("voc2012"), str(file)).labeled == ("2007_000039", "2008_000002")
    file.write_text("leftImg8bit/train/ulm/ulm_000000_000019_leftImg8bit.png gtFine/train/ulm/ulm_000000_000019.png")
    assert make_split(open_dataset("cityscapes"), str(file)).labeled == ("ulm_000000_000019",)


def test_oxford_iiit_pet_as_tfds_has_it(tfds_directories, monkeypatch):
    import tensorflow_datasets as tfds

    builder = tfds.builder_cls("oxford_iiit_pet")
    trimaps = {f"Abyssinian_{i}": np.arange(24 * 32).reshape(24, 32) * (i + 1) % 3 + 1 for i in range(3)}

    def examples(names):
        for name in names:
            yield (
                name,
                {
                    "image": archives.jpeg(name),
                    "label": "Abyssinian",
                    "species": "Cat",
                    "file_name": f"{name}.jpg",
                    "segmentation_mask": archives.png(trimaps[name].astype(np.uint8)),
                    "head_bbox": tfds.features.BBox(0.0, 0.0, 0.0, 0.0),
                },
            )

    def split_generators(self, dl_manager):
        names = list(trimaps)
        return {"train": examples(names[:2]), "test": examples(names[2:])}

    monkeypatch.setattr(builder, "_split_generators", split_generators)
    dataset = open_dataset("oxford_iiit_pet")
    assert dataset.classes == ("pet", "background", "border")
    assert dataset.image_names("train") == ("Abyssinian_0", "Abyssinian_1")
    assert dataset.image_names("val") == ("Abyssinian_2",)
    np.testing.assert_array_equal(dataset.load_label("val", "Abyssinian_2"), trimaps["Abyssinian_2"] - 1)
    np.testing.assert_array_equal(dataset.tf_label("val", tf.constant("Abyssinian_2")), trimaps["Abyssinian_2"] - 1)


def test_tensorflow_datasets_is_imported_only_by_the_builders():
    """And they only when a dataset is opened: its import takes seconds."""
    folder = Path(builders.__file__).parent
    for path in folder.parents[1].rglob("*.py"):
        if path.parent != folder:
            for node in ast.parse(path.read_text()).body:
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) else []
                assert not [n for n in names if n.startswith(("tensorflow_datasets", "kerasseg.data.builders"))], path


def test_classes_that_no_labelled_image_shows_are_told(tfds_directories, monkeypatch):
    archives.voc2012(tfds_directories[0])
    dataset = open_dataset("voc2012")
    split = make_split(dataset, "2")
    (few,) = require_sound(dataset, split)
    assert "there are more classes (21) than labelled images" in str(few)
    monkeypatch.setattr(dataset, "load_label", lambda split, name: np.full(archives.SIZE, 1, np.uint8))
    warning, _ = require_sound(dataset, split)
    assert "the 2 labelled images: no pixel of background, bicycle, bird and 17 more" in str(warning)
