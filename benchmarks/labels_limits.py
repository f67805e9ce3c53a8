"""What a batch's head gradient tells of its labels, beside our estimate.

    python benchmarks/labels_limits.py --data cifar10.npz [--checkpoint FILE.th]
        [--batches 8,16,32,64] [--folds 3] [--steps 2500]

With FILE: the published ResNet-20 in evaluation mode. Without: the papers' LeNet, its weights
uniform in +-0.5 and others in each fold. Of 500 pictures a fold keeps 100, chosen at random; test
batches (2,000 of each size, classes equally likely) are drawn from these, and everything that
learns has the other 400. All columns are instance accuracies on the same test batches:

- even: every class equally often, lowest row sums first. It knows next to nothing.
- ours: the rules of gradaudit, weighed on simulated clients with the 400 pictures (no search).
- network: a network (three layers of 256, cross-entropy of the counts) taught on 512 new batches a
  step, of the 400 pictures, mirrored and shifted. It sees the bias gradient, the rows along the 30
  strongest directions of the features and resolved into class means, each also as logarithms, and
  what is proved. Its decoding maximises the expected overlap.
- told sums: the same network, told besides, exactly, the sum of p - y over the samples of each
  class: what it would be to resolve a gradient into class means without any error.
- told k: the labels of the k samples with the largest 1 - p[y] are known, the rest spread evenly.
  The gradient of the head has nine independent rows; a search that peels off samples ends there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import environment, pictures
from labels import MEAN, STD, head_input, published
from torch import Tensor, nn
from torch.nn import functional as F

from auditor.labels.posterior import learn, spread_out
from auditor.labels.reference import Reference
from auditor.labels.rules import Heads, Layer
from auditor.labels.simulation import Client
from auditor.zoo import LeNet, uniform_weights

_TESTS, _TAUGHT = 2000, 512  # batches: of a test, of one step
_KEPT = 100  # pictures of a fold that only tests see
_DIRECTIONS = 30
_TOLD = (9, 12, 16, 20)
_SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1), (2, 2), (-2, -2))


@dataclass(frozen=True)
class Known:
    """What the network says of M pictures, each seen in V ways."""

    features: Tensor  # (V, M, E) float64
    probabilities: Tensor  # (V, M, K) float32
    labels: Tensor  # (M,)


@dataclass(frozen=True)
class Batches:
    """S batches of N samples, and the gradients of their summed loss."""

    heads: Heads
    counts: Tensor  # (S, K) float64
    labels: Tensor  # (S, N)
    doubts: Tensor  # (S, N): 1 - p[y]
    sums: Tensor  # (S, K, K): p - y summed over the samples of each class


def known(
    model: nn.Module, images: Tensor, labels: Tensor, shifts: tuple[tuple[int, int], ...]
) -> Known:
    """Pass pictures and their mirror images, shifted, through the model."""
    views = []
    for down, right in shifts:
        moved = torch.roll(F.pad(images, (4, 4, 4, 4)), (down, right), (2, 3))[..., 4:-4, 4:-4]
        views += [moved, moved.flip(3)]
    seen = [head_input(model, view) for view in (views if len(shifts) > 1 else views[:1])]
    features = torch.stack([features.double() for features, _ in seen])
    return Known(features, torch.stack([torch.softmax(z, 1) for _, z in seen]), labels)


def draw(of: Known, size: int, count: int, generator: torch.Generator) -> Batches:
    """Classes equally likely, pictures of a class too; gradients in float32."""
    classes = of.probabilities.shape[2]
    labels = torch.randint(classes, (count, size), generator=generator)
    chosen = torch.empty_like(labels)
    for label in range(classes):
        own, wanted = (of.labels == label).nonzero().flatten(), labels == label
        chosen[wanted] = own[torch.randint(len(own), (int(wanted.sum()),), generator=generator)]
    view = torch.randint(len(of.features), labels.shape, generator=generator)
    hot = F.one_hot(labels, classes)
    gaps = (of.probabilities[view, chosen] - hot).double()
    heads = Heads(
        (gaps.mT @ of.features[view, chosen]).float().double(), gaps.sum(1).float().double()
    )
    doubts = -(gaps * hot).sum(2)
    return Batches(heads, hot.sum(1).double(), labels, doubts, gaps.mT @ hot.double())


# --------------------------------------------------------------------------- estimates


def bounds(heads: Heads) -> Tensor:
    """T2 and T5: proved lower counts (S, K)."""
    assert heads.weight is not None
    assert heads.bias is not None
    lowest = heads.weight.amin(-1) < -1e-6 * heads.weight.abs().amax(-1)
    return torch.maximum((-heads.bias - 1e-4).ceil().clamp_min(0), lowest.double())


def ours(batches: Batches, of: Known, layer: Layer, size: int) -> Tensor:
    """Counts (S, K) by the rules of gradaudit."""
    client = Client(size, len(layer.offset), 0.0, 2.0**-24, True, True, None)
    reference = Reference(of.features[0], of.probabilities[0].double(), of.labels, "400 images")
    generator = torch.Generator().manual_seed(0)
    estimator = learn(client, reference, layer, bounds, generator=generator, expired=lambda: False)
    assert estimator is not None
    expected, lower = estimator.expected(batches.heads), bounds(batches.heads)
    rows = []
    for mine, least in zip(expected, lower, strict=True):
        added, _ = spread_out(mine, least, torch.full_like(least, size), size)
        rows.append(least + torch.bincount(added, minlength=len(least)))
    return torch.stack(rows)


def even(batches: Batches, size: int) -> Tensor:
    """Counts (S, K): each class as often, lowest row sums first."""
    assert batches.heads.weight is not None
    rank = batches.heads.weight.sum(-1).argsort(-1).argsort(-1)
    classes = rank.shape[1]
    return size // classes + (rank < size % classes).double()


def told(batches: Batches, strongest: int, size: int) -> Tensor:
    """Counts (S, K) by somebody who knows the labels of the strongest samples."""
    order = batches.doubts.argsort(1, descending=True)[:, :strongest]
    classes = batches.counts.shape[1]
    found = F.one_hot(batches.labels.gather(1, order), classes).sum(1).double()
    left = size - strongest
    first = batches.labels.sum(1, keepdim=True)  # the classes that get one more: any
    place = (torch.arange(classes) - first) % classes
    return found + left // classes + (place < left % classes).double()


class Counter(nn.Module):
    """From inputs (S, D) to logits (S, K, N + 1) of how often each class occurs."""

    def __init__(self, inputs: Tensor, classes: int, size: int) -> None:
        super().__init__()
        self.mean, self.std = inputs.mean(0), inputs.std(0) + 1e-6
        self.body = nn.Sequential(
            nn.Linear(inputs.shape[1], 256), nn.GELU(), nn.Dropout(0.1),
            nn.Linear(256, 256), nn.GELU(), nn.Dropout(0.1),
            nn.Linear(256, classes * (size + 1)),
        )  # fmt: skip
        self.shape = (classes, size + 1)

    def forward(self, inputs: Tensor) -> Tensor:
        normed = (inputs - self.mean) / self.std
        if self.training:
            normed = normed + 0.02 * torch.randn_like(normed)
        logits: Tensor = self.body(normed)
        return logits.unflatten(1, self.shape)


def network(test: Batches, of: Known, size: int, steps: int, *, told_sums: bool) -> Tensor:
    """Counts (S, K) by a network that is taught on batches of the known pictures."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(1)
    classes = of.probabilities.shape[2]
    view = _view_of(of)

    def inputs(batches: Batches) -> Tensor:
        sums = [_decades(batches.sums, 1e-9).flatten(1)] if told_sums else []
        return torch.cat([view(batches.heads), *sums], 1).float()

    model = Counter(inputs(draw(of, size, 2000, generator)), classes, size)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        taught = draw(of, size, _TAUGHT, generator)
        logits = model(inputs(taught)).flatten(0, 1)
        loss = F.cross_entropy(logits, taught.counts.long().flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    model.eval()
    with torch.no_grad():
        return _likeliest(model(inputs(test)).softmax(-1).double(), bounds(test.heads), size)


def _view_of(of: Known) -> Callable[[Heads], Tensor]:
    """What the network sees of the gradients of S heads, (S, D)."""
    features, classes = of.features[0], of.probabilities.shape[2]
    mean = features.mean(0)
    directions = torch.linalg.svd(features - mean, full_matrices=False).Vh[:_DIRECTIONS]
    means = torch.stack([features[of.labels == label].mean(0) for label in range(classes)])
    resolve = torch.linalg.pinv(means)  # (E, K)

    def view(heads: Heads) -> Tensor:
        weight, bias = heads.weight, heads.bias
        assert weight is not None
        assert bias is not None
        rows = ((weight - bias[..., None] * mean) @ directions.mT).flatten(1)
        parts = [bias, _decades(bias), weight @ mean / (mean @ mean), weight.sum(-1), rows]
        parts += [bounds(heads), _decades(weight.amin(-1)), _decades(rows)]
        parts += [_decades(weight.clamp_max(0).sum(-1)), _decades(weight.clamp_min(0).sum(-1))]
        return torch.cat([*parts, _decades(weight @ resolve).flatten(1)], 1)

    return view


def _decades(values: Tensor, smallest: float = 1e-6) -> Tensor:
    return values.sign() * torch.log10(1 + values.abs() / smallest)


def _likeliest(shares: Tensor, lower: Tensor, size: int) -> Tensor:
    """The counts (S, K) of the largest expected overlap: label by label, by P(count >= k)."""
    least = shares.flip(2).cumsum(2).flip(2)[:, :, 1:]  # (S, K, N): P(count >= k), k from 1
    steps = torch.arange(1, size + 1)
    worth = torch.where(steps <= lower[:, :, None], 2.0, least) - 1e-6 * steps
    labels = worth.flatten(1).topk(size, 1).indices // size
    return F.one_hot(labels, shares.shape[1]).sum(1).double()


# --------------------------------------------------------------------------- table


def _model(checkpoint: Path | None, seed: int) -> nn.Module:
    return (
        uniform_weights(LeNet(3, 32, 10), seed=seed)
        if checkpoint is None
        else published(checkpoint)
    )


def row(options: argparse.Namespace, size: int) -> list[float]:
    """Mean accuracies over the folds."""
    data = pictures(options.data, 500)
    mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (MEAN, STD))
    images = (data.images - mean) / std
    found: list[list[float]] = []
    for fold in range(options.folds):
        model = _model(options.checkpoint, fold).eval()
        layer = Layer(*(p.detach().double() for p in list(model.parameters())[-2:]))
        generator = torch.Generator().manual_seed(fold)
        order = torch.randperm(len(images), generator=generator)
        kept, others = order[:_KEPT], order[_KEPT:]
        mine = known(model, images[others], data.labels[others], _SHIFTS)
        unseen = known(model, images[kept], data.labels[kept], _SHIFTS[:1])
        test = draw(unseen, size, _TESTS, generator)
        made = [
            even(test, size),
            ours(test, mine, layer, size),
            *(network(test, mine, size, options.steps, told_sums=sums) for sums in (False, True)),
            *(told(test, min(k, size), size) for k in _TOLD),
        ]
        found.append([float(torch.minimum(c, test.counts).sum()) / (_TESTS * size) for c in made])
    return torch.tensor(found).mean(0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument(
        "--batches", type=lambda text: [int(part) for part in text.split(",")],
        default=[8, 16, 32, 64],
    )  # fmt: skip
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    columns = ["even", "ours", "network", "told sums", *(f"told {k}" for k in _TOLD)]
    print(f"{environment()}\n\n| batch | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    for size in options.batches:
        print(
            f"| {size} | {' | '.join(f'{cell:.3f}' for cell in row(options, size))} |", flush=True
        )


if __name__ == "__main__":
    main()
