"""The examples in docstrings give what they say."""

import doctest
import importlib
import inspect
import pkgutil

import keras
import numpy as np
import pytest

import kerasseg
from kerasseg.segmenters.backbones import BACKBONES
from tests import backbone  # noqa: F401 (the tiny backbone)


def examples() -> dict[str, doctest.DocTest]:
    """The docstrings with examples, by name."""
    names = [info.name for info in pkgutil.walk_packages(kerasseg.__path__, "kerasseg.")]
    modules = [importlib.import_module(name) for name in names if ".builders" not in name]
    known = {"kerasseg": kerasseg, "keras": keras, "np": np}
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for module in modules for test in finder.find(module, globs=known) if test.examples]
    return {test.name: test for test in found}


EXAMPLES = examples()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_gives_what_it_says(name, eager, monkeypatch):
    monkeypatch.setitem(BACKBONES, "mobilenet_v2", BACKBONES["tiny"])  # seconds in place of minutes
    printed: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(EXAMPLES[name], out=printed.append)
    assert not printed, "".join(printed)


def test_every_class_at_the_top_has_an_example():
    classes = {value for name in kerasseg.__all__ if inspect.isclass(value := getattr(kerasseg, name))}
    assert {f"{one.__module__}.{one.__qualname__}" for one in classes} <= EXAMPLES.keys()
