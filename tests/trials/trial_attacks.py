"""Attacks that note what they were given, for tests of trials."""

import time
from dataclasses import dataclass, field

import torch

from auditor.records import Problem, Recovery


@dataclass
class Notes:
    """Claims nothing; keeps the problems and the seconds that it was given."""

    problems: list[Problem] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    name: str = "images.notes"
    title: str = "Notes"

    def blocked_by(self, problem):
        return None

    def run(self, problem, *, seed, watch):
        self.problems.append(problem)
        self.seconds.append(
            float("inf") if watch.deadline is None else watch.deadline - time.monotonic()
        )
        return Recovery()


@dataclass(frozen=True)
class Waits:
    """Looks until its time is over."""

    name: str = "images.waits"
    title: str = "Waits"

    def blocked_by(self, problem):
        return None

    def run(self, problem, *, seed, watch):
        while not watch.expired():
            pass
        return Recovery(expired=True)


@dataclass(frozen=True)
class Breaks:
    """Ends in an error of torch."""

    message: str
    name: str = "images.breaks"
    title: str = "Breaks"

    def blocked_by(self, problem):
        return None

    def run(self, problem, *, seed, watch):
        raise RuntimeError(self.message)


def claim(inputs, labels):
    """A claim of one restart: inputs (N, C, H, W), labels (N,)."""
    return Recovery(inputs=inputs[None].double(), input_labels=labels[None])


def rounds_to(picture):
    """Multiples of 1/255."""
    return (picture * 255).round() / 255


def generator(seed=0):
    return torch.Generator().manual_seed(seed)
