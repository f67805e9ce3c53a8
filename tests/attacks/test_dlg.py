"""DLG: pictures and labels together, without reading any label off the head."""

import functools
from dataclasses import replace

import pytest
import torch
from problems import WATCH, client, lenet_client, noised

from auditor.attacks import DLG, PAPER, Search
from auditor.evidence import examine, is_equal, is_verified
from auditor.metrics import match_batch, psnr

QUICK = DLG(search=Search(max_steps=1500))


def evidence_of(problem, recovery):
    return examine(problem, recovery, attack="images.dlg", seconds=0.0)


@functools.cache
def answer(count, seed):
    """Client, problem and what DLG says of it."""
    had = lenet_client(count, seed=seed)
    problem = had.problem()
    return had, problem, QUICK.run(problem, seed=0, watch=WATCH)


@pytest.mark.parametrize("seed", range(4))
def test_the_picture_and_its_label_come_back(seed):
    had, problem, recovery = answer(1, seed)
    evidence = evidence_of(problem, recovery)
    assert is_verified(problem, evidence)
    assert recovery.input_labels[evidence.best].tolist() == had.labels.tolist()
    assert float(psnr(recovery.inputs[evidence.best], had.inputs)) > 40


def test_a_batch_comes_back_in_some_order():
    had = replace(lenet_client(2, seed=0), labels=torch.tensor([2, 1]))
    problem = had.problem()
    recovery = QUICK.run(problem, seed=0, watch=WATCH)
    evidence = evidence_of(problem, recovery)
    found = recovery.inputs[evidence.best]
    match = match_batch(found, had.inputs)
    assert (psnr(found, had.inputs[match]) > 40).all()
    assert recovery.input_labels[evidence.best].tolist() == had.labels[match].tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 2])
def test_a_restart_that_arrived_equals_the_dump_with_hard_labels(seed, count):
    """The search moves free labels; what is claimed, and re-checked, are hard ones."""
    _, problem, recovery = answer(count, seed)
    evidence = evidence_of(problem, recovery)
    assert "reached the goal" in {course.status for course in recovery.courses}
    assert is_equal(problem, evidence)


def test_no_label_is_read_off():
    """Without any gradient of the head DLG still looks, and knows its classes."""
    had = lenet_client()
    sent = {n: g for n, g in had.gradients().items() if not n.startswith("fc")}
    problem = had.problem(sent)
    assert QUICK.blocked_by(problem) is None
    recovery = DLG(search=Search(restarts=2, max_steps=20)).run(problem, seed=0, watch=WATCH)
    assert recovery.labels is None
    assert recovery.input_labels.shape == (2, 1)
    assert recovery.input_labels.max() < 4


def test_shapes():
    problem = client("tanh", 3, 5).problem()
    recovery = DLG(search=Search(restarts=2, max_steps=5)).run(problem, seed=0, watch=WATCH)
    assert recovery.inputs.shape == (2, 3, 1, 4, 4)
    assert recovery.input_labels.shape == (2, 3)
    assert recovery.input_labels.dtype == torch.int64


def test_every_evaluation_is_counted(monkeypatch):
    """Also those that come after the search, with the labels fixed."""
    calls = []
    module = type(lenet_client().module)
    forward = module.forward

    def counted(self, x):
        calls.append(len(x))
        return forward(self, x)

    problem = lenet_client().problem()
    monkeypatch.setattr(module, "forward", counted)
    recovery = DLG(search=Search(max_steps=30)).run(problem, seed=0, watch=WATCH)
    assert recovery.evaluations <= len(calls) <= recovery.evaluations + 4  # and a look at the head


def test_noise_is_not_explained():
    had = lenet_client()
    problem = had.problem(noised(had.gradients(), 1.0))
    recovery = DLG(search=Search(restarts=2, max_steps=100)).run(problem, seed=0, watch=WATCH)
    assert not is_equal(problem, evidence_of(problem, recovery))


def test_settings_of_the_paper():
    """One start each; some diverge, as with the paper's own program."""
    attack = DLG(search=replace(PAPER, max_steps=300))
    clients = [lenet_client(seed=seed) for seed in range(8)]
    found = [attack.run(had.problem(), seed=0, watch=WATCH).inputs for had in clients]
    assert all(len(inputs) == 1 for inputs in found)
    good = [float(psnr(x[0], had.inputs)) > 30 for x, had in zip(found, clients, strict=True)]
    assert sum(good) >= 5


def test_blocked_without_a_batch_size():
    blocked = DLG().blocked_by(client("tanh", 4, 5).problem(size=None))
    assert blocked == "the batch size is unknown: say it with --batch-size"
