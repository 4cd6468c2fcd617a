"""What a person at the terminal sees of a result, on stderr."""

import sys
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from training.report_notes import percent

HEAD = ("class", "IoU", "labelled pixels", "share of them")


def score_rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """For each class its IoU, how many pixels of the label maps have it, and their share of all; the mean at the end.

    Args:
        result: what `training.evaluation.Measurement` returns.
    """
    pixels = result["per_class_pixels"]
    total = sum(pixels.values())
    for name, iou in result["per_class_IoU"].items():
        share = pixels[name] / total if total else None
        yield name, percent(iou), f"{pixels[name]:,}", percent(share)
    yield "mean", percent(result["mIoU"]), f"{total:,}", ""


def print_scores(result: dict[str, Any]) -> None:
    """Prints `score_rows` as a table: with lines and colours in a terminal, as plain columns elsewhere."""
    *rows, mean = score_rows(result)
    title = f"{result['protocol']['split']}, {result['protocol']['images']} images, {result['protocol']['name']}"
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title)
        for index, column in enumerate(HEAD):
            table.add_column(column, justify="right" if index else "left")
        for row in rows:
            table.add_row(*row)
        table.add_section()
        table.add_row(*mean, style="bold")
        Console(file=sys.stderr, markup=False).print(table)  # class names may have brackets
        return
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, mean, strict=True)]
    print(title, file=sys.stderr)
    for name, *cells in (HEAD, *rows, mean):
        aligned = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print("  ".join([name.ljust(widths[0]), *aligned]).rstrip(), file=sys.stderr)


def print_evaluation(step: int, steps: int, result: dict[str, Any]) -> None:
    """Prints the score while a training runs, above its progress bar."""
    tqdm.write(f"step {step} of {steps}: val mIoU {percent(result['mIoU'])}", file=sys.stderr)
