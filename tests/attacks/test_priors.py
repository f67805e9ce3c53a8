"""Pictures by direction and priors: checked against autograd, a closed form and a small network."""

import math
import time
from dataclasses import replace

import pytest
import torch
from problems import WATCH, Client, batch, client, lenet_client, noised
from torch import nn

from auditor.attacks import ImagePriors, Watch
from auditor.attacks.objectives import direction, logit_gradient
from auditor.attacks.picture_starts import coordinates, first_row
from auditor.attacks.priors import Prior, total_variation
from auditor.evidence import examine, is_verified
from auditor.metrics import psnr

STARTS = ["gray", "field", "noise", "tiles"]


class Plain(nn.Module):
    """Two convolutions with batch norm and ReLU, then the mean over places."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, 2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Linear(8 * 16, 5)

    def forward(self, x):
        return self.fc(self.body(x).flatten(1))


def plain_client(count=1):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module = Plain()
        module(torch.randn(64, 1, 8, 8))  # running statistics of something
    return Client(module.eval(), *batch(count, 5, seed=1, shape=(1, 8, 8)))


def smooth(had):
    """The same client with a picture of one soft wave."""
    side = had.inputs.shape[-1]
    ramp = torch.linspace(0, math.pi, side)
    picture = 0.5 + 0.35 * ramp.cos()[:, None] * (0.7 * ramp).sin()
    return replace(had, inputs=picture.expand_as(had.inputs).clone())


# --------------------------------------------------------------------------- the objective


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("weighting", ["whole", "tensor"])
def test_the_truth_has_distance_zero_at_any_scale(count, weighting):
    had = plain_client(count)
    for scale in (1.0, 1e-9):
        sent = {name: scale * part for name, part in had.gradients().items()}
        match = direction(had.problem(sent), had.labels)
        inputs = had.inputs.double()
        assert float(match.distance(inputs, weighting).detach()) < 1e-6
        assert float(match.distance(1 - inputs, weighting).detach()) > 1e-3


def test_the_distance_by_its_definition():
    """For a batch the candidate's own gradient counts: one cosine over all numbers."""
    had = plain_client(2)
    problem = had.problem()
    other = replace(had, inputs=had.inputs.flip(3))
    mine = torch.cat([part.flatten() for part in other.gradients().values()]).double()
    sent = torch.cat([part.flatten() for part in had.gradients().values()]).double()
    expected = 1 - torch.nn.functional.cosine_similarity(mine, sent, dim=0)
    found = direction(problem, had.labels).distance(other.inputs.double(), "whole")
    assert float(found.detach()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_the_logits_gradient_of_the_only_sample(bias):
    had = client("relu", bias=bias)
    probabilities = had.logits().softmax(1)
    probabilities[0, had.labels[0]] -= 1
    expected = probabilities / probabilities.abs().max()
    found = logit_gradient(had.problem(), had.labels)
    assert torch.allclose(found.float(), expected, atol=1e-5)


def test_a_batch_drives_itself():
    had = client("relu", 2)
    assert logit_gradient(had.problem(), had.labels) is None


def test_total_variation_in_closed_form():
    ramp = torch.arange(4.0).expand(1, 1, 3, 4)  # 1 across, 0 down
    assert float(total_variation(ramp)) == 1
    assert float(total_variation(torch.ones(2, 3, 1, 1))) == 0


# --------------------------------------------------------------------------- coordinates and starts


def test_coordinates_and_back():
    had = lenet_client(2)
    problem = had.problem(mean=(0.4,), std=(0.25,))
    space = coordinates(problem)
    u = torch.randn(3, 2 * 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(space.of(space.rows(u)), u)
    gray = space.rows(torch.zeros_like(u))
    assert torch.allclose(gray, torch.full_like(gray, (0.5 - 0.4) / 0.25))


def test_the_box_is_black_to_white():
    problem = lenet_client().problem(mean=(0.4,), std=(0.25,))
    far = torch.tensor([[-100.0, 100.0]], dtype=torch.float64).repeat(1, 32)
    boxed = coordinates(problem).boxed(far)
    assert boxed.unique().tolist() == pytest.approx([-1.6, 2.4])


@pytest.mark.parametrize("start", STARTS)
def test_starts_differ_by_draw_and_stay_near_the_box(start):
    problem = lenet_client(2).problem()
    space, generator = coordinates(problem), torch.Generator().manual_seed(0)
    one, two = (first_row(problem, space, start, generator) for _ in range(2))
    assert one.shape == (1, 128)
    assert not torch.equal(one, two)
    pixels = space.rows(one)
    assert -0.5 < pixels.min() < pixels.max() < 1.5


def test_tiles_repeat():
    problem = lenet_client().problem()
    space = coordinates(problem)
    row = first_row(problem, space, "tiles", torch.Generator().manual_seed(0))
    picture = space.rows(row).view(8, 8)
    assert torch.allclose(picture[:4, :4], picture[4:, 4:])


# --------------------------------------------------------------------------- the attack


@pytest.mark.parametrize("seed", [0, 1])
def test_a_smooth_picture_comes_back_from_a_relu_network(seed):
    """Better by far than any single gray: the structure is there, not the brightness alone."""
    had = smooth(plain_client())
    problem = had.problem()
    quick = ImagePriors(heats=4, heat_steps=40, steps=150)
    recovery = quick.run(problem, seed=seed, watch=WATCH)
    evidence = examine(problem, recovery, attack=quick.name, seconds=0.0)
    flat = psnr(had.inputs.mean().expand_as(had.inputs), had.inputs)
    found = recovery.inputs[evidence.best].float()
    assert float(psnr(found, had.inputs)) > float(flat) + 6


def test_what_a_prior_chose_is_never_verified():
    had = smooth(lenet_client())
    problem = had.problem()
    quick = ImagePriors(heats=2, heat_steps=20, steps=50)
    recovery = quick.run(problem, seed=0, watch=WATCH)
    evidence = examine(problem, recovery, attack=quick.name, seconds=0.0)
    assert recovery.guided
    assert evidence.agreement == ()
    assert not is_verified(problem, evidence)


def test_what_was_assumed_is_said():
    had = plain_client()
    only = ImagePriors(heats=1, heat_steps=2, steps=2, priors=(Prior(statistics=0.1),))
    assumed = only.run(had.problem(), seed=0, watch=WATCH).assumed
    assert any("batch norm" in said for said in assumed)
    assert any("neighbouring pixels" in said for said in assumed)
    without = replace(only, priors=(Prior(),)).run(had.problem(), seed=0, watch=WATCH).assumed
    assert not any("batch norm" in said for said in without)


def test_every_pixel_is_in_its_range():
    had = plain_client(2)
    problem = had.problem(mean=(0.4,), std=(0.25,))
    recovery = ImagePriors(heats=3, heat_steps=5, steps=5).run(problem, seed=0, watch=WATCH)
    assert recovery.inputs.shape[1:] == (2, 1, 8, 8)
    assert recovery.inputs.min() >= (0 - 0.4) / 0.25 - 1e-9
    assert recovery.inputs.max() <= (1 - 0.4) / 0.25 + 1e-9
    assert recovery.inputs.std() > 0.01


@pytest.mark.parametrize("count", [1, 2])
def test_the_first_row_points_nearest_and_no_row_points_elsewhere(count):
    had = plain_client(count)
    problem = had.problem()
    attack = ImagePriors(heats=6, heat_steps=20, steps=60, finals=4)
    recovery = attack.run(problem, seed=0, watch=WATCH)
    match = direction(problem, recovery.input_labels[0])
    far = [float(match.distance(row, "whole").detach()) for row in recovery.inputs]
    assert far == sorted(far)
    assert far[-1] <= 1.1 * far[0] + 1e-12
    assert len(recovery.courses) == len(far) <= 4


def test_priors_that_change_nothing_are_not_tried():
    """Without batch norm and ReLU: half of them would be the first one again."""
    offered = (Prior(statistics=0.02), Prior(sharpness=5.0), Prior(weighting="tensor"))
    quick = ImagePriors(heats=1, heat_steps=3, steps=3, priors=offered)
    smoothly = quick.run(lenet_client().problem(), seed=0, watch=WATCH)
    alone = replace(quick, priors=offered[2:]).run(lenet_client().problem(), seed=0, watch=WATCH)
    assert torch.equal(smoothly.inputs, alone.inputs)
    rough = quick.run(plain_client().problem(), seed=0, watch=WATCH)
    assert any("batch norm" in said for said in rough.assumed)


def test_a_deadline_is_kept():
    had = plain_client()
    begun = time.monotonic()
    long = ImagePriors(heats=8, heat_steps=200, steps=100_000)
    recovery = long.run(had.problem(), seed=0, watch=Watch(deadline=begun + 1.5))
    assert time.monotonic() - begun < 3.5
    assert recovery.expired
    assert len(recovery.inputs) >= 1
    assert all(course.steps[-1] < 100_000 for course in recovery.courses)


def test_noise_is_not_explained():
    had = plain_client()
    problem = had.problem(noised(had.gradients(), 1.0))
    recovery = ImagePriors(heats=2, heat_steps=20, steps=60).run(problem, seed=0, watch=WATCH)
    evidence = examine(problem, recovery, attack="images.priors", seconds=0.0)
    assert min(evidence.worst_residuals) > 0.1


def test_blocked():
    problem = client("tanh", 4, 5).problem()
    assert ImagePriors().blocked_by(problem) is None
    assert ImagePriors().blocked_by(client("tanh", 4, 5).problem(size=None)) == (
        "the batch size is unknown: say it with --batch-size"
    )
    table = replace(problem, knowledge=replace(problem.knowledge, input_shape=(16,)))
    assert (
        ImagePriors().blocked_by(table)
        == "its priors are about neighbouring places, and the columns of a table have none"
    )


def test_blocked_without_a_head():
    had = client("tanh", 4, 5)
    sent = {n: g for n, g in had.gradients().items() if n.startswith("body")}
    assert ImagePriors().blocked_by(had.problem(sent)) == (
        "the head's gradient gives no labels to start from"
    )
