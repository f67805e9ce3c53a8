"""What priors and statistics of the batch are worth: batch norm in training and evaluation mode.

    python benchmarks/priors.py --data FILE.npz --part lm [--counts 1,4,8] [--trials 2]
    python benchmarks/priors.py --data FILE.npz --part train [--weights FILE.th] [--counts 1,4,8]
    python benchmarks/priors.py --data FILE.npz --part eval --weights FILE.th [--counts 1,4]

FILE.npz holds `images` (uint8, NHWC), `labels` and `num_classes`, as cifar10.npz. Every client
takes one step of SGD and sends its update; in training mode its buffers go along. The attacker is
told the labels, so that no wrong label blurs the comparison. Both sides of a comparison have the
same dump, seed and settings; evaluations and processor seconds are beside them.

lm: images.lm on a LeNet of 16x16 pictures with batch norm (sigmoid), without and with the
statistics. train and eval: images.priors on ResNet-20, the one of --weights (a state_dict) or with
random weights: without and with statistics, with and without a group. Of the answers that one
counts which the harness puts first; no truth has a part in the choice.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import Pictures, decibels, environment, mean_squared_errors, pictures
from torch import Tensor, nn

from auditor.attacks import Attack, ImagePriors, LevenbergMarquardt, Search, Watch
from auditor.attacks.priors import PRIORS
from auditor.batch_statistics import running_statistics
from auditor.evidence import examine, is_equal, is_verified
from auditor.facts import Flags, LocalFlags, settle
from auditor.problem import make_problem, to_pixels
from auditor.records import Evidence, LabelClaim, Problem, Truth
from auditor.simulate import simulate_dump
from auditor.zoo import build

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HEADER = (
    "| network | mode | batch | setting | trials | median PSNR, dB | best PSNR, dB | equal | "
    "verified | evaluations | processor seconds |\n|---|---|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Trial:
    """What one setting made of one dump."""

    psnr: tuple[float, ...]  # dB, one a picture
    equal: bool
    verified: bool
    evaluations: int
    seconds: float  # of the processor


class SmallNet(nn.Module):
    """The papers' LeNet with a batch norm behind each convolution."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, stride in ((3, 2), (12, 2), (12, 1)):
            convolution = nn.Conv2d(channels, 12, 5, stride, 2, bias=False)  # the norm has one
            layers += [convolution, nn.BatchNorm2d(12), nn.Sigmoid()]
        self.body = nn.Sequential(*layers)
        self.fc = nn.Linear(12 * (size // 4) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).flatten(1))  # type: ignore[no-any-return]


def small_net(classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return SmallNet(16, classes)


def resnet(weights: Path | None, seed: int) -> nn.Module:
    """ResNet-20 of CIFAR, with the weights of a file if there is one."""
    torch.manual_seed(seed)
    model = build("resnet20")
    if weights is not None:
        held = torch.load(weights, map_location="cpu", weights_only=True)
        held = held.get("state_dict", held)
        model.load_state_dict({name.removeprefix("module."): part for name, part in held.items()})
    return model


def sent_by(
    model: nn.Module, data: Pictures, rows: slice, *, train: bool, normalised: bool
) -> Problem:
    """The attacker's problem for one step of a client with these pictures, the labels told."""
    truth = Truth(data.images[rows], data.labels[rows])
    local = LocalFlags(kind="update", lr=0.1, steps=1, batch_size=len(truth.labels))
    mode = "train" if train else "eval"
    flags = Flags(mode=mode, reduction="mean", local=local)
    if normalised:
        flags = replace(flags, mean=MEAN, std=STD)
    flags = replace(flags, batch_size=len(truth.labels), input_shape=tuple(data.images.shape[1:]))
    dump = simulate_dump(model, truth, flags)
    problem = make_problem(model, dump, settle(dump, model, flags), device=torch.device("cpu"))
    counts = torch.bincount(truth.labels, minlength=data.classes)
    told = LabelClaim(counts, counts, truth.labels.sort().values, ("told",), (), True)
    return replace(problem, labels=told)


def without_buffers(problem: Problem, model: nn.Module) -> Problem:
    """The same for an attacker who got no buffers, but has those of the model."""
    running = running_statistics(model) if problem.statistics else {}
    return replace(problem, statistics={}, running=running)


def tried(attack: Attack, problem: Problem, judged: Problem, true: Tensor) -> Trial:
    """Run on `problem`; the harness judges with all that was sent."""
    begun = time.process_time()
    recovery = attack.run(problem, seed=0, watch=Watch())
    seconds = time.process_time() - begun
    evidence = examine(judged, recovery, attack=attack.name, seconds=0.0)
    assert isinstance(evidence, Evidence)
    assert recovery.inputs is not None
    assert evidence.best is not None
    errors = mean_squared_errors(to_pixels(problem, recovery.inputs[evidence.best]), true)
    return Trial(
        tuple(decibels(error) for error in errors),
        is_equal(judged, evidence),
        is_verified(judged, evidence),
        recovery.evaluations,
        seconds,
    )


def table_row(network: str, mode: str, count: int, setting: str, found: list[Trial]) -> str:
    """One line of the Markdown table."""
    every = [value for trial in found for value in trial.psnr]
    return (
        f"| {network} | {mode} | {count} | {setting} | {len(found)} | "
        f"{statistics.median(every):.1f} | {max(every):.1f} | {sum(t.equal for t in found)} | "
        f"{sum(t.verified for t in found)} | "
        f"{statistics.mean(t.evaluations for t in found):.0f} | "
        f"{statistics.mean(t.seconds for t in found):.1f} |"
    )


def settings_of(arguments: argparse.Namespace) -> dict[str, tuple[Attack, bool]]:
    """By name, the attack and whether it sees the statistics."""
    if arguments.part == "lm":
        search = Search(restarts=arguments.restarts, at_once=1)
        lm = LevenbergMarquardt(search=search, steps=arguments.steps, smoothness=())
        return {"without buffers": (lm, False), "with sent statistics": (lm, True)}
    priors = ImagePriors(
        heats=8, heat_steps=arguments.heat_steps, steps=arguments.steps, finals=1, group=0
    )
    group = replace(priors, group=3)
    if arguments.part == "train":
        return {
            "without buffers": (priors, False),
            "with sent statistics": (priors, True),
            "with sent statistics, group": (group, True),
        }
    without = tuple(prior for prior in PRIORS if not prior.statistics)
    return {
        "no running statistics": (replace(priors, priors=without), False),
        "running statistics as a prior": (priors, False),
        "the same, group": (group, False),
    }


def rows_of(arguments: argparse.Namespace) -> Iterator[str]:
    side = 16 if arguments.part == "lm" else None
    counts = [int(text) for text in arguments.counts.split(",")]
    data = pictures(arguments.data, arguments.first + max(counts) * arguments.trials, side)
    train = arguments.part != "eval"
    kind = "published" if arguments.weights else "random weights"
    network = "LeNet, batch norm" if side else f"ResNet-20, {kind}"
    for count in counts:
        places = [arguments.first + count * trial for trial in range(arguments.trials)]
        found: dict[str, list[Trial]] = {name: [] for name in settings_of(arguments)}
        for trial, place in enumerate(places):
            model = small_net(data.classes, trial) if side else resnet(arguments.weights, trial)
            rows = slice(place, place + count)
            whole = sent_by(model, data, rows, train=train, normalised=side is None)
            true = data.images[place : place + count]
            # Pictures come back in the order of their sorted labels; errors are matched anyway.
            for name, (attack, sees) in settings_of(arguments).items():
                problem = whole if sees else without_buffers(whole, model)
                found[name].append(tried(attack, problem, whole, true))
                if arguments.verbose:
                    print(f"  {count} {trial} {name}: {found[name][-1]}", flush=True)
        for name, trials in found.items():
            yield table_row(network, "training" if train else "evaluation", count, name, trials)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", choices=("lm", "train", "eval"), required=True)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--counts", default="1,4")
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--first", type=int, default=0, help="the first picture")
    parser.add_argument("--steps", type=int, default=40, help="of a restart, or of the final")
    parser.add_argument("--restarts", type=int, default=4, help="of images.lm, at most")
    parser.add_argument("--heat-steps", type=int, default=40)
    parser.add_argument("--verbose", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(environment(), flush=True)
    print(_HEADER, flush=True)
    for line in rows_of(arguments):
        print(line, flush=True)


if __name__ == "__main__":
    main()
