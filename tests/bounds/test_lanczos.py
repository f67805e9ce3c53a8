"""Probing against matrices whose inverse is known."""

import pytest
import torch

from auditor.bounds.lanczos import probe_inverse

DOUBLE = torch.float64


def never():
    return False


def probe(matrix, shift, **more):
    settings = {"probes": 8, "max_steps": 60, "seed": 0, "expired": never, **more}
    return probe_inverse(lambda v: matrix @ v, matrix[0], shift, **settings)


def dense(size, seed=0, decades=4):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=DOUBLE)).Q
    values = torch.logspace(-decades / 2, decades / 2, size, dtype=DOUBLE)
    return basis @ torch.diag(values) @ basis.mT


def test_a_diagonal_matrix_is_exact_with_one_probe():
    values = torch.tensor([1.0, 2.0, 5.0, 9.0], dtype=DOUBLE)
    found = probe(torch.diag(values), 2.0, probes=1)
    assert found.low == pytest.approx(float((values + 2).reciprocal().sum()))
    assert found.high == pytest.approx(found.low, rel=1e-6)
    torch.testing.assert_close(found.diagonal, (values + 2).reciprocal())
    assert found.bare == pytest.approx(float(values.reciprocal().sum()))


@pytest.mark.parametrize("steps", [2, 4, 8, 16])
def test_the_rules_enclose_what_enough_steps_give(steps):
    """For the same probe: Gauss from below, Radau from above."""
    matrix = dense(40)
    inverse = torch.linalg.inv(matrix + 0.1 * torch.eye(40, dtype=DOUBLE))
    signs = 2.0 * torch.randint(2, (40,), generator=torch.Generator().manual_seed(0)).double() - 1
    truth = float(signs @ inverse @ signs)
    found = probe(matrix, 0.1, probes=1, max_steps=steps)
    assert found.low <= truth * (1 + 1e-9)
    assert found.high >= truth * (1 - 1e-9)
    assert found.low < found.high or steps == 16


def test_the_trace_is_within_its_error():
    matrix = dense(60)
    truth = float(torch.linalg.inv(matrix + 0.5 * torch.eye(60, dtype=DOUBLE)).trace())
    found = probe(matrix, 0.5)
    assert found.low - 2 * found.deviation <= truth <= found.high + 2 * found.deviation
    assert found.deviation < 0.2 * truth


def test_a_singular_matrix_says_so():
    values = torch.tensor([0.0, 1.0, 4.0], dtype=DOUBLE)
    found = probe(torch.diag(values), 12.0)
    assert found.bare == torch.inf
    assert found.low == pytest.approx(1 / 12 + 1 / 13 + 1 / 16)


def test_nothing_without_time():
    assert probe(dense(10), 1.0, expired=lambda: True) is None


def test_the_seed_decides():
    one, same = probe(dense(30), 0.1), probe(dense(30), 0.1)
    assert torch.equal(one.diagonal, same.diagonal)
    assert not torch.equal(one.diagonal, probe(dense(30), 0.1, seed=1).diagonal)
