"""Buffers in an update, such as the running statistics of batch norm: they are no gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from auditor.errors import InputError
from auditor.inputs.entries import Entries
from auditor.inputs.matching import bare_names
from auditor.inputs.wording import joined, quoted, shaped


def split_buffers(entries: Entries, module: nn.Module) -> tuple[Entries, dict[str, Tensor]]:
    """The entries without those of buffers, and the changes of the buffers by name.

    A list in the order of the state_dict counts as named. Raises InputError for buffers that do not
    fit the model's.
    """
    buffers = dict(module.named_buffers())
    names = entries.names or _state_order(entries, module)
    if names is None or not buffers:
        return entries, {}
    known = {name for name, _ in module.named_parameters()}
    fitted = bare_names(names, known | buffers.keys())
    if not known & set(fitted.values()):
        return entries, {}
    named = list(zip(names, entries.tensors, strict=True))
    rest = [(name, tensor) for name, tensor in named if fitted[name] not in buffers]
    kept = {fitted[n]: t for n, t in named if fitted[n] in buffers and t is not None}
    _require_fitting(kept, buffers)
    left = Entries(tuple(n for n, _ in rest), tuple(t for _, t in rest), entries.form)
    return left, kept


def _state_order(entries: Entries, module: nn.Module) -> tuple[str, ...] | None:
    """The names of the state_dict for a list that runs through it, buffers among the parameters."""
    state = module.state_dict()
    same = len(state) == len(entries.tensors) and all(
        tensor is None or tensor.shape == value.shape
        for tensor, value in zip(entries.tensors, state.values(), strict=True)
    )
    return tuple(state) if same else None


def _require_fitting(found: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
    bad = [
        f"{quoted(name)} ({shaped(change.shape)} instead of {shaped(buffers[name].shape)})"
        for name, change in found.items()
        if change.shape != buffers[name].shape
    ]
    bad += [f"{quoted(n)} (not finite)" for n, c in found.items() if not bool(c.isfinite().all())]
    if bad:
        raise InputError(
            expected="buffers like those of this model",
            found=joined(bad),
            todo="Leave the buffers out, or give the model that the client trained.",
        )


def buffers_after(changes: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The buffers after training, by name, from their changes."""
    before = dict(module.named_buffers())
    found = {}
    for name, change in changes.items():
        after = before[name].detach().cpu().double() + change.cpu().double()
        found[name] = (after if torch.is_floating_point(before[name]) else after.round()).to(
            before[name].dtype
        )
    return found


def steps_counted(after: Mapping[str, Tensor], module: nn.Module) -> int | None:
    """How many training steps the batch norms counted; None when they do not say."""
    counts = counts_of(after, module)
    return counts.pop() if len(counts) == 1 and min(counts) > 0 else None


def counts_of(after: Mapping[str, Tensor], module: nn.Module) -> set[int]:
    """The numbers of training steps that batch norms counted; empty when no counter came back."""
    before = dict(module.named_buffers())
    return {
        int(value) - int(before[name])
        for name, value in after.items()
        if name.rpartition(".")[2] == "num_batches_tracked" and name in before
    }
