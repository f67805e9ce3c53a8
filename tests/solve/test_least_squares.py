"""Other solvers beside it, closed forms, the null space, and rows that do not see each other."""

import math

import numpy as np
import pytest
import scipy.sparse.linalg
import torch

from auditor.solve import LinearMap, Status, least_squares

DOUBLE = torch.float64


def normal(*shape, seed=0, dtype=DOUBLE):
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    return drawn.to(dtype)


def spread(rows, columns, condition, *, rank=None, seed=0):
    """A matrix with singular values from 1 down to 1 / condition, and `rank` of them."""
    rank = min(rows, columns) if rank is None else rank
    left = torch.linalg.qr(normal(rows, rank, seed=seed)).Q
    right = torch.linalg.qr(normal(columns, rank, seed=seed + 1)).Q
    return (
        left @ torch.diag(torch.logspace(0, -math.log10(condition), rank, dtype=DOUBLE)) @ right.T
    )


def dense(*matrices):
    """One matrix a row; with a single one, the same for all rows."""
    stack = torch.stack(matrices)
    return LinearMap(
        lambda x: (stack @ x[..., None])[..., 0], lambda r: (stack.mT @ r[..., None])[..., 0]
    )


def solve(matrix, rhs, start=None, **options):
    options = {"tolerance": 1e-12, "max_steps": 2000} | options
    start = torch.zeros(len(rhs), matrix.shape[1], dtype=matrix.dtype) if start is None else start
    return least_squares(dense(matrix), rhs, start, **options)


def numpys(matrix, rhs):
    """The minimum norm solution of every row, (R, n)."""
    return torch.from_numpy(np.linalg.lstsq(matrix.numpy(), rhs.T.numpy(), rcond=1e-12)[0].T)


def close(a, b, tolerance):
    return float((a - b).norm() / b.norm().clamp_min(1e-300)) <= tolerance


# --------------------------------------------------------------------------- answers


@pytest.mark.parametrize("condition", [1, 1e2, 1e4])
@pytest.mark.parametrize("shape", [(40, 12), (12, 12), (12, 40)])
def test_as_numpy(shape, condition):
    matrix, rhs = spread(*shape, condition), normal(2, shape[0], seed=5)
    found = solve(matrix, rhs)
    assert set(found.status) == {Status.CONVERGED}
    assert close(found.x, numpys(matrix, rhs), 1e-15 * condition**2 + 1e-10)


@pytest.mark.parametrize("solver", ["lsqr", "lsmr"])
def test_as_scipy(solver):
    matrix, rhs = spread(60, 30, 1e3), normal(1, 60, seed=2)
    stops = {"atol": 1e-14, "btol": 1e-14}
    other = getattr(scipy.sparse.linalg, solver)(matrix.numpy(), rhs[0].numpy(), damp=0.1, **stops)
    found = solve(matrix, rhs, damping=0.01)  # theirs is the root
    assert close(found.x[0], torch.from_numpy(other[0]), 1e-9)


def test_diagonal_in_closed_form():
    scale = torch.tensor([1.0, 2.0, 4.0], dtype=DOUBLE)
    rhs = torch.tensor([[1.0, 1.0, 1.0], [4.0, -6.0, 8.0]], dtype=DOUBLE)
    found = solve(torch.diag(scale), rhs)
    assert torch.allclose(found.x, rhs / scale, atol=1e-14)
    assert found.steps == 10  # three would do; rows are looked at every ten
    assert torch.allclose(found.condition, torch.full((2,), 4.0, dtype=DOUBLE), rtol=1e-10)


def test_damping_a_row_in_closed_form():
    scale, rhs = torch.tensor([1.0, 3.0], dtype=DOUBLE), torch.ones(3, 2, dtype=DOUBLE)
    mu = torch.tensor([0.0, 0.5, 10.0], dtype=DOUBLE)
    found = solve(torch.diag(scale), rhs, damping=mu)
    assert torch.allclose(found.x, scale / (scale.square() + mu[:, None]), atol=1e-14)
    condition = ((9 + mu) / (1 + mu)).sqrt()
    assert torch.allclose(found.condition, condition, rtol=1e-10)


def test_damping_pulls_to_zero_and_not_to_the_start():
    matrix, rhs = spread(8, 20, 10), normal(1, 8)
    one = solve(matrix, rhs, normal(1, 20, seed=3), damping=0.1)
    assert close(one.x, solve(matrix, rhs, damping=0.1).x, 1e-9)


def test_residual_is_that_of_the_answer():
    matrix, rhs = spread(40, 12, 10), normal(3, 40)
    found = solve(matrix, rhs)
    by_hand = (found.x @ matrix.T - rhs).norm(dim=1) / rhs.norm(dim=1)
    assert torch.allclose(found.residual, by_hand)
    assert (found.residual > 0.1).all()


# --------------------------------------------------------------------------- null space


def test_two_starts_differ_by_their_part_in_the_null_space():
    matrix = spread(30, 20, 10, rank=12)
    rhs = normal(1, 30).expand(2, -1)
    starts = normal(2, 20, seed=9)
    found = solve(matrix, rhs, starts)
    assert set(found.status) == {Status.CONVERGED}
    in_range = torch.linalg.pinv(matrix) @ matrix
    apart = starts - starts @ in_range
    assert close(found.x[0] - found.x[1], apart[0] - apart[1], 1e-9)
    assert close(found.x, numpys(matrix, rhs) + apart, 1e-9)


@pytest.mark.parametrize("rank", [12, 20])
def test_a_far_start_is_solved_as_far_as_zero(rank):
    """The goal does not grow with the start."""
    matrix, rhs = spread(30, 20, 1e2, rank=rank), normal(1, 30)
    near = solve(matrix, rhs, tolerance=1e-8)
    far = solve(matrix, rhs, 1e3 * normal(1, 20, seed=4), tolerance=1e-8)

    def size(found):
        return float(((found.x @ matrix.T - rhs) @ matrix).norm())

    goal = 1e-8 * float((rhs @ matrix).norm())
    assert size(near) <= 1.01 * goal
    assert size(far) <= 1.01 * goal


def test_zero_right_hand_side():
    matrix = spread(20, 10, 10, rank=6)
    rhs, start = torch.zeros(1, 20, dtype=DOUBLE), normal(1, 10, seed=1)
    at_once = solve(matrix, rhs)
    assert at_once.status == (Status.CONVERGED,)
    assert at_once.steps == 0
    assert not at_once.x.any()
    assert at_once.condition.tolist() == [1.0]
    found = solve(matrix, rhs, start)
    assert found.status == (Status.CONVERGED,)
    assert close(found.x, start - start @ (torch.linalg.pinv(matrix) @ matrix), 1e-10)
    assert float(found.residual[0]) < 1e-10


# --------------------------------------------------------------------------- condition


@pytest.mark.parametrize("condition", [3, 1e3, 1e6])
def test_condition_is_met_from_below(condition):
    matrix = spread(30, 12, condition)
    found = solve(matrix, normal(1, 30), tolerance=1e-14)
    assert float(found.condition[0]) == pytest.approx(condition, rel=0.01)
    early = solve(matrix, normal(1, 30), max_steps=3)
    assert 1 <= float(early.condition[0]) <= 1.000001 * condition


def test_condition_by_its_definition():
    """Against the Lanczos matrix of A'A in the Krylov space of A'b, orthogonalised."""
    matrix, rhs, steps = spread(40, 30, 1e3), normal(1, 40), 7
    columns = [matrix.T @ rhs[0]]
    for _ in range(steps - 1):
        columns.append(matrix.T @ (matrix @ columns[-1]))
        columns[-1] /= columns[-1].norm()
    basis = torch.linalg.qr(torch.stack(columns, 1)).Q
    ritz = torch.linalg.svdvals(matrix @ basis)
    found = solve(matrix, rhs, max_steps=steps)
    assert float(found.condition[0]) == pytest.approx(float(ritz[0] / ritz[-1]), rel=1e-3)


def test_condition_of_unlike_scales():
    scale = torch.tensor([1.0, 1e-5, 1e-10], dtype=DOUBLE)
    found = solve(torch.diag(scale), torch.tensor([[1.0, 1e5, 1e10]], dtype=DOUBLE), tolerance=0.0)
    assert float(found.condition[0]) == pytest.approx(1e10, rel=0.1)


# --------------------------------------------------------------------------- preconditioner


def test_the_inverse_converges_in_a_step():
    matrix, rhs = spread(60, 40, 1e4), normal(1, 60)
    inverse = torch.linalg.inv(matrix.T @ matrix)
    inverse = (inverse + inverse.T) / 2
    found = solve(matrix, rhs, precondition=lambda s: s @ inverse, max_steps=3, tolerance=1e-6)
    assert found.status == (Status.CONVERGED,)
    assert close(found.x, numpys(matrix, rhs), 1e-5)
    assert float(found.condition[0]) == pytest.approx(1, abs=1e-4)
    assert solve(matrix, rhs, max_steps=3, tolerance=1e-6).status == (Status.EXHAUSTED,)


def test_a_diagonal_one_mends_bad_scales():
    scale = torch.logspace(0, -6, 40, dtype=DOUBLE)
    matrix, rhs = spread(60, 40, 3) * scale, normal(2, 60)
    found = solve(matrix, rhs, precondition=lambda s: s / scale.square(), max_steps=100)
    assert set(found.status) == {Status.CONVERGED}
    assert close(found.x * scale, numpys(matrix / scale, rhs), 1e-9)


# --------------------------------------------------------------------------- rows


def test_rows_of_unlike_difficulty_end_as_they_do_alone():
    matrices = [spread(30, 20, c, seed=i) for i, c in enumerate((1, 1e2, 1e4))]
    rhs = normal(3, 30) * torch.tensor([[1.0], [1e6], [1e-6]], dtype=DOUBLE)
    zero = torch.zeros(3, 20, dtype=DOUBLE)
    together = least_squares(dense(*matrices), rhs, zero, tolerance=1e-10, max_steps=500)
    for row, matrix in enumerate(matrices):
        alone = least_squares(
            dense(matrix), rhs[row : row + 1], zero[:1], tolerance=1e-10, max_steps=500
        )
        assert together.status[row] is alone.status[0] is Status.CONVERGED
        assert close(together.x[row], alone.x[0], 1e-6)
        assert float(together.condition[row]) == pytest.approx(float(alone.condition[0]), rel=1e-3)
    easy = least_squares(dense(matrices[0]), rhs[:1], zero[:1], tolerance=1e-10, max_steps=500)
    assert easy.steps < together.steps


def test_a_row_that_arrived_stands_still():
    matrices = [torch.eye(20, dtype=DOUBLE), spread(20, 20, 1e3)]
    rhs, zero = normal(2, 20), torch.zeros(2, 20, dtype=DOUBLE)
    seen = []

    def forward(x):
        seen.append(x.clone())
        return dense(*matrices).forward(x)

    mapped = LinearMap(forward, dense(*matrices).adjoint)
    found = least_squares(mapped, rhs, zero, tolerance=1e-10, max_steps=200)
    assert torch.equal(found.x[0], rhs[0])
    assert all(torch.isfinite(x).all() for x in seen)


def test_nan_in_one_row():
    matrix, rhs = spread(30, 20, 10), normal(3, 30)
    clean = solve(matrix, rhs)
    rhs = rhs.clone()
    rhs[1, 4] = torch.nan
    found = solve(matrix, rhs)
    assert found.status == (Status.CONVERGED, Status.DIVERGED, Status.CONVERGED)
    assert torch.equal(found.x[::2], clean.x[::2])


def test_a_map_that_overflows_on_the_way():
    """Finite at the start, infinite after the second call."""
    calls = []

    def forward(x):
        calls.append(x)
        return x * (torch.inf if len(calls) > 2 else 1.0)

    rhs = normal(1, 5)
    found = least_squares(
        LinearMap(forward, lambda r: r * torch.arange(1, 6, dtype=DOUBLE)),
        rhs,
        torch.zeros(1, 5, dtype=DOUBLE),
        tolerance=1e-10,
        max_steps=50,
    )
    assert found.status == (Status.DIVERGED,)


# --------------------------------------------------------------------------- ends


def test_what_rounding_hides_is_stalled():
    """No tolerance at all: rows must end by themselves, as good as they can be."""
    matrix, rhs = spread(40, 20, 10), normal(2, 40)
    rhs[1] = matrix @ normal(20, seed=8)  # with an exact solution
    found = solve(matrix, rhs, tolerance=0.0)
    assert set(found.status) == {Status.STALLED}
    assert found.steps < 200
    assert close(found.x, numpys(matrix, rhs), 1e-13)


def test_single_precision():
    matrix, rhs = spread(40, 20, 10).float(), normal(2, 40).float()
    found = solve(matrix, rhs, tolerance=1e-5)
    assert found.x.dtype == torch.float32
    assert set(found.status) == {Status.CONVERGED}
    assert close(found.x.double(), numpys(matrix.double(), rhs.double()), 1e-4)
    assert set(solve(matrix, rhs, tolerance=1e-12).status) == {Status.STALLED}


def test_out_of_steps():
    found = solve(spread(40, 20, 1e6), normal(1, 40), max_steps=7)
    assert found.status == (Status.EXHAUSTED,)
    assert found.steps == 7


def test_no_steps_at_all():
    start = normal(1, 20, seed=1)
    found = solve(spread(40, 20, 10), normal(1, 40), start, max_steps=0)
    assert found.status == (Status.EXHAUSTED,)
    assert torch.equal(found.x, start)
    assert found.x.data_ptr() != start.data_ptr()


def test_the_budget_stops_it_between_steps():
    calls = []
    found = solve(
        spread(40, 20, 1e6), normal(1, 40), expired=lambda: calls.append(1) or len(calls) > 4
    )
    assert found.status == (Status.STOPPED,)
    assert found.steps == 4


def test_maps_that_give_back_their_argument():
    """Identity without a copy: nothing may be written into what the map still holds."""
    rhs = normal(2, 6)
    kept = rhs.clone()
    same = LinearMap(lambda x: x, lambda r: r)
    found = least_squares(same, rhs, normal(2, 6, seed=1), tolerance=1e-12, max_steps=20)
    assert torch.allclose(found.x, kept, atol=1e-12)
    assert torch.equal(rhs, kept)
