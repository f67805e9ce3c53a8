"""From evidence to findings: tables of codes, severities and certainties; nothing recovered."""

import dataclasses
import math
from dataclasses import replace

import pytest
import torch
from problems import Client, batch, lenet_client

from auditor.evidence import examine, is_equal
from auditor.findings import findings_of
from auditor.reasons import why_nothing, why_unfinished
from auditor.records import Course, Evidence, LabelClaim, LinkReport, Recovery, Truth
from auditor.severity import input_severity, label_severity

CLASSES = 4


def label_evidence(lower, *, estimate=None, complete=False, statements=("T1",), upper=None):
    lower = torch.tensor(lower)
    guess = None if estimate is None else torch.tensor(estimate)
    labels = LabelClaim(lower, upper, guess, statements, ("a premise",), complete)
    return Evidence("labels.head", Recovery(labels=labels), (), (), 1e-7, None, (), 0, {}, 0.1)


def problem_for(size):
    return lenet_client(size or 1, classes=CLASSES).problem(size=size)


def row_of(finding):
    return finding.code, finding.certainty, finding.severity.score


def measures(finding):
    return {m.name: m.value for m in finding.measures}


# --------------------------------------------------------------------------- labels

EVERY = label_severity(proved_share=1.0, complete=True, estimated=True).score
GUESS = label_severity(proved_share=0.0, complete=False, estimated=True).score


def share(value):
    return label_severity(proved_share=value, complete=False, estimated=False).score


@pytest.mark.parametrize(
    ("size", "evidence", "rows"),
    [
        (1, label_evidence([0, 1, 0, 0], complete=True), [("GA101", "proved", EVERY)]),
        (4, label_evidence([2, 1, 1, 0], complete=True), [("GA101", "proved", EVERY)]),
        (4, label_evidence([1, 1, 0, 0]), [("GA102", "proved", share(0.5))]),
        (
            4,
            label_evidence([1, 1, 0, 0], estimate=[0, 1, 1, 2]),
            [("GA102", "proved", share(0.5)), ("GA103", "estimated", GUESS)],
        ),
        (
            20,
            label_evidence([1, 0, 0, 0], estimate=[0] * 20),
            [("GA103", "estimated", GUESS), ("GA102", "proved", share(0.05))],
        ),
        (4, label_evidence([0, 0, 0, 0], estimate=[0, 1, 1, 2]), [("GA103", "estimated", GUESS)]),
        (None, label_evidence([1, 1, 0, 0]), [("GA102", "proved", share(None))]),
        (4, label_evidence([0, 0, 0, 0], statements=()), []),
        (4, label_evidence([0, 0, 0, 0], estimate=[0, 1, 1, 2], statements=()), []),
        (None, label_evidence([0, 0, 0, 0], statements=()), []),
    ],
)  # fmt: skip
def test_labels(size, evidence, rows):
    found = findings_of(problem_for(size), evidence, None)
    assert [row_of(f) for f in found] == rows
    assert all(f.attack == "labels.head" and f.remedy and f.title and f.summary for f in found)
    for finding in found:
        assert finding.premises == (("a premise",) if finding.certainty == "proved" else ())


def test_the_summary_counts_and_names_no_class():
    (finding,) = findings_of(problem_for(4), label_evidence([0, 2, 0, 1]), None)
    assert finding.summary == "At least 3 of 4 labels, of 2 classes, are proved by T1."


@pytest.mark.parametrize(
    ("upper", "whose"),
    [
        (torch.tensor([0, 0, 1, 0]), "The label of the only sample is"),
        (None, "The label of the only sample, or of all if the head cannot tell them apart, is"),
    ],
)
def test_one_sample_or_several_alike(upper, whose):
    evidence = label_evidence([0, 0, 1, 0], complete=True, statements=("T3",), upper=upper)
    (finding,) = findings_of(problem_for(1), evidence, None)
    assert finding.summary == f"{whose} proved by T3."


def test_label_accuracy_is_measured_with_truth_and_changes_nothing_else():
    evidence = label_evidence([1, 1, 0, 0], estimate=[0, 1, 1, 2])
    problem = problem_for(4)
    truth = Truth(torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 3, 3]))
    without, with_truth = (findings_of(problem, evidence, t) for t in (None, truth))
    assert [row_of(f) for f in without] == [row_of(f) for f in with_truth]
    assert measures(with_truth[0])["label accuracy (measured)"] == 0.5
    assert "label accuracy (measured)" not in measures(without[0])


def test_an_estimate_says_whether_it_is_calibrated():
    evidence = label_evidence([1, 1, 0, 0], estimate=[0, 1, 1, 2])
    plain = findings_of(problem_for(4), evidence, None)
    guess = next(f for f in plain if f.code == "GA103")
    assert "uncalibrated" in guess.summary
    assert "expected label accuracy" not in measures(guess)
    claim = replace(
        evidence.recovery.labels,
        probabilities=torch.tensor([1.0, 1.0, 0.75, 0.25]).double(),
        undetermined=torch.tensor([False, False, False, True]),
        calibration="self-simulated on 500 auxiliary images",
    )
    known = replace(evidence, recovery=Recovery(labels=claim))
    guess = next(f for f in findings_of(problem_for(4), known, None) if f.code == "GA103")
    assert "self-simulated on 500 auxiliary images" in guess.summary
    assert "uncalibrated" not in guess.summary
    assert measures(guess)["expected label accuracy"] == 0.75
    assert measures(guess)["labels undetermined"] == 1


def test_more_true_samples_than_labels_is_no_crash():
    """A single sample was deduced; the truth holds more."""
    evidence = label_evidence([0, 1, 0, 0], estimate=[1], complete=True, statements=("T3",))
    truth = Truth(torch.rand(8, 1, 8, 8), torch.ones(8, dtype=torch.int64))
    assert findings_of(problem_for(1), evidence, truth)


# --------------------------------------------------------------------------- inputs


def course(row):
    return Course((0,), (0.0,), (0,), row[None].float(), "reached the goal")


def examined(had, *pictures, problem=None, labels=None):
    inputs = torch.stack([p.double() for p in pictures])
    labels = had.labels.expand(len(inputs), -1) if labels is None else labels
    recovery = Recovery(inputs=inputs, input_labels=labels, courses=tuple(map(course, inputs)))
    return examine(problem or had.problem(), recovery, attack="images.says", seconds=0.0)


def near(x, size, seed=0):
    return x + size * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


def unlike(x, seed=0):
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(1000 + seed))


@pytest.mark.parametrize("count", [1, 2])
def test_a_verified_picture(count):
    had = lenet_client(count)
    evidence = examined(had, near(had.inputs, 1e-6), near(had.inputs, 1e-6, 1))
    (finding,) = findings_of(had.problem(), evidence, None)
    assert row_of(finding) == ("GA201", "verified", 10.0)
    assert finding.severity.band == "critical"
    assert measures(finding)["restarts that agree"] == 2
    assert measures(finding)["relative residual, worst tensor"] < 1e-4
    assert measures(finding)["agreement, worst sample"] > 60
    assert finding.premises
    assert why_unfinished(had.problem(), evidence) == ""


def test_one_restart_is_consistent_not_verified():
    had = lenet_client()
    evidence = examined(had, had.inputs)
    (finding,) = findings_of(had.problem(), evidence, None)
    assert (finding.code, finding.certainty) == ("GA202", "consistent")
    assert 7.0 <= finding.severity.score < 9.1
    assert why_unfinished(had.problem(), evidence) == (
        "no independent restart confirms the best one"
    )


def test_close_is_worth_less_than_equal():
    had = lenet_client()
    problem = had.problem()
    sizes = [0.1 * 2**-k for k in range(12)]
    size = next(s for s in sizes if _worst(had, near(had.inputs, s)) < 8e-3)
    assert _worst(had, near(had.inputs, size)) > 1e-3
    (close,) = findings_of(problem, examined(had, near(had.inputs, size)), None)
    (equal,) = findings_of(problem, examined(had, had.inputs), None)
    assert close.code == equal.code == "GA202"
    assert close.severity.score < equal.severity.score


def _worst(had, picture):
    return examined(had, picture).worst_residuals[0]


def test_a_lie_is_no_finding():
    had = lenet_client()
    problem = had.problem()
    for pictures in ((unlike(had.inputs),), (unlike(had.inputs),) * 4, (0 * had.inputs,)):
        evidence = examined(had, *pictures)
        assert findings_of(problem, evidence, None) == ()
        assert "a failed search proves nothing" in why_nothing(problem, evidence)
        assert "relative residual" in why_nothing(problem, evidence)


def _blind():
    class Blind(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = torch.nn.Linear(40, 3)

        def forward(self, x):
            return self.head(0 * x.flatten(1)[:, :1] + torch.ones(40, dtype=x.dtype))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Blind()


def test_pictures_that_explain_the_dump_and_differ_are_worth_next_to_nothing():
    """The gradient does not depend on the picture: nothing was rebuilt."""
    had = Client(_blind(), *batch(1, 3, shape=(1, 8, 8)))
    evidence = examined(had, *(unlike(had.inputs, seed) for seed in range(4)))
    assert max(evidence.worst_residuals) < 1e-5
    found = findings_of(had.problem(), evidence, None)
    assert all(f.severity.score < 1 and f.certainty != "verified" for f in found)


def test_fewer_numbers_than_pixels_show_no_picture():
    """A dump of 4 numbers cannot hold 64 pixels, whatever a single restart comes to."""
    had = lenet_client()
    problem = had.problem({"fc.bias": had.gradients()["fc.bias"]})
    evidence = examined(had, had.inputs, problem=problem)
    assert evidence.worst_residuals[0] < 1e-5
    found = findings_of(problem, evidence, None)
    assert all(f.severity.score < 7 for f in found), [row_of(f) for f in found]


# --------------------------------------------------------------------------- with truth


def test_measured_beside_verified():
    had = lenet_client(2)
    evidence = examined(had, near(had.inputs, 1e-6), near(had.inputs, 1e-6, 1))
    found = findings_of(had.problem(), evidence, had.truth())
    assert {row_of(f) for f in found} == {
        ("GA201", "verified", 10.0),
        ("GA203", "measured", 10.0),
    }
    measured = next(f for f in found if f.code == "GA203")
    assert measures(measured)["PSNR, median (measured)"] > 60
    assert measures(measured)["SSIM, median (measured)"] > 0.99
    assert all(math.isfinite(m.value) for f in found for m in f.measures)


def test_identical_pictures_are_finite_numbers():
    had = lenet_client(2)
    evidence = examined(had, had.inputs, had.inputs)
    found = findings_of(had.problem(), evidence, had.truth())
    assert all(math.isfinite(m.value) for f in found for m in f.measures)


@pytest.mark.parametrize(
    "picture",
    [
        lambda x: torch.full_like(x, 0.5),
        lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
        unlike,
        torch.zeros_like,
    ],
    ids=["gray", "its own mean", "another", "black"],
)
@pytest.mark.parametrize("contrast", [1.0, 0.1])
def test_what_any_flat_picture_reaches_is_no_leak(picture, contrast):
    """On a picture of little contrast gray alone comes within 20 dB."""
    had = lenet_client()
    had = replace(had, inputs=0.5 + contrast * (had.inputs - 0.5))
    evidence = examined(had, picture(had.inputs))
    assert findings_of(had.problem(), evidence, had.truth()) == ()


def test_a_resemblance_counts_without_a_small_residual():
    """The search did not end, but whoever knows the truth sees the picture."""
    had = lenet_client()
    evidence = examined(had, near(had.inputs, 0.06))
    assert evidence.worst_residuals[0] > 1e-2
    (finding,) = findings_of(had.problem(), evidence, had.truth())
    assert (finding.code, finding.certainty) == ("GA203", "measured")
    expected = measures(finding)["PSNR, median (measured)"]
    assert finding.severity == input_severity(certainty="measured", psnr=expected, share=1.0)
    assert 4 < finding.severity.score < 10
    assert "the truth file is what the client had" in finding.premises


def test_the_worst_protected_sample_decides():
    had = lenet_client(2)
    pictures = torch.stack([near(had.inputs[0], 1e-4), unlike(had.inputs[1])])
    (finding,) = findings_of(had.problem(), examined(had, pictures), had.truth())
    assert finding.severity == input_severity(certainty="measured", psnr=80.0, share=0.5)
    assert finding.summary.startswith("1 of 2")


def test_the_order_of_the_truth_means_nothing():
    had = replace(lenet_client(3), labels=torch.tensor([0, 1, 2]))
    turn = torch.tensor([1, 2, 0])
    evidence = examined(had, near(had.inputs, 1e-4))
    turned = Truth(had.inputs[turn], had.labels[turn])
    plain, other = (findings_of(had.problem(), evidence, t) for t in (had.truth(), turned))
    assert plain == other


def test_without_a_small_residual_truth_claims_nothing_but_what_it_measured():
    had = lenet_client()
    evidence = examined(had, unlike(had.inputs))
    assert findings_of(had.problem(), evidence, had.truth()) == ()


def test_a_consistent_claim_that_truth_refutes_is_no_finding():
    had = Client(_blind(), *batch(1, 3))
    evidence = replace(examined(had, unlike(had.inputs)), ceiling=math.inf)
    assert len(findings_of(had.problem(), evidence, None)) == 1
    assert findings_of(had.problem(), evidence, had.truth()) == ()


@pytest.mark.parametrize("pictures", [1, 4])
def test_a_claim_of_a_dump_that_depends_on_no_picture_is_no_finding(pictures):
    """As of untrained networks in which the signal dies away: any picture equals the dump."""
    had = Client(_blind(), *batch(1, 3))
    evidence = examined(had, *(unlike(had.inputs, seed) for seed in range(pictures)))
    assert is_equal(had.problem(), evidence)
    assert findings_of(had.problem(), evidence, None) == ()
    assert "hardly depends on the picture" in why_nothing(had.problem(), evidence)


def test_truth_never_changes_which_restart_is_chosen():
    """The restart with the smaller residual is not the one that is nearer to this truth."""
    had = lenet_client()
    problem = had.problem()
    evidence = examined(had, near(had.inputs, 0.05), near(had.inputs, 1e-5))
    decoy = Truth(near(had.inputs, 0.05).clamp(0, 1), had.labels)
    assert evidence.best == 1
    found = findings_of(problem, evidence, decoy)
    psnr = next(measures(f)["PSNR, median (measured)"] for f in found if f.code == "GA203")
    assert psnr < 30  # of the chosen one; the other is the decoy itself
    for truth in (None, decoy, had.truth()):
        findings_of(problem, evidence, truth)
        assert evidence.best == 1


@pytest.mark.parametrize("count", [1, 2])
def test_a_claim_of_nan_with_truth_is_no_crash(count):
    had = lenet_client(count)
    evidence = examined(had, had.inputs * math.nan)
    assert findings_of(had.problem(), evidence, had.truth()) == ()


# --------------------------------------------------------------------------- nothing leaks


def test_findings_are_plain_data_without_what_was_recovered():
    had = lenet_client(2)
    evidence = examined(had, near(had.inputs, 1e-6), near(had.inputs, 1e-6, 1))
    for finding in findings_of(had.problem(), evidence, had.truth()):
        flat = dataclasses.asdict(finding)
        assert "class" not in finding.summary
        for value in _leaves(flat):
            assert isinstance(value, str | float | int)


def _leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def test_worst_first():
    had = lenet_client(2)
    evidence = examined(had, near(had.inputs, 1e-6), near(had.inputs, 1e-6, 1))
    labels = label_evidence([1, 1, 0, 0], estimate=[0, 1]).recovery.labels
    both = replace(evidence, recovery=replace(evidence.recovery, labels=labels))
    scores = [f.severity.score for f in findings_of(had.problem(), both, had.truth())]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 4


# --------------------------------------------------------------------------- why not


def test_why_nothing_about_labels():
    problem = problem_for(4)
    assert "no statement" in why_nothing(problem, label_evidence([0, 0, 0, 0], statements=()))


def test_why_an_unconfirmed_claim_is_unfinished():
    had = lenet_client()
    evidence = examined(had, near(had.inputs, 0.3))
    reason = why_unfinished(had.problem(), evidence)
    assert reason.startswith("the search ended at a relative residual of")
    expired = replace(evidence, recovery=replace(evidence.recovery, expired=True))
    assert why_unfinished(had.problem(), expired).startswith("the budget ended")


def test_a_verified_claim_that_truth_refutes_is_explained_truthfully():
    """Another truth than the client's: the reason must not deny the restarts that agreed."""
    had = lenet_client()
    problem = had.problem()
    evidence = examined(had, near(had.inputs, 1e-6), near(had.inputs, 1e-6, 1))
    wrong = Truth(unlike(had.inputs), had.labels)
    if not findings_of(problem, evidence, wrong):
        assert "no independent restart" not in why_nothing(problem, evidence)


# --------------------------------------------------------------------------- layer by layer


def link(**more):
    """A layer that is solved, but for what is said."""
    solved = LinkReport(
        "conv.weight", 200, 300, 0, 0.0, 1e-7, 1.0, 9, "reached the goal", False, True
    )
    return replace(solved, **more)


def read(had, *pictures, links):
    """Evidence of a reading layer by layer."""
    problem = had.problem()
    found = examined(had, *pictures) if pictures else None
    recovery = Recovery() if found is None else found.recovery
    return examine(problem, replace(recovery, links=links), attack="images.layers", seconds=0.0)


def test_a_proved_picture():
    had = lenet_client()
    evidence = read(had, had.inputs, had.inputs, links=(link(layer="fc.weight"),))
    (found,) = findings_of(had.problem(), evidence, None)
    assert (found.code, found.certainty, found.severity.score) == ("GA201", "proved", 10.0)
    assert "computed, not searched for" in found.summary
    assert any("one sample" in premise for premise in found.premises)
    assert why_unfinished(had.problem(), evidence) == ""


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"undetermined": 50}, "hides its input: its equations leave about 50 of 200 numbers open"),
        ({"undetermined": 50, "status": "ran out of steps"}, "was not solved to the end"),
        ({"residual": 0.3}, "do not hold for one sample: relative residual 3.0e-01"),
    ],
)
def test_the_layer_that_hides_its_input_is_named(more, told):
    had = lenet_client()
    evidence = read(had, links=(link(), link(layer="first.weight", solved=False, **more)))
    assert findings_of(had.problem(), evidence, None) == ()
    reason = why_nothing(had.problem(), evidence)
    assert "'first.weight'" in reason
    assert told in reason
    assert "proves nothing" in reason


def test_a_guess_is_worth_no_more_than_what_was_determined():
    """Half of the numbers open: as wrong as noise there, 13.8 dB, which is not recognisable."""
    had = lenet_client()
    shut = read(had, had.inputs, links=(link(),))
    half = read(had, had.inputs, links=(link(undetermined=100, solved=False),))
    (before,), (after,) = (findings_of(had.problem(), e, None) for e in (shut, half))
    assert before.code == after.code == "GA202"
    decibels = -10 * math.log10(0.5 / 12)
    assert after.severity == input_severity(certainty="consistent", psnr=decibels, share=1.0)
    assert after.severity.score < before.severity.score
    assert "leave about 100 of 200 numbers open" in why_unfinished(had.problem(), half)


def test_a_picture_that_a_prior_chose_is_consistent_and_says_so():
    had = lenet_client()
    problem = had.problem()
    found = examined(had, had.inputs, had.inputs).recovery
    evidence = examine(problem, replace(found, guided=True), attack="images.lm", seconds=0.0)
    (finding,) = findings_of(problem, evidence, None)
    assert (finding.code, finding.certainty) == ("GA202", "consistent")
    assert "prior" in why_unfinished(problem, evidence)
