"""End to end, on networks that are small enough to be inverted within a second."""

import copy
import dataclasses
import functools
import math
import time
from dataclasses import replace

import pytest
import torch
from problems import (
    FILE,
    QUICK,
    Client,
    Net,
    Says,
    batch,
    case_of,
    client,
    dump_of,
    lenet_client,
    net,
    noise,
    noised,
    options_of,
    rounded,
)
from torch import nn

from auditor.attacks import ATTACKS, Search, Watch
from auditor.audit import Case, run_audit, share_of
from auditor.errors import InputError, UsageError
from auditor.records import Course, LoadedModel, Recovery, Truth

GOOD = Search(max_steps=1500)
ALL = ["labels.head", "images.idlg", "images.dlg"]
SEARCHES = frozenset(ALL)


def audit(had, gradients=None, *, truth=False, known=None, fail_on=None, waive=False, **choices):
    case = case_of(had, gradients, truth=truth, **(known or {}))
    options = options_of(search=choices.pop("search", GOOD), **choices)
    return run_audit(case, options, fail_on=fail_on, allow_inconclusive=waive)


@functools.cache
def leak(count=1):
    return audit(lenet_client(count, size=12 if count == 1 else 8, seed=count), fail_on="high")


@functools.cache
def searched():
    """The same leak, found by iDLG alone."""
    had = lenet_client(1, size=12, seed=1)
    return audit(had, fail_on="high", attacks=["labels", "images.idlg"])


@functools.cache
def pure_noise(scale):
    """Every attack that can look, on no gradient at all."""
    had = lenet_client()
    return audit(had, noise(had.module, scale), fail_on="low", search=QUICK)


def codes(result):
    return [(f.code, f.certainty, f.severity.band) for f in result.audit.findings]


def outcomes(result):
    return {a.name: a.outcome for a in result.audit.attacks}


def caveats(result):
    return {c.code: c.voids for c in result.audit.caveats}


# --------------------------------------------------------------------------- a leak


def test_a_leak_is_found_proved_and_fails_the_gate():
    result = leak()
    assert codes(result) == [("GA201", "proved", "critical"), ("GA101", "proved", "medium")]
    assert result.audit.verdict.status == "leak"
    assert result.audit.verdict.severity.band == "critical"
    assert (result.audit.gate.outcome, result.audit.gate.exit_code) == ("failed", 1)
    assert list(outcomes(result)) == [attack.name for attack in ATTACKS]
    leaks = {name for name, outcome in outcomes(result).items() if outcome == "leak"}
    assert leaks == {"labels.head", "images.layers"}
    assert set(outcomes(result).values()) == {"leak", "not selected"}
    assert caveats(result) == {}


def test_a_leak_is_found_verified_by_search_and_fails_the_gate():
    result = searched()
    assert codes(result) == [("GA201", "verified", "critical"), ("GA101", "proved", "medium")]
    assert (result.audit.gate.outcome, result.audit.gate.exit_code) == ("failed", 1)
    assert outcomes(result)["images.idlg"] == "leak"
    assert outcomes(result)["images.layers"] == "not selected"


def test_the_layers_are_in_the_report():
    had = lenet_client(1, size=12, seed=1)
    report = next(a for a in leak().audit.attacks if a.name == "images.layers")
    weights = [n for n, p in had.module.named_parameters() if p.ndim > 1]
    assert [link.layer for link in report.links] == weights[::-1]
    assert all(link.solved and link.undetermined == 0 for link in report.links)
    assert [link.unknowns for link in report.links][-1] == had.inputs.numel()


def test_a_batch_too():
    result = leak(2)
    assert result.audit.findings[0].code == "GA201"
    assert result.audit.findings[0].summary.startswith("All 2 pictures were rebuilt")


def test_without_a_gate_a_leak_exits_zero():
    result = audit(lenet_client(), attacks=["labels"])
    assert result.audit.verdict.status == "leak"
    assert (result.audit.gate.outcome, result.audit.gate.exit_code) == ("no gate", 0)


def test_the_pictures_are_the_clients():
    had = lenet_client(1, size=12, seed=1)
    evidence = leak().evidence[-1]
    found = evidence.recovery.inputs[evidence.best]
    assert float((found - had.inputs).abs().max()) < 0.01


def test_everything_the_report_needs_is_there():
    made = leak().audit
    assert made.schema_version == "1.0"
    assert made.model.classes == 4
    assert made.model.input_shape == (1, 12, 12)
    assert made.model.parameters == sum(
        p.numel() for p in lenet_client(size=12).module.parameters()
    )
    assert (made.dump.tensors, made.dump.missing, made.dump.batch_size) == (8, (), 1)
    assert made.provenance.dtype == "float64"
    assert made.provenance.device == "cpu"
    assert made.provenance.seed == 0
    assert made.evidence == "none"
    assert made.exhibits == ()
    idlg = next(a for a in searched().audit.attacks if a.name == "images.idlg")
    assert idlg.evaluations > 0
    assert len(idlg.layers) == 8
    assert len(idlg.curves) == 2
    assert all(v >= 0 for curve in idlg.curves for v in curve.values)
    assert idlg.curves[0].values[-1] < idlg.curves[0].values[0]


def test_the_audit_is_plain_data():
    def walk(value):
        if dataclasses.is_dataclass(value):
            value = [getattr(value, f.name) for f in dataclasses.fields(value)]
        if isinstance(value, dict):
            value = [*value.keys(), *value.values()]
        if isinstance(value, tuple | list):
            for item in value:
                walk(item)
        else:
            assert value is None or isinstance(value, str | int | float | bool), type(value)
            assert not isinstance(value, float) or math.isfinite(value)

    walk(leak().audit)
    walk(pure_noise(1.0).audit)


def test_exhibits_only_when_asked():
    had = lenet_client()
    options = replace(options_of(search=GOOD), evidence="embed")
    shown = run_audit(case_of(had, truth=True), replace(options, selected=SEARCHES)).audit
    (exhibit,) = shown.exhibits
    assert exhibit.certainty == "verified"
    assert exhibit.label == f"class {int(had.labels)}"
    assert len(exhibit.strip) == len(exhibit.strip_steps) >= 2
    assert exhibit.truth is not None


# --------------------------------------------------------------------------- noise


def few_attacks_on_noise(scale, **choices):
    had = lenet_client()
    return audit(had, noise(had.module, scale), search=QUICK, attacks=ALL, **choices)


@pytest.mark.parametrize("fail_on", [None, "low", "high"])
@pytest.mark.parametrize("scale", [1e-8, 1.0])
def test_noise_is_inconclusive(fail_on, scale):
    all_of_them = fail_on == "low"
    result = pure_noise(scale) if all_of_them else few_attacks_on_noise(scale, fail_on=fail_on)
    assert ("not selected" in outcomes(result).values()) != all_of_them
    assert result.audit.findings == ()
    assert result.audit.verdict.status == "inconclusive"
    assert (result.audit.gate.outcome, result.audit.gate.exit_code) == ("inconclusive", 4)
    assert "GA301" in caveats(result)
    assert "leak" not in outcomes(result).values()


def test_noise_that_was_waived_passes_and_says_so():
    result = few_attacks_on_noise(1.0, fail_on="low", waive=True)
    assert result.audit.gate.exit_code == 0
    assert "waived" in result.audit.gate.reason


def test_a_noised_dump_is_inconclusive_not_safe():
    had = lenet_client()
    result = audit(had, noised(had.gradients(), 0.5), fail_on="high", search=QUICK)
    assert result.audit.verdict.status == "inconclusive"
    assert result.audit.gate.exit_code == 4


# --------------------------------------------------------------------------- the budget


@pytest.mark.parametrize(("fail_on", "code"), [(None, 0), ("medium", 1), ("high", 4)])
def test_a_budget_that_is_too_small(fail_on, code):
    """What is proved of labels takes no time; that nobody looked for pictures passes no gate."""
    result = audit(lenet_client(), fail_on=fail_on, budget=1e-9)
    assert [f.code for f in result.audit.findings] == ["GA101"]
    assert result.audit.gate.exit_code == code
    assert [n for n, outcome in outcomes(result).items() if outcome == "leak"] == ["labels.head"]
    assert "failed" not in outcomes(result).values()
    looking = {"images.layers", "images.idlg"}  # others have reasons of their own
    reasons = {a.name: a.reason for a in result.audit.attacks if a.name in looking}
    assert all("budget" in reasons[name] for name in looking), reasons


def test_a_budget_that_ends_on_the_way_does_not_pass_the_gate():
    """Labels are proved, pictures were not looked for long enough."""
    had = lenet_client(4, size=12)
    search = Search(restarts=50, max_steps=100_000, at_once=1)
    result = audit(had, fail_on="high", budget=0.4, search=search, attacks=ALL)
    assert result.audit.gate.exit_code in {1, 4}
    assert result.audit.provenance.seconds < 10


# --------------------------------------------------------------------------- repeatable


def timeless(made):
    provenance = replace(made.provenance, started="", seconds=0.0)
    attacks = tuple(replace(a, seconds=0.0) for a in made.attacks)
    return replace(made, provenance=provenance, attacks=attacks)


@pytest.mark.parametrize("kind", ["dump", "noise"])
def test_the_same_seed_gives_the_same_audit(kind):
    had = lenet_client()
    gradients = noise(had.module, 1.0) if kind == "noise" else None
    one = audit(had, gradients, search=QUICK, attacks=ALL, seed=3)
    torch.manual_seed(5)
    two = audit(had, gradients, search=QUICK, attacks=ALL, seed=3)
    assert timeless(one.audit) == timeless(two.audit)
    three = audit(had, gradients, search=QUICK, attacks=ALL, seed=4)
    assert timeless(one.audit).attacks != timeless(three.audit).attacks


@pytest.mark.parametrize("kind", ["dump", "noised"])
def test_truth_changes_no_residual_and_no_choice(kind):
    had = lenet_client(2, seed=1)
    gradients = noised(had.gradients(), 0.3) if kind == "noised" else had.gradients()
    search = Search(restarts=3, at_once=2, max_steps=60, enough=3)
    choices = {"search": search, "attacks": ALL}
    without, with_truth = (audit(had, gradients, truth=t, **choices) for t in (False, True))
    for one, two in zip(without.evidence, with_truth.evidence, strict=True):
        assert one.residuals == two.residuals
        assert one.worst_residuals == two.worst_residuals
        assert one.best == two.best
        assert one.agreement == two.agreement
        assert one.recovery.inputs is None or torch.equal(one.recovery.inputs, two.recovery.inputs)
    mine = {f.code for f in without.audit.findings}
    assert "GA203" not in mine
    assert [a.curves for a in without.audit.attacks] == [a.curves for a in with_truth.audit.attacks]


def test_the_users_objects_are_left_alone():
    had = lenet_client()
    had.module.train()
    case = case_of(had, truth=True)
    before = copy.deepcopy(case)
    torch.manual_seed(2)
    random = torch.get_rng_state()
    run_audit(case, options_of(search=QUICK))
    assert torch.equal(torch.get_rng_state(), random)
    state = case.model.module.state_dict()
    old = before.model.module.state_dict()
    assert all(torch.equal(state[n], old[n]) for n in old)
    assert case.model.module.training
    assert all(p.grad is None for p in case.model.module.parameters())
    assert all(torch.equal(case.dump.tensors[n], t) for n, t in before.dump.tensors.items())
    assert torch.equal(case.truth.inputs, before.truth.inputs)


# --------------------------------------------------------------------------- when to stop


def test_dlg_does_not_run_after_a_verified_picture():
    report = next(a for a in leak().audit.attacks if a.name == "images.dlg")
    assert report.outcome == "not selected"
    assert "could not get worse" in report.reason
    assert report.evaluations == 0


def test_dlg_runs_when_it_is_named():
    result = audit(lenet_client(), attacks=ALL)
    assert outcomes(result)["images.dlg"] == "leak"
    assert [f.attack for f in result.audit.findings if f.code == "GA201"] == [
        "images.idlg",
        "images.dlg",
    ]


def test_dlg_runs_alone():
    result = audit(lenet_client(), attacks=["images.dlg"])
    others = {name for name in outcomes(result) if name != "images.dlg"}
    assert outcomes(result) == dict.fromkeys(others, "not selected") | {"images.dlg": "leak"}
    report = next(a for a in result.audit.attacks if a.name == "labels.head")
    assert report.reason == "not named in --attacks"


def test_dlg_does_not_run_when_the_labels_are_proved_and_idlg_failed():
    """Max pooling cannot be read backwards; 88 numbers do not say what 144 pixels are."""
    parts = (nn.Conv2d(1, 1, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(25, 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(*parts)
    had = Client(module, lenet_client(1, size=12).inputs, torch.tensor([1]))
    result = audit(had, search=Search(restarts=1, max_steps=2))
    found = outcomes(result)
    assert (found["images.layers"], found["images.lm"]) == ("skipped", "failed")
    assert (found["images.idlg"], found["images.dlg"]) == ("failed", "not selected")


def test_dlg_runs_when_the_labels_are_a_guess():
    had = Client(net("tanh", 3), batch(8, 3)[0], torch.full((8,), 1))
    result = audit(had, search=Search(restarts=1, max_steps=2))
    assert outcomes(result)["images.dlg"] == "failed"


def test_the_preset_of_the_papers_runs_everything():
    search = replace(GOOD, max_steps=100, restarts=1, at_once=1, enough=1)
    result = audit(lenet_client(), preset="paper", search=search)
    assert "not selected" not in outcomes(result).values()


# --------------------------------------------------------------------------- liars and crashes


def lie(had, pictures, labels=None):
    inputs = torch.stack([p.double() for p in pictures])
    courses = tuple(
        Course((0,), (0.0,), (0,), row[None].float(), "reached the goal") for row in inputs
    )
    labels = had.labels.expand(len(inputs), -1) if labels is None else labels
    return Says(Recovery(inputs=inputs, input_labels=labels, courses=courses))


def audit_of(attack, had, *, truth=False, fail_on="high", **known):
    options = options_of(search=QUICK)
    options = replace(options, attacks=(attack,), selected=frozenset({attack.name}))
    return run_audit(case_of(had, truth=truth, **known), options, fail_on=fail_on)


@pytest.mark.parametrize("truth", [False, True])
def test_a_lying_attack_has_a_large_residual_and_no_finding(truth):
    had = lenet_client()
    other = torch.rand(had.inputs.shape, generator=torch.Generator().manual_seed(77))
    result = audit_of(lie(had, [other, other]), had, truth=truth)
    assert result.audit.findings == ()
    assert result.evidence[0].worst_residuals[0] > 0.01
    assert outcomes(result) == {"images.says": "failed"}
    assert result.audit.gate.exit_code == 4


def test_an_honest_attack_is_believed_on_its_gradient():
    had = lenet_client()
    result = audit_of(lie(had, [had.inputs, had.inputs + 1e-6]), had)
    assert codes(result) == [("GA201", "verified", "critical")]
    assert result.audit.gate.exit_code == 1


@pytest.mark.parametrize("truth", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_an_attack_that_claims_nan_fails(truth, count):
    had = lenet_client(count)
    result = audit_of(lie(had, [had.inputs * math.nan]), had, truth=truth)
    assert result.audit.findings == ()
    assert outcomes(result) == {"images.says": "failed"}


@dataclasses.dataclass(frozen=True)
class Breaks(Says):
    error: type[Exception] = RuntimeError
    words: str = ""

    def run(self, problem, *, seed, watch):
        raise self.error(self.words)


NOTHING = Recovery()


@pytest.mark.parametrize(
    "attack",
    [
        Breaks(NOTHING, error=MemoryError),
        Breaks(NOTHING, error=torch.OutOfMemoryError),
        Breaks(NOTHING, words="derivative for aten::x is not implemented"),
        Breaks(NOTHING, error=NotImplementedError, words="x is not implemented"),
    ],
    ids=["memory", "cuda memory", "derivative", "not implemented"],
)
def test_what_torch_cannot_do_is_a_failure_with_a_reason(attack):
    result = audit_of(attack, lenet_client())
    (report,) = result.audit.attacks
    assert report.outcome == "failed"
    assert report.reason
    assert result.audit.gate.exit_code == 4


def test_an_error_of_our_own_is_not_hidden():
    with pytest.raises(RuntimeError, match="shapes"):
        audit_of(Breaks(NOTHING, words="shapes differ"), lenet_client())


# --------------------------------------------------------------------------- what is not known


def test_an_unknown_size_of_one_is_deduced():
    result = audit(lenet_client(size=12, seed=1), known={"size": None}, fail_on="high")
    assert ("batch size", "1", "deduced") in [
        (a.what, a.value, a.origin) for a in result.audit.assumptions
    ]
    assert ("GA201", "proved", "critical") in codes(result)
    assert "GA305" not in caveats(result)


def test_an_unknown_size_of_more_is_said_to_be_unknown():
    had = replace(lenet_client(4, size=12), labels=torch.tensor([0, 1, 2, 3]))
    result = audit(had, known={"size": None}, fail_on="high")
    assert result.audit.dump.batch_size is None
    assert "GA305" in caveats(result)
    assert outcomes(result)["images.idlg"] == "skipped"
    assert result.audit.gate.exit_code == 4
    assert "GA101" not in [c for c, _, _ in codes(result)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("act", ["sigmoid", "tanh", "relu"])
@pytest.mark.parametrize("truth", [False, True])
def test_a_batch_of_one_class_and_unknown_size_is_not_the_only_sample(dtype, act, truth):
    inputs, _ = batch(8, 10)
    had = Client(net(act, 10), inputs, torch.full((8,), 3))
    result = audit(
        had,
        rounded(had.gradients(), dtype),
        truth=truth,
        known={"size": None},
        search=Search(restarts=1, max_steps=2),
    )
    assert result.audit.dump.batch_size is None
    assert not any("only sample" in f.summary for f in result.audit.findings)


@pytest.mark.parametrize("truth", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_a_batch_of_two_classes_and_unknown_size_is_not_the_only_sample(truth, seed):
    inputs, _ = batch(8, 2, seed=seed)
    had = Client(net("tanh", 2, seed=seed), inputs, torch.tensor([0, 1, 1, 0, 1, 0, 0, 0]))
    result = audit(had, truth=truth, known={"size": None}, search=Search(restarts=1, max_steps=2))
    assert result.audit.dump.batch_size is None
    assert "GA101" not in [c for c, _, _ in codes(result)]


@pytest.mark.parametrize(("told", "labels"), [(1, [3] * 8), (1, [0, 1, 2, 3]), (2, [3, 3, 3, 4])])
def test_a_size_that_the_dump_contradicts_voids_the_verdict(told, labels):
    inputs, _ = batch(len(labels), 10)
    had = Client(net("tanh", 10), inputs, torch.tensor(labels))
    result = audit(had, known={"size": told}, search=Search(restarts=1, max_steps=2))
    assert caveats(result).get("GA308") is True
    assert result.audit.verdict.status == "inconclusive"
    assert result.audit.gate.exit_code == 4


def test_a_sum_that_is_called_a_mean_voids_the_verdict():
    inputs, _ = batch(8, 10)
    had = Client(net("tanh", 10), inputs, torch.arange(8), reduction="sum")
    problem = had.problem()
    case = Case(
        LoadedModel(had.module, FILE),
        dump_of(had.module, had.gradients()),
        replace(problem.knowledge, reduction="mean"),
    )
    result = run_audit(case, options_of(search=Search(restarts=1, max_steps=2)))
    assert caveats(result)["GA306"]
    assert result.audit.verdict.status == "inconclusive"


def test_overridden_metadata_is_a_caveat():
    had = client("tanh", 1, 4)
    case = case_of(had, overrides=("mode eval instead of train",))
    result = run_audit(case, options_of(search=Search(restarts=1, max_steps=2)))
    assert "GA307" in caveats(result)


def test_a_verified_picture_stands_whatever_else_is_in_doubt():
    had = lenet_client(size=12, seed=1)
    sent = had.gradients()
    sent["fc.bias"] = sent["fc.bias"] + 1e-4 * sent["fc.bias"].norm()
    result = audit(had, sent, attacks=["labels", "images.idlg"])
    assert codes(result) == [("GA201", "verified", "critical")]
    assert caveats(result) == {"GA301": False}
    assert result.audit.verdict.status == "leak"


def test_nothing_of_the_head_in_the_dump():
    had = lenet_client(size=12, seed=1)
    sent = {n: g for n, g in had.gradients().items() if not n.startswith("fc")}
    result = audit(had, sent)
    found = outcomes(result)
    assert found["labels.head"] == "skipped"
    assert found["images.layers"] == "skipped"
    assert found["images.lm"] == "leak"  # it searches the labels too
    assert found["images.idlg"] == found["images.dlg"] == "not selected"
    assert "GA304" in caveats(result)


def test_a_bias_alone_shows_no_picture():
    """4 numbers, 144 pixels; the labels are there all the same."""
    had = lenet_client(size=12, seed=1)
    sent = {"fc.bias": had.gradients()["fc.bias"]}
    for search in (Search(restarts=1, at_once=1), Search()):
        result = audit(had, sent, search=search, fail_on="high", attacks=ALL)
        assert all(f.severity.score < 7 for f in result.audit.findings), codes(result)
        assert "GA101" in [c for c, _, _ in codes(result)]
        assert result.audit.gate.exit_code != 1


def test_a_head_that_is_never_called_as_a_module():
    class Functional(Net):
        def forward(self, x):
            return nn.functional.linear(self.body(x), self.head.weight, self.head.bias)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        had = Client(Functional(nn.Tanh(), 4), *batch(1, 4))
    assert "GA101" in [c for c, _, _ in codes(audit(had, search=QUICK))]


def test_smoothing_without_a_declared_reduction():
    had = client("tanh", 4, 10, smoothing=0.1)
    result = audit(had, known={"declared": False}, search=Search(restarts=1, max_steps=2))
    assert result.audit.verdict.status in {"leak", "inconclusive"}


# --------------------------------------------------------------------------- what is refused


def test_a_truth_of_another_size_or_shape_is_refused():
    case = case_of(lenet_client(2))
    for inputs, labels in ((3, 3), (2, 2)):
        shape = (inputs, 1, 8, 8) if inputs == 3 else (inputs, 3, 8, 8)
        truth = Truth(torch.rand(shape), torch.zeros(labels, dtype=torch.int64))
        with pytest.raises(UsageError, match="truth"):
            run_audit(replace(case, truth=truth), options_of(search=QUICK))


def test_a_shape_that_the_model_does_not_take_is_refused():
    case = case_of(lenet_client())
    with pytest.raises(InputError):
        run_audit(
            replace(case, knowledge=replace(case.knowledge, input_shape=(3, 8, 8))),
            options_of(search=QUICK),
        )


def test_progress_is_told():
    told = []
    options = replace(options_of(search=QUICK), selected=frozenset({"images.idlg"}))
    run_audit(case_of(lenet_client()), options, progress=told.append)
    assert {m.attack for m in told} == {"images.idlg"}


def test_an_attack_leaves_half_of_the_time_to_those_after_it():
    now = time.monotonic()
    watch = Watch(deadline=now + 100)
    assert share_of(watch, last=False).deadline == pytest.approx(now + 50, abs=1)
    assert share_of(watch, last=True) == watch
    assert share_of(Watch(), last=False).deadline is None
    assert share_of(Watch(deadline=now - 5), last=False).expired()
