"""Every record of the flow, in the order in which it appears: files, problem, claims, audit.

Letters of the shape comments: R restarts, S snapshots, N samples, C H W image, K classes,
E features of the head, P parameters. Tensors stop at `findings.py`: the records of audit.py are
plain data. Nothing here imports torch at run time, so that `render`, `--help` and the gate start
at once.
"""

from auditor.records.audit import (
    AttackReport,
    Audit,
    Caveat,
    Curve,
    DumpSummary,
    Exhibit,
    Finding,
    GateResult,
    Measure,
    ModelSummary,
    Provenance,
    Severity,
    Verdict,
)
from auditor.records.claims import (
    Course,
    Evidence,
    Failed,
    LabelClaim,
    LinkReport,
    Recovery,
    Skipped,
)
from auditor.records.files import (
    Auxiliary,
    FileRef,
    GradientDump,
    LoadedModel,
    Metadata,
    Truth,
)
from auditor.records.problem import (
    Assumption,
    Head,
    Knowledge,
    LocalTraining,
    Normalised,
    Problem,
    Trace,
)
from auditor.records.terms import (
    SCHEMA_VERSION,
    Band,
    Certainty,
    Kind,
    Mode,
    Origin,
    Reduction,
)

__all__ = [
    "SCHEMA_VERSION",
    "Assumption",
    "AttackReport",
    "Audit",
    "Auxiliary",
    "Band",
    "Caveat",
    "Certainty",
    "Course",
    "Curve",
    "DumpSummary",
    "Evidence",
    "Exhibit",
    "Failed",
    "FileRef",
    "Finding",
    "GateResult",
    "GradientDump",
    "Head",
    "Kind",
    "Knowledge",
    "LabelClaim",
    "LinkReport",
    "LoadedModel",
    "LocalTraining",
    "Measure",
    "Metadata",
    "Mode",
    "ModelSummary",
    "Normalised",
    "Origin",
    "Problem",
    "Provenance",
    "Recovery",
    "Reduction",
    "Severity",
    "Skipped",
    "Trace",
    "Truth",
    "Verdict",
]
