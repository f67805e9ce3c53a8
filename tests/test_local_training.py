"""Steps of SGD as weights of their gradients: against torch's optimizer, and by hand."""

import pytest
import torch

from auditor.local_training import (
    heaviest_weight,
    midway,
    pseudo_gradient,
    schedule,
    simulate,
    total_steps,
)
from auditor.records import LocalTraining

TRAININGS = {
    "one step": LocalTraining(0.1, 1, None),
    "one step, decay": LocalTraining(0.1, 1, None, 0.0, 0.3),
    "plain": LocalTraining(0.1, 5, None),
    "momentum": LocalTraining(0.05, 4, None, 0.9),
    "decay": LocalTraining(0.1, 5, None, 0.0, 0.1),
    "both, epochs": LocalTraining(0.05, 2, None, 0.5, 0.2, 3),
}
each = pytest.mark.parametrize("training", TRAININGS.values(), ids=TRAININGS)


def gradients_of(count):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, generator=generator, dtype=torch.float64)


def sgd(training, gradients):
    """A weight (3,) before and after torch's own steps with given gradients."""
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(
        [weight], training.lr, momentum=training.momentum, weight_decay=training.weight_decay
    )
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    return before, weight.detach()


@each
def test_the_update_is_a_weighted_mean_of_gradients(training):
    gradients = gradients_of(total_steps(training))
    before, after = sgd(training, gradients)
    found = pseudo_gradient({"w": after - before}, {"w": before}, training)["w"]
    shares = torch.tensor(schedule(training).shares, dtype=torch.float64)
    assert float(shares.sum()) == pytest.approx(1)
    assert torch.allclose(found, shares @ gradients, rtol=1e-12, atol=1e-12)


def test_shares_by_hand():
    assert schedule(TRAININGS["plain"]).shares == pytest.approx((0.2,) * 5)
    assert schedule(TRAININGS["plain"]).scale == pytest.approx(0.5)
    # momentum 1/2, three steps: the first gradient moves the weight by 1 + 1/2 + 1/4
    plan = schedule(LocalTraining(1.0, 3, None, 0.5))
    assert plan.shares == pytest.approx((1.75 / 4.25, 1.5 / 4.25, 1 / 4.25))
    assert plan.decayed == 0
    # weight decay: (1 - lr w)^T of the weight is left
    assert schedule(TRAININGS["decay"]).decayed == pytest.approx(1 - 0.99**5)


@pytest.mark.parametrize("training", [LocalTraining(None, 3, None), LocalTraining(0.1, None, None)])
def test_what_is_not_known_has_no_schedule(training):
    assert schedule(training) is None
    assert heaviest_weight(training, 4, mean=True) is None
    found = pseudo_gradient({"w": torch.ones(2)}, {"w": torch.ones(2)}, training)["w"]
    assert torch.equal(found.sign(), -torch.ones(2))
    with pytest.raises(ValueError, match="cannot be simulated"):
        simulate(training, {}, torch.ones(2, 1), torch.ones(2), lambda w, x, y: w)


def quadratic(weights, x, _):
    """The gradient of the mean of (w - x)^2 / 2."""
    return {"w": weights["w"] - x.mean(0)}


@each
@pytest.mark.parametrize("batch", [None, 2])
def test_simulated_steps_are_those_of_the_optimizer(training, batch):
    """On a quadratic whose gradients depend on the weights, and so on the steps before."""
    x = gradients_of(4)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    before = weight.detach().clone()
    optimizer = torch.optim.SGD(
        [weight], training.lr, momentum=training.momentum, weight_decay=training.weight_decay
    )
    batches = x.split(batch or 4)
    for step in range(total_steps(training)):
        weight.grad = weight.detach() - batches[step % len(batches)].mean(0)
        optimizer.step()
    sent = pseudo_gradient({"w": weight.detach() - before}, {"w": before}, training)["w"]
    local = LocalTraining(
        training.lr, training.steps, batch, training.momentum, training.weight_decay,
        training.epochs,
    )  # fmt: skip
    found = simulate(local, {"w": before}, x, torch.zeros(4), quadratic)["w"]
    assert torch.allclose(found, sent, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("training", "samples", "mean", "expected"),
    [
        (LocalTraining(0.1, 5, 4), 4, True, 1.0),  # one batch again and again
        (LocalTraining(0.1, 4, 2), 8, True, 1.0),  # each sample once
        (LocalTraining(0.1, 4, 2), 8, False, 0.25),
        (LocalTraining(0.1, 3, 2), 4, True, 4 / 3),  # the first batch twice, the second once
        (LocalTraining(1.0, 2, 1, 0.5), 2, True, 2 * 1.5 / 2.5),  # momentum: the first counts more
        (LocalTraining(0.1, 2, 2), 3, True, 1.5),  # a batch of one
    ],
)
def test_the_heaviest_sample(training, samples, mean, expected):
    assert heaviest_weight(training, samples, mean=mean) == pytest.approx(expected)


@each
def test_midway_is_the_mean_place_of_the_steps(training):
    """By torch's own steps along a straight way: equal gradients, no decay."""
    plain = LocalTraining(
        training.lr, training.steps, None, training.momentum, 0.0, training.epochs
    )
    count = total_steps(plain)
    places = []
    for steps in range(count + 1):
        before, after = sgd(plain, torch.ones(steps, 3, dtype=torch.float64))
        places.append(float((before - after)[0]))
    shares = schedule(plain).shares
    wanted = sum(share * place for share, place in zip(shares, places[:-1], strict=True))
    assert midway(plain) == pytest.approx(wanted / places[-1], abs=1e-12)


def test_midway_by_hand():
    assert midway(LocalTraining(0.1, 1, None)) == 0
    assert midway(LocalTraining(0.1, 10, None)) == pytest.approx((1 - 1 / 10) / 2)
    assert midway(LocalTraining(None, 10, None)) is None
