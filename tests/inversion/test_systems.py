"""Systems of links against autograd and dense matrices."""

import pytest
import torch
from nets import Written, chain, dense, draw, seeded, system_of
from torch import nn
from torch.nn import functional as F

from auditor.graph import replay
from auditor.inversion.systems import LinkOperator, LinkSystem

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

LINKS = {
    "linear": (nn.Linear(12, 7), nn.Sigmoid(), (12,)),
    "linear without bias": (nn.Linear(12, 7, bias=False), nn.Sigmoid(), (12,)),
    "places": (nn.Linear(4, 5), nn.Tanh(), (3, 4)),
    "flipped": (Written(lambda m, x: x @ m.w, w=draw(12, 7)), nn.Tanh(), (12,)),
    "flipped places": (
        Written(lambda m, x: x @ m.w + m.b, w=draw(4, 5), b=draw(5)), nn.Tanh(), (3, 4),
    ),
    "convolution": (nn.Conv2d(2, 3, 3), nn.Sigmoid(), (2, 6, 5)),
    "stride and padding": (nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Sigmoid(), (2, 6, 5)),
    "stride (1, 2), padding (2, 0)": (
        nn.Conv2d(2, 3, (3, 2), stride=(1, 2), padding=(2, 0), bias=False), nn.Tanh(), (2, 6, 5),
    ),
    "dilation": (nn.Conv2d(2, 3, 3, dilation=2, padding=2), nn.Tanh(), (2, 6, 5)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), nn.Sigmoid(), (4, 5, 5)),
    "depthwise": (nn.Conv2d(3, 6, 3, groups=3), nn.Sigmoid(), (3, 5, 5)),
    "same, even kernel": (nn.Conv2d(2, 3, 2, padding="same"), nn.Tanh(), (2, 5, 5)),
    "batch norm behind": (
        nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3)), nn.Sigmoid(), (2, 6, 5),
    ),
    "average behind": (nn.Sequential(nn.Conv2d(2, 3, 3), nn.AvgPool2d(2)), nn.Sigmoid(), (2, 6, 6)),
    "average and norm before": (
        nn.Sequential(nn.AvgPool2d(2), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 2)), nn.Tanh(), (2, 8, 6),
    ),
    "scale before": (
        Written(lambda m, x: m.a((x - 0.3) / 0.2), a=nn.Conv2d(1, 3, 3)), nn.Tanh(), (1, 5, 5),
    ),
    "turned before": (
        Written(lambda m, x: m.a(x.permute(0, 2, 3, 1).flatten(1)), a=nn.Linear(30, 6)),
        nn.Tanh(), (2, 3, 5),
    ),
    "cut before": (
        Written(lambda m, x: m.a(x[:, :, 1:, ::2]), a=nn.Conv2d(2, 3, 2)), nn.Tanh(), (2, 5, 6),
    ),
    "computed weight": (
        Written(lambda m, x: F.conv2d(x, m.w * m.gain), w=draw(3, 2, 3, 3), gain=draw(3, 1, 1, 1)),
        nn.Tanh(), (2, 5, 5),
    ),
    "average only": (nn.AdaptiveAvgPool2d(2), nn.Sigmoid(), (2, 6, 5)),
    "global mean": (nn.AdaptiveAvgPool2d(1), nn.Sigmoid(), (2, 3, 4)),
    "batch norm only": (nn.BatchNorm2d(2), nn.Sigmoid(), (2, 3, 4)),
}  # fmt: skip


def first_link(name):
    operation, activation, shape = LINKS[name]
    operation = seeded(lambda: operation)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        for inner in operation.modules():
            if isinstance(inner, nn.BatchNorm2d):
                for tensor in (inner.running_mean, inner.running_var, inner.weight, inner.bias):
                    tensor.data.uniform_(0.5, 1.5)
        width = operation(draw(1, *shape)).numel()
        head = nn.Linear(width, 3)
    module = nn.Sequential(operation, activation, nn.Flatten(), head).double().eval()
    # The head's gradients only: then the layer is a link, never the anchor.
    sent = {"3.weight", "3.bias"}
    return chain(module, shape, sent).links[0], operation, shape


def pre_activations(link, value):
    operator = (link.operator.node,) if link.operator else ()
    return replay((*link.before, *operator, *link.after), link.source, value)


@pytest.mark.parametrize("name", LINKS)
def test_operators_are_the_linear_part_and_the_offset(name):
    link, operation, shape = first_link(name)
    operator = LinkOperator(link, draw(1, 1))
    rows = draw(3, operator.unknowns)
    for row in rows:
        expected = operation(row.view(1, *shape)).detach().reshape(1, -1)
        found = operator.forward(row[None]) + operator.offset
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(
            pre_activations(link, row.view(1, *shape)).reshape(1, -1), expected
        )
    together = operator.forward(rows)
    alone = torch.cat([operator.forward(row[None]) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", LINKS)
def test_the_adjoint_of_an_operator_is_the_cotangent_of_its_input(name):
    link, operation, shape = first_link(name)
    operator = LinkOperator(link, draw(1, 1))
    value = draw(1, *shape).requires_grad_()
    made = operation(value)
    cotangents = draw(2, made.numel())
    for cotangent in cotangents:
        (expected,) = torch.autograd.grad(
            made, value, cotangent.view(made.shape), retain_graph=True
        )
        found = operator.adjoint(cotangent[None])
        torch.testing.assert_close(found, expected.reshape(1, -1), rtol=1e-12, atol=1e-13)
    alone = torch.cat([operator.adjoint(one[None]) for one in cotangents])
    torch.testing.assert_close(operator.adjoint(cotangents), alone, rtol=1e-12, atol=1e-13)


SENDING = [name for name in LINKS if name not in {
    "computed weight", "average only", "global mean", "batch norm only",
}]  # fmt: skip


@pytest.mark.parametrize("name", SENDING)
def test_the_true_input_solves_the_system(name):
    """Forward equations and weight-gradient equations, the latter from autograd."""
    link, operation, shape = first_link(name)
    operator = LinkOperator(link, draw(1, 1))
    values = draw(2, operator.unknowns)
    named = dict(operation.named_parameters())
    weight = next(p for n, p in named.items() if link.operator.weight.endswith(n))
    sent, pre, cotangents = [], [], []
    for seed, value in enumerate(values):
        made = operation(value.view(1, *shape))
        cotangent = draw(1, made.numel(), seed=seed + 7)
        sent.append(torch.autograd.grad(made, weight, cotangent.view(made.shape))[0])
        pre.append(made.detach().flatten())
        cotangents.append(cotangent[0])
    weights = draw(2, len(pre[0])).abs()
    system = LinkSystem(
        operator, torch.stack(pre), weights, torch.stack(cotangents), torch.stack(sent)
    )
    torch.testing.assert_close(system.forward(values), system.rhs, rtol=1e-10, atol=1e-10)
    extra = system.rhs.shape[1] - weights.shape[1]
    assert extra == weight.numel()
    assert system.equations.tolist() == [weights.shape[1] + extra] * 2


@pytest.mark.parametrize("name", LINKS)
def test_the_adjoint_of_a_system_is_its_transpose(name):
    """The dense matrix of the forward map, transposed; and rows do not mix."""
    link, *_ = first_link(name)
    system, *_ = system_of(link, rows=2)
    values, outputs = draw(2, system.operator.unknowns), draw(*system.rhs.shape)
    products = (system.forward(values) * outputs).sum(1)
    torch.testing.assert_close((values * system.adjoint(outputs)).sum(1), products)
    other = values.clone()
    other[1] = 0
    torch.testing.assert_close(system.forward(other)[0], system.forward(values)[0])
    alone = system.alone()
    matrix = dense(alone.forward, system.operator.unknowns)
    torch.testing.assert_close(values[:1] @ matrix.T, system.forward(values)[:1])
    torch.testing.assert_close(outputs[:1] @ matrix, system.adjoint(outputs)[:1])
    # Any number of rows.
    torch.testing.assert_close(alone.forward(values), values @ matrix.T)
    torch.testing.assert_close(alone.adjoint(outputs), outputs @ matrix)


@pytest.mark.parametrize("name", ["linear", "groups", "batch norm behind", "average only"])
def test_rows_are_problems_of_their_own(name):
    link, *_ = first_link(name)
    system, pre, weights, cotangents, sent = system_of(link, rows=3)
    values, outputs = draw(3, system.operator.unknowns), draw(*system.rhs.shape)
    for row in range(3):
        one = slice(row, row + 1)
        alone = LinkSystem(
            system.operator, pre[one], weights[one], cotangents[one],
            None if sent is None else sent[one],
        )  # fmt: skip
        torch.testing.assert_close(alone.rhs, system.rhs[one])
        torch.testing.assert_close(alone.forward(values[one]), system.forward(values)[one])
        torch.testing.assert_close(alone.adjoint(outputs[one]), system.adjoint(outputs)[one])


def test_equations_without_weight_say_nothing():
    link, *_ = first_link("linear")
    operator = LinkOperator(link, draw(1, 1))
    weights = torch.tensor([[1.0, 0, 2, 0, 0, 1, 1]]).double()
    system = LinkSystem(operator, draw(1, 7), weights, draw(1, 7), None)
    assert system.equations.tolist() == [4]
    assert torch.equal(system.rhs[0] != 0, weights[0] != 0)


@pytest.mark.parametrize("told", [0.0, 1.0])
def test_a_cotangent_of_zero_leaves_the_forward_equations_usable(told):
    """Zero-initialised heads and dead units: 0/0 must not become NaN."""
    link, *_ = first_link("convolution")
    operator = LinkOperator(link, draw(1, 1))
    value = draw(1, operator.unknowns)
    pre = operator.forward(value) + operator.offset
    sent = told * draw(1, 3, 2, 3, 3)
    system = LinkSystem(operator, pre, torch.ones_like(pre), torch.zeros_like(pre), sent)
    assert system.rhs[:, : pre.shape[1]].isfinite().all()
    if not told:
        assert system.rhs.isfinite().all()
        assert system.forward(value).isfinite().all()
        torch.testing.assert_close(system.forward(value), system.rhs)


@pytest.mark.parametrize("name", ["convolution", "groups", "linear", "flipped places"])
def test_channels_count_as_much_as_they_are_trusted(name):
    """Each output channel's gradient equations are multiplied by its factor, right sides too."""
    link, operation, shape = first_link(name)
    operator = LinkOperator(link, draw(1, 1))
    made = operation(draw(1, *shape))
    weight = next(p for n, p in operation.named_parameters() if link.operator.weight.endswith(n))
    cotangent = draw(1, made.numel(), seed=7)
    (sent,) = torch.autograd.grad(made, weight, cotangent.view(made.shape))
    given = (operator, made.detach().reshape(1, -1), torch.ones_like(cotangent), cotangent)
    plain = LinkSystem(*given, sent[None])
    trust = draw(*operator.weight.shape[:2], seed=8).abs()
    trust[0, 0] = 0
    system = LinkSystem(*given, sent[None], trust[None, ..., None])
    factors = torch.cat(
        [torch.ones(made.numel()), trust.flatten().repeat_interleave(operator.weight.shape[2])]
    )[:, None]
    torch.testing.assert_close(
        dense(system.forward, operator.unknowns), factors * dense(plain.forward, operator.unknowns)
    )
    torch.testing.assert_close(system.rhs[0], factors[:, 0] * plain.rhs[0])
    silent = operator.weight.shape[2]
    assert int(system.equations) == int(plain.equations) - silent
