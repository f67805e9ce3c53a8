"""One link of the chain: build its system, solve it, decide doubtful patterns, know its limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.graph import Node
from auditor.inversion.activations import (
    Undone,
    has_kink,
    has_pattern,
    has_two_branches,
    is_relu,
    undo,
)
from auditor.inversion.constraints import Bounds, constrained
from auditor.inversion.layers import Link
from auditor.inversion.patterns import (
    all_but_the_worst,
    channels_in_doubt,
    trust_in_gradients,
)
from auditor.inversion.preconditioners import (
    LAST_RESORT,
    Inverse,
    condition_by,
    inverse_of,
    pays_at_once,
)
from auditor.inversion.systems import LinkOperator, LinkSystem
from auditor.records import LinkReport
from auditor.solve import LinearMap, LinearSolution, Status, least_squares

_ROUNDS = 6  # of deciding a pattern and solving again
_ROUND_STEPS = 600
_TIGHT = 1e3  # times the precision: no doubt is left at this residual
_TRIAL_STEPS = 60  # before a normal matrix is factorised
_FEW_STEPS = 6  # that an inverse usually takes
_HARD_STEPS = 1500  # before a large normal matrix is factorised after all
# Two rows further apart than this, relative to their size: the system does not determine its input.
HIDDEN = 1e-2
# Up to here it is rounding that keeps them apart: a single open direction would leave starts that
# were so far away further apart, and inequalities that decide it make a good answer worse.
_NOISE = 0.1
# Random starts lie so many times the solution's size away, so that even a single open direction
# among thousands keeps rows apart.
_FAR = 100.0
_TYPICAL = 0.3  # root mean square of a picture, relative to the pixel range
_LOOSER = 10.0
_SURPLUS = 1.1  # equations an unknown
_ZERO = 1e-3  # of the largest value: below it a penalised value may be zero
# Residuals of links that were read well are near the precision times their condition; misread
# patterns left 1e-2 and more in every trial. The line between them:
_MISFIT, _MISFIT_LOW, _MISFIT_HIGH = 1e4, 1e-3, 5e-2


@dataclass(frozen=True)
class Settings:
    """How hard to solve each link."""

    precision: float  # of the dump
    tolerance: float
    max_steps: int = 4000
    repeated: bool = True  # all rows are one problem
    expired: Callable[[], bool] = lambda: False


class LinkSolver:
    """One link: build its system, solve it, decide doubtful patterns, fall back on constraints."""

    def __init__(
        self,
        link: Link,
        values: Tensor,
        cotangent: Tensor,
        margin: Tensor,
        bounds: Bounds,
        below: Node | None,
        pixels: bool,
        settings: Settings,
        generator: torch.Generator | None,
    ) -> None:
        self.link, self.values, self.cotangent, self.margin = link, values, cotangent, margin
        self.bounds, self.pixels, self.settings = bounds, pixels, settings
        self.generator, self.precise = generator, has_pattern(below)
        self.operator = LinkOperator(link, values)
        self.solution: LinearSolution | None = None
        self.open = 0  # unknowns that the equations alone leave open
        self.constrained = self.guessed = False
        self.steps = self.equations = 0
        self.spread = 1.0  # rms distance of a random start from zero
        self.inverse: Inverse | None = None

    def solve(self, gradient: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Values and cotangent at the link's source."""
        undone = undo(self.link.activation, self.values, margin=self.margin)
        if self.link.moves_only:
            moved = self.operator.adjoint(undone.inputs - self.operator.offset)
            return moved, self.operator.adjoint(self.cotangent * undone.slope)
        sent = self._sent(gradient)
        found = self._solved(self._system(undone, sent))
        for number in range(_ROUNDS * self._doubtful()):
            if self.gap() > _NOISE or self._holds() or self.settings.expired():
                break
            again, found = self._read_again(undone, sent, found, silent=2**number)
            if again is None:
                break
            if again is not undone:
                undone = again
                found = self._solved(self._system(undone, sent), found, _ROUND_STEPS)
        if self.gap() > _NOISE and not self.settings.expired():
            system = self._system(undone, sent)
            self.open = self._count_open(system)
            found = self._constrained(system, undone, found)
        return found, self.operator.adjoint(self.cotangent * undone.slope)

    def _holds(self) -> bool:
        """Whether the equations hold so well that no pattern can be misread."""
        return self._residual() <= _TIGHT * self.settings.precision

    def _read_again(
        self, undone: Undone, sent: Tensor | None, found: Tensor, silent: int
    ) -> tuple[Undone | None, Tensor]:
        """What the solution says of the pattern or the branches, and the solution that said it.

        One misread unit spoils all gradient equations of its output channel, and through them the
        solution that is to correct it: it is asked without the `silent` worst channels in doubt.
        None for a reading that is the same as before. An inverse that there is stays as it is: it
        is of nearly the same equations, and serves as a preconditioner.
        """
        activation = self.link.activation
        near = self.operator.forward(found) + self.operator.offset
        if has_kink(activation) and sent is not None:
            doubtful = channels_in_doubt(
                self.link, self.operator, undone, self.values, self.margin, near
            )
            whole = self._system(undone, sent)
            heard = all_but_the_worst(doubtful, whole.missed(found), silent)
            within = self._system(undone, sent, heard)
            found = self._solved(within, found, _ROUND_STEPS)
            if not self._holds() or int(within.equations.min()) < self._enough():
                return undone, found  # the next round has more channels silent
            near = self.operator.forward(found) + self.operator.offset
        again = undo(activation, self.values, margin=self.margin, near=near)
        return (None if torch.equal(again.slope, undone.slope) else again), found

    def _enough(self) -> float:
        """Equations below which wrong ones would not show."""
        return _SURPLUS * self.operator.unknowns

    def _doubtful(self) -> bool:
        """Whether the activation leaves something to decide: a pattern, or one of two branches."""
        activation = self.link.activation
        return has_kink(activation) or has_two_branches(activation)

    def _residual(self) -> float:
        assert self.solution is not None
        return float(self.solution.residual.max())

    def _sent(self, gradient: Mapping[str, Tensor]) -> Tensor | None:
        operator = self.link.operator
        return (
            None if operator is None or operator.weight is None else gradient.get(operator.weight)
        )

    def _system(
        self, undone: Undone, sent: Tensor | None, heard: Tensor | float = 1.0
    ) -> LinkSystem:
        # An error in a value is divided by the slope on its way to the pre-activation.
        weights = undone.slope.abs() * undone.known
        weights = weights / weights.mean(1, keepdim=True).clamp_min(1e-300)
        pre = torch.where(undone.known, undone.inputs, 0.0)
        slopes = self.cotangent * undone.slope
        if not (self.settings.repeated and has_pattern(self.link.activation)):
            return LinkSystem(self.operator, pre, weights, slopes, sent, heard)
        system = LinkSystem(self.operator, pre, weights, slopes, sent)
        heard = heard * trust_in_gradients(system)
        return LinkSystem(self.operator, pre, weights, slopes, sent, heard)

    def _solved(
        self, system: LinkSystem, start: Tensor | None = None, limit: int | None = None
    ) -> Tensor:
        first = self._starts(system) if start is None else start
        self.equations = int(system.equations.min())
        alike = self.settings.repeated  # then one inverse serves all rows
        if alike and self.inverse is None and pays_at_once(system):
            self.inverse = inverse_of(system)
        few = _FEW_STEPS if self.inverse else _TRIAL_STEPS
        solution = self._run(system.map, system.rhs, first, few, self.inverse)
        if alike and self.inverse is None and solution.status[0] is Status.EXHAUSTED:
            self.inverse = inverse_of(system)
        rescue = alike and self.inverse is None and self.operator.unknowns <= LAST_RESORT
        if Status.EXHAUSTED in solution.status:
            steps = limit or (_HARD_STEPS if rescue else self.settings.max_steps)
            solution = self._run(system.map, system.rhs, solution.x, steps, self.inverse)
        if rescue and limit is None and Status.EXHAUSTED in solution.status:
            self.inverse = inverse_of(system, dense=LAST_RESORT)
            steps = self.settings.max_steps
            solution = self._run(system.map, system.rhs, solution.x, steps, self.inverse)
        apart = solution.residual * system.rhs.norm(dim=1)
        size = torch.maximum(system.magnitude, system.rhs.norm(dim=1)).clamp_min(1e-300)
        solution = replace(solution, residual=apart / size)
        if self.inverse is not None:  # the solver saw the condition that the inverse left
            found = condition_by(system, self.inverse)
            solution = replace(solution, condition=torch.full_like(size, found))
        self.solution = solution
        return solution.x

    def _run(
        self,
        equations: LinearMap,
        rhs: Tensor,
        start: Tensor,
        steps: int,
        inverse: Inverse | None = None,
    ) -> LinearSolution:
        # The repetitions only have to show where the first row is not alone, unless the distance
        # between rows decides which values of a ReLU count as zero.
        tolerance = torch.full_like(rhs[:, 0], self.settings.tolerance)
        if self.settings.repeated:
            tolerance[1:] *= 1.0 if self.precise else _LOOSER
        solution = least_squares(
            equations,
            rhs,
            start,
            tolerance=tolerance,
            max_steps=steps,
            precondition=inverse,
            expired=self.settings.expired,
        )
        self.steps += solution.steps
        return solution

    def _starts(self, system: LinkSystem) -> Tensor:
        """Zero, and for all rows but the first a random vector of about the solution's size."""
        zero = self.values.new_zeros(len(self.values), self.operator.unknowns)
        if self.generator is None:
            return zero
        downhill = system.map.adjoint(system.rhs)
        image = system.map.forward(downhill).square().sum(1, keepdim=True)
        length = downhill.square().sum(1, keepdim=True) / image.clamp_min(1e-300)
        size = float((length * downhill).square().mean(1)[0].sqrt())
        least = max(_TYPICAL * self.bounds.width, 1e-3 * float(self.values.abs().mean()), 1e-6)
        self.spread = _FAR * max(size, least)
        drawn = torch.randn(zero.shape, generator=self.generator, dtype=torch.float64).to(zero)
        drawn[0] = 0
        return self.spread * drawn

    def _constrained(self, system: LinkSystem, undone: Undone, found: Tensor) -> Tensor:
        """Let inequalities decide what the equations leave open, then, for pictures, smoothness."""
        self.constrained = True
        found = _opposite(found) if self.settings.repeated else found
        off = ~undone.known if is_relu(self.link.activation) else None
        shape = self.link.source.shape[1:]
        picture = shape if self.pixels and len(shape) == 3 else None
        for smooth in (None, picture) if picture is not None else (None,):
            solution = constrained(
                system,
                found,
                bounds=self.bounds,
                off=off,
                smooth=smooth,
                tolerance=self.settings.tolerance,
                expired=self.settings.expired,
            )
            self.steps += solution.steps
            if self.solution is not None:  # the plain equations' own
                plain = self.solution
                solution = replace(solution, condition=plain.condition, status=plain.status)
            self.solution = solution
            if not self.hides():
                break
        self.guessed = smooth is not None
        if isinstance(self.bounds.low, float) and self.bounds.low == 0 and not self.hides():
            return self._refit(system, solution)
        return solution.x

    def _refit(self, system: LinkSystem, near: LinearSolution) -> Tensor:
        """Solve for the positive values alone, each row with its own pattern of zeros.

        The penalties left small errors; with the zeros known the equations determine the rest.
        """
        on = near.x > _ZERO * near.x.abs().amax(1, keepdim=True)
        start = self._starts(system)
        solution = near
        for _ in range(_ROUNDS):
            within = _masked(system.map, on.to(near.x))
            solution = self._run(within, system.rhs, start * on, self.settings.max_steps)
            negative = on & (solution.x < 0)
            if not negative.any() or self.settings.expired():
                break
            on, start = on & ~negative, solution.x
        if bool((solution.residual <= near.residual).all()):
            self.solution = replace(solution, condition=near.condition, status=near.status)
        return (self.solution or near).x

    def _fits(self) -> bool:
        """Whether the equations hold, as far as the dump's precision lets them."""
        limit = min(max(_MISFIT * self.settings.precision, _MISFIT_LOW), _MISFIT_HIGH)
        return self._residual() <= limit

    def _tells_branches(self) -> bool:
        """Whether wrong preimages of GELU or SiLU would show: only surplus equations contradict."""
        two = has_two_branches(self.link.activation)
        return not two or self.equations >= self._enough()

    def gap(self) -> float:
        """The distance of the rows from the first, relative to its size; 0 with a single row."""
        if self.solution is None or not self.settings.repeated or len(self.values) < 2:
            return 0.0
        first, others = self.solution.x[0], self.solution.x[1:]
        least = max(_TYPICAL * self.bounds.width * len(first) ** 0.5, 1e-300)  # black has no size
        return float((others - first).norm(dim=1).max() / first.norm().clamp_min(least))

    def hides(self) -> bool:
        """Whether the rows ended too far apart: something is left open, or was not solved."""
        return self.gap() > HIDDEN

    def _count_open(self, system: LinkSystem) -> int:
        """About how many unknowns the equations leave open.

        The share of a random vector that lies in the null space, from an inverse of the normal
        matrix or from where random starts ended; it is that share of the unknowns.
        """
        assert self.solution is not None
        if self.inverse is None:
            apart = (self.solution.x[1:] - self.solution.x[0]).square().mean(1).max()
            share = float(apart) / max(self.spread, 1e-300) ** 2
        else:
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randn(len(self.values), self.operator.unknowns, generator=generator)
            drawn = drawn.to(self.values)
            seen = self.inverse(system.map.adjoint(system.map.forward(drawn)))
            share = float((drawn * (drawn - seen)).sum() / drawn.square().sum())
        return max(1, round(min(max(share, 0.0), 1.0) * self.operator.unknowns))

    def error(self) -> Tensor:
        """A bound of the values' errors (B, 1) from the distance of the rows."""
        if self.solution is None or not self.settings.repeated:
            return torch.zeros_like(self.margin)
        apart = (self.solution.x - self.solution.x[0]).abs().max()
        return torch.zeros_like(self.margin) + 3 * apart

    def report(self) -> LinkReport:
        """For people."""
        solution = self.solution
        assert solution is not None
        return LinkReport(
            layer=self.link.name,
            unknowns=self.operator.unknowns,
            equations=self.equations,
            undetermined=self.open,
            gap=self.gap(),
            residual=float(solution.residual.max()),
            condition=float(solution.condition.max()),
            steps=self.steps,
            status=_worst(solution.status).value,
            constrained=self.constrained,
            solved=not self.hides()
            and self._fits()
            and not self.guessed
            and self._tells_branches(),
        )


def _worst(status: tuple[Status, ...]) -> Status:
    """What to tell of several rows: the first that did not arrive."""
    return next((one for one in status if one is not Status.CONVERGED), Status.CONVERGED)


def _opposite(rows: Tensor) -> Tensor:
    """Starts on both sides of what is open, (B, n).

    Inequalities close an open direction only if the answers from both of its ends meet: from one
    side, any two starts may be stopped by the same bound.
    """
    apart = (rows[1:] - rows[:1]).mean(0, keepdim=True)
    return torch.cat([rows[:1] - apart, rows[:1] + apart.expand(len(rows) - 1, -1)])


def _masked(whole: LinearMap, mask: Tensor) -> LinearMap:
    """The map on the entries where `mask` (B, n) is 1; the others stay out of it."""
    return LinearMap(lambda v: whole.forward(v * mask), lambda r: whole.adjoint(r) * mask)
