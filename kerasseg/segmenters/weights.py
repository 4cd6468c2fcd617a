"""Initial weights from a file, matched to a network by the names and shapes of its layers."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from kerasseg.checks import first_few
from kerasseg.keras_internals import parts_of
from kerasseg.segmenters.torch_files import is_torch_file, read_tensors
from kerasseg.segmenters.torch_layers import cautions, layers_of, match
from serving.common.inputs import failed_copy

# Where a layer is: the names of the networks around it, from the outermost inwards, and its own. That of a layer inside
# a layer names both: block_0/attention.
LayerPath = tuple[str, ...]
Layers = dict[LayerPath, list[np.ndarray]]

AVERAGED = "averaged"
"""The name of a segmenter's mean teacher, in a method that predicts with it."""


@dataclass(frozen=True)
class LoadedWeights:
    """What was loaded from a file of weights. A layer's name says where it is, and the shapes of its arrays."""

    source: str
    """The file's name, without its folder."""
    sha256: str
    """SHA-256 of the file, hexadecimal."""
    by: str
    """name; or position, where the file names no layers and the order of an equal network's layers decided; or order,
    for a file of PyTorch."""
    loaded: tuple[str, ...]
    """Layers of the network that have their weights from the file."""
    reinitialised: tuple[str, ...]
    """Layers of the network that the file does not hold, or holds in another shape."""
    skipped: tuple[str, ...]
    """Layers of the file that the network has no use for."""
    cautions: tuple[str, ...] = ()
    """Why features may differ from those of the network that the file was made for."""

    def counts(self) -> dict[str, Any]:
        """For result.json: the lengths of the lists."""
        fields = {name: getattr(self, name) for name in ("source", "sha256", "by")}
        return fields | {name: len(getattr(self, name)) for name in ("loaded", "reinitialised", "skipped")}

    def summary(self) -> str:
        """A line; and a line each for layers that were not loaded and layers that were not used."""
        lines = [f"weights: {len(self.loaded)} layers from {self.source}" + " by position" * (self.by == "position")]
        lines[0] += (
            " by order" * (self.by == "order")
            + f", {len(self.reinitialised)} reinitialised, {len(self.skipped)} of the file skipped"
        )
        if len(self.loaded) < len(self.reinitialised):
            lines[0] = f"warning: most layers have no weights from the file; is it for another network? {lines[0]}"
        for name in ("reinitialised", "skipped"):
            if names := getattr(self, name):
                lines.append(f"  {name}: {first_few(names)}")
        lines += [f"  warning: features may differ from PyTorch's: {caution}" for caution in self.cautions]
        return "\n".join(lines)

    def listing(self) -> str:
        """All names, line by line."""
        lines = [f"{self.source}, sha256 {self.sha256}, layers matched by {self.by}"]
        for name in ("loaded", "reinitialised", "skipped"):
            lines += [f"{name} {layer}" for layer in getattr(self, name)]
        return "\n".join(lines) + "\n"


def load_weights(
    network: keras.Model, path: str | Path, stock: Callable[[str], keras.Model] | None = None
) -> LoadedWeights:
    """Gives a network the weights of a file that fit it.

    The file is a `.keras` archive (of any functional model, or a run's model.keras, of which the segmenter is read), a
    `.weights.h5` of Keras 3 or a `.h5` of Keras 2. Two layers fit where their own names (with those of the layers
    around it for a layer inside a layer) and the shapes of all their arrays are equal, wherever they are: so a file of
    only the backbone loads into the backbone of a segmenter, and a segmenter of other classes into all of one but its
    last layer. Where the file holds several networks with such layers (the teacher of a mean-teacher classifier, for
    example), the one that fits best is taken. The code of the file's model is not run.

    A file of PyTorch (`.pth`, `.pt`, `.bin`) or a `.safetensors` file, such as timm's, has other names. Its layers are
    matched by their order, and must be all of the backbone's; what comes after them (a classifier) is skipped.

    Args:
        network: functional, possibly of functional parts; what does not fit stays as it is.
        path: the file.
        stock: makes the published form of the network, or of its backbone, with the weights of a file. It is used
            where a file names no layers or nothing fits by name, because Keras then uses the layers' order.

    Raises:
        ValueError: no such file, not a file of weights, or nothing in it fits; for a file of PyTorch, also a backbone
            whose layers have no order (`match`).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"weights must be 'imagenet', 'none' or an existing file; got '{path}'")
    if is_torch_file(path):
        return _load_torch(network, path)
    wanted = dict(_layers(network))
    stored, by = read_layers(path), "name"
    fitting = _fitting(wanted, stored)
    if not fitting:
        named, by = stored, "position"
        stored = _by_position(network, path, stock)
        fitting = _fitting(wanted, stored)
        if not fitting:
            expected, came = (first_few("/".join(name) for name in layers) for layers in (wanted, named))
            raise ValueError(
                f"nothing in {path} fits {network.name}: expected layers such as {expected}; it holds "
                f"{came or 'none with a name'}; give the file of such a network (see --segmenter, --backbone), or "
                "'imagenet' or 'none'"
            )
    for name, origin in fitting.items():
        for variable, array in zip(wanted[name], stored[origin], strict=True):
            variable.assign(array)
    return LoadedWeights(
        source=path.name,
        sha256=_sha256(path),
        by=by,
        loaded=tuple(_described(name, wanted[name]) for name in fitting),
        reinitialised=tuple(_described(name, wanted[name]) for name in wanted if name not in fitting),
        skipped=tuple(_described(name, stored[name]) for name in stored if name not in fitting.values()),
    )


def _load_torch(network: keras.Model, path: Path) -> LoadedWeights:
    """`load_weights` for a file of PyTorch: of the backbone, whose layers it must all hold, in their order."""
    backbone = getattr(network, "backbone", network)
    tensors = read_tensors(path)
    try:
        given = match(backbone, tensors)
    except ValueError as error:
        raise ValueError(
            f"{path} does not fit {backbone.name}: {error}; give the file of such a network (see --backbone), or "
            "'imagenet' or 'none'"
        ) from error
    for layer, arrays in given.values():
        layer.set_weights(arrays)
    wanted = {id(layer.weights[0]) for layer, _ in given.values()}
    layers = list(_layers(network))
    return LoadedWeights(
        source=path.name,
        sha256=_sha256(path),
        by="order",
        loaded=tuple(_described(name, variables) for name, variables in layers if id(variables[0]) in wanted),
        reinitialised=tuple(
            _described(name, variables) for name, variables in layers if id(variables[0]) not in wanted
        ),
        skipped=tuple(_described((name,), arrays) for name, arrays in layers_of(tensors).items() if name not in given),
        cautions=tuple(cautions(backbone)),
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_layers(path: Path) -> Layers:
    """The arrays of each layer of a file of weights, as `keras.Layer.get_weights` orders them.

    Empty where a file names no layers (`.weights.h5` of Keras before 3.6).

    Raises:
        ValueError: not a file of weights, or a damaged one.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path)
        if h5py.is_hdf5(path):
            with h5py.File(path) as file:
                group = file.get("model_weights", file)
                return _read_legacy(group) if "layer_names" in group.attrs else _read_h5(file)
    except Exception as error:  # h5py, zipfile and Keras raise anything for a damaged file
        message, hint = str(error).partition("\n")[0], "is the file complete?"
        if isinstance(error, KeyError) and "config.json" in message:
            hint = "a .keras archive has it, and a file of PyTorch a data.pkl"
        raise ValueError(f"the weights in {path} cannot be read: {message}; {hint}") from error
    known = failed_copy(path)
    with path.open("rb") as file:
        cut = file.read(4) == b"PK\x03\x04"  # its list of contents is at the end
    came = f"{known.what}; {known.remedy}" if known else "none of these, whatever its name"
    raise ValueError(
        f"{path} holds no weights: expected a .keras, .weights.h5, .h5, .pth or .safetensors file, and it is "
        + ("a ZIP archive without its end; copy the file again from its source" if cut else came)
    )


def _read_archive(path: Path) -> Layers:
    with zipfile.ZipFile(path) as archive:
        config = json.loads(archive.read("config.json"))
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
            layers = _read_h5(file)
    if not layers:
        model = keras.saving.load_model(path, compile=False)
        layers = {name: _values(variables) for name, variables in _layers(model)}
    segmenter = _segmenter_name(config)
    if segmenter is not None and any(AVERAGED in name[:-1] for name in layers):
        segmenter = AVERAGED
    return {name: arrays for name, arrays in layers.items() if segmenter is None or segmenter in name[:-1]}


def _segmenter_name(config: dict[str, Any]) -> str | None:
    """The name of the segmenter inside one of our methods, from its config; None for any other model."""
    inner = config.get("config")
    if not isinstance(inner, dict) or not str(config.get("module")).startswith("kerasseg.methods"):
        return None
    return inner["segmenter"]["config"]["name"] if "segmenter" in inner else _segmenter_name(inner["segmentation"])


def _read_h5(file: h5py.File) -> Layers:
    """Keras 3: groups numbered by class, such as layers/conv2d_1/vars/0, where `vars` knows the layer's own name."""
    groups: dict[str, h5py.Group] = {}

    def visit(place: str, node: h5py.Group | h5py.Dataset) -> None:
        *outer, last = place.split("/")
        if last == "vars" and "name" in node.attrs and outer[:1] != ["optimizer"]:
            groups["/".join(outer)] = node

    file.visititems(visit)
    layers = {}
    for place, group in groups.items():
        if len(group):
            parts = place.split("/") if place else []
            names = {
                length: str(groups[around].attrs["name"])
                for length in range(len(parts) + 1)
                if (around := "/".join(parts[:length])) in groups
            }
            # A network has its layers in the folder `layers`; a layer has those inside it in folders by its attributes.
            first = max(
                (length for length in names if parts[length - 2 : length - 1] == ["layers"]), default=len(parts)
            )
            networks = [name for length, name in names.items() if length < first]
            own = "/".join(name for length, name in names.items() if length >= first)
            keys = sorted(group, key=lambda key: (len(key), key))
            layers[*networks, own] = [np.asarray(group[key]) for key in keys]
    return layers


def _read_legacy(group: h5py.Group) -> Layers:
    """Keras 2: `layer_names` of the outermost network. The weights of a network in it are named after its layers."""
    layers: Layers = {}
    for layer in _texts(group.attrs["layer_names"]):
        names = _texts(group[layer].attrs["weight_names"])
        owners = [name.rpartition("/")[0] for name in names]
        for owner, name in zip(owners, names, strict=True):
            inner = owner.split("/") if len(set(owners)) > 1 else []
            inner = inner[1:] if inner[:1] == [layer] else inner  # of a layer inside this layer
            layers.setdefault((layer, *inner), []).append(np.asarray(group[layer][name]))
    return layers


def _texts(values) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _by_position(network: keras.Model, path: Path, stock: Callable[[str], keras.Model] | None) -> Layers:
    """The file's arrays where Keras itself loads it into `network` or its published form; empty where it does not."""
    before = network.get_weights()

    def as_it_is(weights: str) -> keras.Model:
        network.load_weights(weights)
        return network

    for build in (as_it_is, stock):
        try:
            if build is not None:
                return {name: _values(variables) for name, variables in _layers(build(str(path)))}
        except Exception:  # Keras raises anything from KeyError to OSError for a file of another network
            network.set_weights(before)
    return {}


def _layers(network: keras.Model, around: LayerPath = ()) -> Iterator[tuple[LayerPath, list[keras.Variable]]]:
    """The weights of each layer, those of networks inside the network too."""
    for layer in network.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer, (*around, layer.name))
        else:
            yield from (((*around, name), weights) for name, weights in _own_weights(layer, layer.name))


def _own_weights(layer: keras.layers.Layer, name: str) -> Iterator[tuple[str, list[keras.Variable]]]:
    """The weights that a layer has itself, and those of the layers inside it."""
    parts = parts_of(layer)
    inside = {id(weight) for part in parts for weight in part.weights}
    if own := [weight for weight in layer.weights if id(weight) not in inside]:
        yield name, own
    for part in parts:
        yield from _own_weights(part, f"{name}/{part.name}")


def _values(variables: list[keras.Variable]) -> list[np.ndarray]:
    return [np.asarray(variable) for variable in variables]


def _fitting(wanted: dict[LayerPath, list[keras.Variable]], stored: Layers) -> dict[LayerPath, LayerPath]:
    """Which layers take their weights from which: of the file's networks the one with the most that fit."""
    best: dict[LayerPath, LayerPath] = {}
    for network in sorted({name[:length] for name in stored for length in range(len(name))}):
        inside: dict[str, LayerPath | None] = {}
        for name in stored:
            if name[: len(network)] == network:
                # Files of Keras 2 do not say which name is a network's, and which one that of a layer of layers.
                for own in {name[-1], "/".join(name[len(network) :])}:
                    inside[own] = None if own in inside else name  # two of one name are ambiguous
        fitting = {
            name: origin
            for name, weights in wanted.items()
            if (origin := inside.get(name[-1])) and _shapes(stored[origin]) == _shapes(weights)
        }
        best = max(best, fitting, key=len)
    return best


def _shapes(arrays) -> list[tuple[int, ...]]:
    return [tuple(array.shape) for array in arrays]


def _described(name: LayerPath, arrays) -> str:
    return "/".join(name) + " " + " ".join("x".join(map(str, shape)) for shape in _shapes(arrays))
