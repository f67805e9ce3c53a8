"""How the dump depends on the pixels: the Jacobian of the gradient, entries in units of noise.

The derivative is taken of the gradient with respect to pixels 0..1 (not model units), at given
inputs, each entry divided by the standard deviation of its noise. With a mask only kept entries
count; with an unknown positive factor on the gradient, only what no factor can imitate.

The weight gradient of a linear layer is d'e (d: gradient of its output, (N, K); e: its input,
(N, E)). Near the point it changes by dd'e + d'de, of which nothing is lost in
(X Q_e, Q_d'X (1 - Q_e Q_e')): Q_e (E, N) and Q_d (K, N) are orthonormal bases of the rows of e and
d at the point. Those are N (K + E) numbers in place of K E, with all inner products kept.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from auditor.attacks.matching import called_once, head_hook
from auditor.bounds.noise import kept_of
from auditor.problem import (
    gradient_of,
    is_one_gradient,
    loss_of,
    pixels_of_units,
    simulated_gradient,
)
from auditor.records import Problem
from auditor.solve import LinearMap, jacobian_products

_CHUNK = 64  # tangents at once
_CHUNK_BYTES = 256 << 20
_SAME = 1e-6  # relative: d'e and the gradient of the weight; a sample alone and in the batch


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer, called once, whose weight gradient is taken in its short form."""

    module: nn.Linear
    rows: Tensor  # Q_e (E, r)
    columns: Tensor  # Q_d (K, s)

    def projected(self, matrix: Tensor) -> Tensor:
        """(K r + s E,) of any (K, E): what is left of it in the short form."""
        along = matrix @ self.rows  # (K, r)
        rest = self.columns.mT @ (matrix - along @ self.rows.mT)  # (s, E)
        return torch.cat([along.flatten(), rest.flatten()])

    def short(self, delta: Tensor, features: Tensor) -> Tensor:
        """(K r + s E,) of d (N, K) and e (N, E)."""
        along = features @ self.rows  # (N, r)
        rest = features - along @ self.rows.mT
        return torch.cat(
            [(delta.mT @ along).flatten(), ((delta @ self.columns).mT @ rest).flatten()]
        )


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """The whitened Jacobian J (m, n) at one point. Make one with `sensitivity_of`."""

    problem: Problem
    inputs: Tensor  # (N, C, H, W), model units
    labels: Tensor  # (N,) or (N, K)
    noise: Mapping[str, float]  # tensor -> standard deviation of an entry
    layers: Mapping[str, Layer]  # by name of the weight
    kept: Mapping[str, Tensor]  # tensor -> places (k,) of what is kept; empty: everything is
    independent: bool  # a sample's gradient does not depend on the others'
    factor: Tensor | None  # (m,) unit vector of what an unknown factor changes

    @property
    def unknowns(self) -> int:
        """n: pixels of all samples."""
        return self.inputs.numel()

    @property
    def entries(self) -> int:
        """m: of the short form, not of the dump."""
        sent = self.problem.gradient
        whole = sum(len(self.kept[n]) if self.kept else sent[n].numel() for n in self._plain())
        return whole + sum(
            layer.columns.numel() // layer.columns.shape[1] * layer.rows.shape[1]
            + layer.columns.shape[1] * layer.rows.shape[0]
            for layer in self.layers.values()
        )

    def dense(self, expired: Callable[[], bool]) -> Tensor | None:
        """J' (n, m), pixel by pixel; None when the budget ended."""
        size, chunk = len(self.inputs), self._chunk()
        parts = [slice(i, i + 1) for i in range(size)] if self.independent else [slice(0, size)]
        found: list[Tensor] = []
        for part in parts:
            here, labels = self.inputs[part], self.labels[part]
            for low in range(0, here.numel(), chunk):
                if expired():
                    return None
                high = min(low + chunk, here.numel())
                units = here.new_zeros(high - low, here.numel())
                units[:, low:high].fill_diagonal_(1)
                tangents = units.view(-1, *here.shape) / self._deviation(here)
                found.append(_along(partial(self._image, labels=labels), here, tangents))
        return self._without_factor(torch.cat(found))

    def products(self) -> LinearMap:
        """J and J' as a map on rows (1, n) and (1, m). Holds the graph of one gradient."""

        def image(rows: Tensor) -> Tensor:
            moved = rows.view_as(self.inputs) / self._deviation(self.inputs)
            return self._image(self.inputs + moved, self.labels)[None]

        _, whole = jacobian_products(image, self.inputs.new_zeros(1, self.inputs.numel()))
        return LinearMap(
            lambda v: self._without_factor(whole.forward(v)),
            lambda u: whole.adjoint(self._without_factor(u)),
        )

    def residual(self) -> Tensor:
        """(1, m): the gradient at the point less the dump, short and in units of noise.

        What the short form leaves out is at right angles to the range of J.
        """
        sent = self.problem.gradient
        parts = [self._of(name, sent[name]) for name in self._plain()]
        parts += [layer.projected(sent[n]) / self.noise[n] for n, layer in self.layers.items()]
        with torch.enable_grad():
            here = self._image(self.inputs, self.labels).detach()
        return self._without_factor((here - torch.cat(parts))[None])

    def pixels(self) -> Tensor:
        """(n,) the point in pixel units, not clipped."""
        mean, _ = pixels_of_units(self.problem, self.inputs)
        return (self.inputs * self._deviation(self.inputs) + mean).flatten()

    def _plain(self) -> list[str]:
        return [name for name in self.problem.gradient if name not in self.layers]

    def _deviation(self, like: Tensor) -> Tensor:
        """(C, 1, 1) or (D,): the model's units of one pixel unit are its inverse."""
        return pixels_of_units(self.problem, like)[1]

    def _without_factor(self, rows: Tensor) -> Tensor:
        """Rows (R, m) without their part along `factor`."""
        if self.factor is None:
            return rows
        return rows - (rows @ self.factor)[:, None] * self.factor

    def _chunk(self) -> int:
        each = 8 * (self.entries + 40 * self.inputs.numel())
        return int(min(max(_CHUNK_BYTES // each, 1), _CHUNK))

    def _image(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """The gradient (m,) of these samples of the batch, short and in units of noise."""
        if not is_one_gradient(self.problem):
            whole = simulated_gradient(self.problem, inputs, labels)
            return torch.cat([self._of(name, part) for name, part in whole.items()])
        mean = self.problem.knowledge.reduction == "mean"
        share = len(inputs) / len(self.inputs) if mean else 1.0
        gradient, deltas, features = _gradients(self.problem, self.layers, inputs, labels, share)
        parts = [self._of(name, gradient[name]) for name in self._plain()]
        for name, layer in self.layers.items():
            parts.append(layer.short(deltas[name], features[name]) / self.noise[name])
        return torch.cat(parts)

    def _of(self, name: str, part: Tensor) -> Tensor:
        flat = part.flatten() / self.noise[name]
        return flat[self.kept[name]] if self.kept else flat


def sensitivity_of(
    problem: Problem, inputs: Tensor, labels: Tensor, noise: Mapping[str, float]
) -> Sensitivity:
    """The Jacobian at `inputs` (N, C, H, W) in model units with `labels` (N,), not yet computed.

    In double precision, if the model can. Raises ValueError for an update that `gradient_of` cannot
    simulate, RuntimeError for operations without a second derivative.
    """
    _prepare_forward_mode()
    problem = _in_double(problem, inputs)
    like = next(iter(problem.gradient.values()))
    point, labels = inputs.detach().to(like), labels.to(like.device)
    kept: dict[str, Tensor] = {}
    if problem.channel.masked:
        kept = {name: part.flatten().nonzero()[:, 0] for name, part in kept_of(problem).items()}
    layers = {} if kept else _layers(problem, point, labels)
    alone = _independent(problem, point)
    found = Sensitivity(problem, point, labels, noise, layers, kept, alone, None)
    if not problem.channel.scaled:
        return found
    with torch.enable_grad():
        direction = found._image(point, labels).detach()
    return replace(found, factor=direction / direction.norm())


def _along(function: Callable[[Tensor], Tensor], at: Tensor, tangents: Tensor) -> Tensor:
    """Derivatives (T, m) of `function` along `tangents` (T, ...): forward over reverse."""

    def one(tangent: Tensor) -> Tensor:
        image: Tensor = jvp(function, (at,), (tangent,))[1]
        return image

    found: Tensor = vmap(one)(tangents)
    return found


def _gradients(
    problem: Problem,
    layers: Mapping[str, Layer],
    inputs: Tensor,
    labels: Tensor,
    share: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of all parameters but the weights of `layers`; and d and e of those."""
    fixed = {name: value.detach() for name, value in problem.module.named_parameters()}
    moving = {name: fixed[name] for name in problem.gradient if name not in layers}
    shifts = {n: inputs.new_zeros(len(inputs), at.module.out_features) for n, at in layers.items()}

    def loss(part: dict[str, Tensor], shift: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        seen: dict[str, Tensor] = {}
        with ExitStack() as hooks:
            for name, layer in layers.items():
                hooks.enter_context(head_hook(layer.module, _shifted(name, shift[name], seen)))
            logits = functional_call(problem.module, {**fixed, **part}, (inputs,))
        return share * loss_of(problem, logits, labels), seen

    (gradient, deltas), seen = grad(loss, argnums=(0, 1), has_aux=True)(moving, shifts)
    return gradient, deltas, seen


def _shifted(
    name: str, shift: Tensor, seen: dict[str, Tensor]
) -> Callable[[Tensor, Tensor], Tensor]:
    """A hook that notes a layer's input and adds to its output."""

    def see(features: Tensor, output: Tensor) -> Tensor:
        seen[name] = features
        return output + shift

    return see


def _layers(problem: Problem, inputs: Tensor, labels: Tensor) -> dict[str, Layer]:
    """The linear layers whose short form is shorter, and right at this point (tested)."""
    if not is_one_gradient(problem):
        return {}
    size, sent = len(inputs), problem.gradient
    candidates = {
        f"{name}.weight": Layer(module, inputs, inputs)
        for name, module in problem.module.named_modules()
        if type(module) is nn.Linear
        and f"{name}.weight" in sent
        and size * sum(module.weight.shape) < module.weight.numel()
        and called_once(problem, module, size)
    }
    with torch.enable_grad():
        _, deltas, features = _gradients(problem, candidates, inputs, labels, 1.0)
    whole = gradient_of(problem, inputs, labels)
    found: dict[str, Layer] = {}
    for name, layer in candidates.items():
        delta, seen = deltas[name].detach(), features[name].detach()
        if (delta.mT @ seen - whole[name]).norm() <= _SAME * whole[name].norm():
            rows, columns = torch.linalg.qr(seen.mT).Q, torch.linalg.qr(delta.mT).Q
            found[name] = replace(layer, rows=rows, columns=columns)
    return found


def _in_double(problem: Problem, inputs: Tensor) -> Problem:
    """The same problem with everything in double precision, if the model takes that."""
    like = next(iter(problem.gradient.values()))
    if like.dtype == torch.float64 or like.device.type == "mps":
        return problem
    module = copy.deepcopy(problem.module).double()
    try:
        with torch.no_grad():
            module(inputs.to(like.device).double())
    except RuntimeError:
        return problem
    gradient = {name: part.double() for name, part in problem.gradient.items()}
    return replace(problem, module=module, gradient=gradient)


def _independent(problem: Problem, inputs: Tensor) -> bool:
    """Whether a sample's gradient is the same alone and in the batch: its logits are (tested)."""
    if not is_one_gradient(problem):
        return False  # a step's weights depend on the samples before
    with torch.no_grad():
        together = problem.module(inputs)
        alone = torch.cat([problem.module(one[None]) for one in inputs])
    return bool((together - alone).norm() <= _SAME * together.norm())


def _prepare_forward_mode() -> None:
    """Torch loads parts of forward mode at the first use, and warns of its own deprecated ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jvp(lambda x: x, (torch.zeros(1),), (torch.ones(1),))
