"""The command line: parse, call, print, exit. Nothing here decides anything about a leak.

torch is imported inside the commands that need it, so that `--help` and `render` start at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from auditor import __version__
from auditor import arguments as arg
from auditor.errors import AuditError, InputError, UsageError
from auditor.gate import ExitCode
from auditor.rules import RULES, rule
from auditor.session import (
    Samples,
    audit_and_write,
    choices,
    facts_from,
    is_language_model,
    local_from,
    precheck,
    put,
    simulated,
)

_EXITS = (
    "Exit codes: 0 passed; 1 leakage at or over --fail-on; 2 usage; 3 input refused or "
    "unreadable; 4 inconclusive; 5 internal error; 130 interrupted."
)

# What the parser raises about bad arguments. typer keeps the class to itself, but not its child.
_PARSER_ERROR: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="gradaudit",
    help="Find out what your model and your gradients give away.",
    epilog=_EXITS,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        put(f"gradaudit {__version__}\n")
        raise typer.Exit


@app.command(epilog=_EXITS)
def scan(
    model: arg.ModelFile,
    grads: arg.GradsFile = None,
    arch: arg.Arch = None,
    trust_model: arg.Trust = False,
    input_shape: arg.Shape = None,
    mean: arg.Mean = None,
    std: arg.Std = None,
    batch_size: arg.BatchSize = None,
    mode: arg.Mode = None,
    reduction: arg.Reduction = None,
    label_smoothing: arg.Smoothing = None,
    kind: arg.Kind = None,
    lr: arg.LearningRate = None,
    local_steps: arg.LocalSteps = None,
    local_batch: arg.LocalBatch = None,
    local_epochs: arg.LocalEpochs = None,
    momentum: arg.Momentum = None,
    weight_decay: arg.WeightDecay = None,
    before: arg.Before = None,
    after: arg.After = None,
    aux: arg.AuxiliaryData = None,
    truth: arg.TruthFile = None,
    attacks: arg.Attacks = None,
    preset: arg.PresetName = "standard",
    budget: arg.Budget = None,
    device: arg.Device = "auto",
    seed: arg.Seed = 0,
    fail_on: arg.FailOn = None,
    waive: arg.Waive = False,
    out: arg.Out = Path("gradaudit-report"),
    overwrite: arg.Overwrite = False,
    evidence: arg.EvidenceFlag = None,
    quiet: arg.Quiet = False,
) -> None:
    """Audit a model file and a gradient dump, or a client's update."""
    precheck(out, overwrite, fail_on)
    text = is_language_model(model)
    options = choices(preset, attacks, seed, budget, device, evidence, text=text)
    local = local_from(kind, lr, local_steps, local_batch, local_epochs, momentum, weight_decay)
    flags = facts_from(input_shape, mean, std, batch_size, mode, reduction, label_smoothing, local)
    from auditor.api import case_from_files

    case = case_from_files(
        model, grads, before, after, flags, arch=arch, trust=trust_model, truth=truth, aux=aux
    )
    audit_and_write(
        case, options, out, overwrite=overwrite, fail_on=fail_on, waive=waive, quiet=quiet
    )


@app.command(epilog=_EXITS)
def simulate(
    model: arg.ModelFile,
    input_: arg.Pictures = None,
    label: arg.Labels = None,
    data: arg.DataFolder = None,
    dataset: arg.DatasetName = None,
    index: arg.Indices = None,
    text: arg.Texts = None,
    arch: arg.Arch = None,
    trust_model: arg.Trust = False,
    input_shape: arg.Shape = None,
    mean: arg.Mean = None,
    std: arg.Std = None,
    mode: arg.Mode = None,
    reduction: arg.Reduction = None,
    label_smoothing: arg.Smoothing = None,
    lr: arg.LearningRate = None,
    local_steps: arg.LocalSteps = None,
    local_batch: arg.LocalBatch = None,
    local_epochs: arg.LocalEpochs = None,
    momentum: arg.Momentum = None,
    weight_decay: arg.WeightDecay = None,
    save_dump: arg.SaveDump = None,
    attacks: arg.Attacks = None,
    preset: arg.PresetName = "standard",
    budget: arg.Budget = None,
    device: arg.Device = "auto",
    seed: arg.Seed = 0,
    fail_on: arg.FailOn = None,
    waive: arg.Waive = False,
    out: arg.Out = Path("gradaudit-report"),
    overwrite: arg.Overwrite = False,
    evidence: arg.EvidenceFlag = None,
    quiet: arg.Quiet = False,
) -> None:
    """Make the dump a client would have sent for your own inputs, then audit it with the truth."""
    precheck(out, overwrite, fail_on)
    told = is_language_model(model)
    options = choices(preset, attacks, seed, budget, device, evidence, text=told)
    kind = None if lr is None and local_steps is None else "update"
    local = local_from(kind, lr, local_steps, local_batch, local_epochs, momentum, weight_decay)
    flags = facts_from(input_shape, mean, std, None, mode, reduction, label_smoothing, local)
    samples = Samples(input_ or [], label or [], data, dataset, index or [], text or [])
    ways: Any = {"arch": arch, "trust": trust_model, "keep": save_dump}
    case = simulated(model, flags, samples, **ways, seed=seed, quiet=quiet)
    audit_and_write(
        case, options, out, overwrite=overwrite, fail_on=fail_on, waive=waive, quiet=quiet
    )


@app.command()
def demo(
    out: arg.Out = Path("gradaudit-demo"),
    seed: arg.Seed = 0,
    device: arg.Device = "auto",
    overwrite: arg.Overwrite = False,
    quiet: arg.Quiet = False,
) -> None:
    """A real leak, offline: the report shows the picture."""
    precheck(out, overwrite, None)
    options = choices("standard", None, seed, None, device, "embed")
    from auditor.demo import demo_case

    audit_and_write(
        demo_case(seed=seed),
        options,
        out,
        overwrite=overwrite,
        fail_on=None,
        waive=False,
        quiet=quiet,
    )


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model or a dump.")],
) -> None:
    """Say what is in a file, without loading anything that can execute."""
    from auditor.inputs.inspect import describe
    from auditor.report.words import printable

    found = describe(file)
    lines = [f"{found.kind}, {found.file.bytes} bytes, sha256 {found.file.sha256}"]
    lines += [
        f"{line.name}  {'x'.join(str(n) for n in line.shape) or 'scalar'}  {line.dtype}"
        for line in found.tensors
    ]
    lines += [f"needs: {name}" for name in found.classes]
    lines += [f"refused: {name}" for name in found.unsafe]
    lines += [f"note: {note}" for note in found.notes]
    for line in lines:
        put(printable(line) + "\n")


@app.command()
def render(
    audit: Annotated[Path, typer.Argument(metavar="AUDIT", help="A finished audit.json.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")],
) -> None:
    """Make report.html again from a finished audit.json."""
    from auditor.report.audit_json import from_json
    from auditor.report.html import to_html

    try:
        text = audit.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            expected="an audit.json",
            found=f"{audit.name!r}, which cannot be read ({type(error).__name__})",
            todo="Name the file that scan wrote.",
        ) from error
    if out.exists() and out.samefile(audit):
        raise UsageError(
            expected="another file for --out", found="the audit itself", todo="Name another one."
        )
    page = to_html(from_json(text))
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(
            expected="a file that can be written for --out",
            found=f"{out.name!r} ({error.strerror})",
            todo="Name another one.",
        ) from error


@app.command("attacks")
def list_attacks() -> None:
    """List the attacks, in the order in which they run."""
    from auditor.attacks import ATTACKS
    from auditor.text.attacks import TEXT_ATTACKS

    every = [(a.name, a.title) for a in ATTACKS] + [(a.name, a.title) for a in TEXT_ATTACKS]
    for name, title in every:
        put(f"{name:<22}{title}\n")


@app.command()
def explain(
    code: Annotated[str, typer.Argument(metavar="CODE", help="Such as GA101.")],
) -> None:
    """Say what a finding or caveat means and what to do about it."""
    try:
        entry = rule(code.upper())
    except KeyError as error:
        raise UsageError(
            expected=f"one of {', '.join(r.code for r in RULES)}",
            found=repr(code),
            todo="Mend the code.",
        ) from error
    for part in (
        f"{entry.code}: {entry.title}",
        f"Meaning: {entry.meaning}",
        f"Why it matters: {entry.matters}",
        f"What to do: {entry.remedy}",
    ):
        put(part + "\n")
    if entry.references:
        put(f"References: {', '.join(entry.references)}\n")


def main() -> None:
    """Run the command line and exit with one of `ExitCode`, whatever happens."""
    _open_streams()
    try:
        code = app(standalone_mode=False)
    except AuditError as error:
        sys.stderr.write(f"gradaudit: {error}\n")
        code = ExitCode.INPUT if isinstance(error, InputError) else ExitCode.USAGE
    except _PARSER_ERROR as error:
        error.show()
        code = ExitCode.USAGE
    except (KeyboardInterrupt, typer.Abort):
        code = ExitCode.INTERRUPTED
    except SystemExit as leaving:
        code = _code_of(leaving)
    except Exception as error:  # noqa: BLE001 - a crash must not look like a failed gate
        _report_crash(error)
        code = ExitCode.INTERNAL
    sys.exit(int(code or 0))


def _open_streams() -> None:
    """A stream that was closed before we began is None: what goes there goes nowhere."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the whole process


def _code_of(leaving: SystemExit) -> int:
    """Completion, and a help text whose reader has gone, leave like this.

    So may the code of a model, and that is neither a pass nor a leak. It runs after torch is there.
    """
    if "torch" in sys.modules:
        sys.stderr.write("gradaudit: the model's code ended the process. No verdict was reached.\n")
        return ExitCode.INTERNAL
    if isinstance(leaving.__context__, BrokenPipeError):
        return ExitCode.PASS
    return leaving.code if isinstance(leaving.code, int) else ExitCode.PASS


def _report_crash(error: Exception) -> None:
    """Where it happened, without values: a traceback's locals could hold what was recovered."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)
    where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "unknown"
    sys.stderr.write(
        f"gradaudit: internal error, {type(error).__name__} at {where}. No verdict was reached.\n"
        "Please report it; GRADAUDIT_DEBUG=1 shows the whole traceback.\n"
    )
    if os.environ.get("GRADAUDIT_DEBUG"):
        traceback.print_exception(error)
