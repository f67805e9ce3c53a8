"""Nothing that is proved is wrong, whatever the model does with the picture."""

from dataclasses import replace

import pytest
import torch
from readings import (
    Written,
    assert_no_false_proof,
    client_of,
    of_a_picture,
)
from torch import nn
from torch.nn import functional as F


def _first_pixel_lost(x):
    return F.pad(x.flatten(1)[:, 1:], (1, 0)).view(-1, 1, 8, 8)


def _centred(x):
    centre = torch.eye(64, dtype=x.dtype) - 1 / 64
    return (x.flatten(1) @ centre).view(-1, 1, 8, 8)


def _by_its_largest(x):
    return x / x.max().item()


def _by_its_largest_in_numpy(x):
    return x * torch.from_numpy(1 / (x.detach().numpy().max(keepdims=True) + 0.01))


def _branch(x):
    return x / 2 if x.mean() < 0.48 else x


def _edge_lost(x):
    return F.pad(x[:, :, :, :-1], (0, 1))


def _clamped(x):
    return F.hardtanh(x, 0.3, 0.7)


def _clipped_at_zero(x):
    return torch.relu(x - 0.5)


LOSSY = [
    _first_pixel_lost, _centred, _by_its_largest, _by_its_largest_in_numpy, _branch, _edge_lost,
    _clamped, _clipped_at_zero,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("change", LOSSY)
def test_pictures_that_the_model_does_not_see_whole(change, seed):
    """Many pictures have this dump: none is proved, though all of them fit it."""
    client = client_of(of_a_picture(change), seed=seed)
    inputs = 0.7 * client.inputs if change is not _clamped else client.inputs
    if change is _branch:  # this seed's picture may be seen whole
        inputs = 0.9 * client.inputs
        assert_no_false_proof(replace(client, inputs=inputs), seed=seed)
        return
    assert_no_false_proof(replace(client, inputs=inputs), proof=False, seed=seed)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: torch.full((len(x), 1, 8, 8), 0.1, dtype=x.dtype).add_(x),
        lambda x: (x * 2).sub_(1).mul_(0.5),
        lambda x: torch.add(x, 1, alpha=2).neg(),
        lambda x: torch.cat([x[:, :, :4], x[:, :, 4:]], 2),
        lambda x: F.interpolate(x, scale_factor=2.0)[:, :, ::2, ::2],
        lambda x: x.transpose(2, 3).flip(2),
    ],
)
def test_forward_passes_written_in_other_ways(change):
    """Read or blocked; never a crash, never a wrong proof."""
    assert_no_false_proof(client_of(of_a_picture(change)))


@pytest.mark.parametrize("part", ["slice", "permute", "twice", "computed"])
def test_weights_used_in_other_ways(part):
    def forward(m, x):
        w = {
            "slice": lambda: m.a.weight[:12],
            "permute": lambda: m.a.weight.permute(0, 1, 3, 2),
            "twice": lambda: m.a.weight,
            "computed": lambda: m.a.weight * 2,
        }[part]()
        made = torch.sigmoid(F.conv2d(x, w, padding=1))
        if part == "twice":
            made = made + 0.1 * F.conv2d(x, m.a.weight, padding=1)
        return m.head(made.flatten(1))

    width = 14 if part == "slice" else 12

    def make():
        return Written(forward, a=nn.Conv2d(1, width, 3, bias=False), head=nn.Linear(768, 5))

    assert_no_false_proof(client_of(make))


def test_branches_around_the_anchor():
    def make():
        return Written(
            lambda m, x: m.b(torch.tanh(m.a(x.flatten(1))) + x.flatten(1)),
            a=nn.Linear(64, 64, bias=False), b=nn.Linear(64, 5, bias=False),
        )  # fmt: skip

    assert_no_false_proof(client_of(make))


def test_features_that_two_layers_read():
    """The cotangent of the features is then more than the anchor's."""

    def make():
        return Written(
            lambda m, x: m.b(
                torch.sigmoid(m.a(f := torch.sigmoid(m.c(x)).flatten(1))) + m.d(f)
            ),
            c=nn.Conv2d(1, 12, 3, padding=1), a=nn.Linear(768, 20), b=nn.Linear(20, 5),
            d=nn.Linear(768, 20),
        )  # fmt: skip

    assert_no_false_proof(client_of(make))
