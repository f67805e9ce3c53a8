"""Writes gradient dumps from a training loop: what a client would send, and how it was made.

    with capture(model, "grads.safetensors"):
        loss_of(model(images), labels).backward()

Gradients and settings are written, nothing of the data. The file is readable by its owner only.
"""

from __future__ import annotations

import operator
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from auditor import __version__
from auditor.errors import InputError, UsageError
from auditor.inputs.metadata import KEY, metadata_from, metadata_to_json
from auditor.inputs.wording import listed, quoted, shaped
from auditor.records import Kind, Metadata, Mode, Reduction


@contextmanager
def capture(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    input_shape: Sequence[int] | None = None,
    loss: str = "cross_entropy",
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Iterator[None]:
    """Write the gradients that the block leaves in `model` to `path`, as safetensors.

    They are written as they are: with a GradScaler, call `scaler.unscale_` inside the block.
    Batch size and input shape, (C, H, W) or (D,) of rows of a table, come from the first call of
    the model unless given; the batch size only if that stays the only call. `mean` and `std` are
    those of the normalisation, per channel or column. Nothing is written when the block raises.
    Raises UsageError when old gradients are there already, when the block leaves none, or when a
    setting makes no sense.
    """
    settings = {
        "loss": loss,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "mean": _floats(mean),
        "std": _floats(std),
        "kind": "gradient",
    }
    given = {"batch_size": _whole(batch_size), "input_shape": _wholes(input_shape)}
    _checked(settings | given)
    target = _target(path)
    _require_no_gradients(model)
    seen = _Seen()
    hook = model.register_forward_pre_hook(seen.look, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
    known = seen.facts() | {name: value for name, value in given.items() if value is not None}
    mode = seen.mode or _mode(model)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    _write(gradients, _checked(settings | known | {"mode": mode}), target)


def save_gradients(
    model: nn.Module,
    gradients: Mapping[str, Tensor | None] | Sequence[Tensor | None],
    path: str | os.PathLike[str],
    *,
    batch_size: int | None = None,
    input_shape: Sequence[int] | None = None,
    loss: str = "cross_entropy",
    reduction: Reduction = "mean",
    label_smoothing: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    mode: Mode | None = None,
    kind: Kind = "gradient",
    lr: float | None = None,
    local_steps: int | None = None,
    local_batch: int | None = None,
    local_epochs: int | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
) -> None:
    """Write gradients of `model`, or an update of it, to `path`, as safetensors.

    `gradients`: by parameter name, or as `torch.autograd.grad` gives them, one for each parameter
    (or each that requires a gradient), None where there is none. With kind "update": weights after
    training minus weights before, by name, buffers as well if they go along; then `batch_size` is
    the number of the client's samples, `local_batch` those of one step, and `local_steps` the steps
    of one epoch. `mode` is that of the model now unless given. Raises UsageError when they do not
    fit the model or a setting makes no sense.
    """
    fields = {
        "batch_size": _whole(batch_size),
        "input_shape": _wholes(input_shape),
        "loss": loss,
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "mean": _floats(mean),
        "std": _floats(std),
        "mode": mode or _mode(model),
        "kind": kind,
        "lr": lr,
        "local_steps": _whole(local_steps),
        "local_batch": _whole(local_batch),
        "local_epochs": _whole(local_epochs),
        "momentum": momentum,
        "weight_decay": weight_decay,
    }
    metadata = _checked(fields)
    _write(_named(model, gradients, buffers=kind == "update"), metadata, _target(path))


@dataclass
class _Seen:
    """What the forward hook learnt."""

    calls: int = 0
    shape: tuple[int, ...] | None = None
    is_row: bool = False
    mode: Mode | None = None

    def look(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        self.calls += 1
        if self.calls > 1:
            return
        self.mode = _mode(module)
        inputs = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        first = next(inputs, None)
        if first is not None:  # numbers of tokens are no columns
            self.shape = tuple(first.shape)
            self.is_row = first.dim() == 2 and first.is_floating_point()

    def facts(self) -> dict[str, object]:
        if not self.shape:
            return {}
        size = {"batch_size": self.shape[0]} if self.calls == 1 else {}
        fits = self.is_row or len(self.shape) == 4
        return size | ({"input_shape": list(self.shape[1:])} if fits else {})


def _floats(values: Sequence[float] | None) -> list[float] | None:
    """Plain numbers; NumPy's and torch's are taken too."""
    return None if values is None else [float(value) for value in values]


def _whole(value: int | None) -> int | None:
    return None if value is None else operator.index(value)


def _wholes(values: Sequence[int] | None) -> list[int] | None:
    return None if values is None else [operator.index(value) for value in values]


def _mode(model: nn.Module) -> Mode:
    return "train" if model.training else "eval"


def _checked(fields: Mapping[str, object]) -> Metadata:
    versions = {"torch": str(torch.__version__), "gradaudit": __version__}
    shape = fields.get("input_shape")
    if isinstance(shape, list):
        fields = {"modality": "features" if len(shape) == 1 else "images", **fields}
    try:
        return metadata_from({**fields, "versions": versions})
    except InputError as error:
        raise UsageError(expected=error.expected, found=error.found, todo="Mend it.") from error


def _target(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        raise UsageError(
            expected="a file name in an existing folder",
            found=quoted(path),
            todo="Make the folder first.",
        )
    return target


def _require_no_gradients(model: nn.Module) -> None:
    old = [n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())]
    if old:
        raise UsageError(
            expected="a model without gradients from an earlier step",
            found=f"gradients in {listed(old)}",
            todo="Call optimizer.zero_grad() before the block; sums of steps cannot be audited.",
        )


def _named(
    model: nn.Module,
    gradients: Mapping[str, Tensor | None] | Sequence[Tensor | None],
    *,
    buffers: bool,
) -> dict[str, Tensor | None]:
    parameters = dict(model.named_parameters())
    if isinstance(gradients, Mapping):
        found = dict(gradients)
    else:
        trained = [name for name, p in parameters.items() if p.requires_grad]
        names = next((n for n in (list(parameters), trained) if len(n) == len(gradients)), None)
        if names is None:
            raise _misfit(f"{len(gradients)} gradients for {len(parameters)} parameters")
        found = dict(zip(names, gradients, strict=True))
    if buffers:
        parameters |= dict(model.named_buffers())  # type: ignore[arg-type]
    foreign = [name for name in found if name not in parameters]
    if foreign:
        raise _misfit(f"other names: {listed(foreign)}")
    for name, tensor in found.items():
        if tensor is not None and tensor.shape != parameters[name].shape:
            raise _misfit(f"{quoted(name)} of shape {shaped(tensor.shape)}")
    return found


def _misfit(found: str) -> UsageError:
    return UsageError(
        expected="gradients of this model's parameters",
        found=found,
        todo="Pass {name: gradient}, or the result of torch.autograd.grad for all parameters.",
    )


def _write(gradients: Mapping[str, Tensor | None], metadata: Metadata, target: Path) -> None:
    """Write beside the target first, so that nobody ever reads half a dump."""
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in gradients.items()
        if tensor is not None
    }
    if not tensors:
        raise UsageError(
            expected="at least one gradient",
            found="none",
            todo="Call backward() inside the block, and zero_grad() only after it.",
        )
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        save_file(tensors, name, metadata={KEY: metadata_to_json(metadata)})
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
