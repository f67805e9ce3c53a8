"""Whether the truth that was given is what made the dump: only then is anything measured by it.

A claim is lowered to what was measured, so a truth of another batch would hide a leak. Its own
gradient, derived again, tells. Where a claim equals the dump, the truth has to come near it as
well; where none does, only a truth that explains hardly any of it is refused: the dump may have
been defended in a way that nobody recognised.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from auditor.attacks.failures import told_of
from auditor.bounds.fit import fit_of, sigma_blur
from auditor.bounds.noise import kept_of, noise_of
from auditor.defences.seen import Looked
from auditor.errors import UsageError
from auditor.evidence import best_pixels, is_equal
from auditor.metrics import match_batch, psnr
from auditor.problem import from_own_units, gradient_of, is_one_gradient, to_model_units
from auditor.records import Caveat, Evidence, Problem, Truth

# Relative distance between two gradients (benchmarks/trust_truth.py). Pictures rounded to 8 bits
# are at most 0.01 off for LeNet and an untrained ResNet-20, mirrored ones 0.05 and more. Trained
# networks, and units of ReLU that a rounding turns over, are more sensitive: hence `_is_alike`.
_NEAR, _FAR = 0.05, 0.5
_ALIKE = 25.0  # dB
_DEVIATIONS = 5.0


def in_units(problem: Problem, truth: Truth | None) -> Truth | None:
    """The truth in the units that everything is measured in."""
    if truth is None:
        return None
    return replace(truth, inputs=from_own_units(problem, truth.inputs))


def require_fitting(truth: Truth | None, problem: Problem) -> None:
    """Raises UsageError when shape, number or labels cannot be those of the client's samples."""
    if truth is None:
        return
    known, classes = problem.knowledge, problem.trace.head.classes
    count, shape = len(truth.labels), tuple(truth.inputs.shape[1:])
    size, low, high = known.batch_size or count, *(int(end) for end in truth.labels.aminmax())
    if shape != known.input_shape or size != count or low < 0 or high >= classes:
        wanted, found = ("x".join(map(str, sides)) for sides in (known.input_shape, shape))
        raise UsageError(
            expected=f"a truth of {size} samples of shape {wanted}, labels from 0 to {classes - 1}",
            found=f"{count} samples of shape {found}, labels from {low} to {high}",
            todo="Give the truth that belongs to this dump, or mend --batch-size.",
        )


def measurable(
    problem: Problem, truth: Truth | None, evidence: tuple[Evidence, ...], looked: Looked
) -> tuple[Truth | None, tuple[Caveat, ...]]:
    """The truth, when it may be what made the dump; else None, and the caveat that says so."""
    unknown = any(seen.kind == "unknown" for seen in looked.defences)
    silent = truth is None or unknown or looked.belongs == "contradicted"
    apart = None if silent or truth is None else distance_of(problem, truth)
    equal = [each for each in evidence if is_equal(problem, each)]
    explained = bool(equal)
    if truth is None or apart is None or apart <= (_NEAR if explained else _FAR):
        return truth, ()
    if any(_is_alike(problem, each, truth) for each in equal):
        return truth, ()
    return None, (
        Caveat(
            "GA323",
            f"The truth does not make this dump: its own gradient is {apart:.1g} of its size away "
            f"from it{', and what was rebuilt is not' if explained else ''}. Nothing is measured "
            "against it: no PSNR, no share of right labels, and no claim is lowered by it.",
            voids=False,
        ),
    )


def _is_alike(problem: Problem, claim: Evidence, truth: Truth) -> bool:
    """Whether a claim that equals the dump is this truth, sample by sample, labels included.

    Then nothing is lowered by it. A network that is sure of its pictures makes other gradients of
    copies that nobody could tell from them.
    """
    labels = claim.recovery.input_labels
    if claim.best is None or labels is None or len(labels[claim.best]) != len(truth.labels):
        return False
    pixels = best_pixels(problem, claim).double()
    order = match_batch(pixels, truth.inputs)
    near = psnr(pixels, truth.inputs[order].double())
    same = torch.equal(labels[claim.best].cpu(), truth.labels[order].cpu())
    return same and bool((near >= _ALIKE).all())


def distance_of(problem: Problem, truth: Truth) -> float | None:
    """How far the truth's gradient is from the dump, less what noise explains, relative.

    None where it cannot be told: of signs, of several local steps (the order of the samples is not
    known), behind dropout, and where a model cannot be differentiated at these samples.
    """
    if problem.channel.signs or problem.trace.dropout or not is_one_gradient(problem):
        return None
    like = next(iter(problem.gradient.values()))
    inputs = to_model_units(problem, truth.inputs.to(like))
    try:
        gradient = gradient_of(problem, inputs, truth.labels.to(like.device))
    except (torch.OutOfMemoryError, MemoryError):
        return None
    except (RuntimeError, ValueError) as error:
        if told_of(error) is None:
            raise
        return None
    scale = fit_of(problem, gradient, 0).scale
    kept, noise = kept_of(problem), noise_of(problem)
    size = apart = explained = doubt = 0.0
    for name, sent in problem.gradient.items():
        own, there = scale * gradient[name][kept[name]], sent[kept[name]]
        size += float(own.square().sum())
        apart += float((own - there).square().sum())
        explained += len(there) * noise[name] ** 2
        doubt += 2 * len(there) * noise[name] ** 4
    explained *= 1 + sigma_blur(problem)
    left = max(apart - explained - _DEVIATIONS * math.sqrt(doubt), 0.0)
    return math.sqrt(left / max(size, torch.finfo(like.dtype).tiny))
