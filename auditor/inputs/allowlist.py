"""Which names a torch file may use: plain data, and network classes that are installed anyway.

A class is trusted when it lies in torch.nn, torchvision or `auditor.zoo`, derives from
`nn.Module`, and calls itself by exactly the name in the file. Nothing is imported on the
file's word but torchvision itself: names are looked up in modules that are already there.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

import auditor.zoo  # noqa: F401
from auditor.errors import InputError, UnsafeFileError
from auditor.inputs.wording import listed, quoted

PARTIAL = "functools.partial"
PLAIN_TENSORS = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
}
PARAMETERS = {"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"}
TYPED = "torch._tensor._rebuild_from_type_v2"
INERT = {"torch.Size", "torch.device", "builtins.set", "builtins.complex", "_codecs.encode"}
TENSOR_TYPES = {"torch.Tensor", "torch.nn.parameter.Parameter"}
ELEMENT_BYTES = {
    "torch.DoubleStorage": 8,
    "torch.FloatStorage": 4,
    "torch.HalfStorage": 2,
    "torch.BFloat16Storage": 2,
    "torch.LongStorage": 8,
    "torch.IntStorage": 4,
    "torch.ShortStorage": 2,
    "torch.CharStorage": 1,
    "torch.ByteStorage": 1,
    "torch.BoolStorage": 1,
    "torch.ComplexFloatStorage": 8,
    "torch.ComplexDoubleStorage": 16,
    "torch.storage.UntypedStorage": 1,
}
_UNSUPPORTED = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without numbers (device 'meta')",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
}
_CONTAINERS = {"collections.OrderedDict", "collections.Counter"}
_PLAIN = (
    PLAIN_TENSORS | PARAMETERS | {TYPED} | INERT | TENSOR_TYPES | set(ELEMENT_BYTES) | _CONTAINERS
)
_TRUSTED = ("torch.nn.modules.", "torchvision.models.", "torchvision.ops.", "auditor.zoo.")
_DATA_PARALLEL = "torch.nn.parallel.data_parallel.DataParallel"


def module_class(path: str) -> type[nn.Module] | None:
    """The trusted network class of this full name, or None."""
    if not path.startswith(_TRUSTED) and path != _DATA_PARALLEL:
        return None
    if path.startswith("torchvision."):  # costs a second and 150 MB: only for files that need it
        import torchvision.models
        import torchvision.ops  # noqa: F401  (both looked up in sys.modules)
    module, _, name = path.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        return None
    return found if (found.__module__, found.__qualname__) == (module, name) else None


def dtype_named(path: str) -> torch.dtype | None:
    """The torch dtype of this full name (`torch.float32`), or None."""
    found = getattr(torch, path.removeprefix("torch."), None)
    return found if isinstance(found, torch.dtype) and str(found) == path else None


def unsafe_names(names: Iterable[str], *, classes: bool) -> tuple[str, ...]:
    """The names that are neither data nor, where `classes` is set, a trusted class; sorted."""
    return tuple(sorted(name for name in names if not _is_safe(name, classes=classes)))


def require_safe_names(names: Iterable[str], *, file: str, classes: bool, todo: str) -> None:
    """Raise UnsafeFileError (or InputError for a kind of tensor) for a name that is not known."""
    found = set(names)
    for path, what in _UNSUPPORTED.items():
        if path in found:
            raise InputError(
                expected="dense tensors of floating-point numbers",
                found=f"{what} in {quoted(file)}",
                todo="Convert it first: tensor.to_dense() or tensor.dequantize().",
            )
    unsafe = unsafe_names(found, classes=classes)
    if unsafe:
        kinds = "tensors and classes of torch.nn, torchvision and auditor.zoo"
        raise UnsafeFileError(
            expected=f"a file that holds only {kinds if classes else 'tensors'}",
            found=f"{quoted(file)}, which asks to import and run {listed(unsafe)}",
            todo=todo,
        )


def loadable(names: Iterable[str]) -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """The classes to allow while the file of these names is loaded."""
    classes = [cls for name in sorted(names) if (cls := module_class(name))]
    return [*classes, functools.partial] if PARTIAL in set(names) else [*classes]


def _is_safe(name: str, *, classes: bool) -> bool:
    if name in _PLAIN or dtype_named(name) is not None:
        return True
    return classes and (name == PARTIAL or module_class(name) is not None)
