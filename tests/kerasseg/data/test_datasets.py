from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from kerasseg.data import FolderDataset, open_dataset
from kerasseg.data.shapes import ShapesDataset
from tests.kerasseg.data.folders import make_folder


def test_open_dataset_finds_names_and_folders(tmp_path):
    assert isinstance(open_dataset("shapes"), ShapesDataset)
    assert isinstance(open_dataset(make_folder(tmp_path / "pets")), FolderDataset)


def test_a_folder_with_the_name_of_a_built_in_dataset_is_pointed_out(tmp_path, monkeypatch, capsys):
    make_folder(tmp_path / "shapes")
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_dataset("shapes"), ShapesDataset)
    assert capsys.readouterr().err == (
        "warning: shapes is the built-in dataset; for the folder of that name give ./shapes\n"
    )
    for folder in ("./shapes", tmp_path / "shapes", Path("shapes")):
        assert isinstance(open_dataset(folder), FolderDataset)
    assert capsys.readouterr().err == ""


def test_open_dataset_names_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"unknown dataset 'shape'.*shapes.*no folder of that path.*/shape\)"):
        open_dataset("shape")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="no folder of that path"):
        open_dataset(tmp_path / "file")


def test_pixels_inside_the_graph_equal_those_outside():
    dataset = ShapesDataset(size=(32, 40), train=2, val=1)
    names = tf.data.Dataset.from_tensor_slices(list(dataset.image_names("train")))
    pairs = names.map(lambda name: (dataset.tf_image("train", name), dataset.tf_label("train", name)))
    for name, (image, label) in zip(dataset.image_names("train"), pairs, strict=True):
        np.testing.assert_array_equal(image, dataset.load_image("train", name))
        np.testing.assert_array_equal(label, dataset.load_label("train", name))
