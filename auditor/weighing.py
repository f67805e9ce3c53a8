"""What is said of the claims without knowing the truth: fit, bound, controls, simulated clients."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from auditor.attacks import Attack, Watch
from auditor.bounds.fisher import Fisher, at_noise, fisher_of, overall_noise
from auditor.bounds.fit import noise_in_claim
from auditor.bounds.heat import heat_map
from auditor.bounds.noise import noise_of
from auditor.bounds.statement import report_of
from auditor.defences.seen import Looked
from auditor.evidence import is_close, is_close_to_few, is_proved
from auditor.options import Options
from auditor.problem import is_table
from auditor.records import Bound, Caveat, ControlReport, Evidence, Problem, Trust
from auditor.trials.appraisal import Appraisal, appraise
from auditor.trials.canaries import canaries
from auditor.trials.negative import negative_control
from auditor.trials.running import within

_BOUND_SECONDS = 30.0  # for one bound; it is one Jacobian and one factorisation
_AT_NOISE = 1.025  # times the noise: what a fit leaves that leaves nothing else
_MOST_UNKNOWNS = 3200  # of a Jacobian that is formed for the error of every pixel
_NO_TIME = "the budget ended"
_NO_BOUND = "no bound at the claim"
_NO_CONTROL = f"no negative control had as long as the claim: {_NO_TIME}"
_NO_CANARIES = "no share of simulated clients: fewer than three could be attacked in the time"


@dataclass(frozen=True)
class Weighed:
    """The answer of `weigh`. `told` and `error_bars` are of the claim that counts."""

    trust: Trust  # but for the what-if
    appraisals: Mapping[str, Appraisal]  # by attack
    doubted: bool  # the negative control recovered as much
    told: Evidence | None
    error_bars: Tensor | None  # (N, 3, H, W) colours 0..1
    caveats: tuple[Caveat, ...]


def weigh(
    problem: Problem,
    looked: Looked,
    evidence: tuple[Evidence, ...],
    options: Options,
    watch: Watch,
) -> Weighed:
    """Appraise every claim, try the best one on controls, and simulate clients if asked to."""
    appraisals = {
        claim.attack: _appraise(problem, claim, watch) for claim in sorted(evidence, key=_nearest)
    }
    told = max(
        (claim for claim in evidence if appraisals[claim.attack].fidelity is not None),
        key=lambda claim: _decibels(appraisals[claim.attack]),
        default=None,
    )
    best = None if told is None else appraisals[told.attack]
    control, caveats = None, looked.caveats
    unsaid = (*looked.unsaid, *(best.unsaid if best is not None else ()))
    if told is not None and _is_doubtful(problem, told, options):
        control = _control(problem, told, options, watch)
        unsaid += () if control is not None else (_NO_CONTROL,)
    if control is not None and control.recovered:
        caveats += (_doubt(control),)
    simulated = None
    if options.what_if:
        attacks = _looking(problem, options)
        simulated = canaries(problem, attacks, seed=options.seed, watch=watch)
        unsaid += () if simulated is not None else (_NO_CANARIES,)
    fisher = None if told is None or best is None else _fisher(problem, told, best, watch)
    if fisher is None and not any(line.startswith(_NO_BOUND) for line in unsaid):
        unsaid += (f"{_NO_BOUND}: no picture was rebuilt at which it could be computed",)
    trust = Trust(
        defences=looked.defences,
        belongs=looked.belongs,
        tested=looked.tested,
        fidelity=None if best is None else _decibels(best),
        bound=None if fisher is None else _bound(problem, fisher),
        control=control,
        canaries=simulated,
        unsaid=unsaid,
    )
    bars = None
    if options.evidence == "embed" and told is not None and fisher is not None:
        bars = _error_bars(problem, told, fisher, watch)
    doubted = control is not None and control.recovered > 0
    return Weighed(trust, appraisals, doubted, told, bars, caveats)


def _appraise(problem: Problem, claim: Evidence, watch: Watch) -> Appraisal:
    seconds = _BOUND_SECONDS
    if watch.deadline is not None:  # the control needs time, too
        seconds = min(seconds, (watch.deadline - time.monotonic()) / 2)
    return appraise(problem, claim, expired=within(watch, seconds).expired)


def _nearest(claim: Evidence) -> float:
    """Those that come nearest to the dump first: their bounds matter most, and time is short."""
    return math.inf if claim.best is None else claim.residuals[claim.best]


def _decibels(appraisal: Appraisal) -> float:
    return -1.0 if appraisal.fidelity is None else appraisal.fidelity.best


def _is_doubtful(problem: Problem, claim: Evidence, options: Options) -> bool:
    """Whether a control could tell anything: a claim is made, and it is no proof.

    One that equals an undefended dump in thousands of numbers is controlled with preset deep only.
    """
    close = is_close(problem, claim) or is_close_to_few(problem, claim)
    if is_proved(problem, claim) or not (any(claim.samples) or close):
        return False
    told = not problem.channel.is_clear or claim.recovery.guided
    return told or options.preset.everything


def _control(
    problem: Problem, claim: Evidence, options: Options, watch: Watch
) -> ControlReport | None:
    attack = next(each for each in options.attacks if each.name == claim.attack)
    if watch.expired():
        return None
    report = negative_control(problem, claim, attack, seed=options.seed, watch=watch)
    return report if report.controls else None


def _doubt(control: ControlReport) -> Caveat:
    return Caveat("GA320", f"{control.summary} No claim is called verified.", voids=False)


def _looking(problem: Problem, options: Options) -> list[Attack]:
    chosen = [attack for attack in options.attacks if attack.name in options.selected]
    return [attack for attack in chosen if attack.blocked_by(problem) is None]


def _fisher(problem: Problem, claim: Evidence, best: Appraisal, watch: Watch) -> Fisher | None:
    """With the noise of the dump alone: what the claim left besides bounds no other attack."""
    if best.fisher is None or best.fit is None:
        return best.fisher
    alone = noise_in_claim(problem, best.fit)
    sigma = overall_noise(problem, alone)
    if best.fisher.sigma <= _AT_NOISE * sigma:
        return best.fisher
    return at_noise(best.fisher, sigma) or _fisher_at(problem, claim, alone, watch, dense=None)


def _fisher_at(
    problem: Problem,
    claim: Evidence,
    noise: Mapping[str, float],
    watch: Watch,
    *,
    dense: bool | None,
) -> Fisher | None:
    inputs, labels = claim.recovery.inputs, claim.recovery.input_labels
    assert inputs is not None
    assert labels is not None
    assert claim.best is not None
    return fisher_of(
        problem,
        inputs[claim.best],
        labels[claim.best],
        noise=noise,
        expired=within(watch, _BOUND_SECONDS).expired,
        dense=dense,
    )


def _error_bars(problem: Problem, claim: Evidence, fisher: Fisher, watch: Watch) -> Tensor | None:
    """Colours of every pixel's error; random probes are too coarse for that."""
    if is_table(problem):
        return None
    if fisher.method != "dense" and fisher.unknowns <= _MOST_UNKNOWNS:
        fisher = _fisher_at(problem, claim, noise_of(problem), watch, dense=True) or fisher
    return heat_map(fisher)


def _bound(problem: Problem, fisher: Fisher) -> Bound:
    origin: Literal["estimated noise", "rounding of the dump"] = (
        "estimated noise" if problem.channel.sigma else "rounding of the dump"
    )
    return report_of(fisher, origin, problem)


def shares(watch: Watch, options: Options, *, few: bool = False) -> tuple[Watch, Watch]:
    """The time of the attacks, and that until claims are weighed; the rest is the what-if's.

    Of few entries a claim counts only after a control that had as long as the claim itself.
    """
    if watch.deadline is None:
        return watch, watch
    now = time.monotonic()
    left = max(watch.deadline - now, 0.0)
    ends = (0.4, 0.6) if options.what_if else (0.75, 1.0)
    if few:
        ends = (ends[1] / 2, ends[1])
    attacks, weighing = (replace(watch, deadline=now + end * left) for end in ends)
    return attacks, weighing
