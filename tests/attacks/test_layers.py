"""The picture layer by layer, from dumps as clients write them: what is read, and why not."""

import copy
import time
from dataclasses import replace

import pytest
import torch
from problems import WATCH, Client, batch, lenet_client
from readings import (
    ATTACK,
    Written,
    assert_no_false_proof,
    assert_right,
    client_of,
    convolved,
    decibels,
    deep,
    made,
    of_a_picture,
    perceptron,
    proves,
    read,
)
from torch import nn

from auditor.attacks import layers
from auditor.attacks.base import Watch
from auditor.inversion import link_solver, preconditioners

# --------------------------------------------------------------------------- what can be read


SMOOTH = [nn.Sigmoid, nn.Tanh, nn.Softplus, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU]


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16)])
def test_lenets_of_many_activations(activation, channels, size):
    shape = (channels, size, size)
    assert_right(client_of(lambda: deep(activation, channels=channels, size=size), shape=shape))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.SELU])
def test_wide_networks_with_kinks(activation):
    def make():
        return nn.Sequential(
            nn.Conv2d(3, 32, 5, padding=2, stride=2), activation(),
            nn.Conv2d(32, 64, 5, padding=2, stride=2), activation(),
            nn.Flatten(), nn.Linear(64 * 16, 5),
        )  # fmt: skip

    assert_right(client_of(make, shape=(3, 16, 16)))


def test_the_papers_network():
    assert_right(lenet_client(size=16))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid])
@pytest.mark.parametrize("bias", [True, False])
def test_perceptrons(activation, bias):
    assert_right(client_of(lambda: perceptron(activation, bias=bias)))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
def test_heads_without_a_bias(activation):
    assert_right(client_of(lambda: deep(activation, head_bias=False)))


@pytest.mark.parametrize("shape", [(1, 6, 10), (3, 9, 5), (1, 1, 12), (1, 12, 1)])
def test_pictures_that_are_not_square(shape):
    channels, height, width = shape

    def make():
        return nn.Sequential(
            nn.Conv2d(channels, 12, 3, padding=1), nn.Tanh(), nn.Flatten(),
            nn.Linear(12 * height * width, 5),
        )  # fmt: skip

    assert_right(client_of(make, shape=shape))


def test_batch_norm_in_evaluation_mode():
    def make():
        norm = nn.BatchNorm2d(12)
        for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
            tensor.uniform_(0.3, 1.2)
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1, bias=False), norm, nn.Sigmoid(), nn.Flatten(),
            nn.Linear(12 * 64, 5),
        )  # fmt: skip

    assert_right(client_of(make))


@pytest.mark.parametrize(
    "more", [{"smoothing": 0.1}, {"reduction": "sum"}, {"smoothing": 0.2, "reduction": "sum"}]
)
def test_other_losses(more):
    assert_right(client_of(convolved, **more))
    assert_right(
        client_of(lambda: perceptron(bias=False), **{"reduction": more.get("reduction", "mean")})
    )


def test_mean_and_std_outside_the_model():
    client = client_of(lambda: convolved(channels=3), shape=(3, 8, 8))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    of = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    client = replace(client, inputs=(client.inputs - of[0]) / of[1])
    assert_right(client, client.problem(mean=mean, std=std))


def test_mean_and_std_inside_the_model():
    def make():
        inner = convolved()
        return Written(lambda m, x: m.inner((x - 0.45) / 0.22), inner=inner)

    assert_right(client_of(make))


def test_dark_and_bright_pictures():
    """Pixels at their bounds, where a clamp in the attack would hide errors."""
    client = client_of(lambda: deep(nn.Tanh))
    for inputs in (
        1e-3 * client.inputs,
        torch.ones_like(client.inputs),
        (client.inputs > 0.5).float(),
    ):
        assert_right(replace(client, inputs=inputs))


def test_a_black_picture():
    """All zero: its own layer's weight gradient is zero too, and relative errors mean nothing."""
    client = client_of(lambda: deep(nn.Tanh))
    client = replace(client, inputs=torch.zeros_like(client.inputs))
    problem = client.problem()
    recovery, evidence = read(problem)
    assert decibels(client, problem, recovery) > 60
    assert all(link.solved for link in recovery.links), recovery.links
    assert evidence.worst_residuals[0] < 1e-4


def test_large_models_are_read_in_double_precision():
    """Above 250 000 parameters the problem is in single precision; the reading is not."""

    def make():
        return nn.Sequential(
            nn.Conv2d(3, 32, 5, padding=2, stride=2), nn.ReLU(),
            nn.Conv2d(32, 64, 5, padding=2, stride=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 16, 300), nn.Tanh(), nn.Linear(300, 5),
        )  # fmt: skip

    client = client_of(make, shape=(3, 16, 16))
    problem = client.problem()
    assert next(problem.module.parameters()).dtype == torch.float32
    assert_right(client, problem, least=90)


def test_one_pass_from_the_seed():
    problem = client_of(convolved).problem()
    first, again, other = (ATTACK.run(problem, seed=seed, watch=WATCH) for seed in (0, 0, 1))
    assert torch.equal(first.inputs, again.inputs)
    assert first.links == again.links
    assert torch.equal(first.inputs[0], other.inputs[0]) or torch.allclose(
        first.inputs[0], other.inputs[0], atol=1e-5
    )


def test_the_problem_is_left_as_it_was():
    problem = client_of(lambda: deep(nn.ReLU)).problem()
    gradient = {name: value.clone() for name, value in problem.gradient.items()}
    state = copy.deepcopy(problem.module.state_dict())
    read(problem)
    assert all(torch.equal(value, gradient[name]) for name, value in problem.gradient.items())
    assert all(torch.equal(v, state[name]) for name, v in problem.module.state_dict().items())


def test_tensors_that_the_dump_lacks():
    client = client_of(convolved)
    for missing in ("0.weight", "0.bias", "3.bias"):
        gradients = client.gradients()
        gradients.pop(missing)
        assert_no_false_proof(client, client.problem(gradients))
    gradients = client.gradients()
    gradients.pop("3.weight")
    assert ATTACK.blocked_by(client.problem(gradients)) is not None


# --------------------------------------------------------------------------- reasons and budgets


def test_blocked_with_a_reason():
    client = client_of(convolved)
    two = Client(client.module, *batch(2, 5, shape=(1, 8, 8)))
    pooled = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    )
    cases = {
        "batch size": client.problem(size=None),
        "one sample": two.problem(),
        "max_pool2d": replace(client, module=pooled).problem(),
    }
    for word, problem in cases.items():
        assert word in ATTACK.blocked_by(problem)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripted_models_are_blocked_with_a_reason():
    client = client_of(convolved)
    scripted = replace(client, module=torch.jit.script(client.module))
    assert "TorchScript" in ATTACK.blocked_by(scripted.problem(client.gradients()))


def test_models_that_insist_on_single_precision_are_blocked_with_a_reason():
    client = client_of(of_a_picture(lambda x: x.float()))
    assert "double precision" in ATTACK.blocked_by(client.problem())


@pytest.mark.parametrize("dimensions", [1, 2])
def test_batch_norm_in_training_mode_is_blocked_with_a_reason(dimensions):
    def make():
        norm = nn.BatchNorm2d(12) if dimensions == 2 else nn.BatchNorm1d(64)
        inner = [nn.Conv2d(1, 12, 3, padding=1), norm, nn.Flatten()]
        if dimensions == 1:
            inner = [nn.Flatten(), nn.Linear(64, 64), norm]
        return nn.Sequential(*inner, nn.Sigmoid(), nn.Linear(768 if dimensions == 2 else 64, 5))

    client = Client(made(make), *batch(2, 5, shape=(1, 8, 8)), mode="train")
    problem = client.problem(size=1)
    reason = ATTACK.blocked_by(problem)
    if reason is None:  # then the layers below the norm must not be read
        _, evidence = read(problem)
        assert not proves(problem, evidence)
    else:
        assert reason


def test_an_expired_budget_ends_at_once_with_a_reason():
    problem = client_of(lambda: deep(nn.Sigmoid, channels=3, size=32), shape=(3, 32, 32)).problem()
    started = time.monotonic()
    recovery, evidence = read(problem, watch=Watch(deadline=0.0))
    assert time.monotonic() - started < 3
    assert recovery.expired
    assert recovery.inputs is None or not all(link.solved for link in recovery.links)
    assert not proves(problem, evidence)


def test_what_hides_the_picture_is_named():
    def make():
        return nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(1, 12, 3, padding=1), nn.Sigmoid(), nn.Flatten(),
            nn.Linear(12 * 16, 5),
        )  # fmt: skip

    recovery, evidence = read(problem := client_of(make).problem())
    hidden = recovery.links[-1]
    assert hidden.layer == "1.weight"
    assert not hidden.solved
    assert 20 <= hidden.undetermined <= 64  # 48 = 64 - 16
    assert not proves(problem, evidence)


def test_a_large_model_is_copied_only_when_its_chain_is_whole(monkeypatch):
    def make():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
            nn.Linear(8 * 49, 700), nn.ReLU(), nn.Linear(700, 5),
        )  # fmt: skip

    problem = client_of(make, shape=(3, 16, 16)).problem()
    assert next(problem.module.parameters()).dtype == torch.float32
    monkeypatch.setattr(layers.copy, "deepcopy", None)
    assert "max_pool2d" in ATTACK.blocked_by(problem)


def test_a_system_that_the_iteration_does_not_solve_is_factorised(monkeypatch):
    """A single step of every kind: only the matrix that is formed in the end gets there."""
    client = client_of(lambda: deep(nn.Tanh))
    monkeypatch.setattr(preconditioners, "DENSE", 0)
    for name in ("_TRIAL_STEPS", "_FEW_STEPS", "_HARD_STEPS"):
        monkeypatch.setattr(link_solver, name, 1)
    monkeypatch.setattr(preconditioners, "_HIGH", 0)  # no inverse by channel
    few = replace(ATTACK, max_steps=8)
    problem = client.problem()
    recovery = few.run(problem, seed=0, watch=WATCH)
    assert all(link.solved and not link.constrained for link in recovery.links), recovery.links
    assert decibels(client, problem, recovery) > 60
    monkeypatch.setattr(link_solver, "LAST_RESORT", 0)
    once = replace(ATTACK, max_steps=1).run(problem, seed=0, watch=WATCH)
    assert any(link.constrained for link in once.links)
