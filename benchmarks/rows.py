"""Batches through a first linear layer with ReLU: SPEAR, single rows, and a search beside them.

    python benchmarks/rows.py --data FILE.npz [--units 512] [--sizes 2,4,8,12] [--trials 10]
        [--search-trials 2]

FILE.npz holds `images` (uint8, NHW or NHWC), `labels` and `num_classes`, as mnist.npz. The network
is pixels-units-classes, linear, ReLU, linear, initialised by torch; each trial has weights and
pictures of its own, drawn at random from the file, and a float32 gradient of the mean loss. The
attacks are called directly and told the batch size. A picture is exact above 60 dB of PSNR (pixels
0 to 1), in the order that fits best. The search is images.idlg, L-BFGS, with the seconds that SPEAR
took, but ten at least. No truth chooses among claims: the claim with the least residual counts.
The worst PSNR of a trial that claims less than the batch is written as 0; single rows carry no
labels.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import Pictures, Sent, environment, pictures, problem_for, send
from torch import Tensor, nn

from auditor.attacks.base import Attack, Watch
from auditor.attacks.idlg import IDLG
from auditor.attacks.linear_rows import LinearRows
from auditor.attacks.spear import Spear
from auditor.evidence import examine, is_verified
from auditor.metrics import match_batch, psnr
from auditor.problem import to_pixels
from auditor.records import Failed, Problem, Recovery

EXACT = 60.0  # dB
LEAST = 10.0  # seconds for the search
_HEADER = (
    "| batch | method | all exact | pictures exact | labels right | median worst PSNR, dB | "
    "verified | wrong but verified | median seconds |\n|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Trial:
    """What one attack made of one batch."""

    size: int
    decibels: tuple[float, ...]  # of the pictures that were claimed
    labels_right: bool
    verified: int  # pictures
    wrong: int  # verified, and not exact
    seconds: float

    @property
    def exact(self) -> int:
        return sum(value > EXACT for value in self.decibels)


def trial_batch(data: Pictures, size: int, units: int, seed: int) -> Sent:
    """A network and a batch of its own for each seed."""
    torch.manual_seed(seed)
    chosen = torch.randperm(len(data.images))[:size]
    pixels = data.images[0].numel()
    layers = [nn.Flatten(), nn.Linear(pixels, units), nn.ReLU(), nn.Linear(units, data.classes)]
    return send(nn.Sequential(*layers), data.images[chosen], data.labels[chosen])


def run(sent: Sent, attack: Attack, seed: int, seconds: float | None = None) -> Trial:
    """Attack, re-check, and only then compare with the truth."""
    problem = problem_for(sent)
    begun = time.perf_counter()
    deadline = None if seconds is None else time.monotonic() + seconds
    if attack.blocked_by(problem) is not None:
        return Trial(len(sent.images), (), False, 0, 0, time.perf_counter() - begun)
    recovery = attack.run(problem, seed=seed, watch=Watch(deadline=deadline))
    taken = time.perf_counter() - begun
    if recovery.samples is not None:
        return _samples(sent, problem, recovery, taken)
    evidence = examine(problem, recovery, attack=attack.name, seconds=taken)
    if isinstance(evidence, Failed) or evidence.best is None:
        return Trial(len(sent.images), (), False, 0, 0, taken)
    assert recovery.inputs is not None
    assert recovery.input_labels is not None
    claimed = to_pixels(problem, recovery.inputs[evidence.best].double())
    match = match_batch(claimed, sent.images)
    decibels = psnr(claimed, sent.images[match].double()).clamp_max(200.0)
    right = torch.equal(recovery.input_labels[evidence.best], sent.labels[match])
    verified = len(claimed) if is_verified(problem, evidence) else 0
    wrong = int((decibels <= EXACT).sum()) if verified else 0
    return Trial(len(claimed), tuple(decibels.tolist()), right, verified, wrong, taken)


def _samples(sent: Sent, problem: Problem, recovery: Recovery, taken: float) -> Trial:
    assert recovery.samples is not None
    evidence = examine(problem, recovery, attack="", seconds=taken)
    assert not isinstance(evidence, Failed)
    claimed = to_pixels(problem, recovery.samples.double())
    near = [_nearest(picture, sent.images.double()) for picture in claimed]
    sure = [value for value, word in zip(near, evidence.samples, strict=True) if word == "verified"]
    wrong = sum(value <= EXACT for value in sure)
    return Trial(len(sent.images), tuple(near), False, len(sure), wrong, taken)


def _nearest(picture: Tensor, images: Tensor) -> float:
    return float(psnr(picture.expand_as(images), images).max().clamp_max(200.0))


def table_row(size: int, method: str, found: list[Trial]) -> str:
    """One line of the Markdown table."""
    every = sum(trial.size for trial in found)
    worst = [min(trial.decibels) if len(trial.decibels) == size else 0.0 for trial in found]
    return (
        f"| {size} | {method} | {sum(t.exact == size for t in found)}/{len(found)} | "
        f"{sum(t.exact for t in found)}/{every} | "
        f"{sum(t.labels_right for t in found)}/{len(found)} | {statistics.median(worst):.1f} | "
        f"{sum(t.verified for t in found)}/{every} | {sum(t.wrong for t in found)} | "
        f"{statistics.median(t.seconds for t in found):.2f} |"
    )


def compare(options: argparse.Namespace, sizes: Iterable[int]) -> None:
    data = pictures(options.data, 10**6)
    print(_HEADER, flush=True)
    for size in sizes:
        seeds = range(1000, 1000 + options.trials)
        batches = [trial_batch(data, size, options.units, seed) for seed in seeds]
        spear = [run(sent, Spear(), seed) for sent, seed in zip(batches, seeds, strict=True)]
        print(table_row(size, "images.spear", spear), flush=True)
        rows = [run(sent, LinearRows(), seed) for sent, seed in zip(batches, seeds, strict=True)]
        print(table_row(size, "images.linear_rows", rows), flush=True)
        search = [
            run(sent, IDLG(), 1000 + place, max(LEAST, spear[place].seconds))
            for place, sent in enumerate(batches[: options.search_trials])
        ]
        if search:
            print(table_row(size, "images.idlg", search), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--units", type=int, default=512)
    parser.add_argument("--sizes", default="2,4,8,12")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--search-trials", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{environment()}\n\nunits of the first layer: {options.units}\n", flush=True)
    compare(options, [int(part) for part in options.sizes.split(",")])


if __name__ == "__main__":
    main()
