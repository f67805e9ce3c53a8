"""A real leak, offline: a drawn picture, the papers' LeNet, one gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from auditor.audit import Case
from auditor.facts import Flags, settle
from auditor.records import FileRef, LoadedModel, Truth
from auditor.simulate import simulate_dump
from auditor.zoo import LeNet, uniform_weights

CLASSES = 10
LABEL = 3


def demo_case(*, seed: int) -> Case:
    """Model, dump and truth of the demo."""
    model = LoadedModel(demo_model(seed=seed), FileRef("demo LeNet", "in memory", 0, ""))
    truth = demo_truth()
    dump = simulate_dump(model.module, truth, Flags())
    return Case(model, dump, settle(dump, model.module, Flags()), truth)


def demo_model(*, seed: int) -> nn.Module:
    """The LeNet of DLG and iDLG for 3x32x32 pictures, with their weights: uniform in +-0.5."""
    return uniform_weights(LeNet(3, 32, CLASSES), seed=seed).eval()


def demo_truth() -> Truth:
    """One sample: a drawn face (1, 3, 32, 32), pixels 0..1."""
    return Truth(inputs=_face()[None], labels=torch.tensor([LABEL]))


def _face(side: int = 32) -> Tensor:
    """A face before an evening sky, with soft edges; drawn here so that no file is needed."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, side), torch.linspace(-1, 1, side), indexing="ij")
    sky = torch.stack([0.35 + 0.3 * y, 0.25 + 0.15 * y, 0.55 - 0.2 * y])
    picture = _paint(sky, _disc(x, y, 0.0, 0.05, 0.72), (0.98, 0.80, 0.36))
    for side_of_face in (-0.27, 0.27):
        picture = _paint(picture, _disc(x, y, side_of_face, -0.15, 0.13), (0.15, 0.12, 0.20))
        picture = _paint(picture, _disc(x, y, side_of_face + 0.04, -0.19, 0.05), (1.0, 1.0, 1.0))
        picture = _paint(picture, _disc(x, y, side_of_face * 1.6, 0.2, 0.12), (0.95, 0.55, 0.40))
    radius = ((x**2) + (y - 0.05) ** 2).sqrt()
    smile = _soft(0.07 - (radius - 0.42).abs()) * _soft(y - 0.22)
    return _paint(picture, smile, (0.60, 0.13, 0.17)).clamp(0, 1)


def _disc(x: Tensor, y: Tensor, cx: float, cy: float, radius: float) -> Tensor:
    return _soft(radius - ((x - cx) ** 2 + (y - cy) ** 2).sqrt())


def _soft(distance: Tensor) -> Tensor:
    """1 inside, 0 outside, about two pixels of slope."""
    return torch.sigmoid(distance * 16 * math.e)


def _paint(picture: Tensor, mask: Tensor, colour: tuple[float, float, float]) -> Tensor:
    return picture * (1 - mask) + torch.tensor(colour).view(3, 1, 1) * mask
