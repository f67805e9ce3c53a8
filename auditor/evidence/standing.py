"""What a claim that was re-checked stands for: close, equal, verified, proved."""

from __future__ import annotations

import math

from torch import Tensor

from auditor.attacks.first_linear import first_linear
from auditor.problem import is_dropped_from, is_estimated, to_own_units, to_pixels, tolerance_of
from auditor.records import Evidence, Problem, Recovery

# Up to here a residual is small enough to be called consistent.
CONSISTENT = 1e-2
# An error below that of rounding pixels to 8 bits, in dB: a claim of the picture itself. Of a row
# of a table it is 1/250 of a column's deviation.
EXACT = 59.0
# Every tensor re-derived to four digits at least, from a dump that carries six or more. In trials
# readings that were right left 1e-6 to 5e-5, those that were wrong 1e-2 and more.
_DIGITS, _OWN_DIGITS, _PRECISE = 1e-4, 1e-3, 1e-6
# Entries of a pruned dump for each number of the claim; with less, a control has to speak for it.
_KEPT, _FEWEST = 2, 0.25
# A picture searched for below features that were read off: it makes them to a tenth, and the
# gradient, in which a unit that is on by mistake counts in full, to nine tenths of every tensor.
_FEATURES, _MOST = 0.1, math.sqrt(0.1)
# A claim behind noise, beside a first linear layer: relative residual, and entries for each pixel.
# Of 35 such claims on an MLP (benchmarks/trust.py) the nearest sample was 25 dB or nearer in all.
_SHOWN, _MANY = 1 / 3, 5


def where_it_ended(recovery: Recovery) -> str:
    """How far an attack came whose time was over, in words."""
    if not recovery.links:
        return "the budget ended before anything was read"
    last = next((link for link in recovery.links if not link.solved), recovery.links[-1])
    return f"the budget ended before every layer was read; it came as far as {last.layer!r}"


def is_equal(problem: Problem, evidence: Evidence) -> bool:
    """Whether the best claim's gradient equals the dump: in every tensor, within tolerance.

    Of a defended dump: whether it is at the floor.
    """
    if evidence.best is None:
        return False
    if evidence.at_floor:
        return evidence.at_floor[evidence.best]
    if not has_sent_statistics(evidence):
        return False
    return evidence.worst_residuals[evidence.best] <= tolerance_of(problem)


def has_sent_statistics(evidence: Evidence) -> bool:
    """Whether no statistics of the batch were sent along, or those of the best claim are the same.

    The gradient of a batch norm in training mode says nothing of the contrast before it; these do.
    """
    if evidence.best is None or not evidence.statistics:
        return True
    return evidence.statistics[evidence.best] <= CONSISTENT


def is_close(problem: Problem, evidence: Evidence) -> bool:
    """Whether the best claim may be called consistent with the dump."""
    if is_equal(problem, evidence):
        return True
    return _is_near(problem, evidence) and _is_overdetermined(problem)


def is_close_to_few(problem: Problem, evidence: Evidence) -> bool:
    """Close, but to so few entries that only a control tells whether the attack can fit any.

    With fewer than a quarter of the pixels, what is seen would be the prior's for the most part.
    """
    if is_close(problem, evidence) or not _is_near(problem, evidence):
        return False
    return _kept_for_each(problem) >= _FEWEST


def _is_near(problem: Problem, evidence: Evidence) -> bool:
    if evidence.best is None or problem.channel.signs:
        return False
    worst = evidence.worst_residuals[evidence.best]
    found = left_of_features(evidence)
    if found is not None and found <= _FEATURES and problem.channel.is_clear and worst <= _MOST:
        return True
    # Of a defended dump a small tensor may hold nothing but what the defence left.
    left = worst if problem.channel.is_clear else evidence.residuals[evidence.best]
    limit = max(CONSISTENT, tolerance_of(problem))
    return any(evidence.told) or left <= limit or shows_pictures(problem, evidence)


def shows_pictures(problem: Problem, evidence: Evidence) -> bool:
    """Whether the best claim makes most of a noised dump whose first layer shows the pictures.

    The gradient of a first linear layer is a sum of outer products with the pictures themselves, so
    a claim that makes it is near them. Asked of networks with many more entries than pixels.
    """
    if evidence.best is None or not problem.channel.is_noise:
        return False
    entries = sum(sent.numel() for sent in problem.gradient.values())
    unknowns = (problem.knowledge.batch_size or 1) * math.prod(problem.knowledge.input_shape)
    if evidence.residuals[evidence.best] > _SHOWN or entries < _MANY * unknowns:
        return False
    return not isinstance(first_linear(problem), str)


def left_of_features(evidence: Evidence) -> float | None:
    """Relative residual of the features below which a picture was searched for.

    None unless every layer down to them was read off the dump, with equations that hold.
    """
    links = evidence.recovery.links
    if len(links) < 2 or links[-1].status != "searched" or not all(n.solved for n in links[:-1]):
        return None
    return links[-1].residual


def _is_overdetermined(problem: Problem) -> bool:
    """Whether enough was kept of a pruned dump: a few entries are fitted easily."""
    return not problem.channel.masked or _kept_for_each(problem) >= _KEPT


def _kept_for_each(problem: Problem) -> float:
    """Entries that are not zero, for each number of the claim."""
    known = problem.knowledge
    unknowns = (known.batch_size or 1) * math.prod(known.input_shape)
    return sum(int((sent != 0).sum()) for sent in problem.gradient.values()) / unknowns


def equals_in_words(problem: Problem) -> str:
    """What "equal" means of this dump: "equals the dump up to its noise of 1.0e-03"."""
    channel, but = problem.channel, []
    if channel.sigma:
        but.append(f"up to its noise of {channel.sigma:.1e}")
    if channel.steps:
        but.append("up to the steps it was rounded to")
    if channel.masked:
        but.append("in the entries that were sent")
    if channel.scaled:
        but.append("up to a factor")
    return " ".join(["equals the dump", ", ".join(but)]).strip()


def is_verified(problem: Problem, evidence: Evidence) -> bool:
    """Equal to the dump, and an independent restart found the same picture for every sample.

    Not behind dropout: what equals the dump without its mask is the input with the mask in it.
    """
    both = is_equal(problem, evidence) and evidence.agreeing >= 2
    return both and not is_dropped_from(problem)


def is_proved(problem: Problem, evidence: Evidence) -> bool:
    """Whether the one picture follows from the dump, layer by layer, with nothing left to choose.

    Every layer's equations hold and determine its input; every reading re-derives to the dump; and
    readings with other rounding errors and other starts end within the rounding of a pixel. Nothing
    is proved of an update whose learning rate or steps were estimated.
    """
    links, readings = evidence.recovery.links, evidence.worst_residuals
    return (
        problem.knowledge.batch_size == 1
        and not is_estimated(problem)
        and not is_dropped_from(problem)
        and bool(links)
        and all(link.solved and not link.constrained for link in links)
        and len(readings) >= 2
        and problem.precision <= _PRECISE
        and max(readings) <= _DIGITS
        and evidence.own_residual <= _OWN_DIGITS
        and min(evidence.agreement, default=0.0) >= EXACT
        and has_sent_statistics(evidence)
    )


def best_pixels(problem: Problem, evidence: Evidence) -> Tensor:
    """The claim's pictures (N, C, H, W), pixels 0..1, on the CPU; rows (N, D) as `to_pixels`."""
    assert evidence.best is not None
    assert evidence.recovery.inputs is not None
    return to_pixels(problem, evidence.recovery.inputs[evidence.best]).float().cpu()


def best_inputs(problem: Problem, evidence: Evidence) -> Tensor:
    """The claim as the client has it, float32, CPU: pixels, or columns in their own units."""
    assert evidence.best is not None
    assert evidence.recovery.inputs is not None
    return to_own_units(problem, evidence.recovery.inputs[evidence.best]).float().cpu()


def samples_told(problem: Problem, evidence: Evidence) -> tuple[bool, ...]:
    """Of each sample of the best claim: whether the dump holds it, and nothing else as well."""
    size = problem.knowledge.batch_size or 1
    return evidence.told or (is_equal(problem, evidence),) * size
