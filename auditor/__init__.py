"""gradaudit: find out what a model and its gradients give away.

The public names below are loaded when they are first used: importing `auditor` imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from auditor.api import scan
    from auditor.dumping import capture, save_gradients
    from auditor.errors import AuditError, InputError, UnsafeFileError, UsageError
    from auditor.inputs.gradients import load_gradients
    from auditor.inputs.models import load_model
    from auditor.inputs.truth import load_truth
    from auditor.records import Audit, Truth

__version__ = "0.1.0"

_HOMES = {
    "Audit": "auditor.records",
    "AuditError": "auditor.errors",
    "InputError": "auditor.errors",
    "Truth": "auditor.records",
    "UnsafeFileError": "auditor.errors",
    "UsageError": "auditor.errors",
    "capture": "auditor.dumping",
    "load_gradients": "auditor.inputs.gradients",
    "load_model": "auditor.inputs.models",
    "load_truth": "auditor.inputs.truth",
    "save_gradients": "auditor.dumping",
    "scan": "auditor.api",
}

__all__ = [
    "Audit",
    "AuditError",
    "InputError",
    "Truth",
    "UnsafeFileError",
    "UsageError",
    "capture",
    "load_gradients",
    "load_model",
    "load_truth",
    "save_gradients",
    "scan",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'auditor' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
