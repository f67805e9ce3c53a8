"""Pictures read layer by layer, for tests: networks, clients, and what a proof has to keep."""

import torch
from problems import (
    WATCH,
    Client,
    batch,
)
from torch import nn

from auditor.attacks.layers import LayerByLayer
from auditor.evidence import examine, is_proved
from auditor.metrics import psnr
from auditor.problem import to_pixels
from auditor.records import Failed

ATTACK = LayerByLayer()


def read(problem, seed=0, watch=WATCH):
    """The claim and its evidence."""
    assert ATTACK.blocked_by(problem) is None
    recovery = ATTACK.run(problem, seed=seed, watch=watch)
    return recovery, examine(problem, recovery, attack=ATTACK.name, seconds=0.0)


def proves(problem, evidence):
    """Whether the evidence proves a picture; a failure does not."""
    return not isinstance(evidence, Failed) and is_proved(problem, evidence)


def decibels(client, problem, recovery):
    """Of the dump's own reading, against the truth; the worst sample of the batch."""
    found = to_pixels(problem, recovery.inputs[0].double())
    truth = to_pixels(problem, client.inputs.double())
    return float(psnr(found.expand_as(truth), truth).min())


def assert_right(client, problem=None, *, least=60.0, seed=0):
    """Read, proved, and right."""
    problem = client.problem() if problem is None else problem
    recovery, evidence = read(problem, seed)
    assert all(link.solved for link in recovery.links), recovery.links
    assert proves(problem, evidence), (evidence.worst_residuals, evidence.agreement)
    assert decibels(client, problem, recovery) > least


def assert_no_false_proof(client, problem=None, *, proof=None, seed=0):
    """Whatever is proved is right to 50 dB; `proof` tells whether something has to be proved."""
    problem = client.problem() if problem is None else problem
    if ATTACK.blocked_by(problem) is not None:
        assert not proof
        return
    recovery, evidence = read(problem, seed)
    proved = proves(problem, evidence)
    assert proof is None or proved == proof, f"proved: {proved}, should be {proof}"
    if proved:
        right = decibels(client, problem, recovery)
        assert right > 50, f"proved, and wrong: {right:.1f} dB"


def made(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


class Written(nn.Module):
    """Modules by name, and a forward function of (self, x)."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def convolved(activation=nn.Sigmoid, *, size=8, classes=5, channels=1, bias=True, width=12):
    """One convolution and a head."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1), activation(), nn.Flatten(),
        nn.Linear(width * size**2, classes, bias=bias),
    )  # fmt: skip


def deep(activation, *, channels=1, size=8, classes=5, head_bias=True):
    """The papers' LeNet with another activation."""
    side = (size + 3) // 4
    return nn.Sequential(
        nn.Conv2d(channels, 12, 5, padding=2, stride=2), activation(),
        nn.Conv2d(12, 12, 5, padding=2, stride=2), activation(),
        nn.Conv2d(12, 12, 5, padding=2), activation(),
        nn.Flatten(), nn.Linear(12 * side**2, classes, bias=head_bias),
    )  # fmt: skip


def perceptron(activation=nn.Sigmoid, *, bias=True, pixels=64, hidden=32, classes=5):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, hidden, bias=bias), activation(),
        nn.Linear(hidden, hidden, bias=bias), activation(), nn.Linear(hidden, classes, bias=bias),
    )  # fmt: skip


def client_of(make, *, shape=(1, 8, 8), classes=5, seed=0, **more):
    return Client(made(make, seed), *batch(1, classes, seed=seed, shape=shape), **more)


def of_a_picture(change):
    """A forward that changes the picture first."""

    def make():
        head = nn.Linear(12 * 64, 5)
        return Written(
            lambda m, x: m.head(torch.sigmoid(m.a(change(x))).flatten(1)),
            a=nn.Conv2d(1, 12, 3, padding=1), head=head,
        )  # fmt: skip

    return make
