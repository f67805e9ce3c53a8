"""The audits of trust.py: dumps that leak nothing, and leaks of graded strength."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from common import Pictures, pictures, send
from peers import MEAN, STD, normalised, published
from torch import Tensor, nn

from auditor.api import case_of
from auditor.audit import Case
from auditor.facts import Flags
from auditor.records import FileRef, LoadedModel
from auditor.zoo import LeNet, uniform_weights

NETWORKS = ("LeNet", "MLP", "ResNet-20")
BATCHES = (1, 2, 4, 8)
CONTROLS = ("pure noise", "noise 100 times the signal", "another model's dump", "shuffled")
# Noise and pruning; both at zero are the dump as it was.
LEAKS = (
    ("as sent", 0.0),
    ("noise", 1e-5),
    ("noise", 1e-4),
    ("noise", 1e-3),
    ("noise", 1e-2),
    ("noise", 1e-1),
    ("pruned", 0.5),
    ("pruned", 0.9),
    ("pruned", 0.99),
)
_SIDE = 16  # of the LeNet's pictures
_HIDDEN = 128  # of the MLP
_FAR = 100.0


@dataclass(frozen=True)
class Sources:
    """Pictures, and the trained network if there is one."""

    colour: Path
    digits: Path
    checkpoint: Path | None


@dataclass(frozen=True)
class Task:
    """One audit to come; the same index makes the same one."""

    part: str  # "controls" or "leaks"
    index: int
    network: str
    batch: int
    kind: str  # of a control, or the defence
    strength: float

    @property
    def key(self) -> tuple[str, int]:
        return self.part, self.index


@dataclass(frozen=True)
class Made:
    """What is audited, and what the client had, which the audit is not told."""

    case: Case
    truth: Tensor  # (N, C, H, W) pixels 0..1


def tasks(part: str, count: int, *, trained: bool) -> Iterator[Task]:
    """`count` audits; networks, batches and kinds in turn, so that any part of them is mixed."""
    networks = NETWORKS if trained else NETWORKS[:2]
    kinds = [(name, 0.0) for name in CONTROLS] if part == "controls" else list(LEAKS)
    every = [(n, b, *k) for b in BATCHES for k in kinds for n in networks]
    for index in range(count):
        network, batch, kind, strength = every[index * 7 % len(every)]
        yield Task(part, index, network, batch, kind, strength)


def make(task: Task, sources: Sources) -> Made:
    """The model, the dump as it comes from the client, and the client's pictures."""
    data = _data(task, sources)
    generator = torch.Generator().manual_seed(1000 + task.index)
    chosen = torch.randperm(len(data.images), generator=generator)[: task.batch]
    images, labels = data.images[chosen], data.labels[chosen]
    model = _network(task.network, data, sources, seed=task.index)
    sender = model
    if task.kind == "another model's dump":
        sender = _network(task.network, data, sources, seed=10_000 + task.index, other=True)
    inputs = normalised(images) if task.network == "ResNet-20" else images
    gradient = _KINDS[task.kind](send(sender, inputs, labels).gradient, task.strength, generator)
    return Made(_case(task, model, gradient, images), images)


def _data(task: Task, sources: Sources) -> Pictures:
    if task.network == "MLP":
        return pictures(sources.digits, 500)
    return pictures(sources.colour, 400, _SIDE if task.network == "LeNet" else None)


def _network(
    name: str, data: Pictures, sources: Sources, *, seed: int, other: bool = False
) -> nn.Module:
    """The network; another one of the same shape has other weights."""
    channels, side = data.images.shape[1:3]
    torch.manual_seed(seed)
    if name == "LeNet":
        return uniform_weights(LeNet(channels, side, data.classes), seed=seed).eval()
    if name == "MLP":
        first = nn.Linear(channels * side * side, _HIDDEN)
        return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(_HIDDEN, data.classes))
    assert sources.checkpoint is not None
    model = published(sources.checkpoint)
    if other:  # as after further training
        with torch.no_grad():
            for weights in model.parameters():
                weights.add_(0.1 * weights.std(correction=0) * torch.randn_like(weights))
    return model


def _case(task: Task, model: nn.Module, gradient: dict[str, Tensor], images: Tensor) -> Case:
    """What `gradaudit scan` gets; the facts of the step are told, as protocols make them known."""
    scaled = task.network == "ResNet-20"
    flags = Flags(
        input_shape=tuple(images.shape[1:]),
        batch_size=len(images),
        mode="eval",
        reduction="mean",
        label_smoothing=0.0,
        mean=MEAN if scaled else (0.0,),
        std=STD if scaled else (1.0,),
    )
    loaded = LoadedModel(model, FileRef(type(model).__name__, "in memory", 0, ""))
    return case_of(loaded, gradient, flags)


# --------------------------------------------------------------------------- what is sent

Gradient = dict[str, Tensor]


def _as_sent(gradient: Gradient, _strength: float, _generator: torch.Generator) -> Gradient:
    return gradient


def _noised(gradient: Gradient, sigma: float, generator: torch.Generator) -> Gradient:
    return {n: g + sigma * torch.randn(g.shape, generator=generator) for n, g in gradient.items()}


def _pruned(gradient: Gradient, share: float, _generator: torch.Generator) -> Gradient:
    """The largest entries of all tensors together are kept."""
    sizes = torch.cat([g.abs().flatten() for g in gradient.values()])
    kept = max(1, round((1 - share) * len(sizes)))
    least = sizes.topk(kept).values[-1]
    return {n: torch.where(g.abs() >= least, g, 0.0) for n, g in gradient.items()}


def _pure_noise(gradient: Gradient, _strength: float, generator: torch.Generator) -> Gradient:
    """Of the norm of each tensor, without anything of the gradient."""
    drawn = {n: torch.randn(g.shape, generator=generator) for n, g in gradient.items()}
    return {n: d * (gradient[n].norm() / d.norm()) for n, d in drawn.items()}


def _drowned(gradient: Gradient, _strength: float, generator: torch.Generator) -> Gradient:
    every = torch.cat([g.flatten() for g in gradient.values()])
    return _noised(gradient, _FAR * float(every.square().mean().sqrt()), generator)


def _shuffled(gradient: Gradient, _strength: float, generator: torch.Generator) -> Gradient:
    return {
        n: g.flatten()[torch.randperm(g.numel(), generator=generator)].view_as(g)
        for n, g in gradient.items()
    }


_KINDS: dict[str, Callable[[Gradient, float, torch.Generator], Gradient]] = {
    "pure noise": _pure_noise,
    "noise 100 times the signal": _drowned,
    "another model's dump": _as_sent,
    "shuffled": _shuffled,
    "as sent": _as_sent,
    "noise": _noised,
    "pruned": _pruned,
}
