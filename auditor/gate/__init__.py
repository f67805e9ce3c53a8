"""From an audit to an exit code. Plain data in, plain data out; no torch.

The gate passes only when something looked and nothing that could have reached a limit was left
unlooked at. What cannot be told is exit 4, never exit 0, unless the user waives it. The answer
depends on the audit and the rules alone: a suppression expires by the day of the audit.
"""

from auditor.gate.accepted import Accepted, Reference, require_same_model
from auditor.gate.codes import ExitCode
from auditor.gate.judge import GateRules, judge, judged, reach
from auditor.gate.limits import Limits

__all__ = [
    "Accepted",
    "ExitCode",
    "GateRules",
    "Limits",
    "Reference",
    "judge",
    "judged",
    "reach",
    "require_same_model",
]
