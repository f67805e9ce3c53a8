"""The Jacobian by its definition: of the gradient, entry by entry, in plain reverse mode."""

from dataclasses import replace

import pytest
import torch
from problems import Client, batch, client, knowledge
from torch import nn

from auditor.bounds.jacobian import sensitivity_of
from auditor.bounds.noise import kept_of
from auditor.problem import gradient_of
from auditor.records import Channel, LocalTraining

STD = (0.3,)


def never():
    return False


def conv_client():
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, stride=2), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 4)
    )
    return Client(module, *batch(2, 4))


def norm_client():
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 4)
    )
    return Client(module, *batch(3, 4), mode="train")


class Tied(nn.Module):
    """Uses the weight of its only linear layer once more, past the module."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        hidden = torch.tanh(self.body(x.flatten(1)))
        return self.head(torch.tanh(hidden @ self.body.weight))


CLIENTS = {
    "perceptron": lambda: client("tanh", 1, 10),
    "batch": lambda: client("tanh", 3, 10),
    "sum": lambda: client("silu", 2, 10, reduction="sum"),
    "smoothed": lambda: client("sigmoid", 2, 4, smoothing=0.1),
    "convolutions": conv_client,
    "batch norm": norm_client,
    "tied": lambda: Client(Tied(), *batch(1, 4)),
}
each_client = pytest.mark.parametrize("name", CLIENTS)


def build(name, **channel):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        had = CLIENTS[name]()
    problem = had.problem(std=STD)
    noise = {part: 0.1 * (1 + place) for place, part in enumerate(problem.gradient)}
    return had, replace(problem, channel=Channel(**channel)), noise


def slow(problem, had, noise):
    """J (m, n) over pixels, whitened, with every kept entry of the dump."""
    kept = kept_of(problem)
    inputs = had.inputs.double()

    def whole(pixels):
        at = gradient_of(problem, pixels / STD[0], had.labels, create_graph=True)
        return torch.cat([at[n][kept[n]] / noise[n] for n in problem.gradient])

    return torch.autograd.functional.jacobian(whole, inputs * STD[0]).flatten(1)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


@each_client
def test_inner_products_are_those_of_the_definition(name):
    had, problem, noise = build(name)
    found = sensitivity_of(problem, had.inputs, had.labels, noise)
    transposed = found.dense(never)
    expected = slow(problem, had, noise)
    assert transposed.shape == (found.unknowns, found.entries)
    close(transposed @ transposed.mT, expected.mT @ expected)


def test_the_short_form_is_shorter():
    had, problem, noise = build("perceptron")
    found = sensitivity_of(problem, had.inputs, had.labels, noise)
    assert set(found.layers) == {"body.1.weight", "head.weight"}
    assert found.entries < sum(part.numel() for part in problem.gradient.values()) / 4


def test_a_weight_that_is_used_twice_keeps_its_long_form():
    had, problem, noise = build("tied")
    assert "body.weight" not in sensitivity_of(problem, had.inputs, had.labels, noise).layers


@pytest.mark.parametrize("channel", [{}, {"masked": True}, {"scaled": True}])
@each_client
def test_products_agree_with_the_matrix(name, channel):
    had, problem, noise = build(name, **channel)
    found = sensitivity_of(problem, had.inputs, had.labels, noise)
    matrix, map = found.dense(never).mT, found.products()
    v = torch.randn(1, found.unknowns, dtype=torch.float64)
    u = torch.randn(1, found.entries, dtype=torch.float64)
    close(map.forward(v)[0], matrix @ v[0])
    close(map.adjoint(u)[0], matrix.mT @ u[0])


def test_a_mask_leaves_the_kept_entries():
    had, problem, noise = build("convolutions", masked=True)
    pruned = {n: g * (g.abs() > g.abs().median()) for n, g in problem.gradient.items()}
    problem = replace(problem, gradient=pruned)
    transposed = sensitivity_of(problem, had.inputs, had.labels, noise).dense(never)
    expected = slow(problem, had, noise)
    assert len(expected) < sum(part.numel() for part in pruned.values())
    close(transposed @ transposed.mT, expected.mT @ expected)


def test_an_unknown_factor_takes_one_direction():
    had, problem, noise = build("batch", scaled=True)
    transposed = sensitivity_of(problem, had.inputs, had.labels, noise).dense(never)
    expected = slow(problem, had, noise)
    at = gradient_of(problem, had.inputs.double(), had.labels)
    along = torch.cat([at[n].flatten() / noise[n] for n in problem.gradient])
    along = along / along.norm()
    rest = expected - along[:, None] * (along @ expected)
    close(transposed @ transposed.mT, rest.mT @ rest)


def test_local_steps_are_differentiated_too():
    had, _, _ = build("perceptron")
    local = LocalTraining(lr=0.1, steps=2, batch_size=1, epochs=1)
    had = Client(had.module, *batch(2, 10))
    base = had.problem(size=2)
    problem = replace(base, knowledge=replace(base.knowledge, local=local, std=STD, batch_size=2))
    noise = dict.fromkeys(problem.gradient, 0.5)
    found = sensitivity_of(problem, had.inputs, had.labels, noise)
    transposed = found.dense(never)
    assert not found.independent
    expected = slow(problem, had, noise)
    close(transposed @ transposed.mT, expected.mT @ expected)


def test_single_precision_is_raised_to_double():
    had, problem, noise = build("convolutions")
    single = replace(
        problem,
        module=problem.module.float(),
        gradient={n: g.float() for n, g in problem.gradient.items()},
    )
    found = sensitivity_of(single, had.inputs, had.labels, noise)
    assert found.dense(never).dtype == torch.float64
    assert next(single.module.parameters()).dtype == torch.float32


def test_it_ends_with_the_budget():
    had, problem, noise = build("batch")
    assert sensitivity_of(problem, had.inputs, had.labels, noise).dense(lambda: True) is None


def test_knowledge_of_the_shape_is_all_it_needs():
    had, problem, noise = build("perceptron")
    bare = replace(problem, knowledge=knowledge((1, 4, 4), std=STD))
    one = sensitivity_of(bare, had.inputs, had.labels, noise).dense(never)
    close(one, sensitivity_of(problem, had.inputs, had.labels, noise).dense(never))
