"""Negative control: what an attack claims of gradients that cannot hold the data."""

import math
import time
from dataclasses import replace

import pytest
import torch
from problems import WATCH, Says, client, lenet_client
from relu_batches import client_of, perceptron
from trial_attacks import Breaks, Notes, Waits, claim

from auditor.attacks import LayerByLayer, LevenbergMarquardt, LinearRows, Search, Watch
from auditor.evidence import examine
from auditor.metrics import psnr
from auditor.records import Channel
from auditor.trials.negative import SIMILAR, _is_similar, negative_control


def evidence_of(problem, attack, seconds=0.1):
    recovery = attack.run(problem, seed=0, watch=WATCH)
    return examine(problem, recovery, attack=attack.name, seconds=seconds)


def noted(had, **more):
    """The three problems that the control makes of a client's dump."""
    problem, notes = had.problem(), Notes()
    evidence = evidence_of(problem, Says(claim(had.inputs, had.labels)))
    report = negative_control(problem, evidence, notes, seed=3, watch=WATCH, **more)
    return problem, notes, report


def test_noise_has_the_norm_and_nothing_else_of_each_tensor():
    problem, notes, _ = noted(client("tanh", 2))
    for name, sent in problem.gradient.items():
        made = notes.problems[0].gradient[name]
        assert made.norm() == pytest.approx(float(sent.norm()), rel=1e-9)
        if sent.numel() > 50:
            alike = torch.cosine_similarity(made.flatten(), sent.flatten(), dim=0)
            assert abs(float(alike)) < 5 / math.sqrt(sent.numel())


def test_noise_keeps_zeros_and_signs():
    """What a defence left of the dump's form is no reason for an attack to fail."""
    had = client("relu", 2)
    pruned = {n: torch.where(g.abs() > g.abs().median(), g, 0) for n, g in had.gradients().items()}
    for sent, channel in (
        (pruned, Channel(masked=True)),
        ({n: 0.01 * g.sign() for n, g in had.gradients().items()}, Channel(signs=True)),
    ):
        problem, notes = replace(had.problem(sent), channel=channel), Notes()
        evidence = evidence_of(problem, Says(claim(had.inputs, had.labels)))
        negative_control(problem, evidence, notes, seed=3, watch=WATCH)
        for name, part in notes.problems[0].gradient.items():
            assert torch.equal(part == 0, problem.gradient[name] == 0)
            if channel.signs:
                assert torch.allclose(part.abs(), problem.gradient[name].abs())


def test_shuffled_has_the_entries_and_not_the_places():
    problem, notes, _ = noted(client("tanh", 2))
    for name, sent in problem.gradient.items():
        made = notes.problems[1].gradient[name]
        assert torch.equal(made.flatten().sort().values, sent.flatten().sort().values)
        assert not torch.equal(made, sent)


def test_the_others_are_a_gradient_with_the_same_labels():
    had = client("tanh", 2)
    problem, notes, report = noted(had)
    assert report.controls == 3
    made = notes.problems[2].gradient
    # The labels of the head's gradient: the sums of its negative parts say them (two samples).
    bias = made["head.bias"]
    assert {int(k) for k in (bias < 0).nonzero()} == set(had.labels.tolist())
    apart = (made["body.1.weight"] - problem.gradient["body.1.weight"]).norm()
    assert apart > 0.1 * made["body.1.weight"].norm()
    assert float(made["head.bias"].sum().abs()) < 1e-6


@pytest.mark.parametrize(
    ("had", "attack"),
    [
        (client("relu"), LayerByLayer()),
        (client("tanh", 2), LevenbergMarquardt()),
        (lenet_client(), LevenbergMarquardt(search=Search(restarts=2, at_once=1))),
    ],
    ids=["layers", "batch", "lenet"],
)
def test_an_attack_that_reads_the_dump_stands_the_control(had, attack):
    problem = had.problem()
    report = negative_control(
        problem, evidence_of(problem, attack, seconds=2.0), attack, seed=0, watch=WATCH
    )
    assert (report.attack, report.controls, report.recovered) == (attack.name, 3, 0)
    assert "it rebuilt those, as it should" in report.summary


def test_single_inputs_stand_the_control():
    had = client_of(6, module=perceptron(units=64))
    problem, attack = had.problem(), LinearRows()
    evidence = evidence_of(problem, attack)
    assert "verified" in evidence.samples  # or there is nothing to test
    report = negative_control(problem, evidence, attack, seed=0, watch=WATCH)
    assert report.controls == 2  # the labels are not known
    assert report.recovered == 0


def test_an_attack_that_makes_its_picture_up_does_not():
    had = client("tanh")
    problem, attack = had.problem(), Says(claim(had.inputs, had.labels))
    report = negative_control(problem, evidence_of(problem, attack), attack, seed=0, watch=WATCH)
    assert (report.controls, report.recovered) == (3, 3)
    assert "noise" in report.summary
    assert "does not come from the data" in report.summary


@pytest.mark.parametrize(("same", "recovered"), [(1, 0), (2, 0), (3, 3)])
def test_a_batch_recurs_when_most_of_it_does(same, recovered):
    """One blur that is like one of the claim says nothing; the attack here makes `same` up."""
    had = client("tanh", 4)
    problem, drawn = had.problem(), torch.Generator().manual_seed(2)
    other = torch.rand(had.inputs.shape, generator=drawn).to(had.inputs)
    other[:same] = had.inputs[:same]
    evidence = evidence_of(problem, Says(claim(had.inputs, had.labels)))
    attack = Says(claim(other, had.labels))
    report = negative_control(problem, evidence, attack, seed=0, watch=WATCH)
    assert (report.controls, report.recovered) == (3, recovered)


def test_what_a_control_does_hold_is_no_recurrence():
    """Pictures nearer to those of the control than to the claim are what it had to find."""
    claimed = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
    found = claimed + 0.05
    assert _is_similar(found, claimed, besides=None)
    assert _is_similar(found, claimed, besides=claimed + 0.2)
    assert not _is_similar(found, claimed, besides=claimed + 0.06)


def test_a_claim_that_noise_fits_as_well_does_not_stand():
    """The control's picture is another one, but it is as near to noise as ours to the dump."""
    had = client("tanh")
    problem, other = had.problem(), Says(claim(1 - had.inputs, had.labels))
    assert float(psnr(1 - had.inputs, had.inputs)) < SIMILAR
    near = evidence_of(problem, Says(claim(had.inputs, had.labels)))
    assert negative_control(problem, near, other, seed=0, watch=WATCH).recovered == 0
    far = replace(near, worst_residuals=(3.0,))  # noise is at about the root of two
    report = negative_control(problem, far, other, seed=0, watch=WATCH)
    assert report.recovered == 2


def test_each_control_has_as_long_as_the_claim_took():
    had = client("tanh")
    problem, notes = had.problem(), Notes()
    evidence = evidence_of(problem, Says(claim(had.inputs, had.labels)), seconds=5.0)
    negative_control(problem, evidence, notes, seed=0, watch=WATCH)
    assert all(4 < seconds <= 5 for seconds in notes.seconds)


def test_a_control_that_was_cut_short_proves_nothing():
    """Less time than the claim had, and nothing found: who knows what the rest would have given."""
    had = client("tanh")
    problem = had.problem()
    for seconds, counted in ((0.05, 3), (60.0, 0)):
        evidence = evidence_of(problem, Says(claim(had.inputs, had.labels)), seconds=seconds)
        watch = Watch(deadline=time.monotonic() + 4)
        report = negative_control(problem, evidence, Waits(), seed=0, watch=watch)
        assert (report.controls, report.recovered) == (counted, 0)
    assert "as long as the claim" in report.summary


def test_one_that_ended_by_itself_or_gave_as_much_needs_no_more_time():
    had = client("tanh")
    problem, said = had.problem(), Says(claim(had.inputs, had.labels))
    evidence = evidence_of(problem, said, seconds=60.0)
    for attack, recovered in ((Notes(), 0), (said, 3)):
        watch = Watch(deadline=time.monotonic() + 30)
        report = negative_control(problem, evidence, attack, seed=0, watch=watch)
        assert (report.controls, report.recovered) == (3, recovered)


def test_no_time_is_no_control():
    had = client("tanh")
    problem = had.problem()
    evidence = evidence_of(problem, Says(claim(had.inputs, had.labels)))
    over = Watch(deadline=time.monotonic() - 1)
    report = negative_control(problem, evidence, Waits(), seed=0, watch=over)
    assert (report.controls, report.recovered) == (0, 0)
    assert "the time was over" in report.summary


def test_an_attack_that_ends_in_an_error_claimed_nothing():
    had = client("tanh")
    problem = had.problem()
    evidence = evidence_of(problem, Says(claim(had.inputs, had.labels)))
    broken = Breaks("linalg.svd: the algorithm failed to converge")
    assert negative_control(problem, evidence, broken, seed=0, watch=WATCH).recovered == 0
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        negative_control(problem, evidence, Breaks("a mistake of ours"), seed=0, watch=WATCH)


def test_the_seed_decides():
    had = client("tanh", 2)
    (_, one, _), (_, same, _) = noted(had), noted(had)
    for mine, theirs in zip(one.problems, same.problems, strict=True):
        assert all(torch.equal(mine.gradient[n], theirs.gradient[n]) for n in mine.gradient)
