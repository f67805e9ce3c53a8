"""What every auditing command does around its audit: check, choose, run, write, tell.

torch is imported inside the functions that need it, so that the parser starts at once.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from auditor.arguments import GateOptions, OutputOptions
from auditor.errors import UsageError
from auditor.gate import Accepted, GateRules, Limits, Reference, judged, require_same_model
from auditor.records import Audit, LoadedModel
from auditor.report.audit_json import read_audit
from auditor.report.directory import check_target
from auditor.report.files import STDOUT, check_files, write_text
from auditor.severity import parse_threshold
from auditor.streams import put, say, stderr_console

if TYPE_CHECKING:
    from auditor.attacks import Milestone
    from auditor.audit import Case, Result
    from auditor.facts import Flags, LocalFlags
    from auditor.options import Options
    from auditor.text.audit import TextCase, TextResult
    from auditor.unfinished import Unfinished


@dataclass(frozen=True)
class Samples:
    """What a simulated client has, as the command line says it."""

    inputs: list[Path]
    labels: list[int]
    data: Path | None
    dataset: str | None
    index: list[int]
    texts: list[str]
    label_column: str | None = None


def audit_and_write(
    case: Case | TextCase, options: Options, outputs: OutputOptions, rules: GateRules
) -> None:
    """Run the audit, write what was asked for, tell people, print the report's path, exit."""
    import torch

    from auditor.report.console import print_audit
    from auditor.report.terminal_picture import print_pictures
    from auditor.unfinished.words import left_by, taken_from

    _require_fit(case, rules)
    if options.device.type == "cpu" and _is_small(case):
        torch.set_num_threads(1)  # the products are too small to share, waiting costs more
    quiet = outputs.quiet
    unfinished = _unfinished(case, options, outputs.out, rules.fail_on)
    for line in taken_from(unfinished):
        say(line, quiet)
    try:
        audit = _run_and_write(case, options, outputs, rules, unfinished)
    except KeyboardInterrupt:  # said also to who wants to hear nothing, when claims lie about
        say(left_by(unfinished), quiet and not (unfinished and unfinished.claims))
        raise
    if not quiet:
        people = stderr_console()
        print_audit(audit, people)
        print_pictures(audit, outputs.out, people)
        if (outputs.out / "evidence").exists():
            say(f"Evidence, for your eyes only: {outputs.out / 'evidence'}", quiet)
        say("Report:", quiet)
    report = f"{outputs.out / 'report.html'}\n"
    if STDOUT in outputs.files.values():
        say(report.rstrip(), quiet)
    else:
        put(report)
    raise typer.Exit(audit.gate.exit_code)


def _run_and_write(
    case: Case | TextCase,
    options: Options,
    outputs: OutputOptions,
    rules: GateRules,
    unfinished: Unfinished | None,
) -> Audit:
    """The audit as it was written; what it had to keep until then is gone."""
    from auditor.outputs import write_audit
    from auditor.report.progress import ProgressLine
    from auditor.what_if import is_short_of_time

    with ProgressLine(stderr_console(), quiet=outputs.quiet) as progress:
        result = _run(case, options, unfinished, rules=rules, progress=progress)
    result = replace(result, audit=judged(result.audit, rules))
    texts = _texts_of(result.audit, outputs.files)  # before anything is written: all or none
    write_audit(result, outputs.out, overwrite=outputs.overwrite)
    _write_files(result.audit, outputs.files, texts)
    if unfinished is not None:
        unfinished.clear(rows=is_short_of_time(result.audit.trust.what_if))
    return result.audit


def _texts_of(audit: Audit, files: dict[str, Path]) -> dict[str, str]:
    from auditor.report.formats import format_of, to_text

    return {form: to_text(audit, format_of(form)) for form in files}


def _write_files(audit: Audit, files: dict[str, Path], texts: dict[str, str]) -> None:
    for form, path in files.items():
        if path == STDOUT:
            put(texts[form])
        else:
            write_text(path, texts[form], private=audit.evidence == "embed" and form == "json")


def _run(
    case: Case | TextCase,
    options: Options,
    unfinished: Unfinished | None,
    *,
    rules: GateRules,
    progress: Callable[[Milestone], None],
) -> Result | TextResult:
    """The audit of a case, on pictures or on text."""
    from auditor.audit import Case, run_audit

    fail_on, waive = rules.fail_on, rules.allow_inconclusive
    if isinstance(case, Case):
        return run_audit(
            case,
            options,
            fail_on=fail_on,
            allow_inconclusive=waive,
            progress=progress,
            unfinished=unfinished,
        )
    from auditor.text.audit import run_text_audit

    return run_text_audit(
        case, options, fail_on=fail_on, allow_inconclusive=waive, progress=progress
    )


def _unfinished(
    case: Case | TextCase, options: Options, out: Path, fail_on: str | None
) -> Unfinished | None:
    """What an interrupted audit left, and where this one keeps what it finishes; not of texts."""
    from auditor.audit import Case
    from auditor.unfinished import Unfinished, key_of

    if not isinstance(case, Case):
        return None
    known = (case.model, case.dump, case.knowledge, case.truth, case.auxiliary)
    recovered = options.evidence != "none" and not os.environ.get("CI")
    return Unfinished.beside(out, key_of(*known, options, fail_on), recovered=recovered)


def _require_fit(case: Case | TextCase, rules: GateRules) -> None:
    """Before anything runs: the baseline is of this model, and the limits are about it.

    Raises InputError and UsageError.
    """
    from auditor.audit import Case

    if rules.reference is not None:
        module = _model_of(case).module
        parameters = sum(p.numel() for p in module.parameters())
        require_same_model(type(module).__name__, parameters, rules.reference)
    if rules.limits.psnr is not None and not isinstance(case, Case):
        raise UsageError(
            expected="--max-psnr only with a model of pictures",
            found="a language model",
            todo="Leave --max-psnr out; a text has no PSNR.",
        )


def _model_of(case: Case | TextCase) -> LoadedModel:
    from auditor.audit import Case

    return case.model if isinstance(case, Case) else case.language.model


def _is_small(case: Case | TextCase) -> bool:
    return sum(p.numel() for p in _model_of(case).module.parameters()) < 5_000_000


def precheck(
    gate: GateOptions,
    outputs: OutputOptions,
    reads: Iterable[Path | None] = (),
    accepted: tuple[Accepted, ...] = (),
) -> GateRules:
    """What the gate is asked; everything that can be refused before torch is imported.

    `reads`: files that nothing may be written over.
    """
    check_target(outputs.out, overwrite=outputs.overwrite)
    files = {f"--{form}": path for form, path in outputs.files.items()}
    check_files(files, outputs.out, [path for path in (*reads, gate.baseline) if path is not None])
    if gate.fail_on is not None:
        parse_threshold(gate.fail_on)
    return GateRules(
        fail_on=gate.fail_on,
        allow_inconclusive=gate.waive,
        limits=Limits(gate.max_psnr, gate.max_labels),
        accepted=accepted,
        reference=None if gate.baseline is None else _reference(gate.baseline),
    )


def _reference(path: Path) -> Reference:
    audit, text = read_audit(path)
    return Reference(audit, hashlib.sha256(text.encode()).hexdigest())


def choices(
    preset: str,
    attacks: str | None,
    seed: int,
    budget: float | None,
    device: str,
    evidence: str | None,
    *,
    text: bool = False,
    elsewhere: Sequence[str] = (),
    what_if: bool | None = None,
) -> Options:
    """The caller's choices, checked; `text`: among the attacks on text. Raises UsageError.

    `elsewhere`: what variables and the project's file set, as flags.
    """
    from auditor.options import make_options
    from auditor.report.command import public_command

    default = "none" if os.environ.get("CI") else "separate"
    chosen = default if evidence is None else evidence
    if chosen not in {"none", "separate", "embed"}:
        raise UsageError(
            expected="none, separate or embed", found=repr(evidence), todo="Mend --evidence."
        )
    if text and what_if:
        raise UsageError(
            expected="--what-if with a model of pictures",
            found="the folder of a language model",
            todo="Leave --what-if out; see docs/what-if.md.",
        )
    names = [name.strip() for name in attacks.split(",")] if attacks else None
    return make_options(
        preset=preset,
        attacks=names,
        seed=seed,
        budget=budget,
        device=device,
        evidence=chosen,  # type: ignore[arg-type]
        command=public_command([*sys.argv[1:], *elsewhere]),
        offered=_text_attacks() if text else None,
        what_if=what_if,
    )


def _text_attacks() -> list[str]:
    from auditor.text.attacks import TEXT_ATTACKS

    return [attack.name for attack in TEXT_ATTACKS]


def is_language_model(model: Path) -> bool:
    """Whether MODEL is the folder of a language model."""
    from auditor.inputs.transformers_folder import is_folder

    return is_folder(model)


def simulated(
    model: Path,
    flags: Flags,
    samples: Samples,
    *,
    arch: str | None,
    trust: bool,
    seed: int,
    keep: Path | None,
    quiet: bool,
) -> Case | TextCase:
    """What is audited when a client with these samples sent its dump. Raises UsageError."""
    if is_language_model(model):
        from auditor.api import refuse_for_text
        from auditor.inputs.transformers_folder import load_folder
        from auditor.text.simulate import simulated_text_case

        pictures = (samples.data, samples.dataset, bool(samples.inputs), bool(samples.index))
        refuse_for_text(arch, trust, *pictures, flags.modality, samples.label_column)
        language = load_folder(model)
        return simulated_text_case(
            language, samples.texts, samples.labels, flags, seed=seed, keep=keep
        )
    from auditor.inputs.models import load_model
    from auditor.simulate import client_samples, simulated_case

    if samples.texts:
        raise UsageError(
            expected="--text only with the folder of a language model",
            found=f"{model.name!r}",
            todo="Give pictures with --input, or the folder that save_pretrained wrote.",
        )
    loaded = load_model(model, arch=arch, trust_model=trust)
    truth, flags, notes = client_samples(
        loaded.module,
        flags,
        samples.inputs,
        samples.labels,
        samples.data,
        samples.dataset,
        samples.index,
        samples.label_column,
    )
    for note in notes:
        say(note, quiet)
    return simulated_case(loaded, truth, flags, keep=keep)


def facts_from(
    shape: str | None,
    mean: str | None,
    std: str | None,
    batch_size: int | None,
    mode: str | None,
    reduction: str | None,
    smoothing: float | None,
    local: LocalFlags | None = None,
    modality: str | None = None,
) -> Flags:
    """The facts on the command line, checked. Raises UsageError."""
    from auditor.facts import LocalFlags, flags_from_text

    return flags_from_text(
        input_shape=shape,
        mean=mean,
        std=std,
        batch_size=batch_size,
        mode=mode,
        reduction=reduction,
        label_smoothing=smoothing,
        local=local or LocalFlags(),
        modality=modality,
    )


def local_from(
    kind: str | None,
    lr: float | None,
    steps: int | None,
    batch: int | None,
    epochs: int | None,
    momentum: float | None,
    weight_decay: float | None,
) -> LocalFlags:
    """What the command line says of an update; `facts_from` checks it."""
    from auditor.facts import LocalFlags

    return LocalFlags(
        kind,  # type: ignore[arg-type]
        lr,
        steps,
        batch,
        epochs,
        momentum,
        weight_decay,
    )
