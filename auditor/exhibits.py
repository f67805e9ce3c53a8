"""Recovered pictures for people: film strips for the report, PNG files for the evidence folder."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image
from torch import Tensor

from auditor.evidence import best_inputs, best_pixels, is_equal, is_proved, is_verified
from auditor.metrics import match_batch
from auditor.problem import is_table, to_model_units, to_own_units, to_pixels
from auditor.records import Certainty, Evidence, Exhibit, Problem, Truth


def certainty_of(problem: Problem, evidence: Evidence) -> Certainty:
    """How certain the pictures of this evidence are, in the report's words."""
    if is_proved(problem, evidence):
        return "proved"
    if is_verified(problem, evidence):
        return "verified"
    return "consistent" if is_equal(problem, evidence) else "estimated"


def png_of(picture: Tensor) -> bytes:
    """A PNG of a picture (C, H, W), pixels 0..1. Other channel counts are shown as their mean."""
    if picture.shape[0] not in {1, 3}:
        picture = picture.mean(0, keepdim=True)
    grid = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    image = Image.fromarray(grid.squeeze(2).numpy() if grid.shape[2] == 1 else grid.numpy())
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def exhibits_of(
    problem: Problem, evidence: Evidence, truth: Truth | None, error_bars: Tensor | None = None
) -> tuple[Exhibit, ...]:
    """One film strip a sample, from the start of the best restart to its end; of a row its values.

    `error_bars` (N, 3, H, W), colours 0..1: the map of bounds/heat.py for the claim's samples.
    Of samples that were read one by one, a strip of one picture each, of those that were shown.
    """
    if is_table(problem):
        return _row_exhibits(problem, evidence, truth)
    if evidence.best is None:
        return _single_exhibits(problem, evidence, truth)
    course = evidence.recovery.courses[evidence.best]
    pictures = to_pixels(problem, course.snapshots)  # (S, N, C, H, W)
    final = best_pixels(problem, evidence)
    true = None if truth is None else truth.inputs[match_batch(final, truth.inputs)]
    labels = evidence.recovery.input_labels
    assert labels is not None
    return tuple(
        Exhibit(
            sample=index,
            label=f"class {int(labels[evidence.best][index])}",
            certainty=certainty_of(problem, evidence),
            strip=(*(_encoded(p[index]) for p in pictures[:-1]), _encoded(final[index])),
            strip_steps=course.snapshot_steps,
            truth=None if true is None else _encoded(true[index]),
            error_bar=None if error_bars is None else _encoded(error_bars[index]),
        )
        for index in range(len(final))
    )


def column_names(problem: Problem) -> tuple[str, ...]:
    """(D,) as they were said, or by their numbers."""
    known = problem.knowledge
    return known.columns or tuple(f"column {number}" for number in range(known.input_shape[0]))


def _row_exhibits(problem: Problem, evidence: Evidence, truth: Truth | None) -> tuple[Exhibit, ...]:
    """One list of values a row that was recovered."""
    if evidence.best is None:
        rows = shown_inputs(problem, evidence)
        told = [(word, "not read") for word in evidence.samples if word is not None]
    else:
        rows = best_inputs(problem, evidence)
        labels = evidence.recovery.input_labels
        assert labels is not None
        word = certainty_of(problem, evidence)
        told = [(word, f"class {int(label)}") for label in labels[evidence.best]]
    true = _rows_beside(problem, evidence, truth)
    return tuple(
        Exhibit(
            sample=index,
            label=label,
            certainty=word,
            strip=(),
            strip_steps=(),
            truth=None,
            columns=column_names(problem),
            values=tuple(rows[index].tolist()),
            true_values=() if true is None else tuple(true[index].float().tolist()),
        )
        for index, (word, label) in enumerate(told)
    )


def _rows_beside(problem: Problem, evidence: Evidence, truth: Truth | None) -> Tensor | None:
    """The client's rows, each beside the one that it goes with, in their own units."""
    if truth is None:
        return None
    if evidence.best is not None:
        match = match_batch(best_pixels(problem, evidence), truth.inputs)
    else:
        shown = shown_samples(problem, evidence).double()
        match = torch.cdist(shown, truth.inputs.double()).argmin(1)
    return to_own_units(problem, to_model_units(problem, truth.inputs[match]))


def _single_exhibits(
    problem: Problem, evidence: Evidence, truth: Truth | None
) -> tuple[Exhibit, ...]:
    pictures = shown_samples(problem, evidence)
    near = [None if truth is None else _nearest(picture, truth.inputs) for picture in pictures]
    words = [word for word in evidence.samples if word is not None]
    return tuple(
        Exhibit(index, "not read", word, (_encoded(picture),), (0,), true)
        for index, (picture, word, true) in enumerate(zip(pictures, words, near, strict=True))
    )


def shown_samples(problem: Problem, evidence: Evidence) -> Tensor:
    """Samples that were read one by one and stood the check, pixels 0..1 (M, C, H, W), CPU."""
    return to_pixels(problem, _shown(problem, evidence)).float().cpu()


def shown_inputs(problem: Problem, evidence: Evidence) -> Tensor:
    """The same as the client has them: pixels, or rows (M, D) in their own units."""
    return to_own_units(problem, _shown(problem, evidence)).float().cpu()


def _shown(problem: Problem, evidence: Evidence) -> Tensor:
    samples = evidence.recovery.samples
    if samples is None:
        return torch.zeros(0, *problem.knowledge.input_shape)
    return samples[[place for place, word in enumerate(evidence.samples) if word is not None]]


def _nearest(picture: Tensor, true: Tensor) -> str:
    apart = (true - picture).square().flatten(1).sum(1)
    return _encoded(true[int(apart.argmin())])


def _encoded(picture: Tensor) -> str:
    return base64.b64encode(png_of(picture.cpu())).decode("ascii")
