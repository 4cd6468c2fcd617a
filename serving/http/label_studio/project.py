"""What a project of Label Studio wants: the brush of its label configuration, and its tasks, checked."""

import base64
import binascii
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self
from xml.etree import ElementTree

from serving.common.artifact import ModelInfo
from serving.http.tensor_codec import MARKS, MAX_JSON_BYTES, MAX_JSON_TOKENS, NUMBERS, read_json
from serving.service.failures import TooLarge
from serving.service.v2_protocol import require_type, shortened

MAX_CONFIG = 2**17
"""Characters of a label configuration. XML is read in one piece: with four times as many, and twice as much JSON,
health took up to 0.15 s next to three clients that sent such requests all the time, and now 0.05 s."""

FEWER = "select fewer tasks at a time"

NO_BASE64 = "an image in its task is not in base64"

MAX_LABELS = 1000
"""The most labels of a project."""

MAX_ADDRESS = 2**13
"""Characters of an image's address, unless it holds the image itself. They are kept until the image is there."""

MAX_NAME = 2**8
"""Characters of a name that answers repeat for each class, or each task."""

_DECODER = json.JSONDecoder(**NUMBERS)
_TASKS = re.compile(rb'\s*\{\s*"tasks"\s*:\s*\[\s*')
_CONFIG = re.compile(rb'"label_config"\s*:\s*')


@dataclass(frozen=True)
class Brush:
    """The tag BrushLabels of a project, and the image that it paints."""

    from_name: str
    to_name: str
    field: str
    """Name of the entry in a task's data that has the image's address."""
    labels: tuple[tuple[str, str], ...]
    """Value and alias of each label; the alias is the value where it has none."""

    @classmethod
    def from_config(cls, config: Any) -> Self:
        """The first BrushLabels with an Image of a label configuration.

        Args:
            config: XML, as a request has it.

        Raises:
            TooLarge: more than `MAX_CONFIG`.
            ValueError: it is not XML, or has no such tag.
        """
        text = require_type(config, str, "the project's label configuration")
        if len(text) > MAX_CONFIG:
            raise TooLarge(
                f"the project's label configuration has {len(text)} characters, at most {MAX_CONFIG} are read"
            )
        if "<!DOCTYPE" in text:  # entities, which grow when they are read, need one
            raise ValueError("the project's label configuration has a DOCTYPE: remove it")
        try:
            root = ElementTree.fromstring(text)
        except (ElementTree.ParseError, ValueError) as error:
            raise ValueError(f"the project's label configuration is not XML: {error}") from error
        images = {tag.get("name"): tag.get("value", "") for tag in root.iter("Image")}
        for tag in root.iter("BrushLabels"):
            name, to_names = tag.get("name"), tag.get("toName", "").split(",")
            to_name = next((name.strip() for name in to_names if name.strip() in images), None)
            if not name or to_name is None or not images[to_name].startswith("$"):
                continue
            labels = [(label.get("value"), label) for label in tag.iter("Label")]
            if len(labels) > MAX_LABELS:
                raise ValueError(f"the project has {len(labels)} labels, at most {MAX_LABELS} are read")
            pairs = tuple((value, label.get("alias") or value) for value, label in labels if value)
            return cls(name, to_name, images[to_name].removeprefix("$"), pairs)
        others = sorted({tag.tag for tag in root.iter() if tag.tag.endswith("Labels")})
        raise ValueError(
            "expected the tag BrushLabels with an Image in the project's labeling interface, got "
            f"{', '.join(others)[:100] or 'no labels'}: open this model's address in a browser for one to paste"
        )

    def written_labels(self, info: ModelInfo) -> dict[int, str]:
        """The project's label for each of the model's classes that it has, by name in any letter case.

        Raises:
            ValueError: it has none of them.
        """
        found: dict[str, str] = {}
        for value, alias in reversed(self.labels):  # so that the first of several counts
            found |= {alias.strip().casefold(): value, value.strip().casefold(): value}
        names = {index: name.strip().casefold() for index, name in enumerate(info.classes)}
        written = {index: found[name] for index, name in names.items() if name in found}
        if not written:
            raise ValueError(
                f"no label of the project ({_listed([value for value, _ in self.labels])}) is a class of "
                f"{info.name} ({_listed(info.classes)}): rename the labels in the project's labeling interface"
            )
        return written


@dataclass(frozen=True)
class Task:
    """A task of a project, as far as it is kept."""

    id: int
    image: str
    """The address of its image."""
    problem: str = ""
    """Why it has none that can be used."""

    @classmethod
    def from_json(cls, task: Any, field: str) -> Self:
        """A task of a request.

        Args:
            field: name of the entry in its data that has the image's address.

        Raises:
            ValueError: it has not the right form.
        """
        number = require_type(task, dict, "a task").get("id")
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"the id of a task: expected a whole number, got {shortened(number)}")
        address = require_type(task.get("data"), dict, f"data of task {number}").get(field)
        if not isinstance(address, str) or not address:
            got = shortened(address)
            return cls(number, "", f"task {number}: expected the address of an image in {field}, got {got}")
        if is_data_url(address):
            return cls(number, address) if address.isascii() else cls(number, "", NO_BASE64)
        if len(address) > MAX_ADDRESS:
            long = f"the address of an image has {len(address)} characters, at most {MAX_ADDRESS} are read"
            return cls(number, "", f"task {number}: {long}")
        return cls(number, address)


@dataclass(frozen=True)
class Wanted:
    """What is kept of a request for predictions while images are fetched."""

    brush: Brush
    tasks: tuple[Task, ...]
    is_cut: bool
    """Whether the request has more tasks, of which Label Studio is to ask one by one."""
    kept_bytes: int
    """At least what all that takes."""

    @classmethod
    def from_request(cls, request: dict[str, Any], is_cut: bool, info: ModelInfo, max_tasks: int) -> Self:
        """Reads a request.

        Args:
            request: its JSON.
            is_cut: whether this is only a part of it.
            info: the model that it is for.
            max_tasks: of more tasks, the first is kept.

        Raises:
            TooLarge: a label configuration of more than `MAX_CONFIG`.
            ValueError: it has not the right form, or project and model do not fit.
        """
        config: Any = request.get("label_config")
        brush = Brush.from_config(config)
        for name in (brush.field, brush.from_name, brush.to_name, *brush.written_labels(info).values()):
            if len(name) > MAX_NAME:
                raise ValueError(f"{shortened(name)}: a name of {len(name)} characters, at most {MAX_NAME} are taken")
        given = require_type(request.get("tasks"), list, "tasks")
        tasks = tuple(Task.from_json(task, brush.field) for task in given)
        if len(tasks) > max_tasks:
            tasks, is_cut = tasks[:1], True
        kept = sum(sys.getsizeof(text) for task in tasks for text in (task.image, task.problem))
        return cls(brush, tasks, is_cut, kept + 4 * len(config))  # a letter takes 4 bytes at most


def read_request(body: bytes) -> tuple[dict[str, Any], bool]:
    """The JSON object of a request, and whether tasks were left out of it.

    Of one that is too large to read, these are its first task and the label configuration.

    Label Studio then sends the tasks one by one (`serving.http.label_studio.endpoints.MAX_TASKS`).

    Raises:
        TooLarge: more JSON than is read, and not in the order in which Label Studio writes it.
        ValueError: it is not a JSON object.
    """
    try:
        if len(body) > MAX_JSON_BYTES:
            raise TooLarge(f"{len(body)} bytes of JSON, at most {MAX_JSON_BYTES} are read: {FEWER}")
        return require_type(read_json(body, MAX_JSON_TOKENS, FEWER), dict, "the request"), False
    except TooLarge:
        if (first := _first_task(body)) is None:
            raise
        return first


def _first_task(body: bytes) -> tuple[dict[str, Any], bool] | None:
    """What a request holds that begins with its tasks, and whether there are others.

    None where it does not begin with them, or the first is too large itself.
    """
    start, at = _TASKS.match(body), body.rfind(b'"label_config"')
    config = _CONFIG.match(body, at) if at >= 0 else None
    if not start or not config:
        return None
    try:
        readable = _readable(body, start.end())
        task, end = _DECODER.raw_decode(readable)
        text, _ = _DECODER.raw_decode(_readable(body, config.end()))
    except (ValueError, RecursionError):
        return None
    is_alone = readable[end : end + 100].lstrip().startswith("]")
    return {"tasks": [task], "label_config": text}, not is_alone


def _readable(body: bytes, start: int) -> str:
    """The JSON from there on, as far as it may be read in one piece."""
    tokens, end, step = 0, start, 2**14
    while end < len(body) and end - start < MAX_JSON_BYTES:
        tokens += sum(body.count(mark, end, end + step) for mark in MARKS)
        if tokens > MAX_JSON_TOKENS:
            break
        end += step
    return body[start:end].decode("utf-8", "ignore")  # the end may lie within a letter


def is_data_url(address: str) -> bool:
    """Whether an address holds the image itself."""
    return address.startswith("data:")


def contents_of_data_url(address: str, max_bytes: int) -> bytes:
    """The bytes in `data:image/png;base64,...`.

    Raises:
        TooLarge: more than `max_bytes`.
        ValueError: no base64.
    """
    head, _, data = address.partition(",")
    if not head.lower().endswith(";base64"):
        raise ValueError(f"{NO_BASE64}: {shortened(head)}")
    if len(data) > max_bytes // 3 * 4 + 4:
        raise TooLarge(f"an image in its task has more than {max_bytes} bytes")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{NO_BASE64}: {error}") from error


def _listed(names: Sequence[str]) -> str:
    """At most some of them, for a message."""
    text = ", ".join(names[:20])
    return text[:200] + (", ..." if len(names) > 20 or len(text) > 200 else "") if names else "there are none"
