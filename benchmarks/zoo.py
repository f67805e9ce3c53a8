"""Audits of torchvision's networks as they begin, and whether what is said of them is true.

    python benchmarks/zoo.py --data cifar10.npz [--seconds 20] [--networks resnet18,swin_t]

Networks of the first round: random weights, ten classes, batch norms that have seen nothing. One
picture in evaluation mode and two in training mode, a full audit with mode and batch size told and
a budget of so many seconds, no truth. A network without a linear classifier is refused. Every
finding of pictures is compared with the truth: a *false alarm* is one of 4.0 or more whose nearest
picture is below 15 dB. A caveat that says that model and dump, or the mode, do not belong together
(GA309 to GA311, GA314) is false in every row.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from common import environment, pictures
from torch import Tensor, nn
from torch.nn import functional as F

from auditor.api import case_of
from auditor.audit import Result, run_audit
from auditor.errors import InputError
from auditor.evidence import best_pixels
from auditor.facts import Flags
from auditor.metrics import match_batch, psnr
from auditor.options import make_options
from auditor.records import FileRef, LoadedModel

NETWORKS = (
    "alexnet", "vgg11", "vgg11_bn", "resnet18", "resnet50", "densenet121", "mobilenet_v2",
    "mobilenet_v3_small", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "swin_t",
    "swin_v2_t", "shufflenet_v2_x0_5", "squeezenet1_1", "googlenet", "inception_v3", "mnasnet0_5",
    "regnet_y_400mf", "vit_b_32", "maxvit_t",
)  # fmt: skip
_SIDES = {"inception_v3": 299, "vit_b_32": 224, "maxvit_t": 224}
_SIDE = 64
_FALSE = {"GA309", "GA310", "GA311", "GA314"}
_ALARM, _UNLIKE = 4.0, 15.0  # score, dB


@dataclass(frozen=True)
class Row:
    """One audit."""

    labels: str  # code of the label finding
    score: float  # of the worst finding of pictures, 0: none
    near: float  # dB of the nearest picture over all claims; 0: none
    status: str
    caveats: tuple[str, ...]
    seconds: float

    @property
    def false_alarm(self) -> bool:
        return self.score >= _ALARM and self.near < _UNLIKE


def network(name: str) -> nn.Module:
    """With random weights, the same in every run."""
    more = {"aux_logits": False, "init_weights": False}
    torch.manual_seed(0)
    made: nn.Module = getattr(torchvision.models, name)(
        weights=None, num_classes=10, **(more if name in {"googlenet", "inception_v3"} else {})
    )
    return made


def audited(name: str, images: Tensor, labels: Tensor, mode: str, seconds: float) -> Row:
    """One audit of what a client with these pictures would send."""
    model = network(name).train(mode == "train")
    client = copy.deepcopy(model)
    torch.manual_seed(1)
    parts = torch.autograd.grad(F.cross_entropy(client(images), labels), list(client.parameters()))
    sent = {n: g for (n, _), g in zip(client.named_parameters(), parts, strict=True)}
    flags = Flags(
        input_shape=tuple(images.shape[1:]), batch_size=len(images), mode=mode,  # type: ignore[arg-type]
        reduction="mean", label_smoothing=0.0, mean=(0.0,), std=(1.0,),
    )  # fmt: skip
    case = case_of(LoadedModel(model, FileRef(name, "in memory", 0, "")), sent, flags)
    begun = time.perf_counter()
    result = run_audit(case, make_options(device="cpu", budget=seconds))
    return _row(result, images, time.perf_counter() - begun)


def _row(result: Result, images: Tensor, seconds: float) -> Row:
    near = [0.0]
    for evidence in result.evidence:
        if evidence.best is not None:
            found = best_pixels(result.problem, evidence).double()
            near.append(float(psnr(found, images[match_batch(found, images)].double()).max()))
        elif evidence.recovery.samples is not None:
            near += [
                float(psnr(s.expand_as(images), images).max()) for s in evidence.recovery.samples
            ]
    audit = result.audit
    return Row(
        next((f.code for f in audit.findings if f.code < "GA2"), "-"),
        max((f.severity.score for f in audit.findings if f.code > "GA2"), default=0.0),
        max(near),
        audit.verdict.status,
        tuple(caveat.code for caveat in audit.caveats),
        seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = pictures(options.data, 8)
    columns = "network | pictures, mode | labels | worst of pictures | nearest, dB | verdict"
    print(f"{environment()}, torchvision {torchvision.__version__}\n")
    print(f"| {columns} | caveats | s |\n|{'---|' * 8}", flush=True)
    every: list[Row] = []
    for name in options.networks.split(","):
        side = _SIDES.get(name, _SIDE)
        images = F.interpolate(data.images[:2], size=(side, side), mode="bilinear")
        for count, mode in ((1, "eval"), (2, "train")):
            try:
                row = audited(name, images[:count], data.labels[:count], mode, options.seconds)
            except InputError:
                print(f"| {name} | {count}, {mode} | | | | refused | | |", flush=True)
                continue
            every.append(row)
            print(
                f"| {name} | {count}, {mode} | {row.labels} | {row.score:.1f} | {row.near:.1f} | "
                f"{row.status} | {', '.join(row.caveats)} | {row.seconds:.0f} |",
                flush=True,
            )
    print(
        f"\n{len(every)} audits: {sum(row.false_alarm for row in every)} false alarms, "
        f"{sum(bool(_FALSE & {*row.caveats}) for row in every)} with a false caveat, "
        f"{sum(row.labels == 'GA101' for row in every)} with all labels proved."
    )


if __name__ == "__main__":
    main()
