import itertools

import numpy as np
import pytest
import tensorflow as tf

from kerasseg.data import Augmentation, FolderDataset, Split, eval_dataset, make_split, train_dataset
from kerasseg.data.pipeline import _stream
from tests.kerasseg.data.folders import make_folder, save

VIEW = Augmentation(crop=(16, 24))
WHOLE = Augmentation(crop=(8, 8), scale=(1, 1), flip=False)


@pytest.fixture
def numbered(tmp_path):
    """Images of one colour, 10 times the number in their name; the label map's class is the number."""
    for i in range(7):
        save(tmp_path / f"images/train/{i}.png", np.full((8, 8, 3), 10 * i))
        save(tmp_path / f"labels/train/{i}.png", np.full((8, 8), i))
        save(tmp_path / f"images/val/{i}.png", np.full((8 + i, 9, 3), 10 * i))
        save(tmp_path / f"labels/val/{i}.png", np.full((8 + i, 9), i))
    return FolderDataset(tmp_path)


def batches(pipeline, count):
    return list(itertools.islice(pipeline.as_numpy_iterator(), count))


def test_shapes_and_kinds(tmp_path):
    dataset = FolderDataset(make_folder(tmp_path))
    pipeline = train_dataset(dataset, make_split(dataset, "2"), VIEW, batch_size=3, unlabeled_batch_size=5)
    assert pipeline.element_spec == (
        {
            "labeled": tf.TensorSpec((3, 16, 24, 3), tf.float32),
            "unlabeled": tf.TensorSpec((5, 16, 24, 3), tf.float32),
            "unlabeled_valid": tf.TensorSpec((5, 16, 24), tf.bool),
        },
        tf.TensorSpec((3, 16, 24), tf.int32),
    )


def test_every_epoch_shows_each_image_once_in_another_order(numbered):
    split = Split(tuple("012345"), (), ("6",))
    rows = batches(train_dataset(numbered, split, WHOLE, batch_size=2), 12)
    seen = [int(i) for _, labels in rows for i in labels[:, 0, 0]]
    epochs = [tuple(seen[start : start + 6]) for start in range(0, 24, 6)]
    assert all(sorted(epoch) == [0, 1, 2, 3, 4, 5] for epoch in epochs)
    assert len(set(epochs)) > 1
    for x, labels in rows:
        np.testing.assert_array_equal(x["labeled"][..., 0], 10 * labels)
        assert (x["unlabeled"] == 60).all()


def test_padding_of_unlabelled_images_is_told(numbered):
    padded = Augmentation(crop=(12, 10), scale=(1, 1))
    x, _ = batches(train_dataset(numbered, Split(("0",), (), ("6",)), padded, batch_size=3), 1)[0]
    np.testing.assert_array_equal(x["unlabeled_valid"], (x["unlabeled"] == 60).all(axis=-1))
    assert (x["unlabeled_valid"].sum(axis=(1, 2)) == 64).all()


def test_batches_cross_epochs_and_are_always_full(numbered):
    rows = batches(train_dataset(numbered, Split(tuple("012"), (), tuple("3456")), WHOLE, batch_size=2), 3)
    seen = [int(i) for _, labels in rows for i in labels[:, 0, 0]]
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]
    single = batches(train_dataset(numbered, Split(("2",), (), ("3",)), WHOLE, batch_size=4), 2)
    assert all((labels == 2).all() and len(labels) == 4 for _, labels in single)


@pytest.mark.parametrize("own_shares", [range(1), range(1, 3), range(2, 4), None])
def test_shares_are_those_of_the_batch(tmp_path, own_shares):
    dataset = FolderDataset(make_folder(tmp_path))
    split = make_split(dataset, "2", image_labels="1")
    fields = {"batch_size": 4, "unlabeled_batch_size": 8, "seed": 5, "start_step": 3}
    whole = batches(train_dataset(dataset, split, VIEW, **fields), 3)
    own = own_shares or range(4)
    given = batches(train_dataset(dataset, split, VIEW, **fields, shares=4, own_shares=own_shares), 3 * len(own))
    for batch, shares in zip(whole, zip(*[iter(given)] * len(own), strict=True), strict=True):
        for number, share in zip(own, shares, strict=True):
            expected = tf.nest.map_structure(lambda a: np.split(a, 4)[number], batch)  # noqa: B023 (of this batch)
            tf.nest.map_structure(np.testing.assert_array_equal, share, expected)


def test_a_batch_has_to_divide_into_its_shares(numbered):
    with pytest.raises(ValueError, match="a batch of 5 images does not divide into 2 shares"):
        train_dataset(numbered, Split(("0",), (), ("6",)), WHOLE, batch_size=4, unlabeled_batch_size=5, shares=2)


def test_starting_at_a_step_equals_skipping_to_it(tmp_path):
    dataset = FolderDataset(make_folder(tmp_path))
    split = make_split(dataset, "2", image_labels="1")
    fields = {"batch_size": 2, "unlabeled_batch_size": 3, "seed": 5}
    everything = Augmentation(crop=(16, 24), color_jitter=0.2, blur=0.5)
    unbroken = batches(train_dataset(dataset, split, everything, **fields), 9)
    resumed = batches(train_dataset(dataset, split, everything, start_step=6, **fields), 3)
    tf.nest.map_structure(np.testing.assert_array_equal, resumed, unbroken[6:])
    assert not np.array_equal(unbroken[5][0]["labeled"], unbroken[6][0]["labeled"])


def test_labelled_batches_do_not_depend_on_the_others(tmp_path):
    dataset = FolderDataset(make_folder(tmp_path))
    alone = batches(train_dataset(dataset, make_split(dataset, "2"), VIEW, batch_size=2, unlabeled_batch_size=0), 4)
    weak = make_split(dataset, "2", image_labels="1")
    beside = batches(train_dataset(dataset, weak, VIEW, batch_size=2, unlabeled_batch_size=3), 4)
    for (x, labels), (other_x, other_labels) in zip(alone, beside, strict=True):
        assert list(x) == ["labeled"]
        assert sorted(other_x) == ["image_labeled", "image_labels", "labeled", "unlabeled", "unlabeled_valid"]
        np.testing.assert_array_equal(x["labeled"], other_x["labeled"])
        np.testing.assert_array_equal(labels, other_labels)


def test_streams_and_seeds_have_random_numbers_of_their_own(tmp_path):
    """One and the same image as labelled and as unlabelled image: seen through different views."""
    dataset = FolderDataset(make_folder(tmp_path))
    save(tmp_path / "images/train/twin.png", dataset.load_image("train", "train_0"))
    dataset = FolderDataset(tmp_path)
    split = Split(("train_0",), (), ("twin",))
    (x, _), (later, _) = batches(train_dataset(dataset, split, VIEW, batch_size=1), 2)
    assert not np.array_equal(x["labeled"], x["unlabeled"])
    assert not np.array_equal(x["labeled"], later["labeled"])
    ((other, _),) = batches(train_dataset(dataset, split, VIEW, batch_size=1, seed=1), 1)
    assert not np.array_equal(x["labeled"], other["labeled"])


def test_the_weak_stream_shows_whole_images_and_their_classes(tmp_path):
    save(tmp_path / "images/train/a.png", np.zeros((8, 8, 3)))
    save(tmp_path / "labels/train/a.png", np.full((8, 8), 5))
    image = np.zeros((8, 24, 3))
    image[:, :12] = 200
    label = np.full((8, 24), 255)
    label[0, 0], label[5, 20] = 1, 3
    save(tmp_path / "images/train/b.png", image)
    save(tmp_path / "labels/train/b.png", label)
    save(tmp_path / "images/train/c.png", np.zeros((8, 8, 3)))
    dataset = FolderDataset(tmp_path)
    pipeline = train_dataset(dataset, Split(("a",), ("b",), ("c",)), WHOLE, batch_size=2)
    ((x, _),) = batches(pipeline, 1)
    assert x["image_labels"].tolist() == [[0, 1, 0, 1, 0, 0]] * 2
    assert x["image_labeled"].shape == (2, 8, 8, 3)
    np.testing.assert_allclose(x["image_labeled"][:, :, :3], 200, atol=1e-3)
    np.testing.assert_allclose(x["image_labeled"][:, :, 5:], 0, atol=1e-3)
    flipped = Augmentation(crop=(8, 8))
    rows = batches(train_dataset(dataset, Split(("a",), ("b",), ("c",)), flipped, batch_size=20), 1)
    assert 2 < sum(image[0, 0, 0] > 100 for image in rows[0][0]["image_labeled"]) < 18


def test_image_level_labels_of_a_split_need_no_masks(tmp_path):
    folder = make_folder(tmp_path, train=4)
    for index in (2, 3):
        (folder / f"labels/train/train_{index}.png").unlink()
    dataset = FolderDataset(folder)
    told = {"train_2": (1, 2), "train_3": ()}
    split = Split(("train_0",), ("train_2", "train_3"), ("train_1",), told)
    ((x, _),) = batches(train_dataset(dataset, split, WHOLE, batch_size=6), 1)
    for image, classes in zip(x["image_labeled"], x["image_labels"].tolist(), strict=True):
        distances = [
            np.abs(image - tf.image.resize(dataset.load_image("train", name), (8, 8), antialias=True)).max()
            for name in told
        ]
        assert classes == ([0, 1, 1] if distances[0] < distances[1] else [0, 0, 0])
    assert len({tuple(row) for row in x["image_labels"].tolist()}) == 2


def test_image_labelled_images_are_learned_from_as_unlabelled_ones_too(numbered):
    split = Split(("0",), ("1", "2"), ("3",), {"1": (0,), "2": (1,)})
    ((x, _),) = batches(train_dataset(numbered, split, WHOLE, batch_size=1, unlabeled_batch_size=6), 1)
    assert sorted(x["unlabeled"][:, 0, 0, 0].astype(int).tolist()) == [10, 10, 20, 20, 30, 30]


def test_impossible_requests(numbered):
    with pytest.raises(ValueError, match="no labelled image"):
        train_dataset(numbered, Split((), (), ("1",)), WHOLE, batch_size=1)
    for temperature in (0.0, -0.01, float("nan")):
        with pytest.raises(ValueError, match=f"rare_class_temperature must be above 0, got {temperature}"):
            train_dataset(numbered, Split(("1",)), WHOLE, batch_size=1, rare_class_temperature=temperature)
    for probability in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"copy_paste must be a probability 0..1, got {probability}"):
            train_dataset(numbered, Split(("1",)), WHOLE, batch_size=1, copy_paste=probability)


def test_a_fully_labelled_split_has_its_labelled_images_as_unlabelled_ones_too(numbered):
    """In an order of their own, and without their labels."""
    rows = batches(train_dataset(numbered, Split(tuple("0123456")), WHOLE, batch_size=7), 3)
    for x, labels in rows:
        assert sorted(x) == ["labeled", "unlabeled", "unlabeled_valid"]
        assert sorted(x["unlabeled"][:, 0, 0, 0].tolist()) == [10.0 * i for i in range(7)]
        assert x["unlabeled_valid"].all()
        assert x["unlabeled"][:, 0, 0, 0].tolist() != (10 * labels[:, 0, 0]).tolist()


def test_unlabelled_images_fewer_than_a_batch_are_repeated(numbered):
    pipeline = train_dataset(numbered, Split(("0",), (), ("5", "6")), VIEW, batch_size=1, unlabeled_batch_size=5)
    rows = batches(pipeline, 2)
    seen = [
        round(float(image[valid].mean()), 3)
        for x, _ in rows
        for image, valid in zip(x["unlabeled"], x["unlabeled_valid"], strict=True)
    ]
    assert seen.count(50) == seen.count(60) == 5
    views = {image.tobytes() for x, _ in rows for image in x["unlabeled"]}
    assert len(views) == 10  # each time another view


@pytest.fixture
def rare(tmp_path):
    """Images of 24 x 24 of class 0, "b" and "d" with a small square of class 1, "c" with one pixel of class 2.

    Everything is painted in 10 + 40 times its class, so that it is seen in the image, too.
    """
    squares = {"b": (1, 20, 3, 3), "d": (1, 2, 17, 3), "c": (2, 23, 0, 1)}
    for name in "abcd":
        label = np.zeros((24, 24))
        if name in squares:
            value, y, x, size = squares[name]
            label[y : y + size, x : x + size] = value
        save(tmp_path / f"images/train/{name}.png", (10 + 40 * label)[..., None].repeat(3, -1))
        save(tmp_path / f"labels/train/{name}.png", label)
    return FolderDataset(tmp_path)


PIECE = Augmentation(crop=(8, 10), scale=(1, 1))
RARE = Split(tuple("abcd"))


def crops(dataset, count, augmentation=PIECE, split=RARE, **fields):
    pipeline = train_dataset(dataset, split, augmentation, batch_size=count, unlabeled_batch_size=0, **fields)
    assert pipeline.element_spec[0]["labeled"].shape == (count, *augmentation.crop, 3)
    ((x, labels),) = batches(pipeline, 1)
    return x["labeled"], labels


def test_rare_classes_are_drawn_more_often_and_seen_in_the_crop(rare):
    _, labels = crops(rare, 300)
    assert np.mean([2 in label for label in labels]) < 0.1
    images, labels = crops(rare, 300, rare_class_temperature=0.01)
    np.testing.assert_allclose(images[..., 0], 10 + 40 * labels, atol=1e-3)
    # f_1 = 18/2304, f_2 = 1/2304: softmax of their difference by 0.01.
    expected = 1 / (1 + np.exp((1 - 17) / 2304 / 0.01))
    assert all(label.any() for label in labels)
    assert np.mean([2 in label for label in labels]) == pytest.approx(expected, abs=0.08)
    places = {(int(y), int(x)) for label in labels if 2 in label for y, x in np.argwhere(label == 2)}
    # The pixel is in the last row and the first column, mirrored in the last column: the crop cannot lie elsewhere.
    assert places == {(7, 0), (7, 9)}


def test_the_crop_lies_anywhere_around_the_pixel(rare):
    save(rare.path / "labels/train/c.png", np.eye(1, 576, 12 * 24 + 12).reshape(24, 24) * 2)
    straight = Augmentation(crop=(8, 10), scale=(1, 1), flip=False)
    _, labels = crops(rare, 800, straight, Split(("c",)), rare_class_temperature=0.001)
    places = [tuple(np.argwhere(label == 2)[0]) for label in labels]
    assert set(places) == {(y, x) for y in range(8) for x in range(10)}
    assert max(map(places.count, set(places))) < 30  # 10 in the mean


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.5, 2.0])
def test_scaled_crops_show_the_class_too(rare, scale):
    scaled = Augmentation(crop=(8, 10), scale=(scale, scale))
    split = Split(("a", "b"))
    _, labels = crops(rare, 100, scaled, split, rare_class_temperature=0.001)
    assert all((label == 1).any() for label in labels)
    larger = Augmentation(crop=(64, 64), scale=(scale, scale))  # than the image
    _, labels = crops(rare, 20, larger, split, rare_class_temperature=0.001)
    assert all((label == 1).any() for label in labels)
    assert len({label.tobytes() for label in labels}) > 15


def test_pixels_of_a_rare_class_are_pasted_from_another_image(rare):
    same = Augmentation(crop=(24, 24), scale=(1, 1), flip=False)
    split = Split(("a", "b"))
    before = dict(zip("ab", (rare.load_label("train", name) for name in "ab"), strict=True))
    images, labels = crops(rare, 200, same, split, copy_paste=1.0)
    np.testing.assert_allclose(images[..., 0], 10 + 40 * labels, atol=1e-3)
    # "a" gets the square of "b"; for "b", no other image has one.
    assert all(np.array_equal(label, before["b"]) for label in labels)

    _, labels = crops(rare, 400, same, split, copy_paste=0.3)
    assert np.mean([label.any() for label in labels]) == pytest.approx(0.5 + 0.5 * 0.3, abs=0.05)
    _, labels = crops(rare, 200, same, Split(("b", "d")), copy_paste=1.0)
    both = rare.load_label("train", "b") + rare.load_label("train", "d")
    assert all(np.array_equal(label, both) for label in labels)


def test_what_is_pasted_is_a_crop_that_shows_the_class(rare):
    images, labels = crops(rare, 100, split=Split(("a", "b")), copy_paste=1.0)
    np.testing.assert_allclose(images[..., 0], 10 + 40 * labels, atol=1e-3)
    assert np.mean([label.any() for label in labels]) >= 0.5  # all of "a"
    assert len({label.tobytes() for label in labels}) > 10


def test_the_temperature_decides_what_is_pasted(rare):
    """With a low one always class 2. With a high one all three classes alike, for the crop and for what is pasted:
    4 of 9 crops are "c", and a third of those lose their pixel to class 0; a third of the others get it."""
    same = Augmentation(crop=(24, 24), scale=(1, 1), flip=False)
    for temperature, share in ((1e-4, 1.0), (1e4, 4 / 9 * 2 / 3 + 5 / 9 / 3)):
        fields = {"copy_paste": 1.0, "rare_class_temperature": temperature}
        _, labels = crops(rare, 200, same, Split(tuple("abc")), **fields)
        assert np.mean([2 in label for label in labels]) == pytest.approx(share, abs=0.1)


def test_nothing_is_pasted_onto_a_single_labelled_image(rare):
    plain = crops(rare, 20, split=Split(("b",)))
    tf.nest.map_structure(np.testing.assert_array_equal, crops(rare, 20, split=Split(("b",)), copy_paste=1.0), plain)


def test_rare_classes_leave_the_other_streams_alone_and_need_no_state(rare):
    split = Split(("a", "b"), ("c",), ("d",))
    fields = {"batch_size": 4, "seed": 2}
    settings = {"rare_class_temperature": 0.01, "copy_paste": 0.5}
    plain = batches(train_dataset(rare, split, VIEW, **fields), 8)
    changed = batches(train_dataset(rare, split, VIEW, **fields, **settings), 8)
    later = batches(train_dataset(rare, split, VIEW, **fields, **settings, start_step=5), 3)
    tf.nest.map_structure(np.testing.assert_array_equal, later, changed[5:])
    for (x, _), (other, _) in zip(plain, changed, strict=True):
        assert not np.array_equal(x.pop("labeled"), other.pop("labeled"))
        tf.nest.map_structure(np.testing.assert_array_equal, x, other)


def test_a_label_map_of_another_size_stops_the_pipeline(numbered):
    save(numbered.path / "labels/train/3.png", np.zeros((8, 9)))
    pipeline = train_dataset(numbered, Split(("3",), (), ("1",)), WHOLE, batch_size=1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="differ in size .*|check_data"):
        batches(pipeline, 1)


def test_evaluation_goes_through_whole_images_in_order(numbered):
    pipeline = eval_dataset(numbered, "val")
    assert len(pipeline) == 7
    for i, (image, label) in enumerate(pipeline.as_numpy_iterator()):
        assert image.shape == (1, 8 + i, 9, 3) and image.dtype == np.float32 and (image == 10 * i).all()
        assert label.shape == (1, 8 + i, 9) and label.dtype == np.int32 and (label == i).all()


def test_evaluation_of_some_images(numbered):
    rows = batches(eval_dataset(numbered, "val", ["5", "2"]), 9)
    assert [int(label[0, 0, 0]) for _, label in rows] == [2, 5]
    with pytest.raises(ValueError, match="no labelled val image 'x'"):
        eval_dataset(numbered, "val", ["2", "x"])
    with pytest.raises(ValueError, match="no split 'test'"):
        eval_dataset(numbered, "test")


def test_evaluation_needs_label_maps(numbered):
    save(numbered.path / "images/test/a.png", np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="split 'test' .* has no label maps"):
        eval_dataset(FolderDataset(numbered.path), "test")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
def test_no_image_follows_itself_and_every_epoch_has_all(count):
    """Methods paste parts of one neighbour into the other."""
    names = [f"image_{number}" for number in range(count)]
    stream = _stream(names, 1, 4, lambda name, seed: name, seed=5, start_step=0, shares=1, own=range(1))
    drawn = [name for batch in stream.take(150).as_numpy_iterator() for name in batch.tolist()]
    epochs = [drawn[start : start + count] for start in range(0, len(drawn) - count, count)]
    assert all(len(set(epoch)) == count for epoch in epochs)
    assert count == 1 or all(first != second for first, second in zip(drawn, drawn[1:], strict=False))
    assert count < 3 or len({tuple(epoch) for epoch in epochs}) > 2
