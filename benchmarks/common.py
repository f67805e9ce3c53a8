"""What the benchmarks share: pictures, problems, the papers' loop, and a timed audit.

The papers' loop is written from the papers: one start from N(0, 1), plain squared distance, torch's
L-BFGS with lr 1 and no line search, at most 300 outer steps of 20 inner ones, ended when the
distance falls below 1e-6 or is no number.

Sources: Zhu, Liu, Han 2019, arXiv:1906.08935; Zhao, Mopuri, Bilen 2020, arXiv:2001.02610.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import auditor.audit
from auditor import __version__
from auditor.api import case_of
from auditor.audit import Case, Result, run_audit
from auditor.facts import Flags
from auditor.metrics import match_batch
from auditor.options import make_options
from auditor.problem import make_problem
from auditor.records import FileRef, LoadedModel, Problem
from auditor.zoo import LeNet, uniform_weights

OUTER_STEPS = 300
PAPER_GOAL = 1e-6


@dataclass(frozen=True)
class Pictures:
    """The first pictures of a data set."""

    images: Tensor  # (N, C, H, W) float32, pixels 0..1
    labels: Tensor  # (N,) int64
    classes: int


@dataclass(frozen=True)
class Sent:
    """One network, one batch, and the gradient that its owner sent."""

    model: nn.Module
    images: Tensor  # (N, C, H, W) float32, pixels 0..1
    labels: Tensor  # (N,) int64
    gradient: dict[str, Tensor]


@dataclass(frozen=True)
class Claim:
    """What the papers' loop ended with."""

    images: Tensor  # (N, C, H, W)
    labels: Tensor  # (N,) int64
    distance: float  # plain squared, to the sent gradient
    seconds: float
    evaluations: int


def pictures(path: Path, count: int, size: int | None = None) -> Pictures:
    """Read NAME.npz (`images` uint8 NHWC or NHW, `labels`, `num_classes`), resized if asked."""
    data = np.load(path, allow_pickle=False)
    images = torch.from_numpy(data["images"][:count]).float() / 255
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2)
    if size is not None and size != images.shape[2]:
        images = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    labels = torch.from_numpy(data["labels"][:count]).long()
    return Pictures(images.contiguous(), labels, int(data["num_classes"]))


def smooth_pictures(count: int, channels: int, size: int, seed: int) -> Tensor:
    """Random pictures (N, C, H, W) of soft spots, pixels 0..1, where no data set is needed."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)


def send(model: nn.Module, images: Tensor, labels: Tensor) -> Sent:
    """The float32 gradient of the mean cross-entropy of a batch."""
    loss = F.cross_entropy(model(images), labels)
    parts = torch.autograd.grad(loss, list(model.parameters()))
    names = [name for name, _ in model.named_parameters()]
    return Sent(model, images, labels, dict(zip(names, parts, strict=True)))


def lenet_step(data: Pictures, rows: slice, seed: int) -> Sent:
    """The papers' LeNet, weights uniform in +-0.5, and the gradient of some pictures."""
    images, labels = data.images[rows], data.labels[rows]
    model = uniform_weights(LeNet(images.shape[1], images.shape[2], data.classes), seed=seed)
    return send(model, images, labels)


def case_for(sent: Sent, *, batch_size: int | None = None) -> Case:
    """What `gradaudit scan` gets: the model and the gradient; neither pictures nor labels."""
    loaded = LoadedModel(sent.model, FileRef(type(sent.model).__name__, "in memory", 0, ""))
    flags = Flags(input_shape=tuple(sent.images.shape[1:]), batch_size=batch_size)
    return case_of(loaded, sent.gradient, flags)


def problem_for(sent: Sent, device: str = "cpu") -> Problem:
    """The attacker's problem, with the batch size told, for an attack that is called directly."""
    case = case_for(sent, batch_size=len(sent.images))
    return make_problem(case.model.module, case.dump, case.knowledge, device=torch.device(device))


@dataclass
class SetUp:
    """Seconds that went into making the problem."""

    seconds: float = 0.0


@contextmanager
def _timed_set_up() -> Iterator[SetUp]:
    """Measure the set-up of the problem inside `run_audit`."""
    spent = SetUp()

    def timed(*arguments: object, **named: object) -> Problem:
        begun = time.perf_counter()
        try:
            return make_problem(*arguments, **named)  # type: ignore[arg-type]
        finally:
            spent.seconds += time.perf_counter() - begun

    with mock.patch.object(auditor.audit, "make_problem", timed):
        yield spent


def timed_audit(
    sent: Sent,
    *,
    seed: int,
    budget: float | None = None,
    batch_size: int | None = None,
    attacks: Sequence[str] = (),
) -> tuple[Result, float, float]:
    """The default audit on the CPU, without truth; seconds to the verdict, and of the set-up.

    `attacks` names some, as on the command line; none leaves the choice to the cascade.

    Reading the dump and making the problem are set-up and not part of the seconds to the verdict.
    """
    case = case_for(sent, batch_size=batch_size)
    options = make_options(seed=seed, device="cpu", budget=budget, attacks=attacks)
    with _timed_set_up() as set_up:
        begun = time.perf_counter()
        result = run_audit(case, options)
        total = time.perf_counter() - begun
    return result, total - set_up.seconds, set_up.seconds


def published(sent: Sent, seed: int, *, joint: bool, limit: float | None = None) -> Claim:
    """DLG (`joint`: pictures and label logits together) or iDLG (label first, one sample only).

    `limit`: seconds after which no further outer step begins; None runs as long as the papers do.
    """
    torch.manual_seed(seed)
    begun = time.perf_counter()
    received, parameters = list(sent.gradient.values()), list(sent.model.parameters())
    images = torch.randn_like(sent.images).requires_grad_()
    logits = torch.randn(len(images), len(received[-1])).to(images.device).requires_grad_()
    read_off = received[-2].sum(1).argmin().reshape(1)
    optimizer = torch.optim.LBFGS([images, logits] if joint else [images], lr=1)
    evaluations, distance = 0, math.inf

    def closure() -> Tensor:
        nonlocal evaluations
        evaluations += 1
        optimizer.zero_grad()
        target = logits.softmax(1) if joint else read_off
        loss = F.cross_entropy(sent.model(images), target)
        mine = torch.autograd.grad(loss, parameters, create_graph=True)
        pairs = zip(mine, received, strict=True)
        apart = torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
        apart.backward()
        return apart

    for _ in range(OUTER_STEPS):
        distance = float(optimizer.step(closure).detach())
        if not distance >= PAPER_GOAL:  # arrived, or no number any more
            break
        if limit is not None and time.perf_counter() - begun > limit:
            break
    labels = logits.argmax(1) if joint else read_off
    seconds = time.perf_counter() - begun
    return Claim(images.detach(), labels, distance, seconds, evaluations)


def mean_squared_errors(claimed: Tensor, true: Tensor) -> list[float]:
    """One number a picture, (N, C, H, W) each, in the order that fits best; inf where not finite.

    The order within a batch means nothing to a gradient.
    """
    mine, theirs = claimed.detach().double().cpu(), true.detach().double().cpu()
    if not bool(mine.isfinite().all()):
        return [math.inf] * len(theirs)
    ordered = mine[match_batch(theirs, mine)] if len(theirs) > 1 else mine
    errors = (ordered - theirs).square().flatten(1).mean(1)
    return [float(error) for error in errors]


def decibels(mse: float) -> float:
    """PSNR of pixels 0..1."""
    if mse == 0:
        return math.inf
    return -10 * math.log10(mse) if math.isfinite(mse) else -math.inf


def warm_up() -> None:
    """Let torch load and compile what it needs once, for both sides, before anything is timed."""
    data = Pictures(smooth_pictures(1, 1, 12, 0), torch.tensor([3]), 10)
    sent = lenet_step(data, slice(0, 1), 0)
    timed_audit(sent, seed=0, budget=20)
    for joint in (False, True):
        published(sent, 0, joint=joint, limit=2)


def environment(device: str = "CPU, one thread") -> str:
    """Date, versions and machine in one line."""
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, gradaudit {__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, {device}"
    )
