"""Leakage against strength, one small chart a defence, as inline SVG.

As in charts.py: classes and presentation attributes only, everything escaped, and a title and a
description on each. The table beside the charts says the same in numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from auditor.records import WhatIf, WhatIfRow
from auditor.report.words import number, power_of_ten, printable

RECOGNISABLE = 20.0  # dB: from here on a sample counts as recovered
_WIDTH, _HEIGHT = 480.0, 240.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 18.0, 14.0, 48.0
_STEP = 20  # dB from one line of the grid to the next
_LOW, _HIGH = 40, 120  # dB: the scale ends somewhere between


@dataclass(frozen=True)
class LeakageChart:
    """One defence: its chart, and what it is called."""

    defence: str  # as a heading
    drawing: Markup


def leakage_charts(what_if: WhatIf | None) -> tuple[LeakageChart, ...]:
    """A chart for each defence that was tried at two strengths or more and attacked."""
    if what_if is None:
        return ()
    bare = [row for row in what_if.rows if row.defence == "none"]
    kinds = dict.fromkeys(row.defence for row in what_if.rows if row.defence != "none")
    charts = []
    for place, kind in enumerate(kinds):
        own = [row for row in what_if.rows if row.defence == kind]
        if len(own) >= 2 and any(row.psnr is not None for row in own):
            name = "DP-SGD" if kind == "dp-sgd" else kind[0].upper() + kind[1:]
            charts.append(LeakageChart(name, _chart([*bare, *own], name, f"leakage-{place}")))
    return tuple(charts)


def _chart(rows: Sequence[WhatIfRow], name: str, ident: str) -> Markup:
    values = [v for row in rows for v in (row.psnr, row.bound_psnr) if v is not None]
    top = min(max(_STEP * math.ceil(max(values) / _STEP), _LOW), _HIGH)
    parts = [*_grid(top), *_names(rows)]
    parts += _series(rows, [row.bound_psnr for row in rows], top, bound=True)
    parts += _series(rows, [row.psnr for row in rows], top, bound=False)
    frame = Markup(
        '<svg class="chart" role="img" aria-labelledby="{0}-title {0}-desc" '
        'width="{1:.0f}" height="{2:.0f}" viewBox="0 0 {1:.0f} {2:.0f}">'
        '<title id="{0}-title">{3}</title><desc id="{0}-desc">{4}</desc>{5}</svg>'
    )
    title = f"Leakage by strength: {printable(name)}"
    return frame.format(ident, _WIDTH, _HEIGHT, title, _told(rows), Markup("").join(parts))


def _told(rows: Sequence[WhatIfRow]) -> str:
    """The chart in words."""
    reached = [
        f"{printable(row.setting)}: "
        + ("no input rebuilt" if row.psnr is None else f"{number(row.psnr)} dB")
        + ("" if row.bound_psnr is None else f", bound {number(row.bound_psnr)} dB")
        for row in rows
    ]
    return f"PSNR in dB, higher leaks more, recognisable from 20 dB. {'; '.join(reached)}."


def _series(
    rows: Sequence[WhatIfRow], values: Sequence[float | None], top: int, *, bound: bool
) -> list[Markup]:
    points = [
        (_x(place, len(rows)), _y(value, top))
        for place, value in enumerate(values)
        if value is not None
    ]
    style, dot, dashes = ("line limit", "ring", "5 4") if bound else ("line best", "dot", "none")
    line = Markup('<polyline class="{}" stroke-dasharray="{}" points="{}" fill="none"/>')
    text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    circle = Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4"/>')
    return [line.format(style, dashes, text), *(circle.format(dot, x, y) for x, y in points)]


def _grid(top: int) -> list[Markup]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for level in range(0, top + 1, _STEP):
        y = _y(level, top)
        style = "axis" if level in (0, RECOGNISABLE) else "grid"
        parts += [_rule(_LEFT, y, right, y, style), _text(_LEFT - 8, y + 4, str(level), "end")]
    turned = Markup(
        '<text class="middle strong" transform="rotate(-90)" x="{:.0f}" y="13">{}</text>'
    )
    return [*parts, turned.format(-(_TOP + bottom) / 2, "PSNR, dB")]


def _names(rows: Sequence[WhatIfRow]) -> list[Markup]:
    bottom = _HEIGHT - _BOTTOM
    places = [
        _text(_x(place, len(rows)), bottom + 18, strength_words(row), "middle")
        for place, row in enumerate(rows)
    ]
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return [*places, _text(middle, _HEIGHT - 8, "strength, stronger to the right", "middle strong")]


def strength_words(row: WhatIfRow) -> str:
    """The strength of a row, short."""
    if row.defence == "none":
        return "none"
    if row.defence == "top-k":
        return f"{100 * row.strength:g} %"
    decade = math.log10(row.strength) if row.strength > 0 else 0.5
    return power_of_ten(round(decade)) if decade == round(decade) < 0 else number(row.strength)


def _x(place: int, count: int) -> float:
    return _LEFT + (place + 0.5) / count * (_WIDTH - _LEFT - _RIGHT)


def _y(value: float, top: int) -> float:
    share = min(max(value, 0.0), top) / top
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _text(x: float, y: float, words: str, style: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(style, x, y, words)


def _rule(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    line = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return line.format(style, x1, y1, x2, y2)
