"""The continuous twin of a batch: embeddings in place of tokens, soft labels in place of labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from auditor.text.embedding import entered_tokens, label_tokens, tied_tokens, why_no_tokens
from auditor.text.records import TextProblem, TokenBatch

_MOST_NUMBERS = 1 << 22  # of the soft labels
_PIECE = 1 << 24


@dataclass(frozen=True, eq=False)
class Continuous:
    """A row (D,) holds embeddings (N, T, d) and logits of labels, (N, K) or (N, T - 1, L)."""

    problem: TextProblem
    size: int
    length: int
    words: Tensor  # (M,) tokens that may stand anywhere
    labels: Tensor  # (L,) classes or next tokens
    fixed: tuple[tuple[int, int], ...]  # (position, token) known beforehand, in every text
    few: int = 2000  # words: up to so many, exchanges are worth trying

    @property
    def open(self) -> Tensor:
        """(N, T) bool: places whose token is not fixed."""
        found = torch.ones(self.size, self.length, dtype=torch.bool)
        for place, _ in self.fixed:
            found[:, place] = False
        return found

    @property
    def _table(self) -> Tensor:
        named = dict(self.problem.module.named_parameters())
        return named[self.problem.layout.embedding].detach()

    def start(self, generator: torch.Generator) -> Tensor:
        """Embeddings of words drawn by chance, with noise; even labels."""
        width = self.problem.layout.width
        table = self._table
        drawn = torch.randint(len(self.words), (self.size * self.length,), generator=generator)
        noise = torch.randn(len(drawn), width, generator=generator).to(table)
        embeddings = table[self.words[drawn]] + 0.1 * table.std() * noise
        places = self.size * (self.length - 1 if self.problem.knowledge.task == "causal" else 1)
        return torch.cat([embeddings.flatten(), table.new_zeros(places * len(self.labels))])

    def unpack(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (N, T, d), with fixed ones in place, and soft labels (N, [T - 1,] L)."""
        shape = (self.size, self.length, self.problem.layout.width)
        numbers = torch.Size(shape).numel()
        embeddings = row[:numbers].view(shape)
        for place, token in self.fixed:
            known = self._table[token].expand(self.size, 1, -1)
            parts = [embeddings[:, :place], known, embeddings[:, place + 1 :]]
            embeddings = torch.cat(parts, dim=1)
        logits = row[numbers:].view(self.size, -1, len(self.labels))
        return embeddings, logits.softmax(2)

    def loss(self, row: Tensor) -> Tensor:
        """The client's loss, (), with soft labels."""
        embeddings, soft = self.unpack(row)
        told = {"use_cache": False} if self.problem.layout.causal else {}
        mask = torch.ones(self.size, self.length, dtype=torch.long, device=row.device)
        module = cast(Any, self.problem.module)
        logits = module(inputs_embeds=embeddings, attention_mask=mask, **told).logits
        if self.problem.knowledge.task == "causal":
            chosen = logits[:, :-1].log_softmax(2)[:, :, self.labels]
        else:
            chosen = logits.log_softmax(1)[:, None]
        loss: Tensor = -(soft * chosen).sum(2).mean()
        return loss

    def rounded(self, row: Tensor) -> TokenBatch:
        """The tokens whose embeddings point most nearly the same way, and the likeliest labels."""
        with torch.no_grad():
            embeddings, soft = self.unpack(row)
            table = self._table[self.words]
            table = table / table.norm(dim=1, keepdim=True).clamp_min(1e-12)
            flat = embeddings.reshape(-1, embeddings.shape[2])
            pieces = torch.split(flat, max(1, _PIECE // len(table)))
            nearest = torch.cat([(piece @ table.mT).argmax(1) for piece in pieces]).cpu()
            tokens = self.words[nearest].view(self.size, self.length)
            for place, token in self.fixed:
                tokens[:, place] = token
            return self.batch_of(tokens, self.labels[soft[:, 0].argmax(1).cpu()])

    def batch_of(self, tokens: Tensor, labels: Tensor) -> TokenBatch:
        """The batch of these tokens (N, T); a causal model's labels are the tokens themselves."""
        causal = self.problem.knowledge.task == "causal"
        attention = torch.ones_like(tokens, dtype=torch.bool)
        return TokenBatch(tokens, attention, tokens.clone() if causal else labels)


def continuous_of(problem: TextProblem, length: int) -> Continuous | str:
    """The search for texts of `length` tokens, or why there is none, in words."""
    known = problem.knowledge
    assert known.batch_size is not None
    words = _words(problem)
    labels = words if known.task == "causal" else torch.arange(known.classes)
    if known.task == "causal" and known.batch_size * length * len(labels) > _MOST_NUMBERS:
        return "soft labels over the whole vocabulary are too many, and the token set is not known"
    if not _matched(problem):
        return "the dump holds no gradient beside that of the embedding"
    fixed = [] if known.start is None else [(0, known.start)]
    if known.end is not None and known.batch_size == 1:
        fixed.append((length - 1, known.end))
    return Continuous(problem, known.batch_size, length, words, labels, tuple(fixed))


def distance(search: Continuous, row: Tensor, *, absolute: float) -> Tensor:
    """The distance to the dump, (): the mean over tensors of squares, relative, and absolutes.

    Absolute distances count fully in the first tensor and fall linearly to nothing in the last.
    The embedding is left out, as it is not asked for a gradient here.
    """
    problem = search.problem
    names = _matched(problem)
    named = dict(problem.module.named_parameters())
    wanted = [named[name] for name in names]
    found = torch.autograd.grad(
        search.loss(row), wanted, create_graph=True, allow_unused=True, materialize_grads=True
    )
    floor = problem.precision * torch.stack([problem.gradient[n].norm() for n in names]).norm()
    total = row.new_zeros(())
    for place, (name, part) in enumerate(zip(names, found, strict=True)):
        sent = problem.gradient[name]
        apart = part - sent
        total = total + apart.square().sum() / sent.norm().clamp_min(floor).square()
        if absolute:
            scale = absolute * (1 - place / len(names))
            total = total + scale * apart.abs().sum() / sent.abs().sum().clamp_min(floor)
    return total / len(names)


def _matched(problem: TextProblem) -> list[str]:
    """Tensors that are compared: all but the embedding and what is pure rounding."""
    size = torch.stack([sent.norm() for sent in problem.gradient.values()]).norm()
    return [
        name
        for name, sent in problem.gradient.items()
        if name != problem.layout.embedding and sent.norm() > 16 * problem.precision * size
    ]


def _words(problem: TextProblem) -> Tensor:
    """Tokens that the texts may hold: the token set when it is known, without padding."""
    found: Tensor | str | None = entered_tokens(problem)
    if found is None and problem.layout.tied and why_no_tokens(problem) is None:
        found = tied_tokens(problem)
    every = torch.arange(problem.layout.vocabulary)
    some = found if isinstance(found, Tensor) else every
    words: Tensor = torch.unique(torch.cat([some, label_tokens(problem)]))
    return words if problem.knowledge.padding is None else words[words != problem.knowledge.padding]
