"""Words that CONTRIBUTING ("Words") keeps out of docstrings, help, comments, messages, pages and docs.

Help texts are docstrings of dataclass fields.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("kerasseg", "training", "export", "serving", "benchmarks")

INSTEAD = {
    r"\AOf\b": "say what it is: 'Seed of every draw.', not 'Of every draw.'",
    r"\btold\b|\btell(?:s|ing)?\b(?! \w+ apart| apart)": "says, names, shows, knows",
    r"\banew\b": "again",
    r"\balone\b": "only",
    r"\ball the same\b": "still, anyway",
    r"\bbeside\b": "next to, in addition to, with",
    r"\bbears?\b": "has, carries",
    r"\bwhat (?:\w+ ){1,4}comes? to\b": "name the result",
    r"\bgo(?:es)? by\b": "uses, depends on",
    r"\bha(?:s|ve) to say\b": "says",
    r"[Pp]icture": "image",
    r"\bsegmentation mask\b|\blabel mask\b": "label map",
    r"\bweak labels?\b|\bimage-wise labels?\b": "image-level labels",
}
"""Pattern, and what to write instead."""


def faults(text: str) -> list[str]:
    """The patterns of `INSTEAD` in a text, each with what to write instead."""
    found = {pattern: re.search(pattern, text) for pattern in INSTEAD}
    return [f"{match[0]!r}: write {INSTEAD[pattern]}" for pattern, match in found.items() if match]


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring, message and comment: comments, and string literals of more than one word."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("# ")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


@pytest.mark.parametrize("room", ROOMS)
def test_words_of_the_code(room):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {fault}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for line, text in texts(path.read_text())
        for fault in faults(text)
    ]
    assert not wrong, "\n".join(wrong)


PAGES = ("README.md", "CHANGELOG.md", "training/*.jinja", "docs/**/*.md", "examples/*.ipynb") + tuple(
    f"serving/http/page/*.{suffix}" for suffix in ("html", "css", "js")
)


@pytest.mark.parametrize("pattern", PAGES)
def test_words_of_pages(pattern):
    pages = {
        path.relative_to(ROOT): re.sub(
            r"^```.*?^```|`[^`\n]+`|\{%.*?%\}|<style>.*?</style>", "", path.read_text(), flags=re.M | re.S
        )
        for path in sorted(ROOT.glob(pattern))
    }
    assert pages
    wrong = [f"{page}: {fault}" for page, text in pages.items() for fault in faults(text)]
    assert not wrong, "\n".join(wrong)


def test_a_bad_text_is_found():
    bad = '"""Of the file."""\nx = f"{y} is told alone"  # a picture beside it'
    found = [fault for _, text in texts(bad) for fault in faults(text)]
    assert len(found) == 5, found


def test_rooms_are_all_there():
    there = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert there == {*ROOMS, "tests"}
