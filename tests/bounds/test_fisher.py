"""Fisher information against closed forms, and against the errors that attacks really make."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from problems import Client, batch, client, lenet_client
from torch import nn

from auditor.bounds.fisher import PRIOR, fisher_of, predicted_psnr, why_no_fisher
from auditor.bounds.jacobian import sensitivity_of
from auditor.bounds.noise import noise_of
from auditor.bounds.statement import report_of
from auditor.problem import gradient_of
from auditor.records import Channel

DOUBLE = torch.float64


def linear_client(classes=6, pixels=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes))
    return Client(module, *batch(1, classes, shape=(1, 2, 2)))


def closed_form(had, sigma):
    """F of softmax regression on one sample: G_W = d x', G_b = d, d = softmax(Wx + b) - y."""
    layer = had.module[1].double()
    x = had.inputs.double().flatten()
    p = (layer.weight @ x + layer.bias).softmax(0).detach()
    d = p.clone()
    d[had.labels[0]] -= 1
    a = (torch.diag(p) - p[:, None] * p) @ layer.weight.detach()  # dd/dx (K, n)
    mixed = (a.mT @ d)[:, None] * x
    whole = (1 + x @ x) * a.mT @ a + mixed + mixed.mT + (d @ d) * torch.eye(len(x), dtype=DOUBLE)
    return whole / sigma**2


@pytest.mark.parametrize("sigma", [1e-5, 1e-2, 1.0])
def test_softmax_regression_has_a_closed_form(sigma):
    had = linear_client()
    found = fisher_of(had.problem(), had.inputs, had.labels, noise=sigma)
    whole = closed_form(had, sigma)
    unit = torch.eye(4, dtype=DOUBLE)
    posterior = torch.linalg.inv(whole + unit / PRIOR).diagonal()
    torch.testing.assert_close(found.variance.flatten(), torch.linalg.inv(whole).diagonal())
    torch.testing.assert_close(found.posterior.flatten(), posterior)
    assert found.unbiased == pytest.approx(float(torch.linalg.inv(whole).trace()) / 4)
    shares = torch.linalg.eigvalsh(whole)
    assert found.effective == pytest.approx(float((shares / (shares + 1 / PRIOR)).sum()), rel=1e-6)
    assert found.sigma == pytest.approx(sigma)
    assert predicted_psnr(found).tolist() == pytest.approx([-10 * math.log10(posterior.mean())])


def test_pixels_are_the_unit_not_what_the_model_takes():
    """The same pictures to a model behind another normalisation: the same bound."""
    had = linear_client()
    plain = fisher_of(had.problem(), had.inputs, had.labels, noise=0.1)
    layer = had.module[1]
    inner = nn.Linear(4, 6)
    with torch.no_grad():  # x = 0.25 u + 0.4
        inner.weight.copy_(0.25 * layer.weight)
        inner.bias.copy_(layer.bias + 0.4 * layer.weight.sum(1))
    inputs = (had.inputs - 0.4) / 0.25
    other = Client(nn.Sequential(nn.Flatten(), inner), inputs, had.labels)
    problem = other.problem(mean=(0.4,), std=(0.25,))
    only_bias = {name: 1e9 if "weight" in name else 0.1 for name in problem.gradient}
    same = fisher_of(problem, inputs, had.labels, noise=only_bias)
    first = fisher_of(had.problem(), had.inputs, had.labels, noise=only_bias)
    torch.testing.assert_close(same.posterior, first.posterior, rtol=1e-4, atol=0)
    assert not torch.allclose(plain.posterior, first.posterior, rtol=1e-2)


@pytest.mark.parametrize("make", [lambda: client("tanh", 2, 4), lambda: lenet_client(1)])
def test_more_noise_tells_less(make):
    had = make()
    problem = had.problem()
    found = [fisher_of(problem, had.inputs, had.labels, noise=10.0**k) for k in range(-6, 7, 2)]
    for less, more in itertools.pairwise(found):
        assert bool((less.posterior <= more.posterior * (1 + 1e-9)).all())
        assert less.effective >= more.effective - 1e-6
        assert less.unbiased < more.unbiased
    assert found[0].effective == pytest.approx(had.inputs.numel(), rel=1e-3)
    assert found[-1].effective == pytest.approx(0, abs=0.1)
    assert predicted_psnr(found[-1])[0] == pytest.approx(-10 * math.log10(PRIOR), abs=0.01)


def test_the_prior_never_hurts():
    had = lenet_client(1)
    found = fisher_of(had.problem(), had.inputs, had.labels, noise=0.05)
    assert bool((found.posterior <= found.variance).all())
    assert bool((found.posterior <= PRIOR * (1 + 1e-12)).all())


def test_a_pixel_that_nobody_looks_at_has_no_bound():
    had = client("tanh", 1, 4)
    with torch.no_grad():
        had.module.body[1].weight[:, 5] = 0
    # Its own weight's gradient would tell it: that row was not sent.
    problem = had.problem({n: g for n, g in had.gradients().items() if n != "body.1.weight"})
    found = fisher_of(problem, had.inputs, had.labels, noise=1e-4)
    assert found.variance.flatten()[5] == torch.inf
    assert found.posterior.flatten()[5] == pytest.approx(PRIOR)
    assert int(found.variance.isinf().sum()) == 1
    assert found.unbiased == torch.inf
    assert report_of(found, "given noise", problem).unbiased_psnr is None


def test_fewer_entries_tell_less():
    had = client("tanh", 1, 4)
    whole = had.problem()
    few = {n: g * (g.abs() > g.abs().quantile(0.8)) for n, g in whole.gradient.items()}
    pruned = replace(whole, gradient=few, channel=Channel(masked=True))
    scaled = replace(whole, channel=Channel(scaled=True))
    noise = dict.fromkeys(whole.gradient, 1e-2)
    full, kept, free = (
        fisher_of(p, had.inputs, had.labels, noise=noise) for p in (whole, pruned, scaled)
    )
    assert bool((full.posterior <= kept.posterior * (1 + 1e-9)).all())
    assert float(full.posterior.mean()) < 0.9 * float(kept.posterior.mean())
    assert float(full.posterior.mean()) < float(free.posterior.mean())


@pytest.mark.parametrize("sigma", [1e-3, 3e-2, 0.3])
@pytest.mark.parametrize("count", [1, 2])
def test_lanczos_agrees_with_dense_within_its_own_error(count, sigma):
    had = lenet_client(count, size=12)
    problem = had.problem()
    exact = fisher_of(problem, had.inputs, had.labels, noise=sigma, dense=True)
    probed = fisher_of(problem, had.inputs, had.labels, noise=sigma, dense=False)
    assert (exact.method, probed.method) == ("dense", "Lanczos")
    truth = -10 * math.log10(float(exact.posterior.mean()))
    # Its mean is on the side of the attacker, and no further off than it says.
    mean = -10 * math.log10(float(probed.posterior.mean()))
    assert truth - probed.error <= mean <= truth + probed.error
    assert probed.error < 3
    assert 10 * math.log10(probed.unbiased) <= 10 * math.log10(exact.unbiased) + probed.error


def maximum_likelihood(problem, had, noise, draws):
    """Mean squared error (n,) of Gauss-Newton from the truth, over many draws of the noise."""
    truth = had.inputs.double()
    clean = gradient_of(problem, truth, had.labels)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(truth.numel(), dtype=DOUBLE)
    whole = sensitivity_of(problem, truth, had.labels, noise)
    keep = replace(whole, layers={})
    for _ in range(draws):
        sent = {
            n: g + noise[n] * torch.randn(g.shape, generator=generator, dtype=DOUBLE)
            for n, g in clean.items()
        }
        x = truth.clone()
        for _ in range(3):
            matrix = replace(keep, inputs=x).dense(lambda: False).mT
            at = gradient_of(problem, x, had.labels)
            apart = torch.cat([(sent[n] - at[n]).flatten() / noise[n] for n in sent])
            x = x + torch.linalg.lstsq(matrix, apart[:, None]).solution.view_as(x)
        total += (x - truth).flatten().square()
    return total / draws


def test_maximum_likelihood_reaches_the_bound():
    """Small noise on a tiny network: efficient, pixel by pixel, within sampling error."""
    had, draws = client("tanh", 1, 6), 150
    problem = had.problem()
    noise = dict.fromkeys(problem.gradient, 1e-4)
    found = fisher_of(problem, had.inputs, had.labels, noise=noise)
    measured = maximum_likelihood(problem, had, noise, draws)
    ratio = measured / found.variance.flatten()
    # A mean of `draws` squares of standard normals, 16 of them: five standard errors each.
    assert bool(((ratio - 1).abs() < 5 * math.sqrt(2 / draws)).all())
    assert float(ratio.mean()) == pytest.approx(1, abs=5 * math.sqrt(2 / draws / 16) * 2)


def test_rounding_of_a_clean_dump_leaves_little():
    had = client("tanh", 1, 4)
    problem = had.problem()
    found = fisher_of(problem, had.inputs, had.labels, noise=noise_of(problem))
    assert predicted_psnr(found)[0] > 90


def test_signs_have_none():
    had = client("tanh", 1, 4)
    problem = replace(had.problem(), channel=Channel(signs=True))
    assert "smooth" in why_no_fisher(problem)
    with pytest.raises(ValueError, match="signs"):
        fisher_of(problem, had.inputs, had.labels, noise=1.0)


def test_nothing_without_time():
    had = client("tanh", 1, 4)
    for dense in (True, False):
        found = fisher_of(
            had.problem(), had.inputs, had.labels, noise=1.0, expired=lambda: True, dense=dense
        )
        assert found is None


def test_the_report_has_the_same_figures():
    had = client("tanh", 2, 4)
    problem = had.problem()
    found = fisher_of(problem, had.inputs, had.labels, noise=0.01)
    bound = report_of(found, "given noise", problem)
    assert bound.unknowns == 32
    assert bound.method == "dense"
    assert bound.worst_psnr == pytest.approx(float(predicted_psnr(found).max()))
    assert min(predicted_psnr(found)) < bound.prior_psnr < bound.worst_psnr
    assert bound.unbiased_psnr < bound.prior_psnr
    assert len(bound.assumptions) == 5
    masked = replace(problem, channel=Channel(masked=True, scaled=True, steps={"head.bias": 0.1}))
    assert len(report_of(found, "estimated noise", masked).assumptions) == 8


@pytest.mark.parametrize("dense", [True, False])
def test_a_claim_that_is_not_there_yet_is_worth_less(dense):
    """On softmax regression with small noise: the way to the truth is one step."""
    had = linear_client()
    problem = had.problem()
    off = had.inputs + 0.01 * torch.tensor([1.0, -1.0, 1.0, 1.0]).view(1, 1, 2, 2)
    at, away = (
        fisher_of(problem, inputs, had.labels, noise=1e-6, dense=dense)
        for inputs in (had.inputs, off)
    )
    assert float(at.apart.mean()) < float(at.posterior.mean())
    assert predicted_psnr(at)[0] > 90
    assert predicted_psnr(away)[0] == pytest.approx(40, abs=0.5)
    # The bound does not depend on it.
    assert report_of(away, "given noise", problem).prior_psnr > 90


def test_far_from_any_data_the_likeliest_picture_is_grey():
    had = linear_client()
    found = fisher_of(had.problem(), had.inputs, had.labels, noise=1e6)
    torch.testing.assert_close(found.apart, (had.inputs.double() - 0.5).square(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_the_step_is_that_of_the_long_form(name):
    """By the definition, with every entry of the dump."""
    had = client(name, 2, 10)
    problem = had.problem()
    noise = dict.fromkeys(problem.gradient, 1e-2)
    point = had.inputs.double() + 0.02 * torch.randn(had.inputs.shape, dtype=DOUBLE)
    whole = replace(sensitivity_of(problem, point, had.labels, noise), layers={})
    matrix, residual = whole.dense(lambda: False).mT, whole.residual()[0]
    normal = matrix.mT @ matrix + torch.eye(matrix.shape[1], dtype=DOUBLE) / PRIOR
    descent = (0.5 - point.flatten()) / PRIOR - matrix.mT @ residual
    expected = torch.linalg.solve(normal, descent).square()
    for dense in (True, False):
        found = fisher_of(problem, point, had.labels, noise=noise, dense=dense)
        torch.testing.assert_close(
            found.apart.flatten(), expected, rtol=1e-6 if dense else 0.05, atol=1e-5
        )


def test_a_bound_from_what_a_search_left_says_so():
    had = client("tanh", 1, 4)
    problem = had.problem()
    own = noise_of(problem)
    raised = {name: 10 * sigma for name, sigma in own.items()}
    at, above = (
        report_of(
            fisher_of(problem, had.inputs, had.labels, noise=noise), "rounding of the dump", problem
        )
        for noise in (own, raised)
    )
    assert not [words for words in at.assumptions if "ended above" in words]
    assert [words for words in above.assumptions if "ended above" in words]
