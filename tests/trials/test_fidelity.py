"""How close a claim is, without truth: monotone, gated, and never more than restarts agree to."""

import itertools
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from problems import WATCH, Says, client, lenet_client
from relu_batches import client_of, perceptron
from trial_attacks import claim, generator

from auditor.attacks import HeadLabels, LayerByLayer, LevenbergMarquardt, LinearRows
from auditor.bounds.fisher import Fisher
from auditor.bounds.fit import Fit
from auditor.evidence import EXACT, best_pixels, examine, is_close, is_equal
from auditor.metrics import psnr
from auditor.records import Channel, LinkReport, Recovery
from auditor.trials.appraisal import appraise
from auditor.trials.fidelity import (
    CLOSED,
    GUIDED,
    PLAIN,
    UNCONFIRMED,
    explains,
    fidelity_of,
    of_features,
    supported,
)

RESIDUALS = [0.0, *(10.0**k for k in range(-9, 5)), math.inf]
DECIBELS = [None, 0.0, 5.0, 11.0, 19.0, 20.0, 25.0, 40.0, 90.0]
FLOOR = Fit(1.0, True, 100)
ABOVE = Fit(1e4, False, 100)


def fisher(posterior):
    """One that predicts an error of this mean square, (N,), for pictures of 4x4."""
    spread = torch.tensor(posterior, dtype=torch.float64).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return Fisher(None, spread, math.inf, 1.0, 16, 1e-3, "dense", 0.0)


def evidence_of(problem, attack):
    recovery = attack.run(problem, seed=0, watch=WATCH)
    return examine(problem, recovery, attack=attack.name, seconds=0.1)


def said(had, inputs):
    problem = had.problem()
    return problem, evidence_of(problem, Says(claim(inputs, had.labels)))


# --------------------------------------------------------------------------- properties


CLOSED_VALUES = [0.0, 7.0, 12.0, CLOSED]


@pytest.mark.parametrize("at_floor", [False, True])
def test_never_falls_with_any_of_its_sources(at_floor):
    for one, two in itertools.product(DECIBELS, DECIBELS):
        of = partial(supported, at_floor=at_floor)
        for found in (
            [of(c, predicted=one, agreement=two) for c in CLOSED_VALUES],
            *([of(c, predicted=p, agreement=one) for p in DECIBELS[1:]] for c in CLOSED_VALUES),
            *([of(c, predicted=one, agreement=a) for a in DECIBELS[1:]] for c in CLOSED_VALUES),
        ):
            assert found == sorted(found)


def test_the_gate_opens_upwards():
    for closed, p, a in itertools.product(CLOSED_VALUES, DECIBELS, DECIBELS):
        shut, wide = (
            supported(closed, at_floor=there, predicted=p, agreement=a) for there in (False, True)
        )
        assert shut <= min(wide, CLOSED)


@pytest.mark.parametrize("at_floor", [False, True])
def test_never_above_what_is_known(at_floor):
    for closed, p, a in itertools.product(CLOSED_VALUES, DECIBELS, DECIBELS):
        found = supported(closed, at_floor=at_floor, predicted=p, agreement=a)
        assert math.isfinite(found)
        assert found <= (200.0 if a is None else a)
        if p is not None:
            assert found <= max(p, closed)
        if not at_floor:
            assert found <= closed


@pytest.mark.parametrize("calibration", [PLAIN, GUIDED], ids=["plain", "guided"])
def test_calibration_never_rises_with_the_residual(calibration):
    for size in (1, 2, 8):
        found = [calibration.at(residual, size) for residual in RESIDUALS]
        assert found == sorted(found, reverse=True)
        assert all(0 <= value <= CLOSED for value in found)
    assert calibration.at(math.nan, 1) == calibration.at(math.inf, 8) == 0.0
    assert calibration.at(0.1, 8) > calibration.at(0.1, 1)
    assert calibration.at(1e-9, 64) == CLOSED


def test_the_documented_numbers_are_these():
    text = (Path(__file__).parents[2] / "docs" / "trust.md").read_text(encoding="utf-8")
    for name, calibration in (("plain matching", PLAIN), ("a prior chose", GUIDED)):
        row = (calibration.at_one, calibration.decade, calibration.doubling)
        assert f"| {name} | {' | '.join(str(value) for value in row)} |" in text


# --------------------------------------------------------------------------- claims


def test_prediction_is_that_of_the_fisher_information():
    had = client("tanh", 2)
    problem, evidence = said(had, had.inputs)
    found = fidelity_of(problem, evidence, fisher([1e-3, 1e-5]), FLOOR)
    assert found.decibels.tolist() == pytest.approx([30.0, 50.0])
    assert found.best == pytest.approx(50.0)
    assert "Fisher" in found.basis


def test_a_claim_above_the_floor_is_worth_little_whatever_is_predicted():
    had = client("tanh")
    problem, evidence = said(had, 1 - had.inputs)
    found = fidelity_of(problem, evidence, fisher([1e-20]), ABOVE)
    assert found.best <= CLOSED
    assert "above the floor" in found.basis
    assert fidelity_of(problem, evidence, None, None).best == found.best


def test_a_claim_alone_is_worth_no_more_than_unconfirmed():
    had = client("tanh")
    problem, evidence = said(had, had.inputs)
    assert fidelity_of(problem, evidence, None, FLOOR).best == UNCONFIRMED


def test_restarts_that_differ_bring_it_down():
    had = client("tanh")
    problem = had.problem()
    noise = torch.randn(had.inputs.shape, generator=generator())
    near = had.inputs + 1e-3 * noise
    rows = Recovery(
        inputs=torch.stack([had.inputs, near]).double(),
        input_labels=had.labels.expand(2, -1),
    )
    evidence = evidence_of(problem, Says(rows))
    (agreement,) = evidence.agreement
    found = fidelity_of(problem, evidence, fisher([1e-12]), FLOOR)
    assert found.best == pytest.approx(agreement)
    assert "agree" in found.basis


def test_restarts_that_share_noise_confirm_little():
    had = client("tanh")
    noisy = replace(had.problem(), channel=Channel(sigma=1e-3))
    twice = Recovery(
        inputs=had.inputs.double().expand(2, *had.inputs.shape),
        input_labels=had.labels.expand(2, -1),
    )
    evidence = evidence_of(had.problem(), Says(twice))
    assert min(evidence.agreement) > 100
    assert fidelity_of(had.problem(), evidence, None, FLOOR).best > 100
    assert fidelity_of(noisy, evidence, None, FLOOR).best == UNCONFIRMED
    assert fidelity_of(noisy, evidence, fisher([1e-4]), FLOOR).best == pytest.approx(40.0)


@pytest.mark.parametrize(("residual", "worth"), [(0.5, 40.0), (0.999, 9.0)])
def test_what_explains_no_more_than_chance_is_worth_little(residual, worth):
    """A noise that was estimated too large makes everything equal to the dump."""
    had = client("tanh")
    noisy = replace(had.problem(), channel=Channel(sigma=1.0))
    problem, evidence = said(had, had.inputs)
    entries = sum(sent.numel() for sent in problem.gradient.values())
    assert 1 - 0.5**2 > 3 * (16 + 5 * 32**0.5) / entries > 1 - 0.999**2  # between the two cases
    found = replace(evidence, residuals=(residual,), worst_residuals=(residual,))
    assert explains(noisy, found) == (worth > 9)
    assert explains(problem, found)  # nothing was added to the dump
    assert fidelity_of(noisy, found, fisher([1e-4]), FLOOR).best <= worth + 1e-9


@pytest.mark.parametrize(("residual", "explained"), [(0.05, True), (0.5, False), (0.9, False)])
def test_a_batch_with_many_pixels_can_explain_a_dump_too(residual, explained):
    """Three times the share of chance is more than there is: then little may be left instead."""
    had = lenet_client(64)
    noisy = replace(had.problem(), channel=Channel(sigma=1.0))
    _, evidence = said(had, had.inputs)
    entries = sum(sent.numel() for sent in noisy.gradient.values())
    chance = (had.inputs.numel() + 5 * (2 * had.inputs.numel()) ** 0.5) / entries
    assert 1 / 3 < chance < 0.9
    found = replace(evidence, residuals=(residual,), worst_residuals=(residual,))
    assert explains(noisy, found) == explained
    worse = replace(found, worst_residuals=(0.9,))  # one layer is left as it was
    assert not explains(noisy, worse)


def test_each_sample_has_what_is_told_of_it():
    had = client("tanh", 2)
    problem, evidence = said(had, had.inputs)
    problem = replace(problem, channel=Channel(sigma=1e-9))
    found = replace(evidence, told=(True, False))
    of = fidelity_of(problem, found, fisher([1e-4, 1e-4]), FLOOR)
    assert of.decibels.tolist() == [pytest.approx(40.0), CLOSED]


@pytest.mark.parametrize(
    ("residual", "worth"), [(0.0, CLOSED), (0.02, CLOSED), (0.1, 20.0), (0.178, 15.0), (1.0, 0.0)]
)
def test_a_picture_below_features_that_were_read(residual, worth):
    assert of_features(residual) == pytest.approx(worth, abs=0.02)
    assert of_features(None) == 0.0


def links_of(*ends):
    one = LinkReport("a", 9, 20, 0, 0.0, 1e-7, 1.0, 1, "reached the goal", False, True)
    last = LinkReport("picture", 9, 20, 0, 0.0, ends[-1], 1.0, 9, "searched", False, False)
    solved = [replace(one, solved=holds) for holds in ends[:-1]]
    return (*solved, last)


@pytest.mark.parametrize(
    ("ends", "worst", "close"),
    [
        ((True, True, 0.05), 0.3, True),
        ((True, True, 0.05), 0.4, False),  # a tensor is left
        ((True, True, 0.2), 0.3, False),  # the features are not made
        ((True, False, 0.05), 0.3, False),  # they were not read
        ((0.05,), 0.3, False),  # there are none
    ],
)
def test_a_search_below_features_is_close(ends, worst, close):
    had = client("relu")
    problem, evidence = said(had, had.inputs)
    recovery = replace(evidence.recovery, links=links_of(*ends))
    found = replace(evidence, recovery=recovery, residuals=(worst,), worst_residuals=(worst,))
    assert is_close(problem, found) == close
    assert not is_equal(problem, found)
    if close:
        assert fidelity_of(problem, found, None, ABOVE).best == CLOSED


def test_single_inputs_have_one_each():
    had = client_of(6, module=perceptron(units=64))
    problem = had.problem()
    evidence = evidence_of(problem, LinearRows())
    found = fidelity_of(problem, evidence, None, None)
    assert len(found.decibels) == sum(word is not None for word in evidence.samples)
    assert found.best == EXACT


def test_labels_alone_have_none():
    problem = client("tanh").problem()
    appraisal = appraise(problem, evidence_of(problem, HeadLabels()))
    assert appraisal.fidelity is None
    assert appraisal.unsaid == ()


# --------------------------------------------------------------------------- against the truth


@pytest.mark.parametrize(
    ("had", "attack"),
    [(client("relu"), LayerByLayer()), (lenet_client(size=8), LevenbergMarquardt())],
    ids=["read", "searched"],
)
def test_not_far_above_the_truth(had, attack):
    problem = had.problem()
    evidence = evidence_of(problem, attack)
    appraisal = appraise(problem, evidence)
    true = float(psnr(best_pixels(problem, evidence), had.inputs))
    assert appraisal.fit.at_floor
    assert appraisal.fisher is not None
    assert appraisal.unsaid == ()
    assert 40 < appraisal.fidelity.best < true + 6


def test_a_stuck_search_has_no_bound():
    had = lenet_client(size=8)
    problem, evidence = said(had, torch.rand(had.inputs.shape, generator=generator(9)))
    appraisal = appraise(problem, evidence)
    assert not appraisal.fit.at_floor
    assert appraisal.fisher is None
    assert "above the floor" in appraisal.unsaid[0]
    assert appraisal.fidelity.best < 20


def test_a_budget_that_ended_is_said():
    had = client("tanh")
    problem, evidence = said(had, had.inputs)
    appraisal = appraise(problem, evidence, expired=lambda: True)
    assert appraisal.fisher is None
    assert "in the time" in appraisal.unsaid[0]
    assert appraisal.fidelity.best == UNCONFIRMED
