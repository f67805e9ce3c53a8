"""What the attacker knows, and the one definition of "the gradient".

Everything that compares a candidate with the dump goes through `gradient_of`; the attacks' cheaper
distances are tested against it. Of a client's update of weights, the gradient is the weighted mean
over its local steps (local_training.py), and that of a candidate is simulated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.func import functional_call, grad
from torch.nn import functional as F

from auditor.batch_statistics import apart, tapped
from auditor.local_training import LONGEST, heaviest_weight, schedule, simulate, total_steps
from auditor.records import Problem


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


def is_dropped_from(problem: Problem) -> bool:
    """Whether dropout took part in the dump, with a random mask that nobody knows."""
    return problem.trace.dropout and problem.knowledge.mode == "train"


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


def tolerance_of(problem: Problem) -> float:
    """The relative residual, per tensor, at which a candidate counts as the dump's equal.

    Half of the digits that the dump carries: first-order matching does not reach the other half,
    and the agreement of independent restarts is the stronger test. Never looser than 1 %.
    """
    return min(max(math.sqrt(problem.precision), 3.5e-4), 1e-2)
