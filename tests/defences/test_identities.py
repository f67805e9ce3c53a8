"""The identities hold exactly in double precision, and noise leaves them what theory says."""

import copy

import pytest
import torch
from clients_of import NETS, client_of, plus_noise
from problems import Client
from torch import nn

from auditor.defences import identities
from auditor.defences.identities import NORM, OUTER, SUMS, UNITS, groups_of, structure_of
from auditor.defences.pairs import pairs_of
from auditor.graph import record

EXPECTED = {
    "lenet": {SUMS, OUTER},
    "perceptron": {SUMS, OUTER, UNITS},
    "convolutional": {SUMS, OUTER, UNITS},
    "normed": {SUMS, OUTER, UNITS, NORM},
}


def in_double(client):
    module = copy.deepcopy(client.module).double()
    return Client(module, client.inputs.double(), client.labels, mode=client.mode)


def groups(client, gradients=None, **known):
    problem = client.problem(gradients, **known)
    return groups_of(problem, structure_of(problem), problem.gradient)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", NETS)
def test_every_identity_holds_in_double_precision(name, count):
    had = in_double(client_of(name, count))
    found = groups(had)
    assert {group.kind for group in found} == EXPECTED[name]
    for group in found:
        if group.mode != "train":
            assert group.ratio < 1e-12, group


def test_batch_norm_in_training_mode():
    """But for the constant under the root, a row stands at a right angle to its gradient."""
    found = groups(in_double(client_of("normed", 8, mode="train")))
    normed = [group for group in found if group.kind == NORM]
    assert {group.mode for group in normed} == {"eval", "train"}
    for group in normed:
        assert (group.ratio > 0.1) == (group.mode == "eval")
        if group.mode == "train":
            assert group.energy <= group.slack
    assert all(group.ratio < 1e-12 for group in found if group.kind == UNITS)


@pytest.mark.parametrize("name", NETS)
def test_other_weights_break_what_needs_the_weights_and_nothing_else(name):
    had, other = in_double(client_of(name, 2)), in_double(client_of(name, 2, seed=1))
    for group in groups(had, other.gradients()):
        assert (group.ratio > 0.1) == group.by_weights


@pytest.mark.parametrize("name", NETS)
def test_noise_leaves_its_variance(name):
    """Over draws, the energy of a group is sigma^2 times its degrees."""
    had, sigma = in_double(client_of(name, 2)), 0.01
    sent, draws = had.gradients(), 30
    means: dict[str, float] = {}
    degrees: dict[str, float] = {}
    for seed in range(draws):
        generator = torch.Generator().manual_seed(seed)
        noised = {
            n: g + sigma * torch.randn(g.shape, generator=generator, dtype=torch.float64)
            for n, g in sent.items()
        }
        for group in groups(had, noised):
            if group.mode != "train":
                key = f"{group.kind} {group.name}"
                means[key] = means.get(key, 0.0) + group.variance / sigma**2
                degrees[key] = degrees.get(key, 0.0) + group.degrees
    for key, total in means.items():
        seen = degrees[key] / group_degrees(had, key)
        spread = 5 * (2 / degrees[key]) ** 0.5
        # the span of the samples itself adapts to the noise by up to four per cent of its variance
        assert abs(total / seen - 1) < spread + (0.05 if key.startswith(OUTER) else 0.0), key


def group_degrees(had, key):
    return next(g.degrees for g in groups(had) if f"{g.kind} {g.name}" == key and g.mode != "train")


def test_the_sums_do_not_see_the_span_of_the_features():
    """An error of the softmax, or another loss, moves the sums within the span only."""
    had = in_double(client_of("perceptron", 3))
    module = copy.deepcopy(had.module)
    module(had.inputs).square().mean().backward()
    sent = {n: p.grad for n, p in module.named_parameters()}
    assert float(sent["5.weight"].sum(0).norm() / sent["5.weight"].norm()) > 0.1
    assert next(g for g in groups(had, sent) if g.kind == SUMS).ratio < 1e-12


def test_the_rank_needs_the_batch_size_and_one_step():
    had = client_of("perceptron", 2)
    assert OUTER not in {g.kind for g in groups(had, size=None)}
    assert (
        next(g for g in groups(had, size=1) if g.kind == OUTER and "5" not in g.name).ratio > 0.01
    )


def test_noise_in_one_tensor_is_told_from_samples():
    """A sample too many stands out of the spectrum, noise does not."""
    had = client_of("perceptron", 3)
    assert any(g.crowded for g in groups(had, size=2) if g.ratio > 1e-5)
    noised = plus_noise(had.gradients(), 1e-4)
    assert not any(g.crowded for g in groups(had, noised) if g.kind == OUTER)


def test_one_value_beside_the_span_stands_out_of_nothing():
    """Ten classes, eight samples: the sums take one row, the samples eight, one is left."""
    had = client_of("lenet", 8)
    for sigma in (0.0, 1e-6, 1e-4, 1e-2):
        found = groups(had, plus_noise(had.gradients(), sigma))
        assert not any(group.crowded for group in found)


# --------------------------------------------------------------------------- pairs


class Shortcut(nn.Module):
    """What one layer makes is read twice."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        inner = torch.relu(self.one(x.flatten(1)))
        return self.two(inner) + inner


@pytest.mark.parametrize(
    ("module", "count"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)), 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.LeakyReLU(), nn.Linear(6, 4)), 1),
        (nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.Sigmoid(), nn.Linear(6, 4)), 0),
        (nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 4)), 0),
        (nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.LayerNorm(6)), 0),
        (Shortcut(), 0),
    ],
    ids=["relu", "leaky", "sigmoid", "nothing between", "layer norm", "shortcut"],
)
def test_where_pairs_are(module, count):
    assert len(pairs_of(record(module, torch.rand(2, 2, 2, 2))[1])) == count


@pytest.mark.parametrize("groups_", [1, 2])
def test_a_grouped_convolution_reads_no_pair(groups_):
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=groups_))
    assert len(pairs_of(record(module, torch.rand(2, 2, 8, 8))[1])) == (groups_ == 1)


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 6)])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("piece", [1, 8, 1 << 20])
def test_sums_by_pieces_are_those_of_the_whole(monkeypatch, shape, turned, piece):
    monkeypatch.setattr(identities, "_PIECE", piece)
    drawn = torch.Generator().manual_seed(0)
    a, g = (torch.randn(shape, generator=drawn) for _ in range(2))
    if turned:
        a, g = a.transpose(0, 1), g.transpose(0, 1)
    products = (a.double() * g.double()).flatten(1)
    whole = [a.double().flatten(1).square().sum(1), -products.sum(1), products.square().sum(1)]
    found = identities._row_sums(a, g, sign=-1.0)
    torch.testing.assert_close(found, torch.stack(whole), rtol=1e-12, atol=1e-12)
