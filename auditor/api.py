"""gradaudit from Python: the same audit as `gradaudit scan`, on objects or on files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from auditor.audit import Case, Result, run_audit
from auditor.errors import UsageError
from auditor.facts import Flags, LocalFlags, settle
from auditor.inputs.auxiliary import load_auxiliary
from auditor.inputs.gradients import load_gradients, match_gradients
from auditor.inputs.models import load_model
from auditor.inputs.truth import load_truth
from auditor.inputs.updates import load_update
from auditor.options import make_options
from auditor.records import (
    Audit,
    Auxiliary,
    FileRef,
    GradientDump,
    Kind,
    LoadedModel,
    Mode,
    Reduction,
    Truth,
)

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
    kind: Kind | None = None,
    lr: float | None = None,
    local_steps: int | None = None,
    local_batch: int | None = None,
    local_epochs: int | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    auxiliary: Auxiliary | str | os.PathLike[str] | None = None,
    truth: Truth | None = None,
    attacks: Sequence[str] | None = None,
    preset: str = "standard",
    budget: float | None = None,
    device: str = "auto",
    seed: int = 0,
    fail_on: str | None = None,
) -> Audit:
    """Audit a model and a gradient dump, given as objects or as files; writes nothing.

    `gradients` by name, or in the order of `model.named_parameters()`. With `kind` "update" they
    are weights after training minus weights before, and what follows `kind` describes the training.
    The model is copied, never changed. The answer holds nothing that was recovered. Raises
    UsageError and InputError.
    """
    local = LocalFlags(kind, lr, local_steps, local_batch, local_epochs, momentum, weight_decay)
    flags = Flags(input_shape, mean, std, batch_size, mode, reduction, label_smoothing, local)
    loaded = _model(model, arch)
    case = case_of(loaded, gradients, flags, truth, auxiliary)
    options = make_options(preset=preset, attacks=attacks, seed=seed, budget=budget, device=device)
    return run_audit(case, options, fail_on=fail_on).audit


def case_of(
    loaded: LoadedModel,
    gradients: Gradients | str | os.PathLike[str],
    flags: Flags,
    truth: Truth | None = None,
    auxiliary: Auxiliary | str | os.PathLike[str] | None = None,
) -> Case:
    """Read and match the gradients and merge all that is known. Raises UsageError, InputError."""
    kind = flags.local.kind
    if isinstance(gradients, str | os.PathLike):
        dump = load_gradients(Path(gradients), loaded.module, kind=kind)
    else:
        ref = _memory("gradients")
        dump = match_gradients(gradients, loaded.module, file=ref, form="python object", kind=kind)
    return _case(loaded, dump, flags, truth, auxiliary)


def case_from_files(
    model: Path,
    grads: Path | None,
    before: Path | None,
    after: Path | None,
    flags: Flags,
    *,
    arch: str | None = None,
    trust: bool = False,
    truth: Path | None = None,
    aux: Path | None = None,
) -> Case:
    """What `gradaudit scan` audits: `grads`, or what training made of the weights.

    `after` takes the place of `grads`; `before`, when given, has to hold the model's own weights.
    Raises UsageError, InputError.
    """
    if (grads is None) == (after is None) or (before is not None and after is None):
        raise UsageError(
            expected="a dump, or the weights after training with --after, and not both",
            found="neither" if grads is None and after is None else "another combination",
            todo="Name GRADS, or --after FILE, with --before FILE if you like.",
        )
    if after is not None and flags.local.kind == "gradient":
        raise UsageError(
            expected="--kind update or nothing beside --after",
            found="--kind gradient",
            todo="Leave --kind out.",
        )
    loaded = load_model(model, arch=arch, trust_model=trust)
    known = None if truth is None else load_truth(truth)
    if after is None:
        assert grads is not None
        return case_of(loaded, grads, flags, known, aux)
    flags = replace(flags, local=replace(flags.local, kind="update"))
    return _case(loaded, load_update(before, after, loaded.module), flags, known, aux)


def _case(
    loaded: LoadedModel,
    dump: GradientDump,
    flags: Flags,
    truth: Truth | None,
    auxiliary: Auxiliary | str | os.PathLike[str] | None,
) -> Case:
    known = settle(dump, loaded.module, flags)
    if isinstance(auxiliary, str | os.PathLike):
        channels, height, width = known.input_shape
        auxiliary = load_auxiliary(Path(auxiliary), input_shape=(channels, height, width))
    return Case(loaded, dump, known, truth, auxiliary)


def _model(model: nn.Module | str | os.PathLike[str], arch: str | None) -> LoadedModel:
    if isinstance(model, nn.Module):
        return LoadedModel(model, _memory(type(model).__name__))
    return load_model(Path(model), arch=arch)


def _memory(name: str) -> FileRef:
    return FileRef(name=name, format="in memory", bytes=0, sha256="")


__all__ = ["Case", "Result", "case_from_files", "case_of", "scan"]
