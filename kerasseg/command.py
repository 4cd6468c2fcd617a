"""`kerasseg`: one command for all parts, each of which is imported when it is asked for.

`kerasseg train` is what `python -m training.run` is in a checkout, and so on.
"""

import difflib
import importlib
import importlib.metadata
import platform
import sys
from typing import NamedTuple, NoReturn

from kerasseg import __version__
from kerasseg.tensorflow_setup import missing
from serving.common import cli
from serving.common.gpus import gpu_names, has_gpu

ROOMS = cli.__name__.removesuffix("serving.common.cli")
"""What the names of `training`, `export` and `serving` begin with: nothing in a checkout, `kerasseg.` in a wheel."""


class Part(NamedTuple):
    """A subcommand."""

    command: str
    """Module and name of its `serving.common.cli.Command`."""
    help: str
    """A line of the overview."""
    extra: str
    """The extra of kerasseg that brings its packages."""


PARTS = {
    "import": Part("training.import_data:COMMAND", "turn what annotation tools write into a dataset folder", "train"),
    "check": Part("training.check_data:COMMAND", "check a dataset folder: each problem with its fix", "train"),
    "train": Part("training.run:COMMAND", "train a model from labelled and unlabelled images", "train"),
    "evaluate": Part("training.evaluate:COMMAND", "measure a run on any split of a dataset", "train"),
    "report": Part("training.report:COMMAND", "write the report of a run again", "train"),
    "compare": Part("training.compare:COMMAND", "compare finished runs in a table", "train"),
    "export": Part("export.run:COMMAND", "write a run as a model that needs no TensorFlow", "export"),
    "segment": Part("serving.batch.command:COMMAND", "segment images with an exported model", "serve"),
    "label": Part("serving.batch.command:LABEL", "find the images to label next, with predictions to correct", "serve"),
    "serve": Part("serving.run:COMMAND", "serve exported models over HTTP and gRPC", "serve"),
    "methods": Part("training.lists:METHOD_LIST", "list the methods, and when to use each", "train"),
    "recipes": Part("training.lists:RECIPE_LIST", "list the recipes for --recipe", "train"),
    "backbones": Part("training.lists:BACKBONE_LIST", "list the image networks for --backbone", "train"),
}
SHELLS = ("bash", "zsh", "fish")


def main() -> NoReturn:
    name, *arguments = sys.argv[1:] or ["--help"]
    with cli.command():
        if name in ("-h", "--help", "--help-all"):
            cli.show(overview())
        elif name == "--version":
            cli.show("\n".join(versions()))
        elif name == "completion":
            cli.show(completion(arguments))
        else:
            cli.started_as[:] = ["kerasseg", name]
            sys.argv[1:] = arguments  # as the command's own module would find it
            load(name).run()
    sys.exit()


def overview() -> str:
    """The page of `kerasseg --help`."""
    rows = {name: part.help for name, part in PARTS.items()} | {
        "completion": f"print a script that completes commands and flags, for {', '.join(SHELLS)}",
        "--version": "print the versions of kerasseg and of what it runs on, and the device",
    }
    listed = "\n".join(f"  {name:<{max(map(len, rows))}}  {words}" for name, words in rows.items())
    about = "From a few labelled images and many unlabelled ones to a segmentation model that is served."
    return f"usage: kerasseg COMMAND ...\n\n{about}\n\n{listed}\n\nkerasseg COMMAND --help shows a command's flags."


def load(name: str) -> cli.Command:
    """The command of a subcommand, imported.

    Raises:
        ValueError: there is no such subcommand, or packages that it needs are not installed.
    """
    if name not in PARTS:
        near = difflib.get_close_matches(name, PARTS, n=1)
        hint = f" (perhaps {near[0]}?)" if near else ""
        raise ValueError(f"there is no command {name!r}{hint}; kerasseg --help lists them")
    module, _, attribute = PARTS[name].command.partition(":")
    try:
        return getattr(importlib.import_module(ROOMS + module), attribute)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith(("kerasseg", "training", "export", "serving")):
            raise
        raise ValueError(str(missing(error, PARTS[name].extra))) from error


def versions() -> list[str]:
    """A line for each version, from the packages' metadata, and one for the device; nothing of them is imported."""
    found = {"kerasseg": __version__, "Python": platform.python_version()}
    for title, packages in {
        "TensorFlow": ("tensorflow",),
        "Keras": ("keras",),
        "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    }.items():
        found[title] = next(filter(None, map(_version, packages)), "not installed")
    found["device"] = device()
    return [f"{title:<12}{value}" for title, value in found.items()]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def device() -> str:
    """What models run on: the GPUs by name, or the CPU."""
    if not has_gpu():
        return f"CPU ({platform.machine()})"
    return ", ".join(gpu_names()) or 'an NVIDIA GPU (pip install "kerasseg[serve]" to see which)'


def completion(arguments: list[str]) -> str:
    """A shell's script that completes the subcommands whose packages are installed, and their flags.

    Raises:
        ValueError: there is no such shell.
    """
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise ValueError(f"expected kerasseg completion with one of {', '.join(SHELLS)}; got {' '.join(arguments)!r}")
    commands = {}
    for name in PARTS:
        try:
            commands[name] = load(name)
        except ValueError as error:
            print(f"without {name}: {error}", file=sys.stderr)
    return cli.completion(arguments[0], "kerasseg", commands)
