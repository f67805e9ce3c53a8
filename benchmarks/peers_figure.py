"""A figure as SVG without a plotting library: PSNR against seconds, one line a method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 560, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 18, 44, 98
_STYLES = (("#b34700", "7 4"), ("#00664b", ""))
_STEP = 2.0  # dB between lines of the grid

Course = Sequence[tuple[float, float]]  # (seconds, dB)


def course_figure(name: str, courses: Mapping[str, Course]) -> str:
    """Points (seconds, dB) by method to an SVG."""
    every = [point for course in courses.values() for point in course]
    far = max((x for x, _ in every), default=1.0)
    low = _STEP * min((y // _STEP for _, y in every), default=0.0)
    high = _STEP * max((y // _STEP + 1 for _, y in every), default=1.0)

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + x / far * (_WIDTH - _LEFT - _RIGHT)
        return across, _HEIGHT - _BOTTOM - (y - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    told = "; ".join(
        f"{method}: " + ", ".join(f"{y:.1f} dB at {x:g} s" for x, y in course)
        for method, course in courses.items()
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-labelledby="title desc" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#1a1a1a">',
        f'<title id="title">{escape(name)}: mean PSNR against seconds</title>',
        f'<desc id="desc">{escape(told)}</desc>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="26" font-size="15" font-weight="bold">{escape(name)}</text>',
    ]
    level = low
    while level <= high:
        left, y = place(0, level)
        right, _ = place(far, level)
        parts.append(f'<path d="M{left:.1f} {y:.1f}H{right:.1f}" stroke="#e2e2e2"/>')
        parts.append(
            f'<text x="{left - 8:.1f}" y="{y + 4.5:.1f}" text-anchor="end">{level:g} dB</text>'
        )
        level += _STEP
    for x in sorted({x for x, _ in every}):
        across, bottom = place(x, low)
        parts.append(
            f'<text x="{across:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{x:g}</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.1f}" y="{_HEIGHT - _BOTTOM + 38}" '
        'text-anchor="middle">seconds of the processor, one thread</text>'
    )
    for rank, (method, course) in enumerate(courses.items()):
        parts.extend(_line([place(*point) for point in course], rank, method))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _line(points: Sequence[tuple[float, float]], rank: int, method: str) -> Iterator[str]:
    colour, dash = _STYLES[rank]
    style = f' stroke-dasharray="{dash}"' if dash else ""
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    if points:
        yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2.2"{style}/>'
    for x, y in points:
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" fill="{colour}"/>'
    y = _HEIGHT - 36 + 19 * rank
    yield f'<path d="M{_LEFT} {y}h38" stroke="{colour}" stroke-width="2.2"{style}/>'
    yield f'<text x="{_LEFT + 48}" y="{y + 4.5}">{escape(method)}</text>'
