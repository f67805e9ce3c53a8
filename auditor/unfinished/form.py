"""Whether a claim that was read from a file has the form of one that an attack made."""

from __future__ import annotations

from torch import Tensor

from auditor.records import Course, Problem, Recovery


def is_well_formed(problem: Problem, claim: Recovery) -> bool:
    """Whether all shapes, types and numbers are such that the harness can check the claim."""
    like, shape = next(iter(problem.gradient.values())), problem.knowledge.input_shape
    read = [each for each in (claim.inputs, claim.samples) if each is not None]
    films = [course.snapshots for course in claim.courses]
    return (
        all(p.shape[-3:] == shape and p.is_floating_point() for p in (*read, *films))
        and all(p.dtype == like.dtype and p.device == like.device for p in read)
        and _rows_fit(problem, claim)
        and _samples_fit(claim)
        and claim.read_from in {*problem.gradient, ""}
    )


def _rows_fit(problem: Problem, claim: Recovery) -> bool:
    """Inputs (R, N, C, H, W), labels (R, N), courses (R,) of as many samples as the batch has."""
    inputs, labels = claim.inputs, claim.input_labels
    if inputs is None or labels is None:
        return inputs is None and labels is None
    size, classes = problem.knowledge.batch_size, problem.trace.head.classes
    return (
        inputs.dim() == 5
        and size in {None, inputs.shape[1]}
        and labels.shape == inputs.shape[:2]
        and _are_whole(labels, classes)
        and len(claim.courses) == len(inputs)
        and all(_course_fits(course, inputs.shape[1]) for course in claim.courses)
    )


def _are_whole(labels: Tensor, below: int) -> bool:
    whole = not (labels.is_floating_point() or labels.is_complex())
    return whole and bool(((labels >= 0) & (labels < below)).all())


def _samples_fit(claim: Recovery) -> bool:
    count = 0 if claim.samples is None else len(claim.samples)
    return len(claim.witnesses) == count and (claim.samples is None or claim.samples.dim() == 4)


def _course_fits(course: Course, samples: int) -> bool:
    """Steps beside their values, and pictures (S, N, C, H, W) beside theirs, one at least."""
    return (
        course.snapshots.dim() == 5
        and course.snapshots.shape[1] == samples
        and len(course.steps) == len(course.objective)
        and len(course.snapshot_steps) == len(course.snapshots) > 0
    )
