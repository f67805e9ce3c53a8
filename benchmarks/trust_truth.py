"""How far the gradient of a truth file is from a dump: its own, a coarser copy, and other pictures.

    python benchmarks/trust_truth.py --data cifar10.npz [--checkpoint FILE.th] [--trials 10]

The client's pictures are those of the file with a contrast of 0.97, so that they are not on the
8-bit grid. Its truth file holds them in single precision, rounded to 8 bits, as JPEG of quality 95
and 75, mirrored, or holds other pictures of the same classes or of other classes. Networks: the
papers' LeNet, a ReLU network, ResNet-20 untrained and, with FILE, the published one. A cell: the
least and the largest relative distance over the trials; the audit measures against a truth up to
0.05 where a claim equals the dump, and up to 0.5 where none does (auditor/measuring.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from common import Pictures, environment, pictures, problem_for, send
from labels import MEAN, STD, published
from torch import Tensor, nn
from torchvision.io import decode_jpeg, encode_jpeg

from auditor.measuring import distance_of
from auditor.records import Truth
from auditor.zoo import CifarResNet, LeNet, uniform_weights

_CONTRAST = 0.97
Scale = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of each channel


def networks(checkpoint: Path | None) -> dict[str, Callable[[], nn.Module]]:
    """Name and maker; weights are drawn from torch's generator."""
    made: dict[str, Callable[[], nn.Module]] = {
        "LeNet": lambda: uniform_weights(LeNet(3, 32, 10), seed=int(torch.randint(1 << 30, ()))),
        "ReLU network": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(3072, 256), nn.ReLU(), nn.Linear(256, 10)
        ),
        "ResNet-20": lambda: CifarResNet(3),
    }
    if checkpoint is not None:
        made["ResNet-20, trained"] = lambda: published(checkpoint)
    return made


def copies(data: Pictures, places: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What a truth file may hold in place of the client's pictures: pixels and labels."""
    images, labels = _CONTRAST * data.images[places], data.labels[places]
    rounded = (images * 255).round().to(torch.uint8)
    same = torch.stack([_other(data, place, alike=True) for place in places])
    else_ = torch.stack([_other(data, place, alike=False) for place in places])
    return {
        "its own": (images, labels),
        "8 bits": (rounded.float() / 255, labels),
        "JPEG 95": (_jpeg(rounded, 95), labels),
        "JPEG 75": (_jpeg(rounded, 75), labels),
        "mirrored": (images.flip(3), labels),
        "others of the class": (_CONTRAST * data.images[same], labels),
        "other classes": (_CONTRAST * data.images[else_], data.labels[else_]),
    }


def _other(data: Pictures, place: Tensor, *, alike: bool) -> Tensor:
    fits = (data.labels == data.labels[place]) == alike
    fits[place] = False
    choice = fits.nonzero().flatten()
    return choice[torch.randint(len(choice), ())]


def _jpeg(images: Tensor, quality: int) -> Tensor:
    return torch.stack([decode_jpeg(encode_jpeg(one, quality)) for one in images]).float() / 255


def distances(
    make: Callable[[], nn.Module], scale: Scale, data: Pictures, size: int, trials: int
) -> list[str]:
    """A cell for each kind of truth."""
    found: dict[str, list[float]] = {}
    for trial in range(trials):
        torch.manual_seed(trial)
        model = make().eval()
        places = torch.randperm(len(data.images))[:size]
        truths = copies(data, places)
        images, labels = truths["its own"]
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in scale)
        sent = send(model, (images - mean) / std, labels)
        problem = problem_for(sent)
        known = replace(problem.knowledge, mean=scale[0], std=scale[1], mode="eval")
        problem = replace(problem, knowledge=known)
        for name, truth in truths.items():
            apart = distance_of(problem, Truth(*truth))
            assert apart is not None
            found.setdefault(name, []).append(apart)
    return [f"{min(values):.2g} to {max(values):.2g}" for values in found.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--trials", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = pictures(options.data, 500)
    names = list(copies(data, torch.arange(1)))
    print(f"{environment()}\n\n| network | batch | {' | '.join(names)} |")
    print(f"|{'---|' * (len(names) + 2)}")
    for name, make in networks(options.checkpoint).items():
        scale = (MEAN, STD) if name.endswith("trained") else ((0.0,), (1.0,))
        for size in (1, 8):
            cells = distances(make, scale, data, size, options.trials)
            print(f"| {name} | {size} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
