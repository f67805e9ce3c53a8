"""Builds the network that `--arch` names, for a file that holds weights only."""

from __future__ import annotations

import difflib
import importlib.util
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from auditor import zoo
from auditor.errors import UsageError
from auditor.inputs.matching import Shape, bare_names
from auditor.inputs.wording import quoted

_TORCHVISION = "torchvision:"
_FORMS = "torchvision:NAME, a name of auditor.zoo, or path/to/file.py:factory"
# What a user's own file may raise while it runs; anything else is a bug worth its traceback.
_USER_FAULTS = (
    ImportError,
    SyntaxError,
    AttributeError,
    NameError,
    TypeError,
    ValueError,
    RuntimeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    OSError,
    SystemExit,  # else its code would pass for ours
)


def build_architecture(spec: str, shapes: Mapping[str, Shape]) -> tuple[nn.Module, list[str]]:
    """The network `spec` names, fresh on the CPU, and notes on what was deduced.

    `shapes` are the tensors of the file; class count and channels follow them. The global random
    state is left as it was. Raises UsageError when there is no such network, or when the user's
    factory fails. `path/to/file.py:factory` runs that file.
    """
    with torch.random.fork_rng(devices=[]):
        file, _, factory = spec.rpartition(":")
        if file.endswith(".py"):
            return _from_file(Path(file), factory)
        if spec.startswith(_TORCHVISION):
            return _from_torchvision(spec.removeprefix(_TORCHVISION), shapes)
        return _from_zoo(spec, shapes)


def unknown_architecture(name: str, known: list[str]) -> UsageError:
    """The error for a name that is not among `known`, with the nearest ones."""
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known)}."
    return UsageError(expected=f"{_FORMS} for --arch", found=quoted(name), todo=hint)


def _from_zoo(spec: str, shapes: Mapping[str, Shape]) -> tuple[nn.Module, list[str]]:
    name = spec.partition(":")[0]
    if name not in zoo.BUILDERS:
        known = [*zoo.BUILDERS, "torchvision:resnet18", "path/to/file.py:factory"]
        raise unknown_architecture(spec, known)
    if ":" in spec:
        return zoo.build(spec), []
    sizes = _lenet_sizes(shapes) if name == "lenet" else _resnet_sizes(shapes)
    if sizes is None:
        return zoo.build(name), []
    deduced = f"{name}:{sizes[0]}x{sizes[1]}x{sizes[2]}"
    return zoo.build(deduced), [f"architecture {deduced} deduced from the shapes in the file"]


def _lenet_sizes(shapes: Mapping[str, Shape]) -> tuple[int, int, int] | None:
    """Channels, size, classes. Sizes 4s-3 to 4s give the same weights; 4s is taken."""
    body, head = _shape(shapes, "body.0.weight", 4), _shape(shapes, "fc.weight", 2)
    if body is None or head is None:
        return None
    side = math.isqrt(head[1] // 12)
    whole = side > 0 and 12 * side * side == head[1]
    return (body[1], 4 * side, head[0]) if whole and body[1] and head[0] else None


def _resnet_sizes(shapes: Mapping[str, Shape]) -> tuple[int, int, int] | None:
    first, head = _shape(shapes, "conv1.weight", 4), _shape(shapes, "linear.weight", 2)
    if first is None or head is None or not first[1] or not head[0]:
        return None
    return first[1], 32, head[0]


def _from_torchvision(name: str, shapes: Mapping[str, Shape]) -> tuple[nn.Module, list[str]]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise unknown_architecture(name, known)
    settings: dict[str, object] = {"weights": None}
    if name in {"googlenet", "inception_v3"}:  # both draw slow initial weights, and warn of it
        auxiliary = any("aux" in tensor.lower() for tensor in shapes)
        settings |= {"init_weights": False, "aux_logits": auxiliary}
    head, classes = _torchvision_head(name, settings)
    found = _shape(shapes, head, 2)
    if found is None or found[0] in {0, classes}:
        return models.get_model(name, **settings), []
    note = f"{found[0]} classes deduced from {head}"
    return models.get_model(name, **settings, num_classes=found[0]), [note]


def _torchvision_head(name: str, settings: dict[str, object]) -> tuple[str, int]:
    """Name of the last weight matrix and its number of classes, without allocating weights."""
    from torchvision import models

    try:
        with torch.device("meta"):
            outline = models.get_model(name, **settings)
    except NotImplementedError:  # regnet computes with tensors while it is built
        outline = models.get_model(name, **settings)
    weights = [(key, p.shape[0]) for key, p in outline.named_parameters() if p.dim() >= 2]
    return weights[-1]


def _shape(shapes: Mapping[str, Shape], name: str, dimensions: int) -> Shape | None:
    """The shape of `name` behind any wrapper prefix, with at least so many dimensions."""
    fitted = bare_names(shapes, {name})
    found = next((shapes[key] for key, bare in fitted.items() if bare == name), None)
    return found if found is not None and len(found) >= dimensions else None


def _from_file(path: Path, factory: str) -> tuple[nn.Module, list[str]]:
    if not path.is_file() or not factory.isidentifier():
        raise UsageError(
            expected="path/to/file.py:factory, a function without arguments that gives the model",
            found=quoted(f"{path}:{factory}"),
            todo="Check the path and the name behind the colon.",
        )
    try:
        made = _run(path, factory)
    except _USER_FAULTS as error:
        raise UsageError(
            expected=f"{factory}() of {path.name} to give the model",
            found=f"{type(error).__name__}: {error}",
            todo="Mend the file; it runs on its own with: python -c 'import ...'.",
        ) from error
    if not isinstance(made, nn.Module):
        raise UsageError(
            expected=f"{factory}() of {path.name} to give an nn.Module",
            found=f"an object of type {quoted(type(made).__name__)}",
            todo="Return the model.",
        )
    return made, [f"architecture built by running {factory}() of {path.name}, your own code"]


def _run(path: Path, factory: str) -> object:
    """Execute the user's file, with its folder importable as if it were run itself."""
    spec = importlib.util.spec_from_file_location("gradaudit_architecture", path.resolve())
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {path.name}")
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
        return getattr(module, factory)()
    finally:
        sys.path[:] = before
