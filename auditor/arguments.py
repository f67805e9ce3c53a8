"""What the commands take: every argument and option, with its help text."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

ModelFile = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="The model file, or the folder of a language model."),
]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="SPEC",
        help="What a state_dict belongs to: torchvision:NAME, a name from the zoo "
        "(lenet:3x32x100, resnet20), or path/to/file.py:factory, which runs that file.",
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust-model", help="Load TorchScript and .pt2 files, which can execute code."),
]
Shape = Annotated[
    str | None,
    typer.Option(metavar="CxHxW|D", help="Such as 3x32x32, or 30 for a table of 30 columns."),
]
ModalityFlag = Annotated[
    str | None,
    typer.Option(
        metavar="images|features", help="What the model takes: pictures, or rows of a table."
    ),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The column of a CSV that holds the classes."),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="M,...|FILE",
        help="What is subtracted from pixels 0..1 or from columns, one number or one for each "
        "channel or column.",
    ),
]
Std = Annotated[str | None, typer.Option(metavar="S,...|FILE", help="What they are divided by.")]
Mode = Annotated[
    str | None, typer.Option(metavar="eval|train", help="How batch norm ran on the client.")
]
Reduction = Annotated[
    str | None,
    typer.Option(metavar="mean|sum", help="How the client's loss was taken over the batch."),
]
Smoothing = Annotated[float | None, typer.Option(help="The client's label smoothing.")]
Attacks = Annotated[
    str | None,
    typer.Option(metavar="NAME,...", help="Only these attacks, or families such as labels."),
]
PresetName = Annotated[
    str,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="fast, standard, deep, or paper (DLG and iDLG as published).",
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="Stop looking after so long. Each preset has its own."),
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda|mps", help="Where to compute.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same audit.")]
WhatIf = Annotated[
    bool | None,
    typer.Option(
        "--what-if/--no-what-if",
        help="Attack the step again under the usual defences (default with --preset deep).",
    ),
]
FailOn = Annotated[
    str | None,
    typer.Option(
        metavar="BAND|SCORE", help="Exit 1 at or over low, medium, high, critical, or 0.1 to 10.0."
    ),
]
Waive = Annotated[
    bool,
    typer.Option(
        "--allow-inconclusive", help="Exit 0 instead of 4. You accept what could not be looked at."
    ),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Where the report goes.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an older audit in --out.")]
EvidenceFlag = Annotated[
    str | None,
    typer.Option(
        "--evidence",
        metavar="none|separate|embed",
        help="Where recovered data go: nowhere (default when CI is set), into DIR/evidence for "
        "your eyes only (default elsewhere), or into the report.",
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but the report's path and errors.")
]
BatchSize = Annotated[int | None, typer.Option(help="Samples behind the gradient or the update.")]
TruthFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="What the client had, to measure against: inputs and labels, or texts."
    ),
]
GradsFile = Annotated[
    Path | None,
    typer.Argument(metavar="GRADS", help="The gradient dump, or a client's update."),
]
Kind = Annotated[
    str | None,
    typer.Option(
        metavar="gradient|update",
        help="What the dump holds. An update is weights after training minus weights before.",
    ),
]
LearningRate = Annotated[float | None, typer.Option(help="Of an update: the client's SGD.")]
LocalSteps = Annotated[int | None, typer.Option(help="Its steps in one epoch.")]
LocalBatch = Annotated[int | None, typer.Option(help="Samples of one step.")]
LocalEpochs = Annotated[int | None, typer.Option(help="How often it went through its samples.")]
Momentum = Annotated[float | None, typer.Option(help="Of its SGD.")]
WeightDecay = Annotated[float | None, typer.Option(help="Of its SGD.")]
Before = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The weights before training; they have to be MODEL's."),
]
After = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The weights after training, in place of GRADS.")
]
AuxiliaryData = Annotated[
    Path | None,
    typer.Option(
        "--aux",
        metavar="DIR|FILE",
        help="Pictures like the client's: a folder a class, or an .npz with images and labels.",
    ),
]
Pictures = Annotated[
    list[Path] | None,
    typer.Option(
        "--input",
        metavar="FILE",
        help="A picture; several make a batch. Or a CSV, .npz or .pt with rows of a table.",
    ),
]
Labels = Annotated[
    list[int] | None,
    typer.Option("--label", metavar="K", help="Its class, once for each --input, --text or row."),
]
Texts = Annotated[
    list[str] | None,
    typer.Option("--text", metavar="TEXT", help="Of a language model: a text; several a batch."),
]
DataFolder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where a torchvision data set lies on disk.")
]
DatasetName = Annotated[
    str | None, typer.Option(metavar="NAME", help="mnist, fashion-mnist, cifar10 or cifar100.")
]
Indices = Annotated[
    list[int] | None,
    typer.Option(metavar="I", help="Which sample of it, or row; several make a batch."),
]
SaveDump = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keep the simulated dump, a safetensors file."),
]
MaxPsnr = Annotated[
    float | None,
    typer.Option(metavar="DB", help="Exit 1 when a picture was rebuilt better than this PSNR."),
]
MaxLabels = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE", help="Exit 1 when more of the batch's labels are proved, 0 to 1."
    ),
]
BaselineFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="An earlier audit.json: only what is new or worse counts."),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the audit, - to stdout.")
]
SarifFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write SARIF 2.1.0.")]
JunitFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write JUnit XML.")]
MarkdownFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write Markdown, for a step summary.")
]


@dataclass(frozen=True)
class GateOptions:
    """What the gate is asked."""

    fail_on: FailOn = None
    max_psnr: MaxPsnr = None
    max_labels: MaxLabels = None
    baseline: BaselineFile = None
    waive: Waive = False


@dataclass(frozen=True)
class OutputOptions:
    """What is written, and where."""

    out: Out = Path("gradaudit-report")
    overwrite: Overwrite = False
    evidence: EvidenceFlag = None
    json: JsonFile = None
    sarif: SarifFile = None
    junit: JunitFile = None
    markdown: MarkdownFile = None
    quiet: Quiet = False

    @property
    def files(self) -> dict[str, Path]:
        """The single files by their format."""
        named = {
            "json": self.json,
            "sarif": self.sarif,
            "junit": self.junit,
            "markdown": self.markdown,
        }
        return {form: path for form, path in named.items() if path is not None}


def bundled(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its dataclass parameters as options of their own."""
    signature = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    bundles: dict[str, Any] = {}
    for parameter in signature.parameters.values():
        if is_dataclass(parameter.annotation):
            bundles[parameter.name] = parameter.annotation
            parameters += _options_of(parameter.annotation)
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        for name, bundle in bundles.items():
            values[name] = bundle(**{f.name: values.pop(f.name) for f in fields(bundle)})
        command(**values)

    flat.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    flat.__annotations__ = {p.name: p.annotation for p in parameters}
    return flat


def _options_of(bundle: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(bundle, include_extras=True)
    kind = inspect.Parameter.KEYWORD_ONLY
    return [
        inspect.Parameter(f.name, kind, default=f.default, annotation=hints[f.name])
        for f in fields(bundle)
    ]
