"""What the attacker knows, and the one definition of "the gradient".

Everything that compares a candidate with the dump goes through `gradient_of`; the attacks' cheaper
distances are tested against it. Of a client's update of weights, the gradient is the weighted mean
over its local steps (local_training.py), and that of a candidate is simulated.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn import functional as F

from auditor.batch_norm import mode_of, mode_of_buffers, with_deduced_mode
from auditor.batch_statistics import Sent, apart, running_statistics, statistics_in, tapped
from auditor.errors import InputError
from auditor.local_training import (
    LONGEST,
    heaviest_weight,
    pseudo_gradient,
    schedule,
    simulate,
    total_steps,
)
from auditor.records import (
    Auxiliary,
    GradientDump,
    Knowledge,
    LocalTraining,
    Problem,
    Trace,
)
from auditor.trace import trace

# Matching is ill-conditioned: small networks are cheap enough to be matched in double precision.
_DOUBLE_BELOW = 250_000
_ON_GRID = 0.1  # grey levels
_UNIFORM = 1 / math.sqrt(12)  # deviation of a uniform number of width 1
_LEVELS = 20  # between black and white; by chance on the grid: 0.2^20 is 1e-14, 0.5^20 is 1e-6


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


def loss_of(problem: Problem, logits: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross-entropy as the client computed it.

    `logits` (N, K); `targets` (N,) class indices or (N, K) probabilities.
    """
    known = problem.knowledge
    return F.cross_entropy(
        logits, targets, reduction=known.reduction, label_smoothing=known.label_smoothing
    )


def gradient_of(
    problem: Problem, inputs: Tensor, targets: Tensor, *, create_graph: bool = False
) -> dict[str, Tensor]:
    """The gradient that a client with these data would have sent, by parameter name.

    `inputs` (N, C, H, W) in model units, `targets` as in `loss_of`. Only the parameters that the
    dump has are in the answer. Raises ValueError for an update that `why_not_simulated` names.
    """
    if not is_one_gradient(problem):
        mean = simulated_gradient(problem, inputs, targets)
        return mean if create_graph else {name: part.detach() for name, part in mean.items()}
    named = dict(problem.module.named_parameters())
    wanted = [named[name] for name in problem.gradient]
    loss = loss_of(problem, problem.module(inputs), targets)
    found = torch.autograd.grad(loss, wanted, create_graph=create_graph, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if part is None else part
        for name, parameter, part in zip(problem.gradient, wanted, found, strict=True)
    }


def is_one_gradient(problem: Problem) -> bool:
    """Whether the dump is the gradient of one step: a gradient, or an update of a single step."""
    local = problem.knowledge.local
    return local is None or (local.lr is not None and total_steps(local) == 1)


def is_scaled(problem: Problem) -> bool:
    """Whether the scale of `problem.gradient` is known, not estimated; it needs lr and steps."""
    local = problem.knowledge.local
    return local is None or (schedule(local) is not None and not is_estimated(problem))


def is_estimated(problem: Problem) -> bool:
    """Whether the learning rate or the steps of the update were estimated from the dump."""
    local = problem.knowledge.local
    return local is not None and local.estimate is not None and bool(local.estimate.what)


def why_not_simulated(problem: Problem) -> str | None:
    """Why `gradient_of` cannot answer, for people; None when it can."""
    local = problem.knowledge.local
    if local is None or is_one_gradient(problem):
        return None
    if local.lr is None:
        return "the learning rate of the update is unknown: say it with --lr"
    steps = total_steps(local)
    if steps is None:
        return "the number of local steps is unknown: say it with --local-steps"
    if steps > LONGEST:
        return f"{steps} local steps are more than are simulated ({LONGEST})"
    if isinstance(problem.module, torch.jit.ScriptModule):
        return "local steps of a TorchScript model are not simulated"
    return None


def heaviest_sample(problem: Problem) -> float | None:
    """The largest weight of a sample in the dump, relative to that in one gradient of the batch.

    1 for a gradient, and when the steps of an update treat all samples alike. None when it is not
    known.
    """
    known = problem.knowledge
    if known.local is None:
        return 1.0
    if is_estimated(problem):
        return None
    if known.batch_size is None:
        return 1.0 if is_one_gradient(problem) else None
    return heaviest_weight(known.local, known.batch_size, mean=known.reduction == "mean")


def simulated_gradient(problem: Problem, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """`gradient_of` for an update: a pure function, for autograd and for torch.func.

    Parameters that the dump does not hold stay as they are. Raises ValueError when it cannot be
    simulated.
    """
    local, reason = problem.knowledge.local, why_not_simulated(problem)
    if local is None or reason is not None:
        raise ValueError(f"the update cannot be simulated: {reason}")
    fixed = {name: value.detach() for name, value in problem.module.named_parameters()}

    def gradient(weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        def loss(part: dict[str, Tensor]) -> Tensor:
            logits = functional_call(problem.module, {**fixed, **part}, (x,))
            return loss_of(problem, logits, y)

        found: dict[str, Tensor] = grad(loss)(dict(weights))
        return found

    start = {name: fixed[name] for name in problem.gradient}
    return simulate(local, start, inputs, targets, gradient)


def scale_of(problem: Problem) -> dict[str, Tensor]:
    """The norm of each tensor of the dump, () each, with a floor for those of pure rounding.

    With the floor, an error of the dump's precision times the whole gradient is within tolerance in
    every tensor: a bias before batch norm, say, has a gradient of zero and holds rounding only.
    """
    norms = {name: tensor.norm() for name, tensor in problem.gradient.items()}
    floor = problem.precision / tolerance_of(problem) * torch.stack(list(norms.values())).norm()
    return {name: norm.clamp_min(floor) for name, norm in norms.items()}


def residuals_of(problem: Problem, gradient: Mapping[str, Tensor]) -> dict[str, float]:
    """The distance to the dump of each tensor, relative to `scale_of`."""
    scales = scale_of(problem)
    return {
        name: float((gradient[name] - sent).norm() / scales[name])
        for name, sent in problem.gradient.items()
    }


def statistics_apart(problem: Problem, inputs: Tensor) -> dict[str, Tensor]:
    """By batch norm, how far the statistics of inputs (N, C, H, W) are from those sent along.

    See `batch_statistics.apart`. Empty when none were sent.
    """
    if not problem.statistics:
        return {}
    fixed = {name: value.detach() for name, value in problem.module.named_parameters()}
    with tapped(problem.module, problem.statistics) as seen:
        functional_call(problem.module, fixed, (inputs,))
    return apart(problem.statistics, seen, tolerance=tolerance_of(problem))


def relative_residual(problem: Problem, gradient: Mapping[str, Tensor]) -> float:
    """The distance to the dump over all tensors at once, relative to the dump's norm."""
    sent = problem.gradient
    apart = torch.stack([(gradient[name] - sent[name]).norm() for name in sent]).norm()
    return float(apart / torch.stack([tensor.norm() for tensor in sent.values()]).norm())


def is_table(problem: Problem) -> bool:
    """Whether the model takes rows of a table, (D,), and not pictures."""
    return problem.knowledge.modality == "features"


def to_model_units(problem: Problem, pixels: Tensor) -> Tensor:
    """(..., C, H, W) pixels 0..1, or (..., D) as of `to_pixels`, to what the model takes."""
    mean, std = pixels_of_units(problem, pixels)
    return (pixels - mean) / std


def to_pixels(problem: Problem, inputs: Tensor) -> Tensor:
    """(..., C, H, W) in model units to pixels, clipped to 0..1.

    Rows of a table (..., D): each column less its mean, in the width of a uniform one of its
    deviation, around 1/2; not clipped. So mean 1/2 and variance 1/12 stand for what is known of a
    number before a dump is seen, of pixels and of columns alike, and dB mean the same error.
    """
    mean, std = pixels_of_units(problem, inputs)
    pixels = inputs * std + mean
    return pixels if is_table(problem) else pixels.clamp(0, 1)


def to_own_units(problem: Problem, inputs: Tensor) -> Tensor:
    """Model units to what the client has: (..., C, H, W) pixels, or (..., D) in their own units."""
    if not is_table(problem):
        return to_pixels(problem, inputs)
    known = problem.knowledge
    return inputs * _along(known.std, inputs) + _along(known.mean, inputs)


def from_own_units(problem: Problem, own: Tensor) -> Tensor:
    """What the client has to pixels, as `to_pixels` gives them."""
    if not is_table(problem):
        return own
    known = problem.knowledge
    return to_pixels(problem, (own - _along(known.mean, own)) / _along(known.std, own))


def is_in_range(problem: Problem, inputs: Tensor) -> bool:
    """Whether inputs (..., C, H, W) in model units are pixels 0..1, up to a hundredth.

    The columns of a table (..., D) have no known range: any finite number is in it.
    """
    if is_table(problem):
        return bool(inputs.isfinite().all())
    mean, std = pixels_of_units(problem, inputs)
    pixels = inputs * std + mean
    return bool(((pixels > -0.01) & (pixels < 1.01)).all())


def is_on_grid(pixels: Tensor) -> bool:
    """Whether pixels 0..1 have many levels, and all are multiples of 1/255 to a tenth of one."""
    levels = 255 * pixels.double()
    whole = levels.round()
    between = {level for level in whole.flatten().tolist() if 0 < level < 255}
    return len(between) >= _LEVELS and bool(((levels - whole).abs() < _ON_GRID).all())


def pixels_of_units(problem: Problem, like: Tensor) -> tuple[Tensor, Tensor]:
    """Offset and factor of model units to pixels, (C, 1, 1) each; (D,) of a table."""
    known = problem.knowledge
    if is_table(problem):
        return torch.full_like(_along(known.scales, like), 0.5), _UNIFORM / _along(
            known.scales, like
        )
    return _along(known.mean, like).view(-1, 1, 1), _along(known.std, like).view(-1, 1, 1)


def has_grid(problem: Problem) -> bool:
    """Whether inputs may be multiples of 1/255: those of cameras and files are, tables are not."""
    return not is_table(problem)


def random_rows(shape: tuple[int, ...], count: int, generator: torch.Generator) -> Tensor:
    """Rows of a table (count, D), independent and normal, in the units of `to_pixels`."""
    return 0.5 + _UNIFORM * torch.randn(count, *shape, generator=generator)


def _along(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def tolerance_of(problem: Problem) -> float:
    """The relative residual, per tensor, at which a candidate counts as the dump's equal.

    Half of the digits that the dump carries: first-order matching does not reach the other half,
    and the agreement of independent restarts is the stronger test. Never looser than 1 %.
    """
    return min(max(math.sqrt(problem.precision), 3.5e-4), 1e-2)
