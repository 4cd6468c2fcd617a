"""Names to batches: the tf.data pipelines of training and evaluation.

The only state of the training pipeline is the number of the step: item i of a stream is the i-th of an endless
row of epochs, each a permutation computed from (seed, stream, epoch), with an augmentation drawn from
(seed, stream, i). So a run continues at step N at no cost, and gets the same batches as an unbroken run.

Legend: B batch; H, W crop; K classes.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from kerasseg.data.augment import Augmentation, augment
from kerasseg.data.datasets import Dataset, count_pixels
from kerasseg.data.rare_classes import DAFORMER_TEMPERATURE, RareClasses
from kerasseg.data.splits import Split
from kerasseg.losses import IGNORE_LABEL, multi_hot

# Streams have random numbers of their own: the labelled batches are the same whatever else a method asks for.
LABELED, UNLABELED, IMAGE_LABELED = range(3)
# Further draws of an item of the labelled stream, folded into its seed.
SAMPLING, PASTING = 7, 8


def train_dataset(
    dataset: Dataset,
    split: Split,
    augmentation: Augmentation,
    *,
    batch_size: int,
    unlabeled_batch_size: int | None = None,
    seed: int = 0,
    start_step: int = 0,
    shares: int = 1,
    own_shares: range | None = None,
    rare_class_temperature: float | None = None,
    copy_paste: float = 0.0,
) -> tf.data.Dataset:
    """Endless training batches.

    Where every image of the split has a label map, the labelled images serve as the unlabelled ones too.

    Args:
        batch_size: labelled images in a batch, and image-labelled ones where the split has any.
        unlabeled_batch_size: `batch_size` when None; 0 leaves the unlabelled stream out.
        start_step: the first batch is the one an unbroken run would have got at this step.
        shares: how many devices share each batch. The dataset then holds the shares of the batches, one after the
            other: image i of `batch_size` is in share `i * shares // batch_size`.
        own_shares: the consecutive shares of one worker's devices; all when None. No item of another share is read.
        rare_class_temperature: draw labelled images not in shuffled epochs but by a class they hold, rare classes more
            often (`RareClasses`; DAFormer's temperature is 0.01), and place the crop so that a random pixel of that
            class is inside. DAFormer draws crops until one has enough pixels of the class: this is simpler, and takes
            one draw. None for shuffled epochs.
        copy_paste: the probability with which a labelled crop gets the pixels of one class, image and labels, of a
            crop of another labelled image, at the same place: a simple form of the adaptive copy-paste of AEL (Hu et
            al. 2021, arXiv:2110.05474). Class and image are drawn as for `rare_class_temperature`, with DAFormer's
            temperature where that is None. Where no other image holds the class, nothing is pasted.

    Returns:
        A dataset of `(x, labels)`: `labels` int32 (B, H, W), 255 = ignore, and `x` a dict of
            "labeled": float32 (B, H, W, 3), 0..255;
            "unlabeled": the same, unless `unlabeled_batch_size` is 0, and "unlabeled_valid": bool (B, H, W), whether
            a pixel is of the image, not of the padding around it;
            "image_labeled" and "image_labels": whole images squeezed to the crop's size (as by `Augmentation.whole`),
            and float32 (B, K), 1 for each class in the image; only where `split.image_labeled` is not empty.

    Raises:
        ValueError: the split has no labelled images, a batch does not divide into its shares, the temperature is not
            above 0, or the probability is not in 0..1.
    """
    if unlabeled_batch_size is None:
        unlabeled_batch_size = batch_size
    for size in (batch_size, unlabeled_batch_size):
        if size % shares:
            raise ValueError(f"a batch of {size} images does not divide into {shares} shares of equal size")
    if not split.labeled:
        raise ValueError("the split has no labelled image; label at least one")
    if not 0 <= copy_paste <= 1:
        raise ValueError(f"copy_paste must be a probability 0..1, got {copy_paste}")
    whole = dataclasses.replace(augmentation, whole=True)
    fold_in = tf.random.experimental.stateless_fold_in
    names = tf.constant(split.labeled)
    if rare_class_temperature is not None or copy_paste:
        pixels_NK = count_pixels(dataset, "train", split.labeled)[:, : dataset.num_classes]
        temperature = DAFORMER_TEMPERATURE if rare_class_temperature is None else rare_class_temperature
        rare_classes = RareClasses(pixels_NK, temperature)

    def labeled(image: tf.Tensor, item_seed: tf.Tensor):
        """A view of the labelled image with that number, or of another one where rare classes decide."""
        shown = None
        if rare_class_temperature is not None:
            shown, image = rare_classes.draw(fold_in(item_seed, SAMPLING))
        view = augment(*_load(dataset, names[image]), item_seed, augmentation, shown)
        return pasted(image, *view, fold_in(item_seed, PASTING)) if copy_paste else view

    def pasted(image: tf.Tensor, own_HWC: tf.Tensor, label_HW: tf.Tensor, seed: tf.Tensor):
        """The crop, perhaps with pixels of one class of another image."""
        whether_seed, draw_seed, view_seed = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
        shown, other = rare_classes.draw(draw_seed, other_than=image)

        def paste():
            other_HWC, other_HW = augment(*_load(dataset, names[other]), view_seed, augmentation, shown)
            taken_HW = other_HW == shown
            return tf.where(taken_HW[..., None], other_HWC, own_HWC), tf.where(taken_HW, other_HW, label_HW)

        wanted = tf.random.stateless_uniform((), whether_seed) < copy_paste
        return tf.cond(wanted & (other >= 0), paste, lambda: (own_HWC, label_HW))

    def unlabeled(name: tf.Tensor, item_seed: tf.Tensor):
        image_HWC = dataset.tf_image("train", name)
        image, label = augment(image_HWC, tf.zeros(tf.shape(image_HWC)[:2], tf.uint8), item_seed, augmentation)
        return image, label != IGNORE_LABEL

    def image_labeled(name: tf.Tensor, item_seed: tf.Tensor):
        image, _ = augment(dataset.tf_image("train", name), None, item_seed, whole)
        return image, classes_of(name)

    classes_of = _image_classes(dataset, split)
    own = range(shares) if own_shares is None else own_shares
    stream = functools.partial(_stream, seed=seed, start_step=start_step, shares=shares, own=own)
    streams = {"labeled": stream(range(len(split.labeled)), LABELED, batch_size, labeled)}
    if unlabeled_batch_size:
        unlabeled_names = split.without_label_maps or split.labeled
        streams["unlabeled"] = stream(unlabeled_names, UNLABELED, unlabeled_batch_size, unlabeled)
    if split.image_labeled:
        streams["image_labeled"] = stream(split.image_labeled, IMAGE_LABELED, batch_size, image_labeled)

    def assemble(batch: dict) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        images, labels = batch["labeled"]
        x = {"labeled": images}
        if "unlabeled" in batch:
            x["unlabeled"], x["unlabeled_valid"] = batch["unlabeled"]
        if "image_labeled" in batch:
            x["image_labeled"], x["image_labels"] = batch["image_labeled"]
        return x, labels

    return tf.data.Dataset.zip(streams).map(assemble).prefetch(2 * len(own))


def eval_dataset(dataset: Dataset, split_name: str, names: Sequence[str] | None = None) -> tf.data.Dataset:
    """Whole images one by one, at their own size, in the order of their names.

    Args:
        names: a part of the split; all of its labelled images when None.

    Returns:
        A finite dataset of float32 (1, H, W, 3), 0..255, and int32 (1, H, W), 255 = ignore; its cardinality
        is known.

    Raises:
        ValueError: no such split, or images without label maps.
    """
    labeled = dataset.label_names(split_name)
    names = labeled if names is None else sorted(names)
    if missing := sorted(set(names) - set(labeled)):
        raise ValueError(f"{dataset.name!r} has no labelled {split_name} image {missing[0]!r}")
    if not names:
        raise ValueError(f"split {split_name!r} of {dataset.name!r} has no label maps to compare with")

    def load(name: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image_HWC, label_HW = _load(dataset, name, split_name)
        return tf.cast(image_HWC, tf.float32)[None], tf.cast(label_HW, tf.int32)[None]

    rows = tf.data.Dataset.from_tensor_slices(list(names))
    return rows.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).prefetch(2)


def _image_classes(dataset: Dataset, split: Split) -> Callable[[tf.Tensor], tf.Tensor]:
    """From a name to the classes in the image, float32 (K,) of 0 and 1: from the split, or else from its label map."""
    if not split.image_labels:
        return lambda name: multi_hot(dataset.tf_label("train", name)[tf.newaxis], dataset.num_classes)[0]
    rows_NK = tf.constant(
        [[k in split.image_labels[name] for k in range(dataset.num_classes)] for name in split.image_labeled]
    )
    # Not a lookup table: it would have to outlive the pipeline.
    return lambda name: tf.cast(rows_NK[tf.argmax(tf.constant(split.image_labeled) == name)], tf.float32)


def _load(dataset: Dataset, name: tf.Tensor, split_name: str = "train") -> tuple[tf.Tensor, tf.Tensor]:
    image_HWC, label_HW = dataset.tf_image(split_name, name), dataset.tf_label(split_name, name)
    same_size = tf.debugging.assert_equal(
        tf.shape(image_HWC)[:2],
        tf.shape(label_HW),
        f"image and label map differ in size in {dataset.name}; `kerasseg check` names them",
    )
    with tf.control_dependencies([same_size] if same_size is not None else []):
        return image_HWC, tf.identity(label_HW)


def _stream(
    images: Sequence[str] | Sequence[int],
    stream: int,
    batch_size: int,
    load: Callable,
    seed: int,
    start_step: int,
    shares: int,
    own: range,
) -> tf.data.Dataset:
    """Endless batches of `load(image, item_seed)` over shuffled epochs, or their own shares; every batch is full.

    Args:
        images: what `load` knows the images by, names or numbers.
    """
    count = len(images)
    rows = tf.constant(images)
    stream_seed = tf.random.experimental.stateless_fold_in(tf.constant([seed, 0], tf.int64), stream)
    order_seed, view_seed = tf.unstack(tf.random.experimental.stateless_split(stream_seed, 2))

    share_size = batch_size // shares
    own_size = share_size * len(own)  # of a batch

    def shuffled(place: tf.Tensor, epoch: tf.Tensor) -> tf.Tensor:
        epoch_seed = tf.random.experimental.stateless_fold_in(order_seed, epoch)
        return tf.random.experimental.index_shuffle(place, epoch_seed, count - 1)

    def position(index: tf.Tensor) -> tf.Tensor:
        """Which image has its turn. No image follows itself where one epoch follows another, because methods paste
        parts of one neighbour into the other: then the first two of the epoch change places."""
        epoch, place = index // count, index % count
        if count < 3:
            return place
        first, last = tf.constant(0, tf.int64), tf.constant(count - 1, tf.int64)
        again = (epoch > 0) & (shuffled(first, epoch) == shuffled(last, epoch - 1))
        return shuffled(tf.where(again & (place < 2), 1 - place, place), epoch)

    def item(number: tf.Tensor):
        index = number // own_size * batch_size + own.start * share_size + number % own_size
        item_seed = tf.random.experimental.stateless_fold_in(view_seed, index)
        return load(rows[position(index)], item_seed)

    items = tf.data.Dataset.range(start_step * own_size, tf.int64.max)
    items = items.map(item, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return items.batch(share_size, drop_remainder=True)
