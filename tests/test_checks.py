"""One problem for each caveat, and clean ones that raise none."""

from dataclasses import replace

import pytest
import torch
from problems import (
    ACTS,
    Client,
    batch,
    client,
    clipped,
    dump_of,
    net,
    noised,
    rounded,
)
from torch import nn

from auditor.checks import (
    caveats_of,
    contradiction,
    head_gradients,
    head_sums,
    scale_caveats,
)
from auditor.records import Assumption
from auditor.rules import rule


def codes(had, gradients=None, **known):
    gradients = had.gradients() if gradients is None else gradients
    problem = had.problem(gradients, **known)
    return [c.code for c in caveats_of(problem, dump_of(had.module, gradients))]


# --------------------------------------------------------------------------- clean


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [1, 8])
def test_a_clean_dump_raises_nothing(act, bias, count):
    for reduction in ("mean", "sum"):
        for smoothing in (0.0, 0.1):
            had = client(act, count, 10, bias=bias, reduction=reduction, smoothing=smoothing)
            assert codes(had) == []
            assert scale_caveats(had.problem()) == ()


@pytest.mark.parametrize(
    "change",
    [lambda g: rounded(g, torch.float16), lambda g: rounded(g, torch.bfloat16), clipped],
    ids=["half", "brain", "clipped"],
)
@pytest.mark.parametrize("count", [1, 8])
def test_rounding_and_clipping_are_no_noise(change, count):
    for act in ACTS:
        for bias in (True, False):
            had = client(act, count, 10, bias=bias)
            assert codes(had, change(had.gradients())) == []


# --------------------------------------------------------------------------- premise A0


def test_the_sums_measure_the_noise():
    """sigma without any truth, from the sums over the classes."""
    had = Client(net("tanh", 10, hidden=400), *batch(4, 10))
    sent = had.gradients()
    generator = torch.Generator().manual_seed(0)
    sigma = 1e-3
    sent = {n: g + sigma * torch.randn(g.shape, generator=generator) for n, g in sent.items()}
    sums = head_sums(had.problem(sent))
    assert sums.weight_noise == pytest.approx(sigma, rel=0.1)
    assert sums.bias_noise >= sums.weight_noise
    assert not sums.vanish


def test_ratio_by_hand():
    had = client("tanh", 1, 4)
    sent = {n: torch.zeros_like(g) for n, g in had.gradients().items()}
    sent["head.bias"] = torch.tensor([0.5, 0.5, -0.5, -0.5])
    sent["head.weight"][0, 0], sent["head.weight"][1, 0] = 3.0, -3.0
    assert head_sums(had.problem(sent)).ratio == 0
    sent["head.weight"][2, 1] = 0.5
    sums = head_sums(had.problem(sent))
    assert sums.ratio == pytest.approx(0.5 / (18.25**0.5))
    assert sums.weight_noise == pytest.approx((0.25 / 32) ** 0.5 / 2)


@pytest.mark.parametrize("sigma", [1e-3, 1e-1, 10.0])
@pytest.mark.parametrize("bias", [True, False])
def test_noise_voids(sigma, bias):
    for act in ACTS:
        had = client(act, 4, 10, bias=bias)
        gradients = noised(had.gradients(), sigma)
        problem = had.problem(gradients)
        raised = caveats_of(problem, dump_of(had.module, gradients))
        found = [c for c in raised if c.code == "GA301"]
        assert found, act
        assert found[0].voids
        assert found[0].message


def test_pruning_voids():
    had = client("tanh", 4, 10)
    sent = had.gradients()
    for g in sent.values():
        g[g.abs() < g.abs().flatten().quantile(0.9)] = 0
    assert "GA301" in codes(had, sent)


def test_another_loss_voids():
    had = client("tanh", 4, 10)
    module = had.module
    (module(had.inputs) - 1).square().mean().backward()
    sent = {n: p.grad.clone() for n, p in module.named_parameters()}
    module.zero_grad()
    assert "GA301" in codes(had, sent)


def test_without_a_head_there_is_nothing_to_test():
    had = client("tanh", 2, 4)
    sent = {n: g for n, g in had.gradients().items() if not n.startswith("head")}
    assert head_sums(had.problem(sent)) is None
    assert codes(had, sent) == ["GA304"]


def test_head_gradients_are_exact_copies_in_double():
    had = client("tanh", 2, 4)
    weight, bias = head_gradients(had.problem())
    assert (weight.dtype, bias.dtype) == (torch.float64, torch.float64)
    assert torch.equal(weight.float(), had.gradients()["head.weight"])
    assert torch.equal(bias.float(), had.gradients()["head.bias"])


# --------------------------------------------------------------------------- the other caveats


def test_assumptions_are_named():
    had = client("tanh", 2, 4)
    assumed = (Assumption("mode", "eval", "assumed"), Assumption("loss", "x", "flag"))
    gradients = had.gradients()
    problem = had.problem(gradients, assumptions=assumed)
    (caveat,) = caveats_of(problem, dump_of(had.module, gradients))
    assert caveat.code == "GA302"
    assert "mode" in caveat.message
    assert "loss" not in caveat.message
    assert not caveat.voids


def test_dropout_in_training_mode():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 4))
    torch.manual_seed(0)
    assert codes(Client(module, *batch(2, 4), mode="train")) == ["GA303"]
    assert codes(Client(module, *batch(2, 4))) == []


class Inline(nn.Module):
    """Dropout without a module."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(nn.functional.dropout(x.flatten(1), 0.5, self.training))


def test_functional_dropout_in_training_mode():
    torch.manual_seed(0)
    assert codes(Client(Inline(), *batch(2, 4), mode="train")) == ["GA303"]
    assert codes(Client(Inline(), *batch(2, 4))) == []


def test_missing_gradients():
    had = client("tanh", 2, 4)
    sent = {n: g for n, g in had.gradients().items() if n != "body.1.bias"}
    gradients = had.problem(sent)
    (caveat,) = caveats_of(gradients, dump_of(had.module, sent))
    assert caveat.code == "GA304"
    assert "1 of 4" in caveat.message


@pytest.mark.parametrize(
    ("sure", "belongs", "voids"),
    [(True, "shown", False), (True, "not tested", True), (False, "shown", True)],
)
def test_a_batch_that_the_model_is_sure_of(sure, belongs, voids):
    """1 - p of the label is rounded to zero, what is left does not sum to zero."""
    had = client("tanh", 2, 4)
    gradients = had.gradients()
    weight, bias = gradients["head.weight"], gradients["head.bias"]
    scale = 1e-12 if sure else 1.0
    gradients["head.bias"] = scale * bias.clamp_min(0)
    gradients["head.weight"] = scale * weight.where(bias[:, None] > 0, 0)
    problem = had.problem(gradients)
    dump = dump_of(had.module, gradients)
    (caveat,) = caveats_of(problem, dump, belongs=belongs)
    assert (caveat.code, caveat.voids) == ("GA301", voids)
    assert ("sure of this batch" in caveat.message) != voids


def test_unknown_batch_size():
    assert codes(client("tanh", 2, 4), size=None) == ["GA305"]


def test_flags_that_contradict_the_dump():
    """Rule GA307 is in the catalogue: somebody must raise it."""
    had = client("tanh", 2, 4)
    gradients = had.gradients()
    problem = had.problem(gradients, overrides=("mode train instead of eval",))
    (caveat,) = caveats_of(problem, dump_of(had.module, gradients))
    assert caveat.code == "GA307"
    assert "mode train instead of eval" in caveat.message


@pytest.mark.parametrize(("count", "raised"), [(1, False), (2, True), (8, True)])
def test_a_sum_that_is_said_to_be_a_mean(count, raised):
    """Distinct classes: the negative part of the bias gradient sums to about N (1 - 1/K)."""
    inputs, _ = batch(count, 10)
    had = Client(net("tanh", 10), inputs, torch.arange(count), reduction="sum")
    mean = replace(had.problem(), knowledge=replace(had.problem().knowledge, reduction="mean"))
    found = scale_caveats(mean)
    assert [c.code for c in found] == ["GA306"] * raised
    assert all(c.voids for c in found)
    assert scale_caveats(had.problem()) == ()


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float32])
def test_a_mean_is_never_too_large(precision):
    """p near 0 at every label: the negative part is as large as it gets."""
    module = net("tanh", 10)
    with torch.no_grad():
        module.head.bias[0] = 30
    had = Client(module, batch(8, 10)[0], torch.tensor([1, 2, 3, 4, 5, 6, 7, 8]))
    sent = rounded(had.gradients(), precision)
    assert float(-sent["head.bias"].clamp_max(0).sum()) == pytest.approx(1, abs=1e-2)
    assert scale_caveats(had.problem(sent)) == ()


def test_noise_is_not_called_a_wrong_scale():
    had = client("tanh", 2, 4)
    sent = {n: 100 * g for n, g in noised(had.gradients(), 1.0).items()}
    assert scale_caveats(had.problem(sent)) == ()


@pytest.mark.parametrize(
    ("size", "proved", "raised"), [(4, 5, True), (4, 4, False), (4, 0, False), (None, 9, False)]
)
def test_contradiction(size, proved, raised):
    found = contradiction(client("tanh", 4, 5).problem(size=size), proved)
    assert [c.code for c in found] == ["GA308"] * raised
    assert all(c.voids for c in found)


@pytest.mark.parametrize("code", [f"GA30{i}" for i in range(1, 9)])
def test_every_caveat_has_its_rule(code):
    assert rule(code).remedy
