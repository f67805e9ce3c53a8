"""The command line: parse, call, print, exit. Nothing here decides anything about a leak.

torch is imported inside the commands that need it, so that `--help` and `render` start at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from auditor import __version__
from auditor import arguments as arg
from auditor.configured import AUDITING, configure, listening, own_settings
from auditor.errors import AuditError, InputError, UsageError
from auditor.finished import diff, render, verify
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
    simulated,
)
from auditor.streams import put

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
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        put(f"gradaudit {__version__}\n")
        raise typer.Exit
    if context.invoked_subcommand in AUDITING and "--help" not in sys.argv:
        configure(context)


@app.command(epilog=_EXITS)
@arg.bundled
def scan(
    context: typer.Context,
    model: arg.ModelFile,
    grads: arg.GradsFile = None,
    arch: arg.Arch = None,
    trust_model: arg.Trust = False,
    modality: arg.ModalityFlag = None,
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
    label_column: arg.LabelColumn = None,
    attacks: arg.Attacks = None,
    preset: arg.PresetName = "standard",
    budget: arg.Budget = None,
    device: arg.Device = "auto",
    seed: arg.Seed = 0,
    what_if: arg.WhatIf = None,
    *,
    gate: arg.GateOptions,
    outputs: arg.OutputOptions,
) -> None:
    """Audit a model file and a gradient dump, or a client's update."""
    own = own_settings(context)
    rules = precheck(gate, outputs, (model, grads, before, after, aux, truth), own.accepted)
    text = is_language_model(model)
    told: Any = {"text": text, "elsewhere": own.flags, "what_if": what_if}
    options = choices(preset, attacks, seed, budget, device, outputs.evidence, **told)
    local = local_from(kind, lr, local_steps, local_batch, local_epochs, momentum, weight_decay)
    said = (input_shape, mean, std, batch_size, mode, reduction, label_smoothing)
    flags = facts_from(*said, local, modality)
    from auditor.api import case_from_files

    said_of: Any = {"arch": arch, "trust": trust_model, "aux": aux, "label_column": label_column}
    case = case_from_files(model, grads, before, after, flags, truth=truth, **said_of)
    audit_and_write(case, options, outputs, rules)


@app.command(epilog=_EXITS)
@arg.bundled
def simulate(
    context: typer.Context,
    model: arg.ModelFile,
    input_: arg.Pictures = None,
    label: arg.Labels = None,
    label_column: arg.LabelColumn = None,
    data: arg.DataFolder = None,
    dataset: arg.DatasetName = None,
    index: arg.Indices = None,
    text: arg.Texts = None,
    arch: arg.Arch = None,
    trust_model: arg.Trust = False,
    modality: arg.ModalityFlag = None,
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
    what_if: arg.WhatIf = None,
    *,
    gate: arg.GateOptions,
    outputs: arg.OutputOptions,
) -> None:
    """Make the dump a client would have sent for your own inputs, then audit it with the truth."""
    own = own_settings(context)
    rules = precheck(gate, outputs, (model, save_dump, *(input_ or [])), own.accepted)
    told = is_language_model(model)
    chosen: Any = {"text": told, "elsewhere": own.flags, "what_if": what_if}
    options = choices(preset, attacks, seed, budget, device, outputs.evidence, **chosen)
    kind = None if lr is None and local_steps is None else "update"
    local = local_from(kind, lr, local_steps, local_batch, local_epochs, momentum, weight_decay)
    said = (input_shape, mean, std, None, mode, reduction, label_smoothing)
    flags = facts_from(*said, local, modality)
    named = (data, dataset, index or [], text or [], label_column)
    samples = Samples(input_ or [], label or [], *named)
    ways: Any = {"arch": arch, "trust": trust_model, "keep": save_dump}
    case = simulated(model, flags, samples, **ways, seed=seed, quiet=outputs.quiet)
    audit_and_write(case, options, outputs, rules)


@app.command()
def demo(
    out: arg.Out = Path("gradaudit-demo"),
    seed: arg.Seed = 0,
    device: arg.Device = "auto",
    overwrite: arg.Overwrite = False,
    quiet: arg.Quiet = False,
) -> None:
    """A real leak, offline: the report shows the picture."""
    outputs = arg.OutputOptions(out=out, overwrite=overwrite, quiet=quiet)
    rules = precheck(arg.GateOptions(), outputs)
    options = choices("standard", None, seed, None, device, "embed")
    from auditor.demo import demo_case

    audit_and_write(demo_case(seed=seed), options, outputs, rules)


@app.command()
def inspect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Models or dumps.")],
) -> None:
    """Say what is in a file, without loading anything that can execute.

    Exit code 3 when one of them would be refused as a model or a dump.
    """
    from auditor.inputs.inspect import describe
    from auditor.report.words import printable

    refused = False
    for file in files:
        found = describe(file)
        refused = refused or found.refused
        lines = [f"{file.name}:"] if len(files) > 1 else []
        lines += [f"{found.kind}, {found.file.bytes} bytes, sha256 {found.file.sha256}"]
        lines += [
            f"{line.name}  {'x'.join(str(n) for n in line.shape) or 'scalar'}  {line.dtype}"
            for line in found.tensors
        ]
        lines += [f"needs: {name}" for name in found.classes]
        lines += [f"refused: {name}" for name in found.unsafe]
        lines += [f"note: {note}" for note in found.notes]
        put("".join(f"{printable(line)}\n" for line in lines))
    raise typer.Exit(ExitCode.INPUT if refused else ExitCode.PASS)


for command in (render, verify, diff):  # on finished audits
    app.command()(command)


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


@app.command()
def hook(
    framework: Annotated[
        str,
        typer.Argument(metavar="FRAMEWORK", help="torch, ddp, lightning, opacus, flower, nvflare."),
    ],
) -> None:
    """Print the lines that capture a dump in your training."""
    from auditor.hooks import snippet

    put(snippet(framework))


@app.command()
def doctor() -> None:
    """Say what is there for an audit, and what is missing."""
    from auditor.doctor import is_fit, look_around

    looks = look_around(Path())
    for look in looks:
        todo = f". {look.todo}" if look.todo else ""
        put(f"{look.state:<9} {look.what:<27}{look.found}{todo}\n")
    raise typer.Exit(ExitCode.PASS if is_fit(looks) else ExitCode.INCONCLUSIVE)


def main() -> None:
    """Run the command line and exit with one of `ExitCode`, whatever happens."""
    _open_streams()
    try:
        with _ended_as_by_hand():
            code = listening(app)(standalone_mode=False)
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


@contextlib.contextmanager
def _ended_as_by_hand() -> Iterator[None]:
    """SIGTERM, which ends jobs of pipelines and containers, counts as Ctrl-C.

    Python does not take it in any thread but the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


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
