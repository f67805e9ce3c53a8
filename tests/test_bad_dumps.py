"""Dumps with two defences at once or an unknown one, as a user meets them: never a green gate."""

import functools
import json

import pytest
import torch
from problems import lenet_client
from runs import gradaudit

from auditor.defences import applied

HAD = lenet_client(1, size=12, seed=1)
CLIPPED = "clipped before"
UNKNOWN = "nothing tells them apart"


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(gradients, sigma=1e-2):
    return applied.noised(gradients, sigma, random()).gradient


def half(gradients):
    return applied.as_type(gradients, torch.float16).gradient


def pruned(gradients):
    return applied.largest_kept(gradients, 0.9).gradient


def clipped(gradients):
    return applied.clipped(gradients, 1.0).gradient


def int8(gradients):
    return applied.as_int8(gradients).gradient


def signs(gradients):
    return {name: part.sign() for name, part in gradients.items()}


def drawn(gradients, factors):
    """Each entry times a factor of its own."""
    dice = random()
    return {n: g * factors(torch.rand(g.shape, generator=dice)) for n, g in gradients.items()}


def multiplied(gradients):
    return drawn(gradients, lambda uniform: 0.5 + uniform)


def dropped(gradients, share=0.3):
    return drawn(gradients, lambda uniform: (uniform > share) / (1 - share))


# What is done to the gradient, the defences that the report names, and what it does not say.
CASES = {
    "noise, then 16 bits": ((noise, half), {"noise", "fp16"}, "clipped before the noise"),
    "pruning, then noise": ((pruned, noise), {"unknown"}, UNKNOWN),
    "clipping, then int8": ((clipped, int8), {"int8"}, "clipped before rounding"),
    "clipping, then noise": ((clipped, noise), {"noise"}, "clipped before the noise"),
    "signs of a pruned one": ((pruned, signs), {"sign"}, "pruning before the signs were taken"),
    "noise, then pruning": ((noise, pruned), {"top-k"}, "how much noise the entries carry"),
    "random factors": ((multiplied,), {"unknown"}, UNKNOWN),
    "dropped entries": ((dropped,), {"unknown"}, UNKNOWN),
    "half of them dropped": (
        (functools.partial(dropped, share=0.5),), {"unknown"}, UNKNOWN,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fail_on", ["low", "critical"])
@pytest.mark.parametrize("name", CASES)
def test_the_report_says_what_it_does_not_say_and_no_gate_passes(tmp_path, name, fail_on):
    steps, kinds, unsaid = CASES[name]
    sent = {n: g.double() for n, g in HAD.gradients().items()}
    for step in steps:
        sent = step(sent)
    torch.save(HAD.module, tmp_path / "model.pt")
    torch.save({n: g.float() for n, g in sent.items()}, tmp_path / "grads.pt")
    facts = ("--batch-size", "1", "--input-shape", "1x12x12", "--attacks", "labels,images.layers")
    run = gradaudit("scan", "model.pt", "grads.pt", *facts, "--fail-on", fail_on, cwd=tmp_path)
    assert run.code in {1, 4}, run.err
    text = (tmp_path / "gradaudit-report" / "audit.json").read_text("utf-8")
    page = (tmp_path / "gradaudit-report" / "report.html").read_text("utf-8")
    audit = json.loads(text)
    assert audit["verdict"]["status"] == "inconclusive"
    assert kinds <= {seen["kind"] for seen in audit["trust"]["defences"]}
    assert any(unsaid in line for line in audit["trust"]["unsaid"])
    assert unsaid in page
    assert "not a sign of safety" in page
    assert [finding for finding in audit["findings"] if finding["code"] == "GA101"] == []


def test_the_cases_can_fail(tmp_path):
    """The same dump as it is passes and fails as it should."""
    torch.save(HAD.module, tmp_path / "model.pt")
    torch.save(HAD.gradients(), tmp_path / "grads.pt")
    facts = ("--batch-size", "1", "--input-shape", "1x12x12", "--attacks", "labels")
    run = gradaudit("scan", "model.pt", "grads.pt", *facts, "--fail-on", "high", cwd=tmp_path)
    assert run.code == 0
    audit = json.loads((tmp_path / "gradaudit-report" / "audit.json").read_text("utf-8"))
    assert audit["trust"]["defences"] == []
    no_bound = "no bound at the claim: no picture was rebuilt at which it could be computed"
    assert no_bound in audit["trust"]["unsaid"]
    assert [finding["code"] for finding in audit["findings"]] == ["GA101"]


def test_a_bound_that_the_budget_cuts_off_is_named(tmp_path, monkeypatch):
    from auditor.bounds.fisher import fisher_of

    def late(*arguments, expired, **settings):
        return fisher_of(*arguments, expired=lambda: True, **settings)

    torch.save(HAD.module, tmp_path / "model.pt")
    torch.save(HAD.gradients(), tmp_path / "grads.pt")
    monkeypatch.setattr("auditor.trials.appraisal.fisher_of", late)
    facts = ("--batch-size", "1", "--input-shape", "1x12x12", "--attacks", "labels,images.layers")
    run = gradaudit("scan", "model.pt", "grads.pt", *facts, cwd=tmp_path)
    assert run.code == 0
    page = (tmp_path / "gradaudit-report" / "report.html").read_text("utf-8")
    assert "no bound at the claim: it could not be computed in the time" in page
