"""The rows and what follows from them, with attacks that say what they are told."""

import math
import time
from dataclasses import asdict, dataclass, field, replace

import pytest
import torch
from problems import Says, lenet_client, options_of
from safetensors.torch import load_file

from auditor.attacks import Watch
from auditor.errors import UsageError
from auditor.options import make_options
from auditor.records import Channel, Recovery, WhatIfRow
from auditor.session import choices
from auditor.unfinished import Unfinished
from auditor.what_if import is_short_of_time, what_if
from auditor.what_if import run as run_module
from auditor.what_if.attack import adaptive_first, chosen
from auditor.what_if.row import CUT_SHORT, FAILED, psnr_of
from auditor.what_if.run import CLOSED, weakest_of
from auditor.what_if.settings import NO_DEFENCE, SETTINGS, Setting, gate_words

CLIENT = lenet_client()
WEAK, STRONG = Setting("noise", 1e-3, "weak noise"), Setting("noise", 1.0, "strong noise")
MILD = Setting("clipping", 0.5, "clipped")
FEW = (NO_DEFENCE, WEAK, STRONG, MILD)


@dataclass(frozen=True)
class Knows:
    """Claims the true picture unless the channel has more noise than `limit`; counts its calls."""

    limit: float = 1e-2
    slow: bool = False
    stop_at: int | None = None
    seen: list = field(default_factory=list)
    name: str = "images.knows"
    title: str = "Knows"

    def blocked_by(self, problem):
        return None

    def run(self, problem, *, seed, watch):
        self.seen.append(problem)
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        shape = (2, 1, *problem.knowledge.input_shape)
        blind = problem.channel.sigma > self.limit
        true = CLIENT.inputs.to(next(iter(problem.gradient.values())))
        inputs = torch.full(shape, 0.5).to(true) if blind else true.expand(shape).clone()
        return Recovery(
            inputs=inputs, input_labels=CLIENT.labels.expand(2, 1), expired=blind and self.slow
        )


def options(attack, **more):
    made = replace(options_of(), attacks=(attack,), selected=frozenset({attack.name}), named=True)
    return replace(made, **more)


def run(attack=None, *, settings=FEW, truth=True, watch=None, **more):
    problem = CLIENT.problem()
    known = CLIENT.truth() if truth else None
    watch = watch or Watch()
    return what_if(problem, (), known, options(attack or Knows()), watch, settings=settings, **more)


def rows(found):
    return {row.setting: row for row in found.rows}


# --------------------------------------------------------------------------- rows


def test_a_row_says_what_was_reached_and_whether_it_passes():
    found = rows(run())
    assert found["no defence"].passes is False
    assert found["weak noise"].passes is False
    assert found["weak noise"].psnr == 200.0
    assert found["weak noise"].labels == 1.0
    assert found["weak noise"].band == "critical"
    assert found["strong noise"].passes
    assert FAILED in found["strong noise"].note
    assert found["strong noise"].score < 7


def test_measured_psnr_is_that_of_the_claim():
    found = rows(run())["strong noise"]
    apart = (CLIENT.inputs.double() - 0.5).square().mean()
    assert found.psnr == pytest.approx(-10 * math.log10(float(apart)), rel=1e-6)


def test_noise_bounds_what_can_be_reached():
    found = rows(run(Knows(limit=9.0)))
    assert 10.7 < found["strong noise"].bound_psnr < found["weak noise"].bound_psnr


def test_weakest_setting_that_passes():
    (sentence,) = run().weakest
    assert sentence.startswith("strong noise: ")
    assert sentence.endswith(f"score 0.0, {FAILED}")


def test_no_defence_comes_first_and_settings_in_order_of_strength():
    assert [row.setting for row in run(settings=(MILD, STRONG, NO_DEFENCE, WEAK)).rows] == [
        "no defence", "weak noise", "strong noise", "clipped",
    ]  # fmt: skip


def test_the_gate_decides_what_passes():
    assert rows(run(gate="0.1"))["weak noise"].passes is False
    assert "7.0 (high)" in run().gate
    assert gate_words("low")[1] == 0.1


def test_attacks_that_were_cut_short_say_nothing():
    found = run(Knows(slow=True))
    assert rows(found)["strong noise"].passes is None
    assert CUT_SHORT in rows(found)["strong noise"].note
    assert found.weakest == ()


@pytest.mark.parametrize(("name", "passes"), [("images.defended", True), ("images.layers", None)])
def test_searches_after_the_adaptive_attack_may_be_cut_short(name, passes):
    first, late = Knows(name=name), Knows(name="images.priors", slow=True)
    made = options(first, attacks=(late, first), selected=frozenset({name, late.name}))
    found = what_if(
        CLIENT.problem(), (), CLIENT.truth(), made, Watch(), settings=(NO_DEFENCE, STRONG)
    )
    assert rows(found)["strong noise"].passes is passes


def test_nothing_passes_where_the_attacks_are_blind_anyway():
    found = run(Knows(limit=-1.0))
    assert all(row.passes is None for row in found.rows)
    assert found.weakest == ()
    assert CLOSED in found.reference
    assert CLOSED not in run().reference


def test_nothing_passes_without_the_row_to_compare_with():
    found = run(settings=(STRONG,))
    assert rows(found)["strong noise"].passes is None


def test_an_attack_that_is_blocked_leaves_no_answer():
    class Blocked(Knows):
        def blocked_by(self, problem):
            return "blocked" if problem.channel.sigma else None

    found = rows(run(Blocked()))
    assert found["strong noise"].passes is None
    assert found["strong noise"].psnr is None
    assert "no attack could look" in found["strong noise"].note


def test_what_cannot_be_made_is_left_out_with_its_reason():
    found = run(settings=(NO_DEFENCE, Setting("larger batch", 1000.0, "huge")))
    assert [line.split(":")[0] for line in found.left_out] == ["huge"]


def test_the_attack_sees_nothing_but_the_dump_and_the_defence():
    attack = Knows()
    run(attack)
    for problem in attack.seen:
        assert problem.labels is None
        assert problem.auxiliary is None
        assert problem.knowledge.batch_size == 1
    assert [problem.channel.sigma for problem in attack.seen] == [0.0, 1e-3, 1.0, 0.0]


def test_the_same_seed_gives_the_same_rows():
    assert run() == run()


def test_the_papers_statement_stands_beside_noise_on_its_lenet():
    assert "arXiv:1906.08935" in run().paper
    assert "weak noise: 200 dB" in run().paper


def test_what_the_audit_itself_found_is_the_row_without_a_defence():
    attack, (claim,) = Knows(), (run_evidence(),)
    found = what_if(CLIENT.problem(), (claim,), None, options(attack), Watch(), settings=FEW)
    bare = rows(found)["no defence"]
    assert bare.note == "as the audit found it"
    assert bare.psnr == max(claim.agreement)
    assert bare.passes is False
    assert [problem.channel.sigma for problem in attack.seen] == [1e-3, 1.0, 0.0]


def test_of_a_dump_that_was_defended_the_row_without_a_defence_is_attacked():
    problem = replace(CLIENT.problem(), channel=Channel(sigma=1e-4))
    attack = Knows()
    found = what_if(
        problem, (run_evidence(),), CLIENT.truth(), options(attack), Watch(), settings=FEW
    )
    assert len(attack.seen) == len(FEW)
    assert rows(found)["no defence"].note == ""


# --------------------------------------------------------------------------- budget


def test_what_the_budget_does_not_reach_is_left_out():
    found = run(watch=Watch(deadline=time.monotonic() - 1))
    assert found.rows == ()
    assert len(found.left_out) == len(FEW)
    assert all("the budget ended" in line for line in found.left_out)


def test_each_row_has_a_fair_share_and_the_first_more():
    watch = Watch(deadline=time.monotonic() + 60)
    share = run_module._share(watch, list(FEW)).deadline - time.monotonic()
    assert share == pytest.approx(60 * 3 / 6, abs=0.5)
    share = run_module._share(watch, [WEAK, STRONG]).deadline - time.monotonic()
    assert share == pytest.approx(30, abs=0.5)


# --------------------------------------------------------------------------- to be continued


def kept(path, key="k"):
    return Unfinished.beside(path / "report", key, recovered=False)


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    whole = run()
    with pytest.raises(KeyboardInterrupt):
        run(Knows(stop_at=3), unfinished=kept(tmp_path))
    rest = Knows()
    assert run(rest, unfinished=kept(tmp_path)) == whole
    assert [problem.channel.sigma for problem in rest.seen] == [1.0, 0.0]


def test_another_audit_begins_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Knows(stop_at=3), unfinished=kept(tmp_path))
    again = Knows()
    run(again, unfinished=kept(tmp_path, "another"))
    assert len(again.seen) == len(FEW)


def test_what_was_finished_stays_while_time_was_short(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(Knows(stop_at=3), unfinished=kept(tmp_path))
    short = run(unfinished=kept(tmp_path), watch=Watch(deadline=time.monotonic() - 1))
    assert len(short.rows) == 2
    assert is_short_of_time(short)
    assert not is_short_of_time(run())
    assert not is_short_of_time(None)
    assert len(kept(tmp_path).rows) == 2


def test_rows_are_numbers_and_words_of_ours_only(tmp_path):
    """They may be kept where nothing recovered may touch the disk."""
    with pytest.raises(KeyboardInterrupt):
        run(Knows(stop_at=4), unfinished=kept(tmp_path))
    files = list((tmp_path / ".report-unfinished").iterdir())
    assert len(files) == 3
    assert all(load_file(path) == {} for path in files)  # no tensor
    for found in kept(tmp_path).rows.values():
        values = asdict(found).values()
        assert all(value is None or isinstance(value, str | int | float) for value in values)


# --------------------------------------------------------------------------- small rules


def row(setting, passes):
    return WhatIfRow(
        setting.kind, setting.words, setting.strength, "", None, None, None, 0.0, "none", None,
        passes, "",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("weak", "strong", "found"),
    [
        (True, True, "weak noise"),
        (False, True, "strong noise"),
        (True, False, None),  # a stronger one fails: the weaker one was luck
        (True, None, None),
        (None, True, "strong noise"),
    ],
)
def test_no_setting_is_recommended_below_one_that_fails(weak, strong, found):
    weakest = weakest_of("noise", [row(WEAK, weak), row(STRONG, strong)])
    assert (weakest.setting if weakest else None) == found


def test_of_clipping_the_smaller_norm_is_the_stronger():
    tight = Setting("clipping", 0.1, "tight")
    assert weakest_of("clipping", [row(MILD, True), row(tight, True)]).setting == "clipped"


def test_adaptive_search_comes_before_the_others_and_after_closed_forms():
    names = ["labels.head", "images.layers", "images.lm", "images.defended", "images.priors"]
    attacks = tuple(Says(Recovery(), name=name) for name in names)
    order = [attack.name for attack in adaptive_first(attacks)]
    assert order == [*names[:2], "images.defended", "images.lm", "images.priors"]


def test_the_papers_searches_run_only_when_named():
    names = {attack.name for attack in chosen(options_of())}
    assert "images.lm" in names
    assert not names & {"images.dlg", "images.idlg"}
    assert "images.dlg" in {attack.name for attack in chosen(options_of(attacks=["images.dlg"]))}


def test_the_adaptive_attack_runs_whatever_was_named():
    names = [attack.name for attack in chosen(options_of(attacks=["images.layers"]))]
    assert set(names) == {"labels.head", "images.layers", "images.lm", "images.defended"}


def test_a_bound_that_leaves_room_is_noted():
    found = rows(run(Knows(limit=1e-9)))
    assert "enough for a better one" in found["weak noise"].note
    assert "enough for a better one" not in found["strong noise"].note


def test_settings_have_names_of_their_own():
    assert len({setting.words for setting in SETTINGS}) == len(SETTINGS)
    assert len({(setting.kind, setting.strength) for setting in SETTINGS}) == len(SETTINGS)


def test_a_claim_of_another_size_is_not_measured():
    evidence = run_evidence()
    problem, truth = CLIENT.problem(), CLIENT.truth()
    two = replace(truth, inputs=truth.inputs.repeat(2, 1, 1, 1), labels=truth.labels.repeat(2))
    assert psnr_of(problem, evidence, truth) == 200.0
    assert psnr_of(problem, evidence, two) is None


def run_evidence():
    from auditor.trials.running import attempt

    return attempt(CLIENT.problem(), Knows(), seed=0, watch=Watch())


# --------------------------------------------------------------------------- choices


@pytest.mark.parametrize(
    ("preset", "said", "found"),
    [("standard", None, False), ("deep", None, True), ("deep", False, False), ("fast", True, True)],
)
def test_deep_audits_ask_what_would_have_helped(preset, said, found):
    assert make_options(preset=preset, what_if=said, device="cpu").what_if is found


def test_of_texts_it_is_refused():
    with pytest.raises(UsageError, match="pictures"):
        choices("standard", None, 0, None, "cpu", "none", text=True, what_if=True)
