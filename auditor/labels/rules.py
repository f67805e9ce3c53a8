"""Rules that turn the head's gradient into a score for each class, for many dumps at once.

Shapes: S dumps, K classes, E features. All gradients here are sums over the batch: N times the
dump under mean reduction, so that g_c = sum_i p_ic - lambda_c.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_DENSE_CLASSES = 128  # up to here the K x K system of `explained_counts` is solved in a simulation
_SMALLEST = 1e-6  # below this, logarithms of entries say nothing


@dataclass(frozen=True)
class Heads:
    """Gradients of the head, summed over the batch. One of the two may be missing."""

    weight: Tensor | None  # (S, K, E) float64
    bias: Tensor | None  # (S, K) float64


@dataclass(frozen=True)
class Layer:
    """The head itself."""

    matrix: Tensor  # (K, E) float64
    offset: Tensor  # (K,) float64, zeros without a bias


@dataclass(frozen=True)
class Posterior:
    """The mean prediction for each class, and its scatter, measured on reference pictures."""

    means: Tensor  # (K, K): row c is the mean of p over pictures of class c
    scatter: Tensor  # (K, K): covariance of p around these means
    features: Tensor  # (E,): mean features
    pictures: int  # M, that it was measured on


def posterior_of(features: Tensor, probabilities: Tensor, labels: Tensor | None) -> Posterior:
    """Class posteriors from (M, E), (M, K) and labels (M,); each leans on the mean of all.

    A class without a picture gets that mean.
    """
    classes = probabilities.shape[1]
    overall = probabilities.mean(0)
    if labels is None:
        means = overall.expand(classes, classes)
        rest = probabilities - overall
    else:
        summed = torch.zeros_like(overall.expand(classes, classes).clone())
        summed.index_add_(0, labels, probabilities)
        counts = torch.bincount(labels, minlength=classes)[:, None]
        means = (summed + overall) / (counts + 1)
        rest = probabilities - means[labels]
    return Posterior(means, rest.mT @ rest / len(rest), features.mean(0), len(rest))


def stand_in_bias(heads: Heads, mean_features: Tensor) -> Tensor:
    """The bias gradient (S, K), or what it would be if all features were the mean features (E,)."""
    if heads.bias is not None:
        return heads.bias
    assert heads.weight is not None
    return heads.weight @ mean_features / mean_features.square().sum().clamp_min(1e-30)


def explained_counts(heads: Heads, layer: Layer, size: int) -> Tensor:
    """Solve sum_c lambda_c (P_c - 1_c) = g with P_c the prediction at class c's features G_c / g_c.

    (S, K). The relation that iLRG uses (Wang et al. 2023). Needs weight and bias.
    """
    assert heads.weight is not None
    assert heads.bias is not None
    g, classes = heads.bias, heads.bias.shape[-1]
    safe = torch.where(g.abs() > 1e-12, g, torch.full_like(g, 1e-12))
    features = heads.weight / safe[..., None]
    probabilities = torch.softmax(features @ layer.matrix.mT + layer.offset, -1)  # (S, K, K)
    ones = torch.ones(*g.shape[:-1], 1, classes, dtype=g.dtype)
    system = torch.cat([ones, probabilities.mT - torch.eye(classes, dtype=g.dtype)], -2)
    right = torch.cat([torch.full_like(g[..., :1], size), g], -1)
    solved: Tensor = torch.linalg.lstsq(system, right[..., None], driver="gelsd").solution
    return solved[..., 0]


@dataclass(frozen=True)
class LeastVariance:
    """The linear estimate of the counts from g with the least mean squared error."""

    gain: Tensor  # (K, K)
    expected: Tensor  # (K,): g of an average batch
    share: float  # N / K

    def __call__(self, g: Tensor) -> Tensor:
        """Counts (S, K) from bias gradients (S, K)."""
        return self.share + (g - self.expected) @ self.gain.mT


def least_variance(
    posterior: Posterior, size: int, *, smoothing: float, concentration: float | None
) -> LeastVariance:
    """g has the mean (P - Y)' lambda and the scatter N V (1 + N / M), Y the (smoothed) labels.

    P holds the posterior means, V their scatter; M pictures know P no better than that.
    Counts before the dump is seen: N draws of equally likely classes or, with a concentration,
    of classes whose shares are themselves drawn from a Dirichlet distribution.
    """
    classes = len(posterior.means)
    eye = torch.eye(classes, dtype=posterior.means.dtype)
    system = (posterior.means - (1 - smoothing) * eye - smoothing / classes).mT
    spread = size * (eye / classes - 1 / classes**2)
    if concentration is not None:
        spread = spread * (size + concentration * classes) / (1 + concentration * classes)
    noise = size * (1 + size / posterior.pictures) * posterior.scatter + 1e-9 * eye
    gain: Tensor = torch.linalg.solve(system @ spread @ system.mT + noise, system @ spread).mT
    share = size / classes
    return LeastVariance(gain, system.sum(1) * share, share)


def scores(
    heads: Heads, lower: Tensor, layer: Layer, posterior: Posterior, linear: LeastVariance
) -> Tensor:
    """What each rule says of each class beyond its proved count `lower` (S, K): (S, K, F).

    Entries of very different sizes matter in a trained network, hence the logarithms.
    """
    size, classes = round(linear.share * lower.shape[1]), lower.shape[1]
    g = stand_in_bias(heads, posterior.features)
    left = ((size - lower.sum(-1, keepdim=True)) / classes).expand_as(lower)
    found = [-g, _logarithm(-g), linear(g) - lower, lower, (lower > 0).double()]
    found += [(lower > 1).double(), left]
    if heads.weight is not None:
        weight = heads.weight
        projected = weight @ posterior.features / posterior.features.square().sum().clamp_min(1e-30)
        found += [-projected, _logarithm(-weight.amin(-1))]
        found += [_logarithm(weight.clamp_max(0).sum(-1)), _logarithm(weight.clamp_min(0).sum(-1))]
        if heads.bias is not None and classes <= _DENSE_CLASSES:
            explained = explained_counts(heads, layer, size).clamp(-size, 2 * size)
            found.append(explained - lower)
    return torch.stack(found, -1)


def _logarithm(value: Tensor) -> Tensor:
    """Signed decades above the smallest size that counts."""
    return value.sign() * torch.log10(1 + value.abs() / _SMALLEST)
