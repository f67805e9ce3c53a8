"""From evidence to findings. Tensors stop here, and so does everything that was recovered.

Redaction happens once, here: a finding says how much was recovered and how certainly, never what.
This is the only room besides metrics.py that may take a `Truth`, and it looks at it after every
attack has ended: no choice among claims depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from auditor.evidence import (
    CONSISTENT,
    best_pixels,
    is_equal,
    is_proved,
    is_verified,
    where_it_ended,
)
from auditor.metrics import label_accuracy, match_batch, mse, psnr, ssim
from auditor.problem import tolerance_of
from auditor.records import (
    Certainty,
    Evidence,
    Finding,
    LabelClaim,
    LinkReport,
    Measure,
    Problem,
    Severity,
    Truth,
)
from auditor.rules import finding_of
from auditor.samples.findings import sample_finding, why_more, why_no_sample
from auditor.severity import input_severity, label_severity

_RECOGNISABLE = 20.0  # dB: from here on a sample counts as recovered
_FOUND = 1e-4  # relative residual at which a search has found something
_ABOVE_FLAT = 3.0  # dB above the best single-coloured picture, or a resemblance means nothing
_PROVED = (
    "The picture was computed, not searched for: the equations of every layer that was read "
    "determine its input, a second reading with other rounding errors and another start ends "
    "within the rounding of a pixel, and its gradient equals the dump."
)
# What a claim is taken to be worth when nothing but its residual speaks for it.
_UNCONFIRMED = {"equal": 30.0, "close": 20.0}


def findings_of(problem: Problem, evidence: Evidence, truth: Truth | None) -> tuple[Finding, ...]:
    """What this evidence shows, worst first. Empty when it shows nothing."""
    found: list[Finding] = []
    if evidence.recovery.labels is not None:
        found += _label_findings(problem, evidence, evidence.recovery.labels, truth)
    if evidence.best is not None:
        found += _input_findings(problem, evidence, truth)
    if any(evidence.samples):
        found.append(sample_finding(problem, evidence, truth))
    return worst_first(f for f in found if f.severity.score > 0)


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By score; of equal ones, what the dump shows by itself before what was measured."""
    return tuple(sorted(findings, key=lambda f: (-f.severity.score, f.certainty == "measured")))


def why_nothing(problem: Problem, evidence: Evidence) -> str:
    """Why an attack that ended shows nothing, in one sentence."""
    if evidence.recovery.links and not is_equal(problem, evidence):
        return _hidden(evidence) + "; an attack that failed proves nothing"
    if evidence.best is None and evidence.recovery.labels is None:
        return f"{why_no_sample(evidence)}; an attack that failed proves nothing"
    if evidence.best is None:
        claim = evidence.recovery.labels
        if claim is not None and not claim.statements:
            return "no statement about labels could be proved on this dump"
        return "the head's gradient is too small for its precision: no sign can be trusted"
    if is_verified(problem, evidence):
        return "the rebuilt picture explains the gradient, but is not like the truth that was given"
    return _unfinished(problem, evidence) + "; a failed search proves nothing"


def why_unfinished(problem: Problem, evidence: Evidence) -> str:
    """Why a leak that was shown may be larger than shown; empty when it cannot be."""
    if evidence.best is None and any(evidence.samples):
        return why_more(problem, evidence)
    if evidence.best is None or is_verified(problem, evidence):
        return ""
    return _unfinished(problem, evidence)


def _unfinished(problem: Problem, evidence: Evidence) -> str:
    assert evidence.best is not None
    residual = evidence.worst_residuals[evidence.best]
    if evidence.recovery.links:
        return _hidden(evidence)
    if evidence.recovery.guided and is_equal(problem, evidence):
        return "a prior (neighbouring pixels are alike) chose among pictures that fit the dump"
    if is_equal(problem, evidence):
        return "no independent restart confirms the best one"
    ended = "the budget ended" if evidence.recovery.expired else "the search ended"
    return (
        f"{ended} at a relative residual of {residual:.1e} in the worst tensor, "
        f"{tolerance_of(problem):.1e} is needed"
    )


def _hidden(evidence: Evidence) -> str:
    """What keeps a reading layer by layer from being certain."""
    last = next((link for link in evidence.recovery.links if not link.solved), None)
    if evidence.recovery.expired:
        return where_it_ended(evidence.recovery)
    if last is None:
        return "every layer was read, but the two readings of the dump differ"
    return _why_unsolved(last)


def _why_unsolved(last: LinkReport) -> str:
    if last.undetermined and last.status == "reached the goal":
        return (
            f"the layer {last.layer!r} hides its input: its equations leave about "
            f"{last.undetermined} of {last.unknowns} numbers open"
        )
    if not last.undetermined and last.gap > last.residual and last.status == "reached the goal":
        return (
            f"the layer {last.layer!r} amplifies rounding errors: two readings of the dump end "
            f"{last.gap:.1e} of their size apart"
        )
    if last.status == "searched":
        ended = f"the search ended at a relative residual of {last.residual:.1e}"
        if last.residual <= _FOUND:
            ended = "no second search confirms what was found"
        return f"the picture was searched for below the last layer that could be read, and {ended}"
    if last.undetermined:
        return f"the layer {last.layer!r} was not solved to the end ({last.status})"
    return (
        f"the equations of the layer {last.layer!r} do not hold for one sample: relative residual "
        f"{last.residual:.1e} ({last.status})"
    )


# --------------------------------------------------------------------------- labels


def _label_findings(
    problem: Problem, evidence: Evidence, claim: LabelClaim, truth: Truth | None
) -> list[Finding]:
    size, proved = problem.knowledge.batch_size, int(claim.lower.sum())
    measures = [Measure("labels proved", float(proved), f"of {size}" if size else "")]
    if (
        truth is not None
        and claim.estimate is not None
        and len(claim.estimate) == len(truth.labels)
    ):
        accuracy = label_accuracy(claim.estimate, truth.labels)
        measures.append(Measure("label accuracy (measured)", accuracy, ""))
    if claim.complete:
        severity = label_severity(proved_share=1.0, complete=True, estimated=True)
        what = "The label of the only sample is" if proved == 1 else f"All {proved} labels are"
        if claim.upper is None:  # nobody said that there is one
            what = "The label of the only sample, or of all if the head cannot tell them apart, is"
        text = f"{what} proved by {', '.join(claim.statements)}."
        return [
            finding_of("GA101", severity, "proved", text, evidence.attack, measures, claim.premises)
        ]
    found = []
    if proved:
        share = proved / size if size else None
        severity = label_severity(proved_share=share, complete=False, estimated=False)
        text = (
            f"At least {proved} {f'of {size} ' if size else ''}labels, of "
            f"{int((claim.lower > 0).sum())} classes, are proved by {', '.join(claim.statements)}."
        )
        found.append(
            finding_of("GA102", severity, "proved", text, evidence.attack, measures, claim.premises)
        )
    if claim.estimate is not None and claim.statements:
        severity = label_severity(proved_share=0.0, complete=False, estimated=True)
        text = f"A best multiset of {size} labels was derived; {_error_rate(claim)}"
        more = [*measures, *_expectations(claim)]
        found.append(finding_of("GA103", severity, "estimated", text, evidence.attack, more, ()))
    return found


def _error_rate(claim: LabelClaim) -> str:
    """How far the estimate can be trusted, in words."""
    if claim.probabilities is None:
        return (
            "what goes beyond the proved part is an estimate, uncalibrated: its error rate on this "
            "model is not known."
        )
    return (
        f"what goes beyond the proved part is an estimate, {claim.calibration}: how often such "
        "labels are right was counted on simulated clients of this model."
    )


def _expectations(claim: LabelClaim) -> list[Measure]:
    """The share of the estimate that should be right, and what the dump leaves open."""
    assert claim.estimate is not None
    found = []
    if claim.probabilities is not None:
        expected = float(claim.probabilities.mean())
        found.append(Measure("expected label accuracy", expected, ""))
    if claim.undetermined is not None:
        open_ = float(claim.undetermined.sum())
        found.append(Measure("labels undetermined", open_, f"of {len(claim.estimate)}"))
    return found


# --------------------------------------------------------------------------- inputs


def _input_findings(problem: Problem, evidence: Evidence, truth: Truth | None) -> list[Finding]:
    assert evidence.best is not None
    if not math.isfinite(evidence.worst_residuals[evidence.best]):
        return []
    pixels = best_pixels(problem, evidence)
    comparable = truth is not None and truth.inputs.shape == pixels.shape
    measured = _Measured(pixels.double(), truth) if comparable and truth is not None else None
    found = []
    if measured is not None and measured.leaks:
        found.append(_measured_finding(evidence, measured))
    claimed = _claimed_finding(problem, evidence, measured)
    return found + ([claimed] if claimed is not None else [])


class _Measured:
    """The best claim beside the truth, sample by sample."""

    def __init__(self, pixels: Tensor, truth: Truth) -> None:
        true = truth.inputs[match_batch(pixels, truth.inputs)].double()
        self.mse, self.psnr, self.ssim = mse(pixels, true), psnr(pixels, true), ssim(pixels, true)
        flat = true.mean((2, 3), keepdim=True).expand_as(true)
        real = self.psnr > psnr(flat, true) + _ABOVE_FLAT  # (N,)
        self.psnr = self.psnr.clamp_max(200.0)  # identical pictures: infinity is no JSON number
        self.counted = torch.where(real, self.psnr, 0.0)

    @property
    def leaks(self) -> bool:
        return self.severity("measured").score > 0

    def severity(self, certainty: Certainty) -> Severity:
        return _severity_of(self.counted, certainty)

    def measures(self) -> list[Measure]:
        return [
            Measure("PSNR, median (measured)", float(self.psnr.median()), "dB"),
            Measure("PSNR, worst-protected sample (measured)", float(self.psnr.max()), "dB"),
            Measure("SSIM, median (measured)", float(self.ssim.median()), ""),
            Measure("MSE, median (measured)", float(self.mse.median()), ""),
        ]


def _severity_of(decibels: Tensor, certainty: Certainty) -> Severity:
    """The worst-protected sample decides; the share of recognisable samples adds to it."""
    share = max(float((decibels >= _RECOGNISABLE).double().mean()), 1 / len(decibels))
    return input_severity(certainty=certainty, psnr=float(decibels.max()), share=share)


def _measured_finding(evidence: Evidence, measured: _Measured) -> Finding:
    count, size = int((measured.counted >= _RECOGNISABLE).sum()), len(measured.counted)
    text = (
        f"{count} of {size} rebuilt pictures match the truth at {_RECOGNISABLE:.0f} dB or better."
    )
    return finding_of(
        "GA203",
        measured.severity("measured"),
        "measured",
        text,
        evidence.attack,
        measured.measures(),
        ("the truth file is what the client had", *evidence.recovery.assumed),
    )


def _claimed_finding(
    problem: Problem, evidence: Evidence, measured: _Measured | None
) -> Finding | None:
    """What the dump itself shows, without truth; with truth, no more than what was measured."""
    assert evidence.best is not None
    residual = evidence.worst_residuals[evidence.best]
    if residual > max(CONSISTENT, tolerance_of(problem)):
        return None
    verified = is_verified(problem, evidence)
    certainty: Certainty = "verified" if verified else "consistent"
    if is_proved(problem, evidence):
        certainty = "proved"
    severity = _severity_of(_worth(problem, evidence), certainty)
    if measured is not None and measured.severity(certainty).score < severity.score:
        severity = measured.severity(certainty)
    size = problem.knowledge.batch_size or 1
    text = _PROVED if certainty == "proved" else _claim_text(evidence, verified, size)
    if severity.score == 0:
        return None
    premises = ["model, loss and batch size are as listed under assumptions"]
    if certainty == "proved":
        premises.append("the gradient is that of one sample (its rank was tested)")
    premises += evidence.recovery.assumed
    return finding_of(
        "GA201" if verified else "GA202",
        severity,
        certainty,
        text,
        evidence.attack,
        _claim_measures(evidence),
        premises,
    )


def _worth(problem: Problem, evidence: Evidence) -> Tensor:
    """Per sample (N,), the dB that the evidence supports without truth.

    Independent restarts miss the truth independently, so their distance to one another is about
    3 dB worse than their distance to it: agreement is a cautious stand-in.
    """
    if evidence.agreement:
        return torch.tensor(evidence.agreement, dtype=torch.float64)
    worth = _UNCONFIRMED["equal" if is_equal(problem, evidence) else "close"]
    share = _open_share(evidence)
    if share > 0:  # take what was left open for noise, uniform over the pixel range
        worth = min(worth, -10 * math.log10(share / 12))
    known = problem.knowledge
    unknowns = (known.batch_size or 1) * math.prod(known.input_shape)
    if sum(sent.numel() for sent in problem.gradient.values()) < unknowns:
        worth = 0.0  # fewer numbers than pixels: they fit many pictures
    return torch.full((problem.knowledge.batch_size or 1,), worth, dtype=torch.float64)


def _open_share(evidence: Evidence) -> float:
    """The largest share of its input that a layer left open, 0..1."""
    links = evidence.recovery.links
    return max((link.undetermined / link.unknowns for link in links), default=0.0)


def _claim_text(evidence: Evidence, verified: bool, size: int) -> str:
    restarts = len(evidence.worst_residuals)
    what = "The picture" if size == 1 else f"All {size} pictures"
    verb = "was" if size == 1 else "were"
    if verified:
        return (
            f"{what} {verb} rebuilt: {evidence.agreeing} of {restarts} independent restarts "
            "reached the same answer, and its gradient equals the dump."
        )
    if evidence.agreement:
        return (
            f"{what} {verb} rebuilt so that the gradient is close to the dump, but restarts "
            "do not all agree closely enough to rule out another answer."
        )
    return (
        f"{what} {verb} rebuilt so that the gradient is close to the dump; no independent "
        "restart confirms that this is the only answer."
    )


def _claim_measures(evidence: Evidence) -> Sequence[Measure]:
    assert evidence.best is not None
    measures = [
        Measure("relative residual", evidence.residuals[evidence.best], ""),
        Measure("relative residual, worst tensor", evidence.worst_residuals[evidence.best], ""),
        Measure(
            "restarts that agree", float(evidence.agreeing), f"of {len(evidence.worst_residuals)}"
        ),
    ]
    if evidence.agreement:
        measures.append(Measure("agreement, worst sample", min(evidence.agreement), "dB"))
    return measures
