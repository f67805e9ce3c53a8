"""Batches through a first linear layer: pictures by SPEAR, by single rows, by search; and tables.

    python benchmarks/rows.py --data FILE.npz [--units 512] [--sizes 2,4,8,12] [--trials 10]
        [--search-trials 2]
    python benchmarks/rows.py --columns 30 [--units 256] [--classes 2] [--sizes 1,2,4,8]
        [--trials 10] [--budget 60]

FILE.npz holds `images` (uint8, NHW or NHWC), `labels` and `num_classes`, as mnist.npz. The network
is pixels-units-classes, linear, ReLU, linear, initialised by torch; each trial has weights and
pictures of its own, drawn at random from the file, and a float32 gradient of the mean loss. The
attacks are called directly and told the batch size. A picture is exact above 60 dB of PSNR (pixels
0 to 1), in the order that fits best. The search is images.idlg, L-BFGS, with the seconds that SPEAR
took, but ten at least. No truth chooses among claims: the claim with the least residual counts.
The worst PSNR of a trial that claims less than the batch is written as 0; single rows carry no
labels.

With --columns: rows of a table, two thirds of the columns normal, the others zero or one, each
standardised with the mean and the deviation that it was drawn with. The network is columns-units-
classes with ReLU, sigmoid or tanh; each trial has weights, statistics and rows of its own. What is
timed is a whole audit, in processor time: every attack as a user would run it, told the batch size,
the means and the deviations. A row is exact when no value is off by more than a thousandth of its
column's deviation. Wrong is a row that the audit calls proved or verified and that is off by more
than that claims: 0.11 deviations, root mean square over its columns (30 dB).
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import Pictures, Sent, environment, pictures, problem_for, send
from torch import Tensor, nn
from torch.nn import functional as F

from auditor.api import case_of
from auditor.attacks.base import Attack, Watch
from auditor.attacks.idlg import IDLG
from auditor.attacks.linear_rows import LinearRows
from auditor.attacks.spear import Spear
from auditor.audit import Result, run_audit
from auditor.evidence import AGREE, best_inputs, examine, is_proved, is_verified
from auditor.facts import Flags
from auditor.metrics import match_batch, psnr
from auditor.options import make_options
from auditor.problem import to_own_units, to_pixels
from auditor.records import Failed, FileRef, LoadedModel, Problem, Recovery

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


# --------------------------------------------------------------------------- tables

_ACTIVATIONS = (nn.ReLU, nn.Sigmoid, nn.Tanh)
_CLOSE = 1e-3  # of a column's deviation
_CLAIMED = 12**0.5 * 10 ** (-AGREE / 20)  # root mean square, of a verified row
_TABLE_HEADER = (
    "| activation | batch | proved | all verified | all exact | rows exact | labels right | "
    "wrong | median worst error, deviations | median seconds |\n" + 10 * "|---" + "|"
)


@dataclass(frozen=True)
class Step:
    """One client with rows of a table."""

    module: nn.Module
    rows: Tensor  # (N, D) in their own units
    labels: Tensor
    mean: Tensor  # (D,)
    std: Tensor  # (D,)

    def gradient(self) -> dict[str, Tensor]:
        inputs = ((self.rows - self.mean) / self.std).float()
        loss = F.cross_entropy(self.module(inputs), self.labels)
        parts = torch.autograd.grad(loss, list(self.module.parameters()))
        return dict(zip(dict(self.module.named_parameters()), parts, strict=True))


@dataclass(frozen=True)
class Audited:
    """What a whole audit made of one step."""

    size: int
    errors: tuple[float, ...]  # largest of each row that stands, in deviations
    wrong: int  # rows that stand and are off by more than is claimed
    proved: bool
    verified: int  # rows that the audit calls proved or verified
    labels_right: bool
    seconds: float

    @property
    def exact(self) -> int:
        return sum(error <= _CLOSE for error in self.errors)


def table_step(
    size: int, columns: int, units: int, classes: int, activation: type[nn.Module], seed: int
) -> Step:
    """A network, a table and a batch of its own for each seed."""
    torch.manual_seed(seed)
    layers = [nn.Linear(columns, units), activation(), nn.Linear(units, classes)]
    mean, std = 100 * torch.rand(columns).double(), 0.1 + 20 * torch.rand(columns).double()
    rows = mean + std * torch.randn(size, columns).double()
    yes = columns // 3
    share = 0.1 + 0.8 * torch.rand(yes).double()
    rows[:, -yes:] = (torch.rand(size, yes).double() < share).double()
    mean[-yes:], std[-yes:] = share, (share * (1 - share)).sqrt()
    return Step(nn.Sequential(*layers), rows, torch.randint(classes, (size,)), mean, std)


def audit(step: Step, seed: int, budget: float) -> Audited:
    """A whole audit, and only then the truth."""
    flags = Flags(
        batch_size=len(step.rows), mean=tuple(step.mean.tolist()), std=tuple(step.std.tolist())
    )
    loaded = LoadedModel(step.module, FileRef("table", "in memory", 0, ""))
    case = case_of(loaded, step.gradient(), flags)
    begun = time.process_time()
    result = run_audit(case, make_options(seed=seed, budget=budget, device="cpu"))
    taken = time.process_time() - begun
    problem, size = result.problem, len(step.rows)
    for evidence in result.evidence:
        if evidence.best is None or not is_verified(problem, evidence):
            continue
        found, labels = best_inputs(problem, evidence).double(), evidence.recovery.input_labels
        assert labels is not None
        match = match_batch(found / step.std, step.rows / step.std)
        apart = (found - step.rows[match]) / step.std
        right = torch.equal(labels[evidence.best].cpu(), step.labels[match])
        proved = is_proved(problem, evidence)
        return Audited(size, *_errors(apart), proved, size, right, taken)
    return _one_by_one(step, result, taken)


def _one_by_one(step: Step, result: Result, taken: float) -> Audited:
    """Rows that were verified each by itself, where the batch as a whole was not."""
    for evidence in result.evidence:
        if "verified" in evidence.samples and evidence.recovery.samples is not None:
            kept = [place for place, word in enumerate(evidence.samples) if word == "verified"]
            found = to_own_units(result.problem, evidence.recovery.samples[kept]).double()
            every = (found[:, None] - step.rows[None]) / step.std
            nearest = every.square().sum(2).argmin(1)
            apart = every[torch.arange(len(kept)), nearest]
            return Audited(len(step.rows), *_errors(apart), False, len(kept), False, taken)
    return Audited(len(step.rows), (), 0, False, 0, False, taken)


def _errors(apart: Tensor) -> tuple[tuple[float, ...], int]:
    """Of errors (M, D) in deviations: the largest of each row, and how many are too far off."""
    wrong = int((apart.square().mean(1).sqrt() > _CLAIMED).sum())
    return tuple(apart.abs().amax(1).tolist()), wrong


def audited_row(activation: str, size: int, found: list[Audited]) -> str:
    """One line of the Markdown table."""
    worst = [max(a.errors) if len(a.errors) == size else math.inf for a in found]
    count, every = len(found), size * len(found)
    return (
        f"| {activation} | {size} | {sum(a.proved for a in found)}/{count} | "
        f"{sum(a.verified == size for a in found)}/{count} | "
        f"{sum(a.exact == size for a in found)}/{count} | {sum(a.exact for a in found)}/{every} | "
        f"{sum(a.labels_right for a in found)}/{count} | "
        f"{sum(a.wrong for a in found)} | {statistics.median(worst):.1e} | "
        f"{statistics.median(a.seconds for a in found):.2f} |"
    )


def tables(options: argparse.Namespace, sizes: Iterable[int]) -> None:
    """Every activation with every size of a batch."""
    print(_TABLE_HEADER, flush=True)
    shape = (options.columns, options.units, options.classes)
    for activation in _ACTIVATIONS:
        for size in sizes:
            seeds = range(2000, 2000 + options.trials)
            steps = [table_step(size, *shape, activation, seed) for seed in seeds]
            pairs = zip(steps, seeds, strict=True)
            found = [audit(step, seed, options.budget) for step, seed in pairs]
            print(audited_row(activation.__name__, size, found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--columns", type=int, help="rows of a table in place of pictures")
    parser.add_argument("--classes", type=int, default=2, help="of a table")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of one audit")
    parser.add_argument("--units", type=int)
    parser.add_argument("--sizes")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--search-trials", type=int, default=2)
    options = parser.parse_args()
    if (options.data is None) == (options.columns is None):
        parser.error("give --data FILE.npz or --columns D")
    options.units = options.units or (512 if options.columns is None else 256)
    sizes = options.sizes or ("2,4,8,12" if options.columns is None else "1,2,4,8")
    torch.set_num_threads(1)
    print(f"{environment()}\n\nunits of the first layer: {options.units}\n", flush=True)
    run_all = compare if options.columns is None else tables
    run_all(options, [int(part) for part in sizes.split(",")])


if __name__ == "__main__":
    main()
