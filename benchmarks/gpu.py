"""Problems a second: the batched layer-by-layer solver against the papers' loop on the same device.

    python benchmarks/gpu.py [--data FILE.npz] [--device auto] [--rows 1,4,16,64,256,1024,4096]
        [--papers 3] [--tolerance 1e-7]

Rows are float32 gradients of different pictures and labels on one papers' LeNet (3x32x32, 100
classes), one sample each. Ours reads the anchor of all rows and solves each layer for all rows at
once, in double precision; making the gradients and recording the network are not in the seconds.
The papers' iDLG (common.py) runs on one problem at a time, in single precision as published.
Without --data the pictures are random soft spots. Runs on the CPU where there is no CUDA device,
with fewer rows unless told otherwise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import (
    Pictures,
    Sent,
    decibels,
    environment,
    mean_squared_errors,
    pictures,
    published,
    smooth_pictures,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from auditor.graph import record
from auditor.inversion.anchor import read_anchor
from auditor.inversion.constraints import Bounds
from auditor.inversion.layers import Broken, Chain, chain_of
from auditor.inversion.link_solver import Settings
from auditor.inversion.walk import walk
from auditor.zoo import LeNet, uniform_weights

CLASSES, SHAPE = 100, (3, 32, 32)
PRECISION = 2.0**-23  # of a float32 dump
GOOD = 1e-3
_CHUNK = 64
_LEAST_SECONDS = 2.0  # a measurement is repeated for so long, and its median kept
_ROWS = {"cuda": "1,4,16,64,256,1024,4096", "cpu": "1,4,16,64"}


def problems(path: Path | None, count: int) -> Pictures:
    """Different problems: pictures again and again, each time with other labels."""
    if path is None:
        images = smooth_pictures(count, 3, 32, seed=0)
        return Pictures(images, torch.arange(count) % CLASSES, CLASSES)
    found = pictures(path, count)
    places = torch.arange(count)
    turns = places // len(found.images)
    places = places % len(found.images)
    labels = (found.labels[places] + 7 * turns) % CLASSES
    return Pictures(found.images[places], labels, CLASSES)


def gradients(model: nn.Module, data: Pictures, device: torch.device) -> dict[str, Tensor]:
    """The float32 gradient of each picture alone, (B, *parameter), as doubles."""
    fixed = {name: value.detach() for name, value in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, parameters, (image[None],))
        return F.cross_entropy(logits, label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=_CHUNK)
    found: dict[str, Tensor] = each(fixed, data.images.to(device), data.labels.to(device))
    return {name: value.double() for name, value in found.items()}


def chain_for(model: nn.Module, sent: dict[str, Tensor]) -> Chain:
    """The layers of the network, recorded once for all rows."""
    probe = next(iter(model.parameters())).new_zeros(1, *SHAPE) + 0.5
    found = chain_of(record(model, probe)[1], sent)
    if isinstance(found, Broken):
        raise SystemExit(f"no chain of layers: {found.reason}")
    return found


def _no_labels(logits: Tensor) -> Tensor:
    raise AssertionError(f"the head has a bias: nobody asks for logits {tuple(logits.shape)}")


def solve(chain: Chain, sent: dict[str, Tensor], tolerance: float) -> Tensor:
    """All rows at once, (B, *SHAPE)."""
    settings = Settings(PRECISION, tolerance=tolerance, repeated=False)
    with torch.no_grad():
        anchored = read_anchor(chain, sent, _no_labels)
        found = walk(
            chain,
            sent,
            anchored,
            precision=PRECISION,
            bounds=Bounds(0.0, 1.0),
            settings=settings,
        )
    if found.inputs is None:
        raise SystemExit(f"a layer hid its input: {found.links[-1]}")
    return found.inputs.view(-1, *SHAPE).clamp(0, 1)


def timed(work: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    """The answer, and median seconds of a call; the first call is not counted."""
    answer = work()
    spent: list[float] = []
    while sum(spent) < _LEAST_SECONDS:
        _wait(device)
        begun = time.perf_counter()
        answer = work()
        _wait(device)
        spent.append(time.perf_counter() - begun)
    return answer, statistics.median(spent)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ours(options: argparse.Namespace, device: torch.device) -> None:
    """A line for each number of rows."""
    model = uniform_weights(LeNet(3, 32, CLASSES), seed=0).to(device)
    double = uniform_weights(LeNet(3, 32, CLASSES), seed=0).to(device).double()
    counts = [int(part) for part in (options.rows or _ROWS[device.type]).split(",")]
    print(
        "| rows | seconds | problems a second | ms a problem | MSE < 1e-3 | median PSNR, dB | "
        "worst PSNR, dB | peak GPU memory, MB |\n|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for count in counts:
        data = problems(options.data, count)
        sent = gradients(model, data, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        chain = chain_for(double, sent)
        found, seconds = timed(lambda c=chain, s=sent: solve(c, s, options.tolerance), device)  # type: ignore[misc]
        errors = (found.cpu() - data.images.double()).square().flatten(1).mean(1).tolist()
        peak = "-"
        if device.type == "cuda":
            peak = f"{torch.cuda.max_memory_allocated(device) / 2**20:.0f}"
        print(
            f"| {count} | {seconds:.3f} | {count / seconds:.2f} | {1000 * seconds / count:.1f} | "
            f"{sum(e < GOOD for e in errors)}/{count} | "
            f"{decibels(statistics.median(errors)):.0f} | {decibels(max(errors)):.0f} | {peak} |",
            flush=True,
        )


def papers(options: argparse.Namespace, device: torch.device) -> None:
    """The papers' iDLG, one problem after the other."""
    model = uniform_weights(LeNet(3, 32, CLASSES), seed=0).to(device)
    data = problems(options.data, options.papers)
    names = [name for name, _ in model.named_parameters()]
    seconds, errors = [], []
    for index in range(options.papers):
        rows = slice(index, index + 1)
        images, labels = data.images[rows].to(device), data.labels[rows].to(device)
        loss = F.cross_entropy(model(images), labels)
        parts = torch.autograd.grad(loss, list(model.parameters()))
        sent = Sent(model, images, labels, dict(zip(names, parts, strict=True)))
        if index == 0:  # what torch loads at the first call is not counted
            published(sent, 0, joint=False, limit=0.0)
        _wait(device)
        claim = published(sent, 1000 + index, joint=False)
        seconds.append(claim.seconds)
        errors.extend(mean_squared_errors(claim.images, images))
    print(
        f"\niDLG as published, one problem at a time, {options.papers} problems: median "
        f"{statistics.median(seconds):.2f} s a problem, {len(seconds) / sum(seconds):.4f} problems "
        f"a second, MSE < 1e-3 in {sum(e < GOOD for e in errors)}/{len(errors)}"
    )


def describe(device: torch.device) -> str:
    """The device's name and the versions that matter."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        return f"{name}, CUDA {torch.version.cuda}, cuDNN {cudnn}"
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--rows", help="comma-separated; at most 4096 by default, 64 on the CPU")
    parser.add_argument("--papers", type=int, default=3)
    parser.add_argument("--tolerance", type=float, default=1e-7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    there = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(there if options.device == "auto" else options.device)
    print(f"{environment(describe(device))}\n", flush=True)
    ours(options, device)
    if options.papers:
        papers(options, device)


if __name__ == "__main__":
    main()
