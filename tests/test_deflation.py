"""Single pictures of a claim under noise: taking the right one away lowers the rank by one."""

from dataclasses import replace

import pytest
import torch
from problems import Client, noised
from torch import nn

from auditor.evidence import examine
from auditor.findings import findings_of
from auditor.planted.layers import linear_layers, recorded_alone
from auditor.records import Channel, Recovery
from auditor.samples.deflation import _factors, _signal, _spanned, stand_alone

SIDE, HIDDEN, CLASSES = 12, 64, 5


def net(activation):
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(SIDE**2, HIDDEN), activation, nn.Linear(HIDDEN, CLASSES)]
    return nn.Sequential(*layers).double().eval()


def pictures(count, seed):
    """Independent, smooth: sums of a few waves."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.linspace(0, 3.14, SIDE, dtype=torch.float64)
    waves = torch.stack([(k * line).cos() for k in range(4)])  # (4, S)
    mixed = torch.randn(count, 4, 4, generator=generator, dtype=torch.float64)
    drawn = torch.einsum("nij,ix,jy->nxy", mixed, waves, waves)
    low, high = drawn.amin((1, 2), keepdim=True), drawn.amax((1, 2), keepdim=True)
    return ((drawn - low) / (high - low))[:, None]


def sent(count, activation, sigma, seed=1):
    """What a client with these pictures sends under noise, and the pictures."""
    had = pictures(count, seed)
    labels = torch.arange(count) % CLASSES
    client = Client(net(activation), had, labels)
    problem = client.problem(noised(client.gradients(), sigma, seed=seed + 50))
    return replace(problem, channel=Channel(sigma=sigma)), had, labels


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh()], ids=["relu", "tanh"])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_right_pictures_stand_and_no_others(count, activation):
    problem, had, _ = sent(count, activation, 1e-6)
    told, where = stand_alone(problem, had)
    assert told == (True,) * count
    assert where == "1.weight"
    assert not any(stand_alone(problem, pictures(count, seed=9))[0])
    mixed = 0.5 * had + 0.5 * had.roll(1, 0)
    assert not any(stand_alone(problem, mixed)[0])
    assert not any(stand_alone(problem, 0.8 * had + 0.2 * had.roll(1, 0))[0])
    assert not any(stand_alone(problem, had.mean(0, keepdim=True).expand_as(had))[0])


def test_a_likeness_that_is_not_in_the_space_of_the_rows_does_not_stand():
    """12 dB off, in a smooth network: its part in that space alone would pass."""
    problem, had, _ = sent(4, nn.Tanh(), 1e-6)
    other = pictures(4, seed=9)
    assert float((other[0] - had).square().mean((1, 2, 3)).min()) < 0.06
    assert not any(stand_alone(problem, other)[0])


def test_a_right_picture_stands_beside_wrong_ones_and_with_an_error():
    problem, had, _ = sent(4, nn.ReLU(), 1e-6)
    claimed = pictures(4, seed=9)
    blur = 0.01 * torch.randn(had[2].shape, generator=torch.Generator().manual_seed(3)).double()
    claimed[2] = (had[2] + blur).clamp(0, 1)
    assert stand_alone(problem, claimed)[0] == (False, False, True, False)


def test_nothing_stands_where_noise_hides_a_direction():
    problem, had, _ = sent(4, nn.ReLU(), 1e-2)
    assert stand_alone(problem, had) == ((False,) * 4, "")


@pytest.mark.parametrize(
    "channel",
    [
        Channel(),
        Channel(sigma=1e-6, masked=True),
        Channel(sigma=1e-6, signs=True),
        Channel(sigma=1e-6, scaled=True),
        Channel(sigma=1e-6, steps={"1.weight": 1e-3}),
    ],
)
def test_nothing_is_said_of_another_channel(channel):
    problem, had, _ = sent(2, nn.ReLU(), 1e-6)
    assert stand_alone(replace(problem, channel=channel), had) == ((False,) * 2, "")


def test_the_shortcut_leaves_out_nothing_that_lowers_the_rank():
    """Beside the slow definition: the least singular value, for every label."""
    problem, had, _ = sent(4, nn.ReLU(), 1e-6)
    recording = recorded_alone(problem.module, problem.knowledge.input_shape)
    [layer, *_] = linear_layers(recording)
    signal, directions = _signal(problem, layer, 4)
    least = torch.linalg.svdvals(signal)[-1]
    lowered = spared = 0
    for picture in [*had, *(had + 0.01), *(0.9 * had + 0.1 * had.roll(1, 0)), *pictures(4, seed=9)]:
        place = directions.mT @ torch.cat([picture.flatten(), torch.ones(1, dtype=torch.float64)])
        for factors in _factors(problem, layer, picture):
            left = torch.linalg.svdvals(signal - torch.outer(factors, place))[-1]
            lowers, spans = bool(left <= 0.1 * least), _spanned(signal, factors)
            assert spans or not lowers
            lowered, spared = lowered + lowers, spared + (not spans)
    assert lowered >= 4
    assert spared >= 40  # of 80: it is worth having


def test_the_harness_names_them_in_a_claim_that_fails_as_a_whole():
    problem, had, labels = sent(4, nn.ReLU(), 1e-6)
    claimed = pictures(4, seed=9)
    claimed[1] = had[1]
    recovery = Recovery(inputs=claimed[None], input_labels=labels[None])
    evidence = examine(problem, recovery, attack="images.defended", seconds=1.0)
    assert evidence.samples == (None, "verified", None, None)
    [finding] = findings_of(problem, evidence, None)
    assert (finding.code, finding.certainty) == ("GA204", "verified")
    assert finding.severity.band in {"high", "critical"}
    other = Recovery(inputs=pictures(4, seed=9)[None], input_labels=labels[None])
    assert examine(problem, other, attack="images.defended", seconds=1.0).samples == ()
