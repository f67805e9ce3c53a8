"""gradaudit from Python: the same audit as `gradaudit scan`, on objects or on files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from auditor.attacks import ATTACKS
from auditor.audit import Case, Result, run_audit
from auditor.errors import InputError, UsageError
from auditor.facts import Flags, LocalFlags, settle
from auditor.inputs.auxiliary import load_auxiliary
from auditor.inputs.gradients import load_gradients, match_gradients
from auditor.inputs.models import load_model
from auditor.inputs.tables import load_table
from auditor.inputs.transformers_config import task_of
from auditor.inputs.transformers_folder import is_folder, is_transformer, load_folder
from auditor.inputs.truth import load_texts, load_truth
from auditor.inputs.updates import load_update
from auditor.options import make_options
from auditor.records import (
    Audit,
    Auxiliary,
    FileRef,
    GradientDump,
    Kind,
    LanguageModel,
    LoadedModel,
    Modality,
    Mode,
    Reduction,
    Truth,
)
from auditor.text.attacks import TEXT_ATTACKS
from auditor.text.audit import TextCase, run_text_audit
from auditor.text.settle import settle_text
from auditor.text.simulate import truth_of

Gradients = Mapping[str, Tensor | None] | Sequence[Tensor | None]


def scan(
    model: nn.Module | str | os.PathLike[str],
    gradients: Gradients | str | os.PathLike[str],
    *,
    arch: str | None = None,
    modality: Modality | None = None,
    input_shape: tuple[int, ...] | None = None,
    columns: Sequence[str] = (),
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
    truth: Truth | Sequence[str] | None = None,
    tokenizer: object | None = None,
    attacks: Sequence[str] | None = None,
    preset: str = "standard",
    budget: float | None = None,
    device: str = "auto",
    seed: int = 0,
    what_if: bool | None = None,
    fail_on: str | None = None,
) -> Audit:
    """Audit a model and a gradient dump, given as objects or as files; writes nothing.

    `gradients` by name, or in the order of `model.named_parameters()`. With `kind` "update" they
    are weights after training minus weights before, and what follows `kind` describes the training.
    `modality` "features": the model takes rows of a table, `input_shape` (D,); `columns` are names.
    A language model is a model of `transformers` with its `tokenizer`, or the folder of one; its
    truth is the texts. `what_if`: attack the step of a model of pictures under the usual defences.
    The model is copied, never changed. The answer holds nothing that was recovered. Raises
    UsageError and InputError.
    """
    local = LocalFlags(kind, lr, local_steps, local_batch, local_epochs, momentum, weight_decay)
    said = (input_shape, mean, std, batch_size, mode, reduction, label_smoothing, local)
    flags = Flags(*said, modality=modality, columns=tuple(columns))
    language = _language(model, tokenizer)
    options = make_options(
        preset=preset, attacks=attacks, seed=seed, budget=budget, device=device, what_if=what_if,
        offered=[attack.name for attack in (ATTACKS if language is None else TEXT_ATTACKS)],
    )  # fmt: skip
    known = truth if isinstance(truth, Truth) else None
    if language is not None:
        refuse_for_text(arch, auxiliary, known, what_if, modality)
        case = text_case_of(language, gradients, flags, _texts(truth))
        return run_text_audit(case, options, fail_on=fail_on).audit
    if known is None:
        _refuse_texts(truth)
    pictures = case_of(_model(model, arch), gradients, flags, known, auxiliary)
    return run_audit(pictures, options, fail_on=fail_on).audit


def _refuse_texts(truth: object) -> None:
    if truth is not None:
        raise UsageError(
            expected="a Truth, as auditor.load_truth gives it, for a model of pictures",
            found=f"an object of type {type(truth).__name__!r}",
            todo="Texts are the truth of a language model.",
        )


def _texts(truth: Truth | Sequence[str] | None) -> tuple[str, ...] | None:
    if truth is None or isinstance(truth, Truth):
        return None
    return (truth,) if isinstance(truth, str) else tuple(truth)


def text_case_of(
    language: LanguageModel,
    gradients: Gradients | str | os.PathLike[str],
    flags: Flags,
    texts: Sequence[str] | None = None,
) -> TextCase:
    """As `case_of`, for a language model; `texts` are the truth. Raises UsageError, InputError."""
    module = language.model.module
    try:
        dump = _dump_of(module, gradients, flags.local.kind)
    except InputError as error:
        if "lora_" not in error.found or any("lora_" in n for n, _ in module.named_parameters()):
            raise
        raise InputError(
            expected="a dump of this model's parameters",
            found="gradients of a LoRA adapter, which this model does not have",
            todo="Put the adapter's files (adapter_config.json, adapter_model.safetensors) into "
            "the folder of its base model.",
        ) from error
    truth = None if texts is None else truth_of(language, texts)
    return TextCase(language, dump, settle_text(dump, language, flags), truth)


def _dump_of(
    module: nn.Module, gradients: Gradients | str | os.PathLike[str], kind: Kind | None
) -> GradientDump:
    if isinstance(gradients, str | os.PathLike):
        return load_gradients(Path(gradients), module, kind=kind)
    ref = _memory("gradients")
    return match_gradients(gradients, module, file=ref, form="python object", kind=kind)


def case_of(
    loaded: LoadedModel,
    gradients: Gradients | str | os.PathLike[str],
    flags: Flags,
    truth: Truth | None = None,
    auxiliary: Auxiliary | str | os.PathLike[str] | None = None,
) -> Case:
    """Read and match the gradients and merge all that is known. Raises UsageError, InputError."""
    dump = _dump_of(loaded.module, gradients, flags.local.kind)
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
    label_column: str | None = None,
    aux: Path | None = None,
) -> Case | TextCase:
    """What `gradaudit scan` audits: `grads`, or what training made of the weights.

    `after` takes the place of `grads`; `before`, when given, has to hold the model's own weights.
    `label_column` says that the truth is a CSV, which names the columns of the table, too.
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
    if is_folder(model):
        refuse_for_text(arch, trust, before, after, aux, flags.modality, label_column)
        assert grads is not None
        texts = None if truth is None else load_texts(truth)
        return text_case_of(load_folder(model), grads, flags, texts)
    loaded = load_model(model, arch=arch, trust_model=trust)
    known, flags = _truth_of(truth, label_column, flags)
    if after is None:
        assert grads is not None
        return case_of(loaded, grads, flags, known, aux)
    flags = replace(flags, local=replace(flags.local, kind="update"))
    return _case(loaded, load_update(before, after, loaded.module), flags, known, aux)


def _truth_of(
    path: Path | None, label_column: str | None, flags: Flags
) -> tuple[Truth | None, Flags]:
    """The truth of a file, and the flags with the names of its columns, where it has them."""
    if label_column is None:
        return None if path is None else load_truth(path), flags
    if path is None:
        raise UsageError(
            expected="--truth FILE.csv beside --label-column",
            found="no truth",
            todo="Name the CSV with --truth, or leave --label-column out.",
        )
    table = load_table(path, label_column=label_column)
    assert table.labels is not None
    return Truth(table.rows, table.labels), replace(flags, columns=table.columns)


def _case(
    loaded: LoadedModel,
    dump: GradientDump,
    flags: Flags,
    truth: Truth | None,
    auxiliary: Auxiliary | str | os.PathLike[str] | None,
) -> Case:
    known = settle(dump, loaded.module, flags)
    if isinstance(auxiliary, str | os.PathLike):
        if known.modality == "features":
            raise UsageError(
                expected="auxiliary pictures for a model that takes pictures",
                found="one that takes rows of a table",
                todo="Leave --aux out.",
            )
        channels, height, width = known.input_shape
        auxiliary = load_auxiliary(Path(auxiliary), input_shape=(channels, height, width))
    return Case(loaded, dump, known, truth, auxiliary)


def _language(
    model: nn.Module | str | os.PathLike[str], tokenizer: object | None
) -> LanguageModel | None:
    """The language model that `model` is, or None when it is a model of pictures."""
    if not isinstance(model, nn.Module):
        return load_folder(Path(model)) if is_folder(Path(model)) else None
    name = type(model).__name__
    if not is_transformer(model):
        return None
    loaded = LoadedModel(model, _memory(name))
    return LanguageModel(loaded, task_of(name, name), tokenizer)


def refuse_for_text(*given: object) -> None:
    """Raise UsageError for anything said about pictures, or about what is not audited of text."""
    if any(each not in (None, False) for each in given):
        raise UsageError(
            expected="of a language model: a dump, its batch size and its mode",
            found="an architecture, updates or pictures beside it",
            todo="Leave them out; see docs/text.md.",
        )


def _model(model: nn.Module | str | os.PathLike[str], arch: str | None) -> LoadedModel:
    if isinstance(model, nn.Module):
        return LoadedModel(model, _memory(type(model).__name__))
    return load_model(Path(model), arch=arch)


def _memory(name: str) -> FileRef:
    return FileRef(name=name, format="in memory", bytes=0, sha256="")


__all__ = ["Case", "Result", "case_from_files", "case_of", "scan", "text_case_of"]
