"""What every auditing command does around its audit: check, choose, run, write, tell.

torch is imported inside the functions that need it, so that the parser starts at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import typer
from rich.console import Console

from auditor.errors import UsageError

if TYPE_CHECKING:
    from auditor.attacks import Milestone
    from auditor.audit import Case, Result
    from auditor.facts import Flags, LocalFlags
    from auditor.options import Options
    from auditor.text.audit import TextCase, TextResult


@dataclass(frozen=True)
class Samples:
    """What a simulated client has, as the command line says it."""

    inputs: list[Path]
    labels: list[int]
    data: Path | None
    dataset: str | None
    index: list[int]
    texts: list[str]


def audit_and_write(
    case: Case | TextCase,
    options: Options,
    out: Path,
    *,
    overwrite: bool,
    fail_on: str | None,
    waive: bool,
    quiet: bool,
) -> None:
    """Run the audit, write its directory, tell people, print the report's path, exit."""
    import torch

    from auditor.outputs import write_audit
    from auditor.report.console import print_audit
    from auditor.report.progress import ProgressLine

    if options.device.type == "cpu" and _is_small(case):
        torch.set_num_threads(1)  # the products are too small to share, waiting costs more
    people = stderr_console()
    with ProgressLine(people, quiet=quiet) as progress:
        result = _run(case, options, fail_on=fail_on, waive=waive, progress=progress)
    write_audit(result, out, overwrite=overwrite)
    if not quiet:
        print_audit(result.audit, people)
        if (out / "evidence").exists():
            say(f"Evidence, for your eyes only: {out / 'evidence'}", quiet)
        say("Report:", quiet)
    put(f"{out / 'report.html'}\n")
    raise typer.Exit(result.audit.gate.exit_code)


def _run(
    case: Case | TextCase,
    options: Options,
    *,
    fail_on: str | None,
    waive: bool,
    progress: Callable[[Milestone], None],
) -> Result | TextResult:
    """The audit of a case, on pictures or on text."""
    from auditor.audit import Case, run_audit

    if isinstance(case, Case):
        return run_audit(
            case, options, fail_on=fail_on, allow_inconclusive=waive, progress=progress
        )
    from auditor.text.audit import run_text_audit

    return run_text_audit(
        case, options, fail_on=fail_on, allow_inconclusive=waive, progress=progress
    )


def _is_small(case: Case | TextCase) -> bool:
    from auditor.audit import Case

    model = case.model if isinstance(case, Case) else case.language.model
    return sum(p.numel() for p in model.module.parameters()) < 5_000_000


def precheck(out: Path, overwrite: bool, fail_on: str | None) -> None:
    """Everything that can be refused before torch is imported."""
    from auditor.report.directory import check_target
    from auditor.severity import parse_threshold

    check_target(out, overwrite=overwrite)
    if fail_on is not None:
        parse_threshold(fail_on)


def choices(
    preset: str,
    attacks: str | None,
    seed: int,
    budget: float | None,
    device: str,
    evidence: str | None,
    *,
    text: bool = False,
) -> Options:
    """The caller's choices, checked; `text`: among the attacks on text. Raises UsageError."""
    from auditor.options import make_options
    from auditor.report.command import public_command

    default = "none" if os.environ.get("CI") else "separate"
    chosen = default if evidence is None else evidence
    if chosen not in {"none", "separate", "embed"}:
        raise UsageError(
            expected="none, separate or embed", found=repr(evidence), todo="Mend --evidence."
        )
    names = [name.strip() for name in attacks.split(",")] if attacks else None
    return make_options(
        preset=preset,
        attacks=names,
        seed=seed,
        budget=budget,
        device=device,
        evidence=chosen,  # type: ignore[arg-type]
        command=public_command(sys.argv[1:]),
        offered=_text_attacks() if text else None,
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
        refuse_for_text(arch, trust, *pictures)
        language = load_folder(model)
        return simulated_text_case(
            language, samples.texts, samples.labels, flags, seed=seed, keep=keep
        )
    from auditor.inputs.models import load_model
    from auditor.simulate import read_samples, simulated_case

    if samples.texts:
        raise UsageError(
            expected="--text only with the folder of a language model",
            found=f"{model.name!r}",
            todo="Give pictures with --input, or the folder that save_pretrained wrote.",
        )
    loaded = load_model(model, arch=arch, trust_model=trust)
    truth, notes = read_samples(
        loaded.module,
        flags,
        samples.inputs,
        samples.labels,
        samples.data,
        samples.dataset,
        samples.index,
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


class _PatientConsole(Console):
    """A console whose reader may leave; rich would end the process with the code of a leak."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _silence(sys.stderr)


def stderr_console() -> Console:
    """Where people read. Never animated when CI says so."""
    return _PatientConsole(stderr=True, force_interactive=False if os.environ.get("CI") else None)


def put(text: str) -> None:
    """What was asked for, on stdout. That its reader has gone changes no exit code."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout)


def _silence(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str, quiet: bool) -> None:
    """One plain line on stderr."""
    if not quiet:
        stderr_console().print(text, highlight=False, markup=False, soft_wrap=True)
