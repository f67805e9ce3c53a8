"""What was audited, and how to repeat it: plain data for the report."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from torch import Tensor

from auditor import __version__
from auditor.attacks import Attack
from auditor.options import Options
from auditor.reasons import why_nothing, why_unfinished
from auditor.records import (
    AttackReport,
    Curve,
    DumpSummary,
    Evidence,
    Failed,
    Finding,
    GradientDump,
    LoadedModel,
    Measure,
    ModelSummary,
    Problem,
    Provenance,
    Skipped,
)

_PACKAGES = ("torch", "torchvision", "transformers", "numpy", "safetensors")


class Named(Protocol):
    """An attack, on pictures or on texts."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str: ...


def model_summary(problem: Problem, model: LoadedModel) -> ModelSummary:
    """The audited model in one line each."""
    module = model.module
    return ModelSummary(
        file=model.file,
        architecture=type(module).__name__,
        parameters=sum(p.numel() for p in module.parameters()),
        classes=problem.trace.head.classes,
        input_shape=problem.knowledge.input_shape,
        mode=problem.knowledge.mode,
        notes=model.notes,
    )


def dump_summary(problem: Problem, dump: GradientDump) -> DumpSummary:
    """The audited dump in one line each."""
    return DumpSummary(
        file=dump.file,
        recognised=dump.recognised,
        tensors=len(dump.tensors),
        missing=dump.missing,
        precision=dump.precision,
        batch_size=problem.knowledge.batch_size,
    )


def provenance_of(
    gradient: Mapping[str, Tensor], options: Options, started: datetime, seconds: float
) -> Provenance:
    """What somebody else needs in order to repeat this run."""
    first = next(iter(gradient.values()))
    return Provenance(
        version=__version__,
        started=started.isoformat(timespec="seconds"),
        seconds=seconds,
        command=options.command,
        seed=options.seed,
        preset=options.preset.name,
        device=str(first.device),
        dtype=str(first.dtype).removeprefix("torch."),
        versions=versions_here(),
    )


def versions_here() -> dict[str, str]:
    """Of Python and of the packages that decide how a number comes out."""
    found = {"python": ".".join(str(part) for part in sys.version_info[:3])}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed as a package"
    return found


def attack_report(
    problem: Problem,
    attack: Attack,
    answer: Evidence | Skipped | Failed | None,
    findings: tuple[Finding, ...],
    options: Options,
) -> AttackReport:
    """What became of one attack on pictures; `answer` is None when it was not run."""
    base = report_without_claim(attack, answer, options)
    if not isinstance(answer, Evidence):
        return base
    return replace(
        base,
        outcome="leak" if findings else "failed",
        reason=(why_unfinished if findings else why_nothing)(problem, answer),
        seconds=answer.seconds,
        evaluations=answer.recovery.evaluations,
        curves=_curves(answer),
        layers=tuple(Measure(name, value, "") for name, value in answer.layers.items()),
        links=answer.recovery.links,
    )


def report_without_claim(attack: Named, answer: object | None, options: Options) -> AttackReport:
    """What is said of an attack of any kind besides its claim; all of it where there is none."""
    base = AttackReport(
        name=attack.name,
        title=attack.title,
        outcome="not selected",
        reason=why_not(attack.name, options),
        settings=repr(attack),
        seconds=0.0,
        evaluations=0,
        curves=(),
        layers=(),
    )
    if isinstance(answer, Skipped):
        return replace(base, outcome="skipped", reason=answer.reason)
    if isinstance(answer, Failed):
        return replace(base, outcome="failed", reason=answer.reason)
    return base


def why_not(name: str, options: Options) -> str:
    """Why an attack of this name did not run although nothing kept it from looking."""
    if name not in options.selected:
        return "not named in --attacks"
    return "the verdict could not get worse by it; name it in --attacks to run it all the same"


def _curves(evidence: Evidence) -> tuple[Curve, ...]:
    """The relative residual on the way: the root of the objective."""
    return tuple(
        Curve(
            row,
            course.status,
            course.steps,
            tuple(max(value, 0.0) ** 0.5 for value in course.objective),
        )
        for row, course in enumerate(evidence.recovery.courses)
    )
