"""What is recovered from wide and deep variants, by which attack, and which layer hides the rest.

    python benchmarks/variants.py --data FILE.npz [--n 5] [--budget 60] [--only TEXT]
    python benchmarks/variants.py --data FILE.npz --trials 500 [--first 0] [--limit 20]

FILE.npz holds `images` (uint8, NHWC), `labels` and `num_classes`, as cifar10.npz. The table runs
the default audit, told that the batch is one sample, on `--n` pictures, each with weights of its
own. A picture counts as recovered when its mean squared error is below 1e-3 (pixels 0 to 1).

`--trials` runs the layer-by-layer attack on random small networks and counts claims of a proved
picture: one is false when the true picture is further than 50 dB away.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import (
    Pictures,
    Sent,
    decibels,
    environment,
    mean_squared_errors,
    pictures,
    problem_for,
    send,
    timed_audit,
    warm_up,
)
from networks import VARIANTS, Trial, Variant, draw_trial

from auditor.attacks.base import Watch
from auditor.attacks.layers import LayerByLayer
from auditor.audit import best_evidence
from auditor.evidence import examine, is_proved, is_verified
from auditor.problem import to_pixels
from auditor.records import Evidence, Failed, Problem

GOOD = 1e-3
FALSE_BELOW = 50.0  # dB
CLASSES = 10


@dataclass(frozen=True)
class Audited:
    """One picture of the table."""

    mse: float
    seconds: float
    attack: str
    certainty: str
    reason: str  # why the layer-by-layer attack is not certain; empty when it is


def audit(sent: Sent, seed: int, budget: float) -> Audited:
    """The default audit of one step."""
    result, seconds, _ = timed_audit(sent, seed=seed, budget=budget, batch_size=1)
    report = next(a for a in result.audit.attacks if a.name == "images.layers")
    best = best_evidence(result.evidence)
    if best is None:
        return Audited(math.inf, seconds, "none", "none", report.reason)
    told = [f for f in result.audit.findings if f.attack == best.attack]
    return Audited(
        distance(result.problem, best, sent),
        seconds,
        best.attack,
        told[0].certainty if told else "none",
        report.reason,
    )


def distance(problem: Problem, evidence: Evidence, sent: Sent) -> float:
    """Mean squared error of the claim, pixels 0 to 1, in double precision."""
    assert evidence.best is not None
    assert evidence.recovery.inputs is not None
    claim = to_pixels(problem, evidence.recovery.inputs[evidence.best])
    return max(mean_squared_errors(claim, sent.images))


def table_row(variant: Variant, data: Pictures, count: int, budget: float) -> str:
    """One line of the Markdown table."""
    found = []
    for index in range(count):
        rows = slice(index, index + 1)
        labels = data.labels[rows] % CLASSES
        sent = send(variant.build(seed=index), data.images[rows], labels)
        found.append(audit(sent, index, budget))
    good = [f for f in found if f.mse < GOOD]
    by = Counter(f"{f.attack} ({f.certainty})" for f in good)
    hidden = Counter(f.reason for f in found if f.mse >= GOOD and f.reason)
    return (
        f"| {variant.name} | {len(good)}/{count} | "
        f"{_quality(statistics.median(f.mse for f in found))} | "
        f"{_quality(max(f.mse for f in found))} | "
        f"{statistics.median(f.seconds for f in found):.1f} | "
        f"{', '.join(f'{name} {times}' for name, times in by.most_common()) or '-'} | "
        f"{'; '.join(f'{why} ({times})' for why, times in hidden.most_common()) or '-'} |"
    )


def _quality(mse: float) -> str:
    if mse == 0:
        return "equal"
    return f"{decibels(mse):.0f}" if math.isfinite(mse) else "no picture"


def table(options: argparse.Namespace) -> None:
    """All variants whose name holds `--only`."""
    data = pictures(options.data, options.n)
    print(
        "| variant | pictures recovered | median PSNR, dB | worst PSNR, dB | median seconds | "
        "by attack (certainty) | where not recovered, what layer by layer says |\n"
        "|---|---|---|---|---|---|---|",
        flush=True,
    )
    for variant in VARIANTS:
        if options.only in variant.name:
            print(table_row(variant, data, options.n, options.budget), flush=True)


# --------------------------------------------------------------------------- trials


@dataclass(frozen=True)
class Answer:
    """What became of one trial."""

    trial: Trial
    outcome: str  # "exact", "verified only", "unproved picture", "no picture", "blocked", "raised"
    decibels: float  # of the picture, if there is one
    seconds: float
    note: str = ""


def sent_of(trial: Trial, data: Pictures) -> Sent:
    """The trial's network, one picture, and the gradient in the type of the dump."""
    place = trial.seed % len(data.images)
    image = data.images[place : place + 1]
    image = image if trial.channels == 3 else image.mean(1, keepdim=True)
    sent = send(trial.build(), image, data.labels[place : place + 1] % CLASSES)
    stored = getattr(torch, trial.dump)
    return replace(sent, gradient={n: g.to(stored) for n, g in sent.gradient.items()})


def answer(trial: Trial, data: Pictures, limit: float) -> Answer:
    """The layer-by-layer attack on one trial, its claim examined like any other."""
    sent = sent_of(trial, data)
    begun = time.perf_counter()
    try:
        problem = problem_for(sent)
        attack = LayerByLayer()
        blocked = attack.blocked_by(problem)
        if blocked is not None:
            return Answer(trial, "blocked", 0.0, time.perf_counter() - begun, blocked)
        watch = Watch(deadline=time.monotonic() + limit)
        recovery = attack.run(problem, seed=trial.seed, watch=watch)
        evidence = examine(problem, recovery, attack=attack.name, seconds=0.0)
    except (RuntimeError, ValueError) as error:
        # An audit would end here: counted and shown, not passed over.
        return Answer(trial, "raised", 0.0, time.perf_counter() - begun, repr(error)[:200])
    seconds = time.perf_counter() - begun
    if isinstance(evidence, Failed) or evidence.best is None:
        return Answer(trial, "no picture", 0.0, seconds)
    away = decibels(distance(problem, evidence, sent))
    if is_proved(problem, evidence):
        return Answer(trial, "exact", away, seconds)
    outcome = "verified only" if is_verified(problem, evidence) else "unproved picture"
    return Answer(trial, outcome, away, seconds)


def trials(options: argparse.Namespace) -> None:
    """Count claims, false ones, and how far the worst is away."""
    sizes: dict[int, Pictures] = {}
    answers = []
    for seed in range(options.first, options.first + options.trials):
        trial = draw_trial(seed)
        if trial.size not in sizes:
            sizes[trial.size] = pictures(options.data, 100, trial.size)
        answers.append(answer(trial, sizes[trial.size], options.limit))
        last = answers[-1]
        wrong = last.outcome in {"exact", "verified only"} and last.decibels < FALSE_BELOW
        if wrong or last.outcome == "raised":
            print(f"- {last.outcome}, {last.decibels:.1f} dB: {trial} {last.note}", flush=True)
        if len(answers) % 50 == 0:
            print(f"- {len(answers)} trials: {_counts(answers)}", flush=True)
    _summary(answers)


def _counts(answers: list[Answer]) -> str:
    counts = Counter(a.outcome for a in answers)
    return ", ".join(f"{name} {times}" for name, times in counts.most_common())


def _summary(answers: list[Answer]) -> None:
    print(f"\n{len(answers)} trials: {_counts(answers)}")
    for name in ("exact", "verified only"):
        claims = [a.decibels for a in answers if a.outcome == name]
        false = sum(value < FALSE_BELOW for value in claims)
        worst = f"{min(claims):.1f} dB" if claims else "none"
        print(f"{name}: {len(claims)} claims, {false} false (< {FALSE_BELOW:g} dB), worst {worst}")
    seconds = [a.seconds for a in answers]
    print(f"seconds a trial: median {statistics.median(seconds):.2f}, most {max(seconds):.1f}\n")
    print("| trials with | count | exact claims | false | pictures of 50 dB or more |")
    print("|---|---|---|---|---|")
    for field in ("dump", "activation", "weights", "dead", "fully_connected", "normalised"):
        for value in sorted({getattr(a.trial, field) for a in answers}):
            mine = [a for a in answers if getattr(a.trial, field) == value]
            proved = [a for a in mine if a.outcome == "exact"]
            print(
                f"| {field.replace('_', ' ')} {value} | {len(mine)} | {len(proved)} | "
                f"{sum(a.decibels < FALSE_BELOW for a in proved)} | "
                f"{sum(a.decibels >= FALSE_BELOW for a in mine)} |"
            )
    blocked = Counter(a.note for a in answers if a.outcome == "blocked")
    for note, times in blocked.most_common():
        print(f"- blocked {times}: {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--n", type=int, default=5)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of one audit")
    parser.add_argument("--only", default="", help="variants whose name holds this text")
    parser.add_argument("--trials", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="seed of the first trial")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of one trial")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{environment()}\n")
    warm_up()
    if options.trials:
        trials(options)
    else:
        table(options)


if __name__ == "__main__":
    main()
