"""Single inputs are checked without trust in the attack that names them."""

from dataclasses import replace

import pytest
import torch
from problems import rounded
from relu_batches import Normalised, client_of, perceptron, with_batch_norm
from torch import nn

from auditor.metrics import psnr
from auditor.problem import is_on_grid
from auditor.records import Recovery
from auditor.samples.check import check_samples

WEIGHT = "1.weight"


def check(problem, samples, *, witnesses=9, read_from=WEIGHT):
    claim = Recovery(samples=samples, witnesses=(witnesses,) * len(samples), read_from=read_from)
    return check_samples(problem, claim)


def off_the_grid(had):
    return replace(had, inputs=had.inputs * 0.9137 + 0.0123)


def mixture(x, share):
    return share * x[:1] + (1 - share) * x[1:2]


def test_inputs_of_the_batch():
    had = client_of(4)
    assert check(had.problem(), had.inputs.double(), witnesses=1) == ("verified",) * 4


def test_without_a_grid_rows_decide():
    had = off_the_grid(client_of(4))
    problem = had.problem()
    assert check(problem, had.inputs.double()) == ("verified",) * 4
    assert check(problem, had.inputs.double(), witnesses=1) == ("consistent",) * 4


@pytest.mark.parametrize("share", [0.5, 0.37, 0.99])
@pytest.mark.parametrize("grid", [True, False])
def test_mixtures_are_never_verified(share, grid):
    had = client_of(4) if grid else off_the_grid(client_of(4))
    mixed = mixture(had.inputs.double(), share)
    assert check(had.problem(), mixed) == ("consistent",)
    on_grid = (255 * mixed).round() / 255
    assert check(had.problem(), on_grid) == (None,)  # rounded, it has left the rows' space


@pytest.mark.parametrize("classes", [2, 5])
def test_a_mixture_that_rows_agree_on(classes):
    """With two classes the gradients of samples have one ratio in all units that both turn on."""
    had = replace(off_the_grid(client_of(2, classes=classes)), labels=torch.tensor([0, 0]))
    with torch.no_grad():
        had.module[1].bias += 10  # all units are on for both
        had.module[3].weight *= 0.1
    problem = had.problem()
    rows = problem.gradient[WEIGHT] / problem.gradient["1.bias"][:, None]
    if classes == 2:
        assert (rows - rows[0]).abs().max() < 1e-3  # all say the same
    picture = rows[:1].view(1, 1, 8, 8)
    assert psnr(picture.expand_as(had.inputs), had.inputs).max() < 30
    assert check(problem, picture) == ("consistent",)


@pytest.mark.parametrize("change", [lambda x: 1 - x, lambda x: x.flip(-1), lambda x: 0.9 * x])
def test_what_is_not_of_the_batch(change):
    had = client_of(4)
    assert check(had.problem(), change(had.inputs.double())) == (None,) * 4


def test_outside_the_range_of_pixels():
    had = client_of(4)
    beyond = mixture(had.inputs.double(), 2.0)
    assert check(had.problem(), beyond) == (None,)


def test_a_layer_without_the_bias_in_the_dump():
    had = client_of(4)
    problem = had.problem({n: g for n, g in had.gradients().items() if n != "1.bias"})
    assert check(problem, had.inputs.double()) == ("verified",) * 4


def test_a_full_rank_says_nothing():
    had = client_of(70)
    assert check(had.problem(), had.inputs[:1].double()) == (None,)


@pytest.mark.parametrize("name", ["3.weight", "1.bias", "", "unknown"])
def test_another_layer_than_the_one_that_was_read(name):
    had = client_of(4)
    assert check(had.problem(), 1 - had.inputs.double(), read_from=name) == (None,) * 4


def test_no_number_is_no_sample():
    had = client_of(4)
    assert check(had.problem(), had.inputs.double() * torch.nan) == (None,) * 4


def test_a_layer_behind_a_normalisation():
    had = client_of(4, module=Normalised(perceptron()))
    found = check(had.problem(), had.inputs.double(), read_from="body.1.weight")
    assert found == ("verified",) * 4


def test_a_model_that_takes_no_single_sample():
    had = client_of(4, module=with_batch_norm(3), mode="train")
    assert check(had.problem(), had.inputs.double(), witnesses=1) == ("verified",) * 4
    assert check(had.problem(), 1 - had.inputs.double()) == (None,) * 4
    had = off_the_grid(had)  # the samples of a batch share the statistics: no factor is known
    assert check(had.problem(), had.inputs.double()) == ("consistent",) * 4


def test_unknown_factors_leave_it_open():
    had = off_the_grid(client_of(4))
    assert check(had.problem(size=None), had.inputs.double()) == ("consistent",) * 4
    dropping = nn.Sequential(*list(perceptron())[:3], nn.Dropout(0.5), perceptron()[3])
    had = off_the_grid(client_of(4, module=dropping.eval()))
    assert check(had.problem(), had.inputs.double()) == ("consistent",) * 4


def test_a_coarse_dump_does_not_verify_what_is_rounded():
    had = client_of(4)
    problem = had.problem(rounded(had.gradients(), torch.bfloat16))
    mixed = (255 * mixture(had.inputs.double(), 0.37)).round() / 255
    assert check(problem, mixed) != ("verified",)


def test_no_samples_no_words():
    assert check_samples(client_of(2).problem(), Recovery()) == ()


def test_the_grid():
    ramp = torch.arange(256, dtype=torch.float64) / 255
    assert is_on_grid(ramp)
    assert is_on_grid(ramp + 0.05 / 255)
    assert not is_on_grid(ramp + 0.2 / 255)
    assert not is_on_grid((ramp > 0.5).double())  # black and white
    assert not is_on_grid(ramp[:20])  # black and 19 levels
    assert is_on_grid(ramp[:21])
