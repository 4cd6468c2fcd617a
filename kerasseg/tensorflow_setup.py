"""What happens when TensorFlow and Keras are imported after kerasseg, which imports neither by itself.

TensorFlow starts with oneDNN, and its notes about missing GPUs stay off the user's screen. Once Keras is there, all of
kerasseg is imported, so that `keras.saving.load_model` knows its classes without custom objects.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# By itself TensorFlow uses oneDNN on newer CPUs only (those with VNNI, bfloat16 or AMX instructions). oneDNN has the
# gradient that `AtrousConv2D` asks for, and is faster.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

MISSING = '{name} is not installed: pip install "kerasseg[{extra}]"'
"""What to do where a package is missing."""


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Drops what is written to file descriptor 2 meanwhile: TensorFlow writes there before its settings apply."""
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing can be written
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class ImportWatch(MetaPathFinder):
    """Runs the code of TensorFlow, Keras and the modules of kerasseg, and acts before and after.

    Python asks it first for every module. It finds them where Python would, and is done once Keras is there.
    """

    def __init__(self) -> None:
        self.depth = 0
        """How many of these modules are being imported, one within another: none of them is complete."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in ("tensorflow", "keras") and not name.startswith("kerasseg."):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: self._run(execute, module)  # type: ignore[method-assign]
        return spec

    def _run(self, execute: Callable[[ModuleType], None], module: ModuleType) -> None:
        self.depth += 1
        try:
            if module.__name__ == "tensorflow":
                with silenced():
                    execute(module)
                    look_for_gpus(module)
            else:
                execute(module)
        except ModuleNotFoundError as error:
            if error.name in ("tensorflow", "keras"):
                raise missing(error, "train") from None
            raise
        finally:
            self.depth -= 1
        if not self.depth and "keras" in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            importlib.import_module("kerasseg.everything")


def missing(error: ModuleNotFoundError, extra: str) -> ModuleNotFoundError:
    """The same error, in words that say which extra of kerasseg brings the package."""
    return ModuleNotFoundError(MISSING.format(name=error.name, extra=extra), name=error.name)


def look_for_gpus(tensorflow: ModuleType) -> None:
    """TensorFlow writes notes about them when it first looks."""
    tensorflow.config.list_physical_devices()


def watch_imports() -> None:
    """Begins to watch; what has been imported already is dealt with at once."""
    if tensorflow := sys.modules.get("tensorflow"):
        with silenced():
            look_for_gpus(tensorflow)
    if sys.modules.get("keras"):
        importlib.import_module("kerasseg.everything")
    else:
        sys.meta_path.insert(0, ImportWatch())
