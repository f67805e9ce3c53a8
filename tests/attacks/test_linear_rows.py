"""Single inputs of a batch: every one that is claimed is one of the batch."""

from dataclasses import replace

import pytest
import torch
from problems import WATCH
from relu_batches import client_of, perceptron, with_batch_norm
from torch import nn

from auditor.attacks.linear_rows import LinearRows
from auditor.evidence import examine
from auditor.exhibits import exhibits_of
from auditor.findings import findings_of
from auditor.metrics import psnr
from auditor.problem import to_pixels
from auditor.reasons import why_nothing, why_unfinished
from auditor.records import Recovery

ATTACK = LinearRows()


def read(problem, seed=0):
    assert ATTACK.blocked_by(problem) is None
    recovery = ATTACK.run(problem, seed=seed, watch=WATCH)
    return recovery, examine(problem, recovery, attack=ATTACK.name, seconds=0.0)


def nearest(had, problem, samples):
    """For each sample the place of the true picture nearest to it, and how near it is in dB."""
    truth = to_pixels(problem, had.inputs.double())
    near = torch.stack(
        [psnr(to_pixels(problem, s.double()).expand_as(truth), truth) for s in samples]
    )
    return near.max(1)


def rows_of_their_own(had):
    """By the definition: the samples for which some unit is on that is off for all others."""
    layer = next(m for m in had.module.modules() if isinstance(m, nn.Linear))
    on = layer(had.inputs.flatten(1)) > 0
    return {i for i in range(len(on)) if bool((on[i] & (on.sum(0) == 1)).any())}


@pytest.mark.parametrize("count", [2, 4, 6])
@pytest.mark.parametrize("size", ["right", None])
def test_samples_with_rows_of_their_own(count, size):
    had = client_of(count)
    problem = had.problem(size=size)
    recovery, evidence = read(problem)
    found = nearest(had, problem, recovery.samples)
    assert found.values.min() > 100
    assert set(found.indices.tolist()) == rows_of_their_own(had)
    assert len(found.indices) == len(set(found.indices.tolist()))
    assert set(evidence.samples) == {"verified"}


def test_pixels_off_the_grid_need_rows_that_the_model_confirms():
    had = client_of(4)
    had = replace(had, inputs=(had.inputs * 0.9137 + 0.0123))
    problem = had.problem()
    recovery, evidence = read(problem)
    assert nearest(had, problem, recovery.samples).values.min() > 100
    assert min(recovery.witnesses) >= 2
    assert "verified" in evidence.samples
    _, blind = read(had.problem(size=None))  # without the batch size no factor is known
    assert set(blind.samples) == {"consistent"}
    (finding,) = findings_of(problem, blind, None)
    assert finding.certainty == "consistent"
    assert finding.severity.band != "critical"


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("classes", [2, 5])
def test_nothing_is_verified_that_is_not_of_the_batch(seed, classes):
    """Two classes make rows of one group agree on mixtures; large batches leave few single rows."""
    had = client_of(9, classes=classes, seed=seed)
    had = replace(had, inputs=had.inputs * 0.9137 + 0.0123)
    problem = had.problem()
    recovery, evidence = read(problem)
    if recovery.samples is None:
        return
    near = nearest(had, problem, recovery.samples).values
    for decibel, word in zip(near.tolist(), evidence.samples, strict=True):
        assert word != "verified" or decibel > 60


def test_batch_norm_behind_the_layer_is_not_in_the_way():
    """In training mode it refuses one sample, but what stands before it takes one."""
    had = client_of(4, module=with_batch_norm(3), mode="train")
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        had.module.train()(had.inputs[:1])
    problem = had.problem()
    recovery, evidence = read(problem)
    found = nearest(had, problem, recovery.samples)
    assert found.values.min() > 100
    assert set(found.indices.tolist()) == rows_of_their_own(had)
    assert set(evidence.samples) == {"verified"}


def test_findings_say_how_many_and_not_which():
    had = client_of(4)
    problem = had.problem()
    recovery, evidence = read(problem)
    (finding,) = findings_of(problem, evidence, None)
    assert (finding.code, finding.certainty) == ("GA204", "verified")
    assert finding.severity.score == 10.0
    assert "4 of 4 inputs" in finding.summary
    assert why_unfinished(problem, evidence) == ""
    few = replace(recovery, samples=recovery.samples[:1], witnesses=recovery.witnesses[:1])
    part = examine(problem, few, attack=ATTACK.name, seconds=0.0)
    (less,) = findings_of(problem, part, None)
    assert less.severity.score < finding.severity.score
    assert "1 of 4 inputs" in less.summary
    assert "besides" in why_unfinished(problem, part)


def test_truth_bounds_the_severity():
    had = client_of(4)
    problem = had.problem()
    _, evidence = read(problem)
    (right,) = findings_of(problem, evidence, had.truth())
    told = {m.name: m.value for m in right.measures}
    assert told["PSNR, median (measured)"] > 100
    unlike = replace(had.truth(), inputs=1 - had.truth().inputs)
    assert findings_of(problem, evidence, unlike) == ()


def test_units_that_are_on_for_all_give_nothing():
    module = perceptron()
    with torch.no_grad():
        module[1].bias += 10
    problem = client_of(4, module=module).problem()
    recovery, evidence = read(problem)
    assert recovery.samples is None
    assert "no input of the batch stands out" in why_nothing(problem, evidence)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (lambda: client_of(1).problem(), "images.layers reads one sample"),
        (lambda: client_of(3, module=perceptron(bias=False)).problem(), "no bias in the dump"),
        (lambda: client_of(3, module=perceptron(activation=nn.Sigmoid)).problem(), "no ReLU"),
        (lambda: client_of(3, module=with_batch_norm(1), mode="train").problem(), "be undone"),
        (lambda: client_of(3, module=with_batch_norm(2), mode="train").problem(), "no ReLU"),
    ],
)
def test_why_it_cannot_look(problem, words):
    reason = ATTACK.blocked_by(problem())
    assert reason is not None
    assert words in reason


def test_exhibits_show_what_was_shown():
    had = client_of(4)
    problem = had.problem()
    recovery, evidence = read(problem)
    other = torch.cat([recovery.samples[:2], 1 - recovery.samples[:1]])
    mixed = replace(recovery, samples=other, witnesses=(9, 9, 9))
    judged = examine(problem, mixed, attack=ATTACK.name, seconds=0.0)
    assert judged.samples == ("verified", "verified", None)
    shown = exhibits_of(problem, judged, had.truth())
    assert [exhibit.certainty for exhibit in shown] == ["verified", "verified"]
    assert all(exhibit.strip == (exhibit.truth,) for exhibit in shown)  # the same picture
    assert exhibits_of(problem, replace(evidence, recovery=Recovery(), samples=()), None) == ()
