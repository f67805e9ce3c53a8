"""iDLG: on small smooth networks the picture comes back, to its last visible digit."""

from dataclasses import replace

import pytest
import torch
from problems import WATCH, client, lenet_client, noised

from auditor.attacks import IDLG, PAPER, Search
from auditor.evidence import examine, is_verified
from auditor.metrics import match_batch, psnr

QUICK = IDLG(search=Search(max_steps=1500))


def best_of(problem, recovery):
    evidence = examine(problem, recovery, attack="images.idlg", seconds=0.0)
    return evidence, recovery.inputs[evidence.best]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 2])
def test_pictures_come_back(seed, count):
    had = lenet_client(count, seed=seed)
    if count == 2:  # two classes: the proved labels are complete
        had = replace(had, labels=torch.tensor([1, 2]))
    problem = had.problem()
    evidence, found = best_of(problem, QUICK.run(problem, seed=0, watch=WATCH))
    assert is_verified(problem, evidence)
    true = had.inputs.double()
    assert (psnr(found, true[match_batch(found, true)]) > 40).all()


def test_labels_are_those_of_the_claim_for_every_restart():
    had = replace(lenet_client(2), labels=torch.tensor([3, 1]))
    recovery = QUICK.run(had.problem(), seed=0, watch=WATCH)
    restarts = len(recovery.inputs)
    assert recovery.input_labels.tolist() == [[1, 3]] * restarts
    assert recovery.inputs.shape == (restarts, 2, 1, 8, 8)
    assert len(recovery.courses) == restarts
    assert recovery.evaluations > 0
    assert not recovery.expired


@pytest.mark.parametrize(("reduction", "smoothing"), [("sum", 0.0), ("mean", 0.1), ("sum", 0.1)])
def test_other_losses(reduction, smoothing):
    had = lenet_client(reduction=reduction, smoothing=smoothing)
    problem = had.problem()
    evidence, _ = best_of(problem, QUICK.run(problem, seed=0, watch=WATCH))
    assert is_verified(problem, evidence)


def test_normalised_inputs_start_and_end_in_pixels():
    """The client normalised; the picture that comes back is not normalised."""
    had = lenet_client()
    normal = replace(had, inputs=(had.inputs - 0.4) / 0.25)
    problem = normal.problem(mean=(0.4,), std=(0.25,))
    evidence, found = best_of(problem, QUICK.run(problem, seed=0, watch=WATCH))
    assert is_verified(problem, evidence)
    assert float(psnr(found * 0.25 + 0.4, had.inputs)) > 40


def test_a_wrong_label_cannot_be_verified():
    """The head says class a; pictures that explain the dump with another are not found."""
    had = lenet_client(seed=2)
    problem = had.problem()
    recovery = QUICK.run(problem, seed=0, watch=WATCH)
    wrong = (recovery.input_labels + 1) % 4
    evidence, _ = best_of(problem, replace(recovery, input_labels=wrong))
    assert not is_verified(problem, evidence)
    assert min(evidence.worst_residuals) > 0.1


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_a_noised_dump_is_not_explained(sigma):
    had = lenet_client()
    problem = had.problem(noised(had.gradients(), sigma))
    search = Search(restarts=2, max_steps=100)
    evidence, _ = best_of(problem, IDLG(search=search).run(problem, seed=0, watch=WATCH))
    assert not is_verified(problem, evidence)
    assert evidence.agreeing == 0


def test_settings_of_the_paper():
    had = lenet_client(seed=1)
    problem = had.problem()
    recovery = IDLG(search=replace(PAPER, max_steps=300)).run(problem, seed=0, watch=WATCH)
    assert len(recovery.inputs) == 1
    assert float(psnr(recovery.inputs[0], had.inputs)) > 30


def test_blocked_without_a_batch_size():
    blocked = IDLG().blocked_by(client("tanh", 4, 5).problem(size=None))
    assert blocked == "the batch size is unknown: say it with --batch-size"


def test_blocked_without_a_head():
    had = client("tanh", 4, 5)
    sent = {n: g for n, g in had.gradients().items() if n.startswith("body")}
    assert (
        IDLG().blocked_by(had.problem(sent)) == "the head's gradient gives no labels to start from"
    )
