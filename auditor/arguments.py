"""What the commands take: every argument and option, with its help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
Shape = Annotated[str | None, typer.Option(metavar="CxHxW", help="Such as 3x32x32.")]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="M,...", help="What is subtracted from pixels 0..1, one number or one a channel."
    ),
]
Std = Annotated[str | None, typer.Option(metavar="S,...", help="What they are divided by.")]
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
    typer.Option("--input", metavar="FILE", help="A picture; several make a batch."),
]
Labels = Annotated[
    list[int] | None,
    typer.Option("--label", metavar="K", help="Its class, once for each --input or --text."),
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
    typer.Option(metavar="I", help="Which sample of it; several make a batch."),
]
SaveDump = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keep the simulated dump, a safetensors file."),
]
