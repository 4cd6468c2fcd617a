"""An artifact, `MODELS/name/VERSION/`: `model.onnx`, and `model.json`, which says what it is and proves it.

The one place that knows the fields of `model.json`; `export` writes through it, the server and batch jobs
read through it. Needs the standard library only.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from serving.common.inputs import failed_copy, read_text

SCHEMA = 1
"""Raised when a field changes meaning; an artifact of another schema is refused."""

MAX_CLASSES = 255
"""Labels are bytes, and 255 is no class."""

MAP_DATATYPES = ("UINT8", "FP16", "FP32")
"""The datatypes of maps that can be answered, as the V2 inference protocol calls them."""

FEATURES = "features"
"""The graph's last output, which is no map: a vector for each image, see `ModelInfo.features`."""

GRAPH_FILE = "model.onnx"
INFO_FILE = "model.json"


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of the graph; `datatype` and `shape` as the V2 inference protocol writes them."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 where any size goes."""
    description: str

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Self:
        return cls(**fields | {"shape": tuple(fields["shape"])})


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Contents of `model.json`."""

    name: str
    version: int
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    """RGB, 0..255, one per class."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    precision: str
    evaluation: dict[str, Any]
    """The run's result: mIoU, per-class IoU, pixel accuracy, protocol."""
    provenance: dict[str, Any]
    """Where it comes from: run settings, package versions, commit, split fingerprint, time of the export."""
    sha256: str
    """The checksum of `model.onnx`."""
    parity: dict[str, Any]
    """The report of `export.parity`; `parity["passed"]` decides whether the model may be used."""
    working_size: int | None = None
    """The longer side, pixels, to which the graph shrinks larger images; it brings answers back to their own size. None
    where it takes images as they are."""
    features: int | None = None
    """D, the length of the vectors in the graph's output `features`, FP32 (N,D): the mean over the image of the
    backbone's deepest features. Images that look alike to the network have similar ones. None where it has none."""
    schema: int = SCHEMA

    @property
    def all_outputs(self) -> tuple[str, ...]:
        """The names of the maps, and `FEATURES` where the graph has them."""
        return (*(tensor.name for tensor in self.outputs), *((FEATURES,) if self.features else ()))

    def require_features(self) -> None:
        """ValueError unless the model gives features."""
        if self.features is None:
            raise ValueError(
                f"{self.name}/{self.version} gives no features, which say what images look like: export its run again; "
                "a network of your own must be cut into backbone and head (kerasseg.segmenters.cut)"
            )

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises ValueError, or what else Python does of JSON of other types, when `text` is not a `model.json` of this
        schema: all that is written by hand comes through here."""
        fields = json.loads(text)
        json.dumps(fields, ensure_ascii=False).encode()  # a half of a surrogate pair could not be written in any answer
        if not isinstance(fields, dict) or fields.get("schema") != SCHEMA:
            found = fields.get("schema") if isinstance(fields, dict) else None
            raise ValueError(f"it has schema {found}, this kerasseg reads schema {SCHEMA}")
        known = {field.name for field in dataclasses.fields(cls)}
        for later in ("working_size", "features"):  # models of before these fields have none
            fields.setdefault(later, None)
        if known != fields.keys():
            raise ValueError(f"its fields differ from the schema in {', '.join(sorted(known ^ fields.keys()))}")
        info = cls(
            **fields
            | {
                "classes": tuple(fields["classes"]),
                "palette": tuple(tuple(color) for color in fields["palette"]),
                "inputs": tuple(Tensor.from_json(tensor) for tensor in fields["inputs"]),
                "outputs": tuple(Tensor.from_json(tensor) for tensor in fields["outputs"]),
            }
        )
        info._check()
        return info

    def _check(self) -> None:
        """Raises ValueError where a field is not what everybody relies on."""
        for field, kind in {"name": str, "precision": str, "sha256": str, "evaluation": dict, "provenance": dict,
                            "parity": dict}.items():  # fmt: skip
            if not isinstance(value := getattr(self, field), kind):
                raise ValueError(f"its {field} is {value!r:.60}, no {'text' if kind is str else 'JSON object'}")
        if not _whole(self.version) or self.version < 1:
            raise ValueError(f"its version is {self.version!r:.60}: expected a whole number from 1 on")
        if not 1 <= len(self.classes) <= MAX_CLASSES or not all(isinstance(name, str) for name in self.classes):
            raise ValueError(f"its {len(self.classes)} classes are not 1 to {MAX_CLASSES} names")
        for field in ("working_size", "features"):
            if (value := getattr(self, field)) is not None and not (_whole(value) and value >= 1):
                raise ValueError(f"its {field} is {value!r:.60}: expected a whole number from 1 on, or null")
        if len(self.palette) != len(self.classes):
            raise ValueError(f"its palette has {len(self.palette)} colours for {len(self.classes)} classes")
        for color in self.palette:
            if len(color) != 3 or not all(_whole(value) and 0 <= value <= 255 for value in color):
                raise ValueError(f"its palette has the colour {list(color)!r:.60}: expected red, green, blue in 0..255")
        for tensor in (*self.inputs, *self.outputs):
            if not (isinstance(tensor.name, str) and isinstance(tensor.description, str)):
                raise ValueError(f"its tensor {tensor.name!r:.60} has no text as name or description")
            if tensor.datatype not in MAP_DATATYPES or not all(map(_whole, tensor.shape)):
                raise ValueError(
                    f"its tensor {tensor.name} is {tensor.datatype!r:.60} {list(tensor.shape)!r:.60}: expected "
                    f"{', '.join(MAP_DATATYPES)}, and whole numbers"
                )
        shapes = {tensor.name: (tensor.datatype, len(tensor.shape)) for tensor in self.outputs}
        for name, datatype in (("labels", "UINT8"), ("confidence", "FP32")):
            if shapes.get(name) != (datatype, 3):
                raise ValueError(f"its outputs have no {name}, {datatype} (N,H,W), which every model gives")
        if len(shapes) < len(self.outputs):
            raise ValueError("it names an output twice")


@dataclass(frozen=True)
class Artifact:
    """A version folder and what its `model.json` says."""

    folder: Path
    info: ModelInfo

    @property
    def graph(self) -> Path:
        return self.folder / GRAPH_FILE

    def require_logits(self) -> None:
        """ValueError unless the model gives logits, from which windows are put together."""
        if any(tensor.name == "logits" for tensor in self.info.outputs):
            return
        if self.info.working_size is not None:
            raise ValueError(
                f"{self.info.name} shrinks larger images to {self.info.working_size} pixels by itself: give it whole "
                "images, without --window, or use a model that was trained with --size native"
            )
        raise ValueError(
            f"{self.folder} gives no logits, from which windows are put together: export it with "
            "kerasseg export --logits"
        )


def versions(model_folder: Path) -> list[int]:
    """The versions in `MODELS/name`, ascending; empty when the folder does not exist."""
    if not model_folder.is_dir():
        return []
    # isdecimal would also accept "٣" and "007", two names for one version.
    return sorted(int(child.name) for child in model_folder.iterdir() if child.is_dir() and _is_version(child.name))


def open_artifact(path: str | Path) -> Artifact:
    """Opens `MODELS/name` (its newest version) or `MODELS/name/3`; refuses what is not proven to be right.

    Raises:
        ValueError: no artifact there; another schema; the parity report is missing or failed; `model.onnx` is
            not the file the report speaks of.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(
            f"there is no model at {path}: give the folder that kerasseg export wrote, such as models/name"
        )
    if not _is_version(folder.name):
        found = versions(folder)
        if not found:
            inside = sorted(child.name for child in folder.iterdir() if _holds_versions(child))
            hint = f"did you mean {folder / inside[0]}?" if inside else "export one with kerasseg export"
            raise ValueError(f"{path} holds no model version (a numbered folder): {hint}")
        folder = folder / str(found[-1])
    again = "export the run again with kerasseg export"
    if not (folder / INFO_FILE).is_file():  # be it a pipe, which would hold up its reader
        raise ValueError(f"{folder} has no {INFO_FILE}: {again}")
    try:
        info = ModelInfo.from_json(read_text(folder / INFO_FILE))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder / INFO_FILE} cannot be used: {error}; {again}") from error
    if not info.parity:
        raise ValueError(f"{folder} carries no parity report, so nothing shows that its graph is right: {again}")
    if info.parity.get("passed") is not True:
        raise ValueError(f"the parity report of {folder} says the graph differs from the trained model: {again}")
    artifact = Artifact(folder, info)
    if not artifact.graph.is_file():
        raise ValueError(f"{folder} has no {GRAPH_FILE}: {again}")
    if sha256_of(artifact.graph) != info.sha256:
        if known := failed_copy(artifact.graph):
            raise ValueError(f"{artifact.graph} is {known.what}, and no graph: {known.remedy}")
        raise ValueError(f"{artifact.graph} is not the graph its parity report speaks of (sha256 differs): {again}")
    return artifact


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _holds_versions(folder: Path) -> bool:
    try:
        return bool(versions(folder))
    except OSError:  # of somebody else
        return False


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdecimal() and not name.startswith("0")
