"""One row: what was recovered of a defended step, how well, and the bound beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.attacks import Attack, Watch
from auditor.evidence import best_pixels
from auditor.exhibits import shown_samples
from auditor.findings import findings_of
from auditor.metrics import label_accuracy, match_batch, psnr
from auditor.records import Evidence, Problem, Truth, WhatIfRow
from auditor.severity import band_of
from auditor.trials.running import dice, within
from auditor.what_if.attack import Attacked, attack_all
from auditor.what_if.bound import bound_of, privacy_of
from auditor.what_if.defended import Sent, send
from auditor.what_if.reference import Reference
from auditor.what_if.settings import NO_DEFENCE, Setting

FAILED = "not recovered by these attacks"
CUT_SHORT = "the budget ended before the attacks did"
NO_BOUND = "no bound: the budget ended before it was computed"
BLIND = "no attack could look at it"
_ATTACKS_SHARE = 0.75  # of a row's time; the rest is for its bound
_RECOGNISABLE = 20.0  # dB
_HIGHEST = 200.0  # dB: infinity is no JSON number


def row_of(
    problem: Problem,
    truth: Truth,
    setting: Setting,
    attacks: tuple[Attack, ...],
    *,
    threshold: float,
    seed: int,
    watch: Watch,
) -> WhatIfRow:
    """Defend the step, attack it, measure. Raises NotApplicable as `send` does.

    `threshold`: the score from which on the gate fails. `passes` is None when the attacks were cut
    short before they reached it: that says nothing.
    """
    sent = send(problem, truth, setting, dice(seed, setting.words))
    attacked = attack_all(sent.problem, attacks, seed=seed, watch=_but_for_the_bound(watch))
    return _row(sent, setting, attacked, _judge(sent, attacked), threshold, watch)


def bare_row(
    problem: Problem,
    reference: Reference,
    evidence: tuple[Evidence, ...],
    *,
    threshold: float,
    watch: Watch,
) -> WhatIfRow | None:
    """The row without a defence as the audit itself found it, when that reaches the threshold.

    None also for a dump that was defended, and for stand-ins. Against a claim of the audit's own
    nothing can be measured: the agreement of its restarts takes the place of PSNR.
    """
    if not problem.channel.is_clear or reference.stands_in:
        return None
    found, rebuilt = Attacked(evidence, tuple(e.attack for e in evidence), True), reference.rebuilt
    own = Sent(problem, reference.truth, 1.0)
    judged = _judge(own, found, measured=rebuilt is None)
    if judged.score < threshold:
        return None
    if rebuilt is not None:
        judged = replace(judged, attack=rebuilt.attack, psnr=max(rebuilt.agreement, default=None))
    sent = send(problem, reference.truth, NO_DEFENCE, dice(0, ""))
    row = _row(sent, NO_DEFENCE, found, judged, threshold, watch)
    return replace(row, note="as the audit found it")


def _row(
    sent: Sent,
    setting: Setting,
    attacked: Attacked,
    judged: _Judged,
    threshold: float,
    watch: Watch,
) -> WhatIfRow:
    bound = bound_of(sent, watch.expired)
    fails = judged.score >= threshold
    certain = fails or (attacked.finished and bool(attacked.ran))
    late = NO_BOUND if bound is None and watch.expired() else ""
    notes = (sent.note, "" if fails else _why(attacked, bound), late, privacy_of(setting))
    return WhatIfRow(
        defence=setting.kind,
        setting=setting.words,
        strength=setting.strength,
        attack=judged.attack,
        psnr=judged.psnr,
        bound_psnr=bound,
        labels=labels_read(attacked.evidence, sent.truth),
        score=judged.score,
        band=band_of(judged.score),
        cosine=sent.cosine,
        passes=not fails if certain else None,
        note="; ".join(note for note in notes if note),
    )


def _but_for_the_bound(watch: Watch) -> Watch:
    if watch.deadline is None:
        return watch
    return within(watch, max(watch.deadline - time.monotonic(), 0.0) * _ATTACKS_SHARE)


@dataclass(frozen=True)
class _Judged:
    """The worst that came out, over all attacks."""

    score: float
    attack: str  # that came nearest to the pictures; all that ran when none rebuilt any
    psnr: float | None


def _judge(sent: Sent, attacked: Attacked, *, measured: bool = True) -> _Judged:
    truth = sent.truth if measured else None
    found = [
        finding.severity.score
        for evidence in attacked.evidence
        for finding in findings_of(sent.problem, evidence, truth)
    ]
    reached = {e.attack: psnr_of(sent.problem, e, sent.truth) for e in attacked.evidence}
    rebuilt = {name: value for name, value in reached.items() if value is not None}
    best = max(rebuilt, key=lambda name: rebuilt[name], default=None)
    ran = ", ".join(attacked.ran)
    return _Judged(max(found, default=0.0), best or ran, rebuilt[best] if best else None)


def _why(attacked: Attacked, bound: float | None) -> str:
    why = BLIND if not attacked.ran else FAILED if attacked.finished else CUT_SHORT
    told = bound is not None and bound >= _RECOGNISABLE
    return f"{why}; the dump tells enough for a better one" if told else why


def psnr_of(problem: Problem, evidence: Evidence, truth: Truth) -> float | None:
    """dB of the worst-protected sample of a claim; None when no picture was claimed."""
    if evidence.best is None:
        return _of_single(shown_samples(problem, evidence), truth.inputs.double())
    pixels = best_pixels(problem, evidence).double()
    if pixels.shape != truth.inputs.shape or not bool(pixels.isfinite().all()):
        return None
    return _highest(psnr(pixels, truth.inputs[match_batch(pixels, truth.inputs)].double()))


def _of_single(shown: Tensor, true: Tensor) -> float | None:
    """Of inputs that were read one by one (M, C, H, W): each beside the true one nearest to it."""
    if len(shown) == 0:
        return None
    return _highest(torch.stack([psnr(one.expand_as(true), true).max() for one in shown.double()]))


def _highest(decibels: Tensor) -> float:
    return float(decibels.max().clamp_max(_HIGHEST))


def labels_read(evidence: tuple[Evidence, ...], truth: Truth) -> float | None:
    """The largest share of the labels that some attack named; None when none named any."""
    named = []
    for entry in evidence:
        claim, pictured = entry.recovery.labels, entry.recovery.input_labels
        if claim is not None and claim.estimate is not None:
            named.append(claim.estimate)
        if pictured is not None and entry.best is not None:
            named.append(pictured[entry.best])
    shares = [
        label_accuracy(labels.cpu(), truth.labels)
        for labels in named
        if labels.shape == truth.labels.shape
    ]
    return max(shares, default=None)
