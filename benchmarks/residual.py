"""How often images.deconvolution reads one picture of a residual network, and how often wrongly.

    python benchmarks/residual.py --data FILE.npz [--trials 20] [--seconds 60]
        [--checkpoint FILE.th] [--pictures 10] [--wide 224]

Small residual networks at 8x8 with drawn batch norm statistics, of several widths, so that some can
be read down to the picture, some end in a search, and some have too few channels for anything; and,
with --checkpoint, the published ResNet-20 for CIFAR-10 at 32x32. float32 dumps, one picture, label
and batch size known, evaluation mode. A *wrong* claim is one that the audit's own harness calls
proved or verified and that is under 30 dB. Seconds are those of the processor, one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from common import Sent, decibels, environment, pictures, problem_for, send
from peers import normalised, problem_of, published
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from auditor.attacks import Deconvolution, Watch
from auditor.evidence import examine, is_proved, is_verified
from auditor.inversion.descent import Steps
from auditor.problem import to_pixels
from auditor.records import Evidence, Problem
from auditor.zoo import BasicBlock

WIDTHS = ((16, 32), (10, 24), (6, 24), (4, 16), (4, 12))


class Small(nn.Module):
    """A stem, one block at 8x8, two at 4x4, a pooled head."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, low, 3, padding=1, bias=False), nn.BatchNorm2d(low)
        self.one, self.two = BasicBlock(low, low, 1), BasicBlock(low, high, 2)
        self.three, self.head = BasicBlock(high, high, 1), nn.Linear(high, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(F.relu(self.norm(self.stem(x))))
        return self.head(self.three(self.two(x)).mean((2, 3)))


def small(low: int, high: int, seed: int) -> Small:
    """A network with statistics and gains as after some training."""
    torch.manual_seed(seed)
    module = Small(low, high)
    with torch.no_grad():
        for inner in module.modules():
            if isinstance(inner, nn.BatchNorm2d):
                inner.weight.uniform_(0.5, 1.5)
                inner.bias.uniform_(-0.3, 0.3)
                inner.running_mean.normal_(0, 0.2)
                inner.running_var.uniform_(0.5, 1.5)
    return module.eval()


def audit(problem: Problem, true: Tensor, seed: int, seconds: float) -> tuple[float, str, float]:
    """PSNR in dB of the best claim, the harness's word for it, processor seconds."""
    attack = Deconvolution()
    begun = time.process_time()
    with mock.patch.object(time, "monotonic", time.process_time):
        if attack.blocked_by(problem) is not None:
            return 0.0, "skipped", 0.0
        found = attack.run(problem, seed=seed, watch=Watch(deadline=begun + seconds))
    spent = time.process_time() - begun
    evidence = examine(problem, found, attack=attack.name, seconds=spent)
    if not isinstance(evidence, Evidence) or evidence.best is None or found.inputs is None:
        return 0.0, "nothing", spent
    error = float((to_pixels(problem, found.inputs[evidence.best]) - true).square().mean())
    proved, verified = is_proved(problem, evidence), is_verified(problem, evidence)
    word = "proved" if proved else "verified" if verified else "not confirmed"
    return decibels(error), word, spent


def row(name: str, outcomes: list[tuple[float, str, float]]) -> str:
    """One line of the table."""
    words = [word for _, word, _ in outcomes]
    claimed = [db for db, word, _ in outcomes if word not in {"skipped", "nothing"}]
    wrong = sum(word in {"proved", "verified"} and db < 30 for db, word, _ in outcomes)
    median = f"{statistics.median(claimed):.1f}" if claimed else ""
    seconds = statistics.median(spent for _, _, spent in outcomes)
    counts = " | ".join(
        str(words.count(word))
        for word in ("proved", "verified", "not confirmed", "nothing", "skipped")
    )
    over = sum(db > 60 for db in claimed)
    return f"| {name} | {len(words)} | {counts} | {wrong} | {median} | {over} | {seconds:.1f} |"


def tasks(
    data: Path, trials: int, checkpoint: Path | None, count: int
) -> Iterator[tuple[str, list[tuple[Problem, Tensor]]]]:
    """Problems by row of the table, each with the true pixels (1, C, H, W)."""
    shrunk = pictures(data, trials, 8)
    for low, high in WIDTHS:
        sent: list[Sent] = []
        for index in range(trials):
            part = slice(index, index + 1)
            sent.append(send(small(low, high, index), shrunk.images[part], shrunk.labels[part]))
        yield f"small, {low} and {high} channels", [(problem_for(s), s.images) for s in sent]
    if checkpoint is not None:
        model, every = published(checkpoint), pictures(data, count)
        given = []
        for index in range(count):
            true = every.images[index : index + 1]
            sent_one = send(model, normalised(true), every.labels[index : index + 1])
            given.append((problem_of(sent_one), true))
        yield "published ResNet-20", given


def wide(data: Path, size: int) -> None:
    """What each feature of torchvision's ResNet-18, with random weights, says of itself."""
    torch.manual_seed(0)
    module, every = models.resnet18(num_classes=10), pictures(data, 64, size)
    with torch.no_grad():
        for _ in range(20):  # running statistics
            module(every.images)
    sent = send(module.eval(), every.images[:1], every.labels[:1])
    begun = time.process_time()
    few = Deconvolution(readings=1, steps=Steps(1, 1, 1))
    found = few.run(problem_for(sent), seed=0, watch=Watch())
    print(f"\nResNet-18 at {size}x{size}, read down in {time.process_time() - begun:.0f} s\n")
    print("| layer | unknowns | equations | relative residual |\n|---|---|---|---|")
    for link in found.links[:-1]:
        print(f"| {link.layer} | {link.unknowns} | {link.equations} | {link.residual:.1e} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--pictures", type=int, default=10)
    parser.add_argument("--wide", type=int, help="the side of a picture for a ResNet-18")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(environment(), flush=True)
    print(
        "\n| network | trials | proved | verified | not confirmed | nothing | skipped | wrong | "
        "median dB | over 60 dB | median s |\n" + "|---" * 11 + "|"
    )
    for name, problems in tasks(given.data, given.trials, given.checkpoint, given.pictures):
        outcomes = [
            audit(problem, true, seed, given.seconds)
            for seed, (problem, true) in enumerate(problems)
        ]
        print(row(name, outcomes), flush=True)
    if given.wide is not None:
        wide(given.data, given.wide)


if __name__ == "__main__":
    main()
