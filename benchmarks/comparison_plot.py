"""The plot of a comparison: the score of each method with few labels, and the gain from more labels."""

import io
import statistics
from collections.abc import Mapping

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from benchmarks.comparison_runs import Comparison, Scores
from training.compare import BASELINE, mean_and_deviation


def labels_figure(config: Comparison, by_labels: Mapping[str, Scores], scores: Mapping[str, Scores]) -> Figure:
    """mIoU by number of labelled images: supervised as a line, the other methods as points above its `labeled`."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    counts = sorted(by_labels, key=config.count)

    if counts:
        means, deviations = zip(*(mean_and_deviation(by_labels[labeled].values()) for labeled in counts), strict=True)
        numbers, bars = [config.count(n) for n in counts], [d or 0.0 for d in deviations]
        axes.errorbar(numbers, means, bars, capsize=3, marker="o", label="supervised")
    others = [method for method in scores if method != BASELINE]
    for index, method in enumerate(others, start=1):
        mean, deviation = mean_and_deviation(scores[method].values())
        place = config.count(config.labeled) * 1.06**index  # side by side
        marker = "sD^vPX*<>hd"[index % 11 - 1]
        axes.errorbar(place, mean, deviation or 0.0, capsize=3, marker=marker, linestyle="", label=method)
    if others and config.labeled in by_labels:  # next to the points, the score that they are compared with
        baseline = statistics.mean(by_labels[config.labeled].values())
        axes.hlines(baseline, config.count(config.labeled), place, color="black", linewidth=1, linestyle="dotted")
    axes.set_xscale("log")
    axes.set_xlim(config.count(config.labeled) / 3, 1.2 * config.train_images)
    axes.set_xticks([config.count(n) for n in counts], [str(config.count(n)) for n in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"labelled images (all but supervised: {config.labeled}, side by side)")
    axes.set_ylabel("mIoU on val, %")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def svg(figure: Figure) -> bytes:
    """The figure as a file; equal figures give equal files."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "kerasseg"}):
        figure.savefig(file, format="svg", metadata={"Creator": None, "Date": None})
    return file.getvalue()
