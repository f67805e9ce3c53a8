"""gradaudit's search with priors beside `breaching`'s Inverting Gradients, on the same dumps.

    python benchmarks/peers.py --data FILE.npz --checkpoint FILE.th [--breaching-python PATH]
        [--pictures 0,1,2] [--seconds 15,30,60,90] [--out DIR] [--figures DIR]
    python benchmarks/peers.py --table FILE.jsonl [FILE.jsonl ...]

FILE.npz holds `images` (uint8, NHWC), `labels` and `num_classes`; FILE.th the published ResNet-20
for CIFAR-10 (a `state_dict` with the prefix `module.`). One picture, evaluation mode, float32
gradient. Both sides know the label, the mean and the std; `breaching` (0.1.2) runs its own
settings of the attack, with the number of iterations that fits the time. Without
--breaching-python an environment is made in OUT/breaching.

Each picture and each budget is a run of its own, both sides in turns, one thread each. Seconds are
those of the processor, so that other work on the machine counts for neither. PSNR of pixels 0..1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from common import Sent, decibels, environment, pictures, problem_for, send
from peers_figure import course_figure
from torch import Tensor

from auditor.attacks import Deconvolution, ImagePriors, Watch
from auditor.problem import to_pixels
from auditor.records import Problem
from auditor.zoo import CifarResNet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OURS, THEIRS = "gradaudit, images.deconvolution", "breaching 0.1.2, Inverting Gradients"
_WORKER = Path(__file__).with_name("peers_breaching.py")


@dataclass(frozen=True)
class Outcome:
    """What one side made of one picture in one budget."""

    index: int
    method: str
    budget: float  # seconds of the processor
    seconds: float
    evaluations: int
    psnr: float  # dB
    loss: float  # of the picture: how sure the network is


def published(path: Path) -> CifarResNet:
    """The checkpoint's network in evaluation mode."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model = CifarResNet(3)
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model.eval()


def normalised(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) pixels 0..1 in model units."""
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def problem_of(sent: Sent) -> Problem:
    """What the attack gets: mean and std are told, as they are to the other side."""
    problem = problem_for(sent)
    return replace(problem, knowledge=replace(problem.knowledge, mean=MEAN, std=STD))


def ours(sent: Sent, seconds: float, seed: int) -> tuple[Tensor, float, int]:
    """Pixels of the first reading of images.deconvolution; where it finds no layer to read, of the
    claim of images.priors whose gradient points nearest to the dump.
    """
    problem = problem_of(sent)
    # The attack plans by the wall clock; here the processor's takes its place.
    with mock.patch.object(time, "monotonic", time.process_time):
        begun = time.process_time()
        watch = Watch(deadline=begun + seconds)
        found = Deconvolution().run(problem, seed=seed, watch=watch)
        if found.inputs is None:
            found = ImagePriors().run(problem, seed=seed, watch=watch)
        spent = time.process_time() - begun
    assert found.inputs is not None
    return to_pixels(problem, found.inputs[0]), spent, found.evaluations


def theirs(
    sent: Sent, seconds: float, seed: int, python: Path, folder: Path
) -> tuple[Tensor, float, int]:
    """The other side's pixels, by its own Python."""
    asked, told = folder / "task.pt", folder / "answer.pt"
    task = {
        "state": sent.model.state_dict(),
        "gradients": list(sent.gradient.values()),
        "label": sent.labels,
        "mean": MEAN,
        "std": STD,
        "seconds": seconds,
        "seed": seed,
    }
    torch.save(task, asked)
    subprocess.run([str(python), str(_WORKER), str(asked), str(told)], check=True)
    answer = torch.load(told, weights_only=True)
    pixels = to_pixels(problem_of(sent), answer["picture"])
    return pixels, answer["seconds"], answer["iterations"]


def breaching_python(folder: Path) -> Path:
    """An environment with `breaching`, made when it is not there."""
    place = folder / "breaching"
    python = place / "bin" / "python"
    if not python.exists():
        venv.create(place, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "breaching==0.1.2"], check=True)
    return python


def run(
    data: Path,
    checkpoint: Path,
    indices: Sequence[int],
    budgets: Sequence[float],
    log: Path,
    python: Path,
) -> None:
    """Both sides on each picture; what the log holds already is not run again."""
    done = {(o.index, o.method, o.budget) for o in read([log])}
    every, model = pictures(data, max(indices) + 1), published(checkpoint)
    for budget in budgets:
        for index in indices:
            true = every.images[index : index + 1]
            sent = send(model, normalised(true), every.labels[index : index + 1])
            loss = float(
                torch.nn.functional.cross_entropy(model(sent.images), sent.labels).detach()
            )
            for method in (OURS, THEIRS):
                if (index, method, budget) in done:
                    continue
                if method == OURS:
                    found, spent, evaluations = ours(sent, budget, index)
                else:
                    found, spent, evaluations = theirs(sent, budget, index, python, log.parent)
                error = float((found - true).square().mean())
                outcome = Outcome(index, method, budget, spent, evaluations, decibels(error), loss)
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(outcome)) + "\n")
                print(
                    f"{index} {method} {budget:g} s: {outcome.psnr:.2f} dB, {spent:.0f} s, "
                    f"{evaluations} evaluations",
                    flush=True,
                )


def read(files: Sequence[Path]) -> list[Outcome]:
    """All outcomes of some logs, in the order of the runs."""
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    return [Outcome(**json.loads(line)) for line in lines]


def table(outcomes: Sequence[Outcome]) -> str:
    """Mean PSNR by budget, over the pictures that both sides finished."""
    rows = [
        "| processor seconds | pictures | gradaudit, mean dB | breaching, mean dB | difference |"
        " nearer to the truth | evaluations, ours and theirs |\n|---|---|---|---|---|---|---|"
    ]
    for budget, pairs in paired(outcomes).items():
        mine, other = [a.psnr for a, _ in pairs], [b.psnr for _, b in pairs]
        better = sum(a > b for a, b in zip(mine, other, strict=True))
        counts = [
            statistics.median(o.evaluations for o in side) for side in zip(*pairs, strict=True)
        ]
        rows.append(
            f"| {budget:g} | {len(pairs)} | {statistics.mean(mine):.2f} | "
            f"{statistics.mean(other):.2f} | "
            f"{statistics.mean(mine) - statistics.mean(other):+.2f} | {better}/{len(pairs)} | "
            f"{counts[0]:.0f}, {counts[1]:.0f} |"
        )
    return "\n".join(rows)


def paired(outcomes: Sequence[Outcome]) -> dict[float, list[tuple[Outcome, Outcome]]]:
    """(ours, theirs) of each picture that both sides finished, by budget."""
    by_key = {(o.budget, o.index, o.method): o for o in outcomes}
    found: dict[float, list[tuple[Outcome, Outcome]]] = {}
    for budget, index, method in sorted(by_key):
        other = by_key.get((budget, index, THEIRS))
        if method == OURS and other is not None:
            found.setdefault(budget, []).append((by_key[budget, index, OURS], other))
    return found


def figure(outcomes: Sequence[Outcome]) -> str:
    """Mean PSNR against seconds, both sides, as SVG."""
    courses: dict[str, list[tuple[float, float]]] = {THEIRS: [], OURS: []}
    for budget, pairs in paired(outcomes).items():
        courses[OURS].append((budget, statistics.mean(a.psnr for a, _ in pairs)))
        courses[THEIRS].append((budget, statistics.mean(b.psnr for _, b in pairs)))
    return course_figure("One CIFAR-10 picture, ResNet-20", courses)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--breaching-python", type=Path)
    parser.add_argument("--pictures", default="0,1,2,4,8,10,12,13,14,18")
    parser.add_argument("--seconds", default="15,30,60,90")
    parser.add_argument("--out", type=Path, default=Path("peers"))
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--table", type=Path, nargs="+")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logs = given.table or [given.out / "peers.jsonl"]
    if not given.table:
        if given.data is None or given.checkpoint is None:
            parser.error("--data and --checkpoint are needed, or --table")
        given.out.mkdir(parents=True, exist_ok=True)
        python = given.breaching_python or breaching_python(given.out)
        indices = [int(part) for part in given.pictures.split(",")]
        budgets = [float(part) for part in given.seconds.split(",")]
        run(given.data, given.checkpoint, indices, budgets, logs[0], python)
    outcomes = read(logs)
    print(environment())
    print(table(outcomes))
    if given.figures is not None:
        given.figures.mkdir(parents=True, exist_ok=True)
        (given.figures / "peers.svg").write_text(figure(outcomes), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
