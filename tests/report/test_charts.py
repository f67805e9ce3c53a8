"""The charts, read back from their SVG."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from auditor.records import Curve, Measure
from auditor.report import charts

TOP, BOTTOM, LEFT, RIGHT = 12.0, 252.0, 70.0, 466.0  # the drawing inside 480 x 300


def polylines(markup):
    root = ET.fromstring(str(markup))
    return [
        [tuple(float(part) for part in pair.split(",")) for pair in line.get("points").split()]
        for line in root.iter("polyline")
    ]


def test_a_straight_decay_is_a_straight_line_on_a_logarithmic_axis():
    curve = Curve(0, "converged", (0, 10, 20), (1.0, 1e-3, 1e-6))
    (points,) = polylines(charts.residual_chart([curve], ident="c", name="a"))
    middle = ((LEFT + RIGHT) / 2, (TOP + BOTTOM) / 2)
    assert points == [(LEFT, TOP), middle, (RIGHT, BOTTOM)]


def test_the_lowest_restart_is_drawn_last_and_thick():
    curves = [Curve(i, "", (0, 1), (1.0, end)) for i, end in enumerate((0.1, 1e-5, 0.5))]
    markup = charts.residual_chart(curves, ident="c", name="a")
    assert len(polylines(markup)) == 3
    assert re.findall(r'<polyline class="([^"]+)"', markup) == ["line", "line", "line best"]
    assert "number 1, of 3 restarts drawn" in markup


@pytest.mark.parametrize("end", [0.0, math.nan, math.inf, 1e-300, 1e300])
def test_extreme_values_stay_inside_the_drawing(end):
    curves = [Curve(0, "", (0, 1, 2), (1.0, 0.5, end)), Curve(1, "", (3,), (0.2,))]
    for points in polylines(charts.residual_chart(curves, ident="c", name="a")):
        assert all(LEFT <= x <= RIGHT and TOP <= y <= BOTTOM for x, y in points)


def test_nothing_to_draw_is_no_chart():
    blank = [Curve(0, "", (), ()), Curve(1, "", (0,), (math.nan,))]
    assert charts.residual_chart(blank, ident="c", name="a") == ""
    assert charts.residual_chart([], ident="c", name="a") == ""
    # an attack that does not search has a point and no line
    assert charts.residual_chart([Curve(0, "", (0,), (0.1,))], ident="c", name="a") == ""
    assert charts.layer_chart([Measure("w", math.nan, "")], ident="c", name="a") == ""
    assert charts.layer_chart([], ident="c", name="a") == ""


def test_long_curves_are_thinned_but_keep_their_ends():
    steps = tuple(range(10_000))
    long = Curve(0, "", steps, tuple(1 / (1 + step) for step in steps))
    (points,) = polylines(charts.residual_chart([long], ident="c", name="a"))
    assert len(points) == 2400
    assert points[0] == (LEFT, TOP)
    assert points[-1][0] == RIGHT


def test_bars_grow_with_the_residual_and_keep_the_order_of_the_network():
    layers = [Measure("b.weight", 1e-2, ""), Measure("a.weight", 1e-4, ""), Measure("c", 0.0, "")]
    root = ET.fromstring(str(charts.layer_chart(layers, ident="c", name="a")))
    widths = [float(bar.get("width")) for bar in root.iter("rect") if bar.get("class") == "bar"]
    assert widths[0] == 480.0
    assert widths[0] > widths[1] > widths[2]
    names = [t.text for t in root.iter("text") if t.get("class") == "start mono"]
    assert names == ["b.weight", "a.weight", "c"]


def test_only_the_largest_tensors_get_a_bar():
    layers = [Measure(f"p{i}", 10.0 ** -(i % 50), "") for i in range(60)]
    shown = charts.shown_layers(layers)
    assert len(shown) == charts.MOST_BARS
    assert min(layer.value for layer in shown) == 10.0**-13
    assert [int(layer.name[1:]) for layer in shown] == [*range(14), *range(50, 60)]


@pytest.mark.parametrize(("score", "x"), [(0.0, 6.0), (5.0, 240.0), (10.0, 474.0)])
def test_the_marker_stands_at_the_score(score, x):
    markup = charts.score_scale(score, ident="s")
    assert f'd="M{x:.1f} 13' in markup


def test_names_are_escaped():
    layers = [Measure("<script>\x1b</script>", 0.1, "")]
    markup = charts.layer_chart(layers, ident="c", name='"><b>')
    assert "<script" not in markup
    assert "<b>" not in markup
    assert "&lt;script&gt;\\x1b" in markup
    ET.fromstring(str(markup))
