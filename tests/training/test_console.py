"""The table of a result, in a terminal and in a file."""

import io
import re
import sys

import pytest

from training.console import print_evaluation, print_scores

RESULT = {
    "mIoU": 0.4,
    "per_class_IoU": {"background": 0.8, "[cat]": 0.0, "ray": None},
    "per_class_pixels": {"background": 1500, "[cat]": 500, "ray": 0},
    "protocol": {"name": "native", "split": "val", "images": 3},
}
PLAIN = """val, 3 images, native
class          IoU  labelled pixels  share of them
background  80.0 %            1,500         75.0 %
[cat]        0.0 %              500         25.0 %
ray              -                0          0.0 %
mean        40.0 %            2,000
"""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_file_gets_plain_columns(capsys):
    print_scores(RESULT)
    assert capsys.readouterr() == ("", PLAIN)


def test_nothing_measured_is_a_table_too(capsys):
    none = {"mIoU": None, "per_class_IoU": {"cat": None}, "per_class_pixels": {"cat": 0}}
    print_scores(RESULT | none)
    assert capsys.readouterr().err.splitlines()[2:] == [
        "cat      -                0              -",
        "mean     -                0",
    ]


def test_a_terminal_gets_the_same_in_a_frame(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    print_scores(RESULT)
    text = re.sub(r"\x1b\[[0-9;]*m", "", sys.stderr.getvalue())
    cells = [re.split(r"\s*[│┃]\s*", line.strip())[1:-1] for line in text.splitlines() if line.strip()[0] in "│┃"]
    assert cells == [re.split(r"\s{2,}", line) + [""] * (line[:4] == "mean") for line in PLAIN.splitlines()[1:]]


@pytest.mark.parametrize(("score", "said"), [(0.4321, "43.2 %"), (None, "-")])
def test_an_evaluation_is_a_line_on_stderr(capsys, score, said):
    print_evaluation(500, 1500, {"mIoU": score})
    assert capsys.readouterr() == ("", f"step 500 of 1500: val mIoU {said}\n")
