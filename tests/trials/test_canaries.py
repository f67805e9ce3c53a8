"""Simulated dumps: made like the audited one, attacked, counted with an interval."""

import itertools
import math
import time
from dataclasses import replace
from unittest import mock

import pytest
import torch
from problems import WATCH, Says, client, lenet_client, rounded
from torch.nn import functional as F
from trial_attacks import Breaks, Notes, Waits, claim, generator

from auditor.attacks import ATTACKS, HeadLabels, LayerByLayer, Watch
from auditor.records import Auxiliary, Channel
from auditor.trials.canaries import canaries, clopper_pearson
from auditor.trials.stand_ins import dump_of, smooth_pictures, stand_ins, through


def auxiliary(count=6, classes=10, seed=5):
    drawn = generator(seed)
    images = torch.rand(count, 1, 4, 4, generator=drawn)
    return Auxiliary(images, torch.randint(classes, (count,), generator=drawn))


# --------------------------------------------------------------------------- the interval


@pytest.mark.parametrize("trials", [3, 10, 20])
def test_interval_at_both_ends_is_closed_form(trials):
    edge = 0.025 ** (1 / trials)
    assert clopper_pearson(trials, trials) == pytest.approx((edge, 1.0), abs=1e-9)
    assert clopper_pearson(0, trials) == pytest.approx((0.0, 1 - edge), abs=1e-9)


def tail(share, trials, least):
    """P(at least so many of so many), summed up."""
    return sum(
        math.comb(trials, k) * share**k * (1 - share) ** (trials - k)
        for k in range(least, trials + 1)
    )


@pytest.mark.parametrize(("opened", "trials"), [(1, 4), (7, 20), (19, 20)])
def test_interval_by_its_definition(opened, trials):
    low, high = clopper_pearson(opened, trials)
    assert tail(low, trials, opened) == pytest.approx(0.025, abs=1e-6)
    assert 1 - tail(high, trials, opened + 1) == pytest.approx(0.025, abs=1e-6)


# --------------------------------------------------------------------------- the dumps


def test_a_simulated_dump_is_what_the_client_would_have_sent():
    had = client("tanh", 2)
    problem = had.problem()
    pixels, labels = stand_ins(problem, generator())
    made = dump_of(problem, pixels, labels, generator())
    other = replace(had, inputs=pixels, labels=labels)
    for name, sent in other.problem().gradient.items():
        assert torch.allclose(made[name], sent, rtol=1e-5, atol=1e-7)


def test_it_is_rounded_as_the_dump_is():
    had = client("tanh")
    problem = had.problem(rounded(had.gradients(), torch.bfloat16))
    made = dump_of(problem, *stand_ins(problem, generator()), generator())
    assert all(torch.equal(part, part.to(torch.bfloat16).to(part)) for part in made.values())


def test_normalisation_is_that_of_the_client():
    had = client("tanh", 1)
    problem = had.problem(mean=(0.4,), std=(0.25,))
    pixels = torch.rand(1, 1, 4, 4, generator=generator(1))
    made = dump_of(problem, pixels, torch.tensor([3]), generator())
    loss = F.cross_entropy(had.module((pixels - 0.4) / 0.25), torch.tensor([3]))
    own = torch.autograd.grad(loss, list(had.module.parameters()))
    for part, direct in zip(made.values(), own, strict=True):
        assert torch.allclose(part.float(), direct, rtol=1e-4, atol=1e-7)


def test_pictures_are_pixels_and_not_flat():
    drawn = smooth_pictures((3, 16, 16), 40, generator())
    assert drawn.shape == (40, 3, 16, 16)
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) <= 1
    assert float(drawn.flatten(2).std(2).mean()) > 0.15
    assert smooth_pictures((7,), 2, generator()).shape == (2, 7)


def test_auxiliary_pictures_are_taken():
    own = auxiliary()
    problem = replace(client("tanh", 3).problem(), auxiliary=own)
    pixels, labels = stand_ins(problem, generator())
    for picture, label in zip(pixels, labels, strict=True):
        (place,) = (own.images == picture).flatten(1).all(1).nonzero().flatten().tolist()
        assert own.labels[place] == label


# --------------------------------------------------------------------------- the channel


@pytest.fixture
def made():
    drawn = generator(2)
    return {
        "a": torch.randn(40, 30, generator=drawn, dtype=torch.float64),
        "b": 0.1 * torch.randn(500, generator=drawn, dtype=torch.float64),
    }


def test_a_clear_channel_changes_nothing(made):
    sent = through(Channel(), made, made, generator())
    assert all(torch.equal(sent[name], made[name]) for name in made)


def test_noise_has_its_sigma(made):
    sent = through(Channel(sigma=0.3), made, made, generator())
    apart = torch.cat([(sent[n] - made[n]).flatten() for n in made])
    assert float(apart.std()) == pytest.approx(0.3, rel=0.06)  # 1700 entries: 1.7 % a deviation


def test_as_many_entries_are_kept_as_in_the_dump(made):
    dump = {name: torch.zeros_like(part) for name, part in made.items()}
    dump["a"].view(-1)[:123] = 1.0
    sent = through(Channel(masked=True, sigma=0.1), made, dump, generator())
    kept = {name: part != 0 for name, part in sent.items()}
    assert sum(int(part.sum()) for part in kept.values()) == 123
    least = min(float(made[n][kept[n]].abs().min()) for n in made if kept[n].any())
    most = max(float(made[n][~kept[n]].abs().max()) for n in made)
    assert least >= most


def test_signs_alone_are_sent(made):
    dump = {name: 0.01 * part.sign() for name, part in made.items()}
    sent = through(Channel(signs=True), made, dump, generator())
    for name, part in sent.items():
        assert torch.equal(part, 0.01 * made[name].sign())


def test_steps_are_a_grid(made):
    sent = through(Channel(steps={"a": 0.25}), made, made, generator())
    assert torch.equal(sent["a"], (sent["a"] / 0.25).round() * 0.25)
    assert float((sent["a"] - made["a"]).abs().max()) <= 0.125
    assert torch.equal(sent["b"], made["b"])


def test_clipping_brings_the_norm_down_and_never_up(made):
    norm = torch.cat([part.flatten() for part in made.values()]).norm()
    for factor, expected in ((0.1, 0.1), (7.0, 1.0)):
        dump = {name: factor * part for name, part in made.items()}
        sent = through(Channel(scaled=True), made, dump, generator())
        whole = torch.cat([part.flatten() for part in sent.values()]).norm()
        assert float(whole) == pytest.approx(expected * float(norm), rel=1e-9)


# --------------------------------------------------------------------------- counting


def test_what_opens_every_dump_is_counted_as_such():
    report = canaries(
        client("relu").problem(), [HeadLabels(), LayerByLayer()], seed=0, watch=WATCH, most=5
    )
    assert (report.opened, report.simulated) == (5, 5)
    assert (report.low, report.high) == clopper_pearson(5, 5)
    assert "no auxiliary ones were given" in report.pictures
    assert report.pictures in report.summary


def test_the_same_picture_every_time_opens_nothing():
    had = client("tanh")
    flat = Says(claim(torch.full_like(had.inputs, 0.5), had.labels))
    report = canaries(had.problem(), [flat], seed=0, watch=WATCH, most=6)
    assert (report.opened, report.simulated, report.low) == (0, 6, 0.0)


def test_a_flat_picture_of_a_flat_picture_is_no_recovery():
    """It is near to the truth, but no nearer than its mean is."""
    had = client("tanh")
    dull = Auxiliary(0.5 + 0.01 * auxiliary().images, auxiliary().labels)
    problem = replace(had.problem(), auxiliary=dull)
    flat = Says(claim(torch.full_like(had.inputs, 0.505), had.labels))
    assert canaries(problem, [flat], seed=0, watch=WATCH, most=4).opened == 0


def test_attacks_see_dumps_and_nothing_that_was_read_of_the_audited_one():
    had = client("tanh", 2)
    problem = replace(had.problem(), auxiliary=auxiliary())
    read = HeadLabels().run(problem, seed=0, watch=WATCH).labels
    notes = Notes()
    canaries(replace(problem, labels=read), [notes], seed=0, watch=WATCH, most=4)
    assert len(notes.problems) == 4
    for seen in notes.problems:
        assert seen.labels is None
        assert seen.knowledge == problem.knowledge
        assert not any(torch.equal(seen.gradient[n], problem.gradient[n]) for n in seen.gradient)


def test_labels_that_were_read_go_to_the_next_attack():
    notes = Notes()
    canaries(client("tanh").problem(), [HeadLabels(), notes], seed=0, watch=WATCH, most=3)
    assert all(problem.labels.complete for problem in notes.problems)


def test_one_that_breaks_counts_as_not_opened():
    broken = Breaks("the derivative is not implemented")
    problem = client("relu").problem()
    report = canaries(problem, [broken], seed=0, watch=WATCH, most=3)
    assert (report.opened, report.simulated) == (0, 3)
    assert canaries(problem, [broken, LayerByLayer()], seed=0, watch=WATCH, most=3).opened == 3


def test_time_is_shared_and_kept():
    """By a clock of its own, on which every look takes a hundredth of a second."""
    ticks = (tick / 100 for tick in itertools.count())
    with mock.patch.object(time, "monotonic", side_effect=ticks):
        watch = Watch(deadline=time.monotonic() + 6)
        report = canaries(client("tanh").problem(), [Waits()], seed=0, watch=watch, most=20)
        ended = time.monotonic()
    assert ended < 7
    assert 3 <= report.simulated <= 6
    assert "1 seconds each" in report.summary


def test_too_few_say_nothing():
    problem = client("tanh").problem()
    assert canaries(problem, [Notes()], seed=0, watch=WATCH, most=2) is None
    over = Watch(deadline=time.monotonic() - 1)
    assert canaries(problem, [Notes()], seed=0, watch=over) is None
    unknown = client("tanh").problem(size=None)
    assert canaries(unknown, [Notes()], seed=0, watch=WATCH) is None


def test_the_seed_decides():
    notes = Notes(), Notes(), Notes()
    for note, seed in zip(notes, (1, 1, 2), strict=True):
        canaries(lenet_client().problem(), [note], seed=seed, watch=WATCH, most=3)
    one, same, other = ([p.gradient["fc.bias"] for p in note.problems] for note in notes)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_every_attack_can_be_tried():
    watch = Watch(deadline=time.monotonic() + 1.5)
    report = canaries(client("relu").problem(), ATTACKS, seed=0, watch=watch, most=3)
    assert report is not None
    assert report.opened == report.simulated == 3
