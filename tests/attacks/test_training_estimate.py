"""Learning rate and local steps from the dump alone, against what the client really did."""

from dataclasses import replace

import pytest
import torch
from clients import LocalClient
from problems import WATCH, batch, net
from test_updates import lenet_client, residual_client
from torch import nn

from auditor.attacks import LayerByLayer, label_claim
from auditor.attacks.training_estimate import with_estimated_training
from auditor.checks import caveats_of, scale_caveats
from auditor.evidence import examine, is_proved, is_verified
from auditor.findings import findings_of
from auditor.problem import (
    gradient_of,
    is_one_gradient,
    is_scaled,
    read_as,
    residuals_of,
    tolerance_of,
    why_not_simulated,
)

NOTHING = {"lr": None, "steps": None}


def estimated(had, **told):
    return with_estimated_training(had.problem(**told), seed=0, watch=WATCH)


def rederived(problem, had, labels=None):
    """The worst residual of what the client really had."""
    labels = had.labels if labels is None else labels
    found = gradient_of(problem, had.inputs.to(next(iter(problem.gradient.values()))), labels)
    return max(residuals_of(problem, found).values())


@pytest.mark.parametrize(
    ("count", "told", "settings"),
    [
        (1, NOTHING, {"steps": 1}),
        (1, NOTHING, {"steps": 5}),
        (2, NOTHING, {"steps": 4, "momentum": 0.9}),
        (2, {"lr": None}, {"steps": 3}),
        (2, {"steps": None}, {"steps": 4, "decay": 1e-2}),
        (1, {"steps": None}, {"steps": 2, "epochs": 2}),
        (1, {"steps": None}, {"steps": 3, "reduction": "sum"}),
    ],
    ids=str,
)
def test_the_training_is_found(count, told, settings):
    had = lenet_client(count, **settings)
    problem = estimated(had, **told)
    local = problem.knowledge.local
    assert local.steps == had.steps
    assert local.lr == pytest.approx(had.lr, rel=1e-4)
    assert local.estimate.also == ()
    assert local.estimate.residual < 1e-4
    assert "steps" not in told or local.estimate.runner_up > 1e-2
    assert why_not_simulated(problem) is None
    assert rederived(problem, had) < tolerance_of(problem)
    other = read_as(problem, replace(local, steps=local.steps + 1, lr=local.lr * 0.9))
    assert rederived(other, had) > tolerance_of(problem)


def test_an_estimate_is_no_fact():
    had = lenet_client(2, steps=2)
    told, problem = had.problem(), estimated(had, **NOTHING)
    noted = {a.what: a for a in problem.knowledge.assumptions}
    assert noted["learning rate"].origin == noted["local steps"].origin == "deduced"
    assert "estimated" in noted["local steps"].value
    [caveat] = [c for c in caveats_of(problem, had.dump()) if c.code == "GA317"]
    assert "local steps 2" in caveat.message
    assert not caveat.voids
    assert is_scaled(told)
    assert not is_scaled(problem)
    before, after = label_claim(had.problem(**NOTHING)), label_claim(problem)
    assert torch.equal(before.lower, after.lower)
    assert after.statements == before.statements
    assert scale_caveats(problem) == ()


def test_what_is_known_stays_as_it_is():
    problem = lenet_client(1, steps=2).problem()
    assert with_estimated_training(problem, seed=0, watch=WATCH) is problem


def test_labels_that_were_guessed_wrongly_are_mended_on_the_way():
    had = lenet_client(3, steps=2)
    assert label_claim(had.problem(**NOTHING)).estimate.tolist() != sorted(had.labels.tolist())
    problem = estimated(had, **NOTHING)
    assert problem.knowledge.local.steps == 2
    assert label_claim(problem).estimate.tolist() == sorted(had.labels.tolist())


def test_where_counts_cannot_be_told_apart_the_fewest_steps_are_taken():
    """So little is learned that every step sees the same weights, up to rounding."""
    had = lenet_client(1, lr=1e-4, steps=4)
    problem = estimated(had, **NOTHING)
    local = problem.knowledge.local
    assert local.steps == 1
    assert local.lr == pytest.approx(4e-4, rel=1e-2)
    assert local.estimate.also
    [caveat] = [c for c in caveats_of(problem, had.dump()) if c.code == "GA317"]
    assert "explain the dump as well" in caveat.message
    assert is_one_gradient(problem)


@pytest.mark.parametrize("told", [NOTHING, {"lr": None}, {"steps": None}], ids=str)
def test_a_picture_that_was_read_needs_no_search(told):
    """ReLU: no search arrives here, but the first layer gives the picture whatever the steps."""
    had = residual_client(steps=4)
    local = estimated(had, **told).knowledge.local
    assert (local.steps, local.lr) == (4, pytest.approx(0.1, rel=1e-4))


def relu_client(count=1, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5)).eval()
    return LocalClient(module, *batch(count, 5), **settings)


def test_one_step_of_one_sample_shows_in_the_head_alone_and_nothing_is_proved_by_it():
    had = relu_client(dtype=torch.float64)
    told, problem = had.problem(), estimated(had, **NOTHING)
    assert problem.knowledge.local.steps == 1
    assert problem.knowledge.local.lr == pytest.approx(0.1, rel=1e-5)
    proved, verified = (
        examine(p, LayerByLayer().run(p, seed=0, watch=WATCH), attack="images.layers", seconds=0.0)
        for p in (told, problem)
    )
    assert is_proved(told, proved)
    assert not is_proved(problem, verified)
    assert is_verified(problem, verified)
    [finding] = findings_of(problem, verified, None)
    assert finding.certainty == "verified"
    assert any("as estimated from the dump" in premise for premise in finding.premises)


def test_several_steps_that_nothing_explains_are_not_counted():
    had = relu_client(6, steps=6, lr=1.0)
    problem = estimated(had, **NOTHING)
    assert problem.knowledge.local.steps is None
    assert "no pictures were found" in problem.knowledge.local.estimate.reason
    [caveat] = [c for c in caveats_of(problem, had.dump()) if c.code == "GA317"]
    assert "could not be estimated" in caveat.message


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"lr": None, "steps": 5000}, "5000 local steps"),
        ({"lr": None, "samples": None}, "--batch-size"),
    ],
    ids=str,
)
def test_what_cannot_be_estimated_says_why(told, words):
    problem = estimated(lenet_client(1, steps=2), **told)
    assert words in problem.knowledge.local.estimate.reason


def test_numbers_that_are_no_update_give_no_count():
    had = LocalClient(net("tanh", 5), *batch(1, 5), steps=2)
    problem = had.problem(**NOTHING)
    drawn = torch.Generator().manual_seed(0)
    noise = {
        name: torch.randn(part.shape, generator=drawn, dtype=part.dtype)
        for name, part in problem.gradient.items()
    }
    found = with_estimated_training(replace(problem, gradient=noise), seed=0, watch=WATCH)
    assert found.knowledge.local.steps is None
    assert found.knowledge.local.estimate.reason
