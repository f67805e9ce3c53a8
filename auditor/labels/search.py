"""Which labels a small batch has: a beam search, sample by sample, then swaps.

The strongest directions of the gradient's row space belong to the samples that the model is least
sure of. So the search begins with one sample and one direction, and adds one of either after the
other; the best few guesses are kept. Then single samples are swapped for others until nothing is
gained. The misfit of a guess is that of its best features (matching.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from auditor.labels.matching import Fit, Rows, fit, places_of, strongest

_WIDTH = 6  # guesses that are kept
_TRIES = 2  # pictures of each class that a new sample starts from
_STARTS = 60  # that a new sample has at most, all classes together
_STEPS, _POLISH = 15, 20  # of the minimiser
_SWEEPS = 4
_GLANCE, _KEPT = 6, 40  # first steps of many guesses, and how many of them go on
_SWAPPED = 2  # guesses that are swapped
_SETTLED = 0.98  # a sweep that leaves more of the misfit is the last


@dataclass(frozen=True)
class Starts:
    """Pictures that a sample may resemble."""

    features: Tensor  # (M, E)
    labels: Tensor  # (M,)


@dataclass(frozen=True)
class Limits:
    """What a multiset must keep to."""

    lower: Tensor  # (K,)
    upper: Tensor  # (K,)


def search(
    rows: Rows,
    limits: Limits,
    starts: Starts,
    *,
    generator: torch.Generator,
    expired: Callable[[], bool],
) -> Fit | None:
    """The best guesses, at most `_WIDTH`, all different, best first. None: nothing can be right.

    As many samples are guessed as `rows` has dimensions.
    """
    beam = _grown(rows, limits, starts, generator, expired)
    if beam is None:
        return None
    beam = _best(fit(rows, beam.labels, beam.places, steps=_POLISH), _WIDTH)
    for _ in range(_SWEEPS):
        if expired():
            break
        before = float(beam.misfit[0])
        beam = _swapped(rows, limits, starts, beam, generator)
        if float(beam.misfit[0]) > _SETTLED * before:
            break
    return beam


def _grown(
    rows: Rows,
    limits: Limits,
    starts: Starts,
    generator: torch.Generator,
    expired: Callable[[], bool],
) -> Fit | None:
    beam: Fit | None = None
    for count in range(1, rows.size + 1):
        if expired():
            return None
        part = strongest(rows, count, clean=False)
        labels, pictures = _new_samples(starts, len(limits.lower), generator)
        places = places_of(part, starts.features[pictures])[:, None]
        labels = labels[:, None]
        if beam is not None:
            labels, places = _joined(beam, labels, places)
        able = _able(labels, limits, rows.size)
        if not bool(able.any()):
            return None
        beam = _best(_promising(part, labels[able], places[able]), _WIDTH)
    return beam


def _new_samples(starts: Starts, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Labels (A,) and pictures (A,) to begin from: some of every class, or of some classes.

    A class without a picture begins from any.
    """
    tries = min(_TRIES, max(1, _STARTS // classes))
    labels = torch.randperm(classes, generator=generator)[:_STARTS].repeat_interleave(tries)
    pictures = torch.randint(len(starts.labels), labels.shape, generator=generator)
    for place, label in enumerate(labels.tolist()):
        own = (starts.labels == label).nonzero()[:, 0]
        if len(own):
            pictures[place] = own[int(torch.randint(len(own), (), generator=generator))]
    return labels, pictures


def _joined(beam: Fit, labels: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Every guess with every new sample; the old ones begin at nought in the new direction."""
    old, new = len(beam.labels), len(labels)
    wider = torch.cat([beam.places, torch.zeros_like(beam.places[..., :1])], 2)
    return (
        torch.cat([beam.labels.repeat_interleave(new, 0), labels.repeat(old, 1)], 1),
        torch.cat([wider.repeat_interleave(new, 0), places.repeat(old, 1, 1)], 1),
    )


def _swapped(
    rows: Rows, limits: Limits, starts: Starts, beam: Fit, generator: torch.Generator
) -> Fit:
    """The best of the beam and of what comes of one new sample in the place of one old."""
    labels, places = [], []
    for guess in range(min(_SWAPPED, len(beam.labels))):
        for sample in range(rows.size):
            new, pictures = _new_samples(starts, len(limits.lower), generator)
            changed = beam.labels[guess].repeat(len(new), 1)
            moved = beam.places[guess].repeat(len(new), 1, 1)
            changed[:, sample], moved[:, sample] = new, places_of(rows, starts.features[pictures])
            labels.append(changed)
            places.append(moved)
    changed, moved = torch.cat(labels), torch.cat(places)
    able = _able(changed, limits, rows.size)
    if not bool(able.any()):
        return beam
    found = _promising(rows, changed[able], moved[able])
    return _best(
        Fit(
            torch.cat([beam.labels, found.labels]),
            torch.cat([beam.places, found.places]),
            torch.cat([beam.misfit, found.misfit]),
        ),
        _WIDTH,
    )


def _promising(rows: Rows, labels: Tensor, places: Tensor) -> Fit:
    """Fit many guesses a little, and the best of them to the end."""
    glance = fit(rows, labels, places, steps=_GLANCE)
    kept = glance.misfit.argsort()[:_KEPT]
    return fit(rows, glance.labels[kept], glance.places[kept], steps=_STEPS)


def counts_of_guesses(labels: Tensor, classes: int) -> Tensor:
    """(S, n) labels to (S, K) counts."""
    counts = torch.zeros(len(labels), classes, dtype=torch.int64)
    return counts.scatter_add_(1, labels, torch.ones_like(labels))


def _able(labels: Tensor, limits: Limits, samples: int) -> Tensor:
    """Which guesses (S, n) can still become `samples` labels within the limits."""
    counts = counts_of_guesses(labels, len(limits.lower))
    missing = (limits.lower - counts).clamp_min(0).sum(1)
    fits: Tensor = (missing <= samples - labels.shape[1]) & (counts <= limits.upper).all(1)
    return fits


def _best(found: Fit, width: int) -> Fit:
    """The best guesses of different multisets, best first."""
    seen: set[tuple[int, ...]] = set()
    kept: list[int] = []
    for place in found.misfit.argsort().tolist():
        multiset = tuple(sorted(found.labels[place].tolist()))
        if multiset not in seen and len(kept) < width:
            seen.add(multiset)
            kept.append(place)
    return Fit(found.labels[kept], found.places[kept], found.misfit[kept])
