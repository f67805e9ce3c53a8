"""Pictures come back, with labels known and unknown; settings and budgets are kept."""

import time

import pytest
import torch
from problems import WATCH, Client, client, lenet_client, noise, tiny_lenet
from torch import nn

from auditor.attacks import Search, Watch
from auditor.attacks.images import goal_of
from auditor.attacks.matching import dense_distance
from auditor.attacks.residuals import matching_residual
from auditor.attacks.second_order import LevenbergMarquardt, _are_alike, polish

ONE = Search(restarts=1, at_once=1, enough=1)


def ends(found):
    """How each restart ended, without the form of its Jacobian."""
    return [course.status.partition(" (")[0] for course in found.courses]


def run(had, *, search=ONE, watch=WATCH, seed=0, **settings):
    return LevenbergMarquardt(search=search, **settings).run(had.problem(), seed=seed, watch=watch)


def error(found, had):
    """Mean squared, over the best order of the samples."""
    apart = (found.inputs[0][:, None] - had.inputs.double()[None]).square().flatten(2).mean(2)
    return float(apart.min(1).values.max())


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["product", "dense"])
@pytest.mark.parametrize("count", [1, 2])
def test_pictures_come_back(count, limit):
    had = lenet_client(count)
    found = run(had, dense_limit_bytes=limit)
    assert ends(found)[0] == "reached the goal"
    assert error(found, had) < 1e-3
    assert sorted(found.input_labels[0].tolist()) == sorted(had.labels.tolist())


def test_soft_labels_come_back():
    had = lenet_client(1)
    found = run(had, search=Search(restarts=4, at_once=1, enough=1), soft_labels=True)
    best = ends(found).index("reached the goal")
    assert found.input_labels[best].tolist() == had.labels.tolist()
    assert float((found.inputs[best] - had.inputs).square().mean()) < 1e-3


def test_labels_are_searched_when_the_head_was_not_sent():
    had = client("tanh", 1, 4)
    kept = {name: g for name, g in had.gradients().items() if "head" not in name}
    attack = LevenbergMarquardt(search=ONE)
    problem = had.problem(kept)
    assert attack.blocked_by(problem) is None
    found = attack.run(problem, seed=0, watch=WATCH)
    assert found.input_labels.shape == (1, 1)
    assert found.inputs.shape == (1, 1, 1, 4, 4)


def test_arriving_means_the_goal_of_the_whole_objective():
    had = lenet_client(2)
    found = run(had)
    problem = had.problem()
    value = dense_distance(problem, found.inputs[0], found.input_labels[0], weighting="layer")
    assert float(value.detach()) <= 1.01 * goal_of(problem, ONE)


def test_noise_does_not_arrive():
    had = lenet_client(1)
    problem = had.problem(noise(tiny_lenet(), 0.1))
    attack = LevenbergMarquardt(search=ONE, steps=10, soft_labels=True)
    assert ends(attack.run(problem, seed=0, watch=WATCH))[0] != "reached the goal"


def test_stops_when_enough_arrived():
    found = run(lenet_client(1), search=Search(restarts=9, at_once=1, enough=2))
    arrived = ends(found).count("reached the goal")
    assert arrived == 2
    assert len(found.inputs) == len(found.courses) < 9
    assert not found.expired


def test_courses_tell_the_way():
    found = run(lenet_client(1))
    course = found.courses[0]
    assert course.steps[0] == 0
    assert course.objective[-1] < 1e-3 * course.objective[0]
    assert list(course.objective) == sorted(course.objective, reverse=True)
    assert course.snapshots.shape == (len(course.snapshot_steps), 1, 1, 8, 8)
    assert course.snapshot_steps[-1] == course.steps[-1]
    assert torch.equal(course.snapshots[-1], found.inputs[0].float())


def test_same_seed_same_answer():
    one, other = run(lenet_client(1), steps=3), run(lenet_client(1), steps=3)
    assert torch.equal(one.inputs, other.inputs)
    assert not torch.equal(one.inputs, run(lenet_client(1), steps=3, seed=1).inputs)


@pytest.mark.parametrize("limit", [0, 1 << 40], ids=["product", "dense"])
def test_the_budget_is_kept(limit):
    begun = time.monotonic()
    found = run(
        lenet_client(4, size=16),
        dense_limit_bytes=limit,
        watch=Watch(deadline=begun + 0.5),
        search=Search(restarts=50, at_once=1, enough=50),
    )
    assert found.expired
    assert time.monotonic() - begun < 5


def test_a_budget_that_is_over():
    found = run(lenet_client(1), watch=Watch(deadline=time.monotonic()))
    assert found.inputs.shape == (0, 1, 1, 8, 8)
    assert found.input_labels.shape == (0, 1)
    assert found.expired


def test_what_blocks_it():
    attack = LevenbergMarquardt()
    assert "batch size" in attack.blocked_by(lenet_client(1).problem(size=None))
    assert attack.blocked_by(lenet_client(1).problem()) is None


def test_the_limit_decides_the_form():
    had = client("tanh", 2, 4)
    residual = matching_residual(had.problem(), had.labels, size=2)
    size = (len(residual.target) + 32) * 32 * 8
    assert residual.dense_bytes == size
    assert LevenbergMarquardt(dense_limit_bytes=size).is_dense(residual)
    assert not LevenbergMarquardt(dense_limit_bytes=size - 1).is_dense(residual)


def test_normalised_pixels_start_inside():
    """Starts are pixels 0..1 in model units."""
    had = client("tanh", 1, 4)
    problem = had.problem(mean=(0.5,), std=(0.25,))
    attack = LevenbergMarquardt(search=ONE, steps=0, smoothness=())
    found = attack.run(problem, seed=0, watch=WATCH)
    assert float(found.inputs.min()) >= -2
    assert float(found.inputs.max()) <= 2
    assert float(found.inputs.abs().max()) > 1


def test_other_layers_than_convolutions():
    had = client("sigmoid", 1, 4)
    found = run(had)
    assert isinstance(had.module.head, nn.Linear)
    assert error(found, had) < 1e-3


# --------------------------------------------------------------------------- the prior


def open_batch():
    """Only the head was sent: 48 features of 64 pixels. The picture is smooth."""
    ramp = torch.linspace(0.2, 0.8, 8)
    had = Client(tiny_lenet(), (0.5 * (ramp[:, None] + ramp))[None, None], torch.tensor([1]))
    return had, {name: g for name, g in had.gradients().items() if name.startswith("fc")}


def test_smoothness_chooses_where_restarts_disagree():
    had, sent = open_batch()
    problem, search = had.problem(sent), Search(restarts=2, at_once=1, enough=2)
    plain = LevenbergMarquardt(search=search, smoothness=()).run(problem, seed=0, watch=WATCH)
    found = LevenbergMarquardt(search=search).run(problem, seed=0, watch=WATCH)
    assert ends(plain) == ["reached the goal"] * 2
    assert not plain.guided
    assert error(plain, had) > 1e-2
    assert found.guided
    assert ends(found) == ["reached the goal"]
    assert error(found, had) < 1e-3
    assert found.evaluations > plain.evaluations
    assert not found.expired


def test_smoothness_takes_over_from_a_restart_that_tires():
    """Patience 1: one restart without the prior, the others are not begun."""
    had, sent = open_batch()
    told = Search(restarts=9, at_once=1, enough=2)
    attack = LevenbergMarquardt(search=told, patience=1, dense_limit_bytes=0)
    found = attack.run(had.problem(sent), seed=0, watch=WATCH)
    assert found.guided
    assert len(found.inputs) == len(found.courses) == 1
    assert error(found, had) < 1e-3


def test_smoothness_is_not_asked_where_restarts_agree():
    found = run(lenet_client(1), search=Search(restarts=4, at_once=1, enough=2))
    assert ends(found).count("reached the goal") == 2
    assert not found.guided


def test_likeness_does_not_ask_for_an_order():
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(3, 50, generator=generator)
    assert _are_alike(one, one[[2, 0, 1]] + 0.03)
    assert not _are_alike(one, one + 0.04)
    assert not _are_alike(one, one[[0, 0, 1]])
    assert not _are_alike(one[[0, 0, 1]], one)


# --------------------------------------------------------------------------- polishing


def never():
    return False


def near(had, sigma=0.02):
    generator = torch.Generator().manual_seed(5)
    noise = sigma * torch.randn(had.inputs.shape, generator=generator)
    return (had.inputs + noise).double()


def test_polishing_comes_nearer():
    had = lenet_client(2)
    problem, start = had.problem(), near(had)
    end = polish(problem, start, had.labels, steps=15, expired=never)
    assert end.shape == start.shape
    assert float((end - had.inputs).abs().max()) < 0.1 * float((start - had.inputs).abs().max())
    assert float(end.min()) >= 0
    assert float(end.max()) <= 1


def test_polishing_is_never_worse():
    """Clamping can raise the objective: then the inputs come back as they are."""
    had = lenet_client(1)
    outside = Client(had.module, had.inputs + 1.0, had.labels)
    start = outside.inputs.double()
    end = polish(outside.problem(), start, had.labels, steps=2, expired=never)
    assert torch.equal(end, start)


def test_polishing_without_time_changes_nothing():
    had = lenet_client(1)
    start = near(had).clamp(0, 1)
    assert torch.equal(
        polish(had.problem(), start, had.labels, steps=5, expired=lambda: True), start
    )


@pytest.mark.parametrize(("limit", "form"), [(0, "as products"), (1 << 30, "formed")])
def test_the_form_of_the_jacobian_is_decided_by_size_and_told(limit, form):
    attack = LevenbergMarquardt(dense_limit_bytes=limit, steps=1, smoothness=())
    found = attack.run(lenet_client(size=8).problem(), seed=0, watch=WATCH)
    assert found.courses
    assert all(course.status.endswith(f"(Jacobian {form})") for course in found.courses)
