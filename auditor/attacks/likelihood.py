"""How badly a candidate explains a defended dump, as a vector of squares in units of the noise.

What lies between the client's gradient g and the dump is `Problem.channel`. Entry by entry:

    noise, rounding     (g - sent) / s
    dropped (top-k)     max(|g| - t, 0) / s      t: the smallest entry that was kept
    signs               max(s - sign * g / rms(g), 0) / s           rms over one output's entries

The sum of squares is minus twice the log-likelihood of the dump under independent noise, up to a
constant; of dropped entries and signs it is a hinge. Rounding to a grid is taken for noise of its
variance, step^2 / 12 (Bennett 1948). A factor that nobody knows, of clipping, is the best one at
each candidate, so that it drops out (variable projection: Golub and Pereyra 1973).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.problem import gradient_of
from auditor.records import Problem

_SHARPEST = 0.03  # s of signs: no finer margin was worth its steps
_FINEST = 5e-5  # relative: pictures are told to 8 bits before
_HAIR = 1e-6  # relative: the threshold itself is rounded


@dataclass(frozen=True)
class Terms:
    """What one tensor says."""

    sent: Tensor  # (n,)
    kept: Tensor  # (n,) bool: entries that were sent as they are
    threshold: Tensor | None  # (): what was dropped is smaller; None: nothing was
    noise: float  # standard deviation of an entry
    size: float  # root mean square of what was sent
    rows: int  # outputs of its layer, whose gradients may differ much in size


@dataclass(frozen=True)
class Likelihood:
    """Of one problem with labels (N,). Make one with `likelihood`."""

    problem: Problem
    labels: Tensor  # (N,)
    terms: dict[str, Terms]

    @property
    def sharpest(self) -> float:
        """The blur below which blurring changes nothing."""
        if self.problem.channel.signs:
            return _SHARPEST
        return min(term.noise / term.size for term in self.terms.values()) / 3

    def residual(self, inputs: Tensor, blur: float) -> Tensor:
        """(m,) of inputs (N, C, H, W) in model units, differentiable twice.

        `blur` adds so much of each tensor's own size to the noise: 1 forgives everything.
        """
        made = gradient_of(self.problem, inputs, self.labels, create_graph=True)
        flat = {name: made[name].flatten() for name in self.terms}
        if self.problem.channel.signs:
            return torch.cat([_sign_terms(t, flat[n], blur) for n, t in self.terms.items()])
        factor = self._factor(flat, blur) if self.problem.channel.scaled else 1.0
        parts = [_terms(t, factor * flat[name], blur) for name, t in self.terms.items()]
        return torch.cat(parts)

    def _factor(self, flat: dict[str, Tensor], blur: float) -> Tensor:
        """The factor that brings the kept entries nearest to the dump."""
        both, own = [], []
        for name, term in self.terms.items():
            weight = term.kept / _spread(term, blur) ** 2
            both.append((weight * term.sent * flat[name]).sum())
            own.append((weight * flat[name].square()).sum())
        return torch.stack(both).sum() / torch.stack(own).sum()


def likelihood(problem: Problem, labels: Tensor) -> Likelihood:
    """For the channel of a problem."""
    whole = _rms(torch.cat([sent.flatten() for sent in problem.gradient.values()]))
    least = thresholds(problem)
    terms = {
        name: _terms_of(problem, name, sent.flatten(), whole, least.get(name))
        for name, sent in problem.gradient.items()
    }
    return Likelihood(problem, labels, terms)


def thresholds(problem: Problem) -> dict[str, Tensor]:
    """What the dropped entries of each tensor are at most, () each; empty when none were dropped.

    The smallest entry that was kept: of the tensor, when each kept the same share of its entries;
    of the whole dump otherwise.
    """
    if not problem.channel.masked:
        return {}
    kept = {name: sent[sent != 0].abs() for name, sent in problem.gradient.items()}
    whole = torch.cat(list(kept.values()))
    share = len(whole) / sum(sent.numel() for sent in problem.gradient.values())
    alike = all(
        len(kept[name]) and abs(len(kept[name]) - share * sent.numel()) <= 1
        for name, sent in problem.gradient.items()
    )
    return {name: (part if alike else whole).min() for name, part in kept.items()}


def _terms_of(
    problem: Problem, name: str, sent: Tensor, whole: float, threshold: Tensor | None
) -> Terms:
    channel = problem.channel
    partly = channel.masked or channel.signs
    kept = sent != 0 if partly else torch.ones_like(sent, dtype=torch.bool)
    size = _rms(sent[kept]) if bool(kept.any()) else 0.0
    rounding = max(problem.precision, _FINEST) * max(size, whole)
    step = channel.steps.get(name, 0.0)
    noise = float((channel.sigma**2 + step**2 / 12 + rounding**2) ** 0.5)
    rows = len(problem.gradient[name]) if problem.gradient[name].ndim > 1 else 1
    return Terms(sent, kept, threshold, noise, size or whole, rows)


def _terms(term: Terms, made: Tensor, blur: float) -> Tensor:
    spread = _spread(term, blur)
    apart = made - term.sent
    if term.threshold is None:
        return apart / spread
    over = (made.abs() - (1 + _HAIR) * term.threshold).clamp_min(0)
    return torch.where(term.kept, apart, over) / spread


def _sign_terms(term: Terms, made: Tensor, blur: float) -> Tensor:
    margin = max(blur, _SHARPEST)
    each = made.view(term.rows, -1)
    scale = each.square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(made.dtype).tiny)
    unit = (each / scale).flatten()
    return term.kept * (margin - term.sent.sign() * unit).clamp_min(0) / margin


def _spread(term: Terms, blur: float) -> float:
    return float((term.noise**2 + (blur * term.size) ** 2) ** 0.5)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())
