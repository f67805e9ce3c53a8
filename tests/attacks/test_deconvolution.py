"""Pictures of residual networks, read from a convolution that gives its factors away."""

from dataclasses import replace

import pytest
import torch
from problems import WATCH, Client
from residual_nets import Residual, residual_client, used
from torch import nn

from auditor.attacks import Deconvolution
from auditor.attacks.base import Watch
from auditor.evidence import examine, is_proved, is_verified
from auditor.inversion.descent import Steps
from auditor.metrics import psnr

ATTACK = Deconvolution(steps=Steps(rough=100, coarse=200, fine=30))


def read(problem, attack=ATTACK):
    assert attack.blocked_by(problem) is None
    return attack.run(problem, seed=0, watch=WATCH)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_picture_is_read_down_to_the_pixels(seed):
    had = residual_client(seed=seed, dtype=torch.float32)
    problem = had.problem()
    found = read(problem)
    assert found.inputs is not None
    assert float(psnr(found.inputs[0], had.inputs.double())) > 100
    assert found.links[0].status == "factorised"
    assert found.links[-1].layer == "output of picture"
    assert all(0 < link.gap < 1e-3 for link in found.links)  # measured between the two readings
    evidence = examine(problem, found, attack=ATTACK.name, seconds=1.0)
    assert is_proved(problem, evidence)


def test_where_channels_are_few_the_picture_is_searched():
    had = residual_client(low=6, high=24, seed=1)
    problem = had.problem()
    found = read(problem)
    assert found.inputs is not None
    assert float(psnr(found.inputs[0], had.inputs)) > 60
    assert found.links[-1].status == "searched"
    evidence = examine(problem, found, attack=ATTACK.name, seconds=1.0)
    assert is_verified(problem, evidence)
    assert not is_proved(problem, evidence)  # a search leaves open whether there is another answer


def test_it_reads_down_to_max_pooling_and_searches_below():
    problem = residual_client(seed=2, pooled=True).problem()
    found = read(problem, replace(ATTACK, steps=Steps(5, 5, 2)))
    *read_off, searched = found.links
    assert read_off[-1].layer == "output of max_pool2d_with_indices"
    assert all(link.solved and link.residual < 1e-6 for link in read_off)
    assert searched.status == "searched"
    assert not is_proved(problem, examine(problem, found, attack=ATTACK.name, seconds=1.0))


def test_noise_gives_no_claim():
    had = residual_client(dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    noisy = {
        name: sent + 1e-3 * sent.std() * torch.randn(sent.shape, generator=generator)
        for name, sent in had.gradients().items()
        if sent.numel() > 1
    }
    found = read(had.problem(noisy))
    assert found.inputs is None
    assert [link.solved for link in found.links] == [False]


def _plain():
    """Fewer channels than places everywhere."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(384, 4),
    )  # fmt: skip


def test_it_says_why_it_cannot_look():
    had = residual_client()
    two = Client(had.module, torch.rand(2, 3, 8, 8).double(), torch.tensor([1, 2]))
    assert "one sample" in str(ATTACK.blocked_by(two.problem()))
    train = Client(had.module, had.inputs, had.labels, mode="train")
    assert "training mode" in str(ATTACK.blocked_by(train.problem()))
    plain = Client(_plain().double(), had.inputs, had.labels)
    assert "channels as places" in str(ATTACK.blocked_by(plain.problem()))
    coarse = {n: g.half() for n, g in had.gradients().items()}
    assert "digits" in str(ATTACK.blocked_by(had.problem(coarse)))
    without = {n: g for n, g in had.gradients().items() if "bn" not in n}
    assert "batch norm" in str(ATTACK.blocked_by(had.problem(without)))


def test_the_same_seed_gives_the_same_picture():
    had = residual_client(low=6, high=24, seed=1)
    few = replace(ATTACK, steps=Steps(5, 5, 2))
    one, other = (few.run(had.problem(), seed=3, watch=WATCH) for _ in range(2))
    assert torch.equal(one.inputs, other.inputs)


def test_it_ends_when_time_is_over():
    had = residual_client(low=6, high=24)
    found = ATTACK.run(had.problem(), seed=0, watch=Watch(deadline=0.0))
    assert found.expired
    assert found.inputs is None


def test_another_model_gives_no_claim():
    had = residual_client()
    torch.manual_seed(9)
    other = replace(had, module=used(Residual(16, 32), 9).double())
    problem = other.problem(had.gradients())
    found = read(problem)
    assert found.inputs is None
