"""What is known of a defence in the dump, and what an audit says of its own worth. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from auditor.records.terms import Band

Belongs = Literal["shown", "contradicted", "not tested"]  # model and dump, to one another
DefenceKind = Literal[
    "none",  # of a what-if: what the other rows are compared with
    "noise",
    "clipping",
    "top-k",
    "sign",
    "int8",
    "fp16",
    "bf16",
    "dp-sgd",
    "larger batch",
    "local steps",
    "frozen layer",
    "withheld head bias",
    "secure aggregation",
    "unknown",
]


@dataclass(frozen=True)
class Channel:
    """What lies between the client's gradient and the dump, for attacks that allow for it.

    The defaults are a dump that holds the gradient itself, up to `Problem.precision`.
    """

    sigma: float = 0.0  # standard deviation of independent Gaussian noise on every kept entry
    masked: bool = False  # a zero says nothing but that the entry was small (top-k)
    signs: bool = False  # only the signs of the entries were sent
    steps: Mapping[str, float] = field(default_factory=dict)  # tensor -> width of its intervals
    scaled: bool = False  # the gradient was multiplied with an unknown positive factor (clipping)

    @property
    def is_clear(self) -> bool:
        """Whether nothing lies in between."""
        return not (self.sigma or self.masked or self.signs or self.steps or self.scaled)

    @property
    def is_noise(self) -> bool:
        """Whether noise is all that lies in between."""
        return self.sigma > 0 and not (self.masked or self.signs or self.steps or self.scaled)


@dataclass(frozen=True)
class DefenceSeen:
    """A defence that the dump itself shows."""

    kind: DefenceKind
    strength: float | None  # sigma, norm, share of zeros, ...; None: it has none, or not known
    low: float | None  # ends of the 95 % interval of `strength`; None: not known
    high: float | None
    summary: str  # one sentence
    basis: str  # what it was read from, in words


@dataclass(frozen=True)
class Bound:
    """The best that any attack could do on this dump, from its Fisher information."""

    sigma: float  # of one entry; what the figures below hold for
    origin: Literal["estimated noise", "given noise", "rounding of the dump"]
    method: Literal["dense", "Lanczos"]
    unknowns: int
    effective: float  # number of directions that the dump tells better than the prior does
    unbiased_psnr: float | None  # dB; no unbiased attack does better; None: some pixel is unbounded
    prior_psnr: float  # dB; with a prior of the variance of uniform pixels (van Trees)
    worst_psnr: float  # dB, of the sample that is told best
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class ControlReport:
    """The same attack on gradients that cannot hold the data."""

    attack: str
    controls: int
    recovered: int  # controls from which it claimed as much
    summary: str


@dataclass(frozen=True)
class CanaryReport:
    """The share of simulated dumps of this model that the attacks open."""

    opened: int
    simulated: int
    low: float  # ends of the 95 % Clopper-Pearson interval of the share
    high: float
    threshold: float  # dB: from here on a dump counts as opened
    pictures: str  # what the simulated clients had
    summary: str


@dataclass(frozen=True)
class WhatIfRow:
    """The same step of the client under one defence, attacked again."""

    defence: DefenceKind
    setting: str  # in words: "noise, sigma 1e-3"
    strength: float
    attack: str  # what was run; empty: nothing could
    psnr: float | None  # dB, worst-protected sample; None: nothing was rebuilt
    bound_psnr: float | None  # dB, what no attack with that prior beats; None: not computed
    labels: float | None  # share of the labels that were read
    score: float
    band: Band
    cosine: float | None  # with the gradient before the defence: a first idea of the cost
    passes: bool | None  # the gate; None: no gate, or not attacked
    note: str


@dataclass(frozen=True)
class WhatIf:
    """What would have helped."""

    reference: str  # what was attacked again, in words
    gate: str  # the threshold that `passes` means
    rows: tuple[WhatIfRow, ...]
    weakest: tuple[str, ...]  # per defence, the weakest setting that passes, in words
    left_out: tuple[str, ...]  # what was not run, and why
    paper: str = ""  # beside what a paper reported for such a setting


@dataclass(frozen=True)
class Trust:
    """How far the verdict can be trusted, and what would have helped."""

    defences: tuple[DefenceSeen, ...] = ()
    belongs: Belongs = "not tested"
    tested: tuple[str, ...] = ()  # which identities were tested, and how far they hold
    fidelity: float | None = None  # dB, reference-free, of the best claim
    bound: Bound | None = None
    control: ControlReport | None = None
    canaries: CanaryReport | None = None
    what_if: WhatIf | None = None
    unsaid: tuple[str, ...] = ()  # statements that are not made, and why
