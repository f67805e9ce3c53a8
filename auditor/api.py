"""gradaudit from Python: the same audit as `gradaudit scan`, on objects or on files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from auditor.audit import Case, Result, run_audit
from auditor.facts import Flags, settle
from auditor.inputs.gradients import load_gradients, match_gradients
from auditor.inputs.models import load_model
from auditor.options import make_options
from auditor.records import Audit, FileRef, LoadedModel, Mode, Reduction, Truth

Gradients = Mapping[str, Tensor | None] | Sequence[Tensor | None]


def scan(
    model: nn.Module | str | os.PathLike[str],
    gradients: Gradients | str | os.PathLike[str],
    *,
    arch: str | None = None,
    input_shape: tuple[int, int, int] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    batch_size: int | None = None,
    mode: Mode | None = None,
    reduction: Reduction | None = None,
    label_smoothing: float | None = None,
    truth: Truth | None = None,
    attacks: Sequence[str] | None = None,
    preset: str = "standard",
    budget: float | None = None,
    device: str = "auto",
    seed: int = 0,
    fail_on: str | None = None,
) -> Audit:
    """Audit a model and a gradient dump, given as objects or as files; writes nothing.

    `gradients` by name, or in the order of `model.named_parameters()`. The model is copied, never
    changed. The answer holds nothing that was recovered. Raises UsageError and InputError.
    """
    flags = Flags(input_shape, mean, std, batch_size, mode, reduction, label_smoothing)
    loaded = _model(model, arch)
    case = case_of(loaded, gradients, flags, truth)
    options = make_options(preset=preset, attacks=attacks, seed=seed, budget=budget, device=device)
    return run_audit(case, options, fail_on=fail_on).audit


def case_of(
    loaded: LoadedModel,
    gradients: Gradients | str | os.PathLike[str],
    flags: Flags,
    truth: Truth | None = None,
) -> Case:
    """Read and match the gradients and merge all that is known. Raises UsageError, InputError."""
    if isinstance(gradients, str | os.PathLike):
        dump = load_gradients(Path(gradients), loaded.module)
    else:
        dump = match_gradients(
            gradients, loaded.module, file=_memory("gradients"), form="python object"
        )
    return Case(loaded, dump, settle(dump, loaded.module, flags), truth)


def _model(model: nn.Module | str | os.PathLike[str], arch: str | None) -> LoadedModel:
    if isinstance(model, nn.Module):
        return LoadedModel(model, _memory(type(model).__name__))
    return load_model(Path(model), arch=arch)


def _memory(name: str) -> FileRef:
    return FileRef(name=name, format="in memory", bytes=0, sha256="")


__all__ = ["Case", "Result", "case_of", "scan"]
