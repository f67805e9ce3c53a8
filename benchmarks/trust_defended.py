"""The adaptive attacker beside plain matching, on defended gradients of the papers' LeNet.

    python benchmarks/trust_defended.py --data cifar10.npz

One line a defence and picture: what the attacker who ignores the defence (images.lm) and the one
who allows for it (images.defended) recover, in dB of the worst-protected sample, and their seconds.
The channel is told, as in a what-if. The adaptive attack gives two numbers, one a prior.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from common import (
    Sent,
    decibels,
    environment,
    lenet_step,
    mean_squared_errors,
    pictures,
    problem_for,
)
from torch import Tensor

from auditor.attacks import Attack, LevenbergMarquardt, Search, Watch
from auditor.attacks import Defended as Adaptive
from auditor.defences.applied import Defended, as_int8, clipped, largest_kept, noised, signs_of
from auditor.records import Channel, Problem

SIGMAS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
DROPPED = (0.5, 0.9, 0.99)


def settings(gradient: dict[str, Tensor], seed: int) -> Iterator[tuple[str, Defended]]:
    for sigma in SIGMAS:
        yield f"noise {sigma:g}", noised(gradient, sigma, torch.Generator().manual_seed(seed))
    for share in DROPPED:
        yield f"top-k, {share:.0%} dropped", largest_kept(gradient, share)
    yield "int8", as_int8(gradient)
    yield "sign", signs_of(gradient)
    yield "clipped to norm 1", clipped(gradient, 1.0)


def attacked(problem: Problem, attack: Attack, truth: Tensor, budget: float) -> tuple[str, float]:
    """Worst-protected sample in dB, a number for each row of the claim; and seconds."""
    begun = time.monotonic()
    found = attack.run(problem, seed=0, watch=Watch(deadline=begun + budget))
    assert found.inputs is not None
    rows = [decibels(min(mean_squared_errors(row.clamp(0, 1), truth))) for row in found.inputs]
    return " / ".join(f"{row:.1f}" for row in rows) or "none", time.monotonic() - begun


def line(name: str, sent: Sent, made: Defended, budget: float) -> str:
    told = replace(sent, gradient={n: part.float() for n, part in made.gradient.items()})
    problem = problem_for(told)
    naive = LevenbergMarquardt(search=Search(restarts=1, at_once=1, enough=1))
    plain, before = attacked(replace(problem, channel=Channel()), naive, sent.images, budget)
    ours = replace(problem, channel=made.channel, precision=made.precision)
    adaptive, after = attacked(ours, Adaptive(), sent.images, budget)
    return f"| {name} | {plain} | {before:.0f} | {adaptive} | {after:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="NAME.npz")
    parser.add_argument("--pictures", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=None, help="pixels; the data's by default")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds an attack")
    parser.add_argument("--only", default="", help="settings whose name begins so")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = pictures(options.data, options.pictures * options.batch, options.size)
    print(environment(), flush=True)
    print("| defence | images.lm, dB | s | images.defended, dB (waves / pixels) | s |")
    print("|---|---|---|---|---|", flush=True)
    for place in range(options.pictures):
        rows = slice(place * options.batch, (place + 1) * options.batch)
        sent = lenet_step(data, rows, place)
        for name, made in settings(sent.gradient, place):
            if name.startswith(options.only):
                print(line(name, sent, made, options.budget), flush=True)


if __name__ == "__main__":
    main()
