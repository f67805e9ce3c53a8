"""The residual vector against the objective, its Jacobian against slow definitions."""

import pytest
import torch
from problems import Client, batch, client, net
from torch import nn

from auditor.attacks.matching import dense_distance
from auditor.attacks.residuals import matching_residual

DOUBLE = torch.float64


def never():
    return False


def norm_client():
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 4)
    )
    return Client(module, *batch(3, 4), mode="train")


def conv_client():
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, stride=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 4)
    )
    return Client(module, *batch(2, 4))


CLIENTS = {
    "one": lambda: client("tanh", 1, 3),
    "convolutions": conv_client,
    "batch": lambda: client("tanh", 3, 4),
    "sum": lambda: client("tanh", 3, 4, reduction="sum"),
    "smoothed": lambda: client("sigmoid", 2, 4, smoothing=0.1),
    "many classes": lambda: client("tanh", 2, 12),
    "no bias": lambda: client("tanh", 2, 4, bias=False),
    "batch norm": norm_client,
}
each_client = pytest.mark.parametrize("name", CLIENTS)
both_labels = pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])


def build(name, *, soft=False, **more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        had = CLIENTS[name]()
    problem = had.problem(**more)
    return had, matching_residual(problem, None if soft else had.labels, size=len(had.labels))


def row_of(residual, seed=1, count=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, residual.width, generator=generator, dtype=DOUBLE)


def slow_jacobian(residual, row):
    """Row by row, by plain reverse mode on the definition."""
    return torch.autograd.functional.jacobian(lambda x: residual(x[None])[0], row)


@both_labels
@each_client
def test_its_square_is_the_objective(name, soft):
    """K <= N + 2 in all of these but one: nothing is left out."""
    _, residual = build(name, soft=soft)
    row = row_of(residual)[0]
    slow = dense_distance(residual.problem, *residual.unpack(row), weighting="layer").detach()
    seen = residual(row[None]).square().sum()
    if name == "many classes":
        assert 0 < float(seen) < float(slow)
    else:
        assert float(seen) == pytest.approx(float(slow), rel=1e-9)


@each_client
def test_it_vanishes_at_the_truth(name):
    had, residual = build(name)
    row = had.inputs.double().reshape(1, -1)
    # The dump is in single precision; a bias before batch norm holds nothing but rounding.
    assert float(residual(row).norm()) < (1e-4 if name == "batch norm" else 1e-5)
    assert float(residual(row_of(residual)).norm()) > 1e-3


@both_labels
@each_client
def test_jacobian_by_the_slow_definition(name, soft):
    _, residual = build(name, soft=soft)
    row = row_of(residual)
    slow = slow_jacobian(residual, row[0])
    fast = residual.dense(row, never)
    assert fast.shape == (1, len(residual.target), residual.width)
    assert torch.allclose(fast[0], slow, atol=1e-10 * float(slow.abs().max()))


@each_client
def test_jacobian_by_finite_differences(name):
    _, residual = build(name, soft=True)
    row, step = row_of(residual), 1e-5
    along = torch.randn(residual.width, generator=torch.Generator().manual_seed(3), dtype=DOUBLE)
    difference = (residual(row + step * along) - residual(row - step * along))[0] / (2 * step)
    product = residual.dense(row, never)[0] @ along
    assert torch.allclose(product, difference, atol=1e-6 * float(difference.abs().max()))


@both_labels
@each_client
def test_the_map_is_the_matrix(name, soft):
    _, residual = build(name, soft=soft)
    rows = row_of(residual, count=2)
    dense, mapped = residual.dense(rows, never), residual.linear_map(rows)
    v, u = row_of(residual, 5, 2), torch.rand(2, len(residual.target), dtype=DOUBLE)
    forward, adjoint = mapped.forward(v), mapped.adjoint(u)
    assert torch.allclose(forward, (dense @ v[..., None])[..., 0], rtol=1e-8, atol=1e-10)
    assert torch.allclose(adjoint, (dense.mT @ u[..., None])[..., 0], rtol=1e-8, atol=1e-10)
    assert not forward.requires_grad
    assert torch.equal(mapped.forward(v), forward)  # the graphs are still there


def test_batch_statistics_tie_the_samples():
    assert not build("batch norm")[1].independent
    assert build("batch")[1].independent


def test_the_short_head_spans_the_dump():
    """S keeps all of the dump's own gradient, though it has far fewer rows."""
    _, residual = build("many classes")
    sent = residual.problem.gradient[residual.problem.trace.head.weight]
    assert residual.left.shape == (4, 12)
    assert torch.allclose(residual.left @ residual.left.T, torch.eye(4, dtype=DOUBLE), atol=1e-12)
    assert float((residual.left @ sent).norm()) == pytest.approx(float(sent.norm()), rel=1e-6)


def test_a_budget_ends_the_jacobian_between_chunks(monkeypatch):
    monkeypatch.setattr("auditor.attacks.residuals._CHUNK", 2)
    _, residual = build("batch")
    asked = []
    assert residual.dense(row_of(residual), lambda: asked.append(1) or len(asked) > 3) is None
    assert len(asked) == 4


def test_chunks_do_not_change_the_matrix(monkeypatch):
    _, residual = build("batch", soft=True)
    row = row_of(residual)
    whole = residual.dense(row, never)
    monkeypatch.setattr("auditor.attacks.residuals._CHUNK_BYTES", 1)
    assert torch.allclose(residual.dense(row, never), whole, atol=1e-14)


def test_a_head_that_was_not_sent():
    had = client("tanh", 2, 4)
    kept = {name: g for name, g in had.gradients().items() if "head" not in name}
    residual = matching_residual(had.problem(kept), had.labels, size=2)
    assert residual.head is None
    row = row_of(residual)
    slow = dense_distance(residual.problem, *residual.unpack(row[0]), weighting="layer").detach()
    assert float(residual(row).square().sum()) == pytest.approx(float(slow), rel=1e-9)


def test_nothing_is_left_on_the_model():
    had = Client(net("tanh", 4), *batch(2, 4))
    problem = had.problem()
    residual = matching_residual(problem, had.labels, size=2)
    residual.dense(row_of(residual), never)
    assert not problem.module.head._forward_hooks
    assert all(p.grad is None for p in problem.module.parameters())
