"""Batches in the papers' LeNet: second-order matching beside DLG as published, and how far it goes.

    python benchmarks/batches.py --data FILE.npz [--trials 10] [--limit 300] [--papers-limit 300]
    python benchmarks/batches.py --data FILE.npz --reach [--sizes 8,16,32] [--counts 1,2,4,8]
        [--reach-trials 2] [--limit 120]

FILE.npz holds `images` (uint8, NHWC), `labels` and `num_classes`, as cifar100.npz; smaller pictures
are resized from it. Each trial has pictures and weights (uniform in +-0.5) of its own, and a
float32 gradient of the mean loss. Ours is the attack images.lm called directly, told the batch size
and nothing else; of its restarts the one counts whose gradient is nearest to the dump. A trial is
recovered when every picture has a mean squared error below 1e-3 (pixels 0 to 1) in the order that
fits best. `--limit` and `--papers-limit` end one trial after so many seconds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from common import (
    OUTER_STEPS,
    Pictures,
    Sent,
    decibels,
    environment,
    lenet_step,
    mean_squared_errors,
    pictures,
    problem_for,
    published,
    warm_up,
)

from auditor.attacks.base import Watch
from auditor.attacks.second_order import LevenbergMarquardt
from auditor.evidence import examine, is_verified
from auditor.problem import to_pixels
from auditor.records import Failed

GOOD = 1e-3
TASKS = ((2, 32), (4, 16))  # pictures, side
_HEADER = (
    "| pictures | method | trials recovered | pictures recovered | labels right | "
    "median worst PSNR, dB | median seconds | ended |\n|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Trial:
    """What one method made of one batch."""

    errors: tuple[float, ...]  # mean squared, one a picture
    labels_right: bool  # as a multiset
    seconds: float
    ended: str

    @property
    def recovered(self) -> bool:
        return max(self.errors) < GOOD


def ours(sent: Sent, seed: int, limit: float) -> Trial:
    """Levenberg-Marquardt matching; the set-up of the problem is not in the seconds."""
    problem, attack = problem_for(sent), LevenbergMarquardt()
    nothing = (float("inf"),) * len(sent.images)
    blocked = attack.blocked_by(problem)
    if blocked is not None:
        return Trial(nothing, False, 0.0, blocked)
    begun = time.perf_counter()
    recovery = attack.run(problem, seed=seed, watch=Watch(deadline=time.monotonic() + limit))
    evidence = examine(problem, recovery, attack=attack.name, seconds=0.0)
    seconds = time.perf_counter() - begun
    if isinstance(evidence, Failed) or evidence.best is None:
        return Trial(nothing, False, seconds, "time limit" if recovery.expired else "no claim")
    assert recovery.inputs is not None
    assert recovery.input_labels is not None
    claimed = to_pixels(problem, recovery.inputs[evidence.best])
    labels = recovery.input_labels[evidence.best]
    ended = "verified" if is_verified(problem, evidence) else "not verified"
    return Trial(
        tuple(mean_squared_errors(claimed, sent.images)),
        sorted(labels.tolist()) == sorted(sent.labels.tolist()),
        seconds,
        "time limit" if recovery.expired else ended,
    )


def papers(sent: Sent, seed: int, limit: float) -> Trial:
    """DLG as published: pictures and label logits of the whole batch together."""
    claim = published(sent, seed, joint=True, limit=limit)
    right = sorted(claim.labels.tolist()) == sorted(sent.labels.tolist())
    ended = "distance below 1e-6" if claim.distance < 1e-6 else "no number or steps used up"
    if claim.seconds > limit:
        ended = "time limit"
    errors = mean_squared_errors(claim.images, sent.images)
    return Trial(tuple(errors), right, claim.seconds, ended)


def batch(data: Pictures, count: int, trial: int) -> Sent:
    """The next `count` pictures, with weights of their own."""
    return lenet_step(data, slice(trial * count, (trial + 1) * count), seed=trial)


def table_row(name: str, method: str, found: list[Trial]) -> str:
    """One line of the Markdown table."""
    errors = [error for trial in found for error in trial.errors]
    worst = statistics.median(decibels(max(trial.errors)) for trial in found)
    ended = Counter(trial.ended for trial in found)
    return (
        f"| {name} | {method} | {sum(t.recovered for t in found)}/{len(found)} | "
        f"{sum(e < GOOD for e in errors)}/{len(errors)} | "
        f"{sum(t.labels_right for t in found)}/{len(found)} | {worst:.1f} | "
        f"{statistics.median(t.seconds for t in found):.1f} | "
        f"{', '.join(f'{how} {times}' for how, times in ended.most_common())} |"
    )


def compare(options: argparse.Namespace) -> None:
    """The two tasks, ours and the papers' in turns on the same batches."""
    rows = []
    for count, size in TASKS:
        data = pictures(options.data, count * options.trials, size)
        both: tuple[list[Trial], list[Trial]] = ([], [])
        for trial in range(options.trials):
            sent = batch(data, count, trial)
            both[0].append(ours(sent, 1000 + trial, options.limit))
            both[1].append(papers(sent, 1000 + trial, options.papers_limit))
            for method, found in zip(("images.lm", "DLG"), both, strict=True):
                print(
                    f"- {count} of {size}x{size}, trial {trial}, {method}: {_line(found[-1])}",
                    flush=True,
                )
        name = f"{count} of {size}x{size}"
        rows.append(table_row(name, "DLG, as published", both[1]))
        rows.append(table_row(name, "images.lm", both[0]))
    print(f"\n{_HEADER}")
    print("\n".join(rows))
    print(
        f"\nDLG: at most {OUTER_STEPS} outer steps of 20, no outer step begun after "
        f"{options.papers_limit:g} s. images.lm: stopped after {options.limit:g} s."
    )


def _line(trial: Trial) -> str:
    worst = decibels(max(trial.errors))
    return f"worst {worst:.1f} dB, {trial.seconds:.1f} s, {trial.ended}"


def reach(options: argparse.Namespace) -> None:
    """How far images.lm goes: batch size against side, with a time limit for each trial."""
    counts, sizes = (
        [int(part) for part in text.split(",")] for text in (options.counts, options.sizes)
    )
    print(_HEADER, flush=True)
    for size in sizes:
        data = pictures(options.data, max(counts) * options.reach_trials, size)
        for count in counts:
            found = [
                ours(batch(data, count, trial), 1000 + trial, options.limit)
                for trial in range(options.reach_trials)
            ]
            name = f"{count} of {size}x{size} ({count * 3 * size**2} unknowns)"
            print(table_row(name, "images.lm", found), flush=True)
    print(f"\nEach trial was stopped after {options.limit:g} s.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds, images.lm, one trial")
    parser.add_argument("--papers-limit", type=float, default=300.0, help="seconds, DLG, one trial")
    parser.add_argument("--reach", action="store_true")
    parser.add_argument("--reach-trials", type=int, default=2)
    parser.add_argument("--counts", default="1,2,4,8")
    parser.add_argument("--sizes", default="8,16,32")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{environment()}\n", flush=True)
    warm_up()
    if options.reach:
        reach(options)
    else:
        compare(options)


if __name__ == "__main__":
    main()
