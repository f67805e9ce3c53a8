"""Models made to extract data: how many are seen, how many others are suspected, what is read out.

    python benchmarks/planted.py --data FILE.npz [--others 100] [--each 20] [--trials 10]
        [--checkpoint FILE] [--skip-detection] [--skip-reading]

FILE.npz holds `images` (uint8, NHWC or NHW), `labels` and `num_classes`, as cifar10.npz. The first
part, for pictures of 3x32x32, examines planted networks of every family and networks that nobody
planted anything in (plantings.py says which). The second part plants an imprint block or trap
weights, makes the float32 gradient of a batch, and runs the attack images.imprint on it; the
quantiles of the bins come from the last hundred pictures of the file, never from the batch. A
picture is read out when a claim is within 60 dB of it. `--checkpoint` adds a published ResNet-20 to
the networks that should raise nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from common import Pictures, environment, pictures, problem_for, send
from plantings import PLANTED, imprint, ordinary_networks, planted_networks, trap_network
from torch import nn

from auditor import zoo
from auditor.attacks.base import Watch
from auditor.attacks.imprint import Imprint
from auditor.evidence import examine
from auditor.inputs import load_model
from auditor.planted.examination import examine_model
from auditor.records import Failed
from auditor.trace import trace

_CODES = dict(zip(PLANTED, ("GA401", "GA402", "GA403", "GA404"), strict=True))
_EXACT = 60.0


def codes_of(module: nn.Module, shape: tuple[int, ...]) -> set[str]:
    """What the examination says of a network in evaluation mode."""
    module.eval()
    return {seen.code for seen in examine_model(module, shape, trace(module, shape).head)}


def detection(data: Pictures, *, others: int, each: int, checkpoint: Path | None) -> None:
    """Print both rates."""
    print("| networks | number | seen as planted | by another code |\n|---|---|---|---|")
    for family in PLANTED:
        found = [codes_of(m, (3, 32, 32)) for m in planted_networks(family, data, each)]
        right = sum(_CODES[family] in codes for codes in found)
        other = sorted(set.union(*found) - {_CODES[family]})
        print(f"| {family} | {each} | {right} | {', '.join(other) or 'none'} |", flush=True)
    alarms, count, seconds = [], 0, []
    for name, module, channels, side in ordinary_networks(data, others):
        begun = time.perf_counter()
        codes = codes_of(module, (channels, side, side))
        seconds.append(time.perf_counter() - begun)
        alarms += [f"{name}: {', '.join(sorted(codes))}"] * bool(codes)
        count += 1
    if checkpoint is not None:
        loaded = load_model(checkpoint, arch="resnet20").module
        alarms += ["checkpoint"] * bool(codes_of(loaded, (3, 32, 32)))
        count += 1
    print(f"| nothing planted | {count} | {len(alarms)} | {'; '.join(alarms) or 'none'} |")
    print(f"\nSeconds to examine one: median {statistics.median(seconds):.2f}, "
          f"most {max(seconds):.2f}.\n")  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """What became of one batch."""

    right: int  # pictures that a claim is within 60 dB of
    wrong: int  # claims that are no picture
    verified: int  # claims that the harness verified
    levels: tuple[float, ...]  # dB, one a claim
    seconds: float


def read_out(module: nn.Module, data: Pictures, rows: slice) -> Reading:
    """Plant, send, read, check. The seconds are those of the attack."""
    images = data.images[rows]
    problem = problem_for(send(module.eval(), images, data.labels[rows]))
    begun = time.perf_counter()
    blocked = Imprint().blocked_by(problem)
    if blocked is not None:
        raise RuntimeError(blocked)
    recovery = Imprint().run(problem, seed=0, watch=Watch())
    seconds = time.perf_counter() - begun
    if recovery.samples is None:
        return Reading(0, 0, 0, (), seconds)
    evidence = examine(problem, recovery, attack="images.imprint", seconds=seconds)
    verified = 0 if isinstance(evidence, Failed) else evidence.samples.count("verified")
    claims = recovery.samples.double().cpu()
    nearest = (claims[:, None] - images.double()).square().mean((2, 3, 4)).min(1)
    levels = -10 * nearest.values.clamp_min(1e-20).log10()
    exact = levels > _EXACT
    right = len(set(nearest.indices[exact].tolist()))
    return Reading(right, int((~exact).sum()), verified, tuple(levels.tolist()), seconds)


def reading(data: Pictures, trials: int) -> None:
    """Print what is read out of batches."""
    proxy, shape = data.images[-100:], tuple(data.images.shape[1:])
    sizes = f"{shape[0]}x{shape[1]}x{data.classes}"

    def planted(name: str, bins: int, *, random: bool = False) -> Callable[[], nn.Module]:
        return lambda: imprint(zoo.build(f"{name}:{sizes}"), proxy, bins, random=random)

    tasks: list[tuple[str, int, Callable[[], nn.Module]]] = [
        *((f"{bins} bins, mean, {name}", 16, planted(name, bins))
          for name in ("lenet", "resnet20") for bins in (128, 256, 512, 1000)),
        ("512 bins, random direction, resnet20", 16, planted("resnet20", 512, random=True)),
        ("1000 bins, mean, resnet20", 64, planted("resnet20", 1000)),
        ("1000 trap rows, scale 0.97", 16, lambda: trap_network(shape, 1000, 0.97)),
        ("1000 trap rows, scale 0.95", 16, lambda: trap_network(shape, 1000, 0.95)),
    ]  # fmt: skip
    print("| planted | batch | read out, mean (worst batch) | claims that are no picture | "
          "verified by the harness | dB, lowest | seconds |\n"
          "|---|---|---|---|---|---|---|")  # fmt: skip
    for name, size, make in tasks:
        found = []
        for trial in range(trials):
            torch.manual_seed(trial)
            first = trial * size % (len(data.images) - 100 - size)
            found.append(read_out(make(), data, slice(first, first + size)))
        shares = [one.right / size for one in found]
        claims = sum(len(one.levels) for one in found)
        lowest = min((level for one in found for level in one.levels), default=0)
        print(f"| {name} | {size} | {statistics.mean(shares):.1%} ({min(shares):.1%}) | "
              f"{sum(one.wrong for one in found)} | {sum(one.verified for one in found)} of "
              f"{claims} | {lowest:.0f} | "
              f"{statistics.median(one.seconds for one in found):.2f} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--others", type=int, default=100)
    parser.add_argument("--each", type=int, default=20)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--skip-detection", action="store_true")
    parser.add_argument("--skip-reading", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    data = pictures(chosen.data, 500)
    print(f"{environment()}; {chosen.data.stem}\n")
    if not chosen.skip_detection:
        detection(data, others=chosen.others, each=chosen.each, checkpoint=chosen.checkpoint)
    if not chosen.skip_reading:
        reading(data, chosen.trials)


if __name__ == "__main__":
    main()
