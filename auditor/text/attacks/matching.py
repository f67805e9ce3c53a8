"""Texts by gradient matching: continuous embeddings and soft labels, then the nearest tokens.

DLG minimises squared distances with L-BFGS. TAG adds absolute distances, which count more the
nearer a tensor is to the input, and takes Adam; that is what runs here. The tokens that come out
are put right by swaps and exchanges that the model's own gradient scores.
Sources: Zhu, Liu, Han 2019 (DLG), arXiv:1906.08935; Deng et al. 2021 (TAG), arXiv:2103.06819;
swaps: Balunović et al. 2022 (LAMP), arXiv:2202.08827.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from auditor.solve import by_row, minimize
from auditor.text.attacks.base import Milestone, Watch
from auditor.text.attacks.continuous import Continuous, continuous_of, distance
from auditor.text.embedding import longest_of
from auditor.text.problem import gradient_of, relative_residual, tolerance_of
from auditor.text.records import TextProblem, TextRecovery, TokenBatch

_MOST_TOKENS = 512  # of a batch
_MEMORY = 20  # steps that L-BFGS remembers
_TELL = 10  # steps between two milestones
_GUESSED = "all texts were taken to be as long as the longest"


@dataclass(frozen=True)
class Matching:
    """Searches for embeddings whose gradient is the dump's, rounds to tokens, mends their order."""

    steps: int = 400
    length: float = 0.05  # of Adam's first step; it falls linearly to a tenth
    absolute: float = 0.01  # weight of absolute distances, as in TAG; 0: squares only
    optimizer: Literal["adam", "lbfgs"] = "adam"
    exchanges: int = 200  # that are tried on the tokens
    name: str = "text.matching"
    title: str = "Texts by gradient matching (DLG, TAG)"

    def blocked_by(self, problem: TextProblem) -> str | None:
        known = problem.knowledge
        if known.batch_size is None:
            return "the batch size is unknown: say it with --batch-size"
        if known.task == "masked":
            return "the places that a masked model has to guess are unknown"
        length = longest_of(problem)
        if length is None:
            return "the length of the longest text is unknown"
        if known.batch_size * length > _MOST_TOKENS:
            return f"more than {_MOST_TOKENS} tokens cannot be searched for"
        found = continuous_of(problem, length)
        return found if isinstance(found, str) else None

    def run(self, problem: TextProblem, *, seed: int, watch: Watch) -> TextRecovery:
        length, size = longest_of(problem), problem.knowledge.batch_size
        assert length is not None, "blocked_by was not asked"
        assert size is not None, "blocked_by was not asked"
        if watch.expired():
            return TextRecovery(expired=True)
        search = continuous_of(problem, length)
        assert isinstance(search, Continuous), "blocked_by was not asked"
        generator = torch.Generator().manual_seed(seed)
        row, steps = self._searched(search, search.start(generator), watch)
        batch = search.rounded(row)
        batch, tried = _mended(problem, search, batch, self.exchanges, generator, watch)
        return TextRecovery(
            sequences=tuple(batch.tokens),
            batch=batch,
            evaluations=steps + tried,
            expired=watch.expired(),
            notes=(_GUESSED,) if size > 1 else (),
        )

    def _searched(self, search: Continuous, start: Tensor, watch: Watch) -> tuple[Tensor, int]:
        """The best row (D,) and how many gradients it took."""
        if self.optimizer == "adam":
            return self._adam(search, start, watch)

        def tell(step: int, x: Tensor, value: Tensor) -> bool:
            del x
            if step % _TELL == 0:
                watch.tell(Milestone(self.name, step, self.steps, float(value.min()) ** 0.5))
            return False

        found = minimize(
            by_row(lambda row: distance(search, row, absolute=self.absolute)),
            start[None],
            max_steps=self.steps,
            memory=_MEMORY,
            watch=tell,
            expired=watch.expired,
        )
        return found.x[0], found.evaluations

    def _adam(self, search: Continuous, start: Tensor, watch: Watch) -> tuple[Tensor, int]:
        row = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([row], lr=self.length)
        best, least = start, float("inf")
        for step in range(self.steps):
            if watch.expired():
                return best, step
            optimizer.param_groups[0]["lr"] = self.length * (1 - 0.9 * step / self.steps)
            value = distance(search, row, absolute=self.absolute)
            if float(value.detach()) < least:
                best, least = row.detach().clone(), float(value.detach())
            (row.grad,) = torch.autograd.grad(value, row)
            optimizer.step()
            if step % _TELL == 0:
                watch.tell(Milestone(self.name, step, self.steps, least**0.5))
        return best, self.steps


def _mended(
    problem: TextProblem,
    search: Continuous,
    batch: TokenBatch,
    tries: int,
    generator: torch.Generator,
    watch: Watch,
) -> tuple[TokenBatch, int]:
    """Keep every swap or exchange of tokens that brings the batch's gradient nearer to the dump."""
    residual = relative_residual(problem, gradient_of(problem, batch))
    for tried in range(tries):
        if watch.expired() or residual <= tolerance_of(problem):
            return batch, tried
        other = search.batch_of(_moved(search, batch.tokens, generator), batch.labels)
        new = relative_residual(problem, gradient_of(problem, other))
        if new < residual:
            batch, residual = other, new
    return batch, tries


def _moved(search: Continuous, tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Two places (N, T) swapped, or one of them with another token that it may hold."""
    tokens = tokens.clone()
    rows, places = search.open.nonzero().unbind(1)
    one, two = torch.randint(len(rows), (2,), generator=generator).tolist()
    here, there = (rows[one], places[one]), (rows[two], places[two])
    if len(search.words) <= search.few and bool(torch.rand(1, generator=generator) < 0.5):
        pick = int(torch.randint(len(search.words), (1,), generator=generator))
        tokens[here] = search.words[pick]
    else:
        tokens[here], tokens[there] = tokens[there].clone(), tokens[here].clone()
    return tokens
