"""Names to batches: the tf.data pipelines of training and evaluation.

The training pipeline has no state but the number of the step: item i of a stream is the i-th of an endless
row of epochs, each a permutation computed from (seed, stream, epoch), seen through an augmentation drawn from
(seed, stream, i). So a run continues at step N at no cost, and gets the batches it would have got.

Legend: B batch; H, W crop; K classes.
"""

import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from kerasseg.data.augment import Augmentation, augment
from kerasseg.data.datasets import IGNORE, Dataset
from kerasseg.data.splits import Split
from kerasseg.losses import multi_hot

# Streams have random numbers of their own: the labelled batches are the same whatever else a method asks for.
LABELED, UNLABELED, WEAK = range(3)


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
) -> tf.data.Dataset:
    """Endless training batches.

    Args:
        batch_size: labelled images in a batch, and image-labelled ones where the split has any.
        unlabeled_batch_size: `batch_size` when None; 0 leaves the unlabelled stream out.
        start_step: the first batch is the one an unbroken run would have got at this step.
        shares: how many devices share each batch. What is given then is not batches but their shares, one after the
            other: image i of `batch_size` is in share `i * shares // batch_size`.
        own_shares: the consecutive shares to give, those of one worker's devices; all when None. No item of another
            share is read.

    Returns:
        A dataset of `(x, labels)`: `labels` int32 (B, H, W), 255 = ignore, and `x` a dict of
            "labeled": float32 (B, H, W, 3), 0..255;
            "unlabeled": the same, unless `unlabeled_batch_size` is 0, and "unlabeled_valid": bool (B, H, W), whether
            a pixel is of the picture, not of the padding around it;
            "weak" and "weak_classes": whole images squeezed to the crop's size, and float32 (B, K), 1 for
            each class in the image; only where `split.weak` is not empty.

    Raises:
        ValueError: the split has no labelled images, or no unlabelled ones where they are asked for, or a batch does
            not divide into its shares.
    """
    if unlabeled_batch_size is None:
        unlabeled_batch_size = batch_size
    for size in (batch_size, unlabeled_batch_size):
        if size % shares:
            raise ValueError(f"a batch of {size} images does not divide into {shares} shares of equal size")
    if not split.labeled:
        raise ValueError("the split has no labelled image; label at least one")
    if unlabeled_batch_size and not split.without_masks:
        raise ValueError(
            "every training image of the split is labelled, nothing is left to learn from without labels: "
            "choose fewer labelled images, or a supervised method"
        )

    def labeled(name: tf.Tensor, item_seed: tf.Tensor):
        return augment(*_load(dataset, name), item_seed, augmentation)

    def unlabeled(name: tf.Tensor, item_seed: tf.Tensor):
        image_HWC = dataset.tf_image("train", name)
        image, label = augment(image_HWC, tf.zeros(tf.shape(image_HWC)[:2], tf.uint8), item_seed, augmentation)
        return image, label != IGNORE

    def weak(name: tf.Tensor, item_seed: tf.Tensor):
        image = tf.image.resize(dataset.tf_image("train", name), augmentation.crop, antialias=True)
        if augmentation.flip:
            image = tf.image.stateless_random_flip_left_right(image, item_seed)
        return image, classes_of(name)

    classes_of = _image_classes(dataset, split)
    own = range(shares) if own_shares is None else own_shares
    stream = functools.partial(_stream, seed=seed, start_step=start_step, shares=shares, own=own)
    streams = {"labeled": stream(split.labeled, LABELED, batch_size, labeled)}
    if unlabeled_batch_size:
        streams["unlabeled"] = stream(split.without_masks, UNLABELED, unlabeled_batch_size, unlabeled)
    if split.weak:
        streams["weak"] = stream(split.weak, WEAK, batch_size, weak)

    def assemble(batch: dict) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        images, labels = batch["labeled"]
        x = {"labeled": images}
        if "unlabeled" in batch:
            x["unlabeled"], x["unlabeled_valid"] = batch["unlabeled"]
        if "weak" in batch:
            x["weak"], x["weak_classes"] = batch["weak"]
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
    """From a name to the classes in the picture, float32 (K,) of 0 and 1: as the split tells, or else its label map."""
    if not split.weak_classes:
        return lambda name: multi_hot(dataset.tf_label("train", name)[tf.newaxis], dataset.num_classes)[0]
    rows_NK = tf.constant([[k in split.weak_classes[name] for k in range(dataset.num_classes)] for name in split.weak])
    # Not a lookup table: it would have to outlive the pipeline.
    return lambda name: tf.cast(rows_NK[tf.argmax(tf.constant(split.weak) == name)], tf.float32)


def _load(dataset: Dataset, name: tf.Tensor, split_name: str = "train") -> tuple[tf.Tensor, tf.Tensor]:
    image_HWC, label_HW = dataset.tf_image(split_name, name), dataset.tf_label(split_name, name)
    same_size = tf.debugging.assert_equal(
        tf.shape(image_HWC)[:2],
        tf.shape(label_HW),
        f"image and label map differ in size in {dataset.name}; `python -m training.check_data` tells which",
    )
    with tf.control_dependencies([same_size] if same_size is not None else []):
        return image_HWC, tf.identity(label_HW)


def _stream(
    names: Sequence[str],
    stream: int,
    batch_size: int,
    load: Callable,
    seed: int,
    start_step: int,
    shares: int,
    own: range,
) -> tf.data.Dataset:
    """Endless batches of `load(name, item_seed)` over shuffled epochs, or their own shares; every batch is full."""
    count = len(names)
    names = tf.constant(names)
    stream_seed = tf.random.experimental.stateless_fold_in(tf.constant([seed, 0], tf.int64), stream)
    order_seed, view_seed = tf.unstack(tf.random.experimental.stateless_split(stream_seed, 2))

    share_size = batch_size // shares
    own_size = share_size * len(own)  # of a batch

    def item(number: tf.Tensor):
        index = number // own_size * batch_size + own.start * share_size + number % own_size
        epoch_seed = tf.random.experimental.stateless_fold_in(order_seed, index // count)
        position = tf.random.experimental.index_shuffle(index % count, epoch_seed, count - 1)
        item_seed = tf.random.experimental.stateless_fold_in(view_seed, index)
        return load(names[position], item_seed)

    items = tf.data.Dataset.range(start_step * own_size, tf.int64.max)
    items = items.map(item, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return items.batch(share_size, drop_remainder=True)
