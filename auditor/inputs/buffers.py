"""Buffers in an update, such as the running statistics of batch norm: they are no gradients."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from auditor.inputs.entries import Entries
from auditor.inputs.matching import bare_names
from auditor.inputs.wording import quoted, shaped

# As batch norms name them: an entry called so is no parameter.
_NAMES = frozenset({"running_mean", "running_var", "num_batches_tracked"})


@dataclass(frozen=True)
class Split:
    """An update, taken apart."""

    entries: Entries  # of parameters
    changes: dict[str, Tensor]  # of buffers that fit the model's, by name
    aside: tuple[str, ...] = ()  # buffers that do not, with why


def split_buffers(entries: Entries, module: nn.Module) -> Split:
    """The entries without those of buffers, and the changes of the buffers by name.

    A list in the order of the state_dict counts as named. Buffers that do not fit the model's are
    set aside: the parameters can be audited without them.
    """
    buffers = dict(module.named_buffers())
    names = entries.names or _state_order(entries, module)
    if names is None:
        return Split(entries, {})
    known = {name for name, _ in module.named_parameters()}
    fitted = bare_names(names, known | buffers.keys())
    if not known & set(fitted.values()):
        return Split(entries, {})
    named = [(n, fitted[n], t) for n, t in zip(names, entries.tensors, strict=True)]
    rest = [(n, t) for n, bare, t in named if bare in known or not is_buffer(bare, buffers)]
    found = {bare: t for _, bare, t in named if is_buffer(bare, buffers) and bare not in known}
    why = {bare: _misfit(bare, t, buffers) for bare, t in found.items() if t is not None}
    left = Entries(tuple(n for n, _ in rest), tuple(t for _, t in rest), entries.form)
    kept = {bare: t for bare, t in found.items() if t is not None and not why[bare]}
    return Split(
        left, kept, tuple(f"{quoted(bare)} ({word})" for bare, word in why.items() if word)
    )


def is_buffer(name: str, buffers: Collection[str]) -> bool:
    """Whether an entry is a buffer: of the model, or by its name one of a batch norm."""
    return name in buffers or name.rpartition(".")[2] in _NAMES


def _misfit(name: str, change: Tensor, buffers: Mapping[str, Tensor]) -> str:
    """Why a buffer does not fit; empty when it does."""
    if name not in buffers:
        return "not in the model"
    if change.shape != buffers[name].shape:
        return f"{shaped(change.shape)} instead of {shaped(buffers[name].shape)}"
    return "" if bool(change.isfinite().all()) else "not finite"


def _state_order(entries: Entries, module: nn.Module) -> tuple[str, ...] | None:
    """The names of the state_dict for a list that runs through it, buffers among the parameters."""
    state = module.state_dict()
    same = len(state) == len(entries.tensors) and all(
        tensor is None or tensor.shape == value.shape
        for tensor, value in zip(entries.tensors, state.values(), strict=True)
    )
    return tuple(state) if same else None


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
