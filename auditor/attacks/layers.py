"""The picture read layer by layer, without a search.

For one sample the input of a linear layer is a quotient of its gradients; each layer below is a
linear system (inversion/). The dump is read twice, the second time with fresh rounding errors and
from a random start: what the two readings share does not depend on either.
Sources: Phong et al. 2017; Zhu and Blaschko 2021 (R-GAP), arXiv:2010.07733.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.attacks.closed_form import (
    claim_of,
    objective,
    off_rank,
    pixel_bounds,
    read_alone,
    why_not_one_sample,
)
from auditor.attacks.labels import label_claim
from auditor.attacks.second_order import polish
from auditor.graph import Recording
from auditor.inversion.activations import has_pattern
from auditor.inversion.anchor import read_anchor
from auditor.inversion.layers import Broken, Chain, chain_of
from auditor.inversion.link_solver import Settings
from auditor.inversion.rounding import disturbed
from auditor.inversion.walk import Walk, walk
from auditor.problem import loss_of, tolerance_of
from auditor.records import Problem, Recovery

# Tolerances of a least-squares problem: double precision, and what a coarse dump is still worth.
_FINEST, _COARSEST = 1e-13, 1e-6


@dataclass(frozen=True)
class LayerByLayer:
    """Solves one linear system a layer, from the first linear layer down to the picture."""

    tolerance: float | None = None  # of each least-squares problem; None: the dump's precision
    max_steps: int = 4000
    polish_steps: int = 10  # of matching, for a guess whose gradient is off
    name: str = "images.layers"
    title: str = "Images read layer by layer (closed form and least squares)"

    def blocked_by(self, problem: Problem) -> str | None:
        unsuited = why_not_one_sample(problem)
        if unsuited is not None:
            return unsuited
        chain = _chain(problem)
        return chain.reason if isinstance(chain, Broken) else None

    def run(self, problem: Problem, *, seed: int, watch: Watch) -> Recovery:
        chain = _chain(problem)
        labels = label_claim(problem).estimate
        assert isinstance(chain, Chain), "blocked_by was not asked"
        assert labels is not None, "blocked_by was not asked"
        if watch.expired():
            return Recovery(expired=True)
        generator = torch.Generator().manual_seed(seed)
        noise = _noise(problem, chain)
        rows = _two_readings(problem, chain, noise, generator)
        tolerance = self.tolerance or _tolerance(problem, chain)
        settings = Settings(noise, tolerance, self.max_steps, expired=watch.expired)
        with torch.no_grad():
            anchored = read_anchor(chain, rows, _cotangent(problem, labels))
            if chain.anchor.bias not in rows and not label_claim(problem).complete:
                anchored = replace(anchored, scales=2)  # a guessed label chose this one
            found = walk(
                chain,
                rows,
                anchored,
                precision=noise,
                bounds=pixel_bounds(problem),
                settings=settings,
                generator=generator,
            )
        inputs = self._claims(problem, found, labels, watch)
        if inputs is None:
            return Recovery(expired=watch.expired(), links=found.links)
        return claim_of(
            problem,
            inputs,
            labels,
            status="read layer by layer",
            expired=watch.expired(),
            links=found.links,
        )

    def _claims(self, problem: Problem, found: Walk, labels: Tensor, watch: Watch) -> Tensor | None:
        """The pictures (R, 1, C, H, W) of the readings; of a guess one, polished if it needs to be.

        Readings that share a guess would confirm one another.
        """
        if found.inputs is None:
            return None
        like = next(iter(problem.gradient.values()))
        inputs = found.inputs.to(like.dtype).view(-1, 1, *problem.knowledge.input_shape)
        named = labels.to(like.device)
        if all(link.solved for link in found.links):
            return inputs
        if objective(problem, inputs[0], named) <= tolerance_of(problem) ** 2:
            return inputs[:1]
        steps = self.polish_steps
        return polish(problem, inputs[0], named, steps=steps, expired=watch.expired)[None]


def _tolerance(problem: Problem, chain: Chain) -> float:
    """The dump's precision, or finer where small values decide which units of a ReLU were on."""
    patterns = any(has_pattern(link.activation) for link in chain.links)
    wanted = problem.precision / 300 if patterns else problem.precision
    return min(max(wanted, _FINEST), _COARSEST)


def _cotangent(problem: Problem, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """The gradient of the loss for logits (1, K)."""

    def of(logits: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            loss = loss_of(problem, leaf, labels.to(leaf.device))
            (found,) = torch.autograd.grad(loss, leaf)
        return found

    return of


def _chain(problem: Problem) -> Chain | Broken:
    """The chain of the model in double precision."""

    def read(recording: Recording) -> Chain | Broken:
        return chain_of(recording, problem.gradient)

    module = problem.module
    found = read_alone(problem, module, read)
    single = any(p.dtype != torch.float64 for p in module.parameters())
    if isinstance(found, Broken) or not single:
        return found
    return read_alone(problem, copy.deepcopy(module).double(), read)  # large: only when worth it


def _noise(problem: Problem, chain: Chain) -> float:
    """The relative errors of the dump: its rounding, or more when the anchor shows more.

    Without errors the anchor's weight gradient has rank one, whatever the format can hold.
    """
    assert chain.anchor.weight is not None
    return max(problem.precision, off_rank(problem.gradient[chain.anchor.weight].double()))


def _two_readings(
    problem: Problem, chain: Chain, noise: float, generator: torch.Generator
) -> Mapping[str, Tensor]:
    """The dump, and the dump with errors of the size that its own may have: (2, *shape)."""
    operators = [chain.anchor, *(link.operator for link in chain.links if link.operator)]
    names = {name for o in operators for name in (o.weight, o.bias) if name in problem.gradient}
    sent = {name: problem.gradient[name].double() for name in sorted(n for n in names if n)}
    return {n: torch.stack([one, disturbed(one, noise, generator)]) for n, one in sent.items()}
