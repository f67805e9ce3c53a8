"""Least squares under inequalities: systems with a known answer, and SciPy."""

import math

import numpy as np
import pytest
import torch
from nets import Written, chain, dense, draw, seeded
from scipy.optimize import lsq_linear
from torch import nn

from auditor.inversion import constraints
from auditor.inversion.constraints import Bounds, constrained
from auditor.inversion.systems import LinkOperator, LinkSystem


def never():
    return False


def linear_system(matrix, values, rows=1):
    """The forward equations alone of a linear layer with this matrix (M, E)."""
    outputs, inputs = matrix.shape
    module = seeded(lambda: Written(lambda m, x: m.head(torch.relu(m.a(x))), a=nn.Linear(
        inputs, outputs, bias=False), head=nn.Linear(outputs, 3)))  # fmt: skip
    module.a.weight.data = matrix
    link = chain(module, (inputs,), {"head.weight", "head.bias"}).links[0]
    operator = LinkOperator(link, draw(1, 1))
    pre = (matrix @ values.mT).mT
    return LinkSystem(operator, pre, torch.ones_like(pre), torch.zeros_like(pre), None)


def solve(system, start, **more):
    settings = {
        "bounds": Bounds(), "off": None, "smooth": None, "tolerance": 1e-12, "expired": never,
    }  # fmt: skip
    return constrained(system, start, **(settings | more))


def sparse_case(seed=0, inputs=20, outputs=14, support=4):
    """Fewer equations than unknowns, and non-negative values that are mostly zero.

    A positive row among the equations bounds the sum, so the non-negative solutions are a polytope;
    whether it is one point is settled by two linear programs below.
    """
    matrix = draw(outputs, inputs, seed=seed)
    matrix[0] = matrix[0].abs() + 0.5
    values = torch.zeros(1, inputs, dtype=torch.float64)
    values[0, torch.randperm(inputs, generator=torch.Generator().manual_seed(seed))[:support]] = (
        draw(support, seed=seed).abs() + 0.5
    )
    return matrix, values


def test_non_negativity_makes_an_open_system_unique():
    matrix, values = sparse_case()
    system = linear_system(matrix, values)
    plain = torch.linalg.lstsq(matrix, (matrix @ values.mT)).solution.mT
    assert float((plain - values).norm()) > 0.1, "the equations alone leave it open"
    outside = lsq_linear(matrix.numpy(), (matrix @ values[0]).numpy(), (0, np.inf), tol=1e-14)
    np.testing.assert_allclose(outside.x, values[0].numpy(), atol=1e-6)  # the known answer
    for start in (torch.zeros_like(values), 3 * draw(*values.shape), -10 * draw(*values.shape)):
        found = solve(system, start, bounds=Bounds(0.0, math.inf))
        torch.testing.assert_close(found.x, values, rtol=0, atol=1e-5)
        assert float(found.residual[0]) < 1e-6


def test_bounds_of_two_sides_and_of_each_unknown():
    """An over-determined system whose plain answer lies outside: SciPy's bounded answer is near."""
    matrix = draw(30, 8)
    low, high = torch.full((8,), -0.2).double(), torch.linspace(0.1, 0.8, 8, dtype=torch.float64)
    inside = (low + high) / 2
    inside[::2] = high[::2]  # at a bound
    system = linear_system(matrix, inside[None])
    found = solve(system, 5 * draw(1, 8), bounds=Bounds(low, high))
    torch.testing.assert_close(found.x, inside[None], rtol=0, atol=1e-8)
    assert float((Bounds(low, high).clamp(found.x) - found.x).abs().max()) < 1e-8


def test_bounds_are_respected_where_the_equations_leave_a_choice():
    matrix = draw(3, 8)
    values = torch.full((1, 8), 0.5, dtype=torch.float64)
    system = linear_system(matrix, values)
    found = solve(system, 20 * draw(1, 8), bounds=Bounds(0.0, 1.0))
    assert float((Bounds(0.0, 1.0).clamp(found.x) - found.x).abs().max()) < 1e-3
    assert float(found.residual[0]) < 1e-3


def test_units_that_were_off_stay_off():
    matrix = draw(12, 8)
    values = draw(1, 8)
    pre = (matrix @ values.mT).mT
    off = pre < 0
    assert 2 <= int(off.sum()) <= 10
    system = linear_system(matrix, values)
    known = LinkSystem(
        system.operator, torch.where(off, 0.0, pre), (~off).double(), torch.zeros_like(pre), None
    )
    found = solve(known, 5 * draw(1, 8, seed=4), off=off)
    again = found.x @ matrix.T
    scale = float(pre.abs().mean())
    assert float(again[off].max()) < 1e-3 * scale
    torch.testing.assert_close(again[~off], pre[~off], rtol=0, atol=1e-3 * scale)


def test_rows_do_not_mix():
    matrix, values = sparse_case()
    both = torch.cat([values, 2 * values])
    system = linear_system(matrix, both)
    found = solve(system, torch.zeros_like(both), bounds=Bounds(0.0, math.inf))
    torch.testing.assert_close(found.x, both, rtol=0, atol=1e-5)


def test_smoothness_chooses_the_plainest_picture():
    """Of all pictures with a given mean, the constant one."""
    matrix = torch.full((1, 16), 1 / 16, dtype=torch.float64)
    module = seeded(lambda: Written(lambda m, x: m.head(torch.relu(m.a(x.flatten(1)))), a=nn.Linear(
        16, 1, bias=False), head=nn.Linear(1, 3)))  # fmt: skip
    module.a.weight.data = matrix
    link = chain(module, (1, 4, 4), {"head.weight", "head.bias"}).links[0]
    operator = LinkOperator(link, draw(1, 1))
    pre = torch.tensor([[0.4]]).double()
    system = LinkSystem(operator, pre, torch.ones_like(pre), torch.zeros_like(pre), None)
    found = solve(system, draw(1, 16), bounds=Bounds(0.0, 1.0), smooth=(1, 4, 4))
    torch.testing.assert_close(found.x, torch.full((1, 16), 0.4).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 2), (2, 1, 6), (2, 6, 1)])
def test_differences_and_their_transpose(shape):
    size = math.prod(shape)
    rows = draw(2, size)
    found = constraints._differences(rows, shape)
    picture = rows.view(2, *shape)
    slow = [
        picture[:, c, i + down, j + across] - picture[:, c, i, j]
        for down, across in ((1, 0), (0, 1))
        for c in range(shape[0])
        for i in range(shape[1] - down)
        for j in range(shape[2] - across)
    ]
    torch.testing.assert_close(found, torch.stack(slow, 1))
    parts = draw(*found.shape)
    back = constraints._gathered(parts, shape)
    torch.testing.assert_close((found * parts).sum(1), (rows * back).sum(1))


@pytest.mark.parametrize("smooth", [None, (1, 4, 2)])
@pytest.mark.parametrize("with_off", [False, True])
def test_the_penalised_adjoint_is_the_transpose(smooth, with_off):
    matrix, values = draw(6, 8), draw(2, 8)
    system = linear_system(matrix, values)
    off = draw(2, 6, seed=9) < 0 if with_off else None
    run = constraints._Penalised(system, Bounds(-0.1, 0.2), off, smooth)
    run.smoothness = 0.3
    run.look(draw(2, 8, seed=3))
    assert run.violated[0].any()
    outputs = draw(*run.rhs().shape)
    products = (run.forward(values) * outputs).sum(1)
    torch.testing.assert_close((values * run.adjoint(outputs)).sum(1), products)
    whole = dense(lambda row: run.forward(row.expand(2, -1)).reshape(1, -1), 8)
    assert whole.shape == (run.rhs().numel(), 8)


def test_clamp_takes_numbers_and_tensors():
    rows = torch.tensor([[-1.0, 0.5, 3.0]]).double()
    assert Bounds().clamp(rows).tolist() == rows.tolist()
    assert Bounds(0.0, 1.0).clamp(rows).tolist() == [[0.0, 0.5, 1.0]]
    assert Bounds(torch.tensor([0.0, 1, 2]), 2.5).clamp(rows).tolist() == [[0.0, 1.0, 2.5]]


def test_an_expired_budget_ends_soon():
    matrix, values = sparse_case(inputs=60, outputs=40)
    asked = []

    def expired():
        asked.append(True)
        return True

    solve(linear_system(matrix, values), draw(1, 60), bounds=Bounds(0.0, 1.0), expired=expired)
    assert 1 <= len(asked) < 20
