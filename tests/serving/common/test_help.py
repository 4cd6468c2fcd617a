"""The pages of help, from configurations as the commands have them."""

import dataclasses
import sys
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
import tyro

from serving.common import cli

LONG = Literal[
    "a_long_choice", "another_long_choice", "a_third_long_choice", "a_fourth_long_choice", "a_fifth_long_choice", "z"
]


@dataclass(frozen=True, kw_only=True)
class Basics:
    """What is done. A second sentence is not shown."""

    size: int | None = None
    """How large, pixels; the line of the source
    that ends here does not end in the page."""
    cover: bool = False
    """Hide what is below."""


@dataclass(frozen=True)
class Shared:
    """Fields of all kinds (rates)."""

    rate: Annotated[float, tyro.conf.arg(name="learning-rate")] = 0.1
    """A number."""


@dataclass(frozen=True)
class Own(Shared):
    """Fields of one kind; the rest is not shown."""

    gamma: float = 0.5
    """A share, 0..1."""

    def __post_init__(self):
        if self.gamma > 1:
            raise ValueError(f"gamma must be in 0..1; got {self.gamma}")


@dataclass(frozen=True)
class Renamed:
    """How it is measured."""

    scales: tuple[float, ...] = (1.0, 2.0)
    """Factors."""


@dataclass(frozen=True, kw_only=True)
class Config(Basics):
    """Where it is written."""

    path: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The folder."""
    choice: LONG = "z"
    """Which of them."""
    window: tuple[int, int] | None = None
    """Height and width, pixels."""
    my_own: Own = dataclasses.field(default_factory=Own)
    renamed: Annotated[Renamed, tyro.conf.arg(name="")] = dataclasses.field(default_factory=Renamed)

    @property
    def decided_defaults(self):
        return {"--size": 321}


ALL = """usage: kerasseg try [flags] FOLDER

Tries it.
  name      a row of a table

  FOLDER
      The folder. (required)

What is done:
  --size INT
      How large, pixels; the line of the source that ends here does not end in
      the page. (default: 321)
  --cover, --no-cover
      Hide what is below. (default: False)

Where it is written:
  --choice {a_long_choice,another_long_choice,a_third_long_choice,a_fourth_long_choice,a_fifth_long_choice,z}
      Which of them. (default: z)
  --window INT INT
      Height and width, pixels.

--my-own.*: Fields of one kind:
  --my-own.gamma FLOAT
      A share, 0..1. (default: 0.5)

--my-own.*: Fields of all kinds (rates):
  --my-own.learning-rate FLOAT
      A number. (default: 0.1)

How it is measured:
  --scales [FLOAT [FLOAT ...]]
      Factors. (default: 1.0 2.0)
"""
COMMON = """usage: kerasseg try [flags] FOLDER

Tries it.
  name      a row of a table

  FOLDER
      The folder. (required)

What is done:
  --size INT
      How large, pixels; the line of the source that ends here does not end in
      the page. (default: 321)

--help-all shows all 7 flags.
"""


@pytest.fixture
def command(monkeypatch):
    """A command with common flags, started as `kerasseg try` in a terminal of 80 columns."""
    monkeypatch.setattr(cli, "started_as", ["kerasseg", "try"])
    monkeypatch.setenv("COLUMNS", "80")
    return cli.Command(
        lambda config: dataclasses.asdict(config),
        Config,
        "Tries it.\n  name      a row of a table",
        default=lambda arguments: Config(path=tyro.MISSING),
        common=lambda arguments: ["--size"],
        synonyms={"--imgsz": "--size is the size"},
    )


@pytest.mark.parametrize(("flag", "shown"), [("--help", COMMON), ("-h", COMMON), ("--help-all", ALL)])
@pytest.mark.parametrize("color", [False, True])
def test_a_page_has_groups_and_true_defaults(command, monkeypatch, capsys, flag, shown, color):
    if color:
        monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(SystemExit) as stop:
        command.run([flag])
    assert (stop.value.code, capsys.readouterr().out) == (0, shown)


@pytest.mark.parametrize(("columns", "widest"), [("30", 50), ("72", 71), ("300", 100)])
def test_a_page_is_as_wide_as_the_terminal_within_limits(command, monkeypatch, capsys, columns, widest):
    monkeypatch.setenv("COLUMNS", columns)
    long = dataclasses.replace(command, description="word " * 100)
    with pytest.raises(SystemExit):
        long.run(["--help"])
    widths = [len(line) for line in capsys.readouterr().out.splitlines()[2:]]
    assert widest - 5 < max(widths) <= widest


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["x", "--imgsz", "3"], "there is no --imgsz here: --size is the size"),
        (["x", "--imgsz=3"], "there is no --imgsz here: --size is the size"),
        (["x", "--my-own.gamma", "3"], "--my-own.gamma must be in 0..1; got 3.0; --help-all lists the flags"),
        (["x", "--size", "foo"], "--size must be a whole number; got 'foo'; --help-all lists the flags"),
    ],
)
def test_a_mistake_is_answered_by_our_flag(command, capsys, args, said):
    with pytest.raises(SystemExit) as stop:
        command.run(args)
    assert (stop.value.code, capsys.readouterr().err) == (2, f"error: {said}\n")


def test_a_command_names_itself_as_it_was_started(monkeypatch):
    assert cli.program() in (None, "python -m pytest")
    monkeypatch.setattr(cli, "started_as", ["kerasseg", "train"])
    assert cli.program() == "kerasseg train"


def test_a_text_is_printed_as_it_is(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["list"])
    with pytest.raises(SystemExit) as stop:
        cli.Command(lambda config: "a table\n  of two lines", Own, "").run()
    assert (stop.value.code, capsys.readouterr().out) == (0, "a table\n  of two lines\n")
