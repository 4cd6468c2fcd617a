"""The methods, by the names that `--method` takes."""

import importlib
from typing import TYPE_CHECKING, TypeVar

from kerasseg.layers import register

if TYPE_CHECKING:
    from kerasseg.methods.method import Method

METHODS: dict[str, "type[Method]"] = {}
"""By `registry_name`, in the order in which they were registered."""

M = TypeVar("M", bound="type[Method]")


def register_method(method: M) -> M:
    """Class decorator: adds a method to `METHODS` by its `registry_name`, and lets Keras find it in saved models.

    A method outside of this package is one file with this decorator; `--method my_package.my_file:MyMethod` imports it.

    Raises:
        ValueError: it has no `registry_name` of its own, or one that another method has.
    """
    name = vars(method).get("registry_name")
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"{method.__name__} needs a registry_name, one word that flags can begin with; got {name!r}")
    if name in METHODS and origin(METHODS[name]) != origin(method):
        raise ValueError(f"{method.__name__} is called {name!r}, as {METHODS[name].__name__} is: choose another name")
    METHODS[name] = register(method)
    return method


def origin(method: "type[Method]") -> tuple[str, str]:
    """Where a class was written: a notebook's cell that runs again defines the same one."""
    return method.__module__, method.__qualname__


def find_method(name: str, flag: str = "--method") -> "type[Method]":
    """The method that `--method` names: one of `METHODS`, or `package.module:Class`, which is imported first.

    Raises:
        ValueError: there is none.
    """
    if name in METHODS:
        return METHODS[name]
    module, colon, class_name = name.partition(":")
    if not colon:
        raise ValueError(
            f"{flag} must be one of {', '.join(METHODS)}, or package.module:Class for one of your own; got {name!r}"
        )
    try:
        method = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{flag} {name} cannot be imported ({error}): start the command in the folder that holds the package, or "
            "add that to PYTHONPATH"
        ) from error
    if method not in METHODS.values():
        raise ValueError(f"{flag} {name} is no registered method: write @register_method above a subclass of Method")
    return method
