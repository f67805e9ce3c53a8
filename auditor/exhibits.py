"""Recovered pictures for people: film strips for the report, PNG files for the evidence folder."""

from __future__ import annotations

import base64
import io

import torch
from PIL import Image
from torch import Tensor

from auditor.evidence import best_pixels, is_equal, is_proved, is_verified
from auditor.metrics import match_batch
from auditor.problem import to_pixels
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


def exhibits_of(problem: Problem, evidence: Evidence, truth: Truth | None) -> tuple[Exhibit, ...]:
    """One film strip a sample, from the start of the best restart to its end."""
    if evidence.best is None:
        return ()
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
        )
        for index in range(len(final))
    )


def _encoded(picture: Tensor) -> str:
    return base64.b64encode(png_of(picture.cpu())).decode("ascii")
