"""What is learnt from simulated clients, and that stated probabilities are kept."""

import numpy as np
import pytest
import torch
from scipy.optimize import isotonic_regression

from auditor.labels.posterior import isotonic, learn, ridge, spread_out
from auditor.labels.reference import Reference
from auditor.labels.rules import Layer
from auditor.labels.simulation import Client, counts_of, draw, heads_of

K, E = 6, 8


@pytest.mark.parametrize("seed", range(5))
def test_isotonic_pools_as_scipy_does(seed):
    generator = torch.Generator().manual_seed(seed)
    margins = torch.randn(200, generator=generator).double()
    right = (torch.rand(200, generator=generator) < torch.sigmoid(margins)).double()
    order = margins.argsort()
    theirs = isotonic_regression(right[order].numpy())
    sizes = np.diff(theirs.blocks)
    shrunk = (theirs.x[theirs.blocks[:-1]] * sizes + 1) / (sizes + 2)
    expected = np.repeat(np.maximum.accumulate(shrunk), sizes)
    found = isotonic(margins, right)(margins[order])
    torch.testing.assert_close(found, torch.from_numpy(expected))


def test_isotonic_of_nothing_says_one_half():
    nothing = torch.zeros(0).double()
    assert isotonic(nothing, nothing)(torch.tensor([0.3]).double()).tolist() == [0.5]


def test_ridge_finds_a_linear_relation():
    found = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    wanted = found @ torch.tensor([2.0, -1, 0.5]).double() + 3
    torch.testing.assert_close(ridge(found, wanted)(found), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(10))
def test_labels_are_added_one_by_one_to_the_class_that_lacks_most(seed):
    generator = torch.Generator().manual_seed(seed)
    expected = 4 * torch.rand(K, generator=generator).double()
    lower = torch.randint(0, 2, (K,), generator=generator)
    upper = lower + torch.randint(2, 6, (K,), generator=generator)
    counts, margins = lower.clone(), []
    for _ in range(12 - int(lower.sum())):
        wish = torch.where(counts < upper, expected - counts, -torch.inf)
        margins.append(float(wish.max()))
        counts[int(wish.argmax())] += 1
    labels, found = spread_out(expected, lower, upper, 12)
    assert torch.equal(lower + torch.bincount(labels, minlength=K), counts)
    torch.testing.assert_close(found, torch.tensor(margins).double())


def world(seed, confident, count=200):
    """A head, and pictures whose class it sees more or less well."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(K, E, generator=generator).double()
    labels = torch.arange(count) % K
    features = (0.5 * matrix[labels] + torch.randn(count, E, generator=generator).double()).relu()
    probabilities = torch.softmax(confident * features @ matrix.mT, 1)
    return Layer(confident * matrix, torch.zeros(K).double()), Reference(
        features, probabilities, labels, "test"
    )


def nothing_proved(heads):
    return torch.zeros(heads.bias.shape, dtype=torch.float64)


@pytest.mark.parametrize("size", [4, 32])
@pytest.mark.parametrize("confident", [0.05, 1.0])
def test_stated_probabilities_are_kept_on_other_pictures(size, confident):
    """Half of the pictures teach, the other half makes 200 batches."""
    layer, both = world(0, confident, 400)
    teach = Reference(both.features[:200], both.probabilities[:200], both.labels[:200], "test")
    client = Client(size, K, 0.0, 1e-7, True, True, None)
    generator = torch.Generator().manual_seed(1)
    rule = learn(client, teach, layer, nothing_proved, generator=generator, expired=lambda: False)
    drawn = draw(client, both, torch.arange(200, 400), 200, generator)
    heads, counts = heads_of(client, both, drawn), counts_of(drawn.labels, K)
    none = torch.zeros(K, dtype=torch.int64)
    stated, right = [], 0.0
    for row, expected in enumerate(rule.expected(heads)):
        labels, margins = spread_out(expected, none, none + size, size)
        stated.append(rule.map(margins))
        right += float(torch.minimum(torch.bincount(labels, minlength=K), counts[row]).sum())
    accuracy = right / (200 * size)
    assert abs(float(torch.cat(stated).mean()) - accuracy) < 0.05
    assert accuracy > (0.95 if confident < 0.1 else 0.6)


def test_a_dump_of_another_scale_is_not_like_the_simulated_ones():
    layer, known = world(0, 0.3)
    client = Client(8, K, 0.0, 1e-7, True, True, None)
    generator = torch.Generator().manual_seed(1)
    rule = learn(client, known, layer, nothing_proved, generator=generator, expired=lambda: False)
    drawn = draw(client, known, torch.arange(200), 20, generator)
    heads = heads_of(client, known, drawn)
    one = [type(heads)(heads.weight[i : i + 1], heads.bias[i : i + 1]) for i in range(20)]
    assert sum(rule.unlikeness(own) < 11.3 for own in one) >= 18
    scaled = [type(heads)(0.05 * own.weight, 0.05 * own.bias) for own in one]
    assert all(rule.unlikeness(own) > 21 for own in scaled)


def test_no_time_no_lessons():
    layer, known = world(0, 0.3)
    client = Client(8, K, 0.0, 1e-7, True, True, None)
    generator = torch.Generator()
    assert (
        learn(client, known, layer, nothing_proved, generator=generator, expired=lambda: True)
        is None
    )
