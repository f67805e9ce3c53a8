"""Known minima, rows that do not see each other, every status, and `torch.optim` beside it."""

import itertools
import math

import pytest
import torch

from auditor.solve import Status, by_row, minimize
from auditor.solve.lbfgs import _Pairs

DOUBLE = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def quadratic(matrix, minimum):
    def value(row):
        away = row - minimum
        return away @ matrix @ away / 2

    return value


def spread(width, condition, seed=0):
    """A symmetric positive matrix with eigenvalues from 1 to `condition`."""
    turn, _ = torch.linalg.qr(normal(width, width, seed=seed))
    return turn @ torch.diag(torch.logspace(0, math.log10(condition), width, dtype=DOUBLE)) @ turn.T


def rosenbrock(row):
    return (100 * (row[1:] - row[:-1].square()).square() + (1 - row[:-1]).square()).sum()


def wavy(row):
    """Many minima, and negative curvature between them."""
    return (row.square() / 50 + torch.cos(2 * row)).sum() + len(row)


# --------------------------------------------------------------------------- minima


@pytest.mark.parametrize("condition", [1, 1e2, 1e4])
def test_quadratic(condition):
    minimum = normal(12, seed=3)
    f = by_row(quadratic(spread(12, condition), minimum))
    found = minimize(f, normal(3, 12, seed=1), max_steps=300, goal=1e-18)
    assert set(found.status) == {Status.CONVERGED}
    assert torch.allclose(found.x, minimum.expand(3, -1), atol=1e-8)
    assert (found.value <= 1e-18).all()


def test_rosenbrock():
    start = torch.stack([torch.tensor([-1.2, 1.0], dtype=DOUBLE), normal(2, seed=5)])
    found = minimize(by_row(rosenbrock), start, max_steps=200, goal=1e-20)
    assert set(found.status) == {Status.CONVERGED}
    assert torch.allclose(found.x, torch.ones(2, 2, dtype=DOUBLE), atol=1e-8)


def test_rosenbrock_in_ten_dimensions_with_a_short_memory():
    found = minimize(
        by_row(rosenbrock), 0.5 * normal(1, 10, seed=2), max_steps=500, goal=1e-16, memory=4
    )
    assert found.status == (Status.CONVERGED,)


def test_a_quadratic_takes_no_more_steps_than_dimensions_when_the_search_is_exact():
    """With a memory of D and a quadratic, quasi-Newton ends within few more than D steps."""
    f = by_row(quadratic(spread(5, 100), torch.zeros(5, dtype=DOUBLE)))
    found = minimize(f, normal(1, 5), max_steps=100, goal=1e-14)
    assert found.status == (Status.CONVERGED,)
    assert found.steps <= 30


@pytest.mark.parametrize("line_search", [True, False])
def test_the_value_belongs_to_the_point(line_search):
    found = minimize(by_row(wavy), normal(4, 3), max_steps=9, line_search=line_search)
    assert torch.allclose(found.value, torch.stack([wavy(x) for x in found.x]))


def test_the_start_is_left_alone():
    start = normal(2, 3)
    before = start.clone()
    minimize(by_row(rosenbrock), start, max_steps=5)
    assert torch.equal(start, before)


def test_with_a_search_no_accepted_step_goes_up():
    seen = []
    minimize(
        by_row(wavy),
        3 * normal(5, 4),
        max_steps=40,
        watch=lambda step, x, value: seen.append(value) or False,
    )
    for before, after in itertools.pairwise(seen):
        assert (after <= before).all()


# --------------------------------------------------------------------------- rows


@pytest.mark.parametrize("line_search", [True, False])
@pytest.mark.parametrize("memory", [3, 100])
def test_rows_do_not_see_each_other(line_search, memory):
    start = torch.cat([normal(3, 4, seed=1), torch.full((1, 4), math.nan, dtype=DOUBLE)])
    settings = {"max_steps": 25, "memory": memory, "line_search": line_search, "goal": 1e-3}
    together = minimize(by_row(wavy), start, **settings)
    evaluations = 0
    for row in range(4):
        alone = minimize(by_row(wavy), start[row : row + 1], **settings)
        evaluations += alone.evaluations
        assert alone.status[0] == together.status[row]
        assert torch.allclose(alone.x[0], together.x[row], atol=1e-10, equal_nan=True)
    assert together.evaluations == evaluations


def test_loop_and_vmap_agree():
    rows = normal(6, 4)
    loop, batched = by_row(rosenbrock)(rows), by_row(rosenbrock, how="vmap")(rows)
    assert torch.allclose(loop[0], batched[0], rtol=1e-14)
    assert torch.allclose(loop[1], batched[1], rtol=1e-14)
    assert not loop[0].requires_grad
    assert not batched[0].requires_grad
    ends = [
        minimize(by_row(rosenbrock, how=how), rows[:2], max_steps=20).x for how in ("loop", "vmap")
    ]
    assert torch.allclose(*ends, rtol=1e-8)


def test_by_row_gives_gradients_by_hand():
    values, gradients = by_row(lambda row: row.square().sum())(normal(3, 2))
    assert torch.allclose(values, normal(3, 2).square().sum(1))
    assert torch.allclose(gradients, 2 * normal(3, 2))


# --------------------------------------------------------------------------- how it ends


def test_converged_before_the_first_step():
    found = minimize(by_row(rosenbrock), torch.ones(1, 3, dtype=DOUBLE), max_steps=5)
    assert found.status == (Status.CONVERGED,)
    assert (found.steps, found.evaluations) == (0, 1)


def test_exhausted():
    found = minimize(by_row(rosenbrock), normal(1, 6), max_steps=3, goal=1e-30)
    assert found.status == (Status.EXHAUSTED,)
    assert found.steps == 3


def test_no_steps_at_all():
    found = minimize(by_row(rosenbrock), normal(1, 6), max_steps=0, goal=1e-30)
    assert found.status == (Status.EXHAUSTED,)
    assert torch.equal(found.x, normal(1, 6))


@pytest.mark.parametrize("line_search", [True, False])
def test_stalled_where_no_direction_descends(line_search):
    """At its minimum the goal is out of reach."""
    f = by_row(lambda row: row.square().sum() + 1)
    found = minimize(
        f, torch.ones(1, 2, dtype=DOUBLE), max_steps=50, goal=0.0, line_search=line_search
    )
    assert found.status == (Status.STALLED,)
    assert found.steps < 50
    assert float(found.value) == pytest.approx(1)


def test_stalled_at_a_lying_gradient():
    def uphill(rows):
        return rows.square().sum(1), -2 * rows

    found = minimize(uphill, torch.ones(1, 2, dtype=DOUBLE), max_steps=50)
    assert found.status == (Status.STALLED,)
    assert torch.equal(found.x, torch.ones(1, 2, dtype=DOUBLE))


@pytest.mark.parametrize("line_search", [True, False])
def test_diverged_at_the_start(line_search):
    f = by_row(lambda row: row.sum().log())
    start = torch.tensor([[-1.0, 0.5]], dtype=DOUBLE)
    found = minimize(f, start, max_steps=5, line_search=line_search)
    assert found.status == (Status.DIVERGED,)
    assert torch.equal(found.x, start)


def test_diverged_on_the_way_keeps_the_best():
    """-log has no minimum and nothing below zero; steps of length 1 run over the edge."""

    def value(row):
        return torch.where(row.abs().max() < 2, -row.sum(), torch.nan)

    found = minimize(
        by_row(value), torch.zeros(1, 2, dtype=DOUBLE), max_steps=50, goal=-99, line_search=False
    )
    assert found.status == (Status.DIVERGED,)
    assert found.value.isfinite().all()
    assert float(found.value) <= 0


def test_a_search_backs_off_from_what_is_not_finite():
    def value(row):
        return (row - 1.9).square().sum() + torch.where(row.max() < 2, 0.0, torch.nan)

    found = minimize(by_row(value), torch.zeros(1, 2, dtype=DOUBLE), max_steps=50, goal=1e-12)
    assert found.status == (Status.CONVERGED,)


def test_stopped():
    stops = []

    def watch(step, x, value):
        stops.append(step)
        return step == 2

    found = minimize(by_row(rosenbrock), normal(2, 6), max_steps=50, goal=1e-30, watch=watch)
    assert set(found.status) == {Status.STOPPED}
    assert stops == [0, 1, 2]
    assert found.steps == 2


def test_rows_that_had_ended_keep_their_status_when_the_run_is_stopped():
    start = torch.stack([torch.ones(6, dtype=DOUBLE), normal(6)])
    found = minimize(by_row(rosenbrock), start, max_steps=9, goal=1e-30, watch=lambda s, x, v: True)
    assert found.status == (Status.CONVERGED, Status.STOPPED)


def test_the_best_point_is_returned_not_the_last():
    """Steps of length 1 overshoot; the answer must not be worse than anything that was seen."""
    seen = []
    found = minimize(
        by_row(wavy),
        3 * normal(3, 4, seed=8),
        max_steps=12,
        line_search=False,
        watch=lambda step, x, value: seen.append((x.clone(), value.clone())) or False,
    )
    values = torch.stack([value for _, value in seen])  # (S, R)
    assert torch.equal(found.value, values.min(0).values)
    assert (values[-1] > found.value).any()  # else this tested nothing
    for row, step in enumerate(values.argmin(0).tolist()):
        assert torch.equal(found.x[row], seen[step][0][row])


@pytest.mark.parametrize("line_search", [True, False])
def test_every_evaluation_is_counted(line_search):
    calls = []

    def counted(rows):
        calls.append(len(rows))
        return by_row(wavy)(rows)

    start = torch.cat([3 * normal(3, 4, seed=8), torch.full((1, 4), math.pi / 2, dtype=DOUBLE)])
    found = minimize(counted, start, max_steps=15, goal=0.3, line_search=line_search)
    assert found.evaluations == sum(calls)
    assert min(calls) < 4  # a row that ended is not asked again


# --------------------------------------------------------------------------- torch.optim beside it


def reference(value, start, steps, memory):
    """The points that `torch.optim.LBFGS` with lr=1 meets, one at a time."""
    x = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x], lr=1, max_iter=1, history_size=memory, tolerance_grad=0, tolerance_change=0
    )
    points = [start.clone()]
    for _ in range(steps):

        def closure():
            optimizer.zero_grad()
            loss = value(x)
            loss.backward()
            return loss

        optimizer.step(closure)
        points.append(x.detach().clone())
    return torch.stack(points)


def trajectory(value, start, steps, memory):
    points = []
    minimize(
        by_row(value),
        start[None],
        max_steps=steps,
        goal=-math.inf,
        memory=memory,
        line_search=False,
        watch=lambda step, x, v: points.append(x[0].clone()) or False,
    )
    return torch.stack(points)


def bowl(row):
    """Convex, not quadratic, badly scaled and coupled, so that every pair counts."""
    scales = torch.logspace(0, 1.5, len(row), dtype=row.dtype)
    return (
        (scales * row.square()).sum() / 2
        + (row[1:] - row[:-1]).square().sum()
        + (row**4).sum() / 20
        + row.exp().sum() / 5
    )


@pytest.mark.parametrize("memory", [5, 100])
@pytest.mark.parametrize("seed", range(3))
def test_steps_of_length_one_are_those_of_torch(memory, seed):
    start = 2 * normal(20, seed=seed)
    ours, theirs = (way(bowl, start, 14, memory) for way in (trajectory, reference))
    assert torch.allclose(ours, theirs, atol=1e-9)
    assert (ours[-1] - ours[-2]).norm() > 1e-6  # still on its way: the memory of 5 has turned


@pytest.mark.parametrize("memory", [5, 100])
def test_also_after_pairs_of_negative_curvature(memory):
    """The first pair is rejected; still only the very first step is a cautious one."""
    start = torch.tensor([0.1, -0.2, 0.15], dtype=DOUBLE)

    def value(row):
        return torch.cos(row).sum() + row.square().sum() / 20

    steps = 4
    ours, theirs = (way(value, start, steps, memory) for way in (trajectory, reference))
    assert torch.allclose(ours, theirs, atol=1e-8)


# --------------------------------------------------------------------------- the direction


def two_loops(pairs, gradient, gamma):
    """Nocedal and Wright, algorithm 7.4, written out."""
    q, alphas = gradient.clone(), []
    for s, y in reversed(pairs):
        alpha = (s @ q) / (y @ s)
        alphas.append(alpha)
        q = q - alpha * y
    r = gamma * q
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        beta = (y @ r) / (y @ s)
        r = r + s * (alpha - beta)
    return -r


@pytest.mark.parametrize("memory", [1, 3, 6])
def test_compact_direction_is_the_two_loop_recursion(memory):
    rows, width = 3, 7
    matrices = [spread(width, 50, seed=row) for row in range(rows)]
    store = _Pairs(torch.zeros(rows, width, dtype=DOUBLE), memory)
    kept = [[] for _ in range(rows)]
    for step in range(9):
        s = normal(rows, width, seed=10 + step)
        y = torch.stack([m @ v for m, v in zip(matrices, s, strict=True)])
        store.push(s, y)
        for row in range(rows):
            kept[row] = [*kept[row], (s[row], y[row])][-memory:]
        gradient = normal(rows, width, seed=90 + step)
        found = store.direction(gradient)
        for row in range(rows):
            last_s, last_y = kept[row][-1]
            gamma = (last_s @ last_y) / (last_y @ last_y)
            expected = two_loops(kept[row], gradient[row], gamma)
            assert torch.allclose(found[row], expected, rtol=1e-8, atol=1e-10)
            assert float(found[row] @ gradient[row]) < 0


def test_pairs_without_positive_curvature_are_not_taken():
    store = _Pairs(torch.zeros(2, 4, dtype=DOUBLE), 5)
    s = normal(2, 4)
    store.push(s, torch.stack([2 * s[0], -s[1]]))
    gradient = normal(2, 4, seed=1)
    assert store.empty.tolist() == [False, True]
    found = store.direction(gradient)
    assert torch.allclose(found[0], two_loops([(s[0], 2 * s[0])], gradient[0], 0.5))
    assert torch.equal(found[1], -gradient[1])


def test_forgetting_leaves_the_other_rows_alone():
    store = _Pairs(torch.zeros(2, 4, dtype=DOUBLE), 3)
    for step in range(4):
        s = normal(2, 4, seed=step)
        store.push(s, 3 * s)
    gradient = normal(2, 4, seed=9)
    before = store.direction(gradient)
    store.clear(torch.tensor([True, False]))
    after = store.direction(gradient)
    assert torch.equal(after[0], -gradient[0])
    assert torch.allclose(after[1], before[1])
