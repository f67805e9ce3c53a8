"""What a caller can choose about an audit, apart from the facts: presets, attacks, budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from auditor.attacks import ATTACKS, PAPER, Attack, Search, with_search
from auditor.errors import UsageError

EvidenceMode = Literal["none", "separate", "embed"]


@dataclass(frozen=True)
class Preset:
    """How hard to look."""

    name: str
    search: Search
    budget: float | None  # seconds
    everything: bool = False  # run attacks that could not make the verdict worse, too


PRESETS: tuple[Preset, ...] = (
    Preset("fast", Search(restarts=2, max_steps=2000), 60),
    Preset("standard", Search(), 300),
    Preset("deep", Search(restarts=8, max_steps=20_000), 3600, everything=True),
    Preset("paper", PAPER, None, everything=True),
)


@dataclass(frozen=True)
class Options:
    """The choices of one audit."""

    preset: Preset
    attacks: tuple[Attack, ...]  # all attacks, in order, with the preset's settings
    selected: frozenset[str]  # names of those that may run
    named: bool  # the user named attacks: run every one of them
    seed: int
    budget: float | None  # seconds
    device: torch.device
    evidence: EvidenceMode = "none"
    command: tuple[str, ...] = ()
    what_if: bool = False  # the usual defences, each attacked again


def make_options(
    *,
    preset: str = "standard",
    attacks: Sequence[str] | None = None,
    seed: int = 0,
    budget: float | None = None,
    device: str = "auto",
    evidence: EvidenceMode = "none",
    command: Sequence[str] = (),
    offered: Sequence[str] | None = None,
    what_if: bool | None = None,
) -> Options:
    """Check the caller's choices. Raises UsageError.

    `offered`: names of the attacks to choose from, those on pictures unless said.
    `what_if`: with the preset deep unless said.
    """
    chosen = next((p for p in PRESETS if p.name == preset), None)
    if chosen is None:
        raise UsageError(
            expected=f"a preset: {', '.join(p.name for p in PRESETS)}",
            found=repr(preset),
            todo="Mend --preset.",
        )
    if budget is not None and not budget > 0:
        raise UsageError(
            expected="a budget above 0 seconds", found=str(budget), todo="Mend --budget."
        )
    if not -(2**63) <= seed < 2**64:
        raise UsageError(expected="a seed of at most 64 bits", found=str(seed), todo="Mend --seed.")
    return Options(
        preset=chosen,
        attacks=tuple(with_search(attack, chosen.search) for attack in ATTACKS),
        selected=_selected(attacks, offered or [attack.name for attack in ATTACKS]),
        named=bool(attacks),
        seed=seed,
        budget=budget if budget is not None else chosen.budget,
        device=pick_device(device),
        evidence=evidence,
        command=tuple(command),
        what_if=chosen.name == "deep" if what_if is None else what_if,
    )


def _selected(names: Sequence[str] | None, every: Sequence[str]) -> frozenset[str]:
    """Attack names, or families such as `labels`."""
    if not names:
        return frozenset(every)
    chosen: set[str] = set()
    for name in names:
        found = {a for a in every if a == name or a.startswith(f"{name}.")}
        if not found:
            raise UsageError(
                expected=f"attacks among {', '.join(every)}, or a family such as labels",
                found=repr(name),
                todo="Mend --attacks; `gradaudit attacks` lists them.",
            )
        chosen |= found
    return frozenset(chosen)


def pick_device(name: str) -> torch.device:
    """`auto` takes CUDA, then MPS, then the CPU. Raises UsageError for one that is not there."""
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, available in there.items() if available))
    kind, colon, number = name.partition(":")
    if not there.get(kind, False) or (colon and not number.isdecimal()):
        raise UsageError(
            expected=f"auto, {', '.join(k for k, v in there.items() if v)}",
            found=repr(name),
            todo="Mend --device.",
        )
    return torch.device(name)
