"""Updates of local SGD steps: pictures and labels from the papers' LeNet, and the first layer.

    python benchmarks/updates.py --data FILE.npz [--size 16] [--counts 1,2,4] [--steps 1,2,5,10]
        [--lr 0.01] [--trials 2] [--limit 120] [--first-layer-only | --estimates-only]

FILE.npz holds `images` (uint8, NHWC or NHW), `labels` and `num_classes`; pictures are resized to
--size. Each trial has pictures and weights of its own. The client takes all its pictures in every
step, with torch's SGD in single precision; the update is the difference of its float32 weights.

LeNet (sigmoid, weights uniform in +-0.5): images.lm, told batch size, learning rate and steps. The
row with the smallest residual counts. First layer: one picture, a network that begins with
a linear layer and goes on with ReLU and layer norm, default initialisation: images.first_layer.
Estimates: LeNet as above, but nobody says the steps, or neither steps nor learning rate. How often
the count is found, how far the learning rate is off, and what images.lm makes of it beside what it
makes of the told training.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from common import decibels, environment, mean_squared_errors, pictures
from torch import Tensor, nn

from auditor.attacks import Attack, FirstLayer, LayerByLayer, LevenbergMarquardt, Watch, label_claim
from auditor.attacks.training_estimate import with_estimated_training
from auditor.evidence import examine, is_verified
from auditor.facts import Flags, LocalFlags, settle
from auditor.metrics import label_accuracy
from auditor.problem import is_one_gradient, make_problem, to_pixels
from auditor.records import Failed, Metadata, Problem, Truth
from auditor.simulate import simulate_dump
from auditor.zoo import LeNet, uniform_weights

_GOOD = 1e-3  # mean squared error of a recovered picture


@dataclass(frozen=True)
class Trial:
    """What an attack made of one update."""

    errors: tuple[float, ...]  # mean squared, one a picture
    proved: int  # labels
    accuracy: float  # of the estimated labels
    precision: float  # of the dump
    seconds: float
    verified: bool


def problem_of(
    model: nn.Module, truth: Truth, local: LocalFlags, *, told: LocalFlags | None = None
) -> Problem:
    """The attacker's problem: model, update by `local`, and what is `told` of it; None: all."""
    shape = tuple(truth.inputs.shape[1:])
    flags = Flags(input_shape=shape, reduction="mean", label_smoothing=0.0, local=local)
    dump = simulate_dump(model, truth, flags)
    if told is not None:
        dump = replace(dump, metadata=Metadata(batch_size=len(truth.labels)))
        flags = replace(flags, local=told)
    known = settle(dump, model, flags)
    return make_problem(model, dump, known, device=torch.device("cpu"))


def run(problem: Problem, attack: Attack, truth: Truth, seed: int, limit: float) -> Trial:
    """One attack on one update; what the harness says of it."""
    claim = label_claim(problem)
    right = 0.0 if claim.estimate is None else label_accuracy(claim.estimate, truth.labels)
    nothing = (float("inf"),) * len(truth.labels)
    if attack.blocked_by(problem) is not None:
        return Trial(nothing, int(claim.lower.sum()), right, problem.precision, 0.0, False)
    # Processor time, for the attack too: others on the machine change nothing then.
    with mock.patch.object(time, "monotonic", time.process_time):
        begun = time.process_time()
        recovery = attack.run(problem, seed=seed, watch=Watch(deadline=begun + limit))
        evidence = examine(problem, recovery, attack=attack.name, seconds=0.0)
        seconds = time.process_time() - begun
    errors, verified = nothing, False
    if not isinstance(evidence, Failed) and evidence.best is not None:
        assert recovery.inputs is not None
        claimed: Tensor = to_pixels(problem, recovery.inputs[evidence.best])
        errors = tuple(mean_squared_errors(claimed, truth.inputs))
        verified = is_verified(problem, evidence)
    proved = int(claim.lower.sum())
    return Trial(errors, proved, right, problem.precision, seconds, verified)


def row(name: str, found: list[Trial]) -> str:
    """One line of the Markdown table."""
    errors = [error for trial in found for error in trial.errors]
    worst = [decibels(max(trial.errors)) for trial in found]
    labels = sum(len(trial.errors) for trial in found)
    return (
        f"| {name} | {statistics.median(decibels(e) for e in errors):.1f} | "
        f"{statistics.median(worst):.1f} | {sum(e < _GOOD for e in errors)}/{len(errors)} | "
        f"{sum(t.verified for t in found)}/{len(found)} | "
        f"{sum(t.proved for t in found)}/{labels} | "
        f"{statistics.mean(t.accuracy for t in found):.2f} | "
        f"{statistics.median(t.precision for t in found):.0e} | "
        f"{statistics.median(t.seconds for t in found):.1f} |"
    )


_COLUMNS = (
    "median PSNR, dB | median worst PSNR, dB | pictures recovered | verified | labels proved | "
    "label accuracy | precision | median processor seconds |"
)


def header(first: str) -> str:
    """The first two lines of a table."""
    return f"| {first} | {_COLUMNS}\n|{'---|' * 9}"


def lenet(options: argparse.Namespace) -> None:
    """PSNR and labels against pictures and local steps."""
    counts = [int(part) for part in options.counts.split(",")]
    data = pictures(options.data, max(counts) * options.trials, options.size)
    print(f"LeNet, {options.size}x{options.size}, learning rate {options.lr:g}\n")
    print(header("pictures, steps"), flush=True)
    for count in counts:
        for steps in (int(part) for part in options.steps.split(",")):
            found = []
            for trial in range(options.trials):
                rows = slice(trial * count, (trial + 1) * count)
                truth = Truth(data.images[rows], data.labels[rows])
                net = LeNet(data.images.shape[1], data.images.shape[2], data.classes)
                model = uniform_weights(net, seed=trial).eval()
                local = LocalFlags("update", options.lr, steps)
                problem = problem_of(model, truth, local)
                attack = LevenbergMarquardt()
                found.append(run(problem, attack, truth, 1000 + trial, options.limit))
            print(row(f"{count}, {steps}", found), flush=True)


def estimates(options: argparse.Namespace) -> None:
    """Updates that do not say how many steps they are of, or at which learning rate."""
    counts = [int(part) for part in options.counts.split(",")]
    data = pictures(options.data, max(counts) * options.trials, options.size)
    print(f"\nLeNet, {options.size}x{options.size}, learning rate {options.lr:g}, not all told\n")
    print("| pictures, steps | told | count found, labels right | learning rate off by | residual, "
          "runner-up | seconds | images.lm: PSNR each, dB | seconds |\n|" + "---|" * 8)  # fmt: skip
    for count in counts:
        for steps in (int(part) for part in options.steps.split(",")):
            for trial in range(options.trials):
                rows = slice(trial * count, (trial + 1) * count)
                truth = Truth(data.images[rows], data.labels[rows])
                net = LeNet(data.images.shape[1], data.images.shape[2], data.classes)
                model = uniform_weights(net, seed=trial).eval()
                for name in ("all", "learning rate", "nothing"):
                    line = estimate(model, truth, name, steps, trial, options)
                    print(f"| {count}, {steps} | {line}", flush=True)


def estimate(
    model: nn.Module, truth: Truth, name: str, steps: int, seed: int, options: argparse.Namespace
) -> str:
    """What one update told only `name` of its training comes to; the rest of one table row."""
    local, rate = LocalFlags("update", options.lr, steps), options.lr
    told = {"all": local, "learning rate": LocalFlags("update", rate)}.get(name)
    problem = problem_of(model, truth, local, told=told or LocalFlags("update"))
    with mock.patch.object(time, "monotonic", time.process_time):
        begun = time.process_time()
        watch = Watch(deadline=begun + 3 * options.limit)  # of which the estimate has a third
        problem = with_estimated_training(problem, seed=seed, watch=watch)
        seconds = time.process_time() - begun
    found = problem.knowledge.local
    assert found is not None
    said = found.estimate
    cells = "| | | |"
    if said is not None:
        labels = None if problem.labels is None else problem.labels.estimate
        right = labels is not None and labels.tolist() == sorted(truth.labels.tolist())
        off = "" if found.lr is None else f"{abs(found.lr / rate - 1):.0e}"
        levels = ", ".join("" if v is None else f"{v:.0e}" for v in (said.residual, said.runner_up))
        verdict = f"{found.steps}{'' if found.steps == steps else ' (wrong)'}, {right}"
        cells = f"{verdict} | {off} | {levels} | {seconds:.1f} |"
    if name == "learning rate":
        return f"{name} | {cells} | |"
    trial = run(problem, LevenbergMarquardt(), truth, 1000 + seed, options.limit)
    heard = ", ".join(f"{decibels(error):.1f}" for error in trial.errors)
    sure = " verified" if trial.verified else ""
    return f"{name} | {cells} {heard}{sure} | {trial.seconds:.1f} |"


def first_layer(options: argparse.Namespace) -> None:
    """The exact case: one picture, any number of steps."""
    data = pictures(options.data, options.exact_trials, options.size)
    pixels = data.images[0].numel()
    print(
        f"\nFirst linear layer, {options.size}x{options.size}, one picture, rate {options.lr:g}\n"
    )
    print(header("momentum, weight decay, steps"), flush=True)
    for momentum, decay in ((0.0, 0.0), (0.9, 0.0), (0.9, 1e-4)):
        for steps in (int(part) for part in options.steps.split(",")):
            found = []
            for trial in range(options.exact_trials):
                truth = Truth(data.images[trial : trial + 1], data.labels[trial : trial + 1])
                torch.manual_seed(trial)
                layers = [nn.Flatten(), nn.Linear(pixels, 128), nn.ReLU(), nn.LayerNorm(128)]
                model = nn.Sequential(*layers, nn.Linear(128, data.classes)).eval()
                local = LocalFlags("update", options.lr, steps, None, None, momentum, decay)
                problem = problem_of(model, truth, local)
                attack = LayerByLayer() if is_one_gradient(problem) else FirstLayer()
                found.append(run(problem, attack, truth, trial, options.limit))
            print(row(f"{momentum:g}, {decay:g}, {steps}", found), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--counts", default="1,2,4")
    parser.add_argument("--steps", default="1,2,5,10")
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--exact-trials", type=int, default=10)
    parser.add_argument("--limit", type=float, default=120.0, help="processor seconds of a trial")
    parser.add_argument("--first-layer-only", action="store_true")
    parser.add_argument("--estimates-only", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{environment()}\n", flush=True)
    if not options.first_layer_only:
        if not options.estimates_only:
            lenet(options)
        estimates(options)
    if not options.estimates_only:
        first_layer(options)


if __name__ == "__main__":
    main()
