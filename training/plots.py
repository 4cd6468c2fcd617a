"""The figures of a run: data in, matplotlib `Figure` out, and the form in which a web page carries one.

Nothing here goes through `pyplot`, so no window, no global figure list, and any thread may draw.
"""

import io
import re
from collections.abc import Collection, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from training.run_folder import Curve

# Colours of text and series on white. In a page each becomes a CSS variable (see `inline_svg`), so that the
# page decides, and dark mode works. Series differ by line style as well: colour is never the only cue. There
# is one style less than colours, so that a seventh curve does not look like the first.
INK, GRID = "#24292f", "#d0d7de"
SERIES = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#9a6700", "#bf3989")
LINE_STYLES: tuple[str | tuple, ...] = (
    "-",
    (0, (6, 2)),
    (0, (1.5, 1.5)),
    (0, (6, 2, 1.5, 2)),
    (0, (10, 3)),
)

MAX_POINTS = 400  # more are not visible at this width, and make a page heavy

_STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "text.parse_math": False,  # names of runs and classes may hold a dollar sign
    "svg.fonttype": "none",  # text stays text: searchable, in the page's own font
    "svg.hashsalt": "kerasseg",  # the same figure gives the same file
}


def curves_figure(
    curves: Mapping[str, Curve],
    *,
    smooth: bool = False,
    percent: bool = False,
    magnify: bool = False,
    log: bool = False,
    y_range: tuple[float, float] | None = None,
    areas: Collection[str] = (),
    rules: Mapping[str, float] | None = None,
) -> Figure:
    """Draws curves over steps into one plot.

    Args:
        curves: by name; each keeps its place in the order of colours and line styles.
        smooth: draw a running mean over the faint raw curve. Without it, points are marked if there are few.
        percent: values are shares, shown in %.
        magnify: draw a curve that would be at the bottom 10, 100, ... times as high, and say so in its name.
        log: a logarithmic y axis; zeros are left out.
        y_range: limits of the y axis; None for limits from 0 that fit all but the outliers of raw curves.
        areas: names of curves to draw as a filled area.
        rules: horizontal lines to compare with, by name.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 3.1), layout="constrained")
        axes = figure.add_subplot()
        thinned = {name: _thinned(curve) for name, curve in curves.items()}
        bold = {name: running_mean(values) if smooth else values for name, (_, values) in thinned.items()}
        top = max(values.max() for values in bold.values())
        height = max((rules or {}).values(), default=0)
        for number, (name, (steps, values)) in enumerate(thinned.items()):
            factor = _magnification(bold[name].max(), top) if magnify else 1
            height = max(height, factor * bold[name].max(), factor * np.percentile(values, 98))
            label = name if factor == 1 else f"{name} × {factor}"
            style = _series(number)
            if name in areas:
                axes.fill_between(steps, 0, bold[name], color=style["color"], alpha=0.25, linewidth=0, label=label)
                continue
            if smooth:
                axes.plot(steps, factor * values, color=style["color"], linewidth=0.8, alpha=0.3)
            marker = None if smooth or len(steps) > 40 else "o"
            axes.plot(steps, factor * bold[name], marker=marker, ms=3.5, label=label, **style)
        for name, value in (rules or {}).items():
            axes.axhline(value, color=INK, linewidth=1, linestyle=(0, (2, 3)), label=name)

        if log:
            axes.set_yscale("log", nonpositive="mask")
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))  # the usual one writes mathematics, see above
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(*(y_range or (0, height * 1.05 or 1)))
            axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        if percent:
            axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        axes.grid(axis="x", visible=False)
        _, names = axes.get_legend_handles_labels()
        # The width holds about 56 letters; the sample line before a name takes 7 of them.
        one_row = sum(len(name) + 7 for name in names) <= 56
        columns = len(names) if one_row else max(1, 56 // (max(map(len, names)) + 7))
        figure.legend(loc="outside upper left", ncols=columns, handlelength=2.6, columnspacing=1.4)
        return figure


def _series(number: int) -> dict[str, Any]:
    """The colour and style of the line with that number."""
    return {"color": SERIES[number % len(SERIES)], "linestyle": LINE_STYLES[number % len(LINE_STYLES)]}


def reliability_figure(confidences: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Share of right pixels by confidence, and how many pixels have it.

    On the dotted diagonal, confidence equals accuracy.

    Args:
        confidences: `kerasseg.metrics.Reliability.summary` of each confidence, by name.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 4.2), layout="constrained")
        axes, shares = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        axes.plot((0, 1), (0, 1), color=INK, linewidth=1, linestyle=(0, (2, 3)), label="confidence = accuracy")
        for number, (name, summary) in enumerate(confidences.items()):
            bins = [entry for entry in summary["bins"] if entry["right"] + entry["wrong"]]
            counts = np.array([entry["right"] + entry["wrong"] for entry in bins])
            x = [entry["confidence"] for entry in bins]
            axes.plot(x, [entry["right"] for entry in bins] / counts, marker="o", ms=3.5, label=name, **_series(number))
            shares.plot(x, counts / counts.sum(), **_series(number))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_ylabel("share of pixels right")
        shares.set_xlabel("confidence")
        shares.set_ylabel("share of\nall pixels")
        shares.set_ylim(bottom=0)
        for each in (axes, shares):
            each.yaxis.set_major_locator(MaxNLocator(4))
            each.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
        figure.legend(loc="outside upper left", ncols=1 if len(confidences) > 1 else 2)
        return figure


def roc_figure(curves: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Receiver operating characteristics: `kerasseg.metrics.roc` of each score, by name."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.plot((0, 1), (0, 1), color=INK, linewidth=1, linestyle=(0, (2, 3)), label="guessing")
        for number, (name, curve) in enumerate(curves.items()):
            label = name if curve["auc"] is None else f"{name}, area {curve['auc']:.3f}"
            axes.plot(curve["false_positive_rate"], curve["true_positive_rate"], label=label, **_series(number))
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("share of absent classes taken for present")
        axes.set_ylabel("share of present classes found")
        figure.legend(loc="outside upper left", ncols=1)
        return figure


def heat_map(values: np.ndarray, rows: Collection[str], columns: str, title: str) -> Figure:
    """Values 0..1 (R,C) as shades, a row for each of `rows`; columns are numbered."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 1.4 + 0.22 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        shades = LinearSegmentedColormap.from_list("shades", ("#ffffff", SERIES[0]))
        image = axes.pcolormesh(values, cmap=shades, vmin=0, vmax=1, edgecolors=GRID, linewidth=0.3)
        axes.set_yticks(np.arange(len(rows)) + 0.5, list(rows))
        axes.set_xticks(np.arange(values.shape[1]) + 0.5, [str(index) for index in range(values.shape[1])])
        axes.tick_params(axis="x", labelsize=7)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_xlabel(columns)
        figure.colorbar(image, ax=axes, label=title)
        return figure


def confusion_figure(shares_KK: np.ndarray, classes: Collection[str]) -> Figure:
    """A confusion matrix as shades, rows truth.

    Args:
        shares_KK: shares 0..1 of the pixels of each class, by predicted class.
    """
    with matplotlib.rc_context(_STYLE):
        side = 1.8 + 0.26 * len(classes)
        figure = Figure(figsize=(side + 0.8, side), layout="constrained")
        axes = figure.add_subplot()
        shades = LinearSegmentedColormap.from_list("shades", ("#ffffff", SERIES[0]))
        image = axes.pcolormesh(shares_KK, cmap=shades, vmin=0, vmax=1, edgecolors=GRID, linewidth=0.3)
        places = np.arange(len(classes)) + 0.5
        axes.set_yticks(places, list(classes))
        axes.set_xticks(places, list(classes), rotation=90)
        axes.invert_yaxis()
        axes.set_aspect("equal")
        axes.grid(visible=False)
        axes.set_xlabel("predicted")
        axes.set_ylabel("in the label map")
        figure.colorbar(image, ax=axes, label="share of the class's pixels", shrink=0.7)
        return figure


def by_class_figure(panels: Mapping[str, Mapping[str, Collection[float | None]]], rows: Collection[str]) -> Figure:
    """Values of each class as points, in panels side by side.

    Args:
        panels: for each panel, by the name of its axis, its series by name: a value for each of `rows`, or None.
        rows: names of the classes.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 1.4 + 0.24 * len(rows)), layout="constrained")
        columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        places = np.arange(len(rows))
        number = 0
        for axes, (title, series) in zip(columns, panels.items(), strict=True):
            for name, values in series.items():
                x = np.array([np.nan if value is None else value for value in values])
                color, marker = SERIES[number % len(SERIES)], "osD^vP"[number % 6]
                axes.plot(x, places, linestyle="", marker=marker, ms=5, color=color, label=name)
                number += 1
            low = min((v for values in series.values() for v in values if v is not None), default=0)
            axes.set_xlim(min(0, 1.1 * low), 1.02)
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.set_xlabel(title)
        columns[0].set_yticks(places, list(rows))
        columns[0].invert_yaxis()
        figure.legend(loc="outside upper left", ncols=2)
        return figure


def _magnification(highest: float, top: float) -> int:
    """The power of ten that lifts a curve lying below a tenth of the plot's height; 1 for all others."""
    if not 0 < highest < top / 10:
        return 1
    return 10 ** int(np.log10(top / highest))


def running_mean(values: np.ndarray) -> np.ndarray:
    """The mean over a centred window, a twentieth of the curve long; at both ends the window is cut off."""
    half = len(values) // 40
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centers = np.arange(len(values))
    low, high = np.maximum(centers - half, 0), np.minimum(centers + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _thinned(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_POINTS` points: means over neighbours."""
    pieces = min(len(curve.steps), MAX_POINTS)
    axes = (np.array_split(np.asarray(axis, np.float64), pieces) for axis in curve)
    steps, values = (np.array([part.mean() for part in parts]) for parts in axes)
    return steps, values


def png(figure: Figure) -> bytes:
    """The figure as a PNG file with 150 dots per inch."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return file.getvalue()


def inline_svg(figure: Figure, description: str) -> str:
    """The figure as an `<svg>` element for an HTML page: transparent, in its font, coloured by its variables.

    The page may set `--ink`, `--grid`, `--series-1` ...; without them the figure has its colours on white.

    Args:
        description: what a screen reader says instead.
    """
    file = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        # No metadata: it names a date, which would make equal figures differ, and outside addresses.
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=no_metadata)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    series = {f"series-{number}": color for number, color in enumerate(SERIES, start=1)}
    for name, color in {"ink": INK, "grid": GRID, **series}.items():
        svg = svg.replace(color, f"var(--{name}, {color})")
    svg = re.sub(r" font-family: [^;\"]*;?", "", svg)
    # HTML does not need these name spaces.
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    # A page holds several figures; only ids that something refers to may stay, and those differ by content.
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in referred else "", svg)
    label = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
