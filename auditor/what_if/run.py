"""All settings in turn, within the budget, and what follows from them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace

import torch

from auditor.attacks import Watch
from auditor.attacks.failures import told_of
from auditor.options import Options
from auditor.records import DefenceKind, Evidence, Problem, Truth, WhatIf, WhatIfRow
from auditor.trials.running import within
from auditor.unfinished import Unfinished
from auditor.what_if.attack import chosen
from auditor.what_if.defended import NotApplicable
from auditor.what_if.reference import Reference, reference_of
from auditor.what_if.row import FAILED, bare_row, row_of
from auditor.what_if.settings import NO_DEFENCE, SETTINGS, Setting, force, gate_words
from auditor.zoo import LeNet

_ROW_SECONDS = 60.0  # of a row when there is no budget
_BARE_WEIGHT = 3.0  # of the row without a defence, in time
_NO_TIME = "the budget ended"
CLOSED = (
    "without a defence these attacks do not reach the gate either, or were not tried, so that "
    "nothing follows from where they fail"
)


def what_if(
    problem: Problem,
    evidence: tuple[Evidence, ...],
    truth: Truth | None,
    options: Options,
    watch: Watch,
    *,
    gate: str | None = None,
    unfinished: Unfinished | None = None,
    settings: tuple[Setting, ...] = SETTINGS,
) -> WhatIf:
    """Make the client's step again under each setting, attack it, and say which would have helped.

    `watch` ends the whole; each row has a fair share of what is left. `gate`: a band or score, as
    in --fail-on; high unless said. Finished rows go to `unfinished` and are taken from there.
    """
    words, threshold = gate_words(gate)
    reference = reference_of(problem, evidence, truth, options.seed)
    done: dict[str, WhatIfRow] = {}
    left_out: dict[str, str] = {}
    kept = {} if unfinished is None else unfinished.rows
    for place, setting in enumerate(settings):
        if setting.words in kept:
            done[setting.words] = kept[setting.words]
            continue
        share = _share(watch, [s for s in settings[place:] if s.words not in kept])
        if share.expired():
            left_out[setting.words] = _NO_TIME
            continue
        row = _row(problem, reference, evidence, setting, options, threshold, share)
        if isinstance(row, str):
            left_out[setting.words] = row
            continue
        done[setting.words] = row
        if unfinished is not None:
            unfinished.keep(row)
    return conclude(problem, reference, words, threshold, done.values(), left_out)


def is_short_of_time(found: WhatIf | None) -> bool:
    """Whether the budget kept a setting from being tried."""
    return found is not None and any(line.endswith(f": {_NO_TIME}") for line in found.left_out)


def _share(watch: Watch, to_come: list[Setting]) -> Watch:
    """The time of the first of these rows. Much rests on the one without a defence."""
    weights = [_BARE_WEIGHT if setting == NO_DEFENCE else 1.0 for setting in to_come]
    if watch.deadline is None:
        return within(watch, _ROW_SECONDS * weights[0])
    left = max(watch.deadline - time.monotonic(), 0.0)
    return within(watch, left * weights[0] / sum(weights))


def _row(
    problem: Problem,
    reference: Reference,
    evidence: tuple[Evidence, ...],
    setting: Setting,
    options: Options,
    threshold: float,
    watch: Watch,
) -> WhatIfRow | str:
    """The row, or why there is none."""
    attacks, seed, truth = chosen(options), options.seed, reference.truth
    try:
        if setting == NO_DEFENCE:
            found = bare_row(problem, reference, evidence, threshold=threshold, watch=watch)
            if found is not None:
                return found
        return row_of(problem, truth, setting, attacks, threshold=threshold, seed=seed, watch=watch)
    except NotApplicable as why:
        return str(why)
    except (torch.OutOfMemoryError, MemoryError):
        return "out of memory"
    except (RuntimeError, ValueError) as error:
        reason = told_of(error)
        if reason is None:
            raise
        return reason


# --------------------------------------------------------------------------- what follows


def conclude(
    problem: Problem,
    reference: Reference,
    gate: str,
    threshold: float,
    rows: Iterable[WhatIfRow],
    left_out: dict[str, str],
) -> WhatIf:
    """Rows in order, and the weakest setting of each defence that passes."""
    every = list(rows)
    opened = any(row.defence == NO_DEFENCE.kind and row.score >= threshold for row in every)
    if not opened:  # nothing passes where the attacks fail anyway
        every = [replace(row, passes=None) if row.passes else row for row in every]
    every.sort(key=lambda row: force(row.defence, row.strength))
    kinds = list(dict.fromkeys(setting.kind for setting in SETTINGS))
    every.sort(key=lambda row: kinds.index(row.defence) if row.defence in kinds else len(kinds))
    weakest = [weakest_of(kind, every) for kind in kinds if kind != NO_DEFENCE.kind]
    return WhatIf(
        reference=reference.words if opened else f"{reference.words}; {CLOSED}",
        gate=gate,
        rows=tuple(every),
        weakest=tuple(_sentence(row) for row in weakest if row is not None),
        left_out=tuple(f"{setting}: {why}" for setting, why in left_out.items()),
        paper=_paper(problem, every),
    )


def _sentence(row: WhatIfRow) -> str:
    """A setting that passes, with what was reached; begins with its words and a colon."""
    reached = "no picture rebuilt" if row.psnr is None else f"{row.psnr:.1f} dB reached"
    bound = "" if row.bound_psnr is None else f" (bound {row.bound_psnr:.1f} dB)"
    return f"{row.setting}: {reached}{bound}, score {row.score:.1f}, {FAILED}"


def weakest_of(kind: DefenceKind, rows: list[WhatIfRow]) -> WhatIfRow | None:
    """The weakest setting of a defence that passes, when no stronger one fails or is in doubt."""
    found: WhatIfRow | None = None
    own = [row for row in rows if row.defence == kind]
    for row in sorted(own, key=lambda row: force(kind, row.strength), reverse=True):
        if not row.passes:
            break
        found = row
    return found


def _paper(problem: Problem, rows: list[WhatIfRow]) -> str:
    """What the DLG paper says of noise on its LeNet, beside what was found here."""
    noise = [row for row in rows if row.defence == "noise" and row.psnr is not None]
    if not isinstance(problem.module, LeNet) or not noise:
        return ""
    ours = "; ".join(f"{row.setting}: {row.psnr:.0f} dB" for row in noise)
    return (
        "Zhu, Liu, Han 2019 (arXiv:1906.08935) report of this network that noise of a scale of "
        "1e-4 does not keep DLG from the picture, that 1e-3 leaves artefacts, and that DLG fails "
        "above 1e-2; they call the scale a variance, of which sigma is the root. Here, with "
        f"attacks that allow for the noise: {ours}."
    )
