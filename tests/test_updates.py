"""A client's update through the audit: what is sent, what is proved, what is said to be missing."""

import copy
import time
from dataclasses import dataclass, replace

import pytest
import torch
from clients import LocalClient
from problems import WATCH, Client, batch, net, tiny_lenet
from torch import nn
from torch.nn import functional as F

from auditor import UsageError
from auditor.attacks import ATTACKS, FirstLayer, LayerByLayer, Watch, label_claim
from auditor.attacks.matching import dense_distance, matching_objective
from auditor.attacks.residuals import approximated, matching_residual, stand_in
from auditor.checks import caveats_of, head_sums, scale_caveats
from auditor.evidence import examine, is_verified
from auditor.local_training import midway
from auditor.metrics import psnr
from auditor.problem import (
    change_of,
    gradient_of,
    heaviest_sample,
    is_one_gradient,
    is_scaled,
    read_as,
    relative_residual,
    residuals_of,
    to_pixels,
    tolerance_of,
    why_not_simulated,
)
from auditor.records import Evidence, Failed

TRAININGS = {
    "one step": {},
    "one step, decay": {"decay": 1e-2},
    "five steps": {"steps": 5},
    "momentum and decay": {"steps": 4, "momentum": 0.9, "decay": 1e-2},
    "batches in turn, epochs": {"steps": 2, "batch": 2, "epochs": 3},
    "sum": {"steps": 3, "reduction": "sum"},
    "float64": {"steps": 3, "dtype": torch.float64},
}
each_training = pytest.mark.parametrize("settings", TRAININGS.values(), ids=TRAININGS)


def lenet_client(count=4, **settings):
    return LocalClient(tiny_lenet(), *batch(count, 4, shape=(1, 8, 8)), **settings)


def classifier(count, classes=5, act="relu", **settings):
    return LocalClient(net(act, classes), *batch(count, classes, seed=1), **settings)


# --------------------------------------------------------------------------- THE gradient


@each_training
def test_the_gradient_of_an_update_is_what_the_optimizer_sent(settings):
    had = lenet_client(**settings)
    problem = had.problem()
    found = gradient_of(problem, had.inputs.double(), had.labels)
    assert list(found) == list(problem.gradient)
    assert max(residuals_of(problem, found).values()) < tolerance_of(problem)
    assert relative_residual(problem, found) < problem.precision + 1e-6
    other = gradient_of(problem, had.inputs.flip(3).double(), had.labels)
    assert relative_residual(problem, other) > 1e-2


def test_a_single_step_is_the_gradient():
    had = lenet_client(lr=0.5, decay=1e-2, dtype=torch.float64)
    problem = had.problem()
    sent = Client(had.module, had.inputs, had.labels).gradients()
    assert is_one_gradient(problem)
    assert heaviest_sample(problem) == pytest.approx(1)
    for name, part in sent.items():
        assert torch.allclose(problem.gradient[name].float(), part, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("settings", [{"steps": 5}, {"epochs": 2}, {"steps": 2, "batch": 2}])
def test_several_steps_are_not_one_gradient(settings):
    problem = lenet_client(**settings).problem()
    assert not is_one_gradient(problem)
    assert is_scaled(problem)
    assert why_not_simulated(problem) is None


def test_errors_of_subtraction_are_the_precision():
    """Near the rounding that is there: never below it, within two digits of it."""
    for lr in (1.0, 1e-2, 1e-4):
        had = lenet_client(lr=lr)
        exact = replace(had, dtype=torch.float64)
        rough, fine = had.problem(), exact.problem()
        apart = max(
            float((rough.gradient[n] - g).norm() / g.norm()) for n, g in fine.gradient.items()
        )
        assert apart <= rough.precision <= 100 * apart
        assert fine.precision < 1e-3 * rough.precision


def test_second_derivatives_go_through_the_steps():
    """The derivative of the simulated update, against differences of it."""
    had = lenet_client(2, steps=3, momentum=0.5)
    problem = had.problem()
    direction = torch.randn(
        had.inputs.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    inputs = had.inputs.double().requires_grad_()

    def value(x, **more):
        return sum(g.square().sum() for g in gradient_of(problem, x, had.labels, **more).values())

    (slope,) = torch.autograd.grad(value(inputs, create_graph=True), inputs)
    step = 1e-5
    ends = [value(inputs.detach() + sign * step * direction) for sign in (1, -1)]
    wanted = float((ends[0] - ends[1]) / (2 * step))
    assert float((slope * direction).sum()) == pytest.approx(wanted, rel=1e-5)


def test_what_matching_minimises_is_the_distance_of_simulated_updates():
    had = lenet_client(2, steps=3)
    problem = had.problem()
    x = had.inputs.double().flip(2)
    wanted = float(dense_distance(problem, x, had.labels, weighting="layer"))
    row = x.flatten()[None]
    objective = matching_objective(
        problem, lambda r: (r.view(x.shape), had.labels), weighting="layer"
    )
    assert float(objective(row)[0][0]) == pytest.approx(wanted)
    residual = matching_residual(problem, had.labels, size=2)
    assert float(residual(row).square().sum()) == pytest.approx(wanted)
    assert wanted > 1e-3
    assert residual.head is None
    assert not residual.independent


def test_the_jacobian_goes_through_the_steps():
    had = lenet_client(1, steps=2)
    residual = matching_residual(had.problem(), had.labels, size=1)
    row = had.inputs.double().flatten()[None]
    dense = residual.dense(row, lambda: False)[0]
    step, place = 1e-5, 17
    unit = torch.zeros_like(row)
    unit[0, place] = step
    wanted = (residual(row + unit) - residual(row - unit))[0] / (2 * step)
    assert torch.allclose(dense[:, place], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.5}], ids=str)
def test_one_gradient_in_the_steps_place_is_right_to_second_order_and_its_jacobian_to_first(
    settings,
):
    """At a tenth of the learning rate: a hundredth and a tenth of what they are off by."""
    values, jacobians = [], []
    for lr in (0.02, 0.002):
        had = lenet_client(2, steps=4, lr=lr, dtype=torch.float64, **settings)
        problem = had.problem()
        near = stand_in(problem, midway(problem.knowledge.local))
        found = gradient_of(near, had.inputs.double(), had.labels)
        values.append(relative_residual(problem, found))
        residual = matching_residual(problem, had.labels, size=2)
        row = had.inputs.double().flatten()[None]
        one, other = (r.dense(row, lambda: False)[0] for r in (residual, approximated(residual)))
        jacobians.append(float((one - other).norm() / one.norm()))
    assert values[1] < 0.02 * values[0]
    assert jacobians[1] < 0.2 * jacobians[0] < 0.1
    assert min(values) > 1e-8


@pytest.mark.parametrize("settings", [{"steps": 3}, {"steps": 4, "momentum": 0.5, "decay": 1e-2}])
def test_an_update_can_be_read_as_that_of_another_training(settings):
    had = lenet_client(2, **settings)
    told, other = had.problem(), had.problem(lr=0.05, steps=7)
    read = read_as(told, other.knowledge.local)
    for name, part in other.gradient.items():
        assert torch.allclose(read.gradient[name], part, rtol=1e-9, atol=1e-12), name
    assert read.precision == pytest.approx(other.precision, rel=1e-6)
    sent = had.update()
    for name, change in change_of(read).items():
        assert torch.allclose(change, sent[name].double(), rtol=1e-9, atol=1e-12), name


# --------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 3},
        {"steps": 4, "momentum": 0.9},
        {"steps": 4, "batch": 2, "momentum": 0.5},
        {"steps": 5, "batch": 2, "lr": 0.5, "decay": 1e-2},
        {"steps": 3, "reduction": "sum", "batch": 4},
        {"steps": 1, "batch": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("act", ["relu", "tanh"])
def test_proved_counts_hold_on_updates(settings, act):
    proved = 0
    for seed in range(8):
        module = net(act, 5, seed=seed)
        had = LocalClient(module, *batch(8, 5, seed=seed), **settings)
        problem = had.problem()
        assert head_sums(problem).vanish
        assert scale_caveats(problem) == ()
        claim = label_claim(problem)
        true = torch.bincount(had.labels, minlength=5)
        assert bool((claim.lower <= true).all())
        assert claim.upper is None or bool((true <= claim.upper).all())
        proved += int(claim.lower.sum())
        assert any("weights after" in premise for premise in claim.premises)
    assert proved > 8


def test_a_single_label_is_proved_over_many_steps():
    claim = label_claim(classifier(1, steps=10, momentum=0.9).problem())
    assert claim.complete
    assert claim.estimate.tolist() == classifier(1).labels.tolist()


def test_the_rank_of_several_steps_bounds_nothing():
    """Features move with the weights: one sample leaves a head update of a rank above one."""
    problem = classifier(1, act="tanh", lr=1.0, steps=10, dtype=torch.float64).problem()
    values = torch.linalg.svdvals(problem.gradient["head.weight"])
    assert float(values[1] / values[0]) > 1e-3
    assert label_claim(problem).at_least <= 1


def test_without_a_learning_rate_signs_still_prove_presence():
    had = classifier(6, steps=3)
    problem = had.problem(lr=None)
    claim = label_claim(problem)
    present = torch.bincount(had.labels, minlength=5) > 0
    assert set(claim.statements) <= {"T1", "T2", "T7"}
    assert bool((claim.lower <= present).all())
    assert bool(claim.lower.any())


@dataclass(frozen=True)
class AdamClient(LocalClient):
    """Says SGD and trains with Adam."""

    def trained(self):
        client = copy.deepcopy(self.module)
        adam = torch.optim.Adam(client.parameters(), lr=self.lr)
        for _ in range(self.steps):
            adam.zero_grad()
            F.cross_entropy(client(self.inputs), self.labels).backward()
            adam.step()
        return client


@pytest.mark.parametrize("seed", range(4))
def test_another_optimizer_proves_nothing_and_is_told(seed):
    had = AdamClient(net("relu", 5, seed=seed), *batch(6, 5, seed=seed), lr=0.01, steps=3)
    problem = had.problem()
    assert not label_claim(problem).lower.any()
    [caveat] = [c for c in caveats_of(problem, had.dump()) if c.code == "GA301"]
    assert caveat.voids
    assert "optimizer" in caveat.message


@pytest.mark.parametrize("decay", [1e-1, 1e-2, 1e-3])
def test_weight_decay_that_nobody_said_proves_nothing_and_is_told(decay):
    had = classifier(6, steps=3, decay=decay)
    problem = had.problem(weight_decay=None)
    assert not label_claim(problem).lower.any()
    assert "GA301" in {c.code for c in caveats_of(problem, had.dump())}
    assert bool(label_claim(had.problem()).lower.any())


# --------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize(
    ("missing", "flag"), [({"lr": None}, "--lr"), ({"steps": None}, "--local-steps")]
)
def test_what_is_missing_is_named_and_the_rest_still_runs(missing, flag):
    had = lenet_client(1, steps=3)
    problem = had.problem(**missing)
    blocked = {attack.name: attack.blocked_by(problem) for attack in ATTACKS}
    for name in ("images.lm", "images.idlg", "images.dlg"):
        assert flag in blocked[name]
    assert blocked["labels.head"] is None
    with pytest.raises(ValueError, match=flag):
        gradient_of(problem, had.inputs.double(), had.labels)


def test_too_many_steps_are_said():
    problem = lenet_client(1, steps=3).problem(steps=5000)
    assert "5000 local steps" in why_not_simulated(problem)


@pytest.mark.parametrize(
    "told",
    [
        {"samples": 2},  # fewer than one step takes
        {"samples": 16},  # more than 3 steps of 4
    ],
)
def test_batches_that_cannot_be(told):
    had = lenet_client(4, steps=3, batch=4)
    with pytest.raises(UsageError, match="local batches of 4, 3 steps"):
        had.problem(**told)


def test_the_guessed_batch_size_proves_no_counts():
    """The client took the same four samples five times; steps times batch would be twenty."""
    had = classifier(4, steps=5, batch=4)
    problem = had.problem(samples=None)
    known = problem.knowledge
    assert known.batch_size == 20
    assert next(a for a in known.assumptions if a.what == "batch size").origin == "assumed"
    assert not known.reduction_declared
    assert bool((label_claim(problem).lower <= torch.bincount(had.labels, minlength=5)).all())


# --------------------------------------------------------------------------- the first layer


class Residual(nn.Module):
    """A first linear layer below things that no chain goes through."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(16, 24), nn.LayerNorm(24)
        self.inner, self.head = nn.Linear(24, 24), nn.Linear(24, 5)

    def forward(self, x):
        u = torch.relu(self.norm(self.first(((x - 0.3) / 0.2).flatten(1))))
        return self.head(u + self.inner(u))


def residual_client(**settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Residual().eval()
    return LocalClient(module, *batch(1, 5), **settings)


@pytest.mark.parametrize(
    "settings",
    [{"steps": 2}, {"steps": 10, "momentum": 0.9}, {"steps": 5, "momentum": 0.5, "decay": 1e-2}],
    ids=str,
)
def test_the_input_of_the_first_layer_is_exact(settings):
    had = residual_client(**settings)
    problem = had.problem()
    assert LayerByLayer().blocked_by(problem) is not None
    assert FirstLayer().blocked_by(problem) is None
    recovery = FirstLayer().run(problem, seed=0, watch=WATCH)
    evidence = examine(problem, recovery, attack="images.first_layer", seconds=0.0)
    assert is_verified(problem, evidence)
    assert min(float(psnr(row, had.inputs.double())) for row in recovery.inputs) > 80
    assert recovery.input_labels[0].tolist() == had.labels.tolist()


def test_without_learning_rate_the_input_is_still_read():
    had = residual_client(steps=4)
    problem = had.problem(lr=None, steps=None)
    recovery = FirstLayer().run(problem, seed=0, watch=WATCH)
    assert recovery.inputs is None
    assert recovery.witnesses == (2,)
    assert recovery.read_from == "first.weight"
    assert float(psnr(to_pixels(problem, recovery.samples), had.inputs.double())) > 80


def test_two_samples_said_to_be_one_give_nothing():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Residual().eval()
    had = LocalClient(module, *batch(2, 5), steps=3)
    problem = had.problem(samples=1)
    recovery = FirstLayer().run(problem, seed=0, watch=WATCH)
    assert recovery.inputs is None
    assert not recovery.links[0].solved


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (residual_client, "one gradient"),
        (lambda: classifier(2, steps=3), "of several"),
        (lambda: lenet_client(1, steps=3), "not the linear layer"),
    ],
)
def test_where_the_first_layer_cannot_be_read(make, reason):
    assert reason in FirstLayer().blocked_by(make().problem())


def test_decay_without_its_numbers_blocks_the_first_layer():
    had = residual_client(steps=3, decay=1e-2)
    assert "--lr" in FirstLayer().blocked_by(had.problem(lr=None))


def test_a_first_layer_without_a_bias_is_open():
    had = residual_client(steps=3)
    had.module.first.bias = None
    assert "no bias" in FirstLayer().blocked_by(had.problem())


# --------------------------------------------------------------------------- batch norm, freezing


def normed(**settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 5)
        )
    return LocalClient(module.eval(), *batch(4, 5), **settings)


def test_batch_norm_in_training_mode_counts_its_steps_and_sends_its_buffers():
    had = normed(steps=3, train=True)
    dump = had.dump()
    after = had.trained().state_dict()
    assert set(dump.buffers) == {name for name, _ in had.module.named_buffers()}
    assert all(torch.allclose(b.to(after[n]), after[n]) for n, b in dump.buffers.items())
    problem = had.problem(steps=None)
    assert problem.knowledge.local.steps == 3
    steps = next(a for a in problem.knowledge.assumptions if a.what == "local steps")
    assert steps.origin == "deduced"
    found = gradient_of(problem, had.inputs.double(), had.labels)
    assert max(residuals_of(problem, found).values()) < tolerance_of(problem)


def test_layers_that_were_not_trained_stay_where_they_are():
    had = lenet_client(2, steps=3)
    frozen = [name for name, _ in had.module.named_parameters()][:2]
    for name, parameter in had.module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    problem = had.problem()
    assert not set(frozen) & set(problem.gradient)
    found = gradient_of(problem, had.inputs.double(), had.labels)
    assert max(residuals_of(problem, found).values()) < tolerance_of(problem)


# --------------------------------------------------------------------------- every attack


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name)
@pytest.mark.parametrize("told", [{}, {"lr": None}, {"steps": None}], ids=str)
@pytest.mark.parametrize("make", [lambda: classifier(1, steps=3), lambda: lenet_client(3, steps=2)])
def test_every_attack_answers_for_an_update(attack, told, make):
    """It says why it cannot look, or makes a claim that the harness can check."""
    problem = make().problem(**told)
    blocked = attack.blocked_by(problem)
    if blocked is not None:
        assert blocked.strip()
        return
    recovery = attack.run(problem, seed=0, watch=Watch(deadline=time.monotonic() + 0.2))
    answer = examine(problem, recovery, attack=attack.name, seconds=0.0)
    assert isinstance(answer, Evidence | Failed)
