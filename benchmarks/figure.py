"""A figure as SVG without a plotting library: share of pictures below a threshold of the error."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 560, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 18, 44, 118
_LOW, _HIGH = -14, 0  # decades of the horizontal axis
# Colours that stay apart for colour-blind readers; the dashes tell the curves apart without any.
_STYLES = (("#b34700", "7 4"), ("#0067a5", "2 3"), ("#00664b", ""))


def threshold_figure(name: str, errors: Mapping[str, Sequence[float]]) -> str:
    """Mean squared errors by method to an SVG: thresholds 1e-14 to 1 across, shares 0 to 1 up."""
    drawn = {method: values for method, values in errors.items() if values}
    told = "; ".join(
        f"{method}: {_share(values, 1e-4):.0%} below 1e-4, {_share(values, 1e-3):.0%} below 1e-3"
        for method, values in drawn.items()
    )
    title = f"{name}: share of pictures recovered below a threshold of the mean squared error"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-labelledby="title desc" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#1a1a1a">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="desc">{escape(told)}</desc>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="26" font-size="15" font-weight="bold">{escape(name)}</text>',
        *_axes(),
    ]
    styles = dict(zip(errors, _STYLES, strict=True))
    for place, (method, values) in enumerate(drawn.items()):
        parts.extend(_curve(values, *styles[method]))
        parts.extend(_legend(place, f"{method} (n = {len(values)})", *styles[method]))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _share(values: Sequence[float], threshold: float) -> float:
    return sum(value < threshold for value in values) / len(values)


def _x(decade: float) -> float:
    clipped = min(max(decade, _LOW), _HIGH)
    return _LEFT + (clipped - _LOW) / (_HIGH - _LOW) * (_WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _axes() -> Iterator[str]:
    left, right, low, high = _x(_LOW), _x(_HIGH), _y(0), _y(1)
    for decade in range(_LOW, _HIGH + 1, 2):
        x = _x(decade)
        yield f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="#e2e2e2"/>'
        yield (
            f'<text x="{x:.1f}" y="{low + 18:.1f}" text-anchor="middle">10'
            f'<tspan dy="-5" font-size="10">{decade}</tspan></text>'
        )
    for step in range(6):
        share = step / 5
        y = _y(share)
        yield f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="#e2e2e2"/>'
        yield f'<text x="{left - 8:.1f}" y="{y + 4.5:.1f}" text-anchor="end">{share:.0%}</text>'
    yield f'<path d="M{left:.1f} {high:.1f}V{low:.1f}H{right:.1f}" fill="none" stroke="#555555"/>'
    middle = (left + right) / 2
    yield (
        f'<text x="{middle:.1f}" y="{low + 42:.1f}" text-anchor="middle">'
        "threshold of the mean squared error (pixels 0 to 1)</text>"
    )
    centre = (low + high) / 2
    yield (
        f'<text x="16" y="{centre:.1f}" text-anchor="middle" '
        f'transform="rotate(-90 16 {centre:.1f})">pictures below it</text>'
    )


def _curve(values: Sequence[float], colour: str, dash: str) -> Iterator[str]:
    """A step up at each picture's error; runs that did not end in numbers never step."""
    path = f"M{_x(_LOW):.1f} {_y(0):.1f}"
    finite = sorted(value for value in values if math.isfinite(value))
    for rank, value in enumerate(finite, start=1):
        decade = math.log10(value) if value > 0 else float(_LOW)
        if decade > _HIGH:
            break
        path += f"H{_x(decade):.1f}V{_y(rank / len(values)):.1f}"
    path += f"H{_x(_HIGH):.1f}"
    style = f' stroke-dasharray="{dash}"' if dash else ""
    yield f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2.2"{style}/>'


def _legend(place: int, text: str, colour: str, dash: str) -> Iterator[str]:
    y = _HEIGHT - 52 + 19 * place
    style = f' stroke-dasharray="{dash}"' if dash else ""
    yield f'<path d="M{_LEFT} {y}h38" stroke="{colour}" stroke-width="2.2"{style}/>'
    yield f'<text x="{_LEFT + 48}" y="{y + 4.5}">{escape(text)}</text>'
