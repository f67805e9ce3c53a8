"""The row space of a matrix, beside the singular value decomposition."""

import pytest
import torch

from auditor.solve.row_space import row_space

FLOAT = 2.0**-23


def low_rank(count, width, rank, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((count, rank), (rank, width))
    )
    return left @ right


@pytest.mark.parametrize(("count", "width"), [(40, 60), (60, 40), (5, 200)])
@pytest.mark.parametrize("most", [None, 4, 10])
def test_rank_values_and_space(count, width, most):
    matrix = low_rank(count, width, 4).float()
    space = row_space(matrix, FLOAT, most)
    right = torch.linalg.svdvals(matrix.double())[:4]
    assert space.rank == 4
    assert torch.allclose(space.sizes, right, rtol=1e-6)
    assert torch.allclose(space.basis.T @ space.basis, torch.eye(4, dtype=torch.float64), atol=1e-5)
    assert space.distances(matrix[:5]).max() < 1e-5
    other = low_rank(5, width, 5, seed=1)
    inside = torch.linalg.lstsq(matrix.double().T, other.T, driver="gelsd", rcond=1e-5).solution
    apart = (other.T - matrix.double().T @ inside).norm(dim=0) / other.norm(dim=1)
    assert torch.allclose(space.distances(other), apart, rtol=1e-3)


def test_a_rank_above_the_bound_shows():
    assert row_space(low_rank(40, 60, 9), FLOAT, 4).rank == 5
    assert row_space(low_rank(40, 60, 40), FLOAT).rank == 40


def test_zero_has_no_rows():
    assert row_space(torch.zeros(20, 30), FLOAT, 3).rank == 0
    assert row_space(torch.zeros(20, 30), FLOAT).rank == 0
