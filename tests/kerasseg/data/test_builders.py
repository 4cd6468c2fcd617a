"""The builders of published datasets, on archives of a few tiny images in their true layout."""

import hashlib
import shutil
import tarfile
import zipfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

# isort: off
import kerasseg.data.builders as builders

# isort: on
import tensorflow_datasets as tfds

from kerasseg.data.builders.cityscapes import TRAIN_CLASSES
from kerasseg.data.builders.files import files_of
from kerasseg.data.builders.voc2012 import SBD, VOC
from tests.kerasseg.data import archives
from tests.kerasseg.data.builder_contract import BuilderContract

BUILDERS = {
    "voc2012": builders.Voc2012,
    "pascal_context": builders.PascalContext,
    "cityscapes19": builders.Cityscapes19,
    "ade20k": builders.Ade20k,
    "coco81": builders.Coco81,
    "coco_stuff": builders.CocoStuff,
}


class TestVoc2012(BuilderContract, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = builders.Voc2012
    SPLITS = archives.VOC2012_COUNTS
    make = staticmethod(archives.voc2012)


class TestPascalContext(BuilderContract, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = builders.PascalContext
    SPLITS = archives.CONTEXT_COUNTS
    make = staticmethod(archives.pascal_context)


class TestCityscapes19(BuilderContract, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = builders.Cityscapes19
    SPLITS = archives.CITYSCAPES_COUNTS
    make = staticmethod(archives.cityscapes)


class TestAde20k(BuilderContract, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = builders.Ade20k
    SPLITS = archives.ADE20K_COUNTS
    make = staticmethod(archives.ade20k)


class TestCoco81(BuilderContract, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = builders.Coco81
    SPLITS = archives.COCO_COUNTS
    make = staticmethod(archives.coco)


class TestCocoStuff(BuilderContract, tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = builders.CocoStuff
    SPLITS = archives.COCO_COUNTS
    make = staticmethod(archives.coco_stuff)


def prepare(name: str, manual: Path, data: Path) -> dict[str, dict[str, dict]]:
    """Of each split, the examples by name."""
    builder = BUILDERS[name](data_dir=data)
    config = tfds.download.DownloadConfig(manual_dir=manual, try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    splits = {split: tfds.as_numpy(builder.as_dataset(split=split)) for split in builder.info.splits}
    return {split: {e["name"].decode(): e for e in examples} for split, examples in splits.items()}


def extract(manual: Path) -> None:
    """Puts what the archives contain in their place."""
    for path in list(manual.iterdir()):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(manual)
        else:
            with tarfile.open(path) as archive:
                archive.extractall(manual, filter="data")
        path.unlink()


@pytest.mark.parametrize("extracted", [False, True], ids=["archives", "folders"])
def test_voc2012_is_train_aug_with_vocs_own_label_maps_where_it_has_them(tmp_path, tfds_directories, extracted):
    archives.voc2012(tmp_path / "manual")
    if extracted:
        extract(tmp_path / "manual")
    splits = prepare("voc2012", tmp_path / "manual", tmp_path / "data")
    # 2007_000033 is a validation image of VOC that SBD trains on.
    assert sorted(splits["train"]) == ["2007_000032", "2007_000039", "2008_000002", "2008_000003", "2008_000007"]
    assert sorted(splits["val"]) == ["2007_000033", "2007_000042"]
    for name, example in (splits["train"] | splits["val"]).items():
        label = archives.sbd_label(name) if name.startswith("2008") else archives.voc_label(name)
        np.testing.assert_array_equal(example["label"][..., 0], label)
    assert set(np.unique(splits["train"]["2007_000032"]["label"])) == {*range(21), 255}


def test_pascal_context_from_its_matlab_files(tmp_path, tfds_directories):
    archives.pascal_context(tmp_path / "manual")
    splits = prepare("pascal_context", tmp_path / "manual", tmp_path / "data")
    assert {split: tuple(sorted(examples)) for split, examples in splits.items()} == archives.CONTEXT_NAMES
    numbers = archives.values("2008_000002", 459)
    label = splits["train"]["2008_000002"]["label"][..., 0]
    # From the release's labels.txt: 2 aeroplane, 284 person, 458 wood, and 1 accordion, which is none of the 59.
    classes = builders.PascalContext.CLASSES
    for number, name in ((2, "aeroplane"), (284, "person"), (458, "wood"), (1, "background"), (0, "background")):
        assert set(label[numbers == number]) <= {classes.index(name)}
    assert (label > 0).sum() == np.isin(numbers, list(builders.pascal_context.NUMBERS.values())).sum()


def test_pascal_context_from_the_label_maps_of_other_projects(tmp_path, tfds_directories):
    archives.pascal_context(tmp_path)
    extract(tmp_path)
    shutil.rmtree(tmp_path / "trainval")
    voc = tmp_path / "VOCdevkit/VOC2010"
    (voc / "SegmentationClassContext").mkdir()
    (voc / "ImageSets/SegmentationContext").mkdir()
    labels = {name: archives.values(name, 59).astype(np.uint8) for n in archives.CONTEXT_NAMES.values() for name in n}
    for name, label in labels.items():
        (voc / f"SegmentationClassContext/{name}.png").write_bytes(archives.palette_png(label))
    for split, names in archives.CONTEXT_NAMES.items():
        (voc / f"ImageSets/SegmentationContext/{split}.txt").write_bytes(archives.lines(names))
    splits = prepare("pascal_context", tmp_path, tmp_path / "data")
    for name, example in (splits["train"] | splits["val"]).items():
        np.testing.assert_array_equal(example["label"][..., 0], labels[name])


def test_the_classes_of_pascal_context():
    classes = builders.PascalContext.CLASSES
    assert len(classes) == 60
    assert classes[0] == "background"
    assert list(classes[1:]) == sorted(classes[1:])


def test_cityscapes_has_the_19_classes_of_its_benchmark(tmp_path, tfds_directories):
    archives.cityscapes(tmp_path / "manual")
    splits = prepare("cityscapes19", tmp_path / "manual", tmp_path / "data")
    assert sorted(splits["train"]) == ["aachen_000000_000019", "aachen_000001_000019", "ulm_000000_000019"]
    assert sorted(splits["val"]) == ["munster_000000_000019"]
    ids = archives.values("ulm_000000_000019", 33)
    example = splits["train"]["ulm_000000_000019"]
    for number, train_class in enumerate(TRAIN_CLASSES):
        assert set(example["label"][ids == train_class.label_id, 0]) == {number}
    others = ~np.isin(ids, [c.label_id for c in TRAIN_CLASSES])
    assert set(example["label"][others, 0]) == {255}
    np.testing.assert_array_equal(example["image"], archives.image("ulm_000000_000019"))


@pytest.mark.parametrize("extracted", [False, True], ids=["archives", "folders"])
def test_ade20k_has_the_150_classes_of_its_benchmark(tmp_path, tfds_directories, extracted):
    archives.ade20k(tmp_path / "manual")
    if extracted:
        extract(tmp_path / "manual")
    splits = prepare("ade20k", tmp_path / "manual", tmp_path / "data")
    assert {split: tuple(sorted(examples)) for split, examples in splits.items()} == archives.ADE20K_NAMES
    for name, example in (splits["train"] | splits["val"]).items():
        numbers = archives.values(name, 150)
        np.testing.assert_array_equal(example["label"][..., 0], np.where(numbers == 0, 255, numbers - 1))
    classes = builders.Ade20k.CLASSES
    assert len(classes) == len(set(classes)) == 150
    assert (classes[0], classes[12], classes[149]) == ("wall", "person", "flag")


@pytest.mark.parametrize("extracted", [False, True], ids=["archives", "folders"])
def test_coco_has_the_smaller_thing_on_top_and_crowds_ignored(tmp_path, tfds_directories, extracted):
    archives.coco(tmp_path / "manual")
    if extracted:
        extract(tmp_path / "manual")
    splits = prepare("coco81", tmp_path / "manual", tmp_path / "data")
    assert {split: tuple(sorted(examples)) for split, examples in splits.items()} == archives.COCO_NAMES
    for name, example in (splits["train"] | splits["val"]).items():
        np.testing.assert_array_equal(example["label"][..., 0], archives.coco_label(name))
    grey = splits["train"][archives.COCO_GREY]["image"]
    assert grey.shape == (*archives.SIZE, 3) and (grey == grey[..., :1]).all()
    classes = builders.Coco81.CLASSES
    assert len(classes) == len(set(classes)) == 81
    assert (classes[0], classes[1], classes[61], classes[80]) == ("background", "person", "dining table", "toothbrush")


@pytest.mark.parametrize("extracted", [False, True], ids=["archives", "folders"])
def test_coco_stuff_has_things_and_stuff_without_gaps(tmp_path, tfds_directories, extracted):
    archives.coco_stuff(tmp_path / "manual")
    if extracted:  # images and label maps come to lie in the same folders
        extract(tmp_path / "manual")
    splits = prepare("coco_stuff", tmp_path / "manual", tmp_path / "data")
    assert {split: tuple(sorted(examples)) for split, examples in splits.items()} == archives.COCO_NAMES
    # From the release's labels.txt, where numbers are one higher: these eleven are names without label map.
    gaps = np.array([12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91]) - 1
    for name, example in (splits["train"] | splits["val"]).items():
        numbers = archives.stuff_label(name).astype(int)
        ignored = np.isin(numbers, [*gaps, 255])
        expected = np.where(ignored, 255, numbers - (gaps < numbers[..., None]).sum(-1))
        np.testing.assert_array_equal(example["label"][..., 0], expected)
    if not extracted:
        (tmp_path / "manual/stuffthingmaps_trainval2017.zip").unlink()
        with pytest.raises(ValueError, match=r"coco_stuff needs stuffthingmaps_trainval2017.zip: neither it nor its"):
            prepare("coco_stuff", tmp_path / "manual", tmp_path / "other")
    classes = builders.CocoStuff.CLASSES
    assert len(classes) == len(set(classes)) == 171
    assert (classes[0], classes[79], classes[80], classes[170]) == ("person", "toothbrush", "banner", "wood")


def test_what_coco_lacks_is_named(tmp_path, tfds_directories):
    manual = tmp_path / "manual"

    def fails(message: str) -> None:
        offline = mock.Mock(side_effect=OSError("no network"))
        with (
            mock.patch.object(tfds.download.DownloadManager, "download", offline),
            pytest.raises(ValueError, match=message) as error,
        ):
            prepare("coco81", manual, tmp_path / "data")
        assert "\n" not in str(error.value)
        assert not list((tmp_path / "data").rglob("1.0.0*"))

    archives.coco(manual)
    for archive in ("annotations_trainval2017.zip", "train2017.zip", "val2017.zip"):
        whole = (manual / archive).read_bytes()
        (manual / archive).unlink()
        fails(f"coco81 needs {archive}: neither it nor its folder .* could not be downloaded .*; get it from https")
        (manual / archive).write_bytes(whole)
    extract(manual)
    image = (manual / "train2017/000000000025.jpg").rename(tmp_path / "moved.jpg")
    fails("coco81: 1 of 6 files of train are missing, such as 000000000025.jpg; download or extract")
    image.rename(manual / "train2017/000000000025.jpg")
    file = manual / "annotations/instances_val2017.json"
    text = file.read_text()
    for damaged in (text[:-20], '{"images": []}'):
        file.write_text(damaged)
        fails(r"coco81: instances_val2017.json is damaged \(.*\); download or extract its archive again")
    file.unlink()
    fails("coco81 has 2 val images, found 0")
    file.write_text(text.replace('"category_id": 67', '"category_id": 12'))
    fails(r"coco81: instances_val2017.json/000000000139.jpg is damaged \(12\); download")


def cut(path: Path, share: float = 0.5) -> None:
    contents = path.read_bytes()
    path.write_bytes(contents[: int(share * len(contents))])


def test_what_is_missing_is_named_and_nothing_stays_behind(tmp_path, tfds_directories):
    manual, data = tmp_path / "manual", tmp_path / "data"

    def fails(name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message) as error:
            prepare(name, manual, data)
        assert "\n" not in str(error.value)
        assert not list(data.rglob("1.0.0*")) and not list(data.rglob("incomplete*"))

    fails(
        "cityscapes19", r"cityscapes19 needs leftImg8bit_trainvaltest.zip: .*manual does not exist or is empty; get it"
    )
    archives.cityscapes(manual)
    whole = (manual / "gtFine_trainvaltest.zip").read_bytes()
    (manual / "gtFine_trainvaltest.zip").unlink()
    fails("cityscapes19", r"needs gtFine_trainvaltest.zip: neither it nor its folder gtFine is in .*TFDS_MANUAL_DIR")
    extract(manual)
    fails("cityscapes19", r"needs gtFine_trainvaltest.zip: neither it nor its folder gtFine is in .*TFDS_MANUAL_DIR")
    (manual / "gtFine_trainvaltest.zip").write_bytes(whole[:-200])
    fails("cityscapes19", r"gtFine_trainvaltest.zip is damaged or was not downloaded to its end .* download it again")
    (manual / "gtFine/train/ulm").mkdir(parents=True)
    (manual / "gtFine_trainvaltest.zip").unlink()
    fails("cityscapes19", r"3 of 6 files of train are missing, such as train/aachen/aachen_000000_000019_gtFine")
    shutil.rmtree(manual / "gtFine")
    (manual / "gtFine_trainvaltest.zip").write_bytes(whole)
    assert len(prepare("cityscapes19", manual, data)["train"]) == 3


@pytest.mark.parametrize(
    ("archive", "share"),
    [("VOCtrainval_11-May-2012.tar", 0.3), ("VOCtrainval_11-May-2012.tar", 0.6), ("benchmark.tgz", 0.7)],
)
def test_a_half_downloaded_archive_is_named(tmp_path, tfds_directories, archive, share):
    archives.voc2012(tmp_path / "manual")
    cut(tmp_path / "manual" / archive, share)
    with pytest.raises(ValueError, match=f"{archive} is damaged or was not downloaded to its end|are missing, such as"):
        prepare("voc2012", tmp_path / "manual", tmp_path / "data")
    assert not list((tmp_path / "data").rglob("1.0.0*"))


def test_an_archive_that_is_not_the_published_one_is_refused(tmp_path, capsys, monkeypatch):
    """By its size, then by its checksum, as far as these are known; a folder never is."""
    manual, data = tmp_path / "manual", tmp_path / "data"
    monkeypatch.setattr(builders.Voc2012, "COUNTS", archives.VOC2012_COUNTS)
    archives.voc2012(manual)
    infos = {source.url: builders.Voc2012.url_infos[source.url] for source in (VOC, SBD)}
    sizes, sums = {}, {}
    for url in infos:
        contents = (manual / url.split("/")[-1]).read_bytes()
        sizes[url], sums[url] = len(contents), hashlib.sha256(contents).hexdigest()

    def refused(message: str) -> None:
        with pytest.raises(ValueError, match=message) as error:
            prepare("voc2012", manual, data)
        assert "\n" not in str(error.value) and "folder VOCdevkit/VOC2012 is read" in str(error.value)
        assert not list(data.rglob("1.0.0*"))

    tar = manual / "VOCtrainval_11-May-2012.tar"
    refused(rf"{tar} has {tar.stat().st_size:,} bytes, the published file 1,999,639,040: download it again")
    assert "checking" not in capsys.readouterr().err
    tiny = {url: mock.Mock(size=sizes[url], checksum=sums[url]) for url in infos}
    monkeypatch.setattr(builders.Voc2012, "url_infos", tiny)
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1] + b"x")
    refused(rf"{tar} has the sha256 \w+, the published file {sums[VOC.url]}: download it again")
    assert "checking VOCtrainval_11-May-2012.tar" in capsys.readouterr().err
    tar.write_bytes(whole)
    assert len(prepare("voc2012", manual, data)["train"]) == 5

    tar.write_bytes(whole[:-1] + b"x")
    extract(manual)
    assert len(prepare("voc2012", manual, tmp_path / "other")["train"]) == 5


def test_voc_2010_is_known_by_its_checksum(tmp_path, monkeypatch):
    monkeypatch.setattr(builders.PascalContext, "COUNTS", archives.CONTEXT_COUNTS)
    archives.pascal_context(tmp_path)
    with pytest.raises(
        ValueError, match=r"VOCtrainval_03-May-2010.tar has the sha256 \w+, the published file 1af4189cb"
    ):
        prepare("pascal_context", tmp_path, tmp_path / "data")


def test_other_numbers_of_images_than_published_are_refused(tmp_path, tfds_directories, monkeypatch):
    monkeypatch.setattr(builders.Voc2012, "COUNTS", {"train": 10582, "val": 1449})
    archives.voc2012(tmp_path / "manual")
    with pytest.raises(ValueError, match="voc2012 has 10582 train images, found 5; download or extract"):
        prepare("voc2012", tmp_path / "manual", tmp_path / "data")
    assert not list((tmp_path / "data").rglob("1.0.0*"))


@pytest.mark.parametrize(
    ("file", "contents", "message"),
    [
        (
            "JPEGImages/2007_000039.jpg",
            archives.jpeg("2007_000039")[:-300],
            r"39.jpg is damaged \(cannot be .* \(image file",
        ),
        ("SegmentationClass/2007_000039.png", b"", r"39.png is damaged \(an empty file"),
        (
            "SegmentationClass/2007_000039.png",
            archives.png(archives.image("a")),
            r"39.png is damaged \(colours \(RGB\)",
        ),
        ("SegmentationClass/2007_000039.png", archives.png(np.full(archives.SIZE, 21, np.uint8)), "holds 21; expected"),
        ("SegmentationClass/2007_000039.png", archives.png(np.zeros((8, 8), np.uint8)), "differ in size"),
    ],
    ids=["cut off", "empty", "colours", "no such class", "other size"],
)
def test_a_damaged_file_is_named(tmp_path, tfds_directories, file, contents, message):
    archives.voc2012(tmp_path / "manual")
    extract(tmp_path / "manual")
    (tmp_path / "manual/VOCdevkit/VOC2012" / file).write_bytes(contents)
    with pytest.raises(ValueError, match=message):
        prepare("voc2012", tmp_path / "manual", tmp_path / "data")
    assert not list((tmp_path / "data").rglob("1.0.0*"))


def test_a_page_in_place_of_an_archive_is_named(tmp_path):
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        (tmp_path / name).write_bytes(b"<!DOCTYPE html><title>Log in</title>")
        with pytest.raises(ValueError, match=f"{name} is a web page, and no archive: download the file itself"):
            files_of(tmp_path / name)
    (tmp_path / "b.zip").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match="b.zip is damaged or was not downloaded to its end"):
        files_of(tmp_path / "b.zip")


def test_what_is_nowhere_is_downloaded(tmp_path, tfds_directories):
    archives.voc2012(tmp_path / "elsewhere")
    urls = []

    def download(self, url):
        urls.append(url)
        return tmp_path / "elsewhere" / url.split("/")[-1]

    with mock.patch.object(tfds.download.DownloadManager, "download", download):
        splits = prepare("voc2012", tmp_path / "manual", tmp_path / "data")
    assert len(splits["train"]) == 5
    assert set(urls) == {VOC.url, SBD.url}

    offline = mock.Mock(side_effect=OSError("no network"))
    with (
        mock.patch.object(tfds.download.DownloadManager, "download", offline),
        pytest.raises(
            ValueError, match=r"needs VOCtrainval_11-May-2012.tar: .*could not be downloaded \(no network\); get"
        ),
    ):
        prepare("voc2012", tmp_path / "manual", tmp_path / "other")
