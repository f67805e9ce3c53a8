"""Cost against the number of unknowns, with the exponent, and peak memory of the LFW cascade.

    python benchmarks/scaling.py [--data FILE.npz] [--sizes 8,16,24,32,48,64] [--n 3]
        [--limit 20] [--wide] [--lfw lfw.npz] [--no-memory]

The papers' LeNet (100 classes) on pictures of 3 channels: seconds of one evaluation (one value and
gradient of the matching objective, in the attack's own precision), of the attack images.layers, and
of the whole cascade to the verdict. Exponents are fitted by least squares on the logarithms, over
the sizes where no layer hides its input: from 48x48 on, the second layer of this LeNet gives fewer
equations than it has inputs; then the layer is named, and the cascade is not timed. `--wide` takes
32 channels in that layer and torch's default weights: no layer hides its input up to 64x64.
`--limit` are the seconds of one attack. Without --data the pictures are random soft spots.

Peak memory is the operating system's, of a process of its own that runs one audit of a 3x32x32
picture with LFW's 5,749 classes, and is compared with a limit of 2 GB. The processes start before
this one has computed anything: a child's peak starts at its parent's size.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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
    send,
    smooth_pictures,
    timed_audit,
    warm_up,
)
from networks import convolutional
from torch import nn

from auditor.attacks import ATTACKS
from auditor.attacks.base import Watch
from auditor.attacks.layers import LayerByLayer
from auditor.attacks.matching import matching_objective
from auditor.problem import to_pixels
from auditor.records import Problem

CLASSES = 100
LFW_CLASSES = 5749
LIMIT_MB = 2000.0
_REPEATS = 15


@dataclass(frozen=True)
class Cost:
    """What one size costs: medians over the problems."""

    unknowns: int
    evaluation: float  # seconds
    layers: float  # seconds
    cascade: float  # seconds; nan when a layer hid its input
    decibels: float  # of the picture read layer by layer, the worst
    hidden: str  # the first layer that was not solved; empty: all were


def pictures_of(path: Path | None, count: int, size: int, classes: int) -> Pictures:
    """From a file, or random soft spots."""
    if path is not None:
        found = pictures(path, count, size)
        return Pictures(found.images, found.labels % classes, classes)
    labels = torch.arange(count) * 7 % classes
    return Pictures(smooth_pictures(count, 3, size, seed=size), labels, classes)


def evaluation_seconds(problem: Problem, sent: Sent) -> float:
    """Median seconds of one value and gradient of the matching objective, a single row."""
    shape = tuple(sent.images.shape)
    objective = matching_objective(
        problem, lambda row: (row.view(shape), sent.labels), weighting="layer"
    )
    row = torch.rand(1, sent.images.numel(), dtype=next(iter(problem.gradient.values())).dtype)
    objective(row)
    spent = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        objective(row)
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent)


def layers_seconds(problem: Problem, sent: Sent, limit: float) -> tuple[float, float, str]:
    """Seconds of images.layers, the PSNR of its picture in dB, and the layer that hid its input."""
    attack = LayerByLayer()
    begun = time.perf_counter()
    recovery = attack.run(problem, seed=0, watch=Watch(deadline=time.monotonic() + limit))
    seconds = time.perf_counter() - begun
    hidden = next((link.layer for link in recovery.links if not link.solved), "")
    if recovery.inputs is None:
        return seconds, -math.inf, hidden or "time limit"
    claim = to_pixels(problem, recovery.inputs[0])
    return seconds, decibels(max(mean_squared_errors(claim, sent.images))), hidden


def wide_step(data: Pictures, rows: slice, seed: int) -> Sent:
    """The papers' LeNet with 32 channels in its second layer, torch's default weights."""
    torch.manual_seed(seed)
    images = data.images[rows]
    model = convolutional(
        nn.Sigmoid, widths=(12, 32, 12), size=images.shape[2], classes=data.classes
    )
    return send(model.eval(), images, data.labels[rows])


def cost(data: Pictures, limit: float, step: Callable[[Pictures, slice, int], Sent]) -> Cost:
    """All measurements of one size."""
    evaluations, layers, cascades, qualities, names = [], [], [], [], [""]
    for index in range(len(data.images)):
        sent = step(data, slice(index, index + 1), index)
        problem = problem_for(sent)
        evaluations.append(evaluation_seconds(problem, sent))
        seconds, quality, hidden = layers_seconds(problem, sent, limit)
        layers.append(seconds)
        qualities.append(quality)
        names.append(hidden)
        cascades.append(math.nan if hidden else timed_audit(sent, seed=index)[1])
    return Cost(
        unknowns=data.images[0].numel(),
        evaluation=statistics.median(evaluations),
        layers=statistics.median(layers),
        cascade=statistics.median(cascades),
        decibels=min(qualities),
        hidden=max(names),
    )


def exponent(costs: list[Cost], name: str) -> float:
    """The slope of log seconds against log unknowns, by least squares."""
    across = [math.log(c.unknowns) for c in costs]
    return statistics.linear_regression(across, [math.log(getattr(c, name)) for c in costs]).slope


def _shown(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def table(options: argparse.Namespace) -> None:
    """One line a size, then the exponents."""
    print(
        "| picture | unknowns | one evaluation, ms | images.layers, s | whole cascade, s | "
        "worst PSNR, dB | layer that hides its input |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    costs = []
    for size in (int(part) for part in options.sizes.split(",")):
        data = pictures_of(options.data, options.n, size, CLASSES)
        found = cost(data, options.limit, wide_step if options.wide else lenet_step)
        costs.append(found)
        print(
            f"| 3x{size}x{size} | {found.unknowns} | {1000 * found.evaluation:.2f} | "
            f"{found.layers:.3f} | {_shown(found.cascade, 3)} | "
            f"{_shown(found.decibels, 0)} | {found.hidden} |",
            flush=True,
        )
    solved = [found for found in costs if not found.hidden]
    print("\nCost grows with the unknowns to the power of:")
    for name, used in (("evaluation", costs), ("layers", solved), ("cascade", solved)):
        if len(used) >= 2:
            print(f"- {name}: {exponent(used, name):.2f} ({len(used)} sizes)")


# --------------------------------------------------------------------------- memory


def memory_child(attacks: str, path: Path | None) -> None:
    """One audit in this process; prints its seconds, verdict, winner and peak in megabytes."""
    torch.set_num_threads(1)
    data = pictures_of(path, 1, 32, LFW_CLASSES)
    sent = lenet_step(data, slice(0, 1), seed=0)
    only = [] if attacks == "default" else attacks.split(",")
    result, seconds, _ = timed_audit(sent, seed=0, budget=120, attacks=only)
    ran = [report.name for report in result.audit.attacks if report.seconds > 0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{peak:.0f} {seconds:.1f} {'+'.join(ran)} {result.audit.verdict.status}")


def memory(path: Path | None) -> None:
    """Peak memory of the default cascade, and of second-order matching when it is made to run."""
    print("| audit, LeNet 3x32x32, 5,749 classes | attacks that ran | seconds | peak MB | limit |")
    print("|---|---|---|---|---|", flush=True)
    second_order = any(attack.name == "images.lm" for attack in ATTACKS)
    for attacks in ("default", *(["labels,images.lm"] if second_order else [])):
        arguments = [sys.executable, __file__, "--memory-child", attacks]
        arguments += ["--lfw", str(path)] if path is not None else []
        made = subprocess.run(arguments, check=True, capture_output=True, text=True)
        peak, seconds, ran, *_ = made.stdout.split()
        kept = "kept" if float(peak) < LIMIT_MB else "EXCEEDED"
        print(
            f"| {attacks} | {ran.replace('+', ', ')} | {seconds} | {peak} | "
            f"{LIMIT_MB:.0f} MB {kept} |",
            flush=True,
        )
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sizes", default="8,16,24,32,48,64")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds of one attack")
    parser.add_argument("--n", type=int, default=3)
    parser.add_argument("--wide", action="store_true", help="a LeNet that hides nothing to 64x64")
    parser.add_argument("--lfw", type=Path)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-child", metavar="ATTACKS", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_child:
        memory_child(options.memory_child, options.lfw)
        return
    torch.set_num_threads(1)
    print(f"{environment()}\n", flush=True)
    if not options.no_memory:
        memory(options.lfw)
    warm_up()
    table(options)


if __name__ == "__main__":
    main()
