"""The map of error bars: its scale, and colours that can be read in grey."""

import math

import pytest
import torch

from auditor.bounds.fisher import Fisher
from auditor.bounds.heat import COARSEST, FINEST, error_bars, heat_map


def with_errors(bars, method="dense"):
    """A Fisher record whose standard deviations are `bars` (N, C, H, W)."""
    posterior = torch.tensor(bars, dtype=torch.float64).square()
    return Fisher(None, posterior, 1.0, 1.0, posterior.numel(), 0.1, method, 0.0)


def lightness(colours):
    return (colours * torch.tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1)).sum(1)


def test_larger_errors_are_lighter():
    ratio = COARSEST / FINEST
    bars = [[[[FINEST * ratio ** (k / 19) for k in range(20)]]]]
    light = lightness(heat_map(with_errors(bars)).float())[0, 0]
    assert bool((light[1:] > light[:-1]).all())
    assert light[0] < 0.1
    assert light[-1] > 0.85


def test_channels_are_taken_together():
    bars = error_bars(with_errors([[[[0.3]], [[0.0]], [[0.0]], [[0.1]]]]))
    assert bars.shape == (1, 1, 1)
    assert float(bars) == pytest.approx(math.sqrt((0.09 + 0.01) / 4))


def test_the_scale_is_the_same_everywhere():
    one = heat_map(with_errors([[[[0.01, 0.02]]]]))
    two = heat_map(with_errors([[[[0.02, 0.2]]], [[[1e-9, 5.0]]]]))
    assert torch.equal(one[0, :, 0, 1], two[0, :, 0, 0])
    ends = heat_map(with_errors([[[[FINEST, COARSEST]]]]))
    torch.testing.assert_close(two[1], ends[0])


def test_probes_make_no_map():
    assert heat_map(with_errors([[[[0.1]]]], method="Lanczos")) is None
