import re

import numpy as np
import pytest

from training.plots import INK, MAX_POINTS, SERIES, by_class_figure, curves_figure, inline_svg, running_mean
from training.run_folder import Curve

CURVES = {"L_S": Curve([1, 2, 3], [4.0, 2.0, 1.0]), "L_fm": Curve([1, 2, 3], [0.03, 0.02, 0.01])}


def lines_of(figure):
    return {line.get_label(): line for line in figure.axes[0].lines if not line.get_label().startswith("_")}


def test_running_mean_cuts_its_window_at_the_ends():
    values = np.arange(80, dtype=float) ** 2  # a window of 2 to either side
    mean = running_mean(values)
    assert mean[0] == pytest.approx(np.mean([0, 1, 4]))
    assert mean[40] == pytest.approx(np.mean([38**2, 39**2, 40**2, 41**2, 42**2]))
    assert mean[79] == pytest.approx(np.mean([77**2, 78**2, 79**2]))


def test_running_mean_leaves_short_curves_alone():
    np.testing.assert_array_equal(running_mean(np.array([3.0, 1.0, 2.0])), [3, 1, 2])


def test_a_low_curve_is_drawn_higher_and_says_so():
    lines = lines_of(curves_figure(CURVES, magnify=True))
    assert list(lines) == ["L_S", "L_fm × 100"]
    np.testing.assert_allclose(lines["L_fm × 100"].get_ydata(), [3, 2, 1])
    np.testing.assert_allclose(lines["L_S"].get_ydata(), [4, 2, 1])


def test_an_all_zero_curve_is_not_magnified():
    curves = {"L_S": CURVES["L_S"], "L_st": Curve([1, 2], [0.0, 0.0])}
    assert list(lines_of(curves_figure(curves, magnify=True))) == ["L_S", "L_st"]


def test_a_logarithmic_plot_has_markers_and_leaves_zeros_out():
    figure = curves_figure({"grad_L_ce": Curve([1], [2.0]), "grad_L_st": Curve([1, 2], [0.0, 0.01])}, log=True)
    lines, axes = lines_of(figure), figure.axes[0]
    assert axes.get_yscale() == "log" and lines["grad_L_ce"].get_marker() == "o"
    low, high = axes.get_ylim()
    assert 0 < low <= 0.01 and high >= 2
    svg = inline_svg(figure, "")
    assert ">0.01</text>" in svg and "$" not in svg


def test_points_by_class_stand_at_their_values():
    panels = {
        "IoU": {"IoU, val": [0.5, None, 0.25]},
        "rank correlation": {"val": [0.1, -0.5, 1], "labelled": [0, 0, 0]},
    }
    figure = by_class_figure(panels, ["sky", "pole", "right as it is"])
    left, right = figure.axes
    (points,) = left.lines
    np.testing.assert_allclose(points.get_xdata(), [0.5, np.nan, 0.25])
    np.testing.assert_array_equal(points.get_ydata(), [0, 1, 2])
    assert left.get_xlim()[0] == 0 and right.get_xlim()[0] < -0.5
    assert [text.get_text() for text in left.get_yticklabels()] == ["sky", "pole", "right as it is"]
    assert left.get_ylim()[0] > left.get_ylim()[1]  # the first class on top
    assert len({(line.get_color(), line.get_marker()) for axes in figure.axes for line in axes.lines}) == 3


def test_curves_differ_in_more_than_colour():
    many = {f"L_{i}": Curve([1, 2], [i, i + 1]) for i in range(7)}
    looks = {(line.get_color(), str(line._dash_pattern)) for line in lines_of(curves_figure(many)).values()}
    assert len(looks) == 7


def test_a_long_curve_becomes_means_over_neighbours():
    steps = np.arange(4 * MAX_POINTS)
    line = lines_of(curves_figure({"L": Curve(steps, steps * 2.0)}))["L"]
    assert len(line.get_xdata()) == MAX_POINTS
    np.testing.assert_allclose(line.get_xdata()[:2], [1.5, 5.5])
    np.testing.assert_allclose(line.get_ydata()[:2], [3, 11])


def test_rules_and_raw_values_fit_into_the_plot():
    low = curves_figure({"L_D": Curve([1, 2], [0.01, 0.01])}, rules={"guessing": 0.69})
    assert low.axes[0].get_ylim()[1] > 0.69
    assert curves_figure(CURVES, y_range=(0, 1)).axes[0].get_ylim() == (0, 1)


def test_all_zero_curves_can_be_drawn():
    figure = curves_figure({"L_st": Curve([1, 2], [0.0, 0.0])}, smooth=True, magnify=True)
    assert figure.axes[0].get_ylim() == (0, 1)


def test_inline_svg_takes_the_colours_of_the_page_and_names_nothing_outside():
    svg = inline_svg(curves_figure(CURVES), 'falls to "1" & <less>')
    assert svg.startswith('<svg role="img" aria-label="falls to &quot;1&quot; &amp; &lt;less>"')
    assert f"var(--ink, {INK})" in svg and f"var(--series-1, {SERIES[0]})" in svg
    assert "http" not in svg
    assert ">L_fm</text>" in svg
    assert "DejaVu" not in svg and "font-size: 10.5px" in svg


def test_inline_svg_keeps_the_ids_that_are_referred_to_and_no_others():
    svg = inline_svg(curves_figure(CURVES), "")
    ids = re.findall(r' id="([^"]+)"', svg)
    referred = re.findall(r'(?:href="#|url\(#)([^")]+)', svg)
    assert len(ids) == len(set(ids))
    assert set(ids) == set(referred) != set()


def test_equal_figures_give_equal_files():
    assert inline_svg(curves_figure(CURVES), "") == inline_svg(curves_figure(CURVES), "")


def test_a_dollar_sign_is_no_formula():
    assert ">a $x_1$ b</text>" in inline_svg(curves_figure({"a $x_1$ b": CURVES["L_S"]}), "")
