"""Every family is seen in a network, whatever its form; networks that nobody planted in are not."""

import copy

import pytest
import torch
import torchvision
from plants import ImprintNet, drawn, imprint_net, passing_net, trap_, trap_net
from problems import Client, batch, case_of, net, options_of, tiny_lenet, trained
from torch import nn
from torch.nn.utils import parametrizations

from auditor import zoo
from auditor.audit import run_audit
from auditor.planted.examination import examine_model, model_findings
from auditor.rules import rule
from auditor.trace import trace

SHAPE = (3, 8, 8)


def codes(module, shape=SHAPE):
    module.eval()
    return [seen.code for seen in examine_model(module, shape, trace(module, shape).head)]


# --------------------------------------------------------------------------- planted


def fishing_net(kind):
    module = drawn(0, lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
    with torch.no_grad():
        if kind == "bias":
            module[1].bias[2] = 500
        else:
            module[1].weight[:2] = module[1].weight[3:] = 0
    return module


class Functional(nn.Module):
    """The same imprint layer, without a module: turned over, and its bias added afterwards."""

    def __init__(self):
        super().__init__()
        inner = imprint_net(32)
        self.matrix = nn.Parameter(inner.catch.weight.detach().T.clone())
        self.vector = nn.Parameter(inner.catch.bias.detach().clone())
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(torch.relu(x.flatten(1) @ self.matrix + self.vector))


def weight_normed():
    module = imprint_net(32)
    parametrizations.weight_norm(module.catch)
    return module


class Beside(nn.Module):
    """An imprint layer on a branch of its own."""

    def __init__(self):
        super().__init__()
        self.inner, self.planted = tiny_lenet(channels=3), imprint_net(32)

    def forward(self, x):
        with_block = self.inner.body(x).flatten(1)
        return self.inner.fc(with_block + self.planted(x).mean(1, keepdim=True))


PLANTED = {
    "imprint": (lambda: imprint_net(64), ["GA401"]),
    "imprint, 8 bins": (lambda: imprint_net(8), ["GA401"]),
    "imprint, scaled rows": (lambda: imprint_net(64, scales=torch.linspace(0.1, 9, 64)), ["GA401"]),
    "imprint, functional": (Functional, ["GA401"]),
    "imprint, weight norm": (weight_normed, ["GA401"]),
    "imprint, on a branch": (Beside, ["GA401"]),
    "traps": (trap_net, ["GA402"]),
    "traps, nearly balanced": (lambda: trap_net(scale=0.99), ["GA402"]),
    "traps, signed": (lambda: trap_net(scale=0.9, signed=True), ["GA402"]),
    "fishing for a class": (lambda: fishing_net("class"), ["GA403"]),
    "fishing by a bias": (lambda: fishing_net("bias"), ["GA403"]),
    "kernels and traps": (lambda: passing_net(1), ["GA402", "GA404"]),
    "more kernels": (lambda: passing_net(3), ["GA402", "GA404"]),
    "kernels, max pooling": (lambda: passing_net(1, pool=nn.MaxPool2d(2)), ["GA402", "GA404"]),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_was_planted_is_seen(name):
    make, expected = PLANTED[name]
    assert codes(drawn(0, make)) == expected


def test_half_precision_does_not_hide_it():
    for make in (lambda: imprint_net(64), trap_net):
        module = make().half().float()
        assert codes(module)[0] in {"GA401", "GA402"}


# --------------------------------------------------------------------------- not planted


def zero_head(module):
    for parameter in module.head.parameters():
        nn.init.zeros_(parameter)
    return module


def one_step(module, shape=(1, 4, 4)):
    """One step of SGD on one sample: every weight gradient of a linear layer has rank one."""
    inputs, labels = batch(1, 10, shape=shape)
    nn.functional.cross_entropy(module(inputs), labels).backward()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.sub_(0.1 * parameter.grad)
    return module


def zero_body(module):
    """A hidden layer at zero: after one step its rows are parallel, and so are its biases."""
    for parameter in module.body[1].parameters():
        nn.init.zeros_(parameter)
    return module


def net_of(act, seed):
    return drawn(seed, lambda: net(act, seed=seed))


GREY = (1, 4, 4)
BENIGN = {
    "LeNet, uniform": (lambda: tiny_lenet(channels=3), SHAPE),
    "LeNet": (lambda: zoo.build("lenet:3x32x10"), (3, 32, 32)),
    "ResNet-20": (lambda: zoo.build("resnet20"), (3, 32, 32)),
    "perceptron, ReLU": (lambda: net("relu"), GREY),
    "perceptron, trained": (lambda: trained(net("relu"), classes=10)[0], GREY),
    "perceptron, trained long": (lambda: trained(net("tanh"), classes=10, steps=500)[0], GREY),
    "head at zero": (lambda: zero_head(net("relu")), GREY),
    "head at zero, one step": (lambda: one_step(zero_head(net("relu"))), GREY),
    "body at zero, one step": (lambda: one_step(zero_body(net("sigmoid"))), GREY),
    "everything at zero": (lambda: zero_head(zero_body(net("relu"))), GREY),
    "two classes": (lambda: net("relu", 2), GREY),
    "two classes, head at zero, one step": (
        lambda: trained(zero_head(net("relu", 2)), classes=2, steps=1)[0],
        GREY,
    ),
    "ResNet-18": (lambda: torchvision.models.resnet18(zero_init_residual=True), (3, 64, 64)),
    "MobileNet": (torchvision.models.mobilenet_v3_small, (3, 64, 64)),
    "random projection": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 300), nn.ReLU(), nn.Linear(300, 4)),
        SHAPE,
    ),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), SHAPE),
    "kernels that pass on, then means": (
        lambda: nn.Sequential(
            _dirac(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 8), nn.Linear(8, 4)
        ),
        SHAPE,
    ),
    "a drawn convolution after one that passes on": (
        lambda: nn.Sequential(_dirac(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4)),
        SHAPE,
    ),
}  # fmt: skip


def _dirac():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    nn.init.dirac_(conv.weight)
    return conv


@pytest.mark.parametrize("name", BENIGN)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_was_not_planted_is_not_seen(name, seed):
    make, shape = BENIGN[name]
    assert codes(drawn(seed, make), shape) == []


# --------------------------------------------------------------------------- in the audit


def test_the_examination_touches_nothing():
    module = imprint_net(32).train()
    state, modes = copy.deepcopy(module.state_dict()), [m.training for m in module.modules()]
    chance = torch.get_rng_state()
    examine_model(module, SHAPE, trace(module, SHAPE).head)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert modes == [m.training for m in module.modules()]
    assert torch.equal(chance, torch.get_rng_state())


def test_it_is_in_the_report_even_when_the_dump_gives_nothing():
    module = imprint_net(32)
    had = Client(module, *batch(4, 4, shape=SHAPE))
    little = {"back.bias": had.gradients()["back.bias"]}
    result = run_audit(case_of(had, little), options_of(attacks=["labels"]))
    assert [f.code for f in result.audit.findings] == ["GA401"]
    [finding] = result.audit.findings
    assert (finding.severity.score, finding.certainty) == (5.0, "estimated")
    assert "catch.weight" in finding.summary
    assert result.audit.verdict.status == "leak"


def test_it_fails_a_gate_of_medium():
    had = Client(trap_net(), *batch(4, 4, shape=SHAPE))
    result = run_audit(case_of(had), options_of(attacks=["labels"]), fail_on="5")
    assert "GA402" in result.audit.gate.reason


def test_findings_carry_the_words_of_their_rule():
    had = Client(passing_net(1), *batch(2, 4, shape=SHAPE))
    found = model_findings(had.problem())
    assert [f.code for f in found] == ["GA402", "GA404"]
    assert [(f.title, f.remedy) for f in found] == [
        (rule(f.code).title, rule(f.code).remedy) for f in found
    ]


def test_imprint_and_traps_in_one_layer_are_two_findings():
    module = drawn(0, lambda: ImprintNet(32))
    trap_(module.back, 0.8)
    assert codes(module) == ["GA401", "GA402"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_of_scaled_rows_does_not_hide_them(dtype):
    module = imprint_net(64, scales=torch.linspace(10, 900, 64))
    assert codes(module.to(dtype).float()) == ["GA401"]


@pytest.mark.parametrize("seed", [0, 1])
def test_condensed_neurons_are_no_bins(seed):
    """A small start makes training turn neurons the same way (Luo et al. 2021)."""
    module = net_of("relu", seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.01)
    assert codes(trained(module, classes=10, seed=seed, steps=400)[0], GREY) == []
