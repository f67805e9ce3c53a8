"""What is said of inputs that were read one by one: how many and how certainly, never which."""

from __future__ import annotations

import torch
from torch import Tensor

from auditor.metrics import psnr
from auditor.problem import to_pixels
from auditor.records import Certainty, Evidence, Finding, Measure, Problem, Truth
from auditor.rules import finding_of
from auditor.samples.deflation import ALONE
from auditor.severity import input_severity

_EXACT, _UNCONFIRMED = 59.0, 30.0  # dB that a verified sample, and another one, are taken for


def sample_finding(problem: Problem, evidence: Evidence, truth: Truth | None) -> Finding:
    """What was read of single inputs; with truth, its severity is no more than was measured.

    One of `evidence.samples` at least is shown.
    """
    certain = evidence.samples.count("verified")
    shown = [place for place, word in enumerate(evidence.samples) if word is not None]
    certainty: Certainty = "verified" if certain else "consistent"
    size = problem.knowledge.batch_size
    share = (certain or len(shown)) / max(size or 0, len(shown))
    worth = _EXACT if certain else _UNCONFIRMED
    if not problem.channel.is_clear:
        worth = ALONE
    measures = [
        Measure("inputs read, verified", float(certain), f"of {size}" if size else ""),
        Measure("inputs read, consistent", float(len(shown) - certain), ""),
    ]
    if truth is not None and evidence.recovery.samples is not None:
        decibels = _nearest(to_pixels(problem, evidence.recovery.samples[shown]), truth.inputs)
        measures.append(Measure("PSNR, median (measured)", float(decibels.median()), "dB"))
        worst = float(decibels.max())
        measures.append(Measure("PSNR, worst-protected sample (measured)", worst, "dB"))
        worth = min(worth, worst)
    severity = input_severity(certainty=certainty, psnr=worth, share=share)
    return finding_of(
        "GA204",
        severity,
        certainty,
        _text(certain, len(shown), size),
        evidence.attack,
        measures,
        ("model and loss are as listed under assumptions", *estimated_training(problem)),
    )


def estimated_training(problem: Problem) -> tuple[str, ...]:
    """The premise of every claim that was checked with an estimated learning rate or count."""
    local = problem.knowledge.local
    if local is None or local.estimate is None or not local.estimate.what:
        return ()
    return (f"{' and '.join(local.estimate.what)} of the update are as estimated from the dump",)


def _nearest(pixels: Tensor, true: Tensor) -> Tensor:
    """The PSNR in dB of each picture (M, C, H, W) to the true one nearest to it, (M,)."""
    given = pixels.double().cpu()
    each = [psnr(picture.expand_as(true), true.double()).max() for picture in given]
    return torch.stack(each).clamp_max(200.0)


def _text(certain: int, shown: int, size: int | None) -> str:
    of = f" of {size}" if size else ""
    if certain:
        return (
            f"{certain}{of} inputs were read off the gradient of a linear layer; each lies in the "
            "space of its rows and was told from a mixture of inputs."
        )
    return (
        f"{shown}{of} inputs may have been read off the gradient of a linear layer; each lies in "
        "the space of its rows, and may be a mixture of inputs."
    )


def why_no_sample(evidence: Evidence) -> str:
    """Why an attack that reads inputs from one layer's gradient shows nothing."""
    where = evidence.recovery.read_from
    layer = f"the gradient of {where!r}" if where else "the gradient"
    if evidence.recovery.samples is not None:
        return f"the inputs that {layer} gave did not stand the check"
    return f"no input of the batch stands out of {layer}"


def why_more(problem: Problem, evidence: Evidence) -> str:
    """Why more may have leaked than was read; empty when the whole batch was."""
    size, certain = problem.knowledge.batch_size, evidence.samples.count("verified")
    return "" if certain == size else "the batch may hold inputs besides those that were read"
