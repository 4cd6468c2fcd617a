"""Any functional network from images to logits as a segmenter whose backbone and head can be called separately."""

from collections.abc import Sequence

import keras

from kerasseg.keras_internals import made_by, place_of
from kerasseg.layers import register


def cut(network: keras.Model, *features: str) -> "CutSegmenter":
    """The network as a segmenter for methods that need features: `latent`, `unimatch`, `unimatch_v2`, and the
    classifier of `mlmt`.

    Args:
        network: functional, images (B,H,W,3), RGB in 0..255, to logits (B,H,W,K). Its weights are shared, not copied.
        features: names of the layers where the backbone ends and the head begins: all that the head takes, so one for
            each skip connection, the deepest last. A network that is used as a layer, such as one of
            `keras.applications`, is one of them by its name.

    Raises:
        ValueError: there is no such layer, a path from image to logits avoids all of them, or the head takes
            nothing from one of them.

    Example:
        >>> image = keras.Input((None, None, 3))
        >>> x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="features")(image)
        >>> logits = keras.layers.Conv2D(2, 1, name="logits")(x)
        >>> segmenter = kerasseg.segmenters.cut(keras.Model(image, logits), "features")
        >>> method = kerasseg.UniMatch(segmenter, steps=100)
    """
    return CutSegmenter(network.inputs[0], network.outputs[0], features, name=network.name)


@register
class CutSegmenter(keras.Model):
    """See `cut`."""

    def __init__(self, inputs, outputs, features: Sequence[str], name: str | None = None):
        super().__init__(inputs, outputs, name=name)
        names = [layer.name for layer in self.layers]
        if missing := [feature for feature in features if feature not in names]:
            raise ValueError(
                f"{self.name} has no layer {missing[0]!r} to cut at; its layers: {', '.join(names) or 'none'}"
            )
        self.features = tuple(features)
        self.backbone = keras.Model(self.inputs[0], tensors_at(self, self.features), name="backbone")
        self.head = keras.Model(self.backbone.outputs, self.outputs[0], name="head")

    def encode(self, images_BHW3, training: bool = False) -> list:
        """The outputs of the layers that the network is cut at."""
        return keras.tree.flatten(self.backbone(images_BHW3, training=training))

    def decode(self, features, images_BHW3, training: bool = False, head: keras.Model | None = None):
        """Logits (B,H,W,K) from what `encode` gave, or those of another `head` (`second_head`)."""
        return (head or self.head)(features, training=training)

    def second_head(self, num_classes: int, name: str) -> keras.Model:
        """Another head with the same layers, untrained, with `num_classes` outputs; for `decode`.

        Raises:
            ValueError: the network's last layer with weights is neither a convolution nor a dense layer.
        """
        last = [layer for layer in self.head.layers if layer.weights][-1]
        sizes = {"filters", "units"} & last.get_config().keys()
        if not sizes:
            raise ValueError(
                f"the last layer with weights, {last.name}, is neither a convolution nor a dense layer, so no second "
                "head can be made from it: give latent_head"
            )

        def clone(layer):
            config = layer.get_config()
            if layer.name == last.name:
                config |= dict.fromkeys(sizes, num_classes)
            return type(layer).from_config(config)

        head = keras.models.clone_model(self.head, clone_function=clone)
        head.name = name
        return head

    def get_config(self):
        network = keras.Model(self.inputs[0], self.outputs[0], name=self.name)
        return {"network": keras.saving.serialize_keras_object(network), "features": list(self.features)}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cut(keras.saving.deserialize_keras_object(config["network"]), *config["features"])


def require_parts(segmenter: keras.Model, user: str) -> None:
    """ValueError where a segmenter has no backbone and head that can be called separately."""
    if not hasattr(segmenter, "encode"):
        raise ValueError(
            f"{user} calls the backbone and the head of a segmenter separately, so it must know where the head begins: "
            "give it kerasseg.segmenters.cut(network, 'the last layer of the backbone'), with one more name for each "
            "skip connection"
        )


def tensors_at(network: keras.Model, features: Sequence[str], avoidable: bool = False) -> list[keras.KerasTensor]:
    """The outputs of the named layers on the paths from image to logits, in the order of the names: several of a layer
    that is used several times or has several outputs, in that order. A network that is used as a layer counts as one.

    Args:
        avoidable: there may be paths that go through none of them.

    Raises:
        ValueError: a path avoids all of them, or no path goes through one of them.
    """
    found: dict[str, list[keras.KerasTensor]] = {name: [] for name in features}
    seen: set[int] = set()
    waiting: list[tuple[keras.KerasTensor, list[str]]] = [(network.outputs[0], [])]
    while waiting:
        tensor, path = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        layer, inputs = made_by(tensor)
        path = [*path, layer.name]
        if layer.name in found:
            found[layer.name].append(tensor)
        elif not inputs and not avoidable:
            raise ValueError(
                f"a path from the image to the logits of {network.name} avoids "
                f"{', '.join(features) or 'the cut (at no layer)'}; it goes through {' and '.join(path[-3:])}: "
                "name one layer of each path, also of skip connections"
            )
        waiting += [(each, path) for each in inputs if layer.name not in found]
    if unused := [name for name, tensors in found.items() if not tensors]:
        raise ValueError(f"the head of {network.name} takes nothing from {unused[0]!r}: leave it out")
    return [tensor for tensors in found.values() for tensor in sorted(tensors, key=place_of)]
