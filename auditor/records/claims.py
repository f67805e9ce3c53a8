"""What an attack claims, and what the harness makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from auditor.records.terms import Certainty

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LabelClaim:
    """What the head's gradient says of the labels. Counts are per class."""

    lower: Tensor  # (K,) int64: at least so many, proved
    upper: Tensor | None  # (K,) int64: at most so many, proved; None without a batch size
    estimate: Tensor | None  # (N,) int64: best multiset, sorted; None without a batch size
    statements: tuple[str, ...]  # "T1", "T3", ... that carried the proved part
    premises: tuple[str, ...]  # in words, one per premise
    complete: bool  # the proved part is the whole batch
    at_least: int = (
        0  # samples that the head's gradient needs; above the batch size: a contradiction
    )
    probabilities: Tensor | None = None  # (N,) of each label of `estimate`; None: not known
    undetermined: Tensor | None = None  # (N,) bool: labels of `estimate` that the dump leaves open
    calibration: str = "uncalibrated"  # or "self-simulated on 500 auxiliary images"


@dataclass(frozen=True)
class Course:
    """The way of one restart: for the curve and the film strip of the report."""

    steps: tuple[int, ...]
    objective: tuple[float, ...]
    snapshot_steps: tuple[int, ...]
    snapshots: Tensor  # (S, N, C, H, W), model units
    status: str  # see solve.Status


@dataclass(frozen=True)
class LinkReport:
    """What one layer's equations say of its input. Plain data."""

    layer: str  # its weight, or its operations
    unknowns: int
    equations: int
    undetermined: int  # about so many unknowns are left open; 0: none was found
    gap: float  # relative distance between the answers from two starts and two roundings
    residual: float  # relative
    condition: float  # of what was solved: a lower bound
    steps: int
    status: str  # see solve.Status
    constrained: bool  # bounds, signs or smoothness had to help
    solved: bool  # nothing is left open and the equations hold


@dataclass(frozen=True)
class Recovery:
    """An attack's claim, unchecked."""

    labels: LabelClaim | None = None
    inputs: Tensor | None = None  # (R, N, C, H, W), model units
    input_labels: Tensor | None = None  # (R, N) int64: the labels that go with `inputs`
    courses: tuple[Course, ...] = ()  # R of them
    evaluations: int = 0  # values and gradients of one row
    expired: bool = False  # the budget ended before the attack did
    links: tuple[LinkReport, ...] = ()  # of an attack that reads layer by layer, top down
    guided: bool = False  # a prior chose among answers: restarts that agree confirm nothing
    smooth: bool = False  # neighbouring pixels were taken for alike, whether it mattered or not
    assumed: tuple[str, ...] = ()  # what such a prior takes for granted, in words
    samples: Tensor | None = None  # (M, C, H, W), model units: inputs of the batch, one by one
    witnesses: tuple[int, ...] = ()  # (M,) independent rows that gave each sample
    read_from: str = ""  # weight of the linear layer whose gradient gave the samples


@dataclass(frozen=True)
class Skipped:
    """The attack could not look, and this is why."""

    attack: str
    reason: str


@dataclass(frozen=True)
class Failed:
    """The attack looked and came back with nothing that can be told from nothing."""

    attack: str
    reason: str


@dataclass(frozen=True)
class Evidence:
    """A claim after the harness re-derived its gradient."""

    attack: str
    recovery: Recovery
    residuals: tuple[float, ...]  # (R,) relative, over all tensors
    worst_residuals: tuple[float, ...]  # (R,) relative, of the worst tensor
    floor: float  # residual that rounding alone explains
    best: int | None  # row of the claim; None when there are no inputs
    agreement: tuple[float, ...]  # (N,) dB to the nearest independent restart; empty: there is none
    agreeing: int  # restarts that reached the same answer, the best among them
    layers: Mapping[str, float]  # relative residual of each tensor at the best claim
    seconds: float
    statistics: tuple[float, ...] = ()  # (R,) relative, worst batch norm; empty: none were sent
    contrast_open: bool = False  # at another contrast the best claim explains the dump as well
    own_residual: float = float("inf")  # of tensors that layers were read from, against themselves
    samples: tuple[Certainty | None, ...] = ()  # (M,) of `recovery.samples`; None: not shown
    ceiling: float = float("inf")  # dB of the best claim, beside what unlike pictures leave
    # With a channel that is not clear, (R,) each; empty otherwise.
    misfits: tuple[float, ...] = ()  # squared residual over what the noise explains; 1 expected
    at_floor: tuple[bool, ...] = ()  # no more is left than noise explains, and not of gray pictures
    told: tuple[bool, ...] = ()  # (N,) of the best: only noise is left, and more if it were gray
