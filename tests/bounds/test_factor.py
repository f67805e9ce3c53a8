"""Variances from a triangular factor, beside the inverse of R'R in many digits."""

import math
from fractions import Fraction

import pytest
import torch
from problems import client

from auditor.bounds.factor import _stacked, inverse_of, posterior_root, unbiased
from auditor.bounds.fisher import at_noise, fisher_of

DOUBLE = torch.float64


def factor_of(spread, size=12, seed=0):
    """R of a random matrix whose singular values fall by `spread` decades."""
    drawn = torch.Generator().manual_seed(seed)
    one = torch.linalg.qr(torch.randn(size, size, generator=drawn, dtype=DOUBLE)).Q
    two = torch.linalg.qr(torch.randn(size, size, generator=drawn, dtype=DOUBLE)).Q
    values = torch.logspace(3, 3 - spread, size, dtype=DOUBLE)
    return torch.linalg.qr(one * values @ two, mode="r").R


def exactly(factor, ridge):
    """The diagonal of (R'R + ridge^2)^-1 by Gauss and Jordan in fractions: no rounding."""
    rows = [[Fraction(value) for value in row] for row in factor.tolist()]
    size = len(rows[0])
    table = [
        [
            sum((row[i] * row[j] for row in rows), Fraction(0)) + (i == j) * Fraction(ridge) ** 2
            for j in range(size)
        ]
        + [Fraction(i == j) for j in range(size)]
        for i in range(size)
    ]
    for i in range(size):
        pivot = next(k for k in range(i, size) if table[k][i] != 0)
        table[i], table[pivot] = table[pivot], table[i]
        table[i] = [value / table[i][i] for value in table[i]]
        for k in range(size):
            if k != i and table[k][i] != 0:
                table[k] = [a - table[k][i] * b for a, b in zip(table[k], table[i], strict=True)]
    return torch.tensor([float(table[i][size + i]) for i in range(size)], dtype=DOUBLE)


@pytest.mark.parametrize("spread", [0, 3, 6, 9])
def test_variances_are_those_of_the_exact_inverse(spread):
    """Also of factors whose square would not be told from a singular matrix."""
    factor = factor_of(spread)
    inverse = inverse_of(factor)
    assert inverse is not None
    torch.testing.assert_close(unbiased(factor, inverse), exactly(factor, 0.0), rtol=1e-5, atol=0)
    for ridge in (1e-3, math.sqrt(12), 1e3):
        found = posterior_root(factor, inverse, ridge).square().sum(1)
        torch.testing.assert_close(found, exactly(factor, ridge), rtol=1e-5, atol=0)


@pytest.mark.parametrize("spread", [0, 4, 8, 12])
def test_with_and_without_an_inverse_the_answer_is_the_same(spread):
    factor = factor_of(spread)
    found = posterior_root(factor, inverse_of(factor), 3.0).square().sum(1)
    torch.testing.assert_close(found, _stacked(factor, 3.0).square().sum(1), rtol=1e-4, atol=0)


def test_what_rounding_hides_is_not_inverted_and_has_no_bound():
    factor = factor_of(3)
    factor[:, 5] = 0  # nobody looks at this pixel
    assert inverse_of(factor) is None
    assert unbiased(factor, None).isinf().tolist() == [index == 5 for index in range(12)]
    assert inverse_of(factor_of(15)) is None
    assert inverse_of(factor[:6]) is None  # fewer equations than pixels
    assert unbiased(torch.zeros(3, 3, dtype=DOUBLE), None).isinf().all()


def test_a_prior_far_above_what_is_known_takes_the_longer_way():
    factor = 1e-6 * factor_of(3)
    assert inverse_of(factor) is not None
    found = posterior_root(factor, inverse_of(factor), 1e6).square().sum(1)
    torch.testing.assert_close(found, exactly(factor, 1e6), rtol=1e-9, atol=0)


@pytest.mark.parametrize("other", [1e-6, 1e-3, 1.0])
def test_another_noise_from_the_same_factor(other):
    had = client("tanh", 2)
    problem = had.problem()
    found = at_noise(fisher_of(problem, had.inputs, had.labels, noise=1e-4), other)
    anew = fisher_of(problem, had.inputs, had.labels, noise=other)
    assert found.sigma == pytest.approx(anew.sigma)
    assert found.unbiased == pytest.approx(anew.unbiased, rel=1e-6)
    assert found.effective == pytest.approx(anew.effective, rel=1e-6)
    torch.testing.assert_close(found.posterior, anew.posterior, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.variance, anew.variance, rtol=1e-6, atol=0)


def test_lanczos_leaves_no_factor():
    had = client("tanh", 2)
    found = fisher_of(had.problem(), had.inputs, had.labels, noise=1e-2, dense=False)
    assert found.factor is None
    assert at_noise(found, 1e-3) is None
