"""Whole batches from the zeros of a first ReLU layer: exact, or nothing."""

import time
from dataclasses import replace

import pytest
import torch
from problems import WATCH, Client, noised, rounded
from relu_batches import Normalised, client_of, perceptron, pictures, with_batch_norm
from torch import nn

from auditor.attacks.base import Watch
from auditor.attacks.spear import Spear
from auditor.evidence import examine, is_verified
from auditor.findings import findings_of
from auditor.metrics import match_batch, psnr
from auditor.problem import to_pixels
from auditor.reasons import why_nothing
from auditor.records import Failed

ATTACK = Spear()


def read(problem, seed=0, attack=ATTACK):
    assert attack.blocked_by(problem) is None
    recovery = attack.run(problem, seed=seed, watch=WATCH)
    return recovery, examine(problem, recovery, attack=attack.name, seconds=0.0)


def decibels(had, problem, row):
    """The worst picture of the batch, and whether every picture has its own label."""
    truth = to_pixels(problem, had.inputs.double())
    match = match_batch(to_pixels(problem, row.double()), truth)
    return float(psnr(to_pixels(problem, row.double()), truth[match]).min()), match


@pytest.mark.parametrize("count", [2, 3, 5, 8])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_every_picture_and_its_label(count, reduction):
    had = client_of(count, reduction=reduction)
    problem = had.problem()
    recovery, evidence = read(problem)
    assert is_verified(problem, evidence)
    for row, labels in zip(recovery.inputs, recovery.input_labels, strict=True):
        worst, match = decibels(had, problem, row)
        assert worst > 100
        assert torch.equal(labels, had.labels[match])
    codes = [f.code for f in findings_of(problem, evidence, None)]
    assert codes == ["GA201"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Normalised(perceptron()),
        lambda: nn.Sequential(perceptron(classes=16), nn.ReLU(), nn.Linear(16, 5)),
        lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), *list(perceptron())[1:]),
    ],
)
def test_models_around_the_layer(make):
    had = client_of(4, module=make().eval())
    problem = had.problem()
    recovery, evidence = read(problem)
    assert is_verified(problem, evidence)
    assert decibels(had, problem, recovery.inputs[0])[0] > 100


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_batch_norm_behind_the_layer_is_not_in_the_way(mode):
    had = client_of(4, module=with_batch_norm(3), mode=mode)
    problem = had.problem()
    recovery, evidence = read(problem)
    assert is_verified(problem, evidence)
    worst, match = decibels(had, problem, recovery.inputs[0])
    assert worst > 100
    assert torch.equal(recovery.input_labels[0], had.labels[match])


def test_model_units():
    had = client_of(4)
    had = replace(had, inputs=(had.inputs - 0.5) / 0.25)
    problem = had.problem(mean=(0.5,), std=(0.25,))
    recovery, evidence = read(problem)
    assert is_verified(problem, evidence)
    assert decibels(had, problem, recovery.inputs[0])[0] > 100


def test_smoothed_labels():
    had = client_of(4, smoothing=0.1)
    problem = had.problem()
    recovery, evidence = read(problem)
    assert is_verified(problem, evidence)
    assert torch.equal(
        recovery.input_labels[0], had.labels[decibels(had, problem, recovery.inputs[0])[1]]
    )


def test_a_coarse_dump_gives_what_it_holds():
    had = client_of(3)
    problem = had.problem(rounded(had.gradients(), torch.float16))
    recovery, _ = read(problem)
    assert recovery.inputs is None or decibels(had, problem, recovery.inputs[0])[0] > 30


def test_two_samples_alike_leave_the_batch_open():
    """One picture twice: the rank is lower, and the pictures come one by one."""
    had = client_of(4)
    inputs = had.inputs[[0, 1, 2, 2]]
    problem = replace(had, inputs=inputs).problem()
    recovery, evidence = read(problem)
    assert recovery.inputs is None
    assert len(recovery.samples) == 3
    assert evidence.samples == ("verified",) * 3
    (finding,) = findings_of(problem, evidence, None)
    assert finding.code == "GA204"


def test_without_the_heads_gradient_pictures_come_without_labels():
    had = client_of(3)
    problem = had.problem({n: g for n, g in had.gradients().items() if not n.startswith("3")})
    recovery, evidence = read(problem)
    assert recovery.inputs is None
    assert evidence.samples == ("verified",) * 3


def test_the_mask_check_turns_wrong_inputs_down(monkeypatch):
    """Another layer's offsets: the zeros are there, and the inputs do not make them."""
    had = client_of(4)
    other = perceptron(seed=9)
    other.load_state_dict(other.state_dict() | {"3.weight": had.module[3].weight})
    problem = Client(other, had.inputs, had.labels).problem(had.gradients())
    recovery = ATTACK.run(problem, seed=0, watch=WATCH)
    assert recovery.inputs is None
    assert recovery.samples is None
    evidence = examine(problem, recovery, attack=ATTACK.name, seconds=0.0)
    assert findings_of(problem, evidence, None) == ()
    assert "stands out of" in why_nothing(problem, evidence)


def test_time_that_is_up():
    problem = client_of(4).problem()
    begun = time.monotonic()
    recovery = ATTACK.run(problem, seed=0, watch=Watch(deadline=begun - 1))
    assert recovery.expired
    found = examine(problem, recovery, attack=ATTACK.name, seconds=0.0)
    assert isinstance(found, Failed)


def withheld(had, name):
    return had.problem({n: g for n, g in had.gradients().items() if n != name})


def written_late():
    return Client(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)),
                  pictures(3), torch.arange(3))  # fmt: skip


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (lambda: client_of(3).problem(size=None), "batch size is unknown"),
        (lambda: client_of(1).problem(), "images.layers reads one sample"),
        (lambda: client_of(5).problem(size=3), "a rank above 3"),
        (lambda: client_of(3).problem(noised(client_of(3).gradients(), 0.01)), "was added"),
        (lambda: client_of(70).problem(), "too many for a layer"),
        (lambda: client_of(40).problem(), "random draws are expected"),
        (lambda: withheld(client_of(3), "1.bias"), "no bias in the dump"),
        (lambda: client_of(3, module=perceptron(bias=False)).problem(), "no bias in the dump"),
        (lambda: withheld(client_of(3), "1.weight"), "holds no gradient"),
        (lambda: client_of(3, module=perceptron(activation=nn.Tanh)).problem(), "no ReLU"),
        (lambda: written_late().problem(), "cannot be undone"),
        (lambda: client_of(3, module=with_batch_norm(1), mode="train").problem(), "be undone"),
    ],
)
def test_why_it_cannot_look(problem, words):
    reason = ATTACK.blocked_by(problem())
    assert reason is not None
    assert words in reason
