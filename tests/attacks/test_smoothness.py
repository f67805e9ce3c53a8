"""The coordinates against plain sums, the chosen picture against the closed form."""

import pytest
import torch
from problems import Client, client
from torch import nn

from auditor.attacks.residuals import matching_residual
from auditor.attacks.smoothness import _CONTRAST, match_smoothly, smooth_pixels
from auditor.problem import to_pixels
from auditor.solve import Status

DOUBLE = torch.float64
WEIGHTS = tuple(10.0**-k for k in range(11))
SHAPE = (2, 4, 6)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def residual_of(had, **known):
    return matching_residual(had.problem(**known), had.labels, size=len(had.labels))


@pytest.fixture
def oblong():
    """Two pictures with two channels, higher than wide, in normalised units."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 5))
    had = Client(module, torch.rand(2, *SHAPE), torch.tensor([0, 3]))
    return residual_of(had, mean=(0.4, 0.6), std=(0.25, 0.5))


def test_the_length_counts_differences_between_neighbours(oblong):
    u = 0.01 * draw(1, 96)  # nothing is clipped
    pixels = to_pixels(oblong.problem, oblong.images(smooth_pixels(oblong).rows(u)))
    slow = _CONTRAST * (pixels - 0.5).square().sum()
    for row in range(1, 4):
        slow += (pixels[..., row, :] - pixels[..., row - 1, :]).square().sum()
    for column in range(1, 6):
        slow += (pixels[..., column] - pixels[..., column - 1]).square().sum()
    assert float(_CONTRAST * u.square().sum()) == pytest.approx(float(slow), rel=1e-10)


def test_zero_is_gray(oblong):
    rows = smooth_pixels(oblong).rows(torch.zeros(1, 96, dtype=DOUBLE))
    pixels = to_pixels(oblong.problem, oblong.images(rows))
    assert torch.allclose(pixels, torch.full_like(pixels, 0.5))


def test_the_adjoint_is_the_transpose(oblong):
    pixels = smooth_pixels(oblong)
    u, rows = draw(3, 96), draw(3, 96, seed=1)
    left = (pixels.along(u) * rows).sum(1)
    assert torch.allclose(left, (u * pixels.adjoint(rows)).sum(1), rtol=1e-12)
    assert torch.allclose(pixels.rows(u) - pixels.rows(0 * u), pixels.along(u), atol=1e-12)


def open_client():
    """20 linear features of 64 pixels, and only the head was sent: 44 directions are open."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.Linear(20, 6)).double()
    ramp = torch.linspace(0.2, 0.8, 8, dtype=DOUBLE)
    had = Client(module, (0.5 * (ramp[:, None] + ramp))[None, None], torch.tensor([2]))
    return had, {n: g for n, g in had.gradients().items() if n.startswith("2.")}


def solve(residual, *, goal=0.0, expired=lambda: False, watch=lambda *_: False, **more):
    return match_smoothly(
        residual,
        torch.Generator().manual_seed(0),
        weights=WEIGHTS,
        max_steps=40,
        goal=goal,
        watch=watch,
        expired=expired,
        **more,
    )


def test_it_chooses_the_smoothest_of_the_answers():
    """The features are known exactly: the shortest u that gives them is a pseudoinverse away."""
    had, sent = open_client()
    residual = matching_residual(had.problem(sent), had.labels, size=1)
    found = solve(residual)
    pixels = smooth_pixels(residual)
    whole = pixels.along(torch.eye(64, dtype=DOUBLE)).mT  # x = 0.5 + whole @ u
    weight = had.module[1].weight.detach()
    apart = weight @ (had.inputs.flatten() - 0.5)
    smoothest = 0.5 + whole @ (torch.linalg.pinv(weight @ whole) @ apart)
    assert torch.allclose(found.x[0], smoothest, atol=1e-3)
    assert float((smoothest - had.inputs.flatten()).abs().max()) > 2e-3  # it is not the truth


def test_a_goal_is_that_of_the_gradient_alone():
    residual = residual_of(client("tanh", 1, 4))
    seen = []
    found = solve(residual, goal=1e-8, watch=lambda *at: seen.append(at) and False)
    assert found.status == (Status.CONVERGED,)
    assert float(residual(found.x).square().sum()) == pytest.approx(float(found.value))
    assert float(found.value) <= 1e-8
    steps, rows, values = zip(*seen, strict=True)
    assert list(steps) == list(range(len(steps)))
    assert torch.equal(rows[-1], found.x)
    assert all(float(value) > 1e-8 for value in values[:-1])


@pytest.mark.parametrize("asked", [0, 1, 5, 30])
def test_a_budget_ends_it_anywhere(asked):
    left = iter(range(asked))
    found = solve(residual_of(client("tanh", 1, 4)), expired=lambda: next(left, None) is None)
    assert found.status == (Status.STOPPED,)
    assert found.x.isfinite().all()


def test_a_watcher_ends_it():
    found = solve(residual_of(client("tanh", 1, 4)), watch=lambda step, *_: step == 4)
    assert found.status == (Status.STOPPED,)
    assert found.steps == 4
