"""What the classifier's gradient says of scale, smoothing, loss and weights."""

from dataclasses import replace

import pytest
import torch
from clients_of import client_of, codes, looked
from problems import Client, client, dump_of
from torch import nn

from auditor.defences.head_search import _Equations, _System, batch_fit
from auditor.defences.seen import look
from auditor.defences.single import single_of

FLOAT = torch.finfo(torch.float32).eps


def times(gradients, factor):
    return {name: factor * part for name, part in gradients.items()}


@pytest.mark.parametrize(
    ("act", "count"), [("sigmoid", 1), ("tanh", 1), ("silu", 2), ("sigmoid", 3)]
)
def test_the_head_of_a_net_without_identities(act, count):
    had, other = client(act, count, 10), client(act, count, 10, seed=7)
    assert looked(had).belongs == "shown"
    assert codes(looked(had)) == []
    strange = Client(other.module, had.inputs, had.labels).gradients()
    found = looked(had, strange)
    assert found.belongs == "contradicted"
    assert codes(found) == ["GA310"]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("smoothing", [0.05, 0.2])
def test_smoothing_is_read(count, smoothing):
    had = client("tanh", count, 10, smoothing=smoothing)
    assert codes(looked(had)) == []
    assert codes(looked(had, label_smoothing=0.0)) == ["GA313"]
    problem = had.problem(label_smoothing=0.0)
    fit = single_of(problem, FLOAT) if count == 1 else batch_fit(problem, calibrated=False)
    assert fit.smoothing == pytest.approx(smoothing, abs=1e-3)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("factor", [0.03, 5.0])
def test_scale_is_read(count, factor):
    had = client("tanh", count, 10)
    found = looked(had, times(had.gradients(), factor))
    assert codes(found) == ["GA314"]
    assert found.belongs == "shown"
    assert found.channel.scaled == (factor < 1)


def test_a_sum_is_read():
    had = client("tanh", 3, 10, reduction="sum")
    problem = had.problem(declared=False)
    assert batch_fit(problem, calibrated=False).scale == pytest.approx(3, rel=1e-3)
    assert codes(look(problem, dump_of(had.module, had.gradients()))) == ["GA314"]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_change_of_weights_is_turned_around(count):
    had = client("tanh", count, 10)
    found = looked(had, times(had.gradients(), -0.01))
    assert codes(found) == ["GA312"]
    assert found.caveats[0].voids


def test_a_change_of_weights_by_the_number_of_negative_classes():
    """Where the search does not solve it: without the weight, say."""
    had = client("relu", 2, 10)
    sent = {n: g for n, g in times(had.gradients(), -1.0).items() if n != "head.weight"}
    assert "GA312" in codes(looked(had, sent))
    right = {n: g for n, g in had.gradients().items() if n != "head.weight"}
    assert "GA312" not in codes(looked(had, right))


def test_another_loss():
    had = client_of("perceptron", 2)
    had.module(had.inputs).square().mean().backward()
    sent = {n: p.grad.clone() for n, p in had.module.named_parameters()}
    had.module.zero_grad()
    assert codes(looked(had, sent)) == ["GA315"]


def test_weight_decay():
    had = client_of("perceptron", 2)
    named = dict(had.module.named_parameters())
    sent = {n: g + 1e-3 * named[n].detach() for n, g in had.gradients().items()}
    found = looked(had, sent)
    assert codes(found) == ["GA315"]
    assert "0.001" in found.caveats[0].message
    assert found.channel.is_clear


class Saturated(nn.Module):
    """So sure of itself that its softmax is two numbers and zeros, or one."""

    def __init__(self, gain):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.head = nn.Linear(16, 10)
        with torch.no_grad():
            self.head.weight.copy_(gain * torch.randn(10, 16, generator=generator))
            self.head.bias.zero_()

    def forward(self, x):
        return self.head(x.flatten(1))


@pytest.mark.parametrize(("count", "gain"), [(1, 3.0), (1, 10.0), (1, 25.0), (3, 10.0)])
def test_saturation_contradicts_nothing(count, gain):
    module = Saturated(gain).eval()
    inputs = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    sure = Client(module, inputs, module(inputs).argmax(1))
    found = looked(sure)
    assert found.belongs != "contradicted"
    assert codes(found) == []


def test_the_jacobian_is_that_of_the_residuals():
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    equations = _Equations(normal(6, 3), normal(6), normal(6, 3), normal(6), 1 / 3)
    labels = torch.eye(6, dtype=torch.float64)[torch.tensor([0, 2, 2])]
    system = _System(equations, labels, free=True)
    rows = 0.3 * normal(2, 11)
    residual, jacobian = system.linearise(rows)
    assert torch.equal(residual, system.residual(rows))
    for row, found in zip(rows, jacobian, strict=True):
        wanted = torch.autograd.functional.jacobian(lambda x: system.residual(x[None])[0], row)
        assert torch.allclose(found, wanted, atol=1e-12)
    fixed = _System(equations, labels, free=False).linearise(rows)[1]
    assert not bool(fixed[..., -2:].any())


def test_a_coarse_dump_or_a_large_batch_is_not_searched():
    had = client("tanh", 3, 10)
    assert batch_fit(had.problem(), calibrated=False) is not None
    assert batch_fit(replace(had.problem(), precision=1e-3), calibrated=False) is None
    assert batch_fit(client("tanh", 9, 10).problem(), calibrated=False) is None
    assert batch_fit(client("tanh", 3, 10, bias=False).problem(), calibrated=False) is None
