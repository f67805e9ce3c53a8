"""What attacks without a search share: the pass, the rank, the limits of pixels, the claim."""

import pytest
import torch
from problems import client
from relu_batches import client_of, with_batch_norm
from torch import nn

from auditor.attacks.closed_form import (
    claim_of,
    objective,
    off_rank,
    pixel_bounds,
    read_alone,
    recorded_or_why,
)
from auditor.inversion.layers import Broken


class Moody(nn.Module):
    """Turns a dark picture over, and has an opinion on how many samples it takes."""

    def __init__(self, refuses=0):
        super().__init__()
        self.head, self.refuses = nn.Linear(64, 3), refuses

    def forward(self, x):
        if len(x) == self.refuses:
            raise RuntimeError(f"no batches of {self.refuses}, please\nsecond line")
        flat = x.flatten(1)
        return self.head(flat if bool(flat.max() <= 0.5) else -flat)


def test_the_pass_is_read_when_another_picture_goes_the_same_way():
    problem = client_of(1).problem()
    seen = read_alone(problem, problem.module, lambda recording: recording)
    assert seen.given.shape == (1, 1, 8, 8)
    refused = Broken("so it was read")
    assert read_alone(problem, problem.module, lambda _: refused) is refused


def test_why_a_pass_is_not_read():
    problem = client_of(2, module=Moody(), classes=3).problem()
    found = read_alone(problem, problem.module, lambda recording: recording)
    assert found == Broken("what the model does depends on the values of its input")
    problem = client_of(2, module=Moody(refuses=1), classes=3).problem()
    found = read_alone(problem, problem.module, lambda recording: recording)
    assert found == Broken("one sample in double precision is refused (no batches of 1, please)")


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_is_not_taken_apart():
    had = client_of(1)
    scripted = torch.jit.trace(had.module, had.inputs)
    found = read_alone(had.problem(), scripted, lambda recording: recording)
    assert found == Broken("a TorchScript model is not taken apart")


def test_a_model_that_refuses_one_sample_is_recorded_with_two():
    module = with_batch_norm(3)
    assert recorded_or_why(client_of(4, module=module).problem()).given.shape[0] == 1
    assert recorded_or_why(client_of(4, module=module, mode="train").problem()).given.shape[0] == 2


def test_a_model_that_refuses_both_is_told():
    problem = client_of(1).problem()
    problem.module.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(ValueError("never")))
    assert recorded_or_why(problem) == "one sample is refused (never)"


@pytest.mark.parametrize("small", [0.0, 1e-6, 0.1, 1.0])
def test_the_distance_from_rank_one(small):
    """Of diag(1, s, 0) in turned axes it is s / sqrt(1 + s^2)."""
    generator = torch.Generator().manual_seed(0)
    left, right = (
        torch.linalg.qr(torch.randn(size, 2, generator=generator, dtype=torch.float64)).Q
        for size in (5, 7)
    )
    long = left[:, :1] @ right[:, :1].T
    matrix = long + small * left[:, 1:] @ right[:, 1:].T
    best = small / (1 + small**2) ** 0.5
    assert best - 1e-12 <= off_rank(3 * matrix) <= 4 * best + 1e-12  # of the longest row, not best
    rows = torch.diag(torch.tensor([1.0, small, 0.0], dtype=torch.float64))
    assert off_rank(rows) == pytest.approx(best, abs=1e-15)


def test_a_matrix_of_zeros_has_no_distance():
    assert off_rank(torch.zeros(3, 4)) == 0.0


def test_black_and_white_in_model_units():
    problem = client_of(1).problem(mean=(0.25,), std=(0.5,))
    bounds = pixel_bounds(problem)
    torch.testing.assert_close(bounds.low, torch.full((64,), -0.5, dtype=torch.float64))
    torch.testing.assert_close(bounds.high, torch.full((64,), 1.5, dtype=torch.float64))


def test_the_claim_holds_every_reading_with_its_objective():
    had = client("sigmoid", 2)
    problem = had.problem()
    inputs = had.inputs.to(next(iter(problem.gradient.values())).dtype)
    readings = torch.stack([inputs, inputs + 0.1])
    found = claim_of(problem, readings, had.labels, status="as told", expired=True)
    assert found.expired
    assert found.evaluations == 2
    assert found.input_labels.tolist() == [had.labels.tolist()] * 2
    assert [course.status for course in found.courses] == ["as told"] * 2
    right, wrong = (course.objective[0] for course in found.courses)
    assert right < 1e-12
    assert wrong == objective(problem, inputs + 0.1, had.labels)
    # By the definition: squared distances of tensors, relative to their own, and their mean.
    moved = type(had)(had.module, had.inputs + 0.1, had.labels).gradients()
    sent = had.gradients()
    apart = [float(((moved[n] - g).norm() / g.norm()) ** 2) for n, g in sent.items()]
    assert wrong == pytest.approx(sum(apart) / len(apart), rel=1e-4)


def test_labels_of_their_own_stay_with_their_readings():
    had = client("sigmoid", 2)
    problem = had.problem()
    inputs = had.inputs.to(next(iter(problem.gradient.values())).dtype)
    labels = torch.stack([had.labels, had.labels.flip(0)])
    found = claim_of(problem, inputs.expand(2, *inputs.shape), labels, status="", expired=False)
    assert torch.equal(found.input_labels, labels)
