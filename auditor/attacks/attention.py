"""The picture of a vision transformer, from its patch and position embeddings.

For one sample the gradient of the positions is the gradient of the tokens, and the weight gradient
of the patch embedding is linear in the patches (inversion/patches.py): no layer above needs to be
read. The same holds for the sum over local steps on one sample. The equations are read twice, the
second time with fresh rounding errors.
Source: the position embedding's gradient as a leak: Lu et al. 2022 (APRIL), arXiv:2112.14087.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.attacks.closed_form import claim_of, off_rank, read_alone
from auditor.attacks.labels import label_claim
from auditor.graph import Recording
from auditor.inversion.attention import system_of
from auditor.inversion.embedding import PatchEmbedding, embedding_of
from auditor.inversion.layers import Broken
from auditor.inversion.patches import Reading, errors_of, errors_seen, report_of
from auditor.problem import is_one_gradient, to_model_units, why_not_simulated
from auditor.records import LinkReport, Problem, Recovery

# How far from rank one the classifier's weight gradient may be when rounding alone is at work.
_ROUNDINGS, _AT_LEAST, _AT_MOST = 100.0, 1e-5, 5e-2
_FINE = 1e-7  # below it no singular value counts while the dump's errors are not yet known


@dataclass(frozen=True)
class PatchEmbeddings:
    """Solves the patch embedding's gradient for the patches, by means of the positions'."""

    name: str = "images.attention"
    title: str = "Image of a vision transformer from its patch and position embeddings"

    def blocked_by(self, problem: Problem) -> str | None:
        size = problem.knowledge.batch_size
        if size is None:
            return "the batch size is unknown: say it with --batch-size"
        if size != 1:
            return "it reads one sample; the position embedding's gradient adds up those of a batch"
        if (unchecked := why_not_simulated(problem)) is not None:
            return unchecked
        if label_claim(problem).estimate is None:
            return "the head's gradient gives no label to check the picture with"
        found = _embedding(problem)
        return found.reason if isinstance(found, Broken) else _too_little(problem, found)

    def run(self, problem: Problem, *, seed: int, watch: Watch) -> Recovery:
        embedding = _embedding(problem)
        labels = label_claim(problem).estimate
        assert isinstance(embedding, PatchEmbedding), "blocked_by was not asked"
        assert labels is not None, "blocked_by was not asked"
        if watch.expired():
            return Recovery(expired=True)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            readings, links = _read(problem, embedding, generator)
        inputs = torch.stack([reading.picture for reading in readings])
        inputs = inputs.to(_like(problem)).view(-1, 1, *problem.knowledge.input_shape)
        if links[-1].undetermined or not all(link.solved for link in links[:-1]):
            inputs = inputs[:1]  # readings that share a guess would confirm one another
        return claim_of(
            problem, inputs, labels, status="closed form", expired=watch.expired(), links=links
        )


def _embedding(problem: Problem) -> PatchEmbedding | Broken:
    def read(recording: Recording) -> PatchEmbedding | Broken:
        return embedding_of(recording, problem.gradient)

    return read_alone(problem, problem.module, read)


def _too_little(problem: Problem, embedding: PatchEmbedding) -> str | None:
    """Why the equations cannot determine the patches, whatever the numbers are."""
    if embedding.tokens > embedding.width:
        return (
            f"{embedding.tokens} patches are more than a token has numbers ({embedding.width}): "
            "the equations leave most of the picture open"
        )
    for name in embedding.read:
        if not bool(problem.gradient[name].any()):
            return f"the gradient of {name!r} is zero: nothing of the picture came through"
    return None


def _read(
    problem: Problem, embedding: PatchEmbedding, generator: torch.Generator
) -> tuple[list[Reading], tuple[LinkReport, ...]]:
    """The dump, and the dump with errors of the size that its own may have.

    Local steps on one sample add up on both sides of the equations; the head's features change from
    step to step, and its gradient says nothing of the number of samples.
    """
    like = _like(problem)
    system = system_of(embedding, like)
    grey = to_model_units(problem, like.new_full(problem.knowledge.input_shape, 0.5)).flatten()
    sent = system.equations(problem.gradient)
    seen = errors_seen(system.solve(sent, grey, min(problem.precision, _FINE)), sent)
    noise = errors_of(seen, sent, problem.precision)
    rows = (sent, sent.disturbed(noise, generator))
    readings = [system.solve(row, grey, noise) for row in rows]
    head = (_head_report(problem),) if is_one_gradient(problem) else ()
    return readings, (*head, report_of(system, readings, noise, sent))


def _head_report(problem: Problem) -> LinkReport:
    """The classifier's weight gradient of one sample has rank one; of several, almost never."""
    head = problem.trace.head
    sent = problem.gradient.get(head.weight)
    residual = 1.0 if sent is None or not bool(sent.any()) else off_rank(sent.double())
    allowed = min(max(_ROUNDINGS * problem.precision, _AT_LEAST), _AT_MOST)
    return LinkReport(
        layer=head.weight,
        unknowns=head.features,
        equations=head.features * head.classes,
        undetermined=0,
        gap=0.0,
        residual=residual,
        condition=1.0,
        steps=0,
        status="closed form",
        constrained=False,
        solved=residual <= allowed,
    )


def _like(problem: Problem) -> Tensor:
    return next(iter(problem.gradient.values()))
