"""PSNR against Gaussian noise on the papers' LeNet: DLG as published, our attacks, and the bound.

    python benchmarks/trust_curve.py --data cifar10.npz [--size 32] [--svg curve.svg]

One picture, its float32 gradient, noise of standard deviation sigma on every entry. "DLG" is the
papers' loop (common.py), which knows nothing of the noise: of some starts the one that ends nearest
to the dump. "ours" are the attacks as a what-if runs them, told sigma. "bound" is what no attack
beats that knows no more of a pixel than its variance (docs/bounds.md); ours know how pictures look.
The boundary is where a curve crosses 20 dB.

Zhu, Liu, Han 2019 (arXiv:1906.08935, section 5.1) report that noise of a scale of 1e-4 does not
keep DLG from the picture, that 1e-3 leaves artefacts, and that DLG fails above 1e-2; they write
"variance", of which sigma is the root.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from unittest import mock

import torch
from common import (
    Pictures,
    Sent,
    decibels,
    environment,
    lenet_step,
    mean_squared_errors,
    pictures,
    problem_for,
    published,
)

from auditor.attacks import Watch
from auditor.defences.applied import noised
from auditor.options import make_options
from auditor.records import Truth
from auditor.what_if.attack import attack_all, chosen
from auditor.what_if.bound import bound_of
from auditor.what_if.defended import Sent as Defended
from auditor.what_if.row import psnr_of

SIGMAS = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
RECOGNISABLE = 20.0  # dB
_COLOURS = {"DLG": ("#b34700", "7 4"), "ours": ("#00664b", ""), "bound": ("#333333", "2 4")}


@dataclass(frozen=True)
class Point:
    """One sigma: dB of each curve, nan where there is none."""

    sigma: float
    dlg: float
    ours: float
    attack: str
    bound: float


def point(sent: Sent, sigma: float, options: argparse.Namespace) -> Point:
    """Noise the gradient and attack it."""
    generator = torch.Generator().manual_seed(7)
    noisy = noised(sent.gradient, sigma, generator)
    dumped = replace(sent, gradient=noisy.gradient)
    problem = replace(problem_for(dumped), channel=noisy.channel)
    truth = Truth(sent.images, sent.labels)
    with mock.patch.object(time, "monotonic", time.process_time):  # seconds of the processor
        watch = Watch(deadline=time.monotonic() + options.seconds)
        found = attack_all(problem, chosen(make_options(device="cpu")), seed=0, watch=watch)
    reached = {e.attack: psnr_of(problem, e, truth) for e in found.evidence}
    rebuilt = {name: value for name, value in reached.items() if value is not None}
    best = max(rebuilt, key=lambda name: rebuilt[name], default="")
    bound = bound_of(Defended(problem, truth, None), lambda: False)
    return Point(
        sigma, dlg(dumped, options), rebuilt.get(best, math.nan), best,
        math.nan if bound is None else bound,
    )  # fmt: skip


def dlg(sent: Sent, options: argparse.Namespace) -> float:
    """dB of the papers' loop; of several starts the one that ends nearest to the dump."""
    with mock.patch.object(time, "perf_counter", time.process_time):
        claims = [
            published(sent, 100 + start, joint=True, limit=options.dlg_seconds)
            for start in range(options.starts)
        ]
    finite = [claim for claim in claims if math.isfinite(claim.distance)]
    if not finite:
        return math.nan
    nearest = min(finite, key=lambda claim: claim.distance)
    return decibels(mean_squared_errors(nearest.images.clamp(0, 1), sent.images)[0])


def boundary(points: list[Point], curve: str) -> str:
    """The sigma at which a curve falls below 20 dB, on a straight line between two points."""
    found = [(p.sigma, getattr(p, curve)) for p in points if math.isfinite(getattr(p, curve))]
    for (low, above), (high, below) in pairwise(found):
        if above >= RECOGNISABLE > below:
            share = (above - RECOGNISABLE) / (above - below)
            return f"{low * (high / low) ** share:.1e}"
    if not found:
        return "not known"
    end, word = (found[-1], "above") if found[-1][1] >= RECOGNISABLE else (found[0], "below")
    return f"{word} {end[0]:.0e}"


def figure(points: list[Point]) -> str:
    """The three curves as SVG, sigma on a logarithmic scale."""
    width, height, left, bottom, top = 560, 360, 64, 60, 30
    high = 20 * math.ceil(max(p.bound for p in points if math.isfinite(p.bound)) / 20)
    low_x, high_x = math.log10(points[0].sigma), math.log10(points[-1].sigma)

    def place(sigma: float, value: float) -> tuple[float, float]:
        across = (math.log10(sigma) - low_x) / (high_x - low_x)
        return left + across * (width - left - 20), height - bottom - value / high * (
            height - bottom - top
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-labelledby="title desc" font-family="Helvetica, Arial, sans-serif" font-size="13">',
        '<title id="title">PSNR against noise, LeNet</title>',
        f'<desc id="desc">{"; ".join(told(p) for p in points)}</desc>',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    for level in range(0, high + 1, 20):
        x, y = place(points[0].sigma, level)
        parts.append(f'<path d="M{left} {y:.1f}H{width - 20}" stroke="#d0d0d0"/>')
        parts.append(f'<text x="{x - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{level} dB</text>')
    for each in points:
        x, y = place(each.sigma, 0)
        parts.append(
            f'<text x="{x:.1f}" y="{y + 20:.1f}" text-anchor="middle">{each.sigma:.0e}</text>'
        )
    for rank, (name, (colour, dashes)) in enumerate(_COLOURS.items()):
        values = [(p.sigma, getattr(p, name.lower())) for p in points]
        line = " ".join(
            f"{x:.1f},{y:.1f}" for x, y in (place(s, v) for s, v in values if math.isfinite(v))
        )
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2.5" '
            f'stroke-dasharray="{dashes or "none"}"/>'
        )
        x = left + 20 + 150 * rank
        parts.append(
            f'<path d="M{x} {height - 14}h34" stroke="{colour}" stroke-width="2.5" '
            f'stroke-dasharray="{dashes or "none"}"/>'
        )
        parts.append(f'<text x="{x + 42}" y="{height - 10}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def told(each: Point) -> str:
    """One point in words."""
    return (
        f"sigma {each.sigma:.0e}: DLG {each.dlg:.1f} dB, ours {each.ours:.1f} dB, "
        f"bound {each.bound:.1f} dB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--picture", type=int, default=0)
    parser.add_argument("--sigmas", default=",".join(f"{sigma:g}" for sigma in SIGMAS))
    parser.add_argument("--starts", type=int, default=2, help="of the papers' loop")
    parser.add_argument(
        "--dlg-seconds", type=float, default=60.0, help="of the processor, of one of its starts"
    )
    parser.add_argument(
        "--seconds", type=float, default=90.0, help="of the processor, of our attacks, a sigma"
    )
    parser.add_argument("--svg", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data: Pictures = pictures(options.data, options.picture + 1, options.size)
    sent = lenet_step(data, slice(options.picture, options.picture + 1), seed=0)
    flat = torch.cat([part.flatten() for part in sent.gradient.values()])
    print(
        f"{environment()}\n\nLeNet, {options.size}x{options.size}, one picture; root mean square "
    )
    print(f"of the gradient's {len(flat)} entries: {float(flat.square().mean().sqrt()):.1e}\n")
    print("| sigma | DLG, dB | ours, dB | attack | bound, dB |\n|---|---|---|---|---|", flush=True)
    points = []
    for sigma in (float(part) for part in options.sigmas.split(",")):
        each = point(sent, sigma, options)
        points.append(each)
        row = f"| {each.sigma:.0e} | {each.dlg:.1f} | {each.ours:.1f} | {each.attack} | "
        print(f"{row}{each.bound:.1f} |", flush=True)
    print("\nFalls below 20 dB at sigma:", end=" ")
    print("; ".join(f"{name} {boundary(points, name.lower())}" for name in _COLOURS))
    print("Zhu, Liu, Han 2019: DLG fails above a scale of 1e-2 (as a variance: sigma 1e-1)")
    if options.svg is not None:
        options.svg.write_text(figure(points), encoding="utf-8")


if __name__ == "__main__":
    main()
