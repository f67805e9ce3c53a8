"""Every record of a text audit, in the order in which it appears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from auditor.records import Assumption, Certainty, Mode, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

IGNORED = -100  # a label that the loss leaves out, as in transformers


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """What a client trains on. Sequences are padded on the right."""

    tokens: Tensor  # (N, T) int64
    attention: Tensor  # (N, T) bool, False: padding
    labels: Tensor  # (N,) int64 of a classification, else (N, T) int64 with IGNORED


@dataclass(frozen=True)
class Projection:
    """One projection of a layer's input: rows of its gradient span that input."""

    weight: str  # parameter name
    rows: tuple[int, int]  # which outputs are queries (or keys, or values) of a fused matrix
    turned: bool  # stored (in, out) as GPT-2 does, not (out, in)


@dataclass(frozen=True)
class Layout:
    """Where a network keeps what the attacks need. Names are those of `named_parameters()`."""

    embedding: str  # (V, d)
    positions: str | None  # (P, d), learned and absolute; None: rotary or none
    types: str | None  # (2, d), of BERT
    head: str | None  # weight of what makes the logits: (K, d) or (V, d); None: no gradient of it
    head_bias: str | None
    tied: bool  # the head is the embedding
    causal: bool  # a position sees only those before it
    first: tuple[Projection, ...]  # of the first block's input: query, key, value
    second: tuple[Projection, ...]  # of the second block's; empty: one block only
    vocabulary: int
    width: int  # d
    norm: str | None = None  # module name of the layer norm in front of a vocabulary head


@dataclass(frozen=True)
class TextKnowledge:
    """What is known of the client's step."""

    task: Task
    batch_size: int | None
    longest: int | None  # tokens of the longest sequence, padding not counted
    classes: int  # 0 unless a classification
    padding: int | None  # token ids; None: there is none
    start: int | None  # always the first token
    end: int | None  # always the last one
    mask: int | None  # of a masked model
    assumptions: tuple[Assumption, ...]
    mode: Mode = "eval"
    overrides: tuple[str, ...] = ()  # flags that contradict the dump's own metadata


@dataclass(frozen=True)
class TextProblem:
    """All that an attacker knows. The truth is not among it."""

    module: nn.Module  # our own copy of the transformers model, in evaluation mode
    gradient: Mapping[str, Tensor]  # what was sent, in the module's dtype and device
    precision: float  # see GradientDump.precision
    knowledge: TextKnowledge
    layout: Layout
    tokenizer: object | None  # a PreTrainedTokenizerBase, for people only: attacks use ids


@dataclass(frozen=True, eq=False)
class TokenSet:
    """Which tokens occur in the batch."""

    present: Tensor  # (M,) int64, sorted
    complete: bool  # no other token occurs
    by: str  # "untied embedding", ...
    premises: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TextRecovery:
    """An attack's claim, unchecked."""

    tokens: TokenSet | None = None
    longest: int | None = None  # from the position embedding
    labels: Tensor | None = None  # (N,) int64 of a classification, sorted
    sequences: tuple[Tensor, ...] = ()  # each (T_n,) int64, as the model reads them
    chances: tuple[float, ...] = ()  # log10 of the chance that noise passes its span check
    margins: tuple[float, ...] = ()  # worst accepted distance over best rejected one, of each
    batch: TokenBatch | None = None  # the whole batch, when the claim is one: to be re-derived
    evaluations: int = 0
    expired: bool = False
    notes: tuple[str, ...] = ()  # what was assumed, in words that name no token


@dataclass(frozen=True)
class TextEvidence:
    """A claim after the harness re-derived it."""

    attack: str
    recovery: TextRecovery
    residual: float | None  # relative, over all tensors; None: there is no whole batch
    worst: float | None  # of the worst tensor
    sequences: tuple[Certainty | None, ...]  # of each sequence; None: not shown
    tokens: Certainty | None
    labels: Certainty | None
    layers: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    claimed: tuple[Tensor, ...] = ()  # the sequences that `sequences` speaks of, each (T_n,)
    whole: bool = False  # they are the whole batch


@dataclass(frozen=True, eq=False)
class TextTruth:
    """What the client really had. Only findings and metrics may take one."""

    batch: TokenBatch
    texts: tuple[str, ...] = ()
