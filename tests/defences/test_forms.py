"""Zeros, signs, grids, types and norms, by hand and on gradients."""

import pytest
import torch
from clients_of import NETS, client_of

from auditor.defences import applied
from auditor.defences.forms import (
    Clipped,
    clipped_to,
    empty_tensors,
    forms_of,
    saturated,
    signs_of,
    steps_of,
    zeros_of,
)

FLOAT = torch.finfo(torch.float32).eps


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def forms(gradients):
    return forms_of(gradients, FLOAT)


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("name", NETS)
def test_a_clean_gradient_has_no_form(name, count):
    for seed in range(3):
        found = forms(client_of(name, count, seed=seed).gradients())
        assert not found.pruned
        assert found.signs is None
        assert not found.steps
        assert found.sixteen_bits is None
        assert found.clipped is None
        assert found.saturated is None


# --------------------------------------------------------------------------- zeros


@pytest.mark.parametrize(
    ("name", "dropped"),
    [("lenet", 0.5), ("lenet", 0.9), ("lenet", 0.99), ("normed", 0.5), ("normed", 0.9)],
)
def test_the_share_of_pruning(name, dropped):
    sent = applied.largest_kept(client_of(name, 4).gradients(), dropped).gradient
    found = zeros_of(sent)
    assert found.together
    assert found.share == pytest.approx(dropped, abs=0.01)
    kept = torch.cat([g.abs().flatten() for g in sent.values()])
    assert found.threshold == float(kept[kept > 0].min())


def test_pruning_each_tensor_by_itself():
    sent = {
        name: scale * normal(40, 40, seed=i)
        for i, (name, scale) in enumerate({"a": 1.0, "b": 1e-3, "c": 50.0}.items())
    }
    for part in sent.values():
        part[part.abs() < part.abs().flatten().quantile(0.3)] = 0
    found = zeros_of(sent)
    assert not found.together
    assert found.threshold is not None
    assert all(share == pytest.approx(0.3, abs=1e-3) for share in found.each.values())


def test_random_zeros_show_no_threshold():
    part = normal(60, 60)
    part[torch.rand(60, 60, generator=torch.Generator().manual_seed(1)) < 0.5] = 0
    assert zeros_of({"a": part}).threshold is None
    assert zeros_of({"a": part}).share == pytest.approx(0.5, abs=0.05)


def test_a_small_unit_over_grey_levels_is_no_threshold():
    """One outer product of units and pixels: the row of the smallest unit ends abruptly."""
    units = torch.tensor([0.0] * 8 + [1.0 * 2**k for k in range(8)])
    pixels = torch.linspace(0.5, 1.0, 300)
    assert zeros_of({"a": units[:, None] * pixels}).threshold is None


def test_empty_tensors_are_named():
    assert empty_tensors({"a": torch.zeros(3), "b": torch.ones(3)}) == ("a",)
    assert zeros_of({"a": torch.zeros(3), "b": torch.ones(3)}).threshold is None


# --------------------------------------------------------------------------- values


def test_signs():
    sent = {"a": normal(9, 9), "b": normal(9)}
    assert signs_of({n: g.sign() for n, g in sent.items()}) == 1.0
    assert (
        signs_of({n: k * g.sign() for (n, g), k in zip(sent.items(), (1.0, 3.0), strict=True)}) == 2
    )
    assert signs_of(sent) is None


@pytest.mark.parametrize("levels", [15, 127])
def test_symmetric_grids(levels):
    sent = {"a": normal(50, 50), "b": normal(30)}
    width = {n: float(g.abs().max()) / levels for n, g in sent.items()}
    found = steps_of({n: (g / width[n]).round() * width[n] for n, g in sent.items()})
    assert found == pytest.approx(width, rel=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_affine_grids_of_gradients(name):
    sent = applied.as_int8(client_of(name, 4).gradients())
    found = steps_of(sent.gradient)
    large = [n for n, g in sent.gradient.items() if g.numel() > 100]
    assert set(large) <= set(found)
    for n in large:
        assert found[n] == pytest.approx(sent.channel.steps[n], rel=1e-4)


@pytest.mark.parametrize(("dtype", "eps"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_sixteen_bits(dtype, eps):
    sent = {n: g.to(dtype).float() for n, g in client_of("lenet", 2).gradients().items()}
    assert forms(sent).sixteen_bits == eps


def test_tiny_half_precision_numbers_are_no_grid():
    """Below the normal range, float16 has a step as well."""
    sent = {n: (1e-6 * normal(40, 40, seed=i)).half().float() for i, n in enumerate("abc")}
    found = forms(sent)
    assert not found.steps
    assert found.sixteen_bits == 2**-10


def test_a_grid_of_tiny_numbers_is_one():
    sent = {n: 1e-6 * normal(40, 40, seed=i) for i, n in enumerate("abc")}
    assert len(forms(applied.as_int8(sent).gradient).steps) == 3


# --------------------------------------------------------------------------- norms


@pytest.mark.parametrize("norm", [1.0, 0.5, 2.5, 10.0, 1e-3])
def test_a_round_norm(norm):
    sent = {"a": normal(50, 50), "b": normal(9)}
    total = torch.cat([g.flatten() for g in sent.values()]).norm()
    # as torch.nn.utils.clip_grad_norm_ does
    sent = {n: g * (norm / (total + 1e-6)) for n, g in sent.items()}
    assert clipped_to(sent, FLOAT) == Clipped(pytest.approx(norm, rel=1e-9), each=False)


def test_chance_makes_no_round_norm():
    shares = (1.234, 0.777, 3.1416, 9.99)
    for share in shares:
        sent = {"a": share * normal(50, 50) / normal(50, 50).norm()}
        assert clipped_to(sent, FLOAT) is None


def test_a_norm_that_tensors_share():
    sent = {
        n: 0.37 * g / g.norm() for n, g in (("a", normal(9, 9)), ("b", normal(7)), ("c", normal(5)))
    }
    assert clipped_to(sent, FLOAT) == Clipped(pytest.approx(0.37, rel=1e-5), each=True)


def test_entries_cut_off():
    sent = {"a": normal(50, 50).clamp(-1, 1), "b": normal(9).clamp(-1, 1)}
    assert saturated(sent) == 1.0
    assert saturated({"a": normal(50, 50)}) is None
