"""Pictures by matching the direction of the gradient, with what pictures are like as a help.

The cosine distance of Inverting Gradients (Geiping et al. 2020, arXiv:2003.14053), total variation,
and where it helps the statistics of batch norm (GradInversion: Yin et al. 2021, arXiv:2104.07586)
or a smooth slope for ReLU, minimised by signed Adam in smooth coordinates. Heats from several
starts under several priors come first, some of them as a group (`group.py`); those whose gradient
points nearest to the dump go on. Statistics of the batch that were sent along are no prior: they
count in the objective and in the choice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.attacks.group import drawn_together
from auditor.attacks.images import Film, Search
from auditor.attacks.labels import label_claim
from auditor.attacks.objectives import Weighting, direction
from auditor.attacks.picture_starts import Start, coordinates, first_row
from auditor.attacks.surrogates import Surrogates, statistics_distance
from auditor.batch_statistics import apart, tapped
from auditor.problem import tolerance_of, why_not_simulated
from auditor.records import Course, LayerStatistics, Problem, Recovery
from auditor.solve import Solution, by_row
from auditor.solve.adam import signed_adam

_STARTS: tuple[Start, ...] = ("gray", "field", "tiles", "noise")
_CLEARLY = 1.1  # times the best distance: what ended further away is no second answer
_FIRST = 0.7  # of the time for finals, for the first
_HEAT = 0.25  # of the time that is left, for one heat at most
_SPARE = 0.9  # of the time that is left is planned for: some steps take longer than others


_SENT, _HEAVY = 0.5, 10.0  # weights of statistics that were sent along

_TOGETHER = "what several searches have in common is nearer to the picture (group consistency)"
_OF_THIS_STEP = "the buffers are of this step, with the momentum of the model"


@dataclass(frozen=True)
class Prior:
    """What a search adds to the dump, and how it compares. Zero and None: nothing."""

    weighting: Weighting = "whole"
    total_variation: float = 0.05
    statistics: float = 0.0  # the running ones of batch norm, in evaluation mode
    running: float = 0.0  # the same in training mode, where the batch's own were not sent along
    sent: float = _SENT  # those of the batch, where they were sent along
    sharpness: float | None = None  # of the slope that stands for ReLU's

    def premises(self) -> tuple[str, ...]:
        """What was assumed, in words."""
        said = ["neighbouring pixels are alike (smooth coordinates, total variation)"]
        said.append("every pixel lies between black and white")
        if self.statistics or self.running:
            said.append("the picture resembles those of the training in batch norm's statistics")
        return tuple(said)


# In trials on a trained ResNet-20 the first two did best; the residual decides for each dump anew.
PRIORS = (
    Prior(statistics=0.005),
    Prior(),
    Prior(sharpness=5.0),
    Prior(weighting="tensor"),
    Prior(sent=_HEAVY),
    Prior(running=0.1),
)


@dataclass(frozen=True)
class Heat:
    """Where a run ended."""

    prior: Prior
    row: Tensor  # (1, D), coordinates
    distance: float  # from what was sent, with the true network: no prior, no surrogate
    together: bool = False  # with others, as a group

    def premises(self) -> tuple[str, ...]:
        return (*self.prior.premises(), *((_TOGETHER,) if self.together else ()))


@dataclass(frozen=True)
class Final:
    """A heat that went on, and its way."""

    heat: Heat
    course: Course


@dataclass(frozen=True)
class ImagePriors:
    """Heats under every prior, then from more starts under the best one; the best two go on.

    The last `group` of the heats run side by side, each with a `pull` to what all of them found.
    """

    heats: int = 8
    heat_steps: int = 200
    group: int = 3  # fewer than two: none
    pull: float = 0.1
    finals: int = 2
    steps: int = 1000  # of a final
    priors: tuple[Prior, ...] = PRIORS
    name: str = "images.priors"
    title: str = "Images by matching the gradient's direction, with priors (Inverting Gradients)"

    def blocked_by(self, problem: Problem) -> str | None:
        known = problem.knowledge
        if known.batch_size is None:
            return "the batch size is unknown: say it with --batch-size"
        if len(known.input_shape) != 3:
            return "its priors are about neighbouring places, and the columns of a table have none"
        if (missing := why_not_simulated(problem)) is not None:
            return missing
        if label_claim(problem).estimate is None:
            return "the head's gradient gives no labels to start from"
        return None

    def run(self, problem: Problem, *, seed: int, watch: Watch) -> Recovery:
        estimate = label_claim(problem).estimate
        assert estimate is not None, "blocked_by was not asked"
        labels = estimate.to(next(iter(problem.gradient.values())).device)
        return _Run(self, problem, labels, seed, watch).recovery()


class _Run:
    """The state of one call of `ImagePriors.run`."""

    def __init__(
        self, attack: ImagePriors, problem: Problem, labels: Tensor, seed: int, watch: Watch
    ) -> None:
        self.attack, self.problem, self.labels, self.watch = attack, problem, labels, watch
        self.match = direction(problem, labels)
        self.space = coordinates(problem)
        self.shape = (len(labels), *problem.knowledge.input_shape)
        self.generator = torch.Generator().manual_seed(seed)
        self.evaluations, self.pace = 0, 0.0  # seconds of one evaluation
        self.short = False

    def recovery(self) -> Recovery:
        heats = sorted(self._heats(), key=lambda heat: heat.distance)
        finals = self._finals(heats[: self.attack.finals])
        finals.sort(key=lambda final: final.heat.distance)
        limit = _CLEARLY * finals[0].heat.distance if finals else 0.0
        kept = [final for final in finals if final.heat.distance <= limit]
        none = self._gray().new_zeros(0, *self.shape)
        inputs = torch.stack([self._inputs(k.heat.row)[0] for k in kept]) if kept else none
        said = [premise for final in kept for premise in final.heat.premises()]
        said += [_OF_THIS_STEP] if self.problem.statistics else []
        return Recovery(
            inputs=inputs,
            input_labels=self.labels.expand(len(inputs), -1),
            courses=tuple(final.course for final in kept),
            evaluations=self.evaluations,
            expired=self.short or self.watch.expired(),
            guided=True,
            assumed=tuple(dict.fromkeys(said)),
        )

    def _finals(self, heats: list[Heat]) -> list[Final]:
        """What became of those that went on, the best of them with most of the time."""
        finals: list[Final] = []
        for place, heat in enumerate(heats):
            if place and self.watch.expired():
                break
            share = 1.0 if place + 1 == len(heats) else _FIRST
            steps = self._affordable(self.attack.steps, share)
            solution, course = self._descend(heat.prior, heat.row, steps)
            row, distance = solution.x, self._true_distance(solution.x)
            ended = replace(heat, row=row, distance=distance)
            finals.append(Final(ended, course))
        return finals

    # ----------------------------------------------------------------------- heats

    def _heats(self) -> list[Heat]:
        """One under each prior from a gray start, then the best prior from other starts.

        The last ones as a group, if there is time for all of its members.
        """
        heats: list[Heat] = []
        if self.watch.deadline is not None and not self.watch.expired():
            self.pace = self._measured_pace()
        for prior in self._priors():
            if len(heats) < self._number(len(heats)) and not self.watch.expired():
                heats.append(self._heat(prior, "gray"))
        size = self.attack.group
        while heats and len(heats) < self._number(len(heats)) and not self.watch.expired():
            best = min(heats, key=lambda heat: heat.distance).prior
            left = self._number(len(heats)) - len(heats)
            if left == size > 1:
                heats += self._group(best, [_start_of(len(heats) + i) for i in range(size)])
            else:
                heats.append(self._heat(best, _start_of(len(heats))))
        return heats

    def _group(self, prior: Prior, starts: list[Start]) -> list[Heat]:
        steps = self._affordable(self.attack.heat_steps, _HEAT, side_by_side=len(starts))
        rows = torch.cat([self._start(start) for start in starts])
        solution, _ = self._descend(prior, rows, steps)
        ends = [row[None] for row in solution.x]
        return [Heat(prior, row, self._true_distance(row), together=True) for row in ends]

    def _priors(self) -> tuple[Prior, ...]:
        """Those that differ on this network."""
        if self.watch.expired():
            return ()
        with Surrogates(sharpness=1.0, statistics=True) as taps, torch.no_grad():
            self.problem.module(self._inputs(self._gray())[0])
        return tuple(
            prior
            for prior in self.attack.priors
            if (taps.seen or not prior.statistics)
            and (taps.relus or prior.sharpness is None)
            and (self.problem.statistics or prior.sent == _SENT)
            and (self.problem.running or not prior.running)
        )

    def _heat(self, prior: Prior, start: Start) -> Heat:
        begun = time.monotonic()
        steps = self._affordable(self.attack.heat_steps, _HEAT)
        solution, _ = self._descend(prior, self._start(start), steps)
        self.pace = (time.monotonic() - begun) / solution.evaluations
        return Heat(prior, solution.x, self._true_distance(solution.x))

    def _number(self, run: int) -> int:
        """How many heats there may be: they get half of the time at most."""
        left = self._left()
        if run < self.attack.finals or left is None:
            return self.attack.heats
        wanted = 2 * self.attack.heat_steps * self.pace * (self.attack.heats - run)
        return (
            self.attack.heats
            if wanted <= left
            else run + int((self.attack.heats - run) * left / wanted)
        )

    def _true_distance(self, row: Tensor) -> float:
        """Cosine distance, plus the mean squared distance to statistics that were sent along."""
        self.evaluations += 1
        with tapped(self.problem.module, self.problem.statistics) as seen:
            distance = self.match.distance(self._inputs(row)[0], "whole")
        return float(distance.detach() + self._apart(self.problem.statistics, seen).detach())

    def _apart(
        self, known: Mapping[str, LayerStatistics], seen: Mapping[str, list[Tensor]]
    ) -> Tensor:
        """The mean squared distance of what was seen from known statistics, (); 0 without any."""
        rows = apart(known, seen, tolerance=tolerance_of(self.problem)).values()
        squares = [part.square().sum() for part in rows]
        return torch.stack(squares).mean() if squares else self.space.gain.new_zeros(())

    # ----------------------------------------------------------------------- one descent

    def _descend(self, prior: Prior, row: Tensor, steps: int) -> tuple[Solution, Course]:
        """Rows (R, D), drawn together if there are several."""
        objective = by_row(self._objective(prior))
        if len(row) > 1:
            objective = drawn_together(
                objective, self._pixels, weight=self.attack.pull, calls=steps
            )
        film = Film(
            self.problem, self._inputs, Search(max_steps=steps), self.attack.name, self.watch, 0
        )
        solution = signed_adam(
            objective,
            row,
            max_steps=steps,
            project=lambda u: self.space.of(self.space.boxed(self.space.rows(u))),
            watch=film.see,
            expired=self.watch.expired,
        )
        self.evaluations += solution.evaluations
        return solution, film.courses(solution.x, solution.status)[0]

    def _objective(self, prior: Prior) -> Callable[[Tensor], Tensor]:
        sent = self.problem.statistics
        running = self.problem.running if prior.running else {}

        def value(row: Tensor) -> Tensor:
            inputs = self.space.rows(row.unsqueeze(0)).view(self.shape)
            kind = Surrogates(sharpness=prior.sharpness, statistics=prior.statistics > 0)
            with kind as taps, tapped(self.problem.module, {**sent, **running}) as seen:
                total = self.match.distance(inputs, prior.weighting)
            total = total + prior.sent * self._apart(sent, seen)
            total = total + prior.running * self._apart(running, seen)
            if prior.statistics:
                total = total + prior.statistics * statistics_distance(taps.seen)
            return total + prior.total_variation * total_variation(inputs)

        return value

    def _start(self, start: Start) -> Tensor:
        return first_row(self.problem, self.space, start, self.generator)

    def _gray(self) -> Tensor:
        return self.space.gain.new_zeros(1, math.prod(self.shape))

    def _inputs(self, rows: Tensor) -> Tensor:
        """(R, D) to (R, N, C, H, W) in model units, pixels in their range."""
        return self.space.boxed(self.space.rows(rows)).view(len(rows), *self.shape)

    def _pixels(self, rows: Tensor) -> Tensor:
        """(R, D) to (R, N, C, H, W), pixels 0..1 but not clipped, with a graph."""
        images = self.space.rows(rows).view(len(rows), *self.shape)
        return (images - self.space.low) / (self.space.high - self.space.low)

    # ----------------------------------------------------------------------- time

    def _measured_pace(self) -> float:
        """Seconds of one evaluation: the second of two, for the first one sets things up."""
        value = by_row(self._objective(Prior()))
        for _ in range(2):
            begun = time.monotonic()
            value(self._gray())
        self.evaluations += 2
        return time.monotonic() - begun

    def _left(self) -> float | None:
        if self.watch.deadline is None:
            return None
        return _SPARE * max(self.watch.deadline - time.monotonic(), 0.0)

    def _affordable(self, wanted: int, share: float, *, side_by_side: int = 1) -> int:
        """Steps of runs that have a share of the time: planned, so that their last are small."""
        left = self._left()
        if left is None or not self.pace:
            return wanted
        steps = min(wanted, int(left * share / (self.pace * side_by_side)))
        self.short = self.short or steps < wanted
        return max(steps, 1)


def _start_of(heat: int) -> Start:
    return _STARTS[heat % len(_STARTS)]


def total_variation(inputs: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, down plus across, of (N, C, H, W); ()."""
    down = (inputs[..., 1:, :] - inputs[..., :-1, :]).abs()
    across = (inputs[..., 1:] - inputs[..., :-1]).abs()
    return sum((part.mean() for part in (down, across) if part.numel()), inputs.new_zeros(()))
