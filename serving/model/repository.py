"""The models that a server has: replaced by newer versions without a request noticing.

MODELS/name/VERSION/ --> Model --> Repository (by name and version)
"""

import logging
import threading
import time
from pathlib import Path
from typing import Any

from serving.common.artifact import GRAPH_FILE, INFO_FILE, versions
from serving.common.inputs import printable
from serving.model.batcher import Closed, Ticket
from serving.model.model import Model, ModelSettings

log = logging.getLogger("serving")


class UnknownModel(Exception):
    """No such model, or no such version of it, is served."""


class Repository:
    """MODELS, a folder of models, and what of it is served.

    `load` and `scan` follow the disk; requests read two dictionaries that are replaced, never changed.
    """

    def __init__(self, folder: Path, settings: ModelSettings):
        self.folder = folder
        self.settings = settings
        self._models: dict[str, dict[int, Model]] = {}
        self._refused: dict[tuple[str, int], tuple[tuple, str]] = {}
        self._unloaded: set[str] = set()
        self._skipped: set[str] = set()
        """Entries that cannot be read, and have been logged."""
        self._lock = threading.RLock()
        self._closed = False

    def models(self) -> list[Model]:
        """All that are served."""
        return [model for by_version in self._models.values() for model in by_version.values()]

    def versions(self, name: str) -> list[int]:
        return sorted(self._models.get(name, {}))

    def get(self, name: str, version: str | None = None) -> Model:
        """A model's newest version, or the one asked for.

        Raises:
            UnknownModel: it is not served. The name is looked up among those of models, never in the file system.
        """
        by_version = self._models.get(name)
        if not by_version:
            served = ", ".join(sorted(self._models)) or "none"
            # Triton's words, by which its clients know it.
            raise UnknownModel(f"Request for unknown model: {name!r} is not found, served are {served}")
        if version is None:
            return by_version[max(by_version)]
        for number, model in by_version.items():
            if str(number) == version:
                return model
        served = ", ".join(map(str, sorted(by_version)))
        raise UnknownModel(f"Request for unknown model: {name!r} version {version!r} is not found, served are {served}")

    def admit(self, name: str, version: str | None = None) -> tuple[Model, Ticket]:
        """A place in the queue of a model.

        Raises:
            UnknownModel, QueueFull: see `get` and `Batcher.admit`.
        """
        while True:
            model = self.get(name, version)
            try:
                return model, model.admit()
            except Closed:
                if self._closed:
                    raise
                # Replaced between the two lines: its successor is there already.

    def load(self) -> None:
        """Loads every model, for the first time.

        Raises:
            ValueError: there are none, or one has no version that can be served.
        """
        if not self.folder.is_dir():
            raise ValueError(f"there is no folder {self.folder}: give the one that holds the models, such as models")
        if versions(self.folder):
            raise ValueError(f"{self.folder} is a model: give the folder that holds it, {self.folder.resolve().parent}")
        names = self._names()
        if not names:
            raise ValueError(f"{self.folder} holds no models: export one with kerasseg export RUN --out ...")
        for name in names:
            self._update(name)
            if name not in self._models:
                raise ValueError(self._refusals(name)[-1])

    def scan(self) -> None:
        """Follows the disk: new versions are served once they are whole, proven and warm; deleted ones end."""
        try:
            names = self._names()
        except OSError as error:  # a network disk that is away for a moment ends no model
            log.warning("the repository cannot be read", extra={"reason": str(error)})
            return
        with self._lock:
            self._unloaded &= {*names, *self._skipped}
            known = {*names, *self._models, *(name for name, _ in self._refused)} - self._unloaded - self._skipped
        for name in known:
            self._update(name)

    def load_one(self, name: str) -> None:
        """Serves a model again that was unloaded, or its newest version at once.

        Raises:
            UnknownModel: the folder has no such model.
            ValueError: none of its versions can be served.
        """
        if name not in self._names():
            raise UnknownModel(f"failed to load {name!r}: there is no such model in the repository")
        self._unloaded.discard(name)
        self._update(name)
        if name not in self._models:
            raise ValueError(self._refusals(name)[-1])

    def unload(self, name: str) -> None:
        """Ends a model until `load_one`; requests that it has admitted are answered.

        Raises:
            UnknownModel: it is not served.
        """
        with self._lock:
            self.get(name)
            self._unloaded.add(name)
            self._replace(name, {})

    def index(self) -> list[dict[str, str]]:
        """Every version that is served, and those that were refused, with the reason."""
        ready = [
            {"name": model.info.name, "version": str(model.info.version), "state": "READY", "reason": ""}
            for model in self.models()
        ]
        refused = [
            {"name": name, "version": str(version), "state": "UNAVAILABLE", "reason": reason}
            for (name, version), (_, reason) in sorted(self._refused.items())
        ]
        unloaded = [
            {"name": name, "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}
            for name in sorted(self._unloaded)
        ]
        return ready + refused + unloaded

    def close(self) -> None:
        """Ends all models; returns once their last requests are answered."""
        self._closed = True
        models = self.models()
        for model in models:
            model.close()
        for model in models:
            model.join()

    def _names(self) -> list[str]:
        """The folders that hold versions. What cannot be read is served as before, and logged once."""
        names: list[str] = []
        skipped: set[str] = set()
        for child in self.folder.iterdir():
            try:
                if versions(child):
                    child.name.encode()  # it goes into all that is answered
                    names.append(child.name)
            except (OSError, ValueError) as error:
                skipped.add(child.name)
                if child.name not in self._skipped:
                    log.warning("not served", extra={"entry": printable(str(child)), "reason": _one_line(error)})
        self._skipped = skipped
        return sorted(names)

    def _update(self, name: str) -> None:
        with self._lock:
            current = self._models.get(name, {})
            on_disk = versions(self.folder / name)
            served: dict[int, Model] = {}
            for version in reversed(on_disk):
                if len(served) == self.settings.versions:
                    break
                model = current.get(version) or self._open(name, version)
                if model:
                    served[version] = model
            for key in [key for key in self._refused if key[0] == name and key[1] not in on_disk]:
                del self._refused[key]
            if served != current:
                self._replace(name, served)

    def _open(self, name: str, version: int) -> Model | None:
        """None where it is refused: half-written as yet, or not right. Looked at again once its files change."""
        folder = self.folder / name / str(version)
        state = _file_stamps(folder)
        if self._refused.get((name, version), (None,))[0] == state:
            return None
        started = time.perf_counter()
        try:
            model = Model(folder, self.settings)
        except Exception as error:  # what onnxruntime raises, out of memory for one, has no public base class
            reason = _one_line(error)
            self._refused[name, version] = state, reason
            log.warning("model refused", extra={"model": name, "version": version, "reason": reason})
            return None
        self._refused.pop((name, version), None)
        log.info(
            "model ready",
            extra={
                "model": name,
                "version": version,
                "provider": model.provider,
                "seconds": round(time.perf_counter() - started, 3),
            },
        )
        return model

    def _replace(self, name: str, served: dict[int, Model]) -> None:
        before = self._models.get(name, {})
        models = {other: by_version for other, by_version in self._models.items() if other != name}
        self._models = models | {name: served} if served else models
        for version, model in before.items():
            if served.get(version) is not model:
                model.close()
                log.info("model ended", extra={"model": name, "version": version})

    def _refusals(self, name: str) -> list[str]:
        return [reason for (refused, _), (_, reason) in sorted(self._refused.items()) if refused == name]


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()))


def _file_stamps(folder: Path) -> tuple[Any, ...]:
    """What changes when a file of an artifact is written."""
    state: list[Any] = []
    for file in (GRAPH_FILE, INFO_FILE):
        try:
            status = (folder / file).stat()
            state.append((status.st_mtime_ns, status.st_size, status.st_ino))
        except OSError:
            state.append(None)
    return tuple(state)
