"""What a planted layer catches, beside what its definition says that it must catch."""

import time
from dataclasses import replace

import pytest
import torch
from plants import (
    alone_in_their_bins,
    drawn,
    eight_bit,
    imprint_net,
    passing_net,
    sent_by,
    trap_net,
)
from problems import WATCH, case_of, client, noise, options_of, rounded
from torch import nn

from auditor.attacks.base import Watch
from auditor.attacks.imprint import Imprint
from auditor.audit import run_audit

ATTACK = Imprint()


def read(had, gradients=None, **known):
    problem = had.problem(gradients, **known)
    assert ATTACK.blocked_by(problem) is None
    return ATTACK.run(problem, seed=0, watch=WATCH)


def which(recovery, had, within=1e-5):
    """The client's samples that were read, by place. Every claim must be one of them, once."""
    claims = recovery.samples.double()
    apart = (claims[:, None] - had.inputs.double()).abs().amax((2, 3, 4))
    assert (apart.amin(1) < within).all(), apart.amin(1)
    places = apart.argmin(1).tolist()
    assert len(set(places)) == len(places)
    return set(places)


# --------------------------------------------------------------------------- imprint layers


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [1, 6, 12])
def test_every_sample_alone_in_its_bin_is_read_and_nothing_else(seed, count):
    module = imprint_net(48, seed=seed)
    had = sent_by(module, count, seed=seed)
    recovery = read(had)
    assert which(recovery, had) == alone_in_their_bins(module, had.inputs)
    assert recovery.witnesses == (1,) * len(recovery.samples)
    assert recovery.read_from == "catch.weight"


def test_bins_of_several_samples_hold_mixtures_and_these_are_left_out():
    module = imprint_net(24)
    had = sent_by(module, 12, seed=1)
    alone = alone_in_their_bins(module, had.inputs)
    assert 0 < len(alone) < 12, "the test needs both kinds"
    assert which(read(had), had) == alone


def test_mixtures_of_pictures_on_black_are_left_out_too():
    """Where both are black, a mixture has 8-bit pixels as well."""
    module = imprint_net(24)
    had = sent_by(module, 12, seed=1)
    with torch.no_grad():
        for place, picture in enumerate(had.inputs):
            picture[:, 2 + place % 2 :] = 0
        seen = had.inputs.flatten(1) @ module.direction
        module.thresholds = torch.linspace(float(seen.min()) - 0.01, float(seen.max()), 24)
        module.catch.bias.copy_(-module.thresholds)
    alone = alone_in_their_bins(module, had.inputs)
    assert 0 < len(alone) < 12, "the test needs both kinds"
    assert which(read(had), had) == alone


def test_pictures_without_8_bit_pixels_are_claimed_when_counting_shows_most_to_be_single():
    module = imprint_net(512)
    had = sent_by(module, 6)
    had = replace(had, inputs=had.inputs * 0.987654)
    assert len(alone_in_their_bins(module, had.inputs)) == 6
    assert which(read(had), had) == set(range(6))
    assert read(had, size=None).samples is None
    assert read(had, size=10).samples is None


def test_a_batch_without_a_size_is_read_too():
    module = imprint_net(64)
    had = sent_by(module, 6)
    assert which(read(had, size=None), had) == alone_in_their_bins(module, had.inputs)


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_any_scale_and_gain(seed):
    """The next layer may weigh each bin as it likes, even turn it over."""
    scales, gains = 0.2 + torch.rand(48), 0.3 + torch.rand(48)
    gains[::5] *= -1
    module = imprint_net(48, seed=seed, scales=scales, gains=gains)
    had = sent_by(module, 8, seed=seed)
    assert which(read(had), had) == alone_in_their_bins(module, had.inputs)


def test_a_row_that_the_next_layer_ignores_joins_two_bins():
    gains = torch.ones(48)
    gains[20] = 0
    module = imprint_net(48, gains=gains)
    had = sent_by(module, 8)
    found = which(read(had), had)
    assert found <= alone_in_their_bins(module, had.inputs)
    assert len(found) >= len(alone_in_their_bins(module, had.inputs)) - 2


def test_normalisation_before_the_layer_is_undone():
    module = imprint_net(64)
    module.before = nn.BatchNorm2d(3).eval()
    with torch.no_grad():
        module.before.running_mean.uniform_(-0.02, 0.02)
        module.before.running_var.uniform_(0.9, 1.1)
    had = sent_by(module, 6)
    assert which(read(had), had) == alone_in_their_bins(module, module.before(had.inputs))


def test_pixels_in_the_units_of_the_model():
    module = imprint_net(64)
    pictures = eight_bit(6)
    had = replace(sent_by(module, 6), inputs=(pictures - 0.1) / 0.8)
    recovery = read(had, mean=(0.1,) * 3, std=(0.8,) * 3)
    assert which(recovery, had) == alone_in_their_bins(module, had.inputs)


# --------------------------------------------------------------------------- trap weights


def alone_in_rows(module, inputs):
    """For each sample, the rows that fire for it alone, from the definition."""
    fires = module[:-1](inputs) > 0  # (N, m)
    single = fires & (fires.sum(0) == 1)
    return {i: int(rows.sum()) for i, rows in enumerate(single) if rows.any()}


@pytest.mark.parametrize("seed", range(4))
def test_every_sample_that_has_a_row_of_its_own_is_read(seed):
    module = trap_net(128, 0.85, seed=seed)
    had = sent_by(module, 6, seed=seed)
    alone = alone_in_rows(module, had.inputs)
    assert 0 < len(alone) < 6, "the test needs both kinds"
    recovery = read(had)
    assert which(recovery, had) == set(alone)
    assert sorted(recovery.witnesses) == sorted(alone.values())


def test_rows_that_the_next_layer_treats_alike_confirm_nothing():
    """Two rows that fire for the same samples then give the same mixture."""
    module = trap_net(128, 0.9)
    with torch.no_grad():
        module[-1].weight.copy_(module[-1].weight[:, :1].expand(-1, 128))
    had = sent_by(module, 6)
    recovery = read(had)
    assert which(recovery, had) == set(alone_in_rows(module, had.inputs))
    assert recovery.witnesses == (1,) * len(recovery.samples)


@pytest.mark.parametrize("depth", [1, 2])
def test_kernels_that_pass_the_picture_on_are_undone(depth):
    module = passing_net(depth)
    had = sent_by(module, 4)
    alone = alone_in_rows(module, had.inputs)
    assert alone
    assert which(read(had), had, within=1e-3) == set(alone)


@pytest.mark.parametrize("make", [trap_net, passing_net])
def test_batch_norm_behind_the_traps_is_not_in_the_way(make):
    """In training mode it takes no single sample; the way to the traps is replayed with two."""
    before = make()
    module = nn.Sequential(*before[:-1], nn.BatchNorm1d(128), before[-1])
    had = sent_by(module, 4, mode="train")
    alone = alone_in_rows(before, had.inputs)
    assert alone
    assert which(read(had), had, within=1e-3) == set(alone)


# --------------------------------------------------------------------------- nothing to read


def test_an_ordinary_model_has_nothing_to_read():
    assert "no imprint layer" in ATTACK.blocked_by(client("relu", 4, 5).problem())


@pytest.mark.parametrize(
    ("withheld", "told"), [("catch.weight", "of its rows"), ("catch.bias", "of its bias")]
)
def test_what_was_not_sent_is_named(withheld, told):
    had = sent_by(imprint_net(64))
    gradients = {n: g for n, g in had.gradients().items() if n != withheld}
    reason = ATTACK.blocked_by(had.problem(gradients))
    assert "'catch.weight'" in reason
    assert told in reason


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2)])
def test_pictures_that_lost_a_part_on_the_way_are_not_claimed(pool):
    reason = ATTACK.blocked_by(sent_by(passing_net(1, pool=pool)).problem())
    assert "cannot be undone" in reason


def test_noise_gives_no_picture():
    module = imprint_net(64)
    recovery = read(sent_by(module, 6), noise(module, 1.0))
    assert recovery.samples is None
    assert not recovery.expired


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_coarse_dump_gives_fewer_pictures_and_no_wrong_ones(dtype):
    module = imprint_net(64)
    had = sent_by(module, 6)
    recovery = read(had, rounded(had.gradients(), dtype))
    if recovery.samples is not None:
        assert which(recovery, had, within=0.1) <= alone_in_their_bins(module, had.inputs)


def test_an_expired_watch_ends_at_once():
    problem = sent_by(imprint_net(64)).problem()
    recovery = ATTACK.run(problem, seed=0, watch=Watch(deadline=time.monotonic() - 1))
    assert recovery.expired
    assert recovery.samples is None


def test_the_first_layer_that_can_be_read_is_taken():
    module = drawn(0, lambda: nn.Sequential(nn.Flatten(), *imprint_stack()))
    assert read(sent_by(module)).read_from == "1.weight"


def imprint_stack():
    caught = imprint_net(64).catch
    return caught, nn.ReLU(), trap_net(128, size=64)[1], nn.ReLU(), nn.Linear(128, 4)


def test_the_harness_verifies_what_is_read_and_the_audit_says_so():
    module = imprint_net(64)
    had = sent_by(module, 6)
    result = run_audit(case_of(had), options_of(attacks=["images.imprint"]), fail_on="critical")
    alone = len(alone_in_their_bins(module, had.inputs))
    worst = result.audit.findings[0]
    assert (worst.code, worst.certainty) == ("GA204", "verified")
    assert worst.measures[0].value == alone
    assert [f.code for f in result.audit.findings] == ["GA204", "GA401"]
    assert result.audit.gate.outcome == "failed"
