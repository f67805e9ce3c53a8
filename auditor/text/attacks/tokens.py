"""Which tokens a batch holds, from the gradient of the embedding.

Row v of the gradient is the sum over the places of token v, and zero when it does not occur. When
the embedding is the head too, every row holds a combination of the head's inputs as well; rows that
stick out of the space that the others share are those of tokens that occur. The rows of the
position embedding end with the longest text, and a decoder's bias is negative for labels only.
The token set: Melis, Song, De Cristofaro, Shmatikov 2018, arXiv:1805.04049.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from auditor.text.attacks.base import Watch
from auditor.text.embedding import (
    entered_tokens,
    label_tokens,
    longest_of,
    tied_tokens,
    why_no_tokens,
)
from auditor.text.records import TextProblem, TextRecovery, TokenSet

_PREMISES = (
    "the dump is the gradient of one step, without noise and without weight decay",
    "a token whose gradients cancel, or which is the embedding's padding, is not seen",
)
_LAST = "the last token of a text enters nothing and is not in the set"
_TIED = "a row that sticks out of the space of most rows is that of a token that went in"
_BIAS = "a token whose entry of the decoder's bias is negative is a label"


@dataclass(frozen=True)
class Tokens:
    """Reads the token set and the longest length; nothing is searched for."""

    name: str = "text.tokens"
    title: str = "Tokens from the embedding's gradient"

    def blocked_by(self, problem: TextProblem) -> str | None:
        return None if len(label_tokens(problem)) else why_no_tokens(problem)

    def run(self, problem: TextProblem, *, seed: int, watch: Watch) -> TextRecovery:
        del seed
        if watch.expired():
            return TextRecovery(expired=True)
        found = _token_set(problem)
        if isinstance(found, str):
            return TextRecovery(longest=longest_of(problem), notes=(found,))
        return TextRecovery(tokens=found, longest=longest_of(problem))


def _token_set(problem: TextProblem) -> TokenSet | str:
    causal = problem.knowledge.task == "causal"
    premises = [*_PREMISES, *([_LAST] if causal else [])]
    labels = label_tokens(problem)
    if len(labels):
        premises.append(_BIAS)
    entered = entered_tokens(problem)
    if entered is not None:
        whole = problem.knowledge.task == "classification"
        present = torch.unique(torch.cat([entered, labels]))
        return TokenSet(present, whole, "untied embedding", tuple(premises))
    tied = why_no_tokens(problem) or tied_tokens(problem)
    if isinstance(tied, str):
        if not len(labels):
            return tied
        return TokenSet(torch.unique(labels), False, "decoder bias", tuple(premises))
    present = torch.unique(torch.cat([tied, labels]))
    return TokenSet(present, False, "tied embedding", (*premises, _TIED))
