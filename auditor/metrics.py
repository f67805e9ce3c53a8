"""How close rebuilt inputs and labels are to the true ones.

All images are (N, C, H, W) in pixel units 0..1, so the data range is 1; rows of a table are (N, D)
in units of which a column has the mean 1/2 and the variance of a pixel. Everything is computed
on the CPU in float64, whatever comes in: these are the numbers that a report prints.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor
from torch.nn import functional as F

# Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment: from error visibility to
# structural similarity", section III.
_WINDOW = 11
_SIGMA = 1.5
_K1 = 0.01
_K2 = 0.03


def mse(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error of each pair of images: (N,). Raises ValueError on other shapes."""
    x, y = _pair(a, b)
    return (x - y).square().flatten(1).mean(1)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair in dB: (N,); identical images give inf."""
    return -10 * mse(a, b).log10()


def flat_of(images: Tensor) -> Tensor:
    """What says least: each image's best single colour; of rows (N, D) what is usual.

    That is the mean of every column, as it is known before or as it is in this batch, whichever is
    nearer.
    """
    if images.dim() == 4:
        return images.mean((2, 3), keepdim=True).expand_as(images)
    known = torch.full_like(images, 0.5)
    if len(images) == 1:
        return known
    here = images.mean(0).expand_as(images)
    nearer = (here - images).square().sum(1) < (known - images).square().sum(1)
    return torch.where(nearer[:, None], here, known)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair, -1..1: (N,), averaged over places and channels.

    Gaussian window of 11x11 and sigma 1.5, population covariance, places where the window fits.
    Images smaller than 11 get the largest odd window that fits. Raises ValueError for rows.
    """
    x, y = _pair(a, b)
    if x.dim() != 4:
        raise ValueError("a row of a table has no structural similarity")
    window = _window(min(_WINDOW, *x.shape[2:]))
    mean_x, mean_y = _local_mean(x, window), _local_mean(y, window)
    var_x = _local_mean(x * x, window) - mean_x.square()
    var_y = _local_mean(y * y, window) - mean_y.square()
    covariance = _local_mean(x * y, window) - mean_x * mean_y
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def match_batch(recovered: Tensor, truth: Tensor) -> Tensor:
    """Which true image each rebuilt one is: (N,) int64, `truth[match]` goes with `recovered`.

    The permutation with the least total squared error (Hungarian method), because a gradient
    says nothing of the order of its batch. Raises ValueError on other shapes and on nan.
    """
    x, y = _pair(recovered, truth)
    if len(x) == 1:
        return torch.zeros(1, dtype=torch.int64)
    from scipy.optimize import linear_sum_assignment

    # Without matrix products: those lose the small distances that decide.
    distance = torch.cdist(x.flatten(1), y.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    rows, columns = linear_sum_assignment(distance.square().numpy())
    match = torch.empty(len(x), dtype=torch.int64)
    match[torch.as_tensor(rows)] = torch.as_tensor(columns)
    return match


def label_accuracy(recovered: Tensor, truth: Tensor) -> float:
    """Share of the batch whose label is right, 0..1, both (N,) taken as multisets.

    Raises ValueError when the two differ in length or are empty.
    """
    if recovered.shape != truth.shape or truth.dim() != 1 or len(truth) == 0:
        raise ValueError(f"labels {tuple(recovered.shape)} against {tuple(truth.shape)}")
    common = Counter(recovered.tolist()) & Counter(truth.tolist())
    return common.total() / len(truth)


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.dim() not in {2, 4} or a.numel() == 0:
        raise ValueError(
            f"expected two (N, C, H, W) or (N, D) alike: {tuple(a.shape)}, {tuple(b.shape)}"
        )
    return a.detach().to("cpu", torch.float64), b.detach().to("cpu", torch.float64)


def _window(limit: int) -> Tensor:
    """Gaussian weights (S, S) that sum to 1; S is the largest odd number up to `limit`."""
    size = limit if limit % 2 else limit - 1
    places = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    line = torch.exp(-places.square() / (2 * _SIGMA**2))
    square = torch.outer(line, line)
    return square / square.sum()


def _local_mean(images: Tensor, window: Tensor) -> Tensor:
    """Weighted mean around each place where the window fits, channel by channel."""
    channels = images.shape[1]
    kernel = window.expand(channels, 1, *window.shape)
    return F.conv2d(images, kernel, groups=channels)
