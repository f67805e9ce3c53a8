"""Whose step is made again: the client's samples as far as they are known, else stand-ins."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.evidence import best_pixels, is_equal, is_proved, is_verified
from auditor.records import Evidence, Problem, Truth
from auditor.trials.running import dice
from auditor.trials.stand_ins import stand_ins, told_of_stand_ins


@dataclass(frozen=True)
class Reference:
    """The samples that the step is made with."""

    truth: Truth  # pixels 0..1 and labels, on the CPU
    words: str
    rebuilt: Evidence | None = None  # the claim that they are; None: the truth, or stand-ins
    stands_in: bool = False


def reference_of(
    problem: Problem, evidence: tuple[Evidence, ...], truth: Truth | None, seed: int
) -> Reference:
    """The truth, else the most certain claim whose gradient equals the dump, else stand-ins."""
    if truth is not None:
        return Reference(truth, f"the step of {_count(truth)} that you gave as the truth")
    equal = [e for e in evidence if e.best is not None and is_equal(problem, e)]
    if equal:
        best = max(equal, key=lambda e: (is_proved(problem, e), is_verified(problem, e)))
        return _rebuilt(problem, best)
    generator = dice(seed, "stand-ins")
    made = more_samples(problem, problem.knowledge.batch_size or 1, generator)
    words = (
        f"a step of {_count(made)}, {told_of_stand_ins(problem)}, in place of the client's: "
        "nothing was rebuilt that could stand for them"
    )
    return Reference(made, words, stands_in=True)


def more_samples(problem: Problem, count: int, generator: torch.Generator) -> Truth:
    """So many samples that could be a client's, from the auxiliary pictures where there are any."""
    known = replace(problem.knowledge, batch_size=count)
    pictures, labels = stand_ins(replace(problem, knowledge=known), generator)
    return Truth(pictures.float(), labels)


def _rebuilt(problem: Problem, evidence: Evidence) -> Reference:
    labels = evidence.recovery.input_labels
    assert evidence.best is not None
    assert labels is not None
    truth = Truth(best_pixels(problem, evidence), labels[evidence.best].cpu())
    certain = "verified" if is_verified(problem, evidence) else "consistent"
    word = "proved" if is_proved(problem, evidence) else certain
    words = f"the step of {_count(truth)} as {evidence.attack} rebuilt it ({word})"
    return Reference(truth, words, rebuilt=evidence)


def _count(truth: Truth) -> str:
    count = len(truth.labels)
    return "one sample" if count == 1 else f"{count} samples"


def joined(one: Truth, other: Truth) -> Truth:
    """The samples of both, those of `one` first."""
    inputs: Tensor = torch.cat([one.inputs, other.inputs.to(one.inputs)])
    return Truth(inputs, torch.cat([one.labels, other.labels]))
