"""The predicted error under a prior on pictures, against the matrix that it probes."""

from dataclasses import replace

import pytest
import torch
from problems import lenet_client
from trial_attacks import generator

from auditor.attacks.picture_prior import picture_prior
from auditor.bounds.fisher import fisher_of, predicted_psnr
from auditor.bounds.jacobian import sensitivity_of
from auditor.bounds.noise import noise_of
from auditor.problem import to_model_units
from auditor.records import Channel
from auditor.trials.smooth_prediction import probes_for, smooth_psnr


def noisy(count, sigma, **known):
    had = lenet_client(count, size=8)
    return had, replace(had.problem(**known), channel=Channel(sigma=sigma))


def by_definition(problem, inputs, labels):
    """Squared error (N,) by the posterior covariance, formed and inverted, and what random signs
    make of it: four standard deviations (N,) of their mean (Hutchinson 1990).
    """
    found = sensitivity_of(problem, inputs, labels, noise_of(problem))
    jacobian = found.dense(lambda: False).mT  # (m, n) on pixels
    prior = picture_prior(found.problem)
    unit = torch.eye(inputs.numel(), dtype=torch.float64)
    ways = torch.stack([(prior.pixels(z) - 0.5).flatten() for z in unit], 1)  # A (n, n)
    inside = ways.mT @ jacobian.mT @ jacobian @ ways + unit
    covariance = ways @ torch.linalg.inv(inside) @ ways.mT
    blocks = covariance.view(len(inputs), -1, inputs.numel())
    diagonal = covariance.diagonal().view(len(inputs), -1)
    spread = blocks.square().sum((1, 2)) - diagonal.square().sum(1)
    each = inputs[0].numel()
    error = diagonal.mean(1)
    return error, 4 * (2 * spread / probes_for(inputs.numel())).sqrt() / each


def assert_near(found, exact):
    """Within what signs may be off by; below it, too, by a tenth that the last steps would add."""
    error, blur = exact
    measured = 10 ** (-found / 10)
    assert bool((measured >= 0.9 * (error - blur)).all())
    assert bool((measured <= error + blur).all())


@pytest.mark.parametrize("sigma", [1e-2, 1e-1])
def test_is_the_posterior_variance(sigma):
    had, problem = noisy(2, sigma)
    found = smooth_psnr(problem, had.inputs.double(), had.labels, noise=noise_of(problem))
    exact = by_definition(problem, had.inputs.double(), had.labels)
    assert bool((exact[1] < 2 * exact[0]).all())  # or the test says nothing
    assert_near(found, exact)


def test_normalisation_changes_nothing():
    """The same pictures behind a normalised input: the prior is on pixels."""
    had, plain = noisy(1, 1e-1)
    moved = replace(plain, knowledge=replace(plain.knowledge, mean=(0.5,), std=(0.5,)))
    pixels = torch.rand(1, 1, 8, 8, generator=generator(3), dtype=torch.float64)
    inputs = to_model_units(moved, pixels)
    found = smooth_psnr(moved, inputs, had.labels, noise=noise_of(moved))
    assert_near(found, by_definition(moved, inputs, had.labels))


def test_falls_with_noise():
    had, _ = noisy(1, 0.1)
    found = []
    for sigma in (1e-3, 3e-2, 1.0):
        _, problem = noisy(1, sigma)
        noise = noise_of(problem)
        found.append(float(smooth_psnr(problem, had.inputs.double(), had.labels, noise=noise)))
    assert found == sorted(found, reverse=True)


def test_smoothness_helps_where_the_dump_says_little():
    had, problem = noisy(1, 3e-2)
    inputs, noise = had.inputs.double(), noise_of(problem)
    alone = predicted_psnr(fisher_of(problem, inputs, had.labels, noise=noise))
    assert float(smooth_psnr(problem, inputs, had.labels, noise=noise)) > float(alone)


def test_a_budget_that_ended_says_nothing():
    had, problem = noisy(1, 1e-2)
    inputs, noise = had.inputs.double(), noise_of(problem)
    late = smooth_psnr(problem, inputs, had.labels, noise=noise, expired=lambda: True)
    assert late is None
