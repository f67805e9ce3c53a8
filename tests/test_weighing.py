"""What is said of claims without the truth, and what follows for findings, caveats and the gate."""

from dataclasses import replace

import pytest
import torch
from problems import WATCH, Client, case_of, lenet_client, noised, options_of
from torch import nn

from auditor import weighing
from auditor.attacks import Watch
from auditor.audit import run_audit
from auditor.bounds.fisher import fisher_of
from auditor.bounds.noise import noise_of
from auditor.defences.seen import look
from auditor.evidence import examine
from auditor.records import ControlReport, Recovery
from auditor.weighing import shares

MATCHING = ("labels.head", "images.defended", "images.lm")


def codes(audit):
    return {finding.code: finding for finding in audit.findings}


def recovering(problem, evidence, attack, *, seed, watch):
    return ControlReport(attack.name, 3, 1, "The attack claims as much of noise.")


@pytest.fixture(scope="module")
def had():
    return lenet_client(size=8, seed=1)


def audited(had, gradients, attacks=MATCHING, **more):
    case = case_of(had, gradients)
    return run_audit(case, options_of(attacks=attacks, **more), fail_on="high")


@pytest.fixture(scope="module")
def through_noise(had):
    return audited(had, noised(had.gradients(), 1e-3))


def test_a_picture_behind_noise_is_a_leak_and_fails_the_gate(through_noise):
    audit = through_noise.audit
    [seen] = [each for each in audit.trust.defences if each.kind == "noise"]
    assert seen.strength == pytest.approx(through_noise.problem.channel.sigma)
    finding = codes(audit)["GA205"]
    assert finding.certainty == "verified"
    assert "up to its noise" in finding.summary
    assert audit.verdict.status == "leak"
    assert [c.code for c in audit.caveats if c.voids] == []
    assert "GA301" in [c.code for c in audit.caveats]  # it is said, and voids no such claim
    assert audit.gate.exit_code == 1
    assert audit.trust.control is not None
    assert audit.trust.control.recovered == 0


def test_its_bound_is_that_of_the_estimated_noise(through_noise):
    bound, problem = through_noise.audit.trust.bound, through_noise.problem
    assert bound.origin == "estimated noise"
    assert bound.sigma == pytest.approx(problem.channel.sigma, rel=1e-3)


def test_a_claim_whose_control_recovers_is_no_finding_behind_noise(had, monkeypatch):
    monkeypatch.setattr(weighing, "negative_control", recovering)
    audit = audited(had, noised(had.gradients(), 1e-3)).audit
    assert not {"GA201", "GA202", "GA205"} & codes(audit).keys()
    assert "GA320" in [caveat.code for caveat in audit.caveats]
    assert audit.verdict.status == "inconclusive"
    assert audit.gate.exit_code == 4


def test_a_claim_whose_control_recovers_is_not_verified(had, monkeypatch):
    monkeypatch.setattr(weighing, "negative_control", recovering)
    monkeypatch.setattr(weighing, "_is_doubtful", lambda *_: True)
    audit = audited(had, had.gradients(), attacks=("images.lm",)).audit
    assert codes(audit)["GA202"].certainty == "consistent"
    assert "GA201" not in codes(audit)
    assert "GA320" in [caveat.code for caveat in audit.caveats]


def test_a_clear_dump_needs_no_control_and_is_bounded_by_rounding(had):
    result = audited(had, had.gradients(), attacks=("images.lm",))
    trust = result.audit.trust
    assert codes(result.audit)["GA201"].certainty == "verified"
    assert trust.control is None
    assert trust.canaries is None
    assert trust.bound.origin == "rounding of the dump"


def test_what_a_search_left_does_not_bound_other_attacks(had):
    """A claim that is equal to the dump, though far from its rounding."""
    case, problem = case_of(had), had.problem()
    drawn = torch.Generator().manual_seed(4)
    off = 1e-4 * torch.randn(2, *had.inputs.shape, generator=drawn)
    rows = had.inputs.double() + off.double()
    recovery = Recovery(inputs=rows, input_labels=had.labels.repeat(2, 1))
    claim = examine(problem, recovery, attack="images.lm", seconds=1.0)
    options = options_of(attacks=("images.lm",))
    weighed = weighing.weigh(problem, look(problem, case.dump), (claim,), options, WATCH)
    [appraisal] = weighed.appraisals.values()
    assert appraisal.fit.at_floor
    assert appraisal.fit.ratio > 10
    inputs, labels = recovery.inputs[claim.best], recovery.input_labels[claim.best]
    alone = fisher_of(problem, inputs, labels, noise=noise_of(problem))
    assert weighed.trust.bound.sigma == pytest.approx(alone.sigma)
    assert appraisal.fisher.sigma > 3 * alone.sigma


def relu_client(seed):
    torch.manual_seed(seed)
    layers = [nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 12), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Linear(12, 5)).eval()
    drawn = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return Client(module, drawn, torch.tensor([1, 4]))


def test_labels_of_another_models_dump_are_no_finding():
    ours, others = relu_client(0), relu_client(1)
    right = audited(ours, ours.gradients(), attacks=("labels",)).audit
    assert right.trust.belongs == "shown"
    assert codes(right).keys() & {"GA101", "GA102"}
    wrong = audited(ours, others.gradients(), attacks=("labels",)).audit
    assert wrong.trust.belongs == "contradicted"
    assert wrong.findings == ()
    assert wrong.verdict.status == "inconclusive"
    assert wrong.gate.exit_code == 4


@pytest.mark.parametrize(("evidence", "shown"), [("embed", 1), ("separate", 0), ("none", 0)])
def test_error_bars_only_where_the_picture_may_be(had, monkeypatch, evidence, shown):
    """They cost a Jacobian, and show the shapes of the picture."""
    made, true = [], weighing.heat_map
    monkeypatch.setattr(weighing, "heat_map", lambda fisher: made.append(1) or true(fisher))
    options = replace(options_of(attacks=("images.lm",)), evidence=evidence)
    audit = run_audit(case_of(had), options).audit
    assert len(made) == shown
    assert [exhibit.error_bar is not None for exhibit in audit.exhibits] == [True] * shown


def test_the_time_is_shared():
    options = options_of()
    assert shares(WATCH, options) == (WATCH, WATCH)
    for what_if, few, ends in (
        (False, False, (0.75, 1.0)),
        (True, False, (0.4, 0.6)),
        (False, True, (0.5, 1.0)),  # only a control as long as the claim makes it count
        (True, True, (0.3, 0.6)),
    ):
        watch = Watch(deadline=weighing.time.monotonic() + 1000)
        parts = shares(watch, replace(options, what_if=what_if), few=few)
        left = [part.deadline - (watch.deadline - 1000) for part in parts]
        assert left == pytest.approx([1000 * end for end in ends], abs=1)


def test_canaries_only_with_the_what_if_and_none_is_said(had, monkeypatch):
    case = case_of(had)
    problem = had.problem()
    looked = look(problem, case.dump)
    monkeypatch.setattr(weighing, "canaries", lambda *_, **__: None)
    options = replace(options_of(attacks=("labels",)), what_if=True)
    said = weighing.weigh(problem, looked, (), options, WATCH).trust.unsaid
    assert any("simulated clients" in each for each in said)
    without = weighing.weigh(problem, looked, (), replace(options, what_if=False), WATCH)
    assert not any("simulated clients" in each for each in without.trust.unsaid)
