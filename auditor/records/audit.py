"""What the report holds: plain data, without tensors, equal to `audit.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from auditor.records.claims import LinkReport
from auditor.records.files import FileRef
from auditor.records.problem import Assumption
from auditor.records.terms import Band, Certainty, Mode
from auditor.records.trust import Trust


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

    code: str  # see rules
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
    text: str | None = None  # of a language model, in place of pictures
    true_text: str | None = None  # when the user gave the truth
    error_bar: str | None = None  # PNG, base64: the least standard deviation of each pixel
    columns: tuple[str, ...] = ()  # of a row of a table, in place of pictures
    values: tuple[float, ...] = ()  # one for each column, in its own unit
    true_values: tuple[float, ...] = ()  # when the user gave the truth


@dataclass(frozen=True)
class Verdict:
    """What the first line of the report says."""

    status: Literal["leak", "no leak shown", "inconclusive"]
    severity: Severity
    sentence: str
    reasons: tuple[str, ...]  # why inconclusive, or what could not be looked at


@dataclass(frozen=True)
class Limit:
    """One limit on a measure (`--max-psnr` and the like), and what was found."""

    measure: Literal["PSNR", "labels"]
    most: float  # dB, or a share 0..1
    found: float | None  # in the same unit; None: nothing of the kind has a figure
    outcome: Literal["kept", "exceeded", "not known"]


@dataclass(frozen=True)
class Suppression:
    """A finding that somebody accepts, until a day."""

    code: str
    reason: str
    expires: str  # ISO 8601: the last day on which it holds
    state: Literal["active", "expired", "unused"]  # on the day of the audit


@dataclass(frozen=True)
class Baseline:
    """An earlier audit of the same model: the gate counts what is new or worse than there."""

    sha256: str  # of its audit.json
    started: str  # as its provenance says
    new: tuple[str, ...]  # codes of findings of a kind that it does not have
    worse: tuple[str, ...]  # codes of findings above the worst of their kind there


@dataclass(frozen=True)
class GateResult:
    """The answer to `--fail-on` and to whatever else the gate was asked."""

    fail_on: str | None  # as given
    threshold: float | None
    outcome: Literal["no gate", "passed", "failed", "inconclusive"]
    exit_code: int
    reason: str
    limits: tuple[Limit, ...] = ()
    suppressions: tuple[Suppression, ...] = ()
    baseline: Baseline | None = None


@dataclass(frozen=True)
class ModelSummary:
    """The audited model in one line each."""

    file: FileRef
    architecture: str  # class name
    parameters: int
    classes: int
    input_shape: tuple[int, ...]  # empty: text
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
    trust: Trust
    provenance: Provenance
