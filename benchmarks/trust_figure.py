"""A figure as SVG without a plotting library: the audit's own fidelity against the true PSNR."""

from __future__ import annotations

from collections.abc import Sequence

_WIDTH, _HEIGHT = 520, 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 18, 44, 60
_LOW, _HIGH, _STEP = 0, 80, 10  # dB; what lies beyond is drawn at the edge


def agreement_figure(pairs: Sequence[tuple[float, float]]) -> str:
    """Pairs (fidelity, true PSNR), dB each, to an SVG: true across, fidelity up."""
    name = "Reference-free fidelity against true PSNR"
    told = f"{len(pairs)} audits of graded leaks. On the diagonal the audit is right about itself."
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-labelledby="title desc" '
        'font-family="Helvetica, Arial, sans-serif" font-size="13" fill="#1a1a1a">',
        f'<title id="title">{name}</title>',
        f'<desc id="desc">{told}</desc>',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="26" font-size="15" font-weight="bold">{name}</text>',
        *_grid(),
    ]
    for fidelity, true in pairs:
        x, y = _place(true, fidelity)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.4" fill="#0067a5" fill-opacity="0.55"/>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def _place(across: float, up: float) -> tuple[float, float]:
    shares = [(min(max(value, _LOW), _HIGH) - _LOW) / (_HIGH - _LOW) for value in (across, up)]
    return (
        _LEFT + shares[0] * (_WIDTH - _LEFT - _RIGHT),
        _HEIGHT - _BOTTOM - shares[1] * (_HEIGHT - _TOP - _BOTTOM),
    )


def _grid() -> list[str]:
    parts = []
    for level in range(_LOW, _HIGH + 1, _STEP):
        x, y = _place(level, level)
        bottom, top = _HEIGHT - _BOTTOM, _TOP
        parts += [
            f'<path d="M{x:.1f} {bottom}V{top}M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}" '
            'stroke="#e2e2e2" fill="none"/>',
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{level}</text>',
            f'<text x="{_LEFT - 8}" y="{y + 4.5:.1f}" text-anchor="end">{level}</text>',
        ]
    (x1, y1), (x2, y2) = _place(_LOW, _LOW), _place(_HIGH, _HIGH)
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    return [
        *parts,
        f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#b34700" stroke-dasharray="7 4"/>',
        f'<text x="{(x1 + x2) / 2:.1f}" y="{_HEIGHT - 16}" text-anchor="middle">'
        "true PSNR of the worst-protected sample, dB</text>",
        f'<text x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">'
        "fidelity that the audit states, dB</text>",
    ]
