"""Bounds of differential privacy against published formulas, simulation and the library itself."""

import importlib.util
import math

import numpy as np
import pytest

from auditor.bounds import privacy
from auditor.bounds.privacy import (
    epsilon_of,
    gaussian_robustness,
)
from auditor.errors import UsageError

needs_opacus = pytest.mark.skipif(
    importlib.util.find_spec("opacus") is None, reason="opacus is not installed"
)


@pytest.mark.parametrize("prior", [0.01, 0.1, 0.5])
@pytest.mark.parametrize(("multiplier", "steps"), [(1.0, 1), (2.0, 4), (0.5, 2)])
def test_the_gaussian_bound_is_the_power_of_the_best_test(prior, multiplier, steps):
    """Neyman and Pearson by simulation: level kappa against a shift of 1 in every release."""
    rng = np.random.default_rng(0)
    null = rng.normal(0, multiplier, (200_000, steps)).sum(1)
    other = rng.normal(1, multiplier, (200_000, steps)).sum(1)
    power = float((other > np.quantile(null, 1 - prior)).mean())
    assert gaussian_robustness(multiplier, steps=steps, prior=prior) == pytest.approx(
        power, abs=0.01
    )


def test_known_values():
    assert gaussian_robustness(1.0, steps=1, prior=0.5) == pytest.approx(0.8413447, abs=1e-6)
    assert gaussian_robustness(2.0, steps=4, prior=0.5) == pytest.approx(0.8413447, abs=1e-6)


def test_the_extremes():
    assert gaussian_robustness(1e9, steps=1, prior=0.25) == pytest.approx(0.25)
    assert gaussian_robustness(1e-3, steps=1, prior=0.25) == pytest.approx(1.0)
    for prior in (0.0, 1.0):
        assert gaussian_robustness(1.0, steps=3, prior=prior) == prior


def test_a_renyi_bound_is_never_below_the_gaussian_one():
    """The Gaussian mechanism has (a, a / (2 m^2))-Rényi privacy for every order a > 1.

    Which bounds gamma by (kappa e^epsilon)^((a - 1) / a): Balle, Cherubin, Hayes 2022, theorem 2.
    """
    for multiplier in (0.5, 1.0, 3.0):
        exact = gaussian_robustness(multiplier, steps=1, prior=0.05)
        for order in (1.5, 2.0, 8.0, 64.0):
            epsilon = order / (2 * multiplier**2)
            loose = min(0.05 * math.exp(epsilon), 1.0) ** ((order - 1) / order)
            assert loose >= exact


@pytest.mark.parametrize(
    "call",
    [
        lambda: gaussian_robustness(0.0, steps=1, prior=0.1),
        lambda: gaussian_robustness(1.0, steps=0, prior=0.1),
        lambda: gaussian_robustness(1.0, steps=1, prior=1.1),
    ],
)
def test_what_cannot_be_is_refused(call):
    with pytest.raises(ValueError, match="needed"):
        call()


@needs_opacus
@pytest.mark.parametrize(("multiplier", "steps"), [(1.0, 1), (2.0, 10), (8.0, 100)])
def test_epsilon_of_full_batches_is_the_minimum_over_orders(multiplier, steps):
    """Rényi composition with the conversion of Balle et al. 2020 (arXiv:1905.09982)."""
    delta = 1e-5
    orders = np.linspace(1.01, 200, 200_000)
    rdp = steps * orders / (2 * multiplier**2)
    epsilons = rdp + np.log1p(-1 / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)
    least = float(epsilons.min())
    found = epsilon_of(multiplier, sample_rate=1.0, steps=steps, delta=delta)
    assert least <= found <= 1.01 * least


@needs_opacus
def test_sampling_helps():
    every = epsilon_of(1.1, sample_rate=1.0, steps=100, delta=1e-5)
    some = epsilon_of(1.1, sample_rate=0.01, steps=100, delta=1e-5)
    assert 0 < some < every / 10


@needs_opacus
def test_settings_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="sample rate"):
        epsilon_of(1.0, sample_rate=0.0, steps=1, delta=1e-5)


def test_without_opacus_there_is_a_reason(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "gradaudit[dp]" in privacy.why_no_accountant()
    with pytest.raises(UsageError, match=r"pip install"):
        epsilon_of(1.0, sample_rate=1.0, steps=1, delta=1e-5)
