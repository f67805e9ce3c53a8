"""What was audited, and how to repeat it: plain data for the report."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version

from torch import Tensor

from auditor import __version__
from auditor.options import Options
from auditor.records import (
    DumpSummary,
    GradientDump,
    LoadedModel,
    ModelSummary,
    Problem,
    Provenance,
)

_PACKAGES = ("torch", "torchvision", "transformers", "numpy", "safetensors")


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
