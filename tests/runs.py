"""`gradaudit` run in this process, and small files for it."""

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

from auditor import capture
from auditor.cli import main

CLASSES = 5
LABEL = 3
# Nothing that the surroundings say: no pipeline, no colours, a terminal of 80 columns. One thread:
# processes of tests are short, and stand beside others.
PLAIN = {name: value for name, value in os.environ.items() if name not in {"CI", "FORCE_COLOR"}}
PLAIN |= {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Run:
    """What a process would have left behind."""

    code: object
    out: str
    err: str


def gradaudit(*arguments, cwd, env=()):
    """Run the command line in `cwd` with PLAIN and `env` as its environment."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["gradaudit", *map(str, arguments)]),
        mock.patch.dict(os.environ, PLAIN | dict(env), clear=True),
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as leaving:
            return Run(leaving.code, out.getvalue(), err.getvalue())
    raise AssertionError("main() returned and did not exit")


def small_net(seed=0):
    """1x8x8 pictures to five classes, twice differentiable: a second is enough to invert it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Flatten(), nn.Linear(64, 12), nn.Sigmoid(), nn.Linear(12, CLASSES)]
        return nn.Sequential(*layers).eval()


def pictures(count=1, channels=1, side=8):
    """(N, C, S, S), pixels 0..1, always the same."""
    return torch.rand(
        (count, channels, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.float
    )


def write_case(folder, net=None, labels=(LABEL,), **capture_settings):
    """model.pt and grads.safetensors in `folder`: what a client with `pictures` would have sent."""
    net = small_net() if net is None else net
    side = capture_settings.pop("side", 8)
    with capture(net, folder / "grads.safetensors", **capture_settings):
        F.cross_entropy(net(pictures(len(labels), side=side)), torch.tensor(labels)).backward()
    net.zero_grad()
    torch.save(net, folder / "model.pt")
    return net


def contents(folder):
    """Every file below `folder`, with its bytes."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
