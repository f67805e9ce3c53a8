"""The one definition of the gradient, against plain `backward()` on a copy of the model."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from problems import CPU, Client, batch, client, dump_of, knowledge, net, noise, problem_of
from torch import nn
from torch.nn import functional as F

from auditor.errors import InputError
from auditor.problem import (
    gradient_of,
    loss_of,
    make_problem,
    relative_residual,
    residuals_of,
    scale_of,
    to_model_units,
    to_pixels,
    tolerance_of,
)


class Normed(nn.Module):
    """Batch, instance and group statistics on the way."""

    def __init__(self, norm):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = norm
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        return self.head(torch.sigmoid(self.norm(self.conv(x))).flatten(1))


def normed(norm=None, *, seed=0, **more):
    """A client whose running statistics differ from those of its batch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Normed(norm or nn.BatchNorm2d(4))
        with torch.no_grad():
            module.train()(3 * torch.randn(16, 1, 4, 4) + 1)
    return Client(module.eval(), *batch(5, 3, seed=seed), **more)


def same(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    total = float(torch.cat([value.flatten().double() for value in expected.values()]).norm())
    for name, value in expected.items():
        apart = float((found[name].double() - value.double()).norm())
        assert apart <= tolerance * float(value.double().norm()) + 1e-6 * total, name


def frozen_state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def unchanged(module, before):
    now = module.state_dict()
    assert now.keys() == before.keys()
    assert all(torch.equal(now[name], value) for name, value in before.items())


# --------------------------------------------------------------------------- the gradient


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("count", [1, 5])
def test_equals_backward(reduction, smoothing, count):
    had = client("tanh", count, 4, reduction=reduction, smoothing=smoothing)
    problem = had.problem()
    found = gradient_of(problem, had.inputs.double(), had.labels)
    same(found, had.gradients())
    assert relative_residual(problem, found) < 1e-6
    assert max(residuals_of(problem, found).values()) < 1e-6


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_is_the_mean_or_sum_of_single_samples(reduction):
    had = client("silu", 4, 3, reduction=reduction)
    problem = had.problem()
    whole = gradient_of(problem, had.inputs.double(), had.labels)
    parts = [
        gradient_of(problem, x[None].double(), y[None])
        for x, y in zip(had.inputs, had.labels, strict=True)
    ]
    share = 1 / 4 if reduction == "mean" else 1
    same(whole, {name: share * sum(p[name] for p in parts) for name in whole}, 1e-10)


def test_one_hot_targets_are_hard_labels():
    had = client("tanh", 3, 4, smoothing=0.1)
    problem = had.problem()
    soft = F.one_hot(had.labels, 4).double()
    inputs = had.inputs.double()
    same(gradient_of(problem, inputs, soft), gradient_of(problem, inputs, had.labels), 1e-12)


def test_loss_by_hand():
    problem = client("tanh", 2, 2).problem()
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]], dtype=torch.float64)
    loss = loss_of(problem, logits, torch.tensor([1, 0]))
    assert float(loss) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_only_the_parameters_of_the_dump():
    had = client("tanh", 2, 3)
    gradients = {n: g for n, g in had.gradients().items() if n.startswith("head")}
    problem = had.problem(gradients)
    assert list(gradient_of(problem, had.inputs.double(), had.labels)) == list(gradients)


def test_parameters_without_influence_have_gradient_zero():
    class Spare(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net("tanh", 3)
            self.spare = nn.Linear(2, 2)

        def forward(self, x):
            return self.inner(x)

    had = Client(Spare(), *batch(2, 3))
    sent = had.gradients() | {"spare.weight": torch.zeros(2, 2), "spare.bias": torch.zeros(2)}
    found = gradient_of(had.problem(sent), had.inputs.double(), had.labels)
    assert float(found["spare.weight"].abs().max()) == 0


def test_frozen_parameters_of_the_users_module_are_no_obstacle():
    had = client("tanh", 2, 3)
    sent = had.gradients()
    had.module.requires_grad_(False)
    found = gradient_of(had.problem(sent), had.inputs.double(), had.labels)
    same(found, sent)
    assert not any(p.requires_grad for p in had.module.parameters())


def test_create_graph_gives_second_derivatives():
    had = client("tanh", 1, 3)
    problem = had.problem()
    inputs = had.inputs.double().requires_grad_()
    found = gradient_of(problem, inputs, had.labels, create_graph=True)
    (second,) = torch.autograd.grad(found["head.bias"].square().sum(), inputs)
    assert float(second.abs().max()) > 0


# --------------------------------------------------------------------------- modes


@pytest.mark.parametrize(
    "norm",
    [
        lambda: nn.BatchNorm2d(4),
        lambda: nn.BatchNorm2d(4, momentum=None),
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        lambda: nn.BatchNorm2d(4, affine=False),
        lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
        lambda: nn.InstanceNorm2d(4),
        lambda: nn.GroupNorm(2, 4),
    ],
    ids=["batch", "cumulative", "untracked", "plain", "tracked instance", "instance", "group"],
)
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_normalisation_as_the_client_had_it(norm, mode):
    had = normed(norm(), mode=mode)
    sent = had.gradients()
    before = frozen_state(had.module)
    problem = had.problem(sent)
    ours = frozen_state(problem.module)
    for _ in range(2):  # a pass must not change the next one
        same(gradient_of(problem, had.inputs.double(), had.labels), sent, 1e-4)
    unchanged(had.module, before)
    unchanged(problem.module, ours)
    assert not any(m.training for m in had.module.modules())


def test_the_two_modes_differ_in_batch_norm():
    sent = {mode: normed(mode=mode).gradients()["conv.weight"] for mode in ("eval", "train")}
    assert (sent["eval"] - sent["train"]).norm() > 0.1 * sent["eval"].norm()


def test_dropout_is_off_in_our_copy():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)).train()
    known = knowledge((1, 4, 4), mode="train")
    problem = problem_of(module, noise(module, 1.0), known)
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(problem.module(x), problem.module(x))
    assert module.training
    assert module[1].training


def test_the_copy_is_deep():
    had = client()
    problem = had.problem()
    with torch.no_grad():
        next(problem.module.parameters()).add_(1)
    assert not torch.equal(
        next(problem.module.parameters()), next(had.module.parameters()).double()
    )


# --------------------------------------------------------------------------- dtypes


def test_small_models_are_matched_in_double_precision():
    problem = client().problem()
    assert {p.dtype for p in problem.module.parameters()} == {torch.float64}
    assert {g.dtype for g in problem.gradient.values()} == {torch.float64}


def test_large_bodies_stay_in_single_precision_but_large_heads_do_not_matter():
    body = nn.Sequential(nn.Flatten(), nn.Linear(16, 20_000), nn.Tanh(), nn.Linear(20_000, 2))
    head = nn.Sequential(nn.Flatten(), nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 5000))
    dtypes = [
        next(iter(problem_of(m, noise(m, 1.0), knowledge((1, 4, 4))).gradient.values())).dtype
        for m in (body, head)
    ]
    assert dtypes == [torch.float32, torch.float64]


class Insists(nn.Module):
    """A model that works in single precision only, as those that cast their input do."""

    def __init__(self):
        super().__init__()
        self.inner = net("tanh", 3)

    def forward(self, x):
        return self.inner(x.float())


def test_a_model_that_insists_on_single_precision():
    had = Client(Insists(), *batch(2, 3))
    problem = had.problem()
    dtype = next(iter(problem.gradient.values())).dtype
    same(gradient_of(problem, had.inputs.to(dtype), had.labels), had.gradients())


def test_half_precision_models_are_audited():
    had = client("tanh", 2, 3)
    sent = had.gradients()
    known = had.problem(sent).knowledge
    module = copy.deepcopy(had.module).to(torch.bfloat16)
    problem = problem_of(module, sent, known)
    same(gradient_of(problem, had.inputs.double(), had.labels), sent, 0.05)


# --------------------------------------------------------------------------- residuals and units


def test_residual_closed_forms():
    had = client("tanh", 2, 3)
    problem = had.problem()
    sent = problem.gradient
    assert relative_residual(problem, sent) == 0
    double = {name: 2 * g for name, g in sent.items()}
    assert relative_residual(problem, double) == pytest.approx(1)
    assert set(residuals_of(problem, double)) == set(sent)
    assert all(r == pytest.approx(1) for r in residuals_of(problem, double).values())
    one = dict(sent) | {"head.bias": sent["head.bias"] * 1.5}
    assert residuals_of(problem, one)["head.bias"] == pytest.approx(0.5)
    assert residuals_of(problem, one)["head.weight"] == 0
    total = torch.cat([g.flatten() for g in sent.values()]).norm()
    expected = float(0.5 * sent["head.bias"].norm() / total)
    assert relative_residual(problem, one) == pytest.approx(expected)


def test_tensors_of_pure_rounding_are_measured_against_the_whole():
    had = client("tanh", 2, 3)
    sent = had.gradients()
    sent["body.1.bias"] = torch.zeros_like(sent["body.1.bias"])
    problem = had.problem(sent)
    total = float(torch.cat([g.flatten() for g in problem.gradient.values()]).norm())

    def residual(entry):
        ghost = torch.full((32,), entry, dtype=torch.float64)
        return residuals_of(problem, dict(problem.gradient) | {"body.1.bias": ghost})["body.1.bias"]

    assert residual(1e-8 * total) <= tolerance_of(problem)
    assert residual(1e-2 * total) > 1
    assert residuals_of(problem, problem.gradient)["body.1.bias"] == 0
    assert all(float(scale) > 0 for scale in scale_of(problem).values())


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("norm", [lambda: nn.BatchNorm2d(4), lambda: nn.InstanceNorm2d(4)])
def test_the_truth_equals_the_dump_also_where_a_gradient_vanishes(norm, mode):
    """A bias before normalisation by the batch's own statistics has no influence at all."""
    had = normed(norm(), mode=mode)
    problem = had.problem()
    worst = max(
        residuals_of(problem, gradient_of(problem, had.inputs.double(), had.labels)).values()
    )
    assert worst <= tolerance_of(problem)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (5, 2, 3, 4, 4), (3, 4, 4)])
def test_units_there_and_back(shape):
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    known = knowledge((3, 4, 4), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    problem = problem_of(module, noise(module, 1.0), known)
    pixels = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = to_model_units(problem, pixels)
    assert torch.allclose(to_pixels(problem, inputs), pixels, atol=1e-12)
    channel = pixels.movedim(-3, 0)[1]
    assert torch.allclose(inputs.movedim(-3, 0)[1], (channel - 0.5) / 0.3)


def test_pixels_are_clipped():
    problem = client().problem()
    far = torch.tensor([-3.0, 0.25, 7.0], dtype=torch.float64).expand(1, 1, 1, 3)
    assert to_pixels(problem, far).flatten().tolist() == [0, 0.25, 1]


@pytest.mark.parametrize(
    ("precision", "tolerance"),
    [
        (torch.finfo(torch.float64).eps, 3.5e-4),
        (torch.finfo(torch.float32).eps, 3.5e-4),
        (1e-5, 10**-2.5),
        (torch.finfo(torch.float16).eps, 1e-2),
        (torch.finfo(torch.bfloat16).eps, 1e-2),
    ],
)
def test_tolerance(precision, tolerance):
    problem = replace(client().problem(), precision=precision)
    assert tolerance_of(problem) == pytest.approx(tolerance)


# --------------------------------------------------------------------------- what make_problem does


def test_gradients_stand_in_the_order_of_the_parameters():
    had = client("tanh", 1, 3)
    backwards = dict(reversed(had.gradients().items()))
    names = [name for name, _ in had.module.named_parameters()]
    assert list(had.problem(backwards).gradient) == names


def test_nothing_of_the_users_is_touched():
    had = normed(mode="train")
    had.module.train()
    sent = had.gradients()
    dump = dump_of(had.module, sent)
    before, tensors = frozen_state(had.module), {n: t.clone() for n, t in dump.tensors.items()}
    known = knowledge((1, 4, 4), batch_size=5, mode="train")
    torch.manual_seed(0)
    random = torch.get_rng_state()
    problem = make_problem(had.module, dump, known, device=CPU)
    gradient_of(problem, had.inputs.double(), had.labels)
    unchanged(had.module, before)
    assert all(m.training for m in had.module.modules())
    assert all(torch.equal(dump.tensors[n], t) for n, t in tensors.items())
    assert all(p.grad is None for p in had.module.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_shape_that_does_not_fit_is_an_input_error():
    module = net()
    with pytest.raises(InputError):
        problem_of(module, noise(module, 1.0), knowledge((1, 5, 5)))
