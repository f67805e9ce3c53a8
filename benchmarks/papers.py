"""DLG and iDLG as published beside gradaudit's default, on the same problems in one run.

    python benchmarks/papers.py --data DIR [--n 100] [--papers mnist=100,cifar100=50,lfw=10]
        [--datasets mnist,cifar100,lfw] [--out DIR] [--resume]
        [--figures DIR]
    python benchmarks/papers.py --table FILE.jsonl [FILE.jsonl ...]

DIR holds NAME.npz with `images` (uint8, NHWC or NHW), `labels` and `num_classes`. Each picture gets
a sigmoid LeNet of its own, weights uniform in +-0.5; both sides get the same float32 gradient. Ours
runs on the first `--n` pictures, the papers' algorithms (common.py) on the first `--papers` of
these. Methods take turns problem by problem, so that other work on the machine hits all alike.

Seconds are those to the verdict, set-up of the problem excluded. Our pictures are those of the
report, pixels clipped to 0..1; the papers' are taken as they come out. Each outcome is written to
OUT/papers.jsonl when it comes; the table and the figure are made from that file.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import (
    Sent,
    environment,
    lenet_step,
    mean_squared_errors,
    pictures,
    published,
    timed_audit,
    warm_up,
)
from figure import threshold_figure

from auditor.audit import best_evidence
from auditor.evidence import best_pixels

OURS, IDLG, DLG = "gradaudit, default", "iDLG, as published", "DLG, as published"
PAPERS = {"mnist": 100, "cifar100": 50, "lfw": 10}  # LFW: 5,749 classes make them slow
FIGURES = Path(__file__).parent / "figures"
_HEADER = (
    "| data set | method | labels right | MSE < 1e-4 | MSE < 1e-3 | median MSE | median seconds | "
    "median evaluations | won by |\n|---|---|---|---|---|---|---|---|---|"
)


@dataclass(frozen=True)
class Outcome:
    """What one method made of one problem."""

    data: str
    index: int
    method: str
    label_right: bool
    mse: float
    seconds: float  # to the verdict, without the set-up
    evaluations: int
    won: str = ""  # attack whose picture the report shows
    certainty: str = ""  # of the finding about the picture
    verdict: str = ""
    set_up: float = 0.0  # seconds


def gradaudit(sent: Sent, seed: int) -> Outcome:
    """The default audit, told neither label nor batch size; the claim is that of its report."""
    result, seconds, set_up = timed_audit(sent, seed=seed)
    evidence = result.evidence
    claims = [e.recovery.labels for e in evidence if e.recovery.labels is not None]
    guess = claims[0].estimate if claims else None
    best = best_evidence(evidence)
    mse = math.inf
    if best is not None:
        mse = max(mean_squared_errors(best_pixels(result.problem, best), sent.images))
    won = best.attack if best is not None else "none"
    told = [f.certainty for f in result.audit.findings if f.attack == won]
    return Outcome(
        data="",
        index=0,
        method=OURS,
        label_right=guess is not None and guess.tolist() == sent.labels.tolist(),
        mse=mse,
        seconds=seconds,
        evaluations=sum(e.recovery.evaluations for e in evidence),
        won=won,
        certainty=told[0] if told else "",
        verdict=result.audit.verdict.status,
        set_up=set_up,
    )


def idlg(sent: Sent, seed: int) -> Outcome:
    """The label from the head's weight gradient, then the picture."""
    return _papers(sent, seed, IDLG)


def dlg(sent: Sent, seed: int) -> Outcome:
    """Picture and label logits together."""
    return _papers(sent, seed, DLG)


def _papers(sent: Sent, seed: int, method: str) -> Outcome:
    claim = published(sent, seed, joint=method == DLG)
    return Outcome(
        data="",
        index=0,
        method=method,
        label_right=claim.labels.tolist() == sent.labels.tolist(),
        mse=max(mean_squared_errors(claim.images, sent.images)),
        seconds=claim.seconds,
        evaluations=claim.evaluations,
    )


METHODS: tuple[tuple[str, Callable[[Sent, int], Outcome]], ...] = (
    (OURS, gradaudit),
    (IDLG, idlg),
    (DLG, dlg),
)


def run(path: Path, name: str, count: int, papers: int, log: Path) -> None:
    """All methods on one data set; what the log holds already is not run again."""
    done = {(o.data, o.index, o.method) for o in read([log])}
    data = pictures(path, count)
    for index in range(len(data.images)):
        sent = lenet_step(data, slice(index, index + 1), seed=index)
        for method, attack in METHODS:
            if (name, index, method) in done or (method != OURS and index >= papers):
                continue
            outcome = replace(attack(sent, 1000 + index), data=name, index=index)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
            print(
                f"{name} {index} {method}: MSE {outcome.mse:.1e}, {outcome.seconds:.2f} s, "
                f"{outcome.evaluations} evaluations {outcome.won} {outcome.certainty}",
                flush=True,
            )


def _records(files: list[Path]) -> list[dict[str, Any]]:
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def read(files: list[Path]) -> list[Outcome]:
    """All outcomes of some logs, in the order of the runs."""
    return [Outcome(**record) for record in _records(files) if "method" in record]


def table_row(name: str, method: str, outcomes: list[Outcome]) -> str:
    """One line of the Markdown table."""
    count = len(outcomes)
    won = Counter(o.won for o in outcomes if o.won)
    return (
        f"| {name} | {method} | {sum(o.label_right for o in outcomes)}/{count} | "
        f"{sum(o.mse < 1e-4 for o in outcomes)}/{count} | "
        f"{sum(o.mse < 1e-3 for o in outcomes)}/{count} | "
        f"{statistics.median(o.mse for o in outcomes):.1e} | "
        f"{statistics.median(o.seconds for o in outcomes):.2f} | "
        f"{statistics.median(o.evaluations for o in outcomes):.0f} | "
        f"{', '.join(f'{attack} {times}' for attack, times in won.most_common())} |"
    )


def ratio_line(name: str, outcomes: list[Outcome]) -> str | None:
    """Our median seconds over those of the papers' iDLG, on the problems that both ran."""
    ours, theirs = (
        {o.index: o.seconds for o in outcomes if o.method == method} for method in (OURS, IDLG)
    )
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    mine, papers = (statistics.median(side[i] for i in shared) for side in (ours, theirs))
    return (
        f"- {name}, the {len(shared)} shared problems: gradaudit {mine:.3f} s, iDLG {papers:.2f} s "
        f"(medians); ratio {mine / papers:.4f}, 1/{papers / mine:.1f}"
    )


def report(files: list[Path], figures: Path) -> None:
    """The table, the ratios and the figure of some logs."""
    for record in _records(files):
        if "environment" in record:
            print(record["environment"])
    outcomes = read(files)
    names = list(dict.fromkeys(o.data for o in outcomes))
    print(f"\n{_HEADER}")
    for name in names:
        for method in (DLG, IDLG, OURS):
            mine = [o for o in outcomes if (o.data, o.method) == (name, method)]
            if mine:
                print(table_row(name, method, mine))
    print("\nSeconds to the verdict, set-up of the problem excluded on both sides:\n")
    for name in names:
        line = ratio_line(name, [o for o in outcomes if o.data == name])
        if line is not None:
            print(line)
    ours = [o for o in outcomes if o.method == OURS]
    for field in ("verdict", "certainty"):
        counts = Counter(getattr(o, field) or "none" for o in ours)
        print(f"- gradaudit's {field}: {', '.join(f'{k} {v}' for k, v in counts.most_common())}")
    figures.mkdir(parents=True, exist_ok=True)
    for name in names:
        curves = {
            method: [o.mse for o in outcomes if (o.data, o.method) == (name, method)]
            for method in (DLG, IDLG, OURS)
        }
        target = figures / f"papers-{name}.svg"
        target.write_text(threshold_figure(name, curves), encoding="utf-8")
        print(f"- figure: {target.name}")


def _shares(text: str) -> dict[str, int]:
    pairs = (part.partition("=") for part in text.split(",") if part)
    return {**PAPERS, **{name: int(count) for name, _, count in pairs}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--papers", type=_shares, default=PAPERS)
    parser.add_argument("--datasets", default="mnist,cifar100,lfw")
    parser.add_argument("--out", type=Path, default=Path("papers-run"))
    parser.add_argument("--figures", type=Path, default=FIGURES, help="folder for the SVG files")
    parser.add_argument("--resume", action="store_true", help="go on with OUT/papers.jsonl")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE.jsonl")
    options = parser.parse_args()
    if options.table:
        report(options.table, options.figures)
        return
    if options.data is None:
        parser.error("say --data DIR for a run, or --table FILE.jsonl for the table of one")
    log: Path = options.out / "papers.jsonl"
    if log.exists() and not options.resume:
        parser.error(f"{log} is there already: say --resume, or another --out")
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"environment": environment()}) + "\n")
    warm_up()
    for name in options.datasets.split(","):
        papers = options.papers.get(name, options.n)
        run(options.data / f"{name}.npz", name, options.n, papers, log)
    report([log], options.figures)


if __name__ == "__main__":
    main()
