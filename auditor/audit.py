"""Where all meet: the attacks run, their claims are re-checked, the verdict is drawn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from auditor.attacks import Attack, Milestone, Watch
from auditor.attacks.failures import told_of
from auditor.attacks.labels import HeadLabels, looks_single
from auditor.attacks.training_estimate import with_estimated_training
from auditor.batch_norm import with_deduced_mode
from auditor.checks import (
    caveats_of,
    contradiction,
    contrast_caveats,
    other_than_said,
    scale_caveats,
)
from auditor.defences.loss_scale import without_loss_scale
from auditor.defences.seen import Looked, look
from auditor.evidence import examine, is_equal, is_verified
from auditor.exhibits import exhibits_of
from auditor.findings import Weight, findings_of, statistics_findings, worst_first
from auditor.measuring import in_units, measurable, require_fitting
from auditor.options import Options
from auditor.planted.examination import model_findings
from auditor.problem import is_table, make_problem
from auditor.records import (
    Assumption,
    AttackReport,
    Audit,
    Auxiliary,
    Caveat,
    Evidence,
    Exhibit,
    Failed,
    Finding,
    GradientDump,
    Knowledge,
    LoadedModel,
    Problem,
    Skipped,
    Trust,
    Truth,
)
from auditor.row_words import said_of_rows
from auditor.summaries import attack_report, dump_summary, model_summary, provenance_of
from auditor.trace import require_classes
from auditor.unfinished import Claim, Unfinished
from auditor.unfinished.form import is_well_formed
from auditor.verdict import Shown, conclude
from auditor.weighing import Weighed, shares, weigh
from auditor.what_if import what_if

Answer = Evidence | Skipped | Failed


@dataclass(frozen=True)
class Case:
    """What is audited."""

    model: LoadedModel
    dump: GradientDump
    knowledge: Knowledge
    truth: Truth | None = None
    auxiliary: Auxiliary | None = None


@dataclass(frozen=True)
class Result:
    """The audit, and the tensors behind it for whoever may see them."""

    audit: Audit
    problem: Problem
    evidence: tuple[Evidence, ...]


def run_audit(
    case: Case,
    options: Options,
    *,
    fail_on: str | None = None,
    allow_inconclusive: bool = False,
    progress: Callable[[Milestone], None] | None = None,
    unfinished: Unfinished | None = None,
) -> Result:
    """Run the selected attacks inside the budget and judge what they show.

    Finished attacks and rows of the what-if go to `unfinished` at once, and are taken from there.
    Raises InputError when model and knowledge do not fit, UsageError when the truth does not.
    """
    begun, started = time.monotonic(), datetime.now(UTC)
    case, problem, scale, looked = _opened(case, options)
    problem = replace(problem, channel=looked.channel)
    deadline = None if options.budget is None else begun + options.budget
    watch = Watch(deadline=deadline, progress=progress)
    attacking, weighing = shares(watch, options, few=problem.channel.masked)
    problem, answers = _run_attacks(problem, options, attacking, unfinished)
    require_fitting(case.truth, problem)  # again: the batch size may be known only now
    evidence = tuple(answer for answer in answers.values() if isinstance(answer, Evidence))
    truth, doubts = measurable(problem, case.truth, evidence, looked)
    case = replace(case, truth=truth)
    weighed = weigh(problem, looked, evidence, options, weighing)
    findings = {
        e.attack: findings_of(problem, e, case.truth, _weight(weighed, e)) for e in evidence
    }
    reports = tuple(
        attack_report(
            problem, attack, answers.get(attack.name), findings.get(attack.name, ()), options
        )
        for attack in options.attacks
    )
    shown = [finding for found in findings.values() for finding in found]
    shown += [*statistics_findings(problem), *model_findings(problem)]
    every = _each_sample_once(worst_first(shown))
    audit = conclude(
        Shown(every, reports, _caveats(problem, case, every, evidence, weighed, scale) + doubts),
        evidence=options.evidence,
        fail_on=fail_on,
        allow_inconclusive=allow_inconclusive,
        assumptions=problem.knowledge.assumptions,
        model=model_summary(problem, case.model),
        dump=dump_summary(problem, case.dump),
        exhibits=_exhibits(problem, case, options, evidence, weighed),
        trust=_trust(problem, case, evidence, options, weighed, watch, fail_on, unfinished),
        provenance=provenance_of(problem.gradient, options, started, time.monotonic() - begun),
    )
    return Result(said_of_rows(audit) if is_table(problem) else audit, problem, evidence)


def _opened(case: Case, options: Options) -> tuple[Case, Problem, float | None, Looked]:
    """The case in the problem's units, the problem, its loss scale, what its dump shows of itself.

    A mode that nobody said is the one that is seen, if any is.
    """
    problem = _problem_of(case, options)
    require_fitting(case.truth, problem)
    case_in_units = replace(case, truth=in_units(problem, case.truth))
    problem, scale = without_loss_scale(problem)
    looked = look(problem, case.dump)
    known = case.knowledge
    if problem.mode_shown is None and looked.mode not in {None, problem.knowledge.mode}:
        known = with_deduced_mode(known, looked.mode)
    if known is not case.knowledge:
        return _opened(replace(case, knowledge=known), options)
    return case_in_units, problem, scale, looked


def _problem_of(case: Case, options: Options) -> Problem:
    problem = make_problem(
        case.model.module,
        case.dump,
        case.knowledge,
        device=options.device,
        auxiliary=case.auxiliary,
    )
    require_classes(problem.trace.head)
    return problem


def _reports(
    problem: Problem,
    answers: Mapping[str, Answer],
    findings: Mapping[str, tuple[Finding, ...]],
    options: Options,
) -> tuple[AttackReport, ...]:
    return tuple(
        attack_report(problem, each, answers.get(each.name), findings.get(each.name, ()), options)
        for each in options.attacks
    )


def _weight(weighed: Weighed, claim: Evidence) -> Weight:
    control = weighed.trust.control
    mine = control is not None and control.attack == claim.attack
    return Weight(
        fidelity=weighed.appraisals[claim.attack].fidelity,
        doubted=weighed.doubted,
        cleared=mine and not weighed.doubted,
        foreign=weighed.trust.belongs == "contradicted",
    )


def _trust(
    problem: Problem,
    case: Case,
    evidence: tuple[Evidence, ...],
    options: Options,
    weighed: Weighed,
    watch: Watch,
    fail_on: str | None,
    unfinished: Unfinished | None,
) -> Trust:
    """What was weighed, and the what-if when it was asked for."""
    if not options.what_if:
        return weighed.trust
    found = what_if(
        problem, evidence, case.truth, options, watch, gate=fail_on, unfinished=unfinished
    )
    return replace(weighed.trust, what_if=found)


def _each_sample_once(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Several attacks may read the same single inputs: the worst finding of them stands for all."""
    single = [finding for finding in findings if finding.code == "GA204"]
    return tuple(finding for finding in findings if finding not in single[1:])


# --------------------------------------------------------------------------- running


def _run_attacks(
    problem: Problem, options: Options, watch: Watch, unfinished: Unfinished | None
) -> tuple[Problem, dict[str, Answer]]:
    answers: dict[str, Answer] = {}
    # The fused attention kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        chosen = [attack for attack in options.attacks if attack.name in options.selected]
        for place, attack in enumerate(chosen):
            if not _needless(problem, attack, answers, options):
                if attack.name.startswith("images."):
                    problem = with_estimated_training(problem, seed=options.seed, watch=watch)
                share = share_of(watch, last=place == len(chosen) - 1)
                answers[attack.name] = _run_one(problem, attack, options, share, unfinished)
                problem = _with_labels(problem, answers[attack.name])
    return problem, answers


def share_of(watch: Watch, *, last: bool) -> Watch:
    """Half of the time that is left, so that no attack starves those after it; the last has all."""
    if watch.deadline is None or last:
        return watch
    now = time.monotonic()
    return replace(watch, deadline=now + max(watch.deadline - now, 0.0) / 2)


def _run_one(
    problem: Problem,
    attack: Attack,
    options: Options,
    watch: Watch,
    unfinished: Unfinished | None,
) -> Answer:
    blocked = attack.blocked_by(problem)
    if blocked is not None:
        return Skipped(attack.name, blocked)
    claim = None if unfinished is None else unfinished.claims.get(attack.name)
    if claim is not None and _is_well_formed(problem, claim):
        return _examined(problem, claim)
    if watch.expired() and attack.name != HeadLabels.name:  # its proofs take no time
        return Skipped(attack.name, f"the budget of {options.budget:g} seconds was used up before")
    claim = _claim_of(problem, attack, options, watch)
    if unfinished is not None:
        unfinished.keep(claim)
    return _examined(problem, claim)


def _claim_of(problem: Problem, attack: Attack, options: Options, watch: Watch) -> Claim:
    begun, found, failure = time.monotonic(), None, ""
    try:
        found = attack.run(problem, seed=options.seed, watch=watch)
    except (torch.OutOfMemoryError, MemoryError):
        failure = "out of memory"
    except (RuntimeError, ValueError) as error:
        failure = told_of(error) or ""
        if not failure:
            raise
    return Claim(attack.name, time.monotonic() - begun, found, failure)


def _is_well_formed(problem: Problem, claim: Claim) -> bool:
    return claim.recovery is None or is_well_formed(problem, claim.recovery)


def _examined(problem: Problem, claim: Claim) -> Evidence | Failed:
    """What the harness makes of a claim, wherever it comes from."""
    if claim.recovery is None:
        return Failed(claim.attack, claim.failure)
    return examine(problem, claim.recovery, attack=claim.attack, seconds=claim.seconds)


def _needless(
    problem: Problem, attack: Attack, answers: dict[str, Answer], options: Options
) -> bool:
    """Whether the verdict could not get worse by this attack (and nobody asked for it)."""
    if options.named or options.preset.everything or not attack.name.startswith("images."):
        return False
    done = [a for a in answers.values() if isinstance(a, Evidence)]
    verified = any(is_verified(problem, evidence) for evidence in done)
    complete = any(e.recovery.labels is not None and e.recovery.labels.complete for e in done)
    return verified or (attack.name == "images.dlg" and complete and "images.idlg" in answers)


def _with_labels(problem: Problem, answer: Answer) -> Problem:
    """What later attacks start from: the labels, and that there is one sample, if they say so."""
    known = problem.knowledge
    claim = answer.recovery.labels if isinstance(answer, Evidence) else None
    if claim is None:
        return problem
    if known.batch_size is not None:
        return replace(problem, labels=claim)
    if not claim.complete:
        return problem
    noted = (*known.assumptions, Assumption("batch size", "1", "deduced"))
    return replace(problem, knowledge=replace(known, batch_size=1, assumptions=noted))


# --------------------------------------------------------------------------- what is said


def _caveats(
    problem: Problem,
    case: Case,
    findings: tuple[Finding, ...],
    evidence: tuple[Evidence, ...],
    weighed: Weighed,
    scale: float | None,
) -> tuple[Caveat, ...]:
    """All caveats. None voids a verdict that rests on a re-derived or measured picture."""
    trust = weighed.trust
    raised = caveats_of(problem, case.dump, trust.defences, belongs=trust.belongs)
    raised += scale_caveats(problem)
    raised += other_than_said(problem, single=looks_single(problem), scale=scale)
    raised += weighed.caveats
    raised += contrast_caveats(evidence)
    for entry in evidence:
        if entry.recovery.labels is not None:
            raised += contradiction(problem, entry.recovery.labels.at_least)
    telling = {"GA201", "GA203", "GA205"}
    if not problem.channel.is_clear:  # then it explains the dump as well as its noise allows
        telling |= {"GA202", "GA204"}
    if any(finding.code in telling for finding in findings):
        raised = tuple(replace(caveat, voids=False) for caveat in raised)
    return raised


def _exhibits(
    problem: Problem,
    case: Case,
    options: Options,
    evidence: tuple[Evidence, ...],
    weighed: Weighed,
) -> tuple[Exhibit, ...]:
    telling = most_telling(problem, evidence)
    if options.evidence != "embed" or telling is None:
        return ()
    bars = weighed.error_bars if telling is weighed.told else None
    return exhibits_of(problem, telling, case.truth, bars)


def most_telling(problem: Problem, evidence: tuple[Evidence, ...]) -> Evidence | None:
    """Whole pictures that explain the dump, else inputs that were read one by one, else the rest.

    A search that failed leaves pictures too.
    """
    best = best_evidence(evidence)
    if best is not None and is_equal(problem, best):
        return best
    read = [e for e in evidence if any(e.samples)]
    return max(read, key=lambda e: sum(word is not None for word in e.samples), default=best)


def best_evidence(evidence: tuple[Evidence, ...]) -> Evidence | None:
    """The evidence whose best picture has the smallest residual."""
    pictures = [e for e in evidence if e.best is not None]
    return min(pictures, key=lambda e: e.worst_residuals[e.best or 0], default=None)
