"""Features that reproduce the head's gradient of a small batch, for guessed labels.

G = sum_i (p_i - y_i) e_i' holds the features e_i of N samples, and p_i = softmax(W e_i + b) follows
from them. So for guessed labels the features are the only unknowns, and what they leave of G is a
measure of the guess. In a trained network the samples differ by many decades in what they leave:

- The entries of a row of G (a class) carry a rounding relative to that row. A sample that the model
  is sure of leaves nothing at its label, but little else is in the rows of the classes that no
  other sample resembles: there it is seen. So each row counts in units of its own rounding.
- The features that can be seen span the row space of G, weighed like that. The e_i are searched
  within it, with as many samples as it has dimensions.
- 1 - p of the label is the sum of the other probabilities.

The bias gradient is taken in as one more feature, which is one for every sample. Reference pictures
with labels, if there are any, say what features of a class look like: a normal distribution, whose
squared distance is added.

The row space is that of SPEAR (Dimitrov et al. 2024, arXiv:2403.03945). The minimiser is that of
Levenberg 1944 and Marquardt 1963.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.labels.rules import Heads, Layer

_SEEN = 4.0  # singular values, in roundings, from which on a direction is a sample's
_UNIT = 2.0**-24  # half the spacing of float32 at one
_CLIENT = 4.0  # the client's logits were rounded as well: errors of its rows, in roundings
_RIDGE = 0.05  # of the mean variance of a feature, added to each
_PULLED = 500  # pictures that the scatter of features is measured on


@dataclass(frozen=True)
class Pull:
    """Squared distance of a sample at c from what features of its class y look like.

    c' form c - 2 toward_y c + size_y
    """

    form: Tensor  # (r, r)
    toward: Tensor  # (K, r)
    size: Tensor  # (K,)

    def __call__(self, places: Tensor, labels: Tensor) -> Tensor:
        """Sums (S,) over the samples at `places` (S, n, r)."""
        bent = places @ self.form - 2 * self.toward[labels]
        apart: Tensor = (bent * places).sum((1, 2)) + self.size[labels].sum(1)
        return apart


@dataclass(frozen=True)
class Rows:
    """The head's gradient in the coordinates of its row space, of r dimensions."""

    target: Tensor  # (K, r)
    rounding: Tensor  # (K,) of each row
    at_label: float  # what a float32 softmax loses of 1 - p, times the length of the features
    values: Tensor  # (min(K, F),) singular values in roundings, descending
    basis: Tensor  # (F, r) orthonormal; F = E, or E + 1 with the ones of the bias
    logits: Tensor  # (r, K): logits of a sample from its coordinates
    offset: Tensor  # (K,)
    ones: Tensor | None  # (r,): coordinates @ ones is one for every sample; None without bias
    pull: Pull | None = None

    @property
    def size(self) -> int:
        """r."""
        return self.target.shape[1]


@dataclass(frozen=True)
class Fit:
    """S guesses of the labels of n samples, with their best features."""

    labels: Tensor  # (S, n)
    places: Tensor  # (S, n, r) coordinates of the samples
    misfit: Tensor  # (S,) sum of squared residuals, in roundings, and of the pull


def rows_of(heads: Heads, layer: Layer, *, precision: float, typical: float) -> Rows:
    """The row space of one dump with a weight gradient. `typical` is the length of a sample's
    features."""
    assert heads.weight is not None
    matrix, weight, offset = heads.weight[0], layer.matrix, layer.offset
    if heads.bias is not None:
        matrix = torch.cat([matrix, heads.bias[0][:, None]], 1)
        weight, offset = torch.cat([weight, offset[:, None]], 1), torch.zeros_like(offset)
    rounding = max(precision / 2, _UNIT) * matrix.abs().amax(1).clamp_min(1e-30)
    _, values, axes = torch.linalg.svd(matrix / rounding[:, None], full_matrices=False)
    basis = axes[: int((values > _SEEN).sum())].mT
    return Rows(
        target=matrix @ basis,
        rounding=rounding,
        at_label=_UNIT / 12**0.5 * typical,
        values=values,
        basis=basis,
        logits=basis.mT @ weight.mT,
        offset=offset,
        ones=None if heads.bias is None else basis[-1],
    )


def strongest(rows: Rows, count: int, *, clean: bool) -> Rows:
    """The first `count` directions alone; unless `clean`, the next one is noise to them."""
    noise = 1.0
    if not clean and count < rows.size:
        noise = max(1.0, float(rows.values[count]) / len(rows.basis) ** 0.5)
    pull = rows.pull
    if pull is not None:
        pull = Pull(pull.form[:count, :count], pull.toward[:, :count], pull.size)
    return replace(
        rows,
        target=rows.target[:, :count],
        rounding=rows.rounding * noise,
        basis=rows.basis[:, :count],
        logits=rows.logits[:count],
        ones=None if rows.ones is None else rows.ones[:count],
        pull=pull,
    )


def with_pull(rows: Rows, features: Tensor, labels: Tensor) -> Rows:
    """Lean the samples of a class on `features` (M, E) of pictures with `labels` (M,).

    Normal distributions of one covariance, that of the features around their class means.
    """
    features, labels = features[:_PULLED], labels[:_PULLED]
    overall = features.mean(0)
    means = overall.expand(len(rows.target), -1).clone()
    means.index_add_(0, labels, features)
    means = means / (torch.bincount(labels, minlength=len(means))[:, None] + 1)
    rest = features - means[labels]
    ridge = _RIDGE * float(rest.square().mean()) + 1e-12
    system = rest @ rest.mT + len(rest) * ridge * torch.eye(len(rest), dtype=rest.dtype)

    def whitened(columns: Tensor) -> Tensor:  # inverse covariance @ columns (E, .)
        inner: Tensor = torch.linalg.solve(system, rest @ columns)
        return (columns - rest.mT @ inner) / ridge

    basis = rows.basis[: features.shape[1]]
    half = whitened(basis)
    return replace(
        rows,
        pull=Pull(basis.mT @ half, means @ half, (means.mT * whitened(means.mT)).sum(0)),
    )


def places_of(rows: Rows, features: Tensor) -> Tensor:
    """Coordinates (M, r) nearest to features (M, E)."""
    if rows.ones is not None:
        features = torch.cat([features, torch.ones_like(features[:, :1])], 1)
    return features @ rows.basis


def fit(rows: Rows, labels: Tensor, places: Tensor, *, steps: int) -> Fit:
    """Levenberg-Marquardt over `places` (S, n, r) for fixed labels (S, n), all S at once."""
    free = _free(rows)
    noise = _noise(rows, labels)
    if rows.ones is not None:
        miss = 1 - places @ rows.ones
        places = places + miss[..., None] * rows.ones / rows.ones.square().sum()
    state = _state(rows, noise, labels, places)
    damping = torch.ones_like(state.misfit)
    for _ in range(steps if len(free) else 0):
        moved = state.places - _step(rows, noise, free, labels, state, damping)
        new = _state(rows, noise, labels, moved)
        better = new.misfit < state.misfit
        state = _chosen(better, new, state)
        damping = torch.where(better, damping / 5, damping * 4).clamp(1e-12, 1e12)
    return Fit(labels, state.places, state.misfit)


@dataclass(frozen=True)
class _State:
    places: Tensor  # (S, n, r)
    probabilities: Tensor  # (S, n, K)
    gaps: Tensor  # (S, n, K): p - y
    left: Tensor  # (S, K, r) residuals in roundings
    misfit: Tensor  # (S,)


def _state(rows: Rows, noise: Tensor, labels: Tensor, places: Tensor) -> _State:
    p = torch.softmax(places @ rows.logits + rows.offset, -1)
    others = p.scatter(-1, labels[..., None], 0.0)
    gaps = others.scatter(-1, labels[..., None], -others.sum(-1, keepdim=True))
    left = (gaps.mT @ places - rows.target) / noise[..., None]
    misfit = left.square().sum((1, 2))
    if rows.pull is not None:
        misfit = misfit + rows.pull(places, labels)
    return _State(places, p, gaps, left, misfit)


def _chosen(better: Tensor, new: _State, old: _State) -> _State:
    wide = better[:, None, None]
    return _State(
        torch.where(wide, new.places, old.places),
        torch.where(wide, new.probabilities, old.probabilities),
        torch.where(wide, new.gaps, old.gaps),
        torch.where(wide, new.left, old.left),
        torch.where(better, new.misfit, old.misfit),
    )


def _noise(rows: Rows, labels: Tensor) -> Tensor:
    """Standard deviations (S, K) of the rows: their rounding, and what is lost at the labels."""
    ones = torch.ones(labels.shape, dtype=rows.target.dtype)
    counts = rows.target.new_zeros(len(labels), len(rows.target)).scatter_add_(1, labels, ones)
    noise: Tensor = ((_CLIENT * rows.rounding) ** 2 + counts * rows.at_label**2).sqrt()
    return noise


def _free(rows: Rows) -> Tensor:
    """Directions (m, r) that a sample can move in: r of them, one less with a bias."""
    if rows.ones is None:
        return torch.eye(rows.size, dtype=rows.target.dtype)
    free: Tensor = torch.linalg.svd(rows.ones[None], full_matrices=True)[2][1:]
    return free


def _step(
    rows: Rows, noise: Tensor, free: Tensor, labels: Tensor, state: _State, damping: Tensor
) -> Tensor:
    """One damped Gauss-Newton step (S, n, r); zero where the system cannot be solved."""
    count, samples, _ = state.places.shape
    normal, slope = _normal(rows, noise, free, state)
    if rows.pull is not None:
        normal = normal + torch.kron(
            torch.eye(samples, dtype=free.dtype), free @ rows.pull.form @ free.mT
        )
        bent = state.places @ rows.pull.form - rows.pull.toward[labels]
        slope = slope + (bent @ free.mT).reshape(count, -1, 1)
    own = normal.diagonal(dim1=1, dim2=2)
    floor = 1e-14 * own.amax(1, keepdim=True).clamp_min(1e-30)
    factor, failed = torch.linalg.cholesky_ex(
        normal + torch.diag_embed(own * damping[:, None] + floor)
    )
    found = torch.cholesky_solve(slope, factor)[..., 0]
    sound = (failed == 0) & found.isfinite().all(1)
    found = torch.where(sound[:, None], found, torch.zeros_like(found))
    return found.reshape(count, samples, -1) @ free


def _normal(rows: Rows, noise: Tensor, free: Tensor, state: _State) -> tuple[Tensor, Tensor]:
    """J'J (S, nm, nm) and J'r (S, nm, 1) of the residuals r by the free moves of every sample.

    Moving sample i by d changes (p_i - y_i) e_i' by (dp_i/de d) e_i' + (p_i - y_i) d': the products
    are made of these parts, since J itself is large.
    """
    p, turned = state.probabilities, rows.logits.mT @ free.mT  # (K, m)
    softened = p[..., None] * (turned - (p @ turned)[..., None, :]) / noise[:, None, :, None]
    gaps, moved = state.gaps / noise[:, None], state.places @ free.mT  # (S, n, K), (S, n, m)
    count, samples, classes, moves = softened.shape
    flat = softened.transpose(1, 2).reshape(count, classes, samples * moves)
    alike = (state.places @ state.places.mT)[:, :, None, :, None]
    both = (flat.mT @ flat).reshape(count, samples, moves, samples, moves) * alike
    crossed = (flat.mT @ gaps.mT).reshape(count, samples, moves, samples, 1)
    crossed = crossed * moved[:, :, None, None, :]
    both = both + crossed + crossed.permute(0, 3, 4, 1, 2)
    eye = torch.eye(moves, dtype=p.dtype)
    both = both + (gaps @ gaps.mT)[:, :, None, :, None] * eye[:, None, :]
    along = state.left @ state.places.mT  # (S, K, n)
    slope = (softened * along.mT[..., None]).sum(2) + gaps @ state.left @ free.mT
    size = samples * moves
    return both.reshape(count, size, size), slope.reshape(count, size, 1)
