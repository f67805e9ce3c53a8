"""An attack does not grade itself: its claim is worth what its gradient is worth."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from problems import Client, batch, client, lenet_client, noised, rounded
from torch import nn

from auditor.evidence import (
    AGREE,
    CONSISTENT,
    UNLIKE,
    best_pixels,
    examine,
    is_equal,
    is_proved,
    is_verified,
    where_it_ended,
)
from auditor.problem import gradient_of, relative_residual, residuals_of, tolerance_of
from auditor.records import Course, Evidence, Failed, LabelClaim, LinkReport, Recovery


def claim(inputs, labels, **more):
    """A recovery that claims these rows (R, N, C, H, W) and labels (R, N)."""
    courses = tuple(
        Course((0,), (0.0,), (0,), row[None].float(), "reached the goal") for row in inputs
    )
    return Recovery(inputs=inputs, input_labels=labels, courses=courses, evaluations=9, **more)


def rows(had, *changes):
    """The truth, changed in several ways: one row a change."""
    truth = had.inputs.double()
    return torch.stack([change(truth) for change in changes])


def labels_of(had, count):
    return had.labels.expand(count, -1)


def judged(had, inputs, labels=None, gradients=None) -> Evidence:
    problem = had.problem(gradients)
    labels = labels_of(had, len(inputs)) if labels is None else labels
    return examine(problem, claim(inputs, labels), attack="images.says", seconds=1.5)


def same(x):
    return x


def noise_like(x, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(x.shape, generator=generator, dtype=x.dtype)


def nearly(size, seed=0):
    return lambda x: x + noise_like(x, size, seed)


def other(seed=0):
    return lambda x: torch.rand(
        x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype
    )


# --------------------------------------------------------------------------- residuals


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_truth_twice_is_verified(count, reduction):
    had = lenet_client(count, reduction=reduction)
    problem = had.problem()
    evidence = judged(had, rows(had, nearly(1e-7), nearly(1e-7, 1)))
    assert is_equal(problem, evidence)
    assert is_verified(problem, evidence)
    assert evidence.agreeing == 2
    assert len(evidence.agreement) == count
    assert min(evidence.agreement) > 100
    assert max(evidence.worst_residuals) < 1e-4
    assert (evidence.attack, evidence.seconds) == ("images.says", 1.5)
    assert evidence.floor == problem.precision


def test_residuals_are_those_of_the_one_definition():
    had = lenet_client(2)
    problem = had.problem()
    inputs = rows(had, same, nearly(0.1), other())
    evidence = judged(had, inputs)
    for row in range(3):
        found = gradient_of(problem, inputs[row], had.labels)
        layers = residuals_of(problem, found)
        assert evidence.residuals[row] == pytest.approx(relative_residual(problem, found))
        assert evidence.worst_residuals[row] == pytest.approx(max(layers.values()))
    assert evidence.best == 0
    assert evidence.layers == pytest.approx(
        residuals_of(problem, gradient_of(problem, inputs[0], had.labels)), abs=1e-6
    )


def test_a_lie_gets_a_large_residual():
    """Wrong picture, right label; the attack says that it reached its goal."""
    had = lenet_client()
    problem = had.problem()
    evidence = judged(had, rows(had, other(1), other(2)))
    assert min(evidence.worst_residuals) > CONSISTENT
    assert not is_equal(problem, evidence)
    assert not is_verified(problem, evidence)
    assert evidence.agreement == ()
    assert evidence.agreeing == 0


def test_the_same_lie_twice_is_not_verified():
    had = lenet_client()
    evidence = judged(had, rows(had, other(1), other(1)))
    assert not is_verified(had.problem(), evidence)
    assert evidence.agreeing == 0


def test_the_right_picture_with_a_wrong_label_is_a_lie():
    had = lenet_client()
    wrong = (labels_of(had, 2) + 1) % 4
    evidence = judged(had, rows(had, same, same), wrong)
    assert min(evidence.worst_residuals) > 0.1


def test_one_wrong_tensor_is_enough():
    """The norm of the head's gradient would hide a wrong first layer."""
    had = lenet_client()
    sent = had.gradients()
    name = next(iter(sent))
    sent[name] = sent[name] * 1.05
    problem = had.problem(sent)
    evidence = judged(had, rows(had, same, same), gradients=sent)
    assert evidence.worst_residuals[0] == pytest.approx(0.05 / 1.05, rel=1e-3)
    assert evidence.worst_residuals[0] == evidence.layers[name]
    assert evidence.residuals[0] < evidence.worst_residuals[0]
    assert not is_equal(problem, evidence)


@pytest.mark.parametrize(
    ("dtype", "equal"), [(torch.float32, True), (torch.float16, True), (torch.bfloat16, True)]
)
def test_the_truth_equals_a_rounded_dump(dtype, equal):
    had = lenet_client(2)
    sent = rounded(had.gradients(), dtype)
    evidence = judged(had, rows(had, same, same), gradients=sent)
    assert is_equal(had.problem(sent), evidence) is equal


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_the_truth_does_not_equal_a_noised_dump(sigma):
    had = lenet_client()
    sent = noised(had.gradients(), sigma)
    evidence = judged(had, rows(had, same, same), gradients=sent)
    assert not is_equal(had.problem(sent), evidence)


def test_the_truth_under_batch_norm_in_training_mode():
    """Biases before the norm have gradient zero but for rounding; they must not decide."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 4)
        )
    had = Client(module.eval(), *batch(4, 4), mode="train")
    evidence = judged(had, rows(had, same, same))
    assert is_equal(had.problem(), evidence)
    assert evidence.contrast_open  # and so not verified, see test_batch_statistics.py


# --------------------------------------------------------------------------- what is not a number


def test_nan_is_infinitely_far():
    had = lenet_client()
    evidence = judged(had, rows(had, lambda x: x * math.nan, nearly(1e-6)))
    assert evidence.residuals[0] == math.inf
    assert evidence.worst_residuals[0] == math.inf
    assert evidence.best == 1


def test_nothing_but_nan():
    had = lenet_client()
    evidence = judged(had, rows(had, lambda x: x * math.nan, lambda x: x * math.nan))
    assert set(evidence.worst_residuals) == {math.inf}
    assert not is_equal(had.problem(), evidence)
    assert evidence.agreeing == 0


class Rooted(nn.Module):
    """The head is registered first; the derivative of its features is infinite at zero."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.early = nn.Linear(4, 4, bias=False)

    def forward(self, x):
        return self.head(self.early(x.flatten(1)[:, :4]).square().sqrt())


def test_one_tensor_that_is_nan_is_not_overlooked():
    """The head's tensors are finite and equal the dump; they come first."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        had = Client(Rooted(), 0.1 + batch(1, 3)[0], torch.tensor([1]))
    zero = torch.zeros(1, 1, 1, 4, 4, dtype=torch.float64)
    problem = had.problem()
    found = gradient_of(problem, zero[0], had.labels)
    assert found["early.weight"].isnan().any()
    assert found["head.bias"].isfinite().all()
    sent = {name: g.nan_to_num(1.0).float() for name, g in found.items()}
    evidence = judged(had, zero, had.labels[None], gradients=sent)
    assert evidence.worst_residuals == (math.inf,)
    assert not is_equal(problem, evidence)


# --------------------------------------------------------------------------- agreement


def test_only_restarts_with_a_small_residual_agree():
    had = lenet_client()
    evidence = judged(had, rows(had, same, other(1), other(1), other(1)))
    assert evidence.best == 0
    assert evidence.agreement == ()
    assert evidence.agreeing == 1
    assert is_equal(had.problem(), evidence)
    assert not is_verified(had.problem(), evidence)


def test_one_restart_alone_has_nobody_to_agree_with():
    had = lenet_client()
    evidence = judged(had, rows(had, same))
    assert evidence.agreement == ()
    assert evidence.agreeing == 1
    assert not is_verified(had.problem(), evidence)


@pytest.mark.parametrize("seed", range(3))
def test_the_order_within_a_batch_means_nothing(seed):
    had = lenet_client(4, classes=4)
    had = replace(had, labels=torch.tensor([0, 1, 2, 3]))
    turn = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    inputs = rows(had, nearly(1e-7), lambda x: x[turn])
    labels = torch.stack([had.labels, had.labels[turn]])
    evidence = judged(had, inputs, labels)
    assert evidence.agreeing == 2
    assert min(evidence.agreement) > 100
    assert is_verified(had.problem(), evidence)


def test_every_sample_of_the_batch_must_agree():
    """A linear model cannot tell how two samples of one class share their sum."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        module[1].weight.zero_()
    inputs = 0.25 + batch(2, 3)[0] / 2
    had = Client(module, inputs, torch.tensor([1, 1]))

    def traded(x):
        change = 0.2 * torch.sign(noise_like(x[0], 1.0))
        return torch.stack([x[0] + change, x[1] - change])

    problem = had.problem()
    evidence = judged(had, rows(had, same, traded))
    assert is_equal(problem, evidence)
    assert max(evidence.worst_residuals) <= tolerance_of(problem)
    assert evidence.agreeing == 1
    assert max(evidence.agreement) < AGREE
    assert not is_verified(problem, evidence)


def test_agreement_in_decibels_by_hand():
    """0.01 of the pixel range everywhere is 40 dB."""
    had = lenet_client()
    flat = Client(_blind(), 0.1 + 0.8 * had.inputs, torch.tensor([1]))
    evidence = judged(flat, rows(flat, same, lambda x: x + 0.01))
    assert evidence.agreement[0] == pytest.approx(40, abs=1e-6)
    assert evidence.agreeing == 2


def _blind():
    """A model whose gradient does not depend on its input."""

    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 3)

        def forward(self, x):
            return self.head(0 * x.flatten(1)[:, :2] + 1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Blind()


def test_restarts_that_differ_do_not_agree_however_small_their_residual():
    had = Client(_blind(), *batch(1, 3))
    evidence = judged(had, rows(had, same, other(1), other(2)))
    problem = had.problem()
    assert is_equal(problem, evidence)
    assert evidence.agreeing == 1
    assert not is_verified(problem, evidence)
    assert evidence.agreement[0] < 20


def test_agreement_is_with_the_nearest_restart():
    had = Client(_blind(), 0.2 + batch(1, 3)[0] / 2, torch.tensor([1]))
    evidence = judged(had, rows(had, same, other(1), lambda x: x + 0.001))
    assert evidence.agreement[0] == pytest.approx(60, abs=1e-6)
    assert evidence.agreeing == 2


# --------------------------------------------------------------------------- labels only


class Dim(nn.Module):
    """Features that depend on the picture by so much."""

    def __init__(self, share):
        super().__init__()
        self.share = share
        self.body, self.head = nn.Linear(16, 40), nn.Linear(40, 3)

    def forward(self, x):
        return self.head(1 + self.share * torch.tanh(self.body(x.flatten(1))))


def ceiling_of(share, off, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Dim(share).double()
    inputs, labels = batch(1, 3)
    had = Client(module, inputs.double(), labels)
    sent = {"head.weight": had.gradients()["head.weight"].to(dtype).double()}
    return judged(had, rows(had, nearly(off)), gradients=sent).ceiling


@pytest.mark.parametrize("off", [1e-2, 1e-4, 1e-6])
def test_a_claim_is_worth_its_residual_beside_that_of_unlike_pictures(off):
    """Where the gradient is about linear in the picture, the ceiling is the error, about."""
    assert ceiling_of(1e-3, off) == pytest.approx(-20 * math.log10(off), abs=1)


def test_the_ceiling_falls_with_what_rounding_leaves_of_the_picture():
    found = [ceiling_of(share, 1e-7, torch.float32) for share in (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)]
    assert all(more - less == pytest.approx(20, abs=3) for more, less in pairwise(found))
    assert ceiling_of(1e-8, 1e-7, torch.float32) < UNLIKE


def test_labels_alone_have_no_residual():
    had = client("tanh", 1, 3)
    lower = torch.tensor([1, 0, 0])
    recovery = Recovery(labels=LabelClaim(lower, lower, None, ("T3",), (), complete=True))
    evidence = examine(had.problem(), recovery, attack="labels.head", seconds=0.0)
    assert evidence.best is None
    assert evidence.residuals == ()
    assert not is_equal(had.problem(), evidence)
    assert not is_verified(had.problem(), evidence)


def test_no_restart_at_all_is_a_failure():
    had = lenet_client()
    nothing = claim(torch.zeros(0, 1, 1, 8, 8), torch.zeros(0, 1, dtype=torch.int64))
    found = examine(had.problem(), nothing, attack="images.says", seconds=0.0)
    assert isinstance(found, Failed)
    assert "before the first restart" in found.reason


def test_best_pixels_are_clipped_pictures():
    had = lenet_client(2)
    problem = had.problem(mean=(0.5,), std=(0.5,))
    recovery = claim(rows(had, lambda x: 9 * x - 4), labels_of(had, 1))
    evidence = examine(problem, recovery, attack="images.says", seconds=0.0)
    pictures = best_pixels(problem, evidence)
    assert pictures.shape == (2, 1, 8, 8)
    assert pictures.dtype == torch.float32
    assert (pictures.min(), pictures.max()) == (0, 1)


def test_the_problem_is_left_alone():
    had = lenet_client(2)
    problem = had.problem()
    before = {n: g.clone() for n, g in problem.gradient.items()}
    state = {n: v.clone() for n, v in problem.module.state_dict().items()}
    examine(problem, claim(rows(had, same), labels_of(had, 1)), attack="x", seconds=0.0)
    assert all(torch.equal(problem.gradient[n], g) for n, g in before.items())
    assert all(torch.equal(problem.module.state_dict()[n], v) for n, v in state.items())
    assert all(p.grad is None for p in problem.module.parameters())


# --------------------------------------------------------------------------- proofs


def reading(had, *changes, **more):
    """A claim in two readings whose layers all say that they are solved."""
    solved = LinkReport("fc.weight", 48, 240, 0, 0.0, 1e-7, 1.0, 0, "closed form", False, True)
    found = claim(rows(had, *changes), labels_of(had, len(changes)))
    return replace(found, links=(replace(solved, **more),))


def proved(had, recovery, **known):
    problem = had.problem(**known)
    evidence = examine(problem, recovery, attack="images.layers", seconds=0.0)
    assert isinstance(evidence, Evidence)
    return is_proved(problem, evidence)


def test_two_readings_of_the_truth_are_a_proof():
    had = lenet_client()
    assert proved(had, reading(had, same, same))


@pytest.mark.parametrize(
    "more", [{"solved": False}, {"constrained": True}], ids=["open layer", "inequalities"]
)
def test_every_layer_has_to_say_so(more):
    had = lenet_client()
    assert not proved(had, reading(had, same, same, **more))


def test_a_search_is_no_proof():
    had = lenet_client()
    assert not proved(had, replace(reading(had, same, same), links=()))


def test_one_reading_is_no_proof():
    had = lenet_client()
    assert not proved(had, reading(had, same))


def test_readings_further_apart_than_the_rounding_of_a_pixel_are_no_proof():
    had = lenet_client()
    assert proved(had, reading(had, same, nearly(1e-6)))
    assert not proved(had, reading(had, same, nearly(4e-3)))


def test_a_dump_of_few_digits_is_no_proof():
    had = lenet_client()
    coarse = {n: g.half().float() for n, g in had.gradients().items()}
    problem = replace(had.problem(coarse), precision=5e-4)
    evidence = examine(problem, reading(had, same, same), attack="a", seconds=0.0)
    assert not is_proved(problem, evidence)


def test_a_batch_is_no_proof():
    had = lenet_client(2)
    problem = had.problem()
    evidence = examine(problem, reading(had, same, same), attack="a", seconds=0.0)
    assert evidence.worst_residuals[0] < 1e-4
    assert not is_proved(problem, evidence)


def test_a_weight_of_pure_rounding_is_no_proof():
    """`residuals_of` forgives a tensor that is tiny beside the others; a reading of it is not."""
    had = lenet_client()
    sent = dict(had.gradients())
    sent["fc.weight"] = 1e-12 * torch.randn(
        sent["fc.weight"].shape, generator=torch.Generator().manual_seed(0)
    )
    problem = had.problem(sent)
    evidence = examine(problem, reading(had, same, same), attack="a", seconds=0.0)
    assert evidence.own_residual > 1
    assert not is_proved(problem, evidence)


def test_pictures_outside_the_pixel_range_are_no_proof():
    had = lenet_client()
    dark = replace(had, inputs=had.inputs - 2)
    assert not proved(dark, reading(dark, same, same))


def test_a_prior_confirms_nothing():
    had = lenet_client()
    found = replace(claim(rows(had, same, same), labels_of(had, 2)), guided=True)
    evidence = examine(had.problem(), found, attack="images.lm", seconds=0.0)
    assert (evidence.agreement, evidence.agreeing) == ((), 1)
    assert not is_verified(had.problem(), evidence)


def link(layer, *, solved):
    return LinkReport(layer, 4, 9, 0, 1e-8, 1e-9, 2.0, 5, "ran out of steps", False, solved)


def test_an_attack_whose_time_was_over_says_how_far_it_came():
    problem = lenet_client().problem()
    head, body = link("5.weight", solved=True), link("2.weight", solved=False)
    for links, place in (((head, body), "2.weight"), ((head,), "5.weight")):
        recovery = Recovery(expired=True, links=links)
        assert repr(place) in where_it_ended(recovery)
        found = examine(problem, recovery, attack="images.layers", seconds=1.0)
        assert isinstance(found, Failed)
        assert found.reason == where_it_ended(recovery)
    assert "before anything was read" in where_it_ended(Recovery(expired=True))
