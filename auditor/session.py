"""What every auditing command does around its audit: check, choose, run, write, tell.

torch is imported inside the functions that need it, so that the parser starts at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import typer
from rich.console import Console

from auditor.errors import UsageError

if TYPE_CHECKING:
    from auditor.audit import Case
    from auditor.facts import Flags, LocalFlags
    from auditor.options import Options


def audit_and_write(
    case: Case,
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

    from auditor.audit import run_audit
    from auditor.outputs import write_audit
    from auditor.report.console import print_audit
    from auditor.report.progress import ProgressLine

    if options.device.type == "cpu" and _is_small(case):
        torch.set_num_threads(1)  # the products are too small to share, waiting costs more
    people = stderr_console()
    with ProgressLine(people, quiet=quiet) as progress:
        result = run_audit(
            case, options, fail_on=fail_on, allow_inconclusive=waive, progress=progress
        )
    write_audit(result, out, overwrite=overwrite)
    if not quiet:
        print_audit(result.audit, people)
        if (out / "evidence").exists():
            say(f"Evidence, for your eyes only: {out / 'evidence'}", quiet)
        say("Report:", quiet)
    put(f"{out / 'report.html'}\n")
    raise typer.Exit(result.audit.gate.exit_code)


def _is_small(case: Case) -> bool:
    return sum(p.numel() for p in case.model.module.parameters()) < 5_000_000


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
) -> Options:
    """The caller's choices, checked. Raises UsageError."""
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
    )


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
