"""What trust.py prints: its rows, counted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from scipy.stats import spearmanr

if TYPE_CHECKING:
    from trust import Row

RECONSTRUCTED = 25.0  # dB
HIGH = 7.0  # score
_SURE = {"proved", "verified"}
_OVER_LOW = {"medium", "high", "critical"}


def control_tables(rows: Sequence[Row]) -> str:
    """Controls: how many were called more than they are."""
    lines = [
        "| control | network | audits | proved or verified finding | of these true | "
        "band over low | exit 0 | inconclusive | voided | median seconds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind, network in sorted({(row.kind, row.network) for row in rows}):
        some = [row for row in rows if (row.kind, row.network) == (kind, network)]
        lines.append(f"| {kind} | {network} | {_control_cells(some)} |")
    lines += [f"| all | | {_control_cells(rows)} |", ""]
    for row in (row for row in rows if _sure(row) or row.band in _OVER_LOW or not row.exit_code):
        lines.append(f"- {_named(row)}: {row.band}, exit {row.exit_code}, {_findings(row)}")
    return "\n".join([*lines, ""])


def _control_cells(rows: Sequence[Row]) -> str:
    counts = (
        len(rows),
        sum(_sure(row) for row in rows),
        sum(_sure(row) and _rebuilt(row) for row in rows),
        sum(row.band in _OVER_LOW for row in rows),
        sum(row.exit_code == 0 for row in rows),
        sum(row.status == "inconclusive" for row in rows),
        sum(bool(row.caveats) for row in rows),
    )
    seconds = statistics.median(row.seconds for row in rows)
    return " | ".join([*(str(count) for count in counts), f"{seconds:.1f}"])


def leak_tables(rows: Sequence[Row]) -> str:
    """Leaks: what was rebuilt, what the audit thought of it, and what it scored."""
    lines = [
        "| network | defence | audits | true PSNR: median (least to most), dB | fidelity: median, "
        "dB | over 25 dB | of these under 7.0 | median score | median seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups = sorted({(row.network, row.kind, row.strength) for row in rows})
    for group in groups:
        some = [row for row in rows if (row.network, row.kind, row.strength) == group]
        lines.append(_leak_line(group, some))
    lines += ["", _correlation(rows), "", _calibration(rows), ""]
    missed = [row for row in rows if _rebuilt(row) and row.score < HIGH]
    lines.append(f"{len(missed)} of {sum(map(_rebuilt, rows))} over {RECONSTRUCTED:.0f} dB "
                 f"scored under {HIGH}:")  # fmt: skip
    lines += [f"- {_named(row)}: true {row.true:.1f} dB, {_findings(row)}" for row in missed]
    return "\n".join([*lines, ""])


def _leak_line(group: tuple[str, str, float], rows: Sequence[Row]) -> str:
    network, kind, strength = group
    true = [row.true for row in rows if row.true is not None]
    thought = [row.fidelity for row in rows if row.fidelity is not None]
    spread = "no claim"
    if true:
        spread = f"{statistics.median(true):.1f} ({min(true):.1f} to {max(true):.1f})"
    missed = sum(_rebuilt(row) and row.score < HIGH for row in rows)
    return (
        f"| {network} | {kind} {strength:g} | {len(rows)} | {spread} | "
        f"{f'{statistics.median(thought):.1f}' if thought else ''} | {sum(map(_rebuilt, rows))} | "
        f"{missed} | {statistics.median(row.score for row in rows):.1f} | "
        f"{statistics.median(row.seconds for row in rows):.1f} |"
    )


def _correlation(rows: Iterable[Row]) -> str:
    """Spearman's rank correlation, of all audits that claimed something and by network."""
    told = []
    pairs = [row for row in rows if row.fidelity is not None and row.true is not None]
    for name in ("all", *sorted({row.network for row in pairs})):
        some = [row for row in pairs if name in ("all", row.network)]
        if len(some) > 2:
            rank = spearmanr([r.fidelity for r in some], [r.true for r in some]).statistic
            told.append(f"{name} {rank:.3f} (n = {len(some)})")
    return "Spearman correlation of fidelity and true PSNR: " + ("; ".join(told) or "no pairs")


def _calibration(rows: Iterable[Row]) -> str:
    """True PSNR of claims above the floor by decade of their residual: what fidelity is made of."""
    above = [claim for row in rows if row.network != "MLP" for claim in row.claims if not claim[4]]
    lines = [
        "Claims above the floor, LeNet and ResNet-20, median true PSNR in dB (number):",
        "",
        "| relative residual | plain matching | a prior chose |",
        "|---|---|---|",
    ]
    for low, high in pairwise((0.0, 3e-3, 3e-2, 3e-1, 3.0, math.inf)):
        cells = []
        for guided in (False, True):
            some = [c[2] for c in above if c[3] == guided and low < c[1] <= high]
            cells.append(f"{statistics.median(some):.1f} ({len(some)})" if some else "")
        lines.append(f"| {low:g} to {high:g} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def _rebuilt(row: Row) -> bool:
    return row.true is not None and row.true > RECONSTRUCTED


def _sure(row: Row) -> bool:
    return any(certainty in _SURE for _, certainty, _, _ in row.findings)


def _named(row: Row) -> str:
    return f"{row.part} {row.index}, {row.network}, batch {row.batch}, {row.kind} {row.strength:g}"


def _findings(row: Row) -> str:
    told = [f"{code} {certainty} {score} ({attack})" for code, certainty, score, attack in
            row.findings]  # fmt: skip
    true = "" if row.true is None else f"; true {row.true:.1f} dB"
    return (", ".join(told) or "no finding") + true
