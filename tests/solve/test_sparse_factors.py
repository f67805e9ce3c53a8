"""Sparse factors: planted ones are found again, and nothing else is."""

import itertools

import pytest
import torch

from auditor.solve.sparse_factors import expected_draws, sparse_factors


def planted(count, rank, *, share=0.5, noise=0.0, seed=0):
    """Rows L = D P with known zeros of D, the right directions P^-1, and the rows' errors."""
    generator = torch.Generator().manual_seed(seed)
    sparse = torch.randn(count, rank, generator=generator, dtype=torch.float64)
    sparse *= torch.rand(count, rank, generator=generator) > share
    sparse = sparse[sparse.any(1)]
    mixing = torch.randn(rank, rank, generator=generator, dtype=torch.float64)
    rows = sparse @ mixing
    drawn = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    error = max(noise, 1e-13) * rows.norm(dim=1)
    return rows + noise * rows.norm(dim=1, keepdim=True) * drawn, error, mixing, sparse


def find(rows, error, *, max_draws=200_000, seed=0, expired=lambda: False, **more):
    generator = torch.Generator().manual_seed(seed)
    return sparse_factors(rows, error, generator, max_draws=max_draws, expired=expired, **more)


@pytest.mark.parametrize("rank", [2, 3, 5, 8])
@pytest.mark.parametrize("noise", [0.0, 1e-7])
def test_planted_factors_are_found(rank, noise):
    rows, error, mixing, sparse = planted(30 * rank, rank, noise=noise)
    found = find(rows, error)
    shares = mixing @ found.directions  # one-hot columns, up to scales
    shares = (shares / shares.norm(dim=0)).abs()
    place = shares.argmax(0)
    assert sorted(place.tolist()) == list(range(rank))
    assert shares.max(0).values.min() > 1 - 1e-6
    assert torch.equal(found.zeros, sparse[:, place] == 0)
    assert not found.expired


def test_directions_are_those_of_trying_every_draw():
    """The slow definition: of all draws, the kernels that make most rows vanish."""
    rows, error, _, _ = planted(60, 3)
    counts = {}
    for pair in itertools.combinations(range(len(rows)), 2):
        _, sizes, kernels = torch.linalg.svd(rows[list(pair)])
        if sizes[-1] > 1e-6:
            vanish = (rows @ kernels[-1]).abs() <= 1e-9 * rows.norm(dim=1)
            counts[tuple(vanish.tolist())] = int(vanish.sum())
    best = sorted(counts, key=counts.get, reverse=True)[:3]
    found = find(rows, error)
    assert {tuple(column.tolist()) for column in found.zeros.T} == set(best)


def test_dense_factors_have_no_directions():
    rows, error, _, _ = planted(60, 4, share=0.0)
    found = find(rows, error, max_draws=5000)
    assert found.directions.shape == (4, 0)
    assert found.draws >= 5000


def test_a_row_that_was_drawn_decides_nothing():
    """Rows of one group of columns, and one row beside them: the kernel is a mixture."""
    generator = torch.Generator().manual_seed(0)
    inner = torch.randn(40, 2, generator=generator, dtype=torch.float64)
    rows = torch.cat([inner, torch.zeros(40, 2, dtype=torch.float64)], 1)
    rows = torch.cat([rows, torch.randn(5, 4, generator=generator, dtype=torch.float64)])
    found = find(rows, 1e-13 * rows.norm(dim=1), max_draws=20_000)
    assert found.directions.shape[1] == 0


def test_what_is_not_accepted_is_not_given():
    rows, error, _, _ = planted(90, 3)
    every = find(rows, error)
    most = int(every.zeros.sum(0).max())
    found = find(rows, error, max_draws=5000, accepts=lambda zeros: int(zeros.sum()) < most)
    wanted = {tuple(z.tolist()) for z in every.zeros.T if int(z.sum()) < most}
    assert {tuple(z.tolist()) for z in found.zeros.T} == wanted
    assert len(wanted) < 3


def test_time_that_is_up():
    rows, error, _, _ = planted(60, 4)
    found = find(rows, error, expired=lambda: True)
    assert found.expired
    assert found.draws == 0


def test_the_same_seed_draws_the_same():
    rows, error, _, _ = planted(60, 4)
    one, two = find(rows, error, seed=3), find(rows, error, seed=3)
    assert torch.equal(one.directions, two.directions)
    assert one.draws == two.draws


def test_expected_draws():
    assert expected_draws(1) == 1
    assert expected_draws(3) == pytest.approx(4 * (1 + 1 / 2 + 1 / 3))
