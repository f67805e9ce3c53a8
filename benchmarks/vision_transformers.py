"""Vision transformers, one picture: what is read from a float32 gradient in closed form.

    python benchmarks/vision_transformers.py --data DIR [--n 20] [--large 2]

DIR holds cifar10.npz and, for torchvision's vit_b_16, lfw.npz. The audits run the attacks on labels
and `images.attention`; neither label nor batch size is told. What counts is how many pictures are
called proved or verified, and how far those are from the truth, worst and median. `--large` counts
the pictures for vit_b_16; they are scaled up to 224x224, so they are smooth. Its classifier starts
at zero, with which no gradient reaches the layers below: it is drawn from N(0, 0.02^2) instead.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from common import (
    Pictures,
    decibels,
    environment,
    mean_squared_errors,
    pictures,
    send,
    timed_audit,
    warm_up,
)
from torch import Tensor, nn
from torch.nn import functional as F

from auditor.audit import Result, best_evidence
from auditor.evidence import best_pixels
from auditor.zoo import ViT

_ATTACKS = ("labels", "images.attention")


@dataclass(frozen=True)
class Network:
    """A network to audit and how many pictures."""

    name: str
    make: Callable[[int], nn.Module]  # of a seed
    data: Pictures
    count: int


@dataclass(frozen=True)
class Outcome:
    """One audit."""

    certainty: str  # of the picture; "" when none was shown
    decibels: float | None
    seconds: float


def trained(model: nn.Module, data: Pictures, steps: int, seed: int) -> nn.Module:
    """The same model after some steps of Adam, batches of 64; it is changed."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(data.images), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(data.images[rows]), data.labels[rows]).backward()
        optimizer.step()
    return model.eval()


def vit(seed: int, **sizes: int) -> nn.Module:
    torch.manual_seed(seed)
    return ViT(**sizes).eval()


def vit_b_16(seed: int) -> nn.Module:
    from torchvision.models import vit_b_16 as make

    torch.manual_seed(seed)
    model = make()
    nn.init.normal_(model.heads.head.weight, std=0.02)
    return model.eval()


def audit(network: Network, row: int) -> Outcome:
    images, labels = network.data.images[row : row + 1], network.data.labels[row : row + 1]
    sent = send(network.make(row), images, labels)
    result, seconds, _ = timed_audit(sent, seed=0, attacks=_ATTACKS)
    certainty = next((f.certainty for f in result.audit.findings if f.code == "GA201"), "")
    return Outcome(str(certainty), _decibels(result, images), seconds)


def _decibels(result: Result, images: Tensor) -> float | None:
    best = best_evidence(result.evidence)
    if best is None:
        return None
    return decibels(mean_squared_errors(best_pixels(result.problem, best), images)[0])


def show(network: Network) -> None:
    found = [audit(network, row) for row in range(network.count)]
    proved, verified = (sum(o.certainty == word for o in found) for word in ("proved", "verified"))
    near = [o.decibels for o in found if o.decibels is not None and o.certainty]
    apart = f"{min(near):.1f} | {statistics.median(near):.1f}" if near else "- | -"
    seconds = statistics.median(o.seconds for o in found)
    print(
        f"| {network.name} | {network.count} | {proved} | {verified} | {apart} | {seconds:.1f} |",
        flush=True,
    )


def networks(folder: Path, count: int, large: int) -> Iterator[Network]:
    small = pictures(folder / "cifar10.npz", 500)
    rest = Pictures(small.images[count:], small.labels[count:], small.classes)
    for width in (64, 68, 96, 192):
        name = f"ViT, width {width}, depth 4, 64 patches of 4x4, as initialised"
        yield Network(name, lambda seed, width=width: vit(seed, width=width), small, count)
    yield Network("the same, depth 12, width 96", lambda s: vit(s, depth=12), small, count)
    for steps in (50, 200):
        model = trained(vit(0), rest, steps, 0)
        name = f"the same, depth 4, width 96, after {steps} steps of Adam on other pictures"
        yield Network(name, lambda _, model=model: model, small, count)
    if large:
        faces = pictures(folder / "lfw.npz", large, 224)
        faces = Pictures(faces.images, faces.labels % 1000, 1000)
        yield Network("torchvision vit_b_16, 224x224, 196 patches", vit_b_16, faces, large)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--large", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(environment() + "\n")
    warm_up()
    print("| network | pictures | proved | verified | worst dB | median dB | median seconds |")
    print("|---|---|---|---|---|---|---|")
    for network in networks(chosen.data, chosen.n, chosen.large):
        show(network)


if __name__ == "__main__":
    main()
