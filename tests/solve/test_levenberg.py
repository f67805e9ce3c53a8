"""Known minima, scipy beside it, both forms of the Jacobian, bounds, and every way to end."""

import pytest
import scipy.optimize
import torch
from torch.func import jacfwd, jvp, vjp, vmap

from auditor.solve import LinearMap, Status, levenberg_marquardt
from auditor.solve.levenberg import _normal_matrix

DOUBLE = torch.float64


def rosenbrock(x):
    return torch.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]])


def powell(x):
    """Its Jacobian is singular at the minimum, which is zero."""
    first, second = x[0] + 10 * x[1], 5**0.5 * (x[2] - x[3])
    return torch.stack([first, second, (x[1] - 2 * x[2]) ** 2, 10**0.5 * (x[0] - x[3]) ** 2])


def beale(x):
    return torch.stack([c - x[0] * (1 - x[1] ** (i + 1)) for i, c in enumerate((1.5, 2.25, 2.625))])


def decay(x):
    """A fit that leaves something over."""
    times = torch.arange(8, dtype=x.dtype)
    return x[0] * torch.exp(-x[1] * times) - (2 * torch.exp(-times / 2) + torch.sin(5 * times) / 9)


def dense(f):
    def linearise(x):
        return vmap(f)(x), vmap(jacfwd(f))(x)

    return linearise


def product(f):
    rows = vmap(f)

    def linearise(x):
        back = vjp(rows, x)[1]
        return rows(x), LinearMap(lambda v: jvp(rows, (x,), (v,))[1], lambda u: back(u)[0])

    return linearise


def solve(f, start, form=dense, **options):
    start = torch.tensor(start, dtype=DOUBLE)
    start = start if start.ndim == 2 else start[None]
    options = {"max_steps": 100, "goal": 1e-20} | options
    return levenberg_marquardt(form(f), vmap(f), start, **options)


def scipys(f, start, lower=-torch.inf, upper=torch.inf):
    found = scipy.optimize.least_squares(
        lambda x: f(torch.tensor(x, dtype=DOUBLE)).numpy(),
        start,
        jac=lambda x: jacfwd(f)(torch.tensor(x, dtype=DOUBLE)).numpy(),
        bounds=(lower, upper),
        method="trf",
        xtol=1e-14,
        ftol=1e-14,
        gtol=1e-14,
    )
    return torch.from_numpy(found.x), 2 * found.cost


def test_rows_with_unlike_accuracy_do_not_share_it():
    """The tolerance of the inner solver follows each row's own progress."""
    starts = [[1.0 + 1e-6, 1.0], [-1.2, 1.0]]
    together = solve(rosenbrock, starts, product, max_steps=3, goal=0.0)
    alone = solve(rosenbrock, starts[1], product, max_steps=3, goal=0.0)
    assert torch.allclose(together.x[1], alone.x[0], rtol=1e-9)


@pytest.fixture(autouse=True, scope="module")
def _forward_mode():
    """Torch warns of its own deprecated parts when forward mode is first used."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jvp(lambda x: x, (torch.zeros(1),), (torch.ones(1),))


both_forms = pytest.mark.parametrize("form", [dense, product], ids=lambda f: f.__name__)

# --------------------------------------------------------------------------- minima


@both_forms
@pytest.mark.parametrize(
    ("f", "start", "minimum", "near"),
    [
        (rosenbrock, [-1.2, 1.0], [1.0, 1.0], 1e-8),
        (beale, [1.0, 1.0], [3.0, 0.5], 1e-8),
        (powell, [3.0, -1.0, 0.0, 1.0], [0.0] * 4, 1e-4),
    ],
    ids=["rosenbrock", "beale", "powell"],
)
def test_known_minima(f, start, minimum, near, form):
    found = solve(f, start, form)
    assert found.status == (Status.CONVERGED,)
    assert found.value[0] <= 1e-20
    assert torch.allclose(found.x[0], torch.tensor(minimum, dtype=DOUBLE), atol=near)


@both_forms
def test_a_minimum_above_zero_is_stalled_at_what_scipy_finds(form):
    found = solve(decay, [1.0, 1.0], form)
    x, value = scipys(decay, [1.0, 1.0])
    assert found.status == (Status.STALLED,)
    assert float(found.value[0]) == pytest.approx(value, rel=1e-6)
    assert torch.allclose(found.x[0], x, atol=1e-3)


def test_value_is_that_of_the_answer_and_never_above_the_start():
    found = solve(decay, [[1.0, 1.0], [5.0, -1.0]], max_steps=3)
    values = vmap(decay)(found.x).square().sum(1)
    assert torch.allclose(found.value, values)
    starts = vmap(decay)(torch.tensor([[1.0, 1.0], [5.0, -1.0]], dtype=DOUBLE)).square().sum(1)
    assert (found.value < starts).all()


@both_forms
def test_linear_problems_in_closed_form(form):
    matrix = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    right = torch.arange(12, dtype=DOUBLE)
    found = solve(lambda x: matrix @ x - right, [0.0] * 5, form)
    expected = torch.linalg.lstsq(matrix, right[:, None]).solution[:, 0]
    assert found.status == (Status.STALLED,)
    assert torch.allclose(found.x[0], expected, atol=1e-3)


def test_more_unknowns_than_residuals():
    """J'J is singular; damping carries the factorisation."""
    found = solve(lambda x: x[:1] * x[1:2] + x.sum()[None] - 3, [1.0, 0.5, 0.1])
    assert found.status == (Status.CONVERGED,)


# --------------------------------------------------------------------------- bounds


@both_forms
@pytest.mark.parametrize(
    ("f", "start", "lower", "upper"),
    [
        (rosenbrock, [-1.2, 1.0], [-2.0, -2.0], [0.5, 2.0]),
        (rosenbrock, [0.0, 1.5], [-2.0, 1.5], [2.0, 2.0]),
        (beale, [1.0, 0.0], [0.0, -1.0], [2.0, 1.0]),
        (decay, [1.0, 1.0], [0.0, 0.6], [1.8, 2.0]),
    ],
)
def test_bounds_as_scipy(f, start, lower, upper, form):
    found = solve(
        f,
        start,
        form,
        lower=torch.tensor(lower, dtype=DOUBLE),
        upper=torch.tensor(upper, dtype=DOUBLE),
        max_steps=300,
    )
    x, value = scipys(f, start, lower, upper)
    assert float(found.value[0]) == pytest.approx(value, rel=1e-4, abs=1e-12)
    assert torch.allclose(found.x[0], x, atol=1e-2)
    assert (found.x[0] >= torch.tensor(lower, dtype=DOUBLE)).all()
    assert (found.x[0] <= torch.tensor(upper, dtype=DOUBLE)).all()


def test_a_start_outside_is_clamped():
    one = torch.ones((), dtype=DOUBLE)
    found = solve(rosenbrock, [5.0, -5.0], lower=-one, upper=one / 2, max_steps=0)
    assert found.x.tolist() == [[0.5, -1.0]]


# --------------------------------------------------------------------------- rows


@both_forms
def test_rows_end_as_they_do_alone(form):
    starts = [[-1.2, 1.0], [0.9, 0.8], [3.0, -4.0]]
    together = solve(rosenbrock, starts, form)
    assert set(together.status) == {Status.CONVERGED}
    for row, start in enumerate(starts):
        alone = solve(rosenbrock, start, form)
        assert alone.steps <= together.steps
        assert torch.allclose(together.x[row], alone.x[0], atol=1e-8)


def test_dense_rows_take_the_same_steps_as_alone():
    starts = [[-1.2, 1.0], [3.0, -4.0]]
    together = solve(rosenbrock, starts, max_steps=5, goal=0.0)
    for row, start in enumerate(starts):
        alone = solve(rosenbrock, start, max_steps=5, goal=0.0)
        assert torch.allclose(together.x[row], alone.x[0], rtol=1e-12)


@both_forms
def test_nan_in_one_row(form):
    found = solve(rosenbrock, [[-1.2, 1.0], [torch.nan, 1.0]], form)
    assert found.status == (Status.CONVERGED, Status.DIVERGED)
    assert torch.allclose(found.x[0], torch.ones(2, dtype=DOUBLE), atol=1e-8)


def test_steps_into_nan_are_taken_back():
    """The root is at 1e-3; a full step from 1 lands where the logarithm ends."""
    found = solve(lambda x: torch.log(x) - torch.log(torch.tensor(1e-3)), [1.0])
    assert found.status == (Status.CONVERGED,)
    assert float(found.x[0, 0]) == pytest.approx(1e-3)


# --------------------------------------------------------------------------- ends


def test_a_jacobian_that_is_not_finite():
    found = levenberg_marquardt(
        lambda x: (x, torch.full((1, 2, 2), torch.nan, dtype=DOUBLE)),
        lambda x: x,
        torch.ones(1, 2, dtype=DOUBLE),
        max_steps=5,
    )
    assert found.status == (Status.DIVERGED,)
    assert found.x.tolist() == [[1.0, 1.0]]


def test_a_jacobian_with_the_wrong_sign_finds_no_descent():
    eye = torch.eye(2, dtype=DOUBLE)[None]
    found = levenberg_marquardt(
        lambda x: (x, -eye), lambda x: x, torch.ones(1, 2, dtype=DOUBLE), max_steps=5
    )
    assert found.status == (Status.STALLED,)
    assert found.x.tolist() == [[1.0, 1.0]]


def test_out_of_steps():
    found = solve(rosenbrock, [-1.2, 1.0], max_steps=3)
    assert found.status == (Status.EXHAUSTED,)
    assert found.steps == 3


def test_the_watcher_sees_every_step_and_may_stop():
    seen = []

    def watch(step, x, values):
        seen.append((step, values, x))
        return step == 4

    found = solve(rosenbrock, [-1.2, 1.0], watch=watch)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3, 4]
    assert found.status == (Status.STOPPED,)
    values = [float(value) for _, value, _ in seen]  # read at the end: they are not written over
    assert values == sorted(values, reverse=True)
    assert values[-1] < values[0]
    assert [float(vmap(rosenbrock)(x).square().sum()) for _, _, x in seen] == pytest.approx(values)


@both_forms
@pytest.mark.parametrize("calls", [0, 1, 2, 5, 9])
def test_the_budget_stops_it_anywhere(form, calls):
    asked = []
    found = solve(
        rosenbrock, [-1.2, 1.0], form, expired=lambda: asked.append(1) or len(asked) > calls
    )
    assert found.status == (Status.STOPPED,)
    assert len(asked) <= calls + 4
    assert found.value[0] <= 24.2 + 1e-9  # the start's


def test_a_linearisation_that_was_cut_short():
    found = levenberg_marquardt(
        lambda x: None, lambda x: x, torch.ones(1, 2, dtype=DOUBLE), max_steps=5
    )
    assert found.status == (Status.STOPPED,)
    assert found.steps == 0


# --------------------------------------------------------------------------- inside


@pytest.mark.parametrize("width", [1, 5, 512, 700])
def test_normal_matrix_by_blocks(width):
    jacobian = torch.randn(2, 9, width, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    found = _normal_matrix(jacobian, lambda: False)
    assert torch.allclose(found, jacobian.mT @ jacobian)
    assert found.shape == (2, width, width)


@both_forms
def test_the_first_damping_can_be_given(form):
    """One step on a linear problem, against the damped normal equations."""
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(6, 4, generator=generator, dtype=DOUBLE)
    right = torch.randn(6, generator=generator, dtype=DOUBLE)
    found = solve(lambda x: matrix @ x - right, [0.0] * 4, form, max_steps=1, damping=3.0)
    expected = torch.linalg.solve(matrix.T @ matrix + 3 * torch.eye(4), matrix.T @ right)
    # The map's equations are solved to a tenth of the first residual.
    bound = 1e-10 if form is dense else 0.1
    assert torch.allclose(found.x[0], expected, atol=bound * float(expected.norm()))
