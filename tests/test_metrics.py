import itertools
import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from auditor.metrics import label_accuracy, match_batch, mse, psnr, ssim


def images(seed, *shape, dtype=torch.float64):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def nearby(truth, seed, noise=0.1):
    generator = torch.Generator().manual_seed(seed)
    shift = torch.randn(truth.shape, generator=generator, dtype=truth.dtype)
    return (truth + noise * shift).clamp(0, 1)


@pytest.mark.parametrize("shift", [1.0, 0.1, 0.01])
def test_constant_shift(shift):
    flat = torch.zeros(2, 3, 5, 4, dtype=torch.float64)
    assert mse(flat, flat + shift).tolist() == pytest.approx([shift**2] * 2)
    assert psnr(flat, flat + shift).tolist() == pytest.approx([-20 * math.log10(shift)] * 2)


def test_each_image_has_its_own_number():
    a = torch.zeros(2, 1, 2, 2)
    b = torch.stack([torch.zeros(1, 2, 2), torch.full((1, 2, 2), 0.5)])
    assert mse(a, b).tolist() == [0.0, 0.25]
    assert psnr(a, b).tolist() == [math.inf, pytest.approx(-10 * math.log10(0.25))]


def test_ssim_of_constant_images():
    """Without variance only the luminance term is left: (2ab + c1) / (a^2 + b^2 + c1)."""
    a, b = 0.25, 0.75
    value = ssim(torch.full((1, 2, 12, 13), a), torch.full((1, 2, 12, 13), b))
    assert value.item() == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (3, 1, 11, 17), (1, 4, 28, 12)])
def test_as_scikit_image(seed, shape):
    truth = images(seed, *shape)
    guess = nearby(truth, seed + 100)
    for i, (a, b) in enumerate(zip(guess.numpy(), truth.numpy(), strict=True)):
        assert psnr(guess, truth)[i].item() == pytest.approx(
            peak_signal_noise_ratio(b, a, data_range=1)
        )
        expected = structural_similarity(
            a,
            b,
            channel_axis=0,
            gaussian_weights=True,
            use_sample_covariance=False,
            sigma=1.5,
            data_range=1,
        )
        assert ssim(guess, truth)[i].item() == pytest.approx(expected, abs=1e-10)


def slow_ssim(a, b, size):
    """The definition, one window at a time; (H, W) arrays."""
    half = size // 2
    line = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    values = []
    for top, left in itertools.product(range(a.shape[0] - size + 1), range(a.shape[1] - size + 1)):
        x, y = (m[top : top + size, left : left + size] for m in (a, b))
        mx, my = (weights * x).sum(), (weights * y).sum()
        vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
        cov = (weights * (x - mx) * (y - my)).sum()
        values.append(
            (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        )
    return np.mean(values)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(8, 8, 7), (7, 20, 7), (1, 5, 1), (9, 10, 9)]
)
def test_small_images_get_a_smaller_window(height, width, size):
    truth = images(5, 1, 2, height, width)
    guess = nearby(truth, 6)
    channels = zip(guess[0].numpy(), truth[0].numpy(), strict=True)
    expected = np.mean([slow_ssim(a, b, size) for a, b in channels])
    assert ssim(guess, truth).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("metric", [mse, psnr, ssim])
@pytest.mark.parametrize("seed", range(3))
def test_symmetric_and_best_when_identical(metric, seed):
    a, b = images(seed, 3, 2, 14, 12), images(seed + 10, 3, 2, 14, 12)
    assert metric(a, b).tolist() == pytest.approx(metric(b, a).tolist())
    best = {mse: 0.0, psnr: math.inf, ssim: 1.0}[metric]
    assert metric(a, a).tolist() == pytest.approx([best] * 3)
    assert metric(a, b).shape == (3,)
    assert not np.isclose(metric(a, b).numpy(), best).any()


@pytest.mark.parametrize("metric", [mse, psnr, ssim])
def test_float64_whatever_comes_in(metric):
    a, b = images(1, 2, 3, 16, 16, dtype=torch.float32), images(2, 2, 3, 16, 16)
    half = metric(a.requires_grad_(True), b.float())
    assert half.dtype == torch.float64
    assert not half.requires_grad
    assert half.tolist() == pytest.approx(metric(a.double(), b).tolist(), rel=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_matching_is_the_best_of_all_permutations(seed):
    n = 2 + seed % 5
    truth, guess = images(seed, n, 1, 3, 3), images(seed + 50, n, 1, 3, 3)
    best = min(
        itertools.permutations(range(n)), key=lambda order: mse(guess, truth[list(order)]).sum()
    )
    match = match_batch(guess, truth)
    assert match.dtype == torch.int64
    assert match.tolist() == list(best)


@pytest.mark.parametrize("seed", range(3))
def test_matching_undoes_a_shuffle(seed):
    truth = images(seed, 7, 3, 8, 8)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(match_batch(truth[order], truth), order)
    assert torch.equal(match_batch(nearby(truth[order], seed, 1e-3), truth), order)


def test_matching_minimises_the_sum_not_each_pair():
    """The nearest truth of both guesses is the first one; only the sum decides."""
    guess = torch.tensor([0.4, 0.45]).reshape(2, 1, 1, 1)
    truth = torch.tensor([0.5, 0.0]).reshape(2, 1, 1, 1)
    assert match_batch(guess, truth).tolist() == [1, 0]


def test_matching_minimises_squares_not_distances():
    """One far pair beside an exact one (distances 1.7 + 0) loses against 1 + 0.94."""
    guess = torch.tensor([[0.0, 0.0], [1.0, 0.0]]).reshape(2, 1, 1, 2)
    truth = torch.tensor([[1.0, 0.0], [1.5, 0.8]]).reshape(2, 1, 1, 2)
    assert match_batch(guess, truth).tolist() == [0, 1]


def test_matching_refuses_nan():
    with pytest.raises(ValueError, match="invalid numeric"):
        match_batch(torch.full((2, 1, 2, 2), math.nan), torch.zeros(2, 1, 2, 2))


@pytest.mark.parametrize("metric", [mse, psnr, ssim, match_batch])
@pytest.mark.parametrize(
    ("left", "right"),
    [((2, 1, 3, 3), (1, 1, 3, 3)), ((1, 3, 3), (1, 3, 3)), ((0, 1, 3, 3), (0, 1, 3, 3))],
)
def test_refuses_other_shapes(metric, left, right):
    with pytest.raises(ValueError, match="expected two"):
        metric(torch.zeros(left), torch.zeros(right))


@pytest.mark.parametrize(
    ("recovered", "truth", "accuracy"),
    [
        ([3], [3], 1.0),
        ([3], [4], 0.0),
        ([1, 2, 2], [2, 1, 2], 1.0),
        ([2, 2, 2, 2], [1, 2, 3, 2], 0.5),
        ([1, 1, 2, 5], [1, 2, 2, 7], 0.5),
    ],
)
def test_label_accuracy(recovered, truth, accuracy):
    assert label_accuracy(torch.tensor(recovered), torch.tensor(truth)) == accuracy
    assert label_accuracy(torch.tensor(truth), torch.tensor(recovered)) == accuracy


@pytest.mark.parametrize(("a", "b"), [([1], [1, 2]), ([], []), ([[1]], [[1]])])
def test_label_accuracy_refuses_other_shapes(a, b):
    with pytest.raises(ValueError, match="labels"):
        label_accuracy(torch.tensor(a), torch.tensor(b))
