"""An audit that was interrupted and started again is the audit that nobody interrupted."""

import copy
import functools
import time
from dataclasses import dataclass, field, replace

import pytest
import torch
from claims_of import opened
from problems import QUICK, Says, case_of, client, lenet_client, noised, options_of

from auditor.attacks import Search
from auditor.audit import run_audit
from auditor.records import Course, Recovery
from auditor.unfinished import Claim, key_of
from auditor.what_if import what_if
from auditor.what_if.settings import NO_DEFENCE, Setting

FEW = (
    NO_DEFENCE,
    Setting("noise", 1e-6, "noise, sigma 1e-6"),
    Setting("noise", 1.0, "noise, sigma 1"),
)


@dataclass(frozen=True)
class Counted:
    """An attack that counts its calls, and is interrupted before one of them."""

    attack: object
    calls: list = field(default_factory=list, repr=False)
    stop_at: list = field(default_factory=list, repr=False)

    @property
    def name(self):
        return self.attack.name

    @property
    def title(self):
        return self.attack.title

    def blocked_by(self, problem):
        return self.attack.blocked_by(problem)

    def run(self, problem, *, seed, watch):
        self.calls.append(problem.knowledge.batch_size)
        if len(self.calls) in self.stop_at:
            raise KeyboardInterrupt
        return self.attack.run(problem, seed=seed, watch=watch)


def counted(options, *names):
    """The named attacks alone, each counted."""
    attacks = tuple(Counted(a) for a in options.attacks if a.name in names)
    return replace(options, attacks=attacks, selected=frozenset(names), named=True)


def timeless(result):
    """The audit without what a clock says."""
    audit = result.audit
    attacks = tuple(replace(attack, seconds=0.0) for attack in audit.attacks)
    told = replace(audit.provenance, seconds=0.0, started="")
    return replace(audit, attacks=attacks, provenance=told)


SMALL = lenet_client(1, size=12, seed=1)
WIDE = client(count=2, seed=1)
CASES = {
    "proved": (SMALL, None, ("labels.head", "images.layers")),
    "searched": (SMALL, None, ("labels.head", "images.layers", "images.idlg")),
    "nothing found": (lenet_client(2), None, ("labels.head", "images.lm", "images.dlg")),
    # One picture of two is right: the harness adds it to the claim as a sample of its own.
    "under noise": (WIDE, 1e-4, ("labels.head", "images.one", "images.two")),
}


def claim(inputs, labels):
    """A claim of inputs (R, N, C, H, W), each with a course of one step."""
    courses = tuple(Course((0,), (1.0,), (0,), row.float()[None], "converged") for row in inputs)
    return Recovery(inputs=inputs, input_labels=labels, courses=courses)


def half_right(had):
    """A claim of two pictures, one of which is the client's."""
    like = next(iter(had.problem().gradient.values()))
    inputs = torch.cat([had.inputs[:1], torch.full_like(had.inputs[1:], 0.3)]).to(like)
    return claim(inputs.expand(2, *inputs.shape), had.labels.expand(2, 2))


def parts_of(name):
    had, sigma, attacks = CASES[name]
    options = options_of(search=QUICK if name == "nothing found" else Search(max_steps=400))
    claims = tuple(Says(half_right(had), attack) for attack in ("images.one", "images.two"))
    options = replace(options, attacks=(*options.attacks, *claims), evidence="embed")
    gradients = had.gradients() if sigma is None else noised(had.gradients(), sigma)
    return case_of(had, gradients), counted(options, *attacks)


@functools.cache
def uninterrupted(name):
    case, options = parts_of(name)
    return run_audit(case, options, fail_on="high")


def folder_of(path, case, options):
    known = (case.model, case.dump, case.knowledge, case.truth, case.auxiliary)
    return opened(path, key_of(*known, options, "high"))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("last", [False, True], ids=["in the second", "in the last"])
def test_it_ends_as_one_that_nobody_interrupted(tmp_path, name, last):
    case, options = parts_of(name)
    options.attacks[-1 if last else 1].stop_at.append(1)
    with pytest.raises(KeyboardInterrupt):
        run_audit(case, options, fail_on="high", unfinished=folder_of(tmp_path, case, options))
    case, options = parts_of(name)
    unfinished = folder_of(tmp_path, case, options)
    made = set(unfinished.claims)
    result = run_audit(case, options, fail_on="high", unfinished=unfinished)
    assert timeless(result) == timeless(uninterrupted(name))
    assert len(made) == (len(CASES[name][2]) - 2 if last else 0)
    if result.audit.trust.control is None:  # a control runs the attack on other dumps
        again = [attack.name for attack in options.attacks if attack.calls]
        assert again == [attack.name for attack in options.attacks if attack.name not in made]


def test_under_noise_the_harness_adds_samples_to_a_claim():
    """So that what is kept is the claim as it was made, not as it was examined."""
    examined = {each.attack: each.recovery for each in uninterrupted("under noise").evidence}
    assert half_right(WIDE).samples is None
    assert examined["images.one"].samples is not None


def test_seconds_are_those_that_it_took(tmp_path):
    case, options = parts_of("searched")
    options.attacks[-1].stop_at.append(1)
    with pytest.raises(KeyboardInterrupt):
        run_audit(case, options, fail_on="high", unfinished=folder_of(tmp_path, case, options))
    took = folder_of(tmp_path, case, options).claims["images.layers"].seconds
    result = run_audit(case, parts_of("searched")[1], unfinished=folder_of(tmp_path, case, options))
    assert [a.seconds for a in result.audit.attacks if a.name == "images.layers"] == [took]


def test_an_attack_that_failed_is_not_run_again(tmp_path):
    @dataclass(frozen=True)
    class Fails:
        name: str = "images.fails"
        title: str = "Fails"
        calls: list = field(default_factory=list, repr=False)

        def blocked_by(self, problem):
            return None

        def run(self, problem, *, seed, watch):
            self.calls.append(1)
            raise torch.OutOfMemoryError

    def options():
        return replace(
            options_of(), attacks=(fails,), selected=frozenset({"images.fails"}), named=True
        )

    fails = Fails()
    case = case_of(lenet_client())
    for _ in range(2):
        result = run_audit(case, options(), unfinished=folder_of(tmp_path, case, options()))
    assert (result.audit.attacks[0].outcome, result.audit.attacks[0].reason) == (
        "failed",
        "out of memory",
    )
    assert len(fails.calls) == 1


def test_the_whole_budget_is_there_for_the_rest(tmp_path):
    """What an interrupted audit spent does not count; what it finished needs no time."""
    case, options = parts_of("searched")
    options = replace(options, budget=60.0)
    options.attacks[-1].stop_at.append(1)
    with pytest.raises(KeyboardInterrupt):
        run_audit(case, options, unfinished=folder_of(tmp_path, case, options))
    ends = []

    def listen(milestone):
        ends.append(milestone.attack)

    again = replace(parts_of("searched")[1], budget=60.0)
    begun = time.monotonic()
    result = run_audit(case, again, progress=listen, unfinished=folder_of(tmp_path, case, options))
    assert time.monotonic() - begun < 60
    assert set(ends) == {"images.idlg"}
    assert result.audit.findings[0].code == "GA201"


# --------------------------------------------------------------------------- what-if


@pytest.mark.parametrize("rows", [1, 2])
def test_rows_and_attacks_are_taken_together(tmp_path, monkeypatch, rows):
    monkeypatch.setitem(what_if.__kwdefaults__, "settings", FEW)
    had = lenet_client()
    case = case_of(had)

    def options():
        made = counted(options_of(), "labels.head", "images.layers")
        return replace(made, what_if=True)

    whole = run_audit(case, options(), fail_on="high")
    first, seen = options(), []

    def stop(*arguments, **settings):
        seen.append(arguments)
        if len(seen) == rows:
            raise KeyboardInterrupt
        return row_of(*arguments, **settings)

    from auditor.what_if.run import row_of

    with monkeypatch.context() as patch:
        patch.setattr("auditor.what_if.run.row_of", stop)
        with pytest.raises(KeyboardInterrupt):
            run_audit(case, first, fail_on="high", unfinished=folder_of(tmp_path, case, first))
    unfinished = folder_of(tmp_path, case, options())
    assert (set(unfinished.claims), len(unfinished.rows)) == ({"images.layers"}, rows)
    again = run_audit(case, options(), fail_on="high", unfinished=unfinished)
    assert timeless(again) == timeless(whole)


# --------------------------------------------------------------------------- a foreign file


def kept_by(path, case, options, recovery, attack="images.says"):
    folder_of(path, case, options).keep(Claim(attack, 1.0, recovery))


def says(recovery=None):
    """An attack that finds nothing, and where it is kept that it found something."""
    case = case_of(lenet_client())
    attack = Counted(Says(recovery or Recovery(evaluations=5)))
    made = replace(options_of(), attacks=(attack,), selected=frozenset({"images.says"}), named=True)
    return case, made, attack


def pictures(value, rows=2):
    like = next(iter(lenet_client().problem().gradient.values()))
    return torch.full((rows, 1, 1, 8, 8), value).to(like)


def test_a_forged_picture_is_checked_like_any_other(tmp_path):
    case, options, attack = says()
    forged = claim(pictures(0.5), torch.zeros(2, 1, dtype=torch.int64))
    kept_by(tmp_path, case, options, forged)
    result = run_audit(case, options, unfinished=folder_of(tmp_path, case, options))
    assert attack.calls == []  # it was taken, and
    assert result.audit.findings == ()  # is believed no more than an attack would be
    assert result.audit.attacks[0].outcome == "failed"
    assert result.audit.verdict.status == "inconclusive"


def test_the_true_picture_is_verified_from_there(tmp_path):
    """Also the proof that the test above looks at the right place."""
    case, options, _ = says()
    true = lenet_client().inputs.to(pictures(0.5)).expand(2, 1, 1, 8, 8)
    kept_by(tmp_path, case, options, claim(true, label(2)))
    result = run_audit(case, options, unfinished=folder_of(tmp_path, case, options))
    assert [(f.code, f.certainty) for f in result.audit.findings] == [("GA201", "verified")]


def label(rows):
    return lenet_client().labels.expand(rows, 1)


def of(**fields):
    return replace(claim(pictures(0.5), label(2)), **fields)


def film(pictures, steps=(0,), snapshots=(0,)):
    return Course(steps, (1.0,), snapshots, pictures, "converged")


FILM = torch.zeros(1, 1, 1, 8, 8)


@pytest.mark.parametrize(
    "recovery",
    [
        of(inputs=pictures(0.5)[..., :7]),
        of(inputs=pictures(0.5)[0]),
        of(inputs=pictures(0.5).to(torch.int64)),
        of(inputs=pictures(0.5).half()),
        of(inputs=torch.cat([pictures(0.5)] * 2, 1), input_labels=torch.zeros(2, 2).long()),
        of(input_labels=None),
        of(input_labels=label(2).float()),
        of(input_labels=label(1)),
        of(input_labels=torch.full((2, 1), 4)),
        of(input_labels=torch.full((2, 1), -1)),
        of(samples=pictures(0.5)[0]),
        of(samples=pictures(0.5), witnesses=(1, 1)),
        of(read_from="nowhere.weight"),
        of(courses=()),
        of(courses=(film(FILM), film(FILM[0]))),
        of(courses=(film(FILM), film(FILM.expand(1, 2, 1, 8, 8)))),
        of(courses=(film(FILM), film(FILM, steps=(0, 1)))),
        of(courses=(film(FILM), film(FILM, snapshots=(0, 1)))),
        of(courses=(film(FILM[:0], snapshots=()),) * 2),
    ],
)
def test_a_claim_of_another_form_is_made_anew(tmp_path, recovery):
    case, options, attack = says()
    kept_by(tmp_path, case, options, recovery)
    result = run_audit(case, options, unfinished=folder_of(tmp_path, case, options))
    assert attack.calls == [1]
    assert result.audit.attacks[0].outcome == "failed"


def test_the_folder_is_never_asked_for_an_attack_that_cannot_look(tmp_path):
    @dataclass(frozen=True)
    class Blind(Says):
        def blocked_by(self, problem):
            return "there is no light"

    case, options, _ = says()
    options = replace(options, attacks=(Blind(Recovery()),))
    kept_by(tmp_path, case, options, copy.copy(of()))
    result = run_audit(case, options, unfinished=folder_of(tmp_path, case, options))
    assert result.audit.attacks[0].reason == "there is no light"
