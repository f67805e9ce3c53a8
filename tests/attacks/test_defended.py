"""An attacker who knows of the defence gets more than one who does not."""

import math
import time
from dataclasses import replace

import pytest
import torch
from problems import WATCH, Client, lenet_client, tiny_lenet
from torch import nn
from torch.nn import functional as F

from auditor.attacks import Defended, LevenbergMarquardt, Search, Watch, defended
from auditor.attacks.defended import linearised
from auditor.attacks.defended_starts import label_candidates, read_start
from auditor.attacks.likelihood import likelihood, thresholds
from auditor.attacks.picture_prior import picture_prior
from auditor.bounds.fisher import fisher_of, predicted_psnr
from auditor.defences.applied import as_int8, clipped, largest_kept, noised, signs_of
from auditor.problem import gradient_of
from auditor.records import Channel


def smooth(count, size, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 3, 3, generator=generator)
    return F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True).clamp(0, 1)


SOME = LevenbergMarquardt().smoothness[::3]  # stages of the naive attacker's own prior


def smooth_client(count=1, size=8):
    labels = torch.arange(count) % 4
    return Client(tiny_lenet(size=size), smooth(count, size), labels)


def problem_after(had, made, **known):
    problem = had.problem(made.gradient, **known)
    return replace(problem, channel=made.channel, precision=made.precision)


def psnr(found, had):
    """Of the best row, its worst sample in the best order, dB."""
    rows = found.inputs.clamp(0, 1)[:, :, None]
    apart = (rows - had.inputs[None, None].double()).square().flatten(3).mean(3)
    return -10 * math.log10(float(apart.amin(1).amax(1).min()))


def attack(problem, watch=WATCH, seed=0, **settings):
    return Defended(**settings).run(problem, seed=seed, watch=watch)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# --------------------------------------------------------------------------- the likelihood


def of_truth(had, made, blur=0.0, labels=None):
    match = likelihood(problem_after(had, made), had.labels if labels is None else labels)
    return match, match.residual(had.inputs.double(), blur).detach()


def test_noise_is_whitened():
    """At the truth the residual is the noise that was drawn, in its own units."""
    had = lenet_client()
    clean, made = had.gradients(), noised(had.gradients(), 0.01, seeded())
    _, residual = of_truth(had, made)
    drawn = torch.cat([(clean[n] - made.gradient[n]).flatten() for n in clean]) / 0.01
    # Single precision, and the rounding that the noise is joined with.
    assert torch.allclose(residual.float(), drawn, rtol=0.02, atol=1e-3)
    assert float(residual.square().mean()) == pytest.approx(1, abs=0.1)


def test_steps_are_noise_of_their_variance():
    had = lenet_client()
    made = as_int8(had.gradients())
    _, residual = of_truth(had, made)
    clean, at = had.gradients(), 0
    for name, part in clean.items():
        wanted = (part - made.gradient[name]).flatten() * math.sqrt(12) / made.channel.steps[name]
        assert torch.allclose(
            residual[at : at + part.numel()].float(), wanted, rtol=0.02, atol=0.02
        )
        at += part.numel()


def test_dropped_entries_are_only_small():
    had = lenet_client()
    made = largest_kept(had.gradients(), 0.9)
    match, residual = of_truth(had, made)
    assert float(residual.abs().max()) < 0.1
    pulled = torch.cat([(g == 0).flatten() for g in made.gradient.values()])
    elsewhere = match.residual(0.5 * had.inputs.double(), 0.0).detach()
    assert float(elsewhere[~pulled].abs().max()) > 100
    # Plain matching would count each dropped entry of the truth.
    plain = had.problem(made.gradient)
    apart = gradient_of(plain, had.inputs.double(), had.labels)["fc.weight"]
    assert float((apart - plain.gradient["fc.weight"]).abs().max()) > 1e-4


def test_thresholds_are_the_smallest_kept():
    gradient = {"a": torch.tensor([3.0, -2.0, 0.0, 0.0]), "b": torch.tensor([0.5, 0.0])}
    problem = replace(lenet_client().problem(), gradient=gradient, channel=Channel(masked=True))
    assert {n: float(t) for n, t in thresholds(problem).items()} == {"a": 2.0, "b": 0.5}
    uneven = gradient | {"c": torch.zeros(9)}
    assert {float(t) for t in thresholds(replace(problem, gradient=uneven)).values()} == {0.5}
    assert thresholds(replace(problem, channel=Channel())) == {}


def test_signs_of_the_truth_cost_only_the_margin():
    had = lenet_client()
    match, residual = of_truth(had, signs_of(had.gradients()))
    other = match.residual(1 - had.inputs.double(), 0.0).detach()
    assert float(residual.max()) <= 1  # an entry of the right sign is within the margin
    assert float(residual.square().sum()) < 0.1 * float(other.square().sum())


def test_a_factor_drops_out():
    had = lenet_client()
    _, one = of_truth(had, clipped(had.gradients(), 0.5))
    _, other = of_truth(had, clipped(had.gradients(), 0.01))
    assert float(one.abs().max()) < 0.1
    assert float(other.abs().max()) < 0.1


def test_blur_forgives():
    had = lenet_client()
    match = likelihood(problem_after(had, noised(had.gradients(), 1e-4, seeded())), had.labels)
    gray = torch.full_like(had.inputs.double(), 0.5)
    sizes = [float(match.residual(gray, b).detach().square().sum()) for b in (0.0, 0.1, 1.0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 1000 * sizes[2]


@pytest.mark.parametrize("form", ["map", "matrix"])
def test_the_jacobian_is_the_slope(form, monkeypatch):
    monkeypatch.setattr(defended, "_DENSE", 0 if form == "map" else 256)
    had = lenet_client()
    match = likelihood(problem_after(had, clipped(had.gradients(), 0.1)), had.labels)
    prior = picture_prior(match.problem)
    z = prior.of(had.inputs.double()) + 0.1

    def terms(row):
        return match.residual(prior.inputs(row), 0.3)

    values, found = linearised(lambda rows: torch.stack([terms(row) for row in rows]), z[None])
    direction, step = torch.randn(z.shape, generator=seeded(), dtype=torch.float64), 1e-5
    ahead, behind = (terms(z + sign * step * direction).detach() for sign in (1, -1))
    slope = (ahead - behind) / (2 * step)
    assert torch.allclose(values[0], terms(z).detach())
    up = torch.randn(values[0].shape, generator=seeded(1), dtype=torch.float64)
    if form == "matrix":
        assert torch.allclose(found[0] @ direction, slope, rtol=1e-4, atol=1e-6)
        return
    image = found.forward(direction[None])[0]
    assert torch.allclose(image, slope, rtol=1e-4, atol=1e-6)
    assert float(found.adjoint(up[None])[0] @ direction) == pytest.approx(float(image @ up))


# --------------------------------------------------------------------------- the priors


@pytest.mark.parametrize("channels", [1, 3])
def test_coordinates_go_there_and_back(channels):
    had = Client(tiny_lenet(channels=channels), smooth(2, 8, channels), torch.tensor([0, 1]))
    problem = had.problem(mean=(0.4,) * channels, std=(0.2,) * channels)
    prior = picture_prior(problem)
    inputs = (had.inputs.double() - 0.4) / 0.2
    z = prior.of(inputs)
    assert torch.allclose(prior.inputs(z), inputs)
    assert torch.allclose(prior.pixels(z), had.inputs.double())
    plain = prior.terms(z, "pixels")
    assert torch.allclose(plain[: len(z)], math.sqrt(12) * (had.inputs.double().flatten() - 0.5))
    assert not plain[len(z) :].any()  # nothing lies outside
    assert torch.equal(prior.terms(z, "waves")[: len(z)], z)


def test_rough_and_colourful_pictures_are_less_likely():
    had = Client(tiny_lenet(channels=3), smooth(1, 8, 3), torch.tensor([0]))
    prior = picture_prior(had.problem())
    size = lambda pixels: float(prior.of(pixels.double()).square().sum())  # noqa: E731
    gray = had.inputs.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    board = 0.5 + 0.1 * (-1.0) ** (torch.arange(8)[:, None] + torch.arange(8)).expand(1, 3, 8, 8)
    ramp = 0.5 + 0.1 * torch.linspace(-1.7, 1.7, 8).expand(1, 3, 8, 8)
    assert size(gray) < size(had.inputs)
    assert size(ramp) < 0.1 * size(board)


# --------------------------------------------------------------------------- the attack


MADE = {
    "noise": lambda g: noised(g, 0.01, seeded()),
    "top-k": lambda g: largest_kept(g, 0.9),
}


@pytest.mark.parametrize(("name", "least"), [("noise", 15), ("top-k", 30)])
def test_pictures_come_back_better_than_by_plain_matching(name, least):
    had = smooth_client()
    made = MADE[name](had.gradients())
    found = attack(problem_after(had, made))
    assert psnr(found, had) > least
    ignorant = problem_after(had, replace(made, channel=Channel()))
    naive = LevenbergMarquardt(Search(restarts=1, at_once=1, enough=1), 10, smoothness=SOME)
    assert psnr(found, had) > psnr(naive.run(ignorant, seed=0, watch=WATCH), had) + 3


@pytest.mark.parametrize("made", [lambda g: clipped(g, 0.1), as_int8], ids=["clipping", "int8"])
def test_what_hides_nothing(made):
    had = smooth_client()
    assert psnr(attack(problem_after(had, made(had.gradients()))), had) > 45


@pytest.mark.parametrize("sigma", [1e-4, 1e-2])
def test_the_plain_prior_comes_up_to_its_prediction(sigma):
    """With J at the truth, the posterior variance of a linear model (van Trees)."""
    had = smooth_client()
    problem = problem_after(had, noised(had.gradients(), sigma, seeded()))
    found = attack(problem)
    known = fisher_of(problem, had.inputs.double(), had.labels, noise=sigma, expired=lambda: False)
    plain = replace(found, inputs=found.inputs[1:])
    assert psnr(plain, had) == pytest.approx(float(predicted_psnr(known)[0]), abs=3)
    assert psnr(found, had) >= psnr(plain, had)


def test_signs_say_more_than_nothing():
    had = smooth_client()
    problem = problem_after(had, signs_of(had.gradients()))
    found = attack(problem)
    gray = replace(found, inputs=torch.full_like(found.inputs, 0.5))
    assert psnr(found, had) > psnr(gray, had) + 3
    assert found.guided


def test_batches_come_back():
    had = smooth_client(2)
    found = attack(problem_after(had, noised(had.gradients(), 1e-4, seeded())))
    assert psnr(found, had) > 25
    assert found.input_labels[0].tolist() == had.labels.tolist()


def test_much_noise_leaves_the_prior():
    had = smooth_client()
    found = attack(problem_after(had, noised(had.gradients(), 30.0, seeded())))
    assert float((found.inputs - 0.5).abs().max()) < 0.5
    assert psnr(found, had) < 20


def test_two_priors_that_agree_are_not_guided():
    had = smooth_client()
    found = attack(problem_after(had, noised(had.gradients(), 1e-5, seeded())))
    assert len(found.inputs) == 2
    assert not found.guided
    assert float((found.inputs[0] - found.inputs[1]).square().mean()) < 1e-3


def test_two_priors_that_differ_are_guided():
    had = smooth_client()
    found = attack(problem_after(had, noised(had.gradients(), 0.1, seeded())))
    assert found.guided
    assert any("smoothly" in premise for premise in found.assumed)


def test_relu_after_a_first_linear_layer():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 4))
    had = Client(module, smooth(1, 8), torch.tensor([2]))
    problem = problem_after(had, noised(had.gradients(), 1e-3, seeded()))
    start = read_start(problem)
    found = attack(problem)
    assert float((start - had.inputs).square().mean()) < 1e-3
    assert psnr(found, had) >= -10 * math.log10(float((start - had.inputs).square().mean())) - 0.1
    assert read_start(replace(problem, channel=Channel(signs=True))) is None
    assert read_start(smooth_client().problem()) is None


# --------------------------------------------------------------------------- labels


def test_one_label_when_the_noise_is_small():
    had = lenet_client(seed=3)
    problem = problem_after(had, noised(had.gradients(), 1e-3, seeded()))
    assert [found.tolist() for found in label_candidates(problem)] == [had.labels.tolist()]


def test_the_likelihood_chooses_among_labels():
    """The bias alone speaks for another label, but by less than its noise; the rest decides."""
    had = smooth_client()
    made = noised(had.gradients(), 0.05, seeded())
    bias = made.gradient["fc.bias"].clone()
    bias[1] = bias[0] - 0.1
    made = replace(made, gradient={**made.gradient, "fc.bias": bias})
    problem = problem_after(had, made)
    assert [int(found) for found in label_candidates(problem)] == [1, 0]
    found = attack(problem, starts=1, stage_steps=2, last_steps=2)
    assert found.input_labels[0].tolist() == had.labels.tolist() == [0]


def test_labels_of_a_batch_are_counted():
    had = smooth_client(3)
    problem = problem_after(had, noised(had.gradients(), 1e-4, seeded()))
    assert label_candidates(problem)[0].tolist() == [0, 1, 2]


# --------------------------------------------------------------------------- manners


def test_what_blocks_it():
    had = lenet_client()
    made = noised(had.gradients(), 1e-3, seeded())
    problem = problem_after(had, made)
    assert Defended().blocked_by(problem) is None
    assert "no defence" in Defended().blocked_by(had.problem())
    assert "batch size" in Defended().blocked_by(problem_after(had, made, size=None))
    nothing = {name: torch.zeros_like(g) for name, g in problem.gradient.items()}
    assert "zero" in Defended().blocked_by(replace(problem, gradient=nothing))


def test_same_seed_same_answer_and_nothing_touched():
    had = lenet_client()
    problem = problem_after(had, noised(had.gradients(), 1.0, seeded()))
    before = {name: value.clone() for name, value in problem.module.state_dict().items()}
    state = torch.get_rng_state().clone()
    short = {"starts": 1, "stage_steps": 1, "last_steps": 1}
    one, other = attack(problem, **short), attack(problem, **short)
    assert torch.equal(one.inputs, other.inputs)
    assert not torch.equal(one.inputs, attack(problem, seed=1, **short).inputs)
    assert torch.equal(state, torch.get_rng_state())
    after = problem.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None for p in problem.module.parameters())
    assert not one.inputs.requires_grad


def test_courses_tell_the_way():
    had = smooth_client()
    found = attack(problem_after(had, noised(had.gradients(), 1e-3, seeded())))
    course = found.courses[0]
    assert course.steps[0] == 0
    assert list(course.steps) == sorted(course.steps)
    assert course.objective[-1] < 0.1 * course.objective[0]
    assert course.snapshots.shape == (len(course.snapshot_steps), 1, 1, 8, 8)
    assert len(found.courses) == len(found.inputs)


def test_the_budget_is_kept():
    had = lenet_client(4, size=16)
    begun = time.monotonic()
    problem = problem_after(had, noised(had.gradients(), 1e-5, seeded()))
    found = attack(problem, watch=Watch(deadline=begun + 0.5))
    assert found.expired
    assert time.monotonic() - begun < 5


def test_a_budget_that_is_over():
    had = lenet_client()
    problem = problem_after(had, noised(had.gradients(), 1e-5, seeded()))
    found = attack(problem, watch=Watch(deadline=time.monotonic()))
    assert found.inputs.shape == (0, 1, 1, 8, 8)
    assert found.input_labels.shape == (0, 1)
    assert found.expired
