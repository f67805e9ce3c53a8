"""Nothing that is proved is wrong, whatever the dump."""

import copy
from dataclasses import replace

import pytest
import torch
from problems import Client, batch, noised, rounded
from readings import (
    assert_no_false_proof,
    assert_right,
    client_of,
    convolved,
    decibels,
    deep,
    made,
    perceptron,
    proves,
    read,
)
from torch import nn


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [convolved, perceptron, lambda: deep(nn.ReLU)])
def test_coarse_dumps_prove_nothing(make, dtype):
    client = client_of(make)
    problem = client.problem(rounded(client.gradients(), dtype))
    assert_no_false_proof(client, problem, proof=False)


@pytest.mark.parametrize("sigma", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("make", [convolved, perceptron, lambda: deep(nn.Sigmoid)])
def test_noise_proves_nothing_wrong(make, sigma):
    client = client_of(make)
    problem = client.problem(noised(client.gradients(), sigma))
    assert_no_false_proof(client, problem, proof=False if sigma >= 1e-4 else None)


@pytest.mark.parametrize("sigma", [1e-7, 1e-6, 8e-6])
@pytest.mark.parametrize("seed", range(2))
def test_readings_disagree_as_much_as_the_noise_lets_them(sigma, seed):
    """A blurring layer amplifies errors; the dump is noisier than its format says."""

    def make():
        module = convolved(width=1, size=12)
        module[0] = nn.Conv2d(1, 1, 5, padding=2)
        bell = torch.exp(-((torch.arange(5) - 2.0) ** 2) / 8)
        with torch.no_grad():
            module[0].weight.mul_(1e-3).add_(bell[:, None] * bell / bell.sum() ** 2)
        return module

    client = client_of(make, shape=(1, 12, 12), seed=seed)
    problem = client.problem(noised(client.gradients(), sigma, seed=seed))
    recovery, evidence = read(problem)
    right = decibels(client, problem, recovery)
    if proves(problem, evidence):
        assert right > 59  # what is called exact
        assert evidence.agreement[0] < right + 15


@pytest.mark.parametrize(
    "make", [convolved, perceptron, lambda: deep(nn.Sigmoid), lambda: perceptron(bias=False)]
)
@pytest.mark.parametrize("same", [True, False])
def test_two_samples_said_to_be_one(make, same):
    inputs, labels = batch(2, 5, shape=(1, 8, 8))
    labels = labels * 0 + torch.tensor([2, 2 if same else 3])
    client = Client(made(make), inputs, labels)
    assert_no_false_proof(client, client.problem(size=1), proof=False)


@pytest.mark.parametrize("make", [convolved, perceptron, lambda: deep(nn.Sigmoid)])
def test_the_weights_of_another_model(make):
    client = client_of(make)
    other = replace(client, module=made(make, seed=9))
    assert_no_false_proof(client, other.problem(client.gradients()), proof=False)


def test_a_wrong_reduction_or_smoothing_proves_nothing():
    client = client_of(convolved, smoothing=0.1)
    assert_no_false_proof(client, client.problem(label_smoothing=0.0), proof=False)


@pytest.mark.parametrize("seed", range(3))
def test_dead_hidden_units(seed):
    """All off: the first layer's gradient is zero, and the picture is nowhere in the dump."""

    def make():
        module = perceptron(nn.ReLU)
        with torch.no_grad():
            module[1].bias.fill_(-50)
        return module

    assert_no_false_proof(client_of(make, seed=seed), proof=False, seed=seed)


def test_one_live_unit_is_enough():
    def make():
        module = perceptron(nn.ReLU)
        with torch.no_grad():
            module[1].bias[1:].fill_(-50)
            module[1].bias[0] = 5
            module[3].weight[:, 0] = module[3].weight[:, 0].abs() + 0.1
        return module

    assert_right(client_of(make))


@pytest.mark.parametrize("bias", [-95.0, -100.5, -103.0])
def test_gradients_below_the_smallest_normal_number(bias):
    """One unit of a saturated layer sends a few quanta: of rank one, and worth no digits."""

    def make():
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Sigmoid(), nn.Linear(8, 5))
        with torch.no_grad():
            module[1].bias.fill_(-300)
            module[1].bias[0] = bias
        return module

    assert_no_false_proof(client_of(make), proof=False)


@pytest.mark.parametrize("gain", [30, 100, 300, 1000, 10000])
@pytest.mark.parametrize("make", [convolved, perceptron, lambda: deep(nn.Sigmoid)])
def test_saturated_sigmoids(make, gain):
    def saturated():
        module = make()
        with torch.no_grad():
            for parameter in list(module.parameters())[:2]:
                parameter.mul_(gain)
        return module

    assert_no_false_proof(client_of(saturated))


@pytest.mark.parametrize("which", ["all", "head", "convolution"])
@pytest.mark.parametrize("width", [12, 64])
def test_zero_weights(which, width):
    """A head that starts from zeros sends no gradient to what is below it."""

    def make():
        module = convolved(width=width, size=6)
        for name, parameter in module.named_parameters():
            if which == "all" or name.startswith("3" if which == "head" else "0"):
                nn.init.zeros_(parameter)
        return module

    assert_no_false_proof(
        client_of(make, shape=(1, 6, 6)), proof=None if which == "head" else False
    )


def test_a_zero_head_above_a_wide_convolution():
    """More than 1024 unknowns, whose normal matrix has no weight-gradient part."""

    def make():
        module = nn.Sequential(
            nn.Conv2d(5, 48, 5, stride=5), nn.Sigmoid(), nn.Flatten(), nn.Linear(432, 5)
        )
        nn.init.zeros_(module[3].weight)
        return module

    assert_no_false_proof(client_of(make, shape=(5, 15, 15)), proof=False)


@pytest.mark.parametrize("activation", [nn.Hardtanh, nn.ReLU])
@pytest.mark.parametrize("drop", [(), ("0.weight",)])
def test_a_layer_whose_units_are_all_off(activation, drop):
    """No equation says anything: zero solves them all, from any start."""

    def make():
        module = convolved(activation)
        with torch.no_grad():
            module[0].bias.fill_(-50)
        return module

    client = client_of(make)
    gradients = {name: g for name, g in client.gradients().items() if name not in drop}
    assert_no_false_proof(client, client.problem(gradients), proof=False)


@pytest.mark.parametrize("activation", [nn.GELU, nn.SiLU])
@pytest.mark.parametrize("why", ["frozen", "zero head", "frozen linear"])
@pytest.mark.parametrize("seed", range(2))
def test_two_branches_need_more_equations_than_unknowns(activation, why, seed):
    """A square system has a solution for every choice of branches, and all give this dump."""

    def make():
        if why == "frozen linear":
            return nn.Sequential(
                nn.Flatten(), nn.Linear(64, 64), activation(), nn.Linear(64, 5)
            )  # fmt: skip
        module = nn.Sequential(nn.Conv2d(1, 1, 1), activation(), nn.Flatten(), nn.Linear(64, 5))
        with torch.no_grad():
            module[0].weight.fill_(-2.5)
            module[0].bias.fill_(0.3)
            if why == "zero head":
                module[3].weight.zero_()
        return module

    client = client_of(make, seed=seed)
    gradients = client.gradients()
    if why != "zero head":
        frozen = "1" if why == "frozen linear" else "0"
        gradients = {name: g for name, g in gradients.items() if not name.startswith(frozen)}
    assert_no_false_proof(client, client.problem(gradients), seed=seed)


@pytest.mark.parametrize("seed", range(2))
def test_two_classes_without_biases_have_two_labels(seed):
    """Features f of one label and -f of the other have the same gradient."""

    def make():
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.Flatten(),
            nn.Linear(768, 2, bias=False),
        )  # fmt: skip

    client = client_of(make, classes=2, seed=seed)
    for label in (0, 1):
        one = replace(client, labels=torch.tensor([label]))
        for gain in (0.1, 1.0, 20.0):
            module = copy.deepcopy(client.module)
            with torch.no_grad():
                module[2].weight.mul_(gain)
            assert_no_false_proof(replace(one, module=module), seed=seed)


@pytest.mark.parametrize("name", ["1.weight", "1.bias", "3.weight", "3.bias"])
def test_nan_in_the_problem(name):
    """Files with NaN are refused; a problem made otherwise must not be proved."""
    problem = client_of(perceptron).problem()
    broken = problem.gradient[name].clone()
    broken.view(-1)[0] = torch.nan
    problem = replace(problem, gradient={**problem.gradient, name: broken})
    _, evidence = read(problem)
    assert not proves(problem, evidence)


def _two_class(kind):
    if kind == "perceptron":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False)
        )
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.LeakyReLU(), nn.Flatten(),
        nn.Linear(12 * 64, 2, bias=False),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["perceptron", "convolution"])
@pytest.mark.parametrize("factor", [0.5, 0.9, 1.06, 1.5])
def test_two_classes_without_biases_have_two_answers(kind, factor):
    """s x gives the gradient of x in every tensor, for one s: where t (1 - p(t)) falls again."""
    client = client_of(lambda: _two_class(kind), classes=2)
    with torch.no_grad():
        logits = client.module(client.inputs)[0]
        label = int(logits.argmax())
        list(client.module.parameters())[-1].mul_(
            factor * 1.2784645 / float(logits[label] - logits[1 - label])
        )
    client = replace(client, labels=torch.tensor([label]))
    assert_no_false_proof(client, proof=False)
