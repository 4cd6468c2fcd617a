"""The pages of `--help` and `--help-all`: a command's flags in groups, each with its default.

tyro writes what a flag is, and its values; the groups are the classes that a configuration inherits its fields from.
"""

import dataclasses
import re
import textwrap
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, NamedTuple, get_args, get_origin

INDENT = " " * 6
NARROWEST, WIDEST = 50, 100
"""Columns of a page; between them, as many as the terminal has."""


class Flag(NamedTuple):
    """A flag or an argument without one, as tyro describes it."""

    name: str
    """`--batch-size`, or an argument's metavar."""
    invocation: str
    """All its names and what values it takes: `--batch-size INT`."""
    text: str
    """One line."""


def page(
    printed: str,
    config: Any,
    program: str,
    description: str,
    common: Collection[str] | None,
    defaults: Mapping[str, Any],
    columns: int,
) -> str:
    """The page.

    Args:
        printed: what tyro prints for `--help`.
        config: the dataclass that the flags come from.
        common: the flags to show; all where None.
        defaults: values of flags that are None unless given, and then decided by others.
        columns: the terminal's.
    """
    width = max(NARROWEST, min(columns - 1, WIDEST))
    arguments, flags = read(printed)
    shown = [
        flag._replace(text=flag.text.replace("(default: None)", _decided(defaults.get(flag.name))).strip())
        for flag in flags
        if common is None or flag.name in common
    ]
    titles = dict(group_titles(config)) if dataclasses.is_dataclass(config) else {}
    groups: dict[str, list[Flag]] = {title: [] for title in titles.values()}
    for flag in shown:
        groups.setdefault(titles.get(flag.name, "Others:"), []).append(flag)
    lines = [" ".join(["usage:", program, "[flags]", *(argument.invocation for argument in arguments)]), ""]
    for paragraph in re.sub(r"(?<=\S)\n(?=\S)", " ", description.strip()).splitlines():
        lines += textwrap.wrap(paragraph, width, subsequent_indent=" " * _hanging(paragraph)) or [""]
    for title, group in {"": arguments, **groups}.items():
        lines += ["", *textwrap.wrap(title, width)] if group else []
        for flag in group:
            folded = textwrap.wrap(flag.text, width, initial_indent=INDENT, subsequent_indent=INDENT)
            lines += [f"  {flag.invocation}", *folded]
    if len(shown) < len(flags):
        lines += ["", f"--help-all shows all {len(flags)} flags."]
    return "\n".join(lines)


def _decided(value: Any) -> str:
    """The default that takes the place of None, whose meaning the text says otherwise."""
    return "" if value is None else f"(default: {value})"


def _hanging(paragraph: str) -> int:
    """Where the second column of a table's row begins; 0 for other lines."""
    row = re.match(r"  \S+ +(?=\S)", paragraph)
    return row.end() if row else 0


def read(printed: str) -> tuple[list[Flag], list[Flag]]:
    """Arguments without a flag, and flags without `--help`, from tyro's page without frames."""
    sections: dict[bool, list[Flag]] = {True: [], False: []}
    positional, begun = False, False
    lines = printed.splitlines()
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        if re.match(r" ?-{9}", after) and not line.startswith("  "):
            positional, begun = line.strip() == "positional arguments", False
            continue
        if re.fullmatch(r" *-{9,}", line.rstrip()):
            continue
        section = sections[positional]
        if start := re.match(r"  (\S.*?)(?:\s{2,}(\S.*))?$", line.rstrip()):
            name = re.split(r"[,\s]", start[1])[0]
            if positional or name.startswith("-"):
                begun = True
                section.append(Flag(name, start[1], start[2] or ""))
            elif begun:  # the rest of a long line; before the first flag it is about the group
                section[-1] = section[-1]._replace(invocation=section[-1].invocation + start[1])
        elif begun and re.match(r"\s{3,}\S", line):
            section[-1] = section[-1]._replace(text=f"{section[-1].text} {line}")
    for section in sections.values():
        section[:] = [
            Flag(name, _without_none(invocation), " ".join(text.split()))
            for name, invocation, text in section
            if name != "-h"
        ]
    return sections[True], sections[False]


def _without_none(invocation: str) -> str:
    """Without the word None among the values: the default, which nobody types."""
    invocation = re.sub(r"\{None\}\|\{(.*)\}$", r"\1", invocation)
    return invocation.replace("{None}|", "").replace("{None,", "{").replace(",None}", "}").replace(",None,", ",")


def group_titles(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The title of each flag's group: the first sentence about the class that has the field.

    Args:
        prefix: of the flags of a configuration within another one, `s4gan.`.
    """
    order = {base: index for index, base in enumerate(config.__mro__)}
    fields = dataclasses.fields(config)
    if prefix:  # what is special about it first
        fields = tuple(sorted(fields, key=lambda field: order[owner(config, field.name)]))
    for field in fields:
        kind, *marks = get_args(field.type) if get_origin(field.type) is Annotated else (field.type,)
        names = [mark.name for mark in marks if getattr(mark, "name", None) is not None]  # of tyro.conf.arg
        name = names[0] if names else field.name
        if dataclasses.is_dataclass(kind):
            yield from group_titles(kind, f"{prefix}{name}." if name else prefix)
        else:
            flag = f"--{prefix}{name}".replace("_", "-")
            yield flag, _title(owner(config, field.name), prefix.replace("_", "-"))


def owner(config: Any, name: str) -> type:
    """The class that defines a field of a dataclass."""
    return next(base for base in config.__mro__ if name in vars(base).get("__annotations__", ()))


def _title(base: type, prefix: str) -> str:
    words = base.__doc__ or ""
    if words.startswith(f"{base.__name__}("):  # what `dataclass` writes
        words = "Its own fields."
    sentence = re.split(r"(?<=[.;])\s", words, maxsplit=1)[0].rstrip(".;")
    return " ".join(f"{f'--{prefix}*: ' if prefix else ''}{sentence}".split()) + ":"
