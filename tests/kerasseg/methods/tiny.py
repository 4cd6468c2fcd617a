"""Two-layer networks whose losses and gradients can be written down, and their NumPy twins."""

import keras
import numpy as np
import tensorflow as tf

from kerasseg.methods.batch import Batch, as_batch

K = 3
HIDDEN = 4


def segmenter(classes: int = K) -> keras.Model:
    """softmax-less logits = relu(x/255 W1) W2, pixel by pixel."""
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Dense(HIDDEN, activation="relu", use_bias=False, name="w1")(x)
    return keras.Model(
        image, keras.layers.Dense(classes, use_bias=False, dtype="float32", name="w2")(x), name="segmenter"
    )


def discriminator(classes: int = K) -> keras.Model:
    """features = mean over pixels of [segmentation, image/255] U; logit = features v."""
    segmentation, image = keras.Input((None, None, classes)), keras.Input((None, None, 3))
    x = keras.layers.Concatenate()([segmentation, keras.layers.Rescaling(1 / 255)(image)])
    x = keras.layers.Dense(5, use_bias=False, name="u")(x)
    features = keras.layers.GlobalAveragePooling2D(dtype="float32")(x)
    logit = keras.layers.Dense(1, use_bias=False, dtype="float32", name="v")(features)
    return keras.Model([segmentation, image], [features, logit], name="discriminator")


class BranchingSegmenter(keras.Model):
    """`segmenter` with the parts that methods of several heads or passes use: encode, decode, second_head."""

    def __init__(self, classes: int = K):
        plain = segmenter(classes)
        super().__init__(plain.inputs[0], plain.outputs[0], name="segmenter")

    def encode(self, images, training=False):
        return [self.get_layer("w1")(self.layers[1](images))]

    def decode(self, features, images, training=False, head=None):
        return (head or self.get_layer("w2"))(features[0])

    def second_head(self, num_classes, name):
        hidden = keras.Input((None, None, HIDDEN))
        logits = keras.layers.Dense(num_classes, use_bias=False, dtype="float32", name="w3")(hidden)
        return keras.Model(hidden, logits, name=name)


def judge(outputs: int, name: str) -> keras.Model:
    """logits = tanh([segmentation, image/255] U) V, pixel by pixel: D2 with one output, a corrector with K + 1."""
    segmentation, image = keras.Input((None, None, K)), keras.Input((None, None, 3))
    x = keras.layers.Concatenate()([segmentation, keras.layers.Rescaling(1 / 255)(image)])
    x = keras.layers.Dense(4, activation="tanh", use_bias=False, name="u")(x)
    logits = keras.layers.Dense(outputs, use_bias=False, dtype="float32", name="v")(x)
    return keras.Model([segmentation, image], logits, name=name)


def image_judge(name: str) -> keras.Model:
    """logit = mean over pixels of tanh(segmentation U) v."""
    segmentation = keras.Input((None, None, K))
    x = keras.layers.Dense(4, activation="tanh", use_bias=False, name="u")(segmentation)
    x = keras.layers.Dense(1, use_bias=False, dtype="float32", name="v")(x)
    return keras.Model(segmentation, keras.layers.GlobalAveragePooling2D(dtype="float32")(x), name=name)


def pixel_discriminator(classes: int = K) -> keras.Model:
    """logits = tanh((segmentation + its left neighbours) U) v: what is ignored shows in the verdict beside it."""
    segmentation = keras.Input((None, None, classes))
    x = segmentation + keras.ops.pad(segmentation[:, :, :-1], [[0, 0], [0, 0], [1, 0], [0, 0]])
    x = keras.layers.Dense(4, activation="tanh", use_bias=False, name="u")(x)
    logits = keras.layers.Dense(1, use_bias=False, dtype="float32", name="v")(x)
    return keras.Model(segmentation, logits, name="discriminator")


def classifier(classes: int = K, name: str = "student") -> keras.Model:
    """logits = mean over pixels of batchnorm(x/255 W) V."""
    image = keras.Input((None, None, 3))
    x = keras.layers.Rescaling(1 / 255)(image)
    x = keras.layers.Dense(HIDDEN, use_bias=False, name="w")(x)
    x = keras.layers.BatchNormalization(momentum=0.5, name="bn")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(classes, use_bias=False, dtype="float32", name="v")(x), name=name)


def batch(rng: np.random.Generator, size: int = 2, height: int = 4, width: int = 5):
    """({"labeled", "unlabeled"}, labels) with some ignored pixels."""
    labels = rng.integers(0, K, (size, height, width)).astype(np.int32)
    labels[rng.random(labels.shape) < 0.2] = 255
    images = rng.uniform(0, 255, (2, size, height, width, 3)).astype(np.float32)
    return {"labeled": images[0], "unlabeled": images[1]}, labels


def tensors(x: dict, y: np.ndarray):
    """A batch as `fit` hands it to `train_step`."""
    return {name: tf.constant(value) for name, value in x.items()}, tf.constant(y)


def batch_of(x: dict, y: np.ndarray) -> Batch:
    """A batch as `update` takes it."""
    return as_batch(tensors(x, y))


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


class Segmenter:
    """The segmenter in NumPy, float64, with its backward pass."""

    def __init__(self, network: keras.Model):
        self.w1, self.w2 = (np.asarray(w, np.float64) for w in network.get_weights())

    @classmethod
    def of(cls, weights):
        """The segmenter of these weights, `[w1, w2]`."""
        twin = cls.__new__(cls)
        twin.w1, twin.w2 = weights
        return twin

    def forward(self, image):
        x = image.astype(np.float64) / 255
        hidden = np.maximum(x @ self.w1, 0)
        return hidden @ self.w2, (x, hidden)

    def backward(self, cache, d_logits):
        """Gradients of w1 and w2 from those of the logits."""
        x, hidden = cache
        d_hidden = (d_logits @ self.w2.T) * (hidden > 0)
        return [
            np.einsum("bhwi,bhwj->ij", x, d_hidden),
            np.einsum("bhwi,bhwj->ij", hidden, d_logits),
        ]


def cross_entropy(labels, logits, image_weights=None):
    """(loss, gradient of the logits)."""
    weights = (labels != 255).astype(np.float64)
    if image_weights is not None:
        weights = weights * image_weights[:, None, None]
    count = max(weights.sum(), 1e-12)
    probabilities = softmax(logits)
    truth = np.eye(logits.shape[-1])[np.where(labels == 255, 0, labels)]
    loss = -(weights * np.log((probabilities * truth).sum(axis=-1))).sum() / count
    return loss, weights[..., None] * (probabilities - truth) / count


def through_softmax(probabilities, d_probabilities):
    """Gradient of the logits from that of their softmax."""
    inner = (probabilities * d_probabilities).sum(axis=-1, keepdims=True)
    return probabilities * (d_probabilities - inner)


def pixel_verdicts(weights, segmentation):
    """The pixel discriminator's logits (B,H,W) in NumPy."""
    u, v = weights
    seen = segmentation + np.pad(segmentation, [(0, 0), (0, 0), (1, 0), (0, 0)])[:, :, :-1]
    return (np.tanh(seen @ u) @ v)[..., 0]


def image_verdicts(weights, segmentation):
    """The logits (B,) of `image_judge` in NumPy."""
    u, v = weights
    return (np.tanh(segmentation @ u) @ v).mean(axis=(1, 2, 3))


def judgement(weights, segmentation, image):
    """The logits of `judge` in NumPy."""
    u, v = weights
    return np.tanh(np.concatenate([segmentation, image.astype(np.float64) / 255], axis=-1) @ u) @ v


def float64_weights(network: keras.Model):
    return [w.astype(np.float64) for w in network.get_weights()]


def assert_moved(network: keras.Model, before, gradients, rate=1.0):
    """The network's weights are those before, less the rate times the gradients."""
    for weight, old, gradient in zip(network.get_weights(), before, gradients, strict=True):
        np.testing.assert_allclose(weight, old - rate * gradient, rtol=1e-4, atol=2e-5)


def binary_cross_entropy(logits, target, where=None):
    """Mean over the places where `where` holds; 0 if there are none."""
    loss = np.logaddexp(0, logits) - target * logits
    where = np.ones(loss.shape, bool) if where is None else where
    return (loss * where).sum() / max(where.sum(), 1e-12)


def one_hot(labels, classes: int = K):
    """All zero where ignored."""
    return np.eye(classes)[np.where(labels == 255, 0, labels)] * (labels != 255)[..., None]


def numeric_gradient(loss, weights, step=1e-5):
    """Central differences of `loss(weights)` in float64, for each array of the list."""
    gradients = []
    for index, weight in enumerate(weights):
        gradient = np.zeros_like(weight)
        for position in np.ndindex(weight.shape):
            values = []
            for sign in (1, -1):
                moved = [w.copy() for w in weights]
                moved[index][position] += sign * step
                values.append(loss(moved))
            gradient[position] = (values[0] - values[1]) / (2 * step)
        gradients.append(gradient)
    return gradients
