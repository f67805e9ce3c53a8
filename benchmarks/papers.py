"""DLG and iDLG as published beside gradaudit's default, on the same problems in one run.

    python benchmarks/papers.py --data DIR [--n 20] [--datasets mnist,cifar100,lfw]

DIR holds NAME.npz with `images` (uint8, NHWC or NHW), `labels` and `num_classes`. The papers' side
is written from the papers: the sigmoid LeNet with weights uniform in +-0.5, one start from N(0, 1),
plain squared distance, torch's L-BFGS with lr 1 and no line search, at most 300 outer steps, ended
when the distance falls below 1e-6 or is no number. Both sides get the same float32 gradient.
Success is a mean squared error below 1e-3 with pixels from 0 to 1.

Sources: Zhu, Liu, Han 2019, arXiv:1906.08935; Zhao, Mopuri, Bilen 2020, arXiv:2001.02610.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from auditor import __version__
from auditor.api import case_of
from auditor.audit import best_evidence, run_audit
from auditor.evidence import best_pixels
from auditor.facts import Flags
from auditor.options import make_options
from auditor.records import FileRef, LoadedModel
from auditor.zoo import LeNet, uniform_weights

GOOD = 1e-3
OUTER_STEPS = 300
PAPER_SHARE = {"lfw": 5}  # its 5,749 classes make the papers' side slow


@dataclass(frozen=True)
class Problem:
    """One picture, one network, one gradient."""

    model: nn.Module
    image: Tensor  # (1, C, H, W)
    label: int
    gradient: dict[str, Tensor]


@dataclass(frozen=True)
class Outcome:
    """What one method made of one problem."""

    label_right: bool
    mse: float
    seconds: float
    evaluations: int


def problems(path: Path, count: int) -> Iterator[Problem]:
    """The first `count` pictures of a data set, each with a network of its own."""
    data = np.load(path, allow_pickle=False)
    images = torch.from_numpy(data["images"][:count]).float() / 255
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    classes = int(data["num_classes"])
    for index in range(len(images)):
        model = uniform_weights(LeNet(images.shape[1], images.shape[2], classes), seed=index)
        image, label = images[index : index + 1].contiguous(), int(data["labels"][index])
        loss = F.cross_entropy(model(image), torch.tensor([label]))
        parts = torch.autograd.grad(loss, list(model.parameters()))
        names = [name for name, _ in model.named_parameters()]
        yield Problem(model, image, label, dict(zip(names, parts, strict=True)))


def dlg(problem: Problem, seed: int) -> Outcome:
    """Picture and label logits together."""
    return _published(problem, seed, joint=True)


def idlg(problem: Problem, seed: int) -> Outcome:
    """The label from the head's weight gradient, then the picture."""
    return _published(problem, seed, joint=False)


def _published(problem: Problem, seed: int, *, joint: bool) -> Outcome:
    torch.manual_seed(seed)
    begun = time.perf_counter()
    sent, parameters = list(problem.gradient.values()), list(problem.model.parameters())
    picture = torch.randn_like(problem.image).requires_grad_()
    logits = torch.randn(1, len(sent[-1])).requires_grad_()
    read_off = sent[-2].sum(1).argmin().reshape(1)
    free = [picture, logits] if joint else [picture]
    optimizer = torch.optim.LBFGS(free, lr=1)
    evaluations, distance = 0, float("inf")

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        target = logits.softmax(1) if joint else read_off
        loss = F.cross_entropy(problem.model(picture), target)
        mine = torch.autograd.grad(loss, parameters, create_graph=True)
        apart = torch.stack([(a - b).square().sum() for a, b in zip(mine, sent, strict=True)]).sum()
        apart.backward()
        return apart

    for _ in range(OUTER_STEPS):
        distance = float(optimizer.step(closure).detach())
        if not distance >= 1e-6:  # arrived, or no number any more
            break
    label = int(logits.argmax()) if joint else int(read_off)
    mse = float((picture.detach() - problem.image).square().mean())
    return Outcome(
        label == problem.label,
        mse if math.isfinite(mse) else math.inf,
        time.perf_counter() - begun,
        evaluations,
    )


def gradaudit(problem: Problem, seed: int) -> Outcome:
    """The default audit, without truth; the claim is the one that it puts into its report."""
    begun = time.perf_counter()
    loaded = LoadedModel(problem.model, FileRef("LeNet", "in memory", 0, ""))
    flags = Flags(input_shape=tuple(problem.image.shape[1:]))
    case = case_of(loaded, problem.gradient, flags)
    result = run_audit(case, make_options(seed=seed, device="cpu"))
    seconds = time.perf_counter() - begun
    labels = next(e.recovery.labels for e in result.evidence if e.recovery.labels is not None)
    best = best_evidence(result.evidence)
    guess = [] if labels.estimate is None else labels.estimate.tolist()
    mse = float("inf")
    if best is not None:
        mse = float((best_pixels(result.problem, best) - problem.image).square().mean())
    return Outcome(
        guess == [problem.label], mse, seconds, sum(e.recovery.evaluations for e in result.evidence)
    )


METHODS: tuple[tuple[str, Callable[[Problem, int], Outcome]], ...] = (
    ("DLG, as published", dlg),
    ("iDLG, as published", idlg),
    ("gradaudit, default", gradaudit),
)


def table_row(name: str, method: str, outcomes: list[Outcome]) -> str:
    """One line of the Markdown table."""
    count = len(outcomes)
    labels = sum(o.label_right for o in outcomes)
    images = sum(o.mse < GOOD for o in outcomes)
    return (
        f"| {name} | {method} | {labels}/{count} | {images}/{count} | "
        f"{statistics.median(o.mse for o in outcomes):.1e} | "
        f"{statistics.median(o.seconds for o in outcomes):.1f} | "
        f"{statistics.median(o.evaluations for o in outcomes):.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--datasets", default="mnist,cifar100,lfw")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"gradaudit {__version__}, torch {torch.__version__}, CPU, one thread\n")
    print(
        "| data set | method | labels right | images with MSE < 1e-3 | median MSE | "
        "median seconds | median evaluations |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in options.datasets.split(","):
        for method, run in METHODS:
            count = (
                options.n if run is gradaudit else min(options.n, PAPER_SHARE.get(name, options.n))
            )
            outcomes = [
                run(problem, 1000 + index)
                for index, problem in enumerate(problems(options.data / f"{name}.npz", count))
            ]
            print(table_row(name, method, outcomes), flush=True)


if __name__ == "__main__":
    main()
