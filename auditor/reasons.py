"""Why an attack shows nothing, or no more than it shows, in words."""

from __future__ import annotations

from auditor.evidence import UNLIKE, has_sent_statistics, is_equal, is_verified, where_it_ended
from auditor.problem import is_dropped_from, tolerance_of
from auditor.records import Evidence, LinkReport, Problem
from auditor.samples.findings import why_more, why_no_sample

_FOUND = 1e-4  # relative residual at which a search has found something


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
    if is_verified(problem, evidence) and evidence.ceiling >= UNLIKE:
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
    if is_dropped_from(problem) and is_equal(problem, evidence):
        return "the dump was made behind dropout, and what was rebuilt has its random mask in it"
    why = _hidden(evidence) if evidence.recovery.links else _why_other_batch(evidence)
    if why is not None:
        return why
    if evidence.recovery.guided and is_equal(problem, evidence):
        return "a prior (neighbouring pixels are alike) chose among pictures that fit the dump"
    if is_equal(problem, evidence):
        return "no independent restart confirms the best one"
    ended = "the budget ended" if evidence.recovery.expired else "the search ended"
    if evidence.misfits:
        misfit = evidence.misfits[evidence.best]
        return f"{ended} at {misfit:.2g} times the squared residual that the defence explains"
    return (
        f"{ended} at a relative residual of {residual:.1e} in the worst tensor, "
        f"{tolerance_of(problem):.1e} is needed"
    )


def _why_other_batch(evidence: Evidence) -> str | None:
    """Why another batch than the claimed one may have made the same gradient."""
    if evidence.ceiling < UNLIKE:
        return "the dump hardly depends on the picture: unlike pictures explain it about as well"
    if not has_sent_statistics(evidence):
        apart = evidence.statistics[evidence.best or 0]
        return (
            "the statistics of the batch that were sent along are not those of the rebuilt input: "
            f"they differ by {apart:.1e} in the worst layer"
        )
    if evidence.contrast_open:
        return "at another contrast the rebuilt input explains the dump as well"
    return None


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
