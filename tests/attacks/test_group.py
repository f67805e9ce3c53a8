"""Group consistency: registration against known shifts, the pull against its definition."""

from dataclasses import replace

import pytest
import torch
from problems import WATCH, Client
from torch import nn

from auditor.attacks import ImagePriors
from auditor.attacks.group import FARTHEST, consensus, drawn_together, registered, shift_between
from auditor.attacks.labels import label_claim
from auditor.attacks.priors import Prior, _Run
from auditor.solve import by_row


def relu_client():
    """Two convolutions with ReLU, and one picture of a soft spot."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(8 * 16, 5),
        )  # fmt: skip
    return Client(module.eval(), scene(side=8)[:1][None].float().clamp(0, 1), torch.tensor([2]))


def scene(seed=0, side=24):
    """A picture of soft spots, larger than what is cut out of it."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 9, 9, generator=generator, dtype=torch.float64)
    return torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")[0]


def window(picture, down, across, side=16):
    return picture[:, 4 + down : 4 + down + side, 4 + across : 4 + across + side]


SHIFTS = [(0, 0), (1, 0), (0, -2), (3, 2), (-4, 4), (-1, -3)]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shift", SHIFTS, ids=str)
def test_a_known_shift_is_found(shift, seed):
    whole = scene(seed)
    assert shift_between(window(whole, *shift), window(whole, 0, 0)) == shift


@pytest.mark.parametrize("shift", SHIFTS, ids=str)
def test_what_was_shifted_comes_back(shift):
    """Inside, to the last digit; at the edge that came in, it is the other picture."""
    whole = scene()
    here = window(whole, 0, 0)
    torch.testing.assert_close(registered(window(whole, *shift), here), here)


@pytest.mark.parametrize("shift", SHIFTS, ids=str)
def test_the_shift_by_its_definition(shift):
    """The least of the mean squared differences of all overlaps, one after the other."""
    generator = torch.Generator().manual_seed(5)
    blur = 0.05 * torch.randn(3, 16, 16, generator=generator, dtype=torch.float64)
    here, moved = window(scene(), 0, 0), window(scene(), *shift) + blur
    found = {}
    for down in range(-FARTHEST, FARTHEST + 1):
        for across in range(-FARTHEST, FARTHEST + 1):
            one = here[:, max(down, 0) : 16 + min(down, 0), max(across, 0) : 16 + min(across, 0)]
            back = [-down, -across]
            other = moved[
                :, max(back[0], 0) : 16 + min(back[0], 0), max(back[1], 0) : 16 + min(back[1], 0)
            ]
            found[down, across] = float((one - other).square().mean())
    assert shift_between(moved, here) == min(found, key=found.get)


def test_nothing_is_moved_that_does_not_come_nearer():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        one, other = (torch.rand(3, 16, 16, generator=generator) for _ in range(2))
        moved = registered(one, other)
        assert float((moved - other).square().mean()) <= float((one - other).square().mean())


def test_a_flat_picture_stays():
    flat = torch.full((3, 8, 8), 0.5)
    assert torch.equal(registered(flat, flat), flat)


def test_the_consensus_of_shifted_copies_is_each_of_them():
    whole = scene()
    rows = torch.stack([window(whole, *shift) for shift in [(0, 0), (1, 1), (-2, 1)]])[:, None]
    inner = (slice(None), slice(None), slice(None), slice(4, -4), slice(4, -4))
    torch.testing.assert_close(consensus(rows)[inner], rows[inner])


def test_the_consensus_of_what_lies_alike_is_the_mean():
    rows = 0.5 + 0.01 * torch.randn(3, 2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    rows = rows + scene(side=8)[None, None, :1]
    torch.testing.assert_close(consensus(rows), rows.mean(0).expand_as(rows))


def test_the_pull_by_its_definition_and_its_growth():
    """Value and slope of w * share * |x - mean|^2 / n, the mean held; nothing at the first call."""
    base = scene(side=6)[:1].float()[None, None]
    drawn = torch.randn(3, 1, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    rows = (base + 0.01 * drawn).view(3, -1)
    alone = by_row(lambda row: row.square().sum())
    together = drawn_together(alone, lambda r: r.view(-1, 1, 1, 6, 6), weight=8.0, calls=4)
    plain = alone(rows)
    for call in range(6):
        values, slopes = together(rows)
        share = 8.0 * min(call / 4, 1.0)
        off = rows - rows.mean(0)
        torch.testing.assert_close(values, plain[0] + share * off.square().mean(1))
        torch.testing.assert_close(slopes, plain[1] + share * 2 * off / 36)


def ends_of(attack, problem):
    """Where the members of the group ended."""
    labels = label_claim(problem).estimate
    run = _Run(attack, problem, labels, 0, WATCH)
    members = [heat.row for heat in run._heats() if heat.together]
    assert len(members) == 3
    return run._inputs(torch.cat(members))


def test_members_of_a_group_end_nearer_to_one_another():
    had = relu_client()
    spread = []
    for pull in (0.0, 10.0):
        attack = ImagePriors(
            heats=4, heat_steps=40, finals=1, steps=1, group=3, pull=pull, priors=(Prior(),)
        )
        ends = ends_of(attack, had.problem())
        spread.append(float((ends - ends.mean(0)).square().mean()))
    assert spread[1] < spread[0]


def test_a_group_is_said_and_costs_what_its_members_would_alone():
    had = relu_client()
    only = ImagePriors(heats=4, heat_steps=10, finals=4, steps=2, group=3, priors=(Prior(),))
    found = only.run(had.problem(), seed=0, watch=WATCH)
    assert any("group consistency" in said for said in found.assumed)
    without = replace(only, group=0).run(had.problem(), seed=0, watch=WATCH)
    assert not any("group consistency" in said for said in without.assumed)
    assert found.evaluations == without.evaluations
