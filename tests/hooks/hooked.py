"""What the tests of the hooks share: a snippet as it is printed, run; and an audit of its dump."""

import json
import warnings

import pytest
import torch
from runs import gradaudit, pictures, small_net
from torch.nn import functional as F

from auditor.hooks import snippet

LABEL = 3
# A factory that `--arch` runs: the network of `small_net`, its weights from the file.
NET_FILE = """
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Sigmoid(), nn.Linear(12, 5))
"""


def framework(name):
    """The library, or a skip that says how to get it. What it warns of at import is its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"needs {name}: make test-frameworks")


def ran(name):
    """The names that the snippet defines."""
    there = {}
    exec(compile(snippet(name), f"{name}.txt", "exec"), there)
    return there


def gradient_by_hand(net, images, labels):
    """{name: gradient} of the mean cross-entropy, by autograd alone."""
    named = dict(net.named_parameters())
    loss = F.cross_entropy(net(images), labels)
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def scanned(folder, *arguments):
    """The audit that `gradaudit scan` writes of these files, as plain data."""
    run = gradaudit("scan", *arguments, "--out", "report", "--overwrite", cwd=folder)
    assert run.code in {0, 4}, run.err
    return json.loads((folder / "report" / "audit.json").read_text(encoding="utf-8"))


def one_sample():
    """A network, one picture and its label: a dump of these gives away the picture."""
    return small_net(), pictures(), torch.tensor([LABEL])


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-8)


def leaks_the_picture(audit):
    return (audit["verdict"]["status"], audit["verdict"]["severity"]["band"]) == (
        "leak",
        "critical",
    )
