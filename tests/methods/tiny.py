"""Two-layer networks whose losses and gradients can be written down, and their NumPy twins."""

import keras
import numpy as np
import tensorflow as tf

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


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


class Segmenter:
    """The segmenter in NumPy, float64, with its backward pass."""

    def __init__(self, network: keras.Model):
        self.w1, self.w2 = (np.asarray(w, np.float64) for w in network.get_weights())

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
