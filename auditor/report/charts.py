"""Charts of the report as inline SVG: text in, escaped markup out, colours from the style sheet.

A content security policy forbids `style` attributes, so everything is a class or a presentation
attribute. Every chart has a title and a description; the tables beside it are the template's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from auditor.records import Curve, Measure
from auditor.report.words import BANDS, number, power_of_ten, printable

MOST_CURVES = 64
MOST_BARS = 24
_POINTS = 2400  # of all curves of one chart together: about 30 KB

_WIDTH, _HEIGHT = 480.0, 300.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 70.0, 14.0, 12.0, 48.0


@dataclass(frozen=True)
class _Plane:
    """From steps and residuals to the units of the drawing; the y axis is logarithmic."""

    first: float  # steps
    last: float
    low: int  # decades
    high: int

    def x(self, step: float) -> float:
        share = (step - self.first) / (self.last - self.first)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Zero has no logarithm: it lies on the bottom line, like anything below it."""
        decade = math.log10(value) if value > 0 else -math.inf
        share = (min(max(decade, self.low), self.high) - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def drawable(curves: Sequence[Curve]) -> tuple[Curve, ...]:
    """The curves with their finite points only, lowest end first; those with none are left out."""
    kept = []
    for curve in curves:
        pairs = zip(curve.steps, curve.values, strict=True)
        points = [(step, value) for step, value in pairs if math.isfinite(value)]
        if points:
            steps, values = zip(*points, strict=True)
            kept.append(Curve(curve.restart, curve.status, steps, values))
    return tuple(sorted(kept, key=lambda curve: curve.values[-1]))


def residual_chart(curves: Sequence[Curve], *, ident: str, name: str) -> Markup:
    """One line a restart, the one with the lowest end in front. Empty without two finite points.

    `ident` is unique on the page; `name` says in the title whose residual it is.
    """
    best_first = drawable(curves)[:MOST_CURVES]
    if all(len(curve.steps) < 2 for curve in best_first):  # nothing moved, or nothing is finite
        return Markup("")
    plane = _plane(best_first)
    budget = max(8, _POINTS // len(best_first))
    lines = [_line(curve, plane, budget, "line") for curve in best_first[:0:-1]]
    best = best_first[0]
    parts = [_grid(plane), *lines, _line(best, plane, budget, "line best"), _end(best, plane)]
    ends = f"{number(best.values[0])} to {number(best.values[-1])}"
    others = "" if len(best_first) == 1 else f", of {len(best_first)} restarts drawn"
    return _svg(
        ident=ident,
        height=_HEIGHT,
        title=f"Residual of {printable(name)} by step",
        text=f"Logarithmic scale, lower explains the dump better. The lowest restart, number "
        f"{best.restart}{others}, goes from {ends} in {best.steps[-1]} steps.",
        parts=parts,
    )


def _plane(curves: Sequence[Curve]) -> _Plane:
    positive = [value for curve in curves for value in curve.values if value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    if any(value <= 0 for curve in curves for value in curve.values):
        low -= 1
    high = max(high, low + 1)
    stride = _stride(low, high)
    low = high - stride * -(-(high - low) // stride)  # a labelled line at the top and the bottom
    first = min(curve.steps[0] for curve in curves)
    last = max(curve.steps[-1] for curve in curves)
    return _Plane(first, max(last, first + 1), low, high)


def _stride(low: int, high: int) -> int:
    """Decades from one labelled line to the next, for about six of them."""
    return -(-(high - low) // 6)


def _line(curve: Curve, plane: _Plane, budget: int, style: str) -> Markup:
    pairs = zip(curve.steps, curve.values, strict=True)
    points = [(plane.x(step), plane.y(value)) for step, value in pairs]
    if len(points) > budget:
        # evenly spaced, the first and the last among them
        stride = (len(points) - 1) / (budget - 1)
        points = [points[round(i * stride)] for i in range(budget)]
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<polyline class="{}" points="{}" fill="none"/>').format(style, text)


def _end(best: Curve, plane: _Plane) -> Markup:
    x, y = plane.x(best.steps[-1]), plane.y(best.values[-1])
    dot = Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(x, y)
    # below the point, where a falling line leaves room, unless the axis is there
    text_y = y + 22 if y + 28 < _HEIGHT - _BOTTOM else y - 12
    return dot + _text(max(x, _LEFT + 80), text_y, f"restart {best.restart}", "end strong halo")


def _grid(plane: _Plane) -> Markup:
    decades = range(plane.low, plane.high + 1, _stride(plane.low, plane.high))
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for decade in decades:
        y = plane.y(10.0**decade)
        parts += [_rule(_LEFT, y, right, y, "grid")]
        parts += [_text(_LEFT - 8, y + 4, power_of_ten(decade), "end")]
    parts += [_rule(_LEFT, bottom, right, bottom, "axis")]
    for step, anchor in ((plane.first, "start"), (plane.last, "end")):
        parts += [_text(plane.x(step), bottom + 18, number(step), anchor)]
    parts += [_text((_LEFT + right) / 2, _HEIGHT - 8, "step", "middle strong")]
    turned = Markup(
        '<text class="middle strong" transform="rotate(-90)" x="{:.0f}" y="13">{}</text>'
    )
    parts += [turned.format(-(_TOP + bottom) / 2, "relative residual")]
    return Markup("").join(parts)


# --------------------------------------------------------------------------- bars


def shown_layers(layers: Sequence[Measure]) -> tuple[Measure, ...]:
    """The tensors that get a bar: the largest finite residuals, in the order of the network."""
    finite = [layer for layer in layers if math.isfinite(layer.value)]
    if len(finite) <= MOST_BARS:
        return tuple(finite)
    least = sorted((layer.value for layer in finite), reverse=True)[MOST_BARS - 1]
    return tuple(layer for layer in finite if layer.value >= least)[:MOST_BARS]


def layer_chart(layers: Sequence[Measure], *, ident: str, name: str) -> Markup:
    """One bar a tensor on a logarithmic scale. Empty when no residual is finite."""
    chosen = shown_layers(layers)
    if not chosen:
        return Markup("")
    positive = [layer.value for layer in chosen if layer.value > 0] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    plane = _Plane(0, 1, low - 1, max(high, low))
    parts = [_bar(layer, row, plane) for row, layer in enumerate(chosen)]
    worst = max(chosen, key=lambda layer: layer.value)
    return _svg(
        ident=ident,
        height=30.0 * len(chosen) + 8,
        title=f"Residual of {printable(name)} by tensor",
        text=f"Logarithmic bars from {power_of_ten(plane.low)}, shorter explains the dump better. "
        f"The largest is {printable(worst.name, 60)} with {number(worst.value)}.",
        parts=parts,
    )


def _bar(layer: Measure, row: int, plane: _Plane) -> Markup:
    top = 30.0 * row
    decade = math.log10(layer.value) if layer.value > 0 else plane.low
    share = (decade - plane.low) / (plane.high - plane.low)
    bar = Markup('<rect class="{}" x="0" y="{:.0f}" width="{:.1f}" height="8" rx="2"/>')
    return Markup("").join(
        (
            _text(0, top + 15, printable(layer.name, 40), "start mono"),
            _text(_WIDTH, top + 15, number(layer.value), "end"),
            bar.format("track", top + 21, _WIDTH),
            bar.format("bar", top + 21, max(share * _WIDTH, 2.0)),
        )
    )


# --------------------------------------------------------------------------- scale


def score_scale(score: float, *, ident: str) -> Markup:
    """The score on the scale from 0 to 10, with the bands named below."""
    parts = []
    ends = [start for _, start in BANDS[1:]] + [10.0]
    for (band, start), end in zip(BANDS, ends, strict=True):
        left, right = _WIDTH * start / 10, _WIDTH * end / 10
        segment = Markup('<rect class="{}" x="{:.1f}" y="14" width="{:.1f}" height="8"/>')
        parts += [segment.format(f"band-{band}", left, right - left - 2)]
        at, anchor = (_WIDTH, "end") if band == "critical" else (left, "start")
        parts += [_text(at, 38, band, anchor)]
    x = min(max(_WIDTH * score / 10, 6.0), _WIDTH - 6)
    parts += [Markup('<path class="marker" d="M{:.1f} 13 l-6 -11 h12 z"/>').format(x)]
    return _svg(
        ident=ident,
        height=42.0,
        title=f"Score {score:.1f} on a scale from 0 to 10",
        text="Low begins above 0, medium at 4, high at 7, critical at 9.1.",
        parts=parts,
    )


# --------------------------------------------------------------------------- pieces


def _svg(*, ident: str, height: float, title: str, text: str, parts: Sequence[Markup]) -> Markup:
    frame = Markup(
        '<svg class="chart" role="img" aria-labelledby="{0}-title {0}-desc" '
        'width="{1:.0f}" height="{2:.0f}" viewBox="0 0 {1:.0f} {2:.0f}">'
        '<title id="{0}-title">{3}</title><desc id="{0}-desc">{4}</desc>{5}</svg>'
    )
    return frame.format(ident, _WIDTH, height, title, text, Markup("").join(parts))


def _text(x: float, y: float, words: str, style: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(style, x, y, words)


def _rule(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    line = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return line.format(style, x1, y1, x2, y2)
