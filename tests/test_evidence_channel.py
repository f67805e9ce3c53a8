"""Claims on a defended dump are held against its noise floor, and against gray pictures."""

from dataclasses import replace

import pytest
import torch
from problems import Client, batch, lenet_client, noise, tiny_lenet
from torch import nn

from auditor.defences.applied import Defended, as_int8, clipped, largest_kept, noised, signs_of
from auditor.evidence import (
    equals_in_words,
    examine,
    is_close,
    is_close_to_few,
    is_equal,
    is_proved,
    is_verified,
    samples_told,
    shows_pictures,
)
from auditor.findings import Weight, findings_of
from auditor.records import Channel, Course, Evidence, Recovery


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def problem_after(had, made):
    problem = had.problem(made.gradient)
    return replace(problem, channel=made.channel, precision=made.precision)


def judged(had, made, *rows, **more) -> tuple[object, Evidence]:
    """The evidence for claims of these batches (N, C, H, W)."""
    problem = problem_after(had, made)
    inputs = torch.stack([row.double() for row in rows])
    courses = tuple(Course((0,), (0.0,), (0,), row[None].float(), "ended") for row in rows)
    labels = had.labels.expand(len(rows), -1)
    claim = Recovery(inputs=inputs, input_labels=labels, courses=courses, **more)
    return problem, examine(problem, claim, attack="images.says", seconds=0.0)


def near(had, size, seed=0):
    drawn = torch.randn(had.inputs.shape, generator=seeded(seed))
    return had.inputs + size * drawn


MADE = {
    "noise": lambda g: noised(g, 1e-3, seeded()),
    "top-k": lambda g: largest_kept(g, 0.7),
    "int8": as_int8,
    "clipping": lambda g: clipped(g, 0.1),
}
each = pytest.mark.parametrize("name", MADE)


@pytest.fixture
def had():
    return lenet_client()


@each
def test_the_truth_is_equal(had, name):
    problem, evidence = judged(had, MADE[name](had.gradients()), had.inputs)
    assert evidence.at_floor == (True,)
    assert is_equal(problem, evidence)
    assert is_close(problem, evidence)
    assert not is_verified(problem, evidence)  # nothing confirms it
    assert not is_proved(problem, evidence)


@each
def test_restarts_that_agree_verify(had, name):
    made = MADE[name](had.gradients())
    problem, evidence = judged(had, made, near(had, 1e-6), near(had, 1e-6, 1))
    assert is_verified(problem, evidence)
    assert evidence.agreeing == 2
    problem, evidence = judged(had, made, near(had, 1e-6), near(had, 1e-6, 1), guided=True)
    assert is_equal(problem, evidence)
    assert not is_verified(problem, evidence)


@each
def test_another_picture_is_not(had, name):
    made = MADE[name](had.gradients())
    other = torch.rand(had.inputs.shape, generator=seeded(5))
    problem, evidence = judged(had, made, other, other)
    assert evidence.at_floor == (False, False)
    assert not is_equal(problem, evidence)
    assert not is_close(problem, evidence)
    assert evidence.agreeing == 0
    # Beside the truth, the truth is the claim.
    problem, evidence = judged(had, made, other, had.inputs)
    assert evidence.best == 1
    assert is_equal(problem, evidence)


def test_noise_above_all_says_nothing_of_any_picture(had):
    """Every picture explains it; a gray one too."""
    made = noised(had.gradients(), 1e4, seeded())
    problem, evidence = judged(had, made, had.inputs, had.inputs)
    assert evidence.misfits[0] == pytest.approx(1, abs=0.3)
    assert not is_equal(problem, evidence)
    assert not is_verified(problem, evidence)


def test_a_dump_of_noise_alone(had):
    made = Defended(noise(tiny_lenet(), 1.0), Channel(sigma=1.0))
    problem, evidence = judged(had, made, had.inputs, had.inputs)
    assert not is_equal(problem, evidence)


def test_a_sample_that_the_dump_says_nothing_of(had):
    """One of two samples could as well be gray: the batch is not equal, the other one is told."""
    labels, gray = had.labels.repeat(2), torch.full_like(had.inputs, 0.5)
    pair = Client(had.module, torch.cat([had.inputs, gray]), labels)
    problem, evidence = judged(pair, noised(pair.gradients(), 1e-3, seeded()), pair.inputs)
    assert evidence.misfits[0] == pytest.approx(1, abs=0.3)
    assert not is_equal(problem, evidence)
    assert not is_verified(problem, evidence)
    assert evidence.told == samples_told(problem, evidence) == (True, False)
    assert is_close(problem, evidence)
    [finding] = [f for f in findings_of(problem, evidence, None) if f.code.startswith("GA2")]
    assert (finding.code, finding.certainty) == ("GA202", "consistent")
    assert finding.summary.startswith("1 of 2 pictures was rebuilt")


def test_a_wrong_picture_beside_gray_is_not_told(had):
    labels, gray = had.labels.repeat(2), torch.full_like(had.inputs, 0.5)
    pair = Client(had.module, torch.cat([had.inputs, gray]), labels)
    made = noised(pair.gradients(), 1e-3, seeded())
    problem, evidence = judged(pair, made, torch.cat([1 - had.inputs, gray]))
    assert evidence.told == (False, False)
    assert not is_close(problem, evidence)


def test_few_entries_count_only_after_a_control(had):
    """With fewer entries than twice the pixels nothing but a control tells a fit from the truth."""
    share = 1 - 1.5 * had.inputs.numel() / sum(g.numel() for g in had.gradients().values())
    problem, evidence = judged(had, largest_kept(had.gradients(), share), near(had, 0.1))
    kept = sum(int((sent != 0).sum()) for sent in problem.gradient.values())
    assert had.inputs.numel() < kept < 2 * had.inputs.numel()
    assert not is_equal(problem, evidence)
    assert evidence.worst_residuals[0] < 1e-2
    assert (is_close(problem, evidence), is_close_to_few(problem, evidence)) == (False, True)
    assert pictures_found(problem, evidence, Weight()) == []
    assert pictures_found(problem, evidence, Weight(cleared=True)) == ["GA202"]
    assert pictures_found(problem, evidence, Weight(cleared=True, doubted=True)) == []


def test_next_to_nothing_shows_nothing(had):
    share = 1 - 0.2 * had.inputs.numel() / sum(g.numel() for g in had.gradients().values())
    problem, evidence = judged(had, largest_kept(had.gradients(), share), near(had, 0.03))
    assert not is_equal(problem, evidence)
    assert evidence.worst_residuals[0] < 1e-2
    assert not is_close_to_few(problem, evidence)
    assert pictures_found(problem, evidence, Weight(cleared=True)) == []


def mlp_client(*layers, count=2):
    """Eight times as many numbers as pixels, and a first layer that sees them."""
    torch.manual_seed(0)
    side = nn.Linear(64, 32), *layers, nn.Linear(32, 4)
    return Client(nn.Sequential(nn.Flatten(), *side), *batch(count, 4, shape=(1, 8, 8)))


@pytest.mark.parametrize(
    ("layer", "channel", "share", "shown"),
    [
        (nn.ReLU(), Channel(sigma=1e-6), 0.05, True),
        (nn.ReLU(), Channel(sigma=1e-6), 1.0, False),  # other pictures
        (nn.ReLU(), Channel(), 0.05, False),  # nothing but rounding lies between
        (nn.ReLU(), Channel(sigma=1e-6, masked=True), 0.05, False),
        (nn.Tanh(), Channel(sigma=1e-6), 0.05, False),
    ],
)
def test_a_first_layer_of_pictures_speaks_for_a_claim(layer, channel, share, shown):
    had = mlp_client(layer)
    gradients = noised(had.gradients(), 1e-6, seeded()).gradient
    drawn = torch.rand(had.inputs.shape, generator=seeded(8))
    mixed = had.inputs + share * (drawn - had.inputs)
    made = Defended(gradients, channel)
    problem, evidence = judged(had, made, mixed)
    assert not is_equal(problem, evidence)
    assert (evidence.residuals[0] <= 1 / 3) == (share < 1)
    assert shows_pictures(problem, evidence) == shown
    assert is_close(problem, evidence) == shown


def test_few_numbers_for_each_pixel_do_not_speak_for_a_claim():
    had = mlp_client(nn.ReLU(), count=12)
    made = noised(had.gradients(), 1e-6, seeded())
    problem, evidence = judged(had, made, had.inputs * 0.97)
    assert evidence.residuals[0] <= 1 / 3
    assert not shows_pictures(problem, evidence)


def test_a_small_tensor_of_noise_does_not_speak_against_a_claim(had):
    """Behind a defence the whole dump is asked, of rounding each tensor."""
    made = noised(had.gradients(), 1e-9, seeded())
    problem, evidence = judged(had, made, near(had, 0.02))
    found = replace(evidence, residuals=(5e-3,), worst_residuals=(0.5,))
    assert not any(found.told)
    assert is_close(problem, found)
    assert not is_close(replace(problem, channel=Channel()), found)


def test_what_explains_no_more_than_chance_is_no_finding(had):
    """At the floor of much noise, where a gray picture would not be by chance."""
    problem, evidence = judged(had, noised(had.gradients(), 1e-3, seeded()), had.inputs)
    assert pictures_found(problem, evidence, Weight()) == ["GA202"]
    by_chance = replace(evidence, residuals=(0.999,), worst_residuals=(0.999,))
    assert is_close(problem, by_chance)
    assert pictures_found(problem, by_chance, Weight()) == []


def pictures_found(problem, evidence, weight):
    found = findings_of(problem, evidence, None, weight)
    return [finding.code for finding in found if finding.code.startswith("GA2")]


def test_answers_alike_because_both_are_gray_confirm_nothing(had):
    """Within 30 dB of one another, but not so much further from gray."""
    nearly = Client(had.module, 0.5 + 0.1 * (had.inputs - 0.5), had.labels)
    one, other = near(nearly, 0.006), near(nearly, 0.006, 1)
    made = noised(nearly.gradients(), 3e-4, seeded())
    problem, evidence = judged(nearly, made, one, other)
    assert evidence.at_floor == (True, True)
    assert min(evidence.agreement) > 30
    assert not is_verified(problem, evidence)


def test_what_was_dropped_has_to_be_small(had):
    """The truth does not explain a dump from which its largest entries were taken."""
    clean = had.gradients()
    large = {name: g.abs() > g.abs().median() for name, g in clean.items()}
    cut = {name: torch.where(large[name], 0.0, g) for name, g in clean.items()}
    made = Defended(cut, Channel(masked=True))
    problem, evidence = judged(had, made, had.inputs)
    assert not is_equal(problem, evidence)


@pytest.mark.parametrize(("share", "off", "close"), [(0.9, 3e-3, True), (0.99, 0.1, False)])
def test_nearly_equal_is_close_where_enough_was_kept(had, share, off, close):
    """A few entries that were kept fit pictures that are a tenth of the pixel range off."""
    made = largest_kept(had.gradients(), share)
    problem, evidence = judged(had, made, near(had, off))
    assert evidence.worst_residuals[0] < 1e-2
    assert not is_equal(problem, evidence)
    assert is_close(problem, evidence) == close


def test_signs_have_no_floor(had):
    problem, evidence = judged(had, signs_of(had.gradients()), had.inputs, had.inputs)
    assert not is_equal(problem, evidence)
    assert not is_close(problem, evidence)


def test_noise_that_was_said_too_small(had):
    made = noised(had.gradients(), 1e-2, seeded())
    problem, evidence = judged(had, replace(made, channel=Channel(sigma=1e-3)), had.inputs)
    assert evidence.misfits[0] > 50
    assert not is_equal(problem, evidence)


def test_a_clear_channel_changes_nothing(had):
    problem, evidence = judged(had, Defended(had.gradients(), Channel()), had.inputs, had.inputs)
    assert evidence.at_floor == evidence.misfits == ()
    assert is_verified(problem, evidence)


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        (Channel(), "equals the dump"),
        (Channel(sigma=1e-3), "equals the dump up to its noise of 1.0e-03"),
        (Channel(masked=True), "equals the dump in the entries that were sent"),
        (
            Channel(sigma=0.1, scaled=True),
            "equals the dump up to its noise of 1.0e-01, up to a factor",
        ),
        (Channel(steps={"a": 1.0}), "equals the dump up to the steps it was rounded to"),
    ],
)
def test_words(had, channel, words):
    assert equals_in_words(replace(had.problem(), channel=channel)) == words


def test_fewer_entries_than_pixels_say_nothing():
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    had = Client(module, torch.rand(1, 1, 8, 8, generator=seeded()), torch.tensor([1]))
    made = noised({"1.bias": had.gradients()["1.bias"]}, 1e-3, seeded())
    problem, evidence = judged(had, made, had.inputs)
    assert not is_equal(problem, evidence)
