"""The matching objective as a sum of squares: its residual vector, and the Jacobian of that.

r(x) = sqrt(w_l) (g_l(x) - g*_l), one tensor l after the other, with the weights of `matching.py`.
The head's weight gradient d'e (d: gradient of the logits, (N, K); e: features, (N, E)) can be huge.
It enters as S d'e with fixed orthonormal rows S (s, K): a basis of the column space of the dump's,
then random ones. With s = K nothing is lost.

Statistics of the batch that were sent along are more rows: what batch norm was given less what it
is said to have been given, each batch norm weighted like a tensor of the dump.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from auditor.attacks.matching import called_once, head_hook, low_rank, tensor_weights
from auditor.local_training import midway, schedule
from auditor.problem import (
    change_of,
    is_one_gradient,
    loss_of,
    simulated_gradient,
    statistics_apart,
)
from auditor.records import LocalTraining, Problem
from auditor.solve import LinearMap, jacobian_products

_SPARE_ROWS = 2  # of S, beyond the batch size
_CHUNK_BYTES = 256 << 20
_CHUNK = 128  # tangents at once: more was not faster (LeNet, CPU)
_SAME = 1e-9  # relative: a sample alone and in the batch


@dataclass(frozen=True)
class MatchingResidual:
    """The residual vector of one problem. Make one with `matching_residual`.

    A row (n,) holds the N images (N, C, H, W) in model units and, with soft labels, N x K logits.
    """

    problem: Problem
    labels: Tensor | None  # (N,); None: soft ones, in the row
    size: int  # N
    roots: dict[str, Tensor]  # sqrt(w_l), () each
    head: nn.Linear | None  # None: its gradient is taken like any other
    left: Tensor | None  # S (s, K)
    target: Tensor  # (m,)
    independent: bool  # a sample's gradient does not depend on the others'
    stand_in: MatchingResidual | None = None  # whose Jacobian is taken instead; None: its own

    @property
    def pixels(self) -> int:
        """Values of one image."""
        return torch.Size(self.problem.knowledge.input_shape).numel()

    @property
    def width(self) -> int:
        """n."""
        logits = 0 if self.labels is not None else self.problem.trace.head.classes
        return self.size * (self.pixels + logits)

    @property
    def dense_bytes(self) -> int:
        """Of the dense Jacobian and its normal matrix, for one row."""
        return (len(self.target) + self.width) * self.width * self.target.element_size()

    def unpack(self, row: Tensor) -> tuple[Tensor, Tensor]:
        """A row (n,) to images (N, C, H, W) and targets (N,) or (N, K)."""
        split = self.size * self.pixels
        images = row[:split].view(self.size, *self.problem.knowledge.input_shape)
        if self.labels is not None:
            return images, self.labels
        return images, row[split:].view(self.size, -1).softmax(1)

    def images(self, rows: Tensor) -> Tensor:
        """Rows (R, n) to images (R, N, C, H, W)."""
        split = self.size * self.pixels
        return rows[:, :split].view(len(rows), self.size, *self.problem.knowledge.input_shape)

    def hard_labels(self, rows: Tensor) -> Tensor:
        """(R, N): the labels, or the likeliest ones where they are part of the rows."""
        if self.labels is not None:
            return self.labels.expand(len(rows), -1)
        logits = rows[:, self.size * self.pixels :]
        return logits.view(len(rows), self.size, self.problem.trace.head.classes).argmax(2)

    def __call__(self, rows: Tensor) -> Tensor:
        """(R, n) to (R, m)."""
        return torch.stack([self._values(*self.unpack(row)) - self.target for row in rows])

    def dense(self, rows: Tensor, expired: Callable[[], bool]) -> Tensor | None:
        """The Jacobians (R, m, n), column by column; None when the budget ended."""
        found = [(self.stand_in or self)._jacobian(row, expired) for row in rows]
        whole = [part for part in found if part is not None]
        if len(whole) < len(found):
            return None
        return whole[0][None].mT if len(whole) == 1 else torch.stack(whole).mT

    def linear_map(self, rows: Tensor) -> LinearMap:
        """The Jacobians at rows (R, n) as a map. Holds the graphs of R gradients."""
        return jacobian_products(self.stand_in or self, rows)[1]

    def _jacobian(self, row: Tensor, expired: Callable[[], bool]) -> Tensor | None:
        """J' (n, m) of one row, from products with unit vectors (forward over reverse)."""
        transposed = row.new_empty(self.width, len(self.target))
        chunk = _chunk(self, row)
        for part, columns in self._parts(row):
            here = row[columns]

            def along(
                tangent: Tensor,
                part: Callable[[Tensor], Tensor] = part,
                here: Tensor = here,
            ) -> Tensor:
                image: Tensor = jvp(part, (here,), (tangent,))[1]
                return image

            for low in range(0, len(columns), chunk):
                if expired():
                    return None
                high = min(low + chunk, len(columns))
                units = row.new_zeros(high - low, len(columns))
                units[:, low:high].fill_diagonal_(1)
                transposed[columns[low:high]] = vmap(along)(units)
        return transposed

    def _parts(self, row: Tensor) -> list[tuple[Callable[[Tensor], Tensor], Tensor]]:
        """Functions of a part of the row that add up to g, each with the part's places."""
        everywhere = torch.arange(self.width, device=row.device)
        if not self.independent:
            return [(lambda part: self._values(*self.unpack(part)), everywhere)]
        split = self.size * self.pixels
        pixels = everywhere[:split].view(self.size, -1)
        logits = everywhere[split:].view(self.size, -1)
        shape = self.problem.knowledge.input_shape

        def of(sample: int) -> Callable[[Tensor], Tensor]:
            def gradient(part: Tensor) -> Tensor:
                image = part[: self.pixels].view(1, *shape)
                if self.labels is not None:
                    return self._gradient(image, self.labels[sample : sample + 1])
                return self._gradient(image, part[self.pixels :].softmax(0)[None])

            return gradient

        return [(of(i), torch.cat([pixels[i], logits[i]])) for i in range(self.size)]

    def _values(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The weighted gradient, then the statistics less those sent along, (m,)."""
        gradient = self._gradient(inputs, targets)
        if not self.problem.statistics:
            return gradient
        parts = statistics_apart(self.problem, inputs).values()
        return torch.cat([gradient, *(part / len(self.roots) ** 0.5 for part in parts)])

    def _gradient(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The weighted gradient (m,) of these samples of the batch."""
        problem = self.problem
        if not is_one_gradient(problem):
            sent = simulated_gradient(problem, inputs, targets)
            return torch.cat([self.roots[name] * part.flatten() for name, part in sent.items()])
        fixed = {name: value.detach() for name, value in problem.module.named_parameters()}
        short = {problem.trace.head.weight} if self.head is not None else set()
        moving = {name: fixed[name] for name in problem.gradient if name not in short}
        share = len(inputs) / self.size if problem.knowledge.reduction == "mean" else 1.0

        def loss(part: dict[str, Tensor], shift: Tensor) -> tuple[Tensor, Tensor]:
            seen: list[Tensor] = []

            def shifted(features: Tensor, logits: Tensor) -> Tensor:
                seen.append(features)
                return logits + shift

            def call() -> Tensor:
                return functional_call(  # type: ignore[no-any-return]
                    problem.module, {**fixed, **part}, (inputs,)
                )

            if self.head is None:
                return share * loss_of(problem, call(), targets), shift
            with head_hook(self.head, shifted):
                logits = call()
            return share * loss_of(problem, logits, targets), seen[0]

        zero = inputs.new_zeros(len(inputs), problem.trace.head.classes)
        (gradient, delta), features = grad(loss, argnums=(0, 1), has_aux=True)(moving, zero)
        parts = [self.roots[name] * gradient[name].flatten() for name in moving]
        if self.left is not None:
            root = self.roots[problem.trace.head.weight]
            parts.append(root * ((self.left @ delta.mT) @ features).flatten())
        return torch.cat(parts)


def matching_residual(
    problem: Problem, labels: Tensor | None, *, size: int, short: bool = True
) -> MatchingResidual:
    """The residual for a batch of `size` with `labels` (N,), or with soft labels to be found.

    `short`: the head's gradient may enter as S sees it; otherwise every entry does.

    |r|^2 is the objective of `matching_objective` with layer weights, when the batch has at least
    K - 2 samples; otherwise what S sees of it.
    """
    _prepare_forward_mode()
    roots = {name: weight.sqrt() for name, weight in tensor_weights(problem, "layer").items()}
    head = _plain_head(problem, size) if short else None
    left = None if head is None else _left(problem, size)
    apart = {problem.trace.head.weight} if head is not None else set()
    parts = [roots[n] * g.flatten() for n, g in problem.gradient.items() if n not in apart]
    if left is not None:
        name = problem.trace.head.weight
        parts.append(roots[name] * (left @ problem.gradient[name]).flatten())
    statistics = sum(2 * len(one.mean) for one in problem.statistics.values())
    parts.append(next(iter(problem.gradient.values())).new_zeros(statistics))
    alone = not statistics and _independent(problem, size)
    return MatchingResidual(problem, labels, size, roots, head, left, torch.cat(parts), alone)


def approximated(residual: MatchingResidual) -> MatchingResidual:
    """The same residual with a Jacobian of one gradient in the place of several local steps.

    Off by a term of first order in the learning rate (that the pictures move the weights between
    the steps), at the cost of one step. Itself for one gradient.
    """
    problem, local = residual.problem, residual.problem.knowledge.local
    if local is None or is_one_gradient(problem):
        return residual
    single = stand_in(problem, midway(local) or 0.0)
    near = matching_residual(single, residual.labels, size=residual.size, short=False)
    return replace(residual, stand_in=near)


def stand_in(problem: Problem, place: float) -> Problem:
    """One gradient at `place` between the weights before (0) and after (1) for all local steps.

    At `midway` its gradient is the update's up to second order in the learning rate.
    Learning rate and steps of the problem have to be known.
    """
    known = problem.knowledge
    plan = None if known.local is None else schedule(known.local)
    assert plan is not None
    single = LocalTraining(plan.scale, 1, known.batch_size)
    moved = _moved(problem.module, change_of(problem), place)
    return replace(problem, module=moved, knowledge=replace(known, local=single))


def _moved(module: nn.Module, change: dict[str, Tensor], place: float) -> nn.Module:
    if not place:
        return module
    ours = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name in change:
                parameter.add_(change[name], alpha=place)
    return ours


def _plain_head(problem: Problem, size: int) -> nn.Linear | None:
    """The head, if it is a plain linear module that is called once, and its gradient was sent."""
    name = problem.trace.head.weight
    module = dict(problem.module.named_modules()).get(name.rpartition(".")[0])
    if name not in problem.gradient or type(module) is not nn.Linear:
        return None
    if not is_one_gradient(problem):
        return None  # the head moved between the steps
    return module if called_once(problem, module, size) else None


def _left(problem: Problem, size: int) -> Tensor:
    """S (s, K): orthonormal rows, the first of which span the columns of the dump's gradient."""
    sent = problem.gradient[problem.trace.head.weight]
    classes = len(sent)
    rows = min(classes, size + _SPARE_ROWS)
    if rows == classes:
        return torch.eye(classes, dtype=sent.dtype, device=sent.device)
    basis = low_rank(sent, size)[0]
    generator = torch.Generator().manual_seed(0)
    more = torch.randn(classes, rows, generator=generator, dtype=torch.float64).to(sent)
    left: Tensor = torch.linalg.qr(torch.cat([basis, more], 1)[:, :rows]).Q.mT
    return left.contiguous()


def _independent(problem: Problem, size: int) -> bool:
    """Whether a sample's gradient is the same alone and in a batch: its logits are (tested)."""
    if not is_one_gradient(problem):
        return False  # a step's weights depend on the samples before
    like = next(iter(problem.gradient.values()))
    generator = torch.Generator().manual_seed(0)
    shape = (size, *problem.knowledge.input_shape)
    probe = torch.rand(shape, generator=generator, dtype=torch.float64).to(like)
    with torch.no_grad():
        together = problem.module(probe)
        alone = torch.cat([problem.module(one[None]) for one in probe])
    bound = max(_SAME, 100 * torch.finfo(like.dtype).eps)
    apart, whole = float((together - alone).norm()), float(together.norm())
    return apart <= bound * whole


def _chunk(residual: MatchingResidual, row: Tensor) -> int:
    """How many tangents fit the memory that one call may take."""
    parameters = {p.data_ptr() for p in residual.problem.module.parameters()}
    held = 0

    def count(saved: Tensor) -> Tensor:
        nonlocal held
        held += 0 if saved.data_ptr() in parameters else saved.numel()
        return saved

    images, _ = residual.unpack(row)
    images = images[:1] if residual.independent else images
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x), torch.enable_grad():
        residual.problem.module(images.detach().requires_grad_())
    # The forward pass, the backward pass, and the tangents of both; and the answer.
    each = (6 * held + 2 * len(residual.target)) * row.element_size()
    return int(min(max(_CHUNK_BYTES // each, 1), _CHUNK))


def _prepare_forward_mode() -> None:
    """Torch loads parts of forward mode at the first use, and warns of its own deprecated ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jvp(lambda x: x, (torch.zeros(1),), (torch.ones(1),))
