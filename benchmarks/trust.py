"""How far an audit's own word can be trusted: controls, graded leaks, and the parts beside them.

    python benchmarks/trust.py --data cifar10.npz --mnist mnist.npz [--checkpoint FILE.th]
        [--part controls|leaks|detection|bounds|curve|tables|all] [--controls 200] [--leaks 200]
        [--seconds 15] [--resume FILE.jsonl] [--shard 0/2] [--figure FILE.svg]

The files hold `images` (uint8, NHW or NHWC), `labels` and `num_classes`; the checkpoint is the
published ResNet-20 for CIFAR-10. Each row is a full audit with `--fail-on high` and a budget of so
many seconds of the processor, one thread, without truth. The networks: the papers' LeNet at 16x16,
an MLP with ReLU at 28x28, the ResNet-20 at 32x32; batches of 1, 2, 4 and 8.

Controls leak nothing: pure noise of each tensor's norm, noise of 100 times the gradient's size, the
dump of a model with other weights, shuffled entries. (An MLP's first layer gives inputs away under
any weights; such findings are counted as true.) Leaks: the dump as sent, noise of sigma 1e-5 to
1e-1, and 50, 90 and 99 % of the entries pruned. After an audit of a leak its claims are compared
with the pictures: *true* is the PSNR of the worst-protected sample, over all claims.

Finished rows are appended to FILE.jsonl, and an interrupted run goes on from there; two processes
with --shard 0/2 and 1/2 and the same file share the work. `tables` prints what the file holds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from unittest import mock

import torch
from common import environment
from torch import Tensor
from trust_cases import Made, Sources, Task, make, tasks
from trust_figure import agreement_figure
from trust_tables import control_tables, leak_tables

from auditor.audit import Result, run_audit
from auditor.evidence import best_pixels, is_equal
from auditor.metrics import match_batch, psnr
from auditor.options import make_options
from auditor.problem import to_pixels
from auditor.records import Evidence, Problem

_ELSEWHERE = {
    "detection": "trust_detection.py",
    "bounds": "trust_bounds.py",
    "curve": "trust_curve.py",
}


# Attack, relative residual, true dB, whether a prior chose, whether the residual is at the floor.
Claim = tuple[str, float, float, bool, bool]


@dataclass(frozen=True)
class Row:
    """One audit, without anything that it recovered."""

    part: str
    index: int
    network: str
    batch: int
    kind: str
    strength: float
    seconds: float  # of the processor
    status: str
    score: float
    band: str
    exit_code: int  # under --fail-on high
    findings: list[tuple[str, str, float, str]]  # code, certainty, score, attack
    caveats: list[str]
    belongs: str
    fidelity: float | None  # dB, the audit's own
    true: float | None  # dB, worst-protected sample, over all claims; None: no claim
    claims: list[Claim]
    controls: int  # negative controls that were run, and that claimed as much
    recovered: int

    @property
    def key(self) -> tuple[str, int]:
        return self.part, self.index


def audited(task: Task, made: Made, seconds: float) -> Row:
    """Audit without truth, then compare what was claimed with the client's pictures."""
    options = make_options(seed=task.index, device="cpu", budget=seconds)
    with mock.patch.object(time, "monotonic", time.process_time):
        begun = time.process_time()
        result = run_audit(made.case, options, fail_on="high")
        spent = time.process_time() - begun
    audit, claims = result.audit, _claims(result, made.truth)
    control = audit.trust.control
    return Row(
        part=task.part,
        index=task.index,
        network=task.network,
        batch=task.batch,
        kind=task.kind,
        strength=task.strength,
        seconds=round(spent, 2),
        status=audit.verdict.status,
        score=audit.verdict.severity.score,
        band=audit.verdict.severity.band,
        exit_code=audit.gate.exit_code,
        findings=[(f.code, f.certainty, f.severity.score, f.attack) for f in audit.findings],
        caveats=[caveat.code for caveat in audit.caveats if caveat.voids],
        belongs=audit.trust.belongs,
        fidelity=audit.trust.fidelity,
        true=max((claim[2] for claim in claims), default=None),
        claims=claims,
        controls=0 if control is None else control.controls,
        recovered=0 if control is None else control.recovered,
    )


def _claims(result: Result, truth: Tensor) -> list[Claim]:
    """Everything that was claimed, beside the client's pictures."""
    found: list[Claim] = []
    for evidence in result.evidence:
        guided = evidence.recovery.guided
        if evidence.best is not None:
            pixels = best_pixels(result.problem, evidence).double()
            near = psnr(pixels, truth[match_batch(pixels, truth)].double())
            residual, floor = evidence.residuals[evidence.best], is_equal(result.problem, evidence)
            true = float(near.clamp_max(200.0).max())
            found.append((evidence.attack, residual, true, guided, floor))
        elif any(evidence.samples):
            true = _single(result.problem, evidence, truth)
            found.append((evidence.attack, 0.0, true, guided, True))
    return found


def _single(problem: Problem, evidence: Evidence, truth: Tensor) -> float:
    """PSNR of the single input that is nearest to any picture of the client."""
    assert evidence.recovery.samples is not None
    pixels = to_pixels(problem, evidence.recovery.samples).double().cpu()
    near = [psnr(one.expand_as(truth), truth.double()).max() for one in pixels]
    return float(torch.stack(near).max().clamp_max(200.0))


def read_rows(path: Path | None) -> list[Row]:
    """Finished rows, first of each task; half a line at the end is one that was cut off."""
    if path is None or not path.exists():
        return []
    names = {field.name for field in fields(Row)}
    found: dict[tuple[str, int], Row] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            held = json.loads(line)
        except json.JSONDecodeError:
            continue
        row = Row(**{name: held[name] for name in names})
        found.setdefault(row.key, row)
    return list(found.values())


def run(every: Iterable[Task], sources: Sources, options: argparse.Namespace) -> list[Row]:
    """The tasks that are not in the file yet, of this shard."""
    rows = read_rows(options.resume)
    done = {row.key for row in rows}
    mine, of = (int(part) for part in options.shard.split("/"))
    for task in every:
        if task.key in done or task.index % of != mine:
            continue
        row = audited(task, make(task, sources), options.seconds)
        rows.append(row)
        print(
            f"{task.part} {task.index}: {task.network}, batch {task.batch}, {task.kind} "
            f"{task.strength:g}: {row.status} {row.score}, {row.seconds:.1f} s",
            file=sys.stderr,
            flush=True,
        )
        if options.resume is not None:
            with options.resume.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
    return rows if options.resume is None else read_rows(options.resume)


def show(rows: list[Row], figure: Path | None) -> None:
    """The tables, and the figure where one is asked for."""
    controls = [row for row in rows if row.part == "controls"]
    leaks = [row for row in rows if row.part == "leaks"]
    print(f"{environment()}\n")
    if controls:
        print(control_tables(controls))
    if leaks:
        print(leak_tables(leaks))
    pairs = [(r.fidelity, r.true) for r in leaks if r.fidelity is not None and r.true is not None]
    if figure is not None and pairs:
        figure.write_text(agreement_figure(pairs), encoding="utf-8")


def _elsewhere(part: str, options: argparse.Namespace) -> None:
    script = Path(__file__).with_name(_ELSEWHERE[part])
    command = [sys.executable, str(script), "--data", str(options.data)]
    if part == "detection" and options.checkpoint is not None:
        command += ["--checkpoint", str(options.checkpoint)]
    subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parts = ["controls", "leaks", *_ELSEWHERE, "tables", "all"]
    parser.add_argument("--part", choices=parts, default="all")
    parser.add_argument("--controls", type=int, default=200)
    parser.add_argument("--leaks", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sources = Sources(options.data, options.mnist, options.checkpoint)
    every: list[Task] = []
    for part, count in (("controls", options.controls), ("leaks", options.leaks)):
        if options.part in (part, "all"):
            every += tasks(part, count, trained=options.checkpoint is not None)
    if every or options.part == "tables":
        show(run(every, sources, options), options.figure)
    for part in _ELSEWHERE:
        if options.part in (part, "all"):
            _elsewhere(part, options)


if __name__ == "__main__":
    main()
