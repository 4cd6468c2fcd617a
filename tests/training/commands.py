"""The commands, called as a shell calls them, at a size that takes seconds."""

import json
from pathlib import Path

import pytest

import tests.backbone  # noqa: F401 (--backbone tiny)
from training import run

TINY = [
    "--backbone", "tiny", "--weights", "none", "--head-channels", "8",
    "--crop", "24", "32", "--batch-size", "2", "--log-every", "1", "--no-gradient-norms",
]  # fmt: skip
NARROW = {
    name: [f"--{'s4gan' if name == 'mlmt' else name}.discriminator-channels", "4"]
    for name in ("advsemiseg", "s4gan", "mlmt", "latent", "dualgan")
}
"""Flags of a method that make its critics as small."""


def call(main, arguments: list[str], capsys) -> tuple[int, dict | None, str]:
    """(exit status, the JSON object on the last line of stdout if there is one, stderr)."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    lines = out.strip().splitlines()
    return stop.value.code or 0, json.loads(lines[-1]) if lines else None, err


def train(dataset: Path, out: Path, capsys, *flags: str, method: str = "mlmt", steps: int = 4):
    """`python -m training.run` on two labelled images of a small folder."""
    arguments = ["--method", method, "--dataset", dataset, "--labeled", "2", "--out", out, "--steps", steps]
    narrow = [] if any("branch" in str(flag) for flag in flags) else NARROW.get(method, [])  # no s4gan there
    return call(run.main, [*arguments, *TINY, *narrow, *flags], capsys)


def error_line(stderr: str) -> str:
    """The one line that tells a mistake: the last of stderr, and no traceback before it."""
    assert "Traceback" not in stderr
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("error: "), stderr
    return last


def logged(run: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
