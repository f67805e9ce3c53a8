"""Signed Adam: its first steps by hand, its rows apart, its box kept."""

import pytest
import torch

from auditor.solve import Status
from auditor.solve.adam import signed_adam, step_length


def bowl(centre):
    """|x - centre|^2 / 2 of each row."""
    return lambda x: ((x - centre).square().sum(1) / 2, x - centre)


def test_step_lengths():
    lengths = [step_length(0.1, k, 80) for k in (0, 29, 30, 49, 50, 69, 70, 79)]
    expected = [0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001]
    assert lengths == pytest.approx(expected)


def test_the_first_steps_are_as_long_as_said_whatever_the_slope():
    start = torch.tensor([[100.0, -1e-3 + 5]], dtype=torch.float64)
    centre = torch.tensor([[0.0, 50.0]], dtype=torch.float64)
    seen = []
    signed_adam(bowl(centre), start, max_steps=8, watch=lambda _, x, __: seen.append(x.clone()))
    assert torch.allclose(seen[1] - seen[0], torch.tensor([[-0.1, 0.1]]).double())
    assert torch.allclose(seen[2] - seen[1], torch.tensor([[-0.1, 0.1]]).double())


def test_as_torch_does_it_on_signs():
    """The same walk as torch.optim.Adam fed with signs, with its own decay of steps."""
    torch.manual_seed(0)
    matrix = torch.randn(6, 6, dtype=torch.float64)
    start = torch.randn(1, 6, dtype=torch.float64)

    def value(x):
        return (x @ matrix).square().sum(1).cos(), None

    def both(x):
        leaf = x.clone().requires_grad_()
        found = value(leaf)[0]
        return found.detach(), torch.autograd.grad(found.sum(), leaf)[0]

    seen = []
    signed_adam(both, start, max_steps=40, watch=lambda _, x, __: seen.append(x.clone()))
    other = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([other], lr=0.1)
    decay = torch.optim.lr_scheduler.MultiStepLR(optimizer, [15, 25, 35], 0.1)
    for step in range(40):
        assert torch.allclose(seen[step], other.detach(), atol=1e-9)
        other.grad = both(other.detach())[1].sign()
        optimizer.step()
        decay.step()


def test_rows_do_not_influence_one_another():
    torch.manual_seed(0)
    start, centre = torch.randn(3, 5), torch.randn(3, 5)
    together = signed_adam(bowl(centre), start, max_steps=30)
    for row in range(3):
        place = slice(row, row + 1)
        alone = signed_adam(bowl(centre[place]), start[place], max_steps=30)
        assert torch.equal(alone.x, together.x[place])
    assert together.evaluations == 31 * 3


def test_the_box_is_kept_and_the_best_point_is_told():
    seen = []
    solution = signed_adam(
        bowl(torch.tensor([[2.0]])),
        torch.zeros(1, 1),
        max_steps=60,
        project=lambda x: x.clamp(-1, 1),
        watch=lambda _, x, value: seen.append((float(x), float(value))),
    )
    assert max(x for x, _ in seen) <= 1
    assert float(solution.x) == 1
    assert float(solution.value) == min(value for _, value in seen)
    assert solution.status == (Status.EXHAUSTED,)


def test_stops_when_told():
    solution = signed_adam(
        bowl(torch.ones(1, 1)), torch.zeros(1, 1), max_steps=60, watch=lambda step, *_: step == 4
    )
    assert solution.steps == 4
    assert solution.status == (Status.STOPPED,)
    late = signed_adam(bowl(torch.ones(1, 1)), torch.zeros(1, 1), max_steps=9, expired=lambda: True)
    assert late.steps == 0


def test_a_row_without_numbers_is_told():
    def broken(x):
        return torch.where(x[:, 0] > 0, torch.nan, x.sum(1)), torch.ones_like(x)

    solution = signed_adam(broken, torch.tensor([[1.0], [-1.0]]), max_steps=5)
    assert solution.status == (Status.DIVERGED, Status.EXHAUSTED)
    assert solution.x.isfinite().all()
