"""A problem from model, dump and facts; a change of weights read as a mean gradient."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from auditor.batch_norm import mode_of, mode_of_buffers, with_deduced_mode
from auditor.batch_statistics import Sent, running_statistics, statistics_in
from auditor.errors import InputError
from auditor.local_training import pseudo_gradient, schedule
from auditor.records import Auxiliary, GradientDump, Knowledge, LocalTraining, Problem, Trace
from auditor.trace import trace

# Matching is ill-conditioned: small networks are cheap enough to be matched in double precision.
_DOUBLE_BELOW = 250_000


def make_problem(
    module: nn.Module,
    dump: GradientDump,
    knowledge: Knowledge,
    *,
    device: torch.device,
    auxiliary: Auxiliary | None = None,
) -> Problem:
    """Copy the model in the audited mode, and the dump beside it; of an update, its gradient.

    Raises InputError when the model cannot take the input shape or has no linear head, or when the
    auxiliary pictures do not fit.
    """
    found = trace(module, knowledge.input_shape)
    named = dict(module.named_parameters())
    sent = _sent(named, dump, knowledge)
    shown = mode_of_buffers(module, dump.buffers) or mode_of(
        found.normalised, named, sent, precision=dump.precision
    )
    knowledge = with_deduced_mode(knowledge, shown)
    if knowledge.mode == "train":
        trained = trace(module, knowledge.input_shape, training=True)
        both = found.head.features_nonnegative and trained.head.features_nonnegative
        head = replace(found.head, features_nonnegative=both)
        found = replace(found, head=head, dropout=found.dropout or trained.dropout)
    dtype = _working_dtype(module, found, device)
    ours = _at(_audited_copy(module, knowledge.mode), device, dtype)
    if dtype == torch.float64 and not _takes(ours, knowledge.input_shape, device, dtype):
        dtype = torch.float32  # its forward pass insists on single precision
        ours = _at(ours, device, dtype)
    order = [name for name, _ in module.named_parameters() if name in sent]
    gradient = {name: sent[name].to(device=device, dtype=dtype) for name in order}
    _check_auxiliary(auxiliary, knowledge, found)
    came = statistics_in(dump, module, knowledge) if knowledge.mode == "train" else Sent()
    return Problem(
        ours,
        gradient,
        dump.precision * _growth(dump, sent, knowledge),
        knowledge,
        found,
        mode_shown=shown,
        auxiliary=auxiliary,
        statistics=came.layers,
        statistics_unused=came.unused,
        running=running_statistics(module) if knowledge.mode == "train" and not came.layers else {},
    )


def _sent(
    named: Mapping[str, Tensor], dump: GradientDump, knowledge: Knowledge
) -> Mapping[str, Tensor]:
    """The dump's gradient by name; of an update in double precision, where it cancels least."""
    if knowledge.local is None:
        return dump.tensors
    update = {name: change.double() for name, change in dump.tensors.items()}
    before = {name: named[name].detach().to(change) for name, change in update.items()}
    return pseudo_gradient(update, before, knowledge.local)


def read_as(problem: Problem, local: LocalTraining) -> Problem:
    """The same update read as that of another training, whose learning rate and steps are known.

    Raises ValueError for a gradient, or when they are not.
    """
    told, plan = problem.knowledge.local, schedule(local)
    if told is None or plan is None:
        raise ValueError("only an update can be read as that of a training")
    before = dict(problem.module.named_parameters())
    changes = change_of(problem)
    sent = pseudo_gradient(changes, {name: before[name].detach() for name in changes}, local)
    grown = _grown(changes, sent, plan.scale) / _grown(changes, problem.gradient, _scale(told))
    known = replace(problem.knowledge, local=local)
    precision = problem.precision * grown
    return replace(problem, gradient=sent, precision=precision, knowledge=known)


def change_of(problem: Problem) -> dict[str, Tensor]:
    """The update behind `problem.gradient`, by name: weights after minus weights before.

    Raises ValueError for a gradient.
    """
    local = problem.knowledge.local
    if local is None:
        raise ValueError("a gradient is no update")
    plan, scale = schedule(local), _scale(local)
    if plan is None or not plan.decayed:
        return {name: -scale * part for name, part in problem.gradient.items()}
    before = dict(problem.module.named_parameters())
    return {
        name: -scale * part - plan.decayed * before[name].detach()
        for name, part in problem.gradient.items()
    }


def _scale(local: LocalTraining) -> float:
    """The update over `pseudo_gradient`, in size."""
    plan = schedule(local)
    return (local.lr or 1.0) if plan is None else plan.scale


def _growth(dump: GradientDump, sent: Mapping[str, Tensor], knowledge: Knowledge) -> float:
    """How much the errors of an update grew, relative to what is left without weight decay."""
    plan = None if knowledge.local is None else schedule(knowledge.local)
    return 1.0 if plan is None else _grown(dump.tensors, sent, plan.scale)


def _grown(changes: Mapping[str, Tensor], sent: Mapping[str, Tensor], scale: float) -> float:
    whole = torch.stack([part.double().norm() for part in changes.values()]).norm()
    left = torch.stack([part.double().norm() for part in sent.values()]).norm() * scale
    return max(1.0, float(whole / left.clamp_min(torch.finfo(left.dtype).tiny)))


def _check_auxiliary(auxiliary: Auxiliary | None, knowledge: Knowledge, found: Trace) -> None:
    if auxiliary is None:
        return
    shape, highest = tuple(auxiliary.images.shape[1:]), int(auxiliary.labels.max())
    if shape != knowledge.input_shape or highest >= found.head.classes:
        wanted, there = ("x".join(map(str, s)) for s in (knowledge.input_shape, shape))
        raise InputError(
            expected=f"auxiliary pictures of shape {wanted}, labels below {found.head.classes}",
            found=f"shape {there}, labels up to {highest}",
            todo="Give pictures of the task that this model was made for, or mend --input-shape.",
        )


def _at(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    if all(p.device == device and p.dtype == dtype for p in module.parameters()):
        return module
    return module.to(device=device, dtype=dtype)


def _takes(
    module: nn.Module, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> bool:
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module(torch.zeros(2, *shape, device=device, dtype=dtype))
    except RuntimeError:
        return False
    return True


def _working_dtype(module: nn.Module, found: Trace, device: torch.device) -> torch.dtype:
    if isinstance(module, torch.jit.ScriptModule) or device.type == "mps":
        return torch.float32
    body = sum(p.numel() for n, p in module.named_parameters() if n != found.head.weight)
    return torch.float64 if body < _DOUBLE_BELOW else torch.float32


def _audited_copy(module: nn.Module, mode: str) -> nn.Module:
    """A copy in evaluation mode, but with batch statistics if the client trained with them."""
    ours = copy.deepcopy(module)
    for parameter in ours.parameters():
        if parameter.is_leaf:
            parameter.requires_grad_(True)
    for inner in ours.modules():
        inner.training = False
        if mode == "train" and isinstance(inner, nn.modules.batchnorm._NormBase):
            inner.training = True
            # Without running statistics a forward pass writes nothing: passes stay independent.
            inner.track_running_stats = False
            inner.running_mean = inner.running_var = None
    return ours
