"""Seconds and peak memory of the small things and of whole audits, each in its own process.

    python benchmarks/resources.py [--budget 120]

No data needed: a ResNet-50 with random weights and a dump of its size (100 MB) for the labels-only
scan, the papers' LeNet and one random picture for the whole audit, and a ResNet-18 with random
weights at 224x224, where no picture is found, for the audit that its budget ends. Peak memory is
what the operating system accounted to the process. This process imports no torch itself: a child's
peak starts at its parent's size.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from auditor import __version__


@dataclass(frozen=True)
class Usage:
    """What one process took."""

    seconds: float
    megabytes: float
    exit_code: int


def run(*arguments: str, told: Path | None = None) -> Usage:
    """One gradaudit process, as the operating system accounts for it; what it told goes to a file.

    `told`: where its standard error is written; None: nowhere.
    """
    begun = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"}
    with Path(os.devnull if told is None else told).open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "auditor", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=stream,
            env=environment,
        )
        _, status, usage = os.wait4(process.pid, 0)
    return Usage(
        time.perf_counter() - begun, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)
    )


MAKE = """
import sys
from pathlib import Path
import torch, torchvision
from torch.nn import functional as F
from auditor import save_gradients
from auditor.zoo import LeNet, uniform_weights

def write(stem, model, picture):
    loss = F.cross_entropy(model(picture), torch.tensor([7]))
    parts = torch.autograd.grad(loss, list(model.parameters()))
    torch.save(model, stem.with_suffix(".pt"))
    save_gradients(model, parts, stem.with_suffix(".safetensors"), batch_size=1,
                   input_shape=tuple(picture.shape[1:]), mode="eval")

folder = Path(sys.argv[1])
torch.manual_seed(0)
write(folder / "resnet50", torchvision.models.resnet50().eval(), torch.rand(1, 3, 224, 224))
write(folder / "resnet18", torchvision.models.resnet18().eval(), torch.rand(1, 3, 224, 224))
smooth = F.interpolate(torch.rand(1, 3, 6, 6), size=32, mode="bicubic").clamp(0, 1)
write(folder / "lenet", uniform_weights(LeNet(3, 32, 100), seed=0).eval(), smooth)
print(torch.__version__)
"""


def show(what: str, usage: Usage, limit: str = "") -> None:
    print(
        f"| {what} | {usage.seconds:.1f} | {usage.megabytes:.0f} | {usage.exit_code} | {limit} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=120.0, help="seconds, of the ResNet-18")
    budget = parser.parse_args().budget
    print(f"gradaudit {__version__}, CPU, one thread\n")
    print("| process | seconds | peak MB | exit code | limit |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = subprocess.run([sys.executable, "-c", MAKE, name], check=True, capture_output=True)
        show("gradaudit --help (start-up)", run("--help"))
        show("import torch alone", _import_torch())
        show(
            "labels only, ResNet-50, dump of 100 MB",
            run(
                "scan",
                f"{name}/resnet50.pt",
                f"{name}/resnet50.safetensors",
                "--attacks",
                "labels",
                "--out",
                f"{name}/r",
            ),
            "1500 MB",
        )
        show(
            "whole audit, LeNet 3x32x32, 100 classes",
            run("scan", f"{name}/lenet.pt", f"{name}/lenet.safetensors", "--out", f"{name}/l"),
            "1000 MB",
        )
        stem, log = f"{name}/resnet18", folder / "told.txt"
        show(
            f"whole audit, ResNet-18 at 3x224x224, budget of {budget:g} s",
            run(
                *("scan", f"{stem}.pt", f"{stem}.safetensors"),
                *("--budget", f"{budget:g}", "--fail-on", "high", "--out", f"{name}/b"),
                told=log,
            ),
            "8000 MB",
        )
        audit = folder / "l" / "audit.json"
        show(
            "gradaudit render (report alone)",
            run("render", str(audit), "--out", f"{name}/again.html"),
        )
        print(f"\ntorch {made.stdout.decode().strip()}")
        print("\nInside the whole audit of the LeNet, seconds:")
        tell(audit)
        print("\nInside that of the ResNet-18, seconds:")
        tell(folder / "b" / "audit.json")
        steps = [line for line in log.read_text().splitlines() if ": step " in line]
        print(f"- lines of progress: {len(steps)}, the last one: {steps[-1] if steps else 'none'}")


def tell(path: Path) -> None:
    """The verdict and each attack of one audit."""
    audit = json.loads(path.read_text())
    print(f"- {audit['verdict']['status']}: {audit['verdict']['sentence']}")
    for finding in audit["findings"]:
        print(f"- {finding['code']} {finding['certainty']}: {finding['summary']}")
    for attack in audit["attacks"]:
        reason = f"; {attack['reason']}" if attack["outcome"] == "failed" else ""
        print(f"- {attack['name']}: {attack['seconds']:.2f} ({attack['outcome']}{reason})")


def _import_torch() -> Usage:
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", "import torch"])
    _, status, usage = os.wait4(process.pid, 0)
    return Usage(
        time.perf_counter() - begun, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)
    )


if __name__ == "__main__":
    main()
