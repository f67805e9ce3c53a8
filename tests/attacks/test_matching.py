"""The objective that attacks minimise is the one of the definition, in value and in gradient."""

from dataclasses import replace

import pytest
import torch
from problems import Client, Net, batch, client, lenet_client, net, noise, rounded
from torch import nn
from torch.nn import functional as F

from auditor.attacks.matching import (
    _distance,
    _head_gradient,
    _pure_distance,
    dense_distance,
    matching_objective,
    tensor_weights,
)
from auditor.problem import gradient_of, residuals_of
from auditor.solve import by_row


def unpacker(problem, labels):
    shape = (len(labels), *problem.knowledge.input_shape)
    return lambda row: (row.view(shape), labels)


def soft_unpacker(problem, count, classes):
    shape = (count, *problem.knowledge.input_shape)
    pixels = torch.Size(shape).numel()
    return lambda row: (
        row[:pixels].view(shape),
        row[pixels:].view(count, classes).softmax(1),
    )


def rows_for(problem, width, count=3, seed=5):
    like = next(iter(problem.gradient.values()))
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64).to(like)


def definition(problem, unpack, weighting):
    """Value and gradient of `dense_distance`, by one backward pass a row."""

    def call(rows):
        values, gradients = [], []
        for row in rows:
            leaf = row.clone().requires_grad_()
            value = dense_distance(problem, *unpack(leaf), weighting=weighting)
            values.append(value.detach())
            gradients.append(torch.autograd.grad(value, leaf)[0])
        return torch.stack(values), torch.stack(gradients)

    return call


def agree(found, expected, tolerance=1e-6):
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= tolerance * b.norm()


@pytest.mark.parametrize("weighting", ["layer", "none"])
@pytest.mark.parametrize("count", [1, 4])
def test_the_definition_by_hand(weighting, count):
    problem = client("tanh", count, 3).problem()
    inputs, labels = batch(count, 3, seed=7, dtype=torch.float64)
    found = gradient_of(problem, inputs, labels)
    if weighting == "none":
        apart = torch.cat([(found[n] - s).flatten() for n, s in problem.gradient.items()])
        expected = float(apart.norm()) ** 2
    else:
        apart = residuals_of(problem, found)
        expected = sum(r**2 for r in apart.values()) / len(apart)
    value = dense_distance(problem, inputs, labels, weighting=weighting)
    assert float(value.detach()) == pytest.approx(expected)


CLIENTS = {
    "with bias": lambda n: client("tanh", n, 5, seed=1),
    "without bias": lambda n: client("sigmoid", n, 5, bias=False, seed=1),
    "two classes": lambda n: client("tanh", n, 2, seed=1),
    "sum": lambda n: client("tanh", n, 5, reduction="sum", seed=1),
    "smoothed": lambda n: client("tanh", n, 5, smoothing=0.1, seed=1),
    "convolutions": lambda n: lenet_client(n, seed=1),
    "more classes than features": lambda n: Client(
        net("tanh", 50, hidden=4, seed=1), *batch(n, 50, seed=1)
    ),
}


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("weighting", ["layer", "none"])
def test_short_form_is_the_definition(name, count, weighting):
    had = CLIENTS[name](count)
    problem = had.problem()
    assert _head_gradient(problem) is not None
    unpack = unpacker(problem, had.labels)
    rows = rows_for(problem, had.inputs.numel())
    agree(
        matching_objective(problem, unpack, weighting=weighting)(rows),
        definition(problem, unpack, weighting)(rows),
    )


@pytest.mark.parametrize("name", ["with bias", "without bias", "convolutions", "smoothed"])
@pytest.mark.parametrize("count", [1, 4])
def test_short_form_with_free_labels(name, count):
    had = CLIENTS[name](count)
    problem = had.problem()
    classes = had.classes
    unpack = soft_unpacker(problem, count, classes)
    rows = rows_for(problem, had.inputs.numel() + count * classes)
    agree(
        matching_objective(problem, unpack, weighting="layer")(rows),
        definition(problem, unpack, "layer")(rows),
    )


@pytest.mark.parametrize("left_out", ["head.weight", "head.bias"])
def test_missing_gradients_of_the_head(left_out):
    had = client("tanh", 2, 4)
    sent = {n: g for n, g in had.gradients().items() if n != left_out}
    problem = had.problem(sent)
    unpack = unpacker(problem, had.labels)
    rows = rows_for(problem, had.inputs.numel())
    agree(
        matching_objective(problem, unpack, weighting="layer")(rows),
        definition(problem, unpack, "layer")(rows),
    )


@pytest.mark.parametrize("kind", ["noise", "half", "brain", "wrong batch size", "unknown size"])
def test_dumps_that_are_not_of_low_rank(kind):
    had = client("tanh", 4, 8, seed=2)
    sent = had.gradients()
    dumps = {
        "noise": noise(had.module, 0.1),
        "half": rounded(sent, torch.float16),
        "brain": rounded(sent, torch.bfloat16),
    }
    size = {"wrong batch size": 1, "unknown size": None}.get(kind, 4)
    problem = had.problem(dumps.get(kind, sent), size=size)
    inputs, labels = batch(size or 2, 8, seed=3)
    unpack = unpacker(problem, labels)
    rows = rows_for(problem, inputs.numel())
    agree(
        matching_objective(problem, unpack, weighting="layer")(rows),
        definition(problem, unpack, "layer")(rows),
    )


class Functional(Net):
    """Owns a linear layer, and never calls it."""

    def forward(self, x):
        return F.linear(self.body(x), self.head.weight, self.head.bias)


class Own(nn.Module):
    """The head is two parameters."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 16) / 4)
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return F.linear(torch.tanh(x.flatten(1)), self.weight, self.bias)


class Deep(Net):
    """Calls its head on (N, 1, E)."""

    def forward(self, x):
        return self.head(self.body(x)[:, None]).squeeze(1)


class Logged(Net):
    def forward(self, x):
        return F.log_softmax(super().forward(x), 1)


HEADS = {
    "functional": lambda: Functional(nn.Tanh(), 4),
    "own": Own,
    "three dimensions": lambda: Deep(nn.Tanh(), 4),
    "log_softmax": lambda: Logged(nn.Tanh(), 4),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("path", ["loop", "vmap"])
def test_other_ways_to_write_a_head(name, path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        had = Client(HEADS[name](), *batch(3, 4))
    problem = had.problem()
    unpack = unpacker(problem, had.labels)
    rows = rows_for(problem, had.inputs.numel())
    weights, head = tensor_weights(problem, "layer"), _head_gradient(problem)
    one = {"loop": _distance, "vmap": _pure_distance}[path]
    found = by_row(lambda row: one(problem, *unpack(row), weights, head), how=path)(rows)
    agree(found, definition(problem, unpack, "layer")(rows))


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("weighting", ["layer", "none"])
def test_the_path_for_a_gpu_gives_the_same(name, weighting):
    had = CLIENTS[name](3)
    problem = had.problem()
    classes = had.classes
    unpack = soft_unpacker(problem, 3, classes)
    rows = rows_for(problem, had.inputs.numel() + 3 * classes, count=4)
    weights = tensor_weights(problem, weighting)
    for head in (_head_gradient(problem), None):

        def pure(row, head=head):
            return _pure_distance(problem, *unpack(row), weights, head)

        batched = by_row(pure, how="vmap")(rows)
        agree(batched, by_row(pure)(rows), 1e-9)
        agree(batched, definition(problem, unpack, weighting)(rows))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_batch_norm_on_both_paths(mode):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 4)
        )
    had = Client(module.eval(), *batch(3, 4), mode=mode)
    problem = had.problem()
    unpack = unpacker(problem, had.labels)
    rows = rows_for(problem, had.inputs.numel())
    expected = definition(problem, unpack, "none")(rows)
    agree(matching_objective(problem, unpack, weighting="none")(rows), expected)
    weights, head = tensor_weights(problem, "none"), _head_gradient(problem)
    pure = by_row(lambda row: _pure_distance(problem, *unpack(row), weights, head), how="vmap")
    agree(pure(rows), expected)


@pytest.mark.parametrize("path", ["loop", "vmap"])
@pytest.mark.parametrize("weighting", ["layer", "none"])
def test_zero_at_the_truth(path, weighting):
    had = client("tanh", 3, 4)
    problem = had.problem()
    unpack = unpacker(problem, had.labels)
    weights, head = tensor_weights(problem, weighting), _head_gradient(problem)
    one = {"loop": _distance, "vmap": _pure_distance}[path]
    value, _ = by_row(lambda row: one(problem, *unpack(row), weights, head), how=path)(
        had.inputs.double().flatten()[None]
    )
    assert 0 <= float(value) < 1e-10


def test_single_precision_takes_the_long_way():
    """The short form would cancel to nothing: no objective below its rounding may be trusted."""
    had = client("tanh", 2, 4)
    problem = had.problem()
    single = replace(
        problem,
        module=problem.module.float(),
        gradient={n: g.float() for n, g in problem.gradient.items()},
    )
    assert _head_gradient(single) is None
    unpack = unpacker(single, had.labels)
    rows = rows_for(single, had.inputs.numel())
    agree(
        matching_objective(single, unpack, weighting="layer")(rows),
        definition(single, unpack, "layer")(rows),
        1e-5,
    )


def test_the_global_random_state_is_left_alone():
    had = client("tanh", 2, 4)
    problem = had.problem()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    matching_objective(problem, unpacker(problem, had.labels), weighting="layer")
    assert torch.equal(torch.get_rng_state(), before)


def test_no_hook_stays_behind():
    had = client("tanh", 2, 4)
    problem = had.problem()
    unpack = unpacker(problem, had.labels)
    matching_objective(problem, unpack, weighting="layer")(rows_for(problem, had.inputs.numel()))
    assert not problem.module.head._forward_hooks


def test_a_parameter_that_a_candidate_does_not_use_has_a_gradient_of_zero():
    """A branch on the input's values: the client's picture took the other one."""

    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.bright, self.dark = nn.Linear(16, 8), nn.Linear(16, 8)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            x = x.flatten(1)
            return self.head(torch.tanh(self.bright(x) if x.mean() > 0.5 else self.dark(x)))

    torch.manual_seed(0)
    inputs = torch.full((1, 1, 4, 4), 0.9)
    had = Client(Branch().eval(), inputs, torch.tensor([1]))
    sent = had.gradients()
    problem = had.problem(sent)
    row = torch.full((1, 16), 0.1, dtype=torch.float64)
    objective = matching_objective(
        problem, lambda r: (r.view(1, 1, 4, 4), had.labels), weighting="none"
    )
    wanted = dense_distance(problem, row.view(1, 1, 4, 4), had.labels, weighting="none")
    assert float(objective(row)[0][0]) == pytest.approx(float(wanted.detach()))
