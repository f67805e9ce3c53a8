"""What attacks that read pictures off the gradient share: the pass that they take apart, the
limits of pixels, and the claim that they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from auditor.attacks.labels import label_claim
from auditor.graph import Recording, record, same_program
from auditor.inversion.constraints import Bounds
from auditor.inversion.layers import Broken
from auditor.planted.layers import recorded_alone
from auditor.problem import gradient_of, is_one_gradient, is_table, residuals_of, to_model_units
from auditor.records import Course, LinkReport, Problem, Recovery

T = TypeVar("T")


def recorded_or_why(problem: Problem) -> Recording | str:
    """One forward pass of the model, or in words why there is none."""
    try:
        return recorded_alone(problem.module, problem.knowledge.input_shape)
    except (RuntimeError, ValueError) as error:
        return _refused("one sample", error)


def read_alone(
    problem: Problem, module: nn.Module, read: Callable[[Recording], T | Broken]
) -> T | Broken:
    """What `read` makes of a pass of one sample through `module`, the problem's or a copy.

    Two passes with different pictures have to be one program.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return Broken("a TorchScript model is not taken apart")
    like = next(iter(module.parameters()))
    probe = like.new_full((1, *problem.knowledge.input_shape), 0.5)
    generator = torch.Generator().manual_seed(0)
    other = torch.rand(probe.shape, generator=generator, dtype=torch.float64).to(like)
    try:
        recording = record(module, probe)[1]
        found = read(recording)
        if isinstance(found, Broken) or same_program(recording, record(module, other)[1]):
            return found
    except (RuntimeError, ValueError) as error:
        what = "one sample in double precision" if like.dtype == torch.float64 else "one sample"
        return Broken(_refused(what, error))
    return Broken("what the model does depends on the values of its input")


def _refused(what: str, error: Exception) -> str:
    told = str(error).strip().splitlines()
    return f"{what} is refused ({told[0] if told else 'error'})"


def why_not_one_sample(problem: Problem) -> str | None:
    """Why a dump cannot be read as one gradient of one sample with its label; None when it can."""
    size = problem.knowledge.batch_size
    if size is None:
        return "the batch size is unknown: say it with --batch-size"
    if size != 1:
        return "it reads one sample; the dump is of a batch"
    if not is_one_gradient(problem):
        return "it reads one gradient; the dump is an update of several or unknown steps"
    if label_claim(problem).estimate is None:
        return "the head's gradient gives no label to check the picture with"
    return None


def off_rank(matrix: Tensor) -> float:
    """The distance of a matrix (M, E) from rank one, relative to its norm; 0 for zeros."""
    tiny = torch.finfo(matrix.dtype).tiny
    row = matrix[int(matrix.norm(dim=1).argmax())]
    direction = row / row.norm().clamp_min(tiny)
    apart = (matrix - (matrix @ direction)[:, None] * direction).norm()
    return float(apart / matrix.norm().clamp_min(tiny))


def pixel_bounds(problem: Problem) -> Bounds:
    """Black and white in model units, laid flat, in double precision; of a table no bounds."""
    if is_table(problem):
        return Bounds()
    like = torch.zeros(problem.knowledge.input_shape, dtype=torch.float64)
    ends = (to_model_units(problem, like + end).flatten() for end in (0, 1))
    return Bounds(*(end.to(next(iter(problem.gradient.values())).device) for end in ends))


def objective(problem: Problem, inputs: Tensor, labels: Tensor) -> float:
    """The mean over tensors of the squared relative residual of (N, C, H, W) with (N,) labels."""
    residuals = residuals_of(problem, gradient_of(problem, inputs, labels)).values()
    return sum(value**2 for value in residuals) / len(residuals)


def claim_of(
    problem: Problem,
    inputs: Tensor,
    labels: Tensor,
    *,
    status: str,
    expired: bool,
    links: tuple[LinkReport, ...] = (),
) -> Recovery:
    """Readings (R, N, C, H, W) of one batch with their labels, (N,) for all or (R, N), as a claim.

    Its courses have one step each; `status` says for people how the pictures were read.
    """
    named = labels.to(inputs.device).expand(len(inputs), -1)
    courses = tuple(
        Course((0,), (objective(problem, row, label),), (0,), row.float().cpu()[None], status)
        for row, label in zip(inputs, named, strict=True)
    )
    return Recovery(
        inputs=inputs,
        input_labels=named,
        courses=courses,
        evaluations=len(inputs),
        expired=expired,
        links=links,
    )
