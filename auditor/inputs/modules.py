"""Checks a module that came out of a file, and makes it ready for the audit."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from auditor.errors import InputError
from auditor.inputs.allowlist import module_class
from auditor.inputs.precision import not_finite
from auditor.inputs.wording import listed, quoted

_DEPTH = 100
_MODULES = 100_000
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_STATISTICS = ("running_mean", "running_var")


def require_sound(module: nn.Module, name: str) -> None:
    """Raise InputError unless the tree of modules is a finite tree of proper modules.

    A file can describe modules that contain themselves, hooks, and values in the wrong place;
    torch would walk or call them without a look.
    """
    left: list[tuple[nn.Module, int]] = [(module, 0)]
    seen = 0
    while left:
        node, depth = left.pop()
        seen += 1
        if depth > _DEPTH or seen > _MODULES:
            raise _unsound(name, "modules that contain themselves, or too many")
        _require_sound_node(node, name)
        left += [(child, depth + 1) for child in vars(node)["_modules"].values() if child]


def audited(module: nn.Module, name: str) -> tuple[nn.Module, list[str]]:
    """`module` in eval mode on the CPU, at least float32, requiring gradients; and notes.

    Changes and returns the module (a DataParallel gives its inner one). Raises InputError for
    NaN or infinity in parameters and running statistics.
    """
    notes = []
    if isinstance(module, nn.DataParallel):
        inner = vars(module)["_modules"].get("module")
        if inner is None:
            raise _unsound(name, "an empty DataParallel")
        module, notes = inner, ["DataParallel removed"]
    require_finite(module, name)
    floats = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if floats & {torch.float16, torch.bfloat16}:
        module = module.float()
        notes.append("weights converted from half precision to float32")
    frozen = [key for key, p in module.named_parameters() if not p.requires_grad]
    if frozen:
        notes.append(f"frozen in the file, audited as if trained: {listed(frozen)}")
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
            parameter.grad = None
    if not isinstance(module, torch.fx.GraphModule):  # an exported program has one mode only
        module.eval()
    if not floats:
        raise _unsound(name, "no parameters")
    return module, notes


def require_finite(module: nn.Module, name: str) -> None:
    """Raise InputError that names the parameters and statistics with NaN or infinity."""
    statistics = [(k, b) for k, b in module.named_buffers() if k.endswith(_STATISTICS)]
    tensors = [*module.named_parameters(), *statistics]
    bad = [key for key, tensor in tensors if tensor.is_floating_point() and not_finite(tensor)]
    if bad:
        raise InputError(
            expected="finite weights",
            found=f"NaN or infinity in {listed(bad)} of {quoted(name)}",
            todo="Take a checkpoint from before the training diverged.",
        )


def _require_sound_node(node: nn.Module, name: str) -> None:
    inside = vars(node)
    kinds = {"_modules": nn.Module, "_parameters": nn.Parameter, "_buffers": Tensor}
    for field, kind in kinds.items():
        values = inside.get(field)
        if not isinstance(values, dict) or not all(
            isinstance(key, str) and (value is None or isinstance(value, kind))
            for key, value in values.items()
        ):
            raise _unsound(name, f"a module whose {field} are of another kind")
    if any(inside.get(hooks) for hooks in _HOOKS):
        raise _unsound(name, "hooks, which would run")
    for value in inside.values():
        if isinstance(value, functools.partial):
            _require_constructor(value, name)


def _require_constructor(value: functools.partial[object], name: str) -> None:
    made = value.func
    path = f"{made.__module__}.{made.__qualname__}" if isinstance(made, type) else ""
    if module_class(path) is not made:
        raise _unsound(name, "a functools.partial of something other than a network class")


def _unsound(name: str, what: str) -> InputError:
    return InputError(
        expected="a module as torch.save writes it",
        found=f"{quoted(name)} with {what}",
        todo="Save model.state_dict() instead, and give --arch.",
    )
