"""Every record of the flow, in the order in which it appears.

Letters of the shape comments: R restarts, S snapshots, N samples, C H W image, K classes,
E features of the head, P parameters. Tensors stop at `findings.py`: from `Caveat` on,
everything is plain data, equal to what `audit.json` holds. Nothing here imports torch at run
time, so that `render`, `--help` and the gate start at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA_VERSION = "1.0"

Mode = Literal["eval", "train"]
Reduction = Literal["mean", "sum"]
Origin = Literal["flag", "metadata", "deduced", "assumed"]
Certainty = Literal["proved", "verified", "consistent", "measured", "estimated"]
Band = Literal["none", "low", "medium", "high", "critical"]

# --------------------------------------------------------------------------- files


@dataclass(frozen=True)
class FileRef:
    """A file as the report names it: base name only, never a path."""

    name: str
    format: str  # "torch module", "torch state_dict", "safetensors", "npz", ...
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Metadata:
    """What a dump says of itself. None: it does not say."""

    batch_size: int | None = None
    input_shape: tuple[int, ...] | None = None  # (C, H, W)
    loss: str | None = None  # "cross_entropy" is the one that we can audit
    reduction: Reduction | None = None
    label_smoothing: float | None = None
    mode: Mode | None = None
    mean: tuple[float, ...] | None = None  # per channel, pixel units 0..1
    std: tuple[float, ...] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LoadedModel:
    """A model that was read without executing anything from its file."""

    module: nn.Module
    file: FileRef
    notes: tuple[str, ...] = ()  # "prefix 'module.' removed", ...


@dataclass(frozen=True)
class GradientDump:
    """Gradients by parameter name, each shaped like its parameter, in the dump's dtype."""

    tensors: Mapping[str, Tensor]
    missing: tuple[str, ...]  # parameters for which the dump holds nothing
    recognised: str  # "dict of 10 tensors, matched by name"
    matched_by: Literal["name", "order"]
    precision: float  # relative spacing of the coarsest type that holds every value exactly
    file: FileRef
    metadata: Metadata = Metadata()


@dataclass(frozen=True)
class Truth:
    """What the client really had. Only `findings.py` and `metrics.py` may take one."""

    inputs: Tensor  # (N, C, H, W), pixel units 0..1
    labels: Tensor  # (N,) int64


# --------------------------------------------------------------------------- the problem


@dataclass(frozen=True)
class Assumption:
    """One fact about the dump and where it came from."""

    what: str
    value: str
    origin: Origin


@dataclass(frozen=True)
class Knowledge:
    """What is known of the client's step, after flags, metadata and deduction were merged."""

    input_shape: tuple[int, ...]  # (C, H, W)
    mean: tuple[float, ...]  # (C,)
    std: tuple[float, ...]  # (C,)
    batch_size: int | None
    mode: Mode
    reduction: Reduction
    reduction_declared: bool  # False: "mean" is only an assumption
    label_smoothing: float
    assumptions: tuple[Assumption, ...]
    overrides: tuple[str, ...] = ()  # flags that contradict the dump's own metadata


@dataclass(frozen=True)
class Head:
    """The linear layer whose output is the logits."""

    weight: str  # parameter name, (K, E)
    bias: str | None  # parameter name, (K,)
    classes: int
    features: int
    features_nonnegative: bool  # proved from the traced operations, not sampled


@dataclass(frozen=True)
class Trace:
    """One forward pass, as far as attacks need it."""

    head: Head
    operations: int  # operations met on the way
    dropout: bool  # a dropout that is active in training mode
    batch_norm: bool


@dataclass(frozen=True)
class Problem:
    """All that an attacker knows. The truth is not among it."""

    module: nn.Module  # our own copy: right device, right mode
    gradient: Mapping[str, Tensor]  # what was sent, in the module's dtype and device
    precision: float  # see GradientDump.precision
    knowledge: Knowledge
    trace: Trace


# --------------------------------------------------------------------------- claims and evidence


@dataclass(frozen=True)
class LabelClaim:
    """What the head's gradient says of the labels. Counts are per class."""

    lower: Tensor  # (K,) int64: at least so many, proved
    upper: Tensor | None  # (K,) int64: at most so many, proved; None without a batch size
    estimate: Tensor | None  # (N,) int64: best multiset, sorted; None without a batch size
    statements: tuple[str, ...]  # "T1", "T3", ... that carried the proved part
    premises: tuple[str, ...]  # in words, one per premise
    complete: bool  # the proved part is the whole batch
    at_least: int = (
        0  # samples that the head's gradient needs; above the batch size: a contradiction
    )


@dataclass(frozen=True)
class Course:
    """The way of one restart: for the curve and the film strip of the report."""

    steps: tuple[int, ...]
    objective: tuple[float, ...]
    snapshot_steps: tuple[int, ...]
    snapshots: Tensor  # (S, N, C, H, W), model units
    status: str  # see solve.Status


@dataclass(frozen=True)
class LinkReport:
    """What one layer's equations say of its input. Plain data."""

    layer: str  # its weight, or its operations
    unknowns: int
    equations: int
    undetermined: int  # about so many unknowns are left open; 0: none was found
    gap: float  # relative distance between the answers from two starts and two roundings
    residual: float  # relative
    condition: float  # of what was solved: a lower bound
    steps: int
    status: str  # see solve.Status
    constrained: bool  # bounds, signs or smoothness had to help
    solved: bool  # nothing is left open and the equations hold


@dataclass(frozen=True)
class Recovery:
    """An attack's claim, unchecked."""

    labels: LabelClaim | None = None
    inputs: Tensor | None = None  # (R, N, C, H, W), model units
    input_labels: Tensor | None = None  # (R, N) int64: the labels that go with `inputs`
    courses: tuple[Course, ...] = ()  # R of them
    evaluations: int = 0  # values and gradients of one row
    expired: bool = False  # the budget ended before the attack did
    links: tuple[LinkReport, ...] = ()  # of an attack that reads layer by layer, top down
    guided: bool = False  # a prior chose among answers: restarts that agree confirm nothing


@dataclass(frozen=True)
class Skipped:
    """The attack could not look, and this is why."""

    attack: str
    reason: str


@dataclass(frozen=True)
class Failed:
    """The attack looked and came back with nothing that can be told from nothing."""

    attack: str
    reason: str


@dataclass(frozen=True)
class Evidence:
    """A claim after the harness re-derived its gradient."""

    attack: str
    recovery: Recovery
    residuals: tuple[float, ...]  # (R,) relative, over all tensors
    worst_residuals: tuple[float, ...]  # (R,) relative, of the worst tensor
    floor: float  # residual that rounding alone explains
    best: int | None  # row of the claim; None when there are no inputs
    agreement: tuple[float, ...]  # (N,) dB to the nearest independent restart; empty: there is none
    agreeing: int  # restarts that reached the same answer, the best among them
    layers: Mapping[str, float]  # relative residual of each tensor at the best claim
    seconds: float
    own_residual: float = float("inf")  # of tensors that layers were read from, against themselves


# --------------------------------------------------------------------------- plain data


@dataclass(frozen=True)
class Caveat:
    """Something the reader must know; `voids` makes the verdict inconclusive."""

    code: str
    message: str
    voids: bool


@dataclass(frozen=True)
class Severity:
    """Our own score, 0.0 to 10.0; see docs/severity.md. It is not a CVSS score."""

    score: float
    band: Band


@dataclass(frozen=True)
class Measure:
    """One number about a finding."""

    name: str  # "PSNR", "relative residual", "labels proved"
    value: float
    unit: str  # "dB", "", "of 8"


@dataclass(frozen=True)
class Finding:
    """A leak, without what leaked."""

    code: str  # see rules.py
    title: str
    severity: Severity
    certainty: Certainty
    summary: str
    attack: str
    measures: tuple[Measure, ...]
    premises: tuple[str, ...]
    remedy: str


@dataclass(frozen=True)
class Curve:
    """The residual of one restart on its way."""

    restart: int
    status: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class AttackReport:
    """One attack of the list: what became of it."""

    name: str
    title: str
    outcome: Literal["leak", "nothing shown", "failed", "skipped", "not selected"]
    reason: str
    settings: str  # repr of the attack
    seconds: float
    evaluations: int
    curves: tuple[Curve, ...]
    layers: tuple[Measure, ...]  # relative residual of each tensor at the best claim
    links: tuple[LinkReport, ...] = ()  # what each layer said, from the classifier down


@dataclass(frozen=True)
class Exhibit:
    """Recovered evidence inside the report. Exists with `--evidence embed` only."""

    sample: int
    label: str
    certainty: Certainty
    strip: tuple[str, ...]  # PNG, base64, on the way; the last one is the claim
    strip_steps: tuple[int, ...]
    truth: str | None  # PNG, base64, when the user gave the truth


@dataclass(frozen=True)
class Verdict:
    """What the first line of the report says."""

    status: Literal["leak", "no leak shown", "inconclusive"]
    severity: Severity
    sentence: str
    reasons: tuple[str, ...]  # why inconclusive, or what could not be looked at


@dataclass(frozen=True)
class GateResult:
    """The answer to `--fail-on`."""

    fail_on: str | None  # as given
    threshold: float | None
    outcome: Literal["no gate", "passed", "failed", "inconclusive"]
    exit_code: int
    reason: str


@dataclass(frozen=True)
class ModelSummary:
    """The audited model in one line each."""

    file: FileRef
    architecture: str  # class name
    parameters: int
    classes: int
    input_shape: tuple[int, ...]
    mode: Mode
    notes: tuple[str, ...]


@dataclass(frozen=True)
class DumpSummary:
    """The audited dump in one line each."""

    file: FileRef
    recognised: str
    tensors: int
    missing: tuple[str, ...]
    precision: float
    batch_size: int | None


@dataclass(frozen=True)
class Provenance:
    """What somebody else needs in order to repeat the run."""

    version: str
    started: str  # ISO 8601, UTC
    seconds: float
    command: tuple[str, ...]  # argv; paths reduced to base names, labels removed
    seed: int
    preset: str
    device: str
    dtype: str
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Audit:
    """Everything that `audit.json` holds."""

    schema_version: str
    verdict: Verdict
    gate: GateResult
    findings: tuple[Finding, ...]
    attacks: tuple[AttackReport, ...]
    caveats: tuple[Caveat, ...]
    assumptions: tuple[Assumption, ...]
    model: ModelSummary
    dump: DumpSummary
    evidence: Literal["none", "separate", "embed"]
    exhibits: tuple[Exhibit, ...]
    provenance: Provenance
