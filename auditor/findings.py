"""From evidence to findings. Tensors stop here, and so does everything that was recovered.

Redaction happens once, here: a finding says how much was recovered and how certainly, never what.
This is the only room besides metrics.py that may take a `Truth`, and it looks at it after every
attack has ended: no choice among claims depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.evidence import (
    best_pixels,
    equals_in_words,
    is_close,
    is_close_to_few,
    is_equal,
    is_proved,
    is_verified,
)
from auditor.metrics import flat_of, label_accuracy, match_batch, mse, psnr, ssim
from auditor.problem import is_dropped_from, is_table
from auditor.records import (
    Certainty,
    Evidence,
    Finding,
    LabelClaim,
    Measure,
    Problem,
    Severity,
    Truth,
)
from auditor.rules import finding_of
from auditor.samples.findings import estimated_training, sample_finding
from auditor.severity import input_severity, label_severity, statistics_severity
from auditor.trials.fidelity import Fidelity, ceiling_of, explains

_RECOGNISABLE = 20.0  # dB: from here on a sample counts as recovered
_ABOVE_FLAT = 3.0  # dB above the best single-coloured picture, or a resemblance means nothing
_PROVED = (
    "The {what} was computed, not searched for: the equations of every layer that was read "
    "determine its input, a second reading with other rounding errors and another start ends "
    "within {near}, and its gradient equals the dump."
)
# What a claim is taken to be worth when nothing but its residual speaks for it.
_UNCONFIRMED = {"equal": 30.0, "close": 20.0}


@dataclass(frozen=True)
class Weight:
    """What bears on a claim besides its evidence."""

    fidelity: Fidelity | None = None  # judged without truth; None: by its agreement alone
    doubted: bool = False  # a negative control recovered as much
    cleared: bool = False  # negative controls were run, and none recovered as much
    foreign: bool = False  # the dump is not of this model: nothing about labels follows


_ALONE = Weight()


def findings_of(
    problem: Problem, evidence: Evidence, truth: Truth | None, weight: Weight = _ALONE
) -> tuple[Finding, ...]:
    """What this evidence shows, worst first. Empty when it shows nothing."""
    found: list[Finding] = []
    if evidence.recovery.labels is not None and not weight.foreign:
        found += _label_findings(problem, evidence, evidence.recovery.labels, truth)
    if evidence.best is not None:
        found += _input_findings(problem, evidence, truth, weight)
    if any(evidence.samples):
        found.append(sample_finding(problem, evidence, truth))
    return worst_first(f for f in found if f.severity.score > 0)


def worst_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """By score; of equal ones, what the dump shows by itself before what was measured."""
    return tuple(sorted(findings, key=lambda f: (-f.severity.score, f.certainty == "measured")))


def statistics_findings(problem: Problem) -> tuple[Finding, ...]:
    """GA206 where buffers that came along give the statistics of the batch."""
    layers, size = problem.statistics.values(), problem.knowledge.batch_size
    if not layers:
        return ()
    channels = sum(len(one.mean) for one in layers)
    text = (
        f"Mean and variance over the batch of {size} are known of {channels} channels, in "
        f"{len(layers)} batch norms: the buffers were sent along with the update."
    )
    measures = [Measure("channels with known statistics", float(channels), "")]
    premises = ("the buffers are those after one training step, with the momentum of the model",)
    severity = statistics_severity()
    return (finding_of("GA206", severity, "proved", text, "buffers", measures, premises),)


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


def _input_findings(
    problem: Problem, evidence: Evidence, truth: Truth | None, weight: Weight
) -> list[Finding]:
    assert evidence.best is not None
    if not math.isfinite(evidence.worst_residuals[evidence.best]):
        return []
    pixels = best_pixels(problem, evidence)
    comparable = truth is not None and truth.inputs.shape == pixels.shape
    measured = _Measured(pixels.double(), truth) if comparable and truth is not None else None
    found = []
    if measured is not None and measured.leaks:
        found.append(_measured_finding(evidence, measured))
    claimed = _claimed_finding(problem, evidence, measured, weight)
    return found + ([claimed] if claimed is not None else [])


class _Measured:
    """The best claim beside the truth, sample by sample."""

    def __init__(self, pixels: Tensor, truth: Truth) -> None:
        true = truth.inputs[match_batch(pixels, truth.inputs)].double()
        self.mse, self.psnr = mse(pixels, true), psnr(pixels, true)
        self.ssim = ssim(pixels, true) if pixels.dim() == 4 else None
        real = self.psnr > psnr(flat_of(true), true) + _ABOVE_FLAT  # (N,)
        self.psnr = self.psnr.clamp_max(200.0)  # identical pictures: infinity is no JSON number
        self.counted = torch.where(real, self.psnr, 0.0)

    @property
    def leaks(self) -> bool:
        return self.severity("measured").score > 0

    def severity(self, certainty: Certainty) -> Severity:
        return _severity_of(self.counted, certainty)

    def measures(self) -> list[Measure]:
        found = [
            Measure("PSNR, median (measured)", float(self.psnr.median()), "dB"),
            Measure("PSNR, worst-protected sample (measured)", float(self.psnr.max()), "dB"),
        ]
        if self.ssim is None:  # of a row, in deviations of a column
            error = (self.mse.median() * 12).sqrt()
            return [*found, Measure("error, median (measured)", float(error), "deviations")]
        return [
            *found,
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
    problem: Problem, evidence: Evidence, measured: _Measured | None, weight: Weight
) -> Finding | None:
    """What the dump itself shows, without truth; with truth, no more than what was measured."""
    assert evidence.best is not None
    # Of few entries nothing but a control tells.
    controlled = problem.channel.masked and weight.cleared
    close = is_close(problem, evidence) and (controlled or explains(problem, evidence))
    if not (close or (controlled and is_close_to_few(problem, evidence))):
        return None
    if weight.doubted and not problem.channel.is_clear:  # noise can be fitted
        return None
    worth = _worth(problem, evidence) if weight.fidelity is None else weight.fidelity.decibels
    certainty = _certainty(problem, evidence, weight, float(worth.max()))
    verified = certainty != "consistent"
    severity = _severity_of(worth, certainty)
    if measured is not None and measured.severity(certainty).score < severity.score:
        severity = measured.severity(certainty)
    size = problem.knowledge.batch_size or 1
    text = _claim_text(problem, evidence, verified, size)
    if certainty == "proved":
        text = _proved(problem)
    if severity.score == 0:
        return None
    premises = ["model, loss and batch size are as listed under assumptions"]
    if certainty == "proved":
        premises.append("the gradient is that of one sample (its rank was tested)")
    if is_dropped_from(problem):
        premises.append("it is what came out of the dropout, whose mask is in it")
    premises += [*evidence.recovery.assumed, *estimated_training(problem)]
    return finding_of(
        _code(problem, verified),
        severity,
        certainty,
        text,
        evidence.attack,
        _claim_measures(evidence, weight),
        premises,
    )


def _proved(problem: Problem) -> str:
    if is_table(problem):
        return _PROVED.format(what="row", near="1/250 of a column's deviation")
    return _PROVED.format(what="picture", near="the rounding of a pixel")


def _certainty(problem: Problem, evidence: Evidence, weight: Weight, decibels: float) -> Certainty:
    """How sure the claim is. Through noise, only what is recognisable is called verified."""
    if is_proved(problem, evidence):
        return "proved"
    clear = problem.channel.is_clear or decibels >= _RECOGNISABLE
    sure = is_verified(problem, evidence) and clear and not weight.doubted
    return "verified" if sure else "consistent"


def _code(problem: Problem, verified: bool) -> str:
    if not verified:
        return "GA202"
    return "GA201" if problem.channel.is_clear else "GA205"


def _worth(problem: Problem, evidence: Evidence) -> Tensor:
    """Per sample (N,), the dB that the evidence supports without truth.

    Independent restarts miss the truth independently, so their distance to one another is about
    3 dB worse than their distance to it: agreement is a cautious stand-in.
    """
    if evidence.agreement:
        return torch.tensor(evidence.agreement, dtype=torch.float64)
    worth = _UNCONFIRMED["equal" if is_equal(problem, evidence) else "close"]
    worth = min(worth, ceiling_of(problem, evidence))
    return torch.full((problem.knowledge.batch_size or 1,), worth, dtype=torch.float64)


def _claim_text(problem: Problem, evidence: Evidence, verified: bool, size: int) -> str:
    restarts = len(evidence.worst_residuals)
    shown = sum(evidence.told) or size  # none is told by itself: all are claimed alike
    what = "The picture" if size == 1 else f"All {size} pictures"
    what = what if shown == size else f"{shown} of {size} pictures"
    verb = "was" if shown == 1 else "were"
    if verified:
        return (
            f"{what} {verb} rebuilt: {evidence.agreeing} of {restarts} independent restarts "
            f"reached the same answer, and its gradient {equals_in_words(problem)}."
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


def _claim_measures(evidence: Evidence, weight: Weight) -> Sequence[Measure]:
    assert evidence.best is not None
    measures = [
        Measure("relative residual", evidence.residuals[evidence.best], ""),
        Measure("relative residual, worst tensor", evidence.worst_residuals[evidence.best], ""),
        Measure(
            "restarts that agree", float(evidence.agreeing), f"of {len(evidence.worst_residuals)}"
        ),
    ]
    if evidence.statistics:
        apart = evidence.statistics[evidence.best]
        measures.append(Measure("distance to the statistics sent along, worst layer", apart, ""))
    if evidence.agreement:
        measures.append(Measure("agreement, worst sample", min(evidence.agreement), "dB"))
    if weight.fidelity is not None:
        measures.append(Measure("fidelity, judged without truth", weight.fidelity.best, "dB"))
    return measures
