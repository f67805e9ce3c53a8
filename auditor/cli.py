"""The command line: parse, call, print, exit. Nothing here decides anything about a leak.

torch is imported inside the commands that need it, so that `--help` and `render` start at once.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from auditor import __version__
from auditor.errors import AuditError, InputError, UsageError
from auditor.gate import ExitCode
from auditor.rules import RULES, rule

if TYPE_CHECKING:
    from auditor.audit import Case
    from auditor.facts import Flags
    from auditor.options import Options
    from auditor.records import Truth

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

ModelFile = Annotated[Path, typer.Argument(metavar="MODEL", help="The model file.")]
Arch = Annotated[str | None, typer.Option(
    metavar="SPEC", help="What a state_dict belongs to: torchvision:NAME, a name from the zoo "
    "(lenet:3x32x100, resnet20), or path/to/file.py:factory, which runs that file.")]
Trust = Annotated[bool, typer.Option(
    "--trust-model", help="Load TorchScript and .pt2 files, which can execute code.")]
Shape = Annotated[str | None, typer.Option(metavar="CxHxW", help="Such as 3x32x32.")]
Mean = Annotated[str | None, typer.Option(
    metavar="M,...", help="What is subtracted from pixels 0..1, one number or one a channel.")]
Std = Annotated[str | None, typer.Option(metavar="S,...", help="What they are divided by.")]
Mode = Annotated[str | None, typer.Option(
    metavar="eval|train", help="How batch norm ran on the client.")]
Reduction = Annotated[str | None, typer.Option(
    metavar="mean|sum", help="How the client's loss was taken over the batch.")]
Smoothing = Annotated[float | None, typer.Option(help="The client's label smoothing.")]
Attacks = Annotated[str | None, typer.Option(
    metavar="NAME,...", help="Only these attacks, or families such as labels.")]
PresetName = Annotated[str, typer.Option(
    "--preset", metavar="NAME", help="fast, standard, deep, or paper (DLG and iDLG as published).")]
Budget = Annotated[float | None, typer.Option(
    metavar="SECONDS", help="Stop looking after so long. Each preset has its own.")]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where to compute.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same audit.")]
FailOn = Annotated[str | None, typer.Option(
    metavar="BAND|SCORE", help="Exit 1 at or over low, medium, high, critical, or 0.1 to 10.0.")]
Waive = Annotated[bool, typer.Option(
    "--allow-inconclusive", help="Exit 0 instead of 4. You accept what could not be looked at.")]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Where the report goes.")]
Overwrite = Annotated[bool, typer.Option(
    "--overwrite", help="Replace an older audit in --out.")]
EvidenceFlag = Annotated[str | None, typer.Option(
    "--evidence", metavar="none|separate|embed",
    help="Where recovered data go: nowhere (default when CI is set), into DIR/evidence for your "
    "eyes only (default elsewhere), or into the report.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        sys.stdout.write(f"gradaudit {__version__}\n")
        raise typer.Exit


@app.command(epilog=_EXITS)
def scan(
    model: ModelFile,
    grads: Annotated[Path, typer.Argument(metavar="GRADS", help="The gradient dump.")],
    arch: Arch = None, trust_model: Trust = False, input_shape: Shape = None, mean: Mean = None,
    std: Std = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples behind the gradient.")] = None,
    mode: Mode = None, reduction: Reduction = None, label_smoothing: Smoothing = None,
    truth: Annotated[Path | None, typer.Option(
        metavar="FILE", help="What the client had (inputs, labels), to measure against.")] = None,
    attacks: Attacks = None, preset: PresetName = "standard", budget: Budget = None,
    device: Device = "auto", seed: Seed = 0, fail_on: FailOn = None,
    allow_inconclusive: Waive = False, out: Out = Path("gradaudit-report"),
    overwrite: Overwrite = False, evidence: EvidenceFlag = None, quiet: Quiet = False,
) -> None:
    """Audit a model file and a gradient dump."""
    _precheck(out, overwrite, fail_on)
    options = _options(preset, attacks, seed, budget, device, evidence)
    flags = _flags(input_shape, mean, std, batch_size, mode, reduction, label_smoothing)
    from auditor.api import case_of
    from auditor.inputs.models import load_model
    from auditor.inputs.truth import load_truth

    loaded = load_model(model, arch=arch, trust_model=trust_model)
    known = None if truth is None else load_truth(truth)
    case = case_of(loaded, grads, flags, known)
    _audit(case, options, out, overwrite=overwrite, fail_on=fail_on, waive=allow_inconclusive,
           quiet=quiet)


@app.command(epilog=_EXITS)
def simulate(
    model: ModelFile,
    input_: Annotated[list[Path] | None, typer.Option(
        "--input", metavar="FILE", help="A picture; several make a batch.")] = None,
    label: Annotated[list[int] | None, typer.Option(
        "--label", metavar="K", help="Its class, once for each --input.")] = None,
    data: Annotated[Path | None, typer.Option(
        metavar="DIR", help="Where a torchvision data set lies on disk.")] = None,
    dataset: Annotated[str | None, typer.Option(
        metavar="NAME", help="mnist, fashion-mnist, cifar10 or cifar100.")] = None,
    index: Annotated[list[int] | None, typer.Option(
        metavar="I", help="Which sample of it; several make a batch.")] = None,
    arch: Arch = None, trust_model: Trust = False, input_shape: Shape = None, mean: Mean = None,
    std: Std = None, mode: Mode = None, reduction: Reduction = None,
    label_smoothing: Smoothing = None,
    save_dump: Annotated[Path | None, typer.Option(
        metavar="FILE", help="Keep the simulated dump, a safetensors file.")] = None,
    attacks: Attacks = None, preset: PresetName = "standard", budget: Budget = None,
    device: Device = "auto", seed: Seed = 0, fail_on: FailOn = None,
    allow_inconclusive: Waive = False, out: Out = Path("gradaudit-report"),
    overwrite: Overwrite = False, evidence: EvidenceFlag = None, quiet: Quiet = False,
) -> None:
    """Make the dump a client would have sent for your own inputs, then audit it with the truth."""
    _precheck(out, overwrite, fail_on)
    options = _options(preset, attacks, seed, budget, device, evidence)
    flags = _flags(input_shape, mean, std, None, mode, reduction, label_smoothing)
    from auditor.audit import Case
    from auditor.facts import settle
    from auditor.inputs.models import load_model
    from auditor.simulate import read_samples, simulate_dump

    loaded = load_model(model, arch=arch, trust_model=trust_model)
    truth, notes = read_samples(
        loaded.module, flags, inputs=input_ or [], labels=label or [], data=data,
        dataset=dataset, indices=index or [],
    )
    for note in notes:
        _say(note, quiet)
    dump = simulate_dump(loaded.module, truth, flags, keep=save_dump)
    case = Case(loaded, dump, settle(dump, loaded.module, flags), truth)
    _audit(case, options, out, overwrite=overwrite, fail_on=fail_on, waive=allow_inconclusive,
           quiet=quiet)


@app.command()
def demo(
    out: Out = Path("gradaudit-demo"), seed: Seed = 0, device: Device = "auto",
    overwrite: Overwrite = False, quiet: Quiet = False,
) -> None:
    """A real leak in under a minute, offline: the report shows the picture."""
    _precheck(out, overwrite, None)
    options = _options("standard", None, seed, None, device, "embed")
    from auditor.demo import demo_case

    _audit(demo_case(seed=seed), options, out, overwrite=overwrite, fail_on=None, waive=False,
           quiet=quiet)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A model or a dump.")],
) -> None:
    """Say what is in a file, without loading anything that can execute."""
    from auditor.inputs.inspect import describe
    from auditor.report.words import printable

    found = describe(file)
    lines = [f"{found.kind}, {found.file.bytes} bytes, sha256 {found.file.sha256}"]
    lines += [f"{line.name}  {'x'.join(str(n) for n in line.shape) or 'scalar'}  {line.dtype}"
              for line in found.tensors]
    lines += [f"needs: {name}" for name in found.classes]
    lines += [f"refused: {name}" for name in found.unsafe]
    lines += [f"note: {note}" for note in found.notes]
    for line in lines:
        sys.stdout.write(printable(line) + "\n")


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
        raise InputError(expected="an audit.json", found=f"{audit.name!r}, which cannot be read "
                         f"({type(error).__name__})", todo="Name the file that scan wrote.",
                         ) from error
    page = to_html(from_json(text))
    try:
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UsageError(expected="a file that can be written for --out", found=f"{out.name!r} "
                         f"({error.strerror})", todo="Name another one.") from error


@app.command("attacks")
def list_attacks() -> None:
    """List the attacks, in the order in which they run."""
    from auditor.attacks import ATTACKS

    for attack in ATTACKS:
        sys.stdout.write(f"{attack.name:<16}{attack.title}\n")


@app.command()
def explain(
    code: Annotated[str, typer.Argument(metavar="CODE", help="Such as GA101.")],
) -> None:
    """Say what a finding or caveat means and what to do about it."""
    try:
        entry = rule(code.upper())
    except KeyError as error:
        raise UsageError(expected=f"one of {', '.join(r.code for r in RULES)}", found=repr(code),
                         todo="Mend the code.") from error
    for part in (f"{entry.code}: {entry.title}", f"Meaning: {entry.meaning}",
                 f"Why it matters: {entry.matters}", f"What to do: {entry.remedy}"):
        sys.stdout.write(part + "\n")
    if entry.references:
        sys.stdout.write(f"References: {', '.join(entry.references)}\n")


# --------------------------------------------------------------------------- shared by commands


def _audit(
    case: Case, options: Options, out: Path, *, overwrite: bool, fail_on: str | None,
    waive: bool, quiet: bool,
) -> None:
    import torch

    from auditor.audit import run_audit
    from auditor.outputs import write_audit
    from auditor.report.console import print_audit
    from auditor.report.progress import ProgressLine

    if options.device.type == "cpu" and _is_small(case):
        torch.set_num_threads(1)  # the products are too small to share, waiting costs more
    console = _console()
    with ProgressLine(console, quiet=quiet) as progress:
        result = run_audit(case, options, fail_on=fail_on, allow_inconclusive=waive,
                           progress=progress)
    write_audit(result, out, overwrite=overwrite)
    if not quiet:
        print_audit(result.audit, console)
        if (out / "evidence").exists():
            _say(f"Evidence, for your eyes only: {out / 'evidence'}", quiet)
        _say("Report:", quiet)
    sys.stdout.write(f"{out / 'report.html'}\n")
    raise typer.Exit(result.audit.gate.exit_code)


def _is_small(case: Case) -> bool:
    return sum(p.numel() for p in case.model.module.parameters()) < 5_000_000


def _precheck(out: Path, overwrite: bool, fail_on: str | None) -> None:
    """Everything that can be refused before torch is imported."""
    from auditor.report.directory import check_target
    from auditor.severity import parse_threshold

    check_target(out, overwrite=overwrite)
    if fail_on is not None:
        parse_threshold(fail_on)


def _options(
    preset: str, attacks: str | None, seed: int, budget: float | None, device: str,
    evidence: str | None,
) -> Options:
    from auditor.options import make_options
    from auditor.report.command import public_command

    chosen = evidence or ("none" if os.environ.get("CI") else "separate")
    if chosen not in {"none", "separate", "embed"}:
        raise UsageError(expected="none, separate or embed", found=repr(evidence),
                         todo="Mend --evidence.")
    names = [name.strip() for name in attacks.split(",")] if attacks else None
    return make_options(
        preset=preset, attacks=names, seed=seed, budget=budget, device=device,
        evidence=chosen,  # type: ignore[arg-type]
        command=public_command(sys.argv[1:]),
    )


def _flags(
    shape: str | None, mean: str | None, std: str | None, batch_size: int | None,
    mode: str | None, reduction: str | None, smoothing: float | None,
) -> Flags:
    from auditor.facts import Flags, flags_from_text

    said: Flags = flags_from_text(
        input_shape=shape, mean=mean, std=std, batch_size=batch_size, mode=mode,
        reduction=reduction, label_smoothing=smoothing,
    )
    return said


def _console() -> Console:
    return Console(stderr=True, force_interactive=False if os.environ.get("CI") else None)


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        _console().print(text, highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    """Run the command line and exit with one of `ExitCode`, whatever happens."""
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
    except BrokenPipeError:  # the reader of our output has gone: nothing more to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.PASS
    except Exception as error:  # a crash must not look like a failed gate
        _report_crash(error)
        code = ExitCode.INTERNAL
    sys.exit(int(code or 0))


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
