"""Restarts in waves: how many, when they stop, and what is kept of their way."""

import time
from dataclasses import replace

import pytest
import torch
from problems import WATCH, client, knowledge, lenet_client, noise, problem_of
from torch import nn

from auditor.attacks import PAPER, Search, Watch
from auditor.attacks.images import (
    _due_steps,
    _thin,
    best_pixels,
    goal_of,
    run_search,
    starts,
)
from auditor.problem import residuals_of, to_pixels, tolerance_of
from auditor.solve import by_row

WIDTH = 16


def bowl(depth=0.0):
    """Reaches any goal above `depth` within a few steps."""
    return by_row(lambda row: (row - 0.5).square().sum() + depth)


def search_with(objective, search, *, watch=WATCH, draws=None, seed=0):
    problem = client("tanh", 1, 3).problem()
    generator = torch.Generator().manual_seed(seed)
    draws = [] if draws is None else draws

    def first(count):
        draws.append(count)
        return torch.randn(count, WIDTH, generator=generator, dtype=torch.float64)

    return run_search(
        problem,
        objective,
        first,
        lambda rows: rows.view(len(rows), 1, 1, 4, 4),
        search=search,
        name="images.test",
        watch=watch,
    )


# --------------------------------------------------------------------------- waves


def test_stops_when_enough_arrived():
    draws = []
    found = search_with(bowl(), Search(restarts=9, at_once=2, enough=2), draws=draws)
    assert draws == [2]
    assert len(found.rows) == 2
    assert [c.status for c in found.courses] == ["reached the goal"] * 2
    assert not found.expired


def test_takes_as_many_waves_as_it_needs():
    draws = []
    found = search_with(bowl(), Search(restarts=9, at_once=1, enough=3), draws=draws)
    assert draws == [1, 1, 1]
    assert len(found.rows) == 3


def test_never_more_restarts_than_asked():
    draws = []
    found = search_with(
        bowl(1.0), Search(restarts=5, at_once=2, enough=2, max_steps=3), draws=draws
    )
    assert draws == [2, 2, 1]
    assert len(found.rows) == len(found.courses) == 5
    assert not found.expired


def test_rows_that_are_not_needed_any_more_are_stopped():
    """One row is there at once; with one enough, the other is not waited for."""

    def objective(rows):
        values, gradients = bowl()(rows)
        late = torch.arange(len(rows)) > 0
        return values + late, gradients

    found = search_with(objective, Search(restarts=2, at_once=2, enough=1))
    assert found.courses[0].status == "reached the goal"
    assert len(found.rows) == 2


def test_every_evaluation_of_every_wave_is_counted():
    calls = []

    def counted(rows):
        calls.append(len(rows))
        return bowl(1.0)(rows)

    found = search_with(counted, Search(restarts=3, at_once=2, max_steps=4))
    assert found.evaluations == sum(calls)


def test_rows_are_the_best_that_were_met():
    found = search_with(bowl(1.0), Search(restarts=2, at_once=2, max_steps=5))
    values, _ = bowl(1.0)(found.rows)
    for value, course in zip(values, found.courses, strict=True):
        assert float(value) == pytest.approx(min(course.objective))


# --------------------------------------------------------------------------- the clock


def test_an_expired_watch_ends_before_the_first_restart():
    calls = []

    def counted(rows):
        calls.append(len(rows))
        return bowl()(rows)

    found = search_with(counted, Search(), watch=Watch(deadline=time.monotonic() - 1))
    assert not calls
    assert found.rows.shape == (0, WIDTH)
    assert found.courses == ()
    assert found.expired


def test_the_deadline_ends_a_search_on_its_way():
    def slow(rows):
        time.sleep(0.01)
        return bowl(1.0)(rows)

    begun = time.monotonic()
    found = search_with(
        slow, Search(restarts=50, max_steps=10_000), watch=Watch(deadline=begun + 0.3)
    )
    assert time.monotonic() - begun < 3
    assert found.expired
    assert found.courses


def test_a_search_that_arrived_did_not_expire():
    def listener(milestone):
        time.sleep(0.2)  # the deadline passes while the first milestone is shown

    watch = Watch(deadline=time.monotonic() + 0.1, progress=listener)
    found = search_with(
        by_row(lambda row: 0 * row.sum()), Search(restarts=4, enough=2), watch=watch
    )
    assert len(found.rows) == 2
    assert not found.expired


def test_progress_is_told():
    told = []
    search_with(
        bowl(1.0), Search(restarts=1, at_once=1, max_steps=50), watch=Watch(progress=told.append)
    )
    assert told[0].done == 0
    assert all(m.attack == "images.test" and m.total == 50 for m in told)
    assert told[-1].residual <= told[0].residual
    assert told[-1].residual >= 1.0  # the root of the objective


# --------------------------------------------------------------------------- the film


@pytest.mark.parametrize("steps", [1, 2, 30, 6000])
def test_due_steps(steps):
    due = sorted(_due_steps(steps))
    assert due[0] == 0
    assert len(due) <= 16
    assert all(step <= steps + 1 for step in due)


@pytest.mark.parametrize("count", [1, 2, 199, 200, 201, 399, 5000])
def test_thinned_curves_keep_both_ends(count):
    kept = _thin(count)
    assert kept[0] == 0
    assert kept[-1] == count - 1
    assert kept == sorted(set(kept))
    assert len(kept) <= 401


def test_courses():
    found = search_with(bowl(1.0), Search(restarts=2, at_once=2, max_steps=40))
    for row, course in enumerate(found.courses):
        assert course.steps[0] == 0
        assert list(course.steps) == sorted(set(course.steps))
        assert len(course.steps) == len(course.objective)
        assert len(course.snapshot_steps) == len(course.snapshots)
        assert list(course.snapshot_steps) == sorted(course.snapshot_steps)
        assert course.snapshot_steps[0] == 0
        assert course.snapshots.shape[1:] == (1, 1, 4, 4)
        last = found.rows[row].view(1, 1, 4, 4).float()
        assert torch.equal(course.snapshots[-1], last)


# --------------------------------------------------------------------------- starts and goals


def test_starts_are_uniform_in_pixels():
    module = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 3))
    known = knowledge((3, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), batch_size=2)
    problem = problem_of(module, noise(module, 1.0), known)
    drawn = starts(problem, Search(), 20, torch.Generator().manual_seed(0))
    assert drawn.shape == (20, 2, 3, 8, 8)
    pixels = drawn * torch.tensor([0.2, 0.3, 0.4]).double().view(3, 1, 1)
    pixels = pixels + torch.tensor([0.5, 0.4, 0.3]).double().view(3, 1, 1)
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert float(pixels.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(pixels.var()) == pytest.approx(1 / 12, abs=0.005)


def test_starts_of_the_paper_are_normal_in_model_units():
    problem = client("tanh", 1, 3).problem()
    drawn = starts(problem, PAPER, 500, torch.Generator().manual_seed(0))
    assert float(drawn.mean()) == pytest.approx(0, abs=0.05)
    assert float(drawn.std()) == pytest.approx(1, abs=0.05)


def test_starts_do_not_depend_on_how_many_are_drawn_at_once():
    problem = client("tanh", 1, 3).problem()
    one, two = (torch.Generator().manual_seed(4) for _ in range(2))
    waves = [starts(problem, Search(), n, one) for n in (1, 1, 2)]
    assert torch.equal(torch.cat(waves), starts(problem, Search(), 4, two))


def test_the_goal_means_that_every_tensor_is_within_tolerance():
    """Even if one tensor held the whole of the objective."""
    problem = lenet_client().problem()
    goal = goal_of(problem, Search())
    count = len(problem.gradient)
    worst = (goal * count) ** 0.5
    assert worst == pytest.approx(tolerance_of(problem) / 2)
    name = next(iter(problem.gradient))
    bent = dict(problem.gradient)
    bent[name] = bent[name] * (1 + worst)
    apart = residuals_of(problem, bent)
    assert apart[name] == pytest.approx(worst)
    assert sum(r**2 for r in apart.values()) / count == pytest.approx(goal)


def test_the_goal_of_the_paper():
    problem = lenet_client().problem()
    assert goal_of(problem, PAPER) == 1e-6
    assert not PAPER.line_search
    assert (PAPER.restarts, PAPER.weighting, PAPER.start) == (1, "none", "normal")


def test_best_pixels_are_pixels():
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    known = replace(knowledge((1, 4, 4)), mean=(0.5,), std=(0.25,))
    problem = problem_of(module, noise(module, 1.0), known)
    inputs = torch.linspace(-9, 9, 16, dtype=torch.float64).view(1, 1, 4, 4)
    shown = best_pixels(problem, inputs)
    assert shown.dtype == torch.float32
    assert (shown.min(), shown.max()) == (0, 1)
    assert torch.allclose(shown.double(), to_pixels(problem, inputs), atol=1e-7)
