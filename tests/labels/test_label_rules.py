"""Rules over stacks of heads, against closed forms and an empirical regression."""

import pytest
import torch
from torch.nn import functional as F

from auditor.labels.reference import Reference
from auditor.labels.rules import (
    Heads,
    Layer,
    Posterior,
    explained_counts,
    least_variance,
    posterior_of,
    scores,
    stand_in_bias,
)
from auditor.labels.simulation import Client, Drawn, counts_of, draw, heads_of

K, E = 4, 6


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def some_client(size=5, *, smoothing=0.0, concentration=None, precision=1e-7, bias=True):
    return Client(size, K, smoothing, precision, True, bias, concentration)


def reference(count=40, *, labelled=True, seed=0):
    features = normal(count, E, seed=seed)
    probabilities = torch.softmax(normal(count, K, seed=seed + 1), 1)
    labels = torch.arange(count) % K if labelled else None
    return Reference(features, probabilities, labels, "test")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_simulated_head_is_the_gradient_of_the_summed_loss(smoothing):
    matrix, offset = normal(K, E).requires_grad_(), normal(K, seed=1).requires_grad_()
    features = normal(7, E, seed=2)
    logits = features @ matrix.mT + offset
    known = Reference(features, torch.softmax(logits, 1).detach(), None, "test")
    rows, labels = torch.tensor([[0, 3, 3, 6, 1]]), torch.tensor([[1, 0, 2, 2, 3]])
    loss = F.cross_entropy(logits[rows[0]], labels[0], reduction="sum", label_smoothing=smoothing)
    weight, bias = torch.autograd.grad(loss, [matrix, offset])
    heads = heads_of(some_client(smoothing=smoothing), known, Drawn(rows, labels))
    torch.testing.assert_close(heads.weight[0], weight, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(heads.bias[0], bias, atol=1e-6, rtol=1e-6)


def test_simulated_heads_are_as_coarse_as_the_dump():
    drawn = Drawn(torch.tensor([[0, 1]]), torch.tensor([[0, 1]]))
    heads = heads_of(some_client(2, precision=torch.finfo(torch.float16).eps), reference(), drawn)
    assert torch.equal(heads.bias, heads.bias.half().double())


def test_batches_are_drawn_from_the_pictures_of_each_class():
    known = reference()
    rows = torch.tensor([0, 1, 4, 5, 8, 9])  # of the classes 0 and 1 alone
    drawn = draw(some_client(50), known, rows, 20, torch.Generator().manual_seed(0))
    assert set(drawn.pictures.flatten().tolist()) <= set(rows.tolist())
    seen = drawn.labels < 2  # the others have no picture: they take any
    assert torch.equal(known.labels[drawn.pictures][seen], drawn.labels[seen])
    assert set(drawn.labels.flatten().tolist()) == set(range(K))


def test_counts():
    assert counts_of(torch.tensor([[0, 0, 3], [1, 2, 1]]), 4).tolist() == [
        [2, 0, 0, 1],
        [0, 2, 1, 0],
    ]


@pytest.mark.parametrize("concentration", [None, 0.3])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_least_variance_is_the_regression_of_counts_on_gradients(concentration, smoothing):
    """Against least squares over 40,000 draws of the model that it assumes."""
    size, draws = 6, 40_000
    means = torch.softmax(normal(K, K), 1)
    root = 0.1 * (torch.eye(K, dtype=torch.float64) - 1 / K)
    posterior = Posterior(means, root @ root, torch.ones(E, dtype=torch.float64), 10**9)
    client = some_client(size, concentration=concentration)
    generator = torch.Generator().manual_seed(0)
    drawn = draw(client, reference(), torch.arange(40), draws, generator)
    counts = counts_of(drawn.labels, K)
    target = (1 - smoothing) * torch.eye(K, dtype=torch.float64) + smoothing / K
    noise = size**0.5 * torch.randn(draws, K, dtype=torch.float64, generator=generator) @ root
    g = counts @ (means - target) + noise
    rule = least_variance(posterior, size, smoothing=smoothing, concentration=concentration)
    centered = g - g.mean(0)
    fitted = torch.linalg.lstsq(centered, counts - counts.mean(0), driver="gelsd").solution
    torch.testing.assert_close(rule(g), counts.mean(0) + centered @ fitted, atol=0.12, rtol=0)
    worse = (counts - size / K).square().mean()
    assert (counts - rule(g)).square().mean() < 0.7 * worse


def test_without_scatter_the_counts_are_exact():
    means = torch.softmax(normal(K, K), 1)
    posterior = Posterior(means, torch.zeros(K, K).double(), torch.ones(E).double(), 10)
    counts = torch.tensor([[3.0, 0, 2, 1], [0, 0, 6, 0]]).double()
    g = counts @ (means - torch.eye(K))
    rule = least_variance(posterior, 6, smoothing=0.0, concentration=None)
    torch.testing.assert_close(rule(g), counts, atol=1e-5, rtol=0)


def test_a_class_without_pictures_looks_like_all_of_them():
    known = reference(labelled=True)
    labels = torch.where(known.labels == 2, 1, known.labels)
    found = posterior_of(known.features, known.probabilities, labels)
    torch.testing.assert_close(found.means[2], known.probabilities.mean(0))
    torch.testing.assert_close(found.means.sum(1), torch.ones(K).double())
    own = known.probabilities[labels == 0]
    torch.testing.assert_close(
        found.means[0], (own.sum(0) + known.probabilities.mean(0)) / (len(own) + 1)
    )


def test_explained_counts_are_exact_when_features_tell_nothing():
    """One feature vector for every picture: each quotient G_c / g_c is that vector."""
    matrix, offset, e = normal(K, E), normal(K, seed=1), normal(E, seed=2)
    p = torch.softmax(matrix @ e + offset, 0)
    counts = torch.tensor([4.0, 0, 1, 3]).double()
    g = 8 * p - counts
    heads = Heads((g[:, None] * e)[None], g[None])
    found = explained_counts(heads, Layer(matrix, offset), 8)
    torch.testing.assert_close(found[0], counts, atol=1e-8, rtol=0)


def test_a_missing_bias_is_stood_in_for_by_the_mean_features():
    e, g = normal(E), normal(3, K, seed=1)
    torch.testing.assert_close(stand_in_bias(Heads(g[..., None] * e, None), e), g)


@pytest.mark.parametrize(("weight", "bias"), [(True, True), (True, False), (False, True)])
def test_scores_are_finite_for_any_half_of_a_head(weight, bias):
    known = reference()
    drawn = draw(some_client(), known, torch.arange(40), 3, torch.Generator().manual_seed(0))
    heads = heads_of(some_client(), known, drawn)
    heads = Heads(heads.weight if weight else None, heads.bias if bias else None)
    posterior = posterior_of(known.features, known.probabilities, known.labels)
    rule = least_variance(posterior, 5, smoothing=0.0, concentration=None)
    layer = Layer(normal(K, E), normal(K))
    found = scores(heads, torch.zeros(3, K).double(), layer, posterior, rule)
    assert found.shape[:2] == (3, K)
    assert found.isfinite().all()
