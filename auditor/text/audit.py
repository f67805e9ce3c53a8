"""Where a text audit meets: the attacks run, their claims are re-checked, the verdict is drawn.

The records, the verdict, the gate and the report are those of the audit of pictures.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import torch

from auditor.attacks import Milestone, Watch
from auditor.attacks.failures import told_of
from auditor.audit import share_of
from auditor.errors import UsageError
from auditor.findings import worst_first
from auditor.inputs.transformers_folder import silenced
from auditor.options import Options
from auditor.records import (
    AttackReport,
    Audit,
    Caveat,
    DumpSummary,
    Exhibit,
    Failed,
    Finding,
    GradientDump,
    LanguageModel,
    Measure,
    ModelSummary,
    Skipped,
)
from auditor.summaries import provenance_of, report_without_claim
from auditor.text.attacks import TEXT_ATTACKS
from auditor.text.attacks.base import TextAttack
from auditor.text.checks import text_caveats
from auditor.text.evidence import examine_text, is_verified_text
from auditor.text.exhibits import most_telling_text, text_exhibits
from auditor.text.findings import text_findings_of, why_more_text, why_no_text
from auditor.text.problem import make_text_problem
from auditor.text.records import TextEvidence, TextKnowledge, TextProblem, TextTruth
from auditor.verdict import Shown, conclude

Answer = TextEvidence | Skipped | Failed
# A verdict that rests on a text that was re-derived or measured is not voided by a caveat.
_STANDS = frozenset({"GA501", "GA503"})


@dataclass(frozen=True)
class TextCase:
    """What is audited."""

    language: LanguageModel
    dump: GradientDump
    knowledge: TextKnowledge
    truth: TextTruth | None = None


@dataclass(frozen=True)
class TextResult:
    """The audit, and the tensors behind it for whoever may see them."""

    audit: Audit
    problem: TextProblem
    evidence: tuple[TextEvidence, ...]


def run_text_audit(
    case: TextCase,
    options: Options,
    *,
    fail_on: str | None = None,
    allow_inconclusive: bool = False,
    progress: Callable[[Milestone], None] | None = None,
) -> TextResult:
    """Run the selected attacks inside the budget and judge what they show.

    Raises InputError for a network whose parts are not known, UsageError for a truth of another
    batch.
    """
    begun, started = time.monotonic(), datetime.now(UTC)
    problem = make_text_problem(
        case.language.model.module,
        case.dump,
        case.knowledge,
        device=options.device,
        tokenizer=case.language.tokenizer,
    )
    _check_truth(case.truth, problem)
    deadline = None if options.budget is None else begun + options.budget
    with silenced():
        answers = _run_attacks(problem, options, Watch(deadline=deadline, progress=progress))
    evidence = tuple(answer for answer in answers.values() if isinstance(answer, TextEvidence))
    findings = {e.attack: text_findings_of(problem, e, case.truth) for e in evidence}
    reports = tuple(
        _report(problem, attack, answers.get(attack.name), findings.get(attack.name, ()), options)
        for attack in TEXT_ATTACKS
    )
    if any(is_verified_text(each) for each in evidence):  # no leak can be larger than all of it
        reports = tuple(replace(r, reason="") if r.outcome == "leak" else r for r in reports)
    every = worst_first(finding for found in findings.values() for finding in found)
    audit = conclude(
        Shown(every, reports, _caveats(problem, case, every)),
        evidence=options.evidence,
        fail_on=fail_on,
        allow_inconclusive=allow_inconclusive,
        assumptions=problem.knowledge.assumptions,
        model=_model_summary(problem, case),
        dump=_dump_summary(case),
        exhibits=_exhibits(problem, case, options, evidence),
        provenance=provenance_of(problem.gradient, options, started, time.monotonic() - begun),
    )
    return TextResult(audit, problem, evidence)


def _check_truth(truth: TextTruth | None, problem: TextProblem) -> None:
    size = problem.knowledge.batch_size
    if truth is not None and size is not None and len(truth.batch.tokens) != size:
        raise UsageError(
            expected=f"a truth of {size} sequences",
            found=f"{len(truth.batch.tokens)}",
            todo="Give the truth that belongs to this dump, or mend --batch-size.",
        )


# --------------------------------------------------------------------------- running


def _run_attacks(problem: TextProblem, options: Options, watch: Watch) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    chosen = [attack for attack in TEXT_ATTACKS if attack.name in options.selected]
    for place, attack in enumerate(chosen):
        if not _needless(answers, options):
            share = share_of(watch, last=place == len(chosen) - 1)
            answers[attack.name] = _run_one(problem, attack, options, share)
    return answers


def _run_one(problem: TextProblem, attack: TextAttack, options: Options, watch: Watch) -> Answer:
    blocked = attack.blocked_by(problem)
    if blocked is not None:
        return Skipped(attack.name, blocked)
    if watch.expired():
        return Skipped(attack.name, f"the budget of {options.budget:g} seconds was used up before")
    begun = time.monotonic()
    try:
        recovery = attack.run(problem, seed=options.seed, watch=watch)
    except (torch.OutOfMemoryError, MemoryError):
        return Failed(attack.name, "out of memory")
    except RuntimeError as error:
        reason = told_of(error)
        if reason is None:
            raise
        return Failed(attack.name, reason)
    return examine_text(problem, recovery, attack=attack.name, seconds=time.monotonic() - begun)


def _needless(answers: dict[str, Answer], options: Options) -> bool:
    """Whether the verdict could not get worse by further attacks (and nobody asked for them)."""
    if options.named or options.preset.everything:
        return False
    done = [answer for answer in answers.values() if isinstance(answer, TextEvidence)]
    return any(is_verified_text(evidence) for evidence in done)


# --------------------------------------------------------------------------- reporting


def _report(
    problem: TextProblem,
    attack: TextAttack,
    answer: Answer | None,
    findings: tuple[Finding, ...],
    options: Options,
) -> AttackReport:
    base = report_without_claim(attack, answer, options)
    if not isinstance(answer, TextEvidence):
        return base
    return replace(
        base,
        outcome="leak" if findings else "failed",
        reason=(why_more_text if findings else why_no_text)(problem, answer),
        seconds=answer.seconds,
        evaluations=answer.recovery.evaluations,
        layers=tuple(Measure(name, value, "") for name, value in answer.layers.items()),
    )


def _caveats(
    problem: TextProblem, case: TextCase, findings: tuple[Finding, ...]
) -> tuple[Caveat, ...]:
    raised = text_caveats(problem, case.dump)
    if any(finding.code in _STANDS for finding in findings):
        return tuple(replace(caveat, voids=False) for caveat in raised)
    return raised


def _exhibits(
    problem: TextProblem, case: TextCase, options: Options, evidence: tuple[TextEvidence, ...]
) -> tuple[Exhibit, ...]:
    telling = most_telling_text(evidence)
    if options.evidence != "embed" or telling is None:
        return ()
    return text_exhibits(problem, telling, case.truth)


def _model_summary(problem: TextProblem, case: TextCase) -> ModelSummary:
    model = case.language.model
    return ModelSummary(
        file=model.file,
        architecture=type(model.module).__name__,
        parameters=sum(p.numel() for p in model.module.parameters()),
        classes=problem.knowledge.classes or problem.layout.vocabulary,
        input_shape=(),
        mode=problem.knowledge.mode,
        notes=model.notes,
    )


def _dump_summary(case: TextCase) -> DumpSummary:
    dump = case.dump
    return DumpSummary(
        file=dump.file,
        recognised=dump.recognised,
        tensors=len(dump.tensors),
        missing=dump.missing,
        precision=dump.precision,
        batch_size=case.knowledge.batch_size,
    )
