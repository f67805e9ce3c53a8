"""The gate: noise of the right size opens it, anything more does not."""

from dataclasses import replace

import pytest
import torch
from problems import client

from auditor.bounds.fit import fit_of, noise_left
from auditor.bounds.noise import noise_of, rounding_of
from auditor.problem import gradient_of
from auditor.records import Channel


def sent_and_true(sigma=0.0, seed=0, **channel):
    """A problem whose dump has noise of `sigma`, and the gradient without it."""
    had = client("tanh", 2, 4)
    clean = had.gradients()
    generator = torch.Generator().manual_seed(seed)
    noisy = {n: g + sigma * torch.randn(g.shape, generator=generator) for n, g in clean.items()}
    problem = had.problem(noisy)
    problem = replace(problem, channel=Channel(sigma=sigma, **channel))
    return problem, gradient_of(problem, had.inputs.double(), had.labels), had


def entries(problem):
    return sum(part.numel() for part in problem.gradient.values())


@pytest.mark.parametrize("sigma", [1e-4, 1e-2, 1.0])
def test_noise_of_the_right_size_is_the_floor(sigma):
    problem, true, _ = sent_and_true(sigma)
    fit = fit_of(problem, true, 0)
    assert fit.at_floor
    assert fit.degrees == entries(problem)
    assert fit.ratio == pytest.approx(1.0, abs=5 * (2 / fit.degrees) ** 0.5)


@pytest.mark.parametrize("off", [0.93, 1.07])
def test_an_estimate_of_sigma_may_be_a_little_off(off):
    problem, true, _ = sent_and_true(1e-2)
    problem = replace(problem, channel=Channel(sigma=off * 1e-2))
    assert fit_of(problem, true, 0).at_floor


@pytest.mark.parametrize("wrong", [0.3, 3.0])
def test_a_sigma_that_is_wrong_closes_the_gate(wrong):
    problem, true, _ = sent_and_true(1e-2)
    problem = replace(problem, channel=Channel(sigma=wrong * 1e-2))
    assert not fit_of(problem, true, 0).at_floor


def test_another_picture_is_not_at_the_floor():
    problem, _, had = sent_and_true(1e-3)
    other = gradient_of(problem, had.inputs.double().flip(0), had.labels)
    assert not fit_of(problem, other, had.inputs.numel()).at_floor


def test_as_many_unknowns_as_entries_say_nothing():
    problem, true, _ = sent_and_true(1e-3)
    fit = fit_of(problem, true, entries(problem))
    assert fit.degrees == 0
    assert not fit.at_floor


def test_a_clean_dump_has_the_floor_of_rounding():
    problem, true, had = sent_and_true()
    fit = fit_of(problem, true, had.inputs.numel())
    assert fit.at_floor
    assert fit.ratio < 1
    off = {name: part * 1.1 for name, part in true.items()}
    assert not fit_of(problem, off, had.inputs.numel()).at_floor


def test_what_is_left_above_rounding_counts_as_noise():
    problem, true, _ = sent_and_true()
    off = {name: part * (1 + 1e-5) for name, part in true.items()}
    fit = fit_of(problem, off, 0)
    raised = noise_left(problem, fit)
    plain = noise_of(problem)
    assert all(raised[name] == pytest.approx(fit.ratio**0.5 * plain[name]) for name in plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_sixteen_bits_is_as_large_as_it_is_said_to_be(dtype):
    had = client("tanh", 2, 4)
    clean = had.gradients()
    problem = had.problem({name: part.to(dtype) for name, part in clean.items()})
    said = rounding_of(problem)
    true = gradient_of(problem, had.inputs.double(), had.labels)
    square = sum(
        float((true[n] - part).square().sum()) / said[n] ** 2
        for n, part in problem.gradient.items()
    )
    assert 0.5 < square / entries(problem) < 1.5


def test_zeros_of_a_mask_drop_out():
    problem, true, _ = sent_and_true(1e-2, masked=True)
    large = {n: part * (part.abs() > 0.03) for n, part in problem.gradient.items()}
    pruned = replace(problem, gradient=large)
    kept = sum(int((part != 0).sum()) for part in large.values())
    assert 0 < kept < entries(problem)
    assert fit_of(pruned, true, 0).degrees == kept
    assert fit_of(pruned, true, 0).at_floor
    assert not fit_of(replace(pruned, channel=Channel(sigma=1e-2)), true, 0).at_floor


def test_an_unknown_factor_is_found():
    problem, true, _ = sent_and_true(1e-3)
    clipped = {name: 0.2 * part for name, part in true.items()}
    assert not fit_of(problem, clipped, 0).at_floor
    scaled = replace(problem, channel=Channel(sigma=1e-3, scaled=True))
    fit = fit_of(scaled, clipped, 0)
    assert fit.at_floor
    assert fit.scale == pytest.approx(5.0, rel=1e-2)
    assert noise_left(scaled, fit)["head.bias"] == pytest.approx(1e-3 / fit.scale, rel=0.1)
    turned = {name: -part for name, part in true.items()}
    assert not fit_of(scaled, turned, 0).at_floor


def test_intervals_have_the_variance_of_uniform_errors():
    had = client("tanh", 2, 4)
    clean = had.gradients()
    steps = {name: float(part.abs().max()) / 127 for name, part in clean.items()}
    coarse = {name: (part / steps[name]).round() * steps[name] for name, part in clean.items()}
    problem = replace(had.problem(coarse), channel=Channel(steps=steps))
    true = gradient_of(problem, had.inputs.double(), had.labels)
    fit = fit_of(problem, true, 0)
    assert fit.at_floor
    assert 0.5 < fit.ratio < 1.5


def test_signs_have_no_floor():
    problem, true, _ = sent_and_true()
    signs = {name: part.sign() for name, part in true.items()}
    problem = replace(problem, gradient=signs, channel=Channel(signs=True))
    assert not fit_of(problem, signs, 0).at_floor


def test_no_number_is_not_at_the_floor():
    problem, true, _ = sent_and_true(1e-3)
    broken = {name: part * torch.nan for name, part in true.items()}
    assert not fit_of(problem, broken, 0).at_floor
