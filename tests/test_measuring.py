"""A truth that is not what made the dump must not make a leak look small."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from problems import (
    case_of,
    client,
    dump_of,
    lenet_client,
    noised,
    options_of,
)
from runs import gradaudit, pictures, write_case

from auditor.audit import run_audit
from auditor.defences.seen import look
from auditor.measuring import distance_of, measurable
from auditor.records import Channel, Truth

HAD = lenet_client(1, size=12, seed=1)


def audit(truth, gradients=None, attacks=("labels", "images.layers")):
    case = replace(case_of(HAD, gradients), truth=truth)
    return run_audit(case, options_of(attacks=list(attacks)), fail_on="high").audit


def truth_of(inputs, labels=HAD.labels):
    return Truth(inputs.float(), labels)


def other(seed=5):
    return torch.rand(HAD.inputs.shape, generator=torch.Generator().manual_seed(seed))


def measured(made):
    return [m.name for f in made.findings for m in f.measures if "measured" in m.name]


@pytest.mark.parametrize("inputs", [HAD.inputs, (HAD.inputs * 255).round() / 255])
def test_what_the_client_had_is_measured_against(inputs):
    made = audit(truth_of(inputs))
    assert [f.code for f in made.findings][:2] == ["GA201", "GA203"]
    assert "GA323" not in [c.code for c in made.caveats]


@pytest.mark.parametrize(
    "truth",
    [
        truth_of(other()),
        truth_of(HAD.inputs.flip(-1)),
        truth_of(HAD.inputs, (HAD.labels + 1) % 4),
        truth_of(torch.zeros_like(HAD.inputs)),
    ],
)
def test_another_truth_hides_no_leak(truth):
    made, alone = audit(truth), audit(None)
    assert made.findings == alone.findings
    assert (made.verdict, made.gate) == (alone.verdict, alone.gate)
    assert measured(made) == []
    [caveat] = [c for c in made.caveats if c.code == "GA323"]
    assert "Nothing is measured" in caveat.message
    assert not caveat.voids


def test_where_nothing_explains_the_dump_a_truth_that_is_near_stands():
    near = truth_of((HAD.inputs + 0.05 * (other() - 0.5)).clamp(0, 1))
    made = audit(near, attacks=["labels"])
    assert "GA323" not in [c.code for c in made.caveats]
    assert measured(made) == ["label accuracy (measured)"]
    assert "GA323" in [
        c.code
        for c in audit(truth_of(HAD.inputs, (HAD.labels + 1) % 4), attacks=["labels"]).caveats
    ]


def sure_client():
    """A network that is sure of its picture: coarse copies make quite another gradient."""
    had = lenet_client(1, size=12, seed=1)
    head = list(had.module.modules())[-1]
    with torch.no_grad():
        head.weight.mul_(6)
        head.bias.mul_(6)
    return replace(had, labels=had.module(had.inputs).argmax(1))


def test_a_copy_that_the_claim_resembles_stands_whatever_its_gradient():
    had, drawn = sure_client(), torch.Generator().manual_seed(0)
    noise = 0.035 * torch.randn(had.inputs.shape, generator=drawn)
    copy = Truth((had.inputs + noise).float(), had.labels)
    assert distance_of(had.problem(), copy) > 0.05
    wrong = Truth(copy.inputs, (copy.labels + 1) % 4)
    mirrored = Truth(copy.inputs.flip(-1), copy.labels)
    for truth, stands in ((copy, True), (wrong, False), (mirrored, False)):
        case = replace(case_of(had), truth=truth)
        made = run_audit(case, options_of(attacks=["labels", "images.layers"])).audit
        assert {"GA201", "GA202"} & {f.code for f in made.findings}
        assert ("GA323" not in [c.code for c in made.caveats]) == stands


# --------------------------------------------------------------------------- defended dumps


def judged(had, gradients, truth, evidence=()):
    problem = had.problem(gradients)
    looked = look(problem, dump_of(had.module, gradients))
    problem = replace(problem, channel=looked.channel)
    return looked, measurable(problem, truth, evidence, looked)[0] is not None


@pytest.mark.parametrize("sigma", [1e-3, 1e-1, 1.0, 10.0])
@pytest.mark.parametrize("seed", range(5))
def test_noise_is_not_held_against_the_truth(sigma, seed):
    had = client(count=2, seed=seed)
    looked, stands = judged(had, noised(had.gradients(), sigma, seed=seed), had.truth())
    assert looked.channel.sigma > 0
    assert stands


@pytest.mark.parametrize("seed", range(5))
def test_through_little_noise_another_truth_is_seen(seed):
    had = client(count=2, seed=seed)
    wrong = Truth(had.truth().inputs, (had.labels + 1) % 10)
    assert not judged(had, noised(had.gradients(), 1e-2, seed=seed), wrong)[1]


def pruned(gradients, share=0.5):
    every = torch.cat([g.abs().flatten() for g in gradients.values()])
    limit = every.kthvalue(int(share * len(every))).values
    return {n: torch.where(g.abs() > limit, g, 0.0) for n, g in gradients.items()}


def test_pruning_is_not_held_against_the_truth():
    looked, stands = judged(HAD, pruned(HAD.gradients()), HAD.truth())
    assert looked.channel.masked
    assert stands
    wrong = truth_of(HAD.inputs, (HAD.labels + 1) % 4)
    assert not judged(HAD, pruned(HAD.gradients()), wrong)[1]


def test_clipping_is_not_held_against_the_truth():
    quarter = {name: 0.25 * g for name, g in HAD.gradients().items()}
    problem = replace(HAD.problem(quarter), channel=Channel(scaled=True))
    looked = look(problem, dump_of(HAD.module, quarter))
    assert measurable(problem, HAD.truth(), (), looked)[0] is not None
    assert measurable(replace(problem, channel=Channel()), HAD.truth(), (), looked)[0] is None


def test_of_signs_nothing_is_said():
    signs = {name: g.sign() for name, g in HAD.gradients().items()}
    assert judged(HAD, signs, truth_of(other(), (HAD.labels + 1) % 4))[1]


def test_behind_an_unknown_defence_the_truth_stands():
    dice = torch.Generator().manual_seed(0)
    kept = {
        n: g * (torch.rand(g.shape, generator=dice) > 0.5) * 2 for n, g in HAD.gradients().items()
    }
    looked, stands = judged(HAD, kept, HAD.truth())
    assert "unknown" in [seen.kind for seen in looked.defences]
    assert stands


# --------------------------------------------------------------------------- commands


@pytest.mark.parametrize(("flags", "code"), [(("--fail-on", "high"), 1), (("--max-psnr", "20"), 1)])
def test_no_gate_passes_for_another_truth(tmp_path, flags, code):
    write_case(tmp_path)
    np.savez(tmp_path / "truth.npz", inputs=pictures().flip(-1).numpy(), labels=[3])
    run = gradaudit(
        "scan", "model.pt", "grads.safetensors", "--truth", "truth.npz", *flags, cwd=tmp_path
    )
    assert run.code == code, run.err
    assert "GA323" in run.err
    page = (tmp_path / "gradaudit-report" / "report.html").read_text("utf-8")
    assert "Nothing is measured against it" in page
    audit = json.loads((tmp_path / "gradaudit-report" / "audit.json").read_text("utf-8"))
    assert audit["verdict"]["severity"]["band"] == "critical"
