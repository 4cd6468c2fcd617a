"""What the checks of fields and files share: conditions, choices, and lists in error messages."""

from collections.abc import Collection, Iterable
from typing import Any, Literal, get_args, get_origin, get_type_hints


def require(condition: bool, message: str) -> None:
    """ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def require_one_of(name: str, value: Any, choices: Collection[Any]) -> None:
    """ValueError that lists the choices unless the value is one of them."""
    require(value in choices, f"{name} must be one of {', '.join(map(str, choices))}; got {value!r}")


def require_choices(config: Any) -> None:
    """ValueError unless every `Literal` field of a dataclass holds one of its values."""
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal:
            require_one_of(name, getattr(config, name), get_args(hint))


def first_few(items: Iterable[object]) -> str:
    """The first three of some things, and how many more there are: `a, b, c and 4 more`."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")
