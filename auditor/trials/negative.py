"""Negative control: the attack behind the best claim, on gradients that cannot hold its data.

A network and an attack can bring forth pictures of their own, whatever the gradient says (a prior
does, and so does a dump with fewer numbers than pixels). What is claimed of the dump is worth
something only if the same attack, with the same settings, does not claim as much of noise, of the
dump's own entries in another order, and of other pictures' gradient.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.attacks import Attack, Watch
from auditor.evidence import best_pixels, is_equal
from auditor.metrics import match_batch, psnr
from auditor.problem import to_pixels
from auditor.records import ControlReport, Evidence, Problem
from auditor.trials.running import attempt, dice, within
from auditor.trials.stand_ins import dump_of, smooth_pictures

SIMILAR = 20.0  # dB: from here on the control's picture counts as that of the claim
_UNLIKE = 15.0  # dB: the other pictures are farther from the claim than this
_DRAWS = 8  # that are tried for that
_LEAST = 1.0  # seconds of one control


@dataclass(frozen=True)
class _Control:
    """One gradient that cannot hold the data of the claim."""

    name: str
    problem: Problem
    pictures: Tensor | None = None  # pixels (N, C, H, W) that it does hold


def negative_control(
    problem: Problem, evidence: Evidence, attack: Attack, *, seed: int, watch: Watch
) -> ControlReport:
    """Run `attack` again on noise, on a shuffled dump, and on other pictures with the same labels.

    `evidence` is the claim under test, of this attack. Each control has as long as the claim took;
    one that was cut short before that, and gave nothing, proves nothing and is not counted.
    A control counts as recovered when it explains noise or shuffled entries as well as the claim
    explains the dump (`evidence.is_equal`, or single inputs that stand their check), or when its
    pictures are those of the claim (20 dB).
    """
    generator = dice(seed, "negative control")
    claimed = _claimed(problem, evidence)
    makers: tuple[Callable[..., _Control | None], ...] = (_noise, _shuffled, _others)
    run, recovered, told, wanted = 0, [], "", max(_LEAST, evidence.seconds)
    for make in makers:
        control = None if watch.expired() else make(problem, evidence, claimed, generator)
        if control is None:
            continue
        begun = time.monotonic()
        found = attempt(control.problem, attack, seed=seed, watch=within(watch, wanted))
        as_much = found is not None and _as_much(problem, evidence, control, found)
        if not as_much and watch.expired() and time.monotonic() - begun < wanted:
            continue
        run += 1
        if as_much:
            recovered.append(control.name)
        elif control.pictures is not None:
            told = _told(control, found)
    return ControlReport(attack.name, run, len(recovered), _summary(run, recovered, told))


def _claimed(problem: Problem, evidence: Evidence) -> Tensor:
    """All pictures that the evidence claims, pixels (M, C, H, W) on the CPU."""
    if evidence.best is not None:
        return best_pixels(problem, evidence).double()
    samples = evidence.recovery.samples
    if samples is None:
        return torch.zeros(0, *problem.knowledge.input_shape, dtype=torch.float64)
    return to_pixels(problem, samples).double().cpu()


# --------------------------------------------------------------------------- controls


def _noise(
    problem: Problem, _evidence: Evidence, _claimed: Tensor, generator: torch.Generator
) -> _Control:
    """Normal noise with the norm and the zeros of each tensor; of a dump of signs, random signs."""
    drawn = {}
    for name, sent in problem.gradient.items():
        noise = torch.randn(sent.shape, generator=generator, dtype=torch.float64).to(sent)
        noise = torch.where(sent == 0, 0, noise.sign() if problem.channel.signs else noise)
        drawn[name] = noise * (sent.norm() / noise.norm().clamp_min(1e-30))
    return _Control("noise", replace(problem, gradient=drawn, statistics={}))


def _shuffled(
    problem: Problem, _evidence: Evidence, _claimed: Tensor, generator: torch.Generator
) -> _Control:
    """The entries of each tensor in another order."""
    mixed = {}
    for name, sent in problem.gradient.items():
        order = torch.randperm(sent.numel(), generator=generator).to(sent.device)
        mixed[name] = sent.flatten()[order].view_as(sent)
    return _Control("its shuffled entries", replace(problem, gradient=mixed, statistics={}))


def _others(
    problem: Problem, evidence: Evidence, claimed: Tensor, generator: torch.Generator
) -> _Control | None:
    """The gradient of other pictures with the same labels; None where those are not known."""
    if evidence.best is None or evidence.recovery.input_labels is None:
        return None
    labels = evidence.recovery.input_labels[evidence.best].cpu()
    for _ in range(_DRAWS):
        drawn = smooth_pictures(problem.knowledge.input_shape, len(labels), generator)
        if float(_likeness(drawn.double(), claimed).max()) < _UNLIKE:
            sent = dump_of(problem, drawn, labels, generator)
            other = replace(problem, gradient=sent, statistics={})
            return _Control("other pictures", other, drawn.double())
    return None  # the claim is as bland as they are: it could not be told from them


# --------------------------------------------------------------------------- judging


def _as_much(problem: Problem, claim: Evidence, control: _Control, found: Evidence) -> bool:
    """Whether the control gave what only the dump may give."""
    if control.pictures is None and _explains(problem, claim, control.problem, found):
        return True
    pictures = _claimed(control.problem, found)
    return _is_similar(pictures, _claimed(problem, claim), besides=control.pictures)


def _explains(problem: Problem, claim: Evidence, other: Problem, found: Evidence) -> bool:
    """Whether what was found explains its own dump as well as the claim explains the audited one.

    Both are judged by the same check; a claim that is not equal to the dump is an easier mark.
    """
    if found.best is not None and is_equal(other, found):
        return True
    if found.best is not None and claim.best is not None and not is_equal(problem, claim):
        return found.worst_residuals[found.best] <= claim.worst_residuals[claim.best]
    if "verified" in claim.samples:
        return "verified" in found.samples
    return any(found.samples)


def _is_similar(found: Tensor, claimed: Tensor, *, besides: Tensor | None) -> bool:
    """Whether most of the claimed pictures came back, each nearer than what the control does hold.

    Blurs resemble one another: one picture of a batch that was not found says nothing.
    """
    if not len(found) or not len(claimed) or not bool(found.isfinite().all()):
        return False
    likeness = _likeness(found, claimed)  # (M, M')
    if besides is not None:
        own = _likeness(found, besides).amax(1, keepdim=True)
        likeness = torch.where(likeness > own, likeness, -torch.inf)
    return float((likeness.amax(0) >= SIMILAR).double().mean()) > 0.5


def _likeness(found: Tensor, claimed: Tensor) -> Tensor:
    """PSNR in dB of every pair, (M, M') for (M, ...) and (M', ...) pixels."""
    return torch.stack([psnr(one.expand_as(claimed), claimed) for one in found])


def _told(control: _Control, found: Evidence | None) -> str:
    """What the attack made of the gradient that does hold pictures: a check of the check."""
    assert control.pictures is not None
    if found is None or found.best is None:
        return " Of the other pictures' own gradient it claimed none."
    pixels = best_pixels(control.problem, found).double()
    near = psnr(control.pictures[match_batch(pixels, control.pictures)], pixels)
    if is_equal(control.problem, found) and bool((near >= SIMILAR).any()):
        return " From the other pictures' own gradient it rebuilt those, as it should."
    return " It did not rebuild the other pictures from their own gradient in that time."


def _summary(run: int, recovered: list[str], told: str) -> str:
    if not run:
        return "No control had as long as the claim: the time was over."
    if recovered:
        return (
            f"The attack claims as much of {' and of '.join(recovered)}: what it claims of the "
            "dump does not come from the data, or not from them alone."
        )
    counted = "one control" if run == 1 else f"{run} controls"
    return f"The attack claims as much of none of {counted} that cannot hold these data.{told}"
