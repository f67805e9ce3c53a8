"""The inverse of the normal matrix against a dense one."""

import pytest
import torch
from nets import dense, draw, links, seeded, system_of
from torch import nn

from auditor.inversion import preconditioners
from auditor.inversion.preconditioners import condition_by, inverse_of, pays_at_once
from auditor.inversion.systems import LinkOperator, LinkSystem


def first_link(operation, shape):
    module = seeded(lambda: operation)
    width = module(draw(1, *shape)).numel()
    whole = nn.Sequential(module, nn.Sigmoid(), nn.Flatten(), nn.Linear(width, 3).double())
    return links(whole, shape)[0]


def normal_of(system):
    matrix = dense(system.alone().forward, system.operator.unknowns)
    return matrix.T @ matrix


CONVOLUTIONS = {
    "stride": (nn.Conv2d(2, 16, 3, stride=2, padding=1), (2, 6, 6)),
    "no padding": (nn.Conv2d(3, 8, 3, bias=False), (3, 5, 7)),
    "dilation": (nn.Conv2d(2, 9, 3, dilation=2, padding=2), (2, 7, 5)),
    "whole": (nn.Conv2d(2, 4, 5, padding=2), (2, 5, 5)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("way", ["_dense", "_by_channel"])
def test_inverses_are_inverses(name, way):
    link = first_link(*CONVOLUTIONS[name])
    system, *_ = system_of(link, rows=2)
    normal = normal_of(system)
    inverse = getattr(preconditioners, way)(system)
    product = inverse(normal)  # symmetric: rows are columns
    identity = torch.eye(len(normal), dtype=torch.float64)
    # The ridge is 1e-12 of the largest diagonal entry; K'K comes first, and may be worse.
    _, told = preconditioners._matrices(system)
    condition = float(max(torch.linalg.cond(normal), torch.linalg.cond(told.T @ told)))
    assert condition < 1e9, "the case is too hard to test anything"
    torch.testing.assert_close(product, identity, rtol=0, atol=1e-11 * condition)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_matrices_are_those_of_the_system(name):
    """A, by channel, and K, which is the same for every channel."""
    system, *_ = system_of(first_link(*CONVOLUTIONS[name]))
    forward, told = preconditioners._matrices(system)
    matrix = dense(system.alone().forward, system.operator.unknowns)
    torch.testing.assert_close(forward.flatten(1), matrix[: len(forward)])
    channels, taps = system.operator.patches.shape[0], told.shape[0] // system.delta.shape[2]
    pixels = told.shape[1]
    blocks = matrix[len(forward) :].view(-1, channels, taps, channels, pixels)
    for channel in range(channels):
        torch.testing.assert_close(blocks[:, channel, :, channel].reshape(-1, pixels), told)
    off_blocks = blocks[:, 0, :, 1] if channels > 1 else blocks[:, 0, :, 0] * 0
    assert float(off_blocks.abs().max()) == 0


@pytest.mark.parametrize(
    ("operation", "shape"),
    [
        (nn.Linear(4, 5), (3, 4)),
        (nn.Conv2d(4, 8, 3, groups=2), (4, 5, 5)),
        (nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(2, 4, 2)), (2, 6, 6)),
        (nn.Sequential(nn.Conv2d(2, 6, 3), nn.AvgPool2d(2)), (2, 6, 6)),
    ],
)
def test_small_links_of_any_kind(operation, shape):
    """Singular ones too: then up to the ridge, on the range of the normal matrix."""
    system, *_ = system_of(first_link(operation, shape))
    normal = normal_of(system)
    inverse = inverse_of(system)
    assert inverse is not None
    values, vectors = torch.linalg.eigh(normal)
    seen = vectors[:, values > 1e-4 * values[-1]]
    # What rounding puts into the null space, the equations do not see.
    found = inverse((normal @ seen).T) @ seen
    identity = torch.eye(seen.shape[1], dtype=torch.float64)
    torch.testing.assert_close(found, identity, rtol=0, atol=1e-6)


def test_shortcut_for_channels_only_where_it_holds(monkeypatch):
    """Groups, averages and linear layers have no such shape; large ones get no inverse."""
    monkeypatch.setattr(preconditioners, "DENSE", 10)
    for operation, shape in [
        (nn.Conv2d(4, 8, 3, groups=2, padding=1), (4, 3, 3)),
        (nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(2, 8, 3, padding=1)), (2, 6, 6)),
        (nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.AvgPool2d(3)), (2, 3, 3)),
        (nn.Linear(4, 50), (3, 4)),
        (nn.Conv2d(2, 2, 3), (2, 9, 9)),  # K has fewer rows than a channel has pixels
    ]:
        system, *_ = system_of(first_link(operation, shape))
        assert not pays_at_once(system)
        assert inverse_of(system) is None
    unsent, *_ = system_of(first_link(*CONVOLUTIONS["whole"]), sent=False)
    assert not pays_at_once(unsent)
    assert inverse_of(unsent) is None
    system, *_ = system_of(first_link(*CONVOLUTIONS["whole"]))
    assert pays_at_once(system)
    assert inverse_of(system) is not None


def with_cotangent(link, cotangent, weights=None):
    operator = LinkOperator(link, draw(1, 1))
    pre = draw(*cotangent.shape)
    weights = torch.ones_like(pre) if weights is None else weights
    shape = operator.link.operator.matrix.shape
    return LinkSystem(operator, pre, weights, cotangent, draw(1, *shape))


@pytest.mark.parametrize("limit", [1024, 10])
@pytest.mark.parametrize("what", ["zero", "one place", "nan", "tiny", "no equations"])
def test_singular_and_broken_systems_do_not_raise(what, limit, monkeypatch):
    """An inverse that is finite, or none; both ways."""
    monkeypatch.setattr(preconditioners, "DENSE", limit)
    link = first_link(*CONVOLUTIONS["whole"])
    cotangent = torch.zeros(1, 100, dtype=torch.float64)
    weights = torch.ones_like(cotangent)
    if what == "one place":
        cotangent[0, 3] = 1
    if what == "nan":
        cotangent[0, 3] = torch.nan
    if what == "tiny":
        cotangent[:] = draw(1, 100) * 1e-160
    if what == "no equations":
        weights = torch.zeros_like(weights)
    inverse = inverse_of(with_cotangent(link, cotangent, weights))
    if inverse is not None and what != "nan":
        assert inverse(draw(2, 50)).isfinite().all()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_condition_is_a_lower_bound_and_not_a_poor_one(name):
    link = first_link(*CONVOLUTIONS[name])
    system, *_ = system_of(link)
    matrix = dense(system.alone().forward, system.operator.unknowns)
    true = float(torch.linalg.cond(matrix))
    found = condition_by(system, inverse_of(system))
    assert true / 4 <= found <= true * (1 + 1e-6)
