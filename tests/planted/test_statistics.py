"""Each statistic beside its definition, on weights that reach it and weights that must not."""

import math

import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import nn

from auditor.planted.statistics import fishes, imprint_bins, passed_on, trap_halves


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def parallel(count=32, size=64, seed=0):
    """Rows c_j v with thresholds t_j, in an order of their own."""
    chance = generator(seed)
    direction = torch.randn(size, generator=chance)
    scales = 0.5 + torch.rand(count, generator=chance)
    thresholds = torch.randn(count, generator=chance)
    return scales[:, None] * direction, -scales * thresholds * direction.norm(), thresholds


# --------------------------------------------------------------------------- imprint layers


def test_bins_come_in_the_order_of_their_thresholds():
    rows, offsets, thresholds = parallel()
    bins = imprint_bins(rows, offsets)
    assert bins.count == 32
    assert torch.equal(bins.rows, thresholds.argsort())
    assert torch.allclose(bins.thresholds, thresholds.sort().values.double(), atol=1e-5)


@pytest.mark.parametrize("size", [16, 64, 65, 500])
def test_bins_are_found_among_other_rows(size):
    rows, offsets, _ = parallel(20, size)
    chance = generator(1)
    others = torch.randn(200, size, generator=chance)
    mixed = torch.cat([others[:77], rows, others[77:]])
    bins = imprint_bins(mixed, torch.cat([torch.randn(77), offsets, torch.randn(123)]))
    assert sorted(bins.rows.tolist()) == list(range(77, 97))


def test_the_spread_is_the_ratio_of_singular_values():
    rows, offsets, _ = parallel()
    rows = rows + 1e-3 * torch.randn(rows.shape, generator=generator(2))
    bins = imprint_bins(rows, offsets)
    unit = nn.functional.normalize(rows.double())
    values = torch.linalg.svdvals(unit)
    assert bins.spread == pytest.approx(float(values[1] / values[0]), rel=1e-6)


@pytest.mark.parametrize(("angle", "found"), [(2e-3, True), (6e-3, False)])
def test_rows_that_turn_away_are_no_bins(angle, found):
    """Each row turned by `angle` into a direction of its own."""
    rows, offsets, _ = parallel(32, 256)
    unit = nn.functional.normalize(rows.double())
    aside = torch.randn(unit.shape, generator=generator(3), dtype=torch.float64)
    aside = nn.functional.normalize(aside - (aside * unit).sum(1, keepdim=True) * unit)
    turned = unit + math.tan(angle / math.sqrt(2)) * aside  # two such rows are `angle` apart
    assert (imprint_bins(turned, offsets) is not None) == found


@pytest.mark.parametrize("seed", range(5))
def test_what_is_no_imprint_layer(seed):
    rows, offsets, _ = parallel(32, 64, seed)
    assert imprint_bins(rows, None) is None
    assert imprint_bins(rows[:7], offsets[:7]) is None
    assert imprint_bins(rows, -0.3 * rows.norm(dim=1)) is None, "equal thresholds see the same"
    assert imprint_bins(torch.zeros_like(rows), offsets) is None
    assert imprint_bins(rows[:, :15], offsets) is None, "15 numbers may point anywhere by chance"
    chance = generator(seed)
    random = torch.randn(300, 16, generator=chance)
    assert imprint_bins(random, torch.randn(300, generator=chance)) is None
    opposite = torch.cat([rows[:7], -rows[:7]])
    assert imprint_bins(opposite, torch.randn(14, generator=chance)) is None


# --------------------------------------------------------------------------- trap weights


def trap(rows, size, scale, seed=0, *, signed=False):
    chance = generator(seed)
    half = torch.randn(rows, size // 2, generator=chance)
    half = half if signed else -half.abs()
    both = torch.cat([half, -scale * half], 1)
    return both.gather(1, torch.rand(rows, size, generator=chance).argsort(1))


@pytest.mark.parametrize("scale", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("signed", [False, True])
def test_trap_weights_are_seen(scale, signed):
    halves = trap_halves(trap(64, 300, scale, signed=signed))
    assert halves.planted
    assert halves.share == 1 or signed  # a signed half may sum to nothing


def test_a_trap_in_a_quarter_of_the_rows_is_seen():
    rows = torch.cat([trap(32, 300, 0.9), torch.randn(96, 300, generator=generator(1))])
    assert trap_halves(rows).planted


@pytest.mark.parametrize("size", [6, 7, 20])
def test_the_expected_share_is_that_of_coins(size):
    half = size // 2
    exact = math.comb(size, half) / 2**size * (1 + size % 2)
    assert trap_halves(torch.ones(4, size)).chance == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("hits", [3, 10, 40])
def test_the_chance_is_a_bound_on_the_binomial_tail(hits):
    rows = torch.ones(64, 30)
    rows[:hits] = trap(hits, 30, 0.7)
    halves = trap_halves(rows)
    assert halves.share == pytest.approx(hits / 64)
    exact = scipy.stats.binom.logsf(hits - 1, 64, halves.chance)
    assert exact <= halves.log_chance + 1e-9 <= 0.5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [9, 100, 999])
def test_random_rows_are_no_traps(seed, size):
    chance = generator(seed)
    assert not trap_halves(torch.randn(400, size, generator=chance)).planted
    assert not trap_halves(torch.rand(400, size, generator=chance) - 0.45).planted


def test_structured_rows_are_no_traps():
    hadamard = torch.from_numpy(scipy.linalg.hadamard(64)).float()
    assert not trap_halves(hadamard).planted, "half of each row is negative, but it sums to zero"
    waves = torch.from_numpy(scipy.linalg.dft(64).real.copy()).float()
    assert not trap_halves(waves).planted
    assert not trap_halves(torch.eye(64)).planted
    assert not trap_halves(torch.zeros(64, 64)).planted
    assert not trap_halves(torch.ones(64, 64)).planted


# --------------------------------------------------------------------------- class fishing


def head(classes=10, size=32, seed=0):
    chance = generator(seed)
    return torch.randn(classes, size, generator=chance), torch.randn(classes, generator=chance)


def test_one_class_alone_is_fishing():
    weight, bias = head()
    kept = torch.zeros_like(weight)
    kept[3] = weight[3]
    assert fishes(kept, bias) == math.inf
    assert fishes(weight * 1e-5 + kept, None) > 1e3


@pytest.mark.parametrize("by", [1e3, -1e3])
def test_a_bias_out_of_reach_is_fishing(by):
    weight, bias = head()
    bias[3] += by
    assert fishes(weight, bias) == pytest.approx(1e3, rel=0.01)


def test_what_is_no_fishing():
    weight, bias = head()
    assert fishes(weight, bias) is None
    assert fishes(torch.zeros_like(weight), torch.zeros(10)) is None
    reference = weight.clone()
    reference[0] = 0
    assert fishes(reference, bias) is None, "one class as the reference of all others"
    binary = torch.stack([weight[0], torch.zeros(32)])
    assert fishes(binary, None) is None
    spread = torch.linspace(-200, 200, 10)
    assert fishes(weight, spread) is None, "wide, but no class is alone"


@pytest.mark.parametrize("classes", [3, 10, 1000])
def test_a_head_that_began_at_zero_and_saw_one_sample_is_no_fishing(classes):
    """Its rows are (p - y) e': norms 1 - 1/K and 1/K."""
    rows = -torch.full((classes, 1), 1 / classes)
    rows[classes // 2] += 1
    assert fishes(rows * torch.rand(1, 20, generator=generator()), rows[:, 0]) is None


# --------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("channels", [1, 3, 16])
def test_dirac_kernels_pass_their_channels_on(channels):
    conv = nn.Conv2d(channels, 2 * channels, 3)
    nn.init.dirac_(conv.weight)
    expected = [*range(channels), *[-1] * channels]
    assert passed_on(conv.weight).tolist() == expected


def test_groups_count_from_their_first_channel():
    conv = nn.Conv2d(6, 6, 3, groups=3)
    nn.init.dirac_(conv.weight, groups=3)
    assert passed_on(conv.weight, groups=3).tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(("ratio", "passes"), [(1.9, False), (2.4, True)])
def test_the_threshold_is_one_in_a_million(ratio, passes):
    """One kernel of 9 uniform weights: t^-8 / 8! = 1e-6 at t = 1.493; 32 of them: at t = 2.30."""
    assert (32 * 2.303**-8 / math.factorial(8)) == pytest.approx(1e-6, rel=0.02)
    kernels = torch.ones(32, 1, 3, 3)
    kernels[7, 0, 0, 0] = 8 * ratio
    assert (passed_on(kernels).tolist()[7] == 0) == passes


@pytest.mark.parametrize("seed", range(5))
def test_drawn_kernels_pass_nothing_on(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = [
            nn.Conv2d(1, 32, 3), nn.Conv2d(3, 64, 7), nn.Conv2d(64, 64, 3, groups=64),
            nn.Conv2d(64, 128, 1), nn.Conv2d(1, 64, 1), nn.Conv2d(2, 64, 1),
        ]  # fmt: skip
        for conv in made:
            assert (passed_on(conv.weight, conv.groups) == -1).all()
    assert (passed_on(torch.zeros(8, 3, 3, 3)) == -1).all()
