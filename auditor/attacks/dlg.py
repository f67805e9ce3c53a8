"""Images and labels together by gradient matching.

Labels are free logits next to the pixels; their softmax takes the place of the label in the loss.
Both are found by L-BFGS on the distance to the dump. Needs a twice differentiable network.
Source: Zhu, Liu, Han 2019, arXiv:1906.08935.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.attacks.images import Search, goal_of, run_search, starts
from auditor.attacks.matching import matching_objective
from auditor.problem import why_not_simulated
from auditor.records import Problem, Recovery
from auditor.solve import Solution, Status, minimize


@dataclass(frozen=True)
class DLG:
    """Searches for the images and their labels at once, without reading any label off."""

    search: Search = field(default_factory=Search)
    harden: bool = True  # at the end, fix the labels found; the papers do not
    name: str = "images.dlg"
    title: str = "Images and labels by gradient matching (DLG)"

    def blocked_by(self, problem: Problem) -> str | None:
        if problem.knowledge.batch_size is None:
            return "the batch size is unknown: say it with --batch-size"
        missing = why_not_simulated(problem)
        if missing is not None:
            return missing
        return None

    def run(self, problem: Problem, *, seed: int, watch: Watch) -> Recovery:
        known = problem.knowledge
        size = known.batch_size
        assert size is not None, "blocked_by was not asked"
        shape, classes = (size, *known.input_shape), problem.trace.head.classes
        pixels = torch.Size(shape).numel()
        generator = torch.Generator().manual_seed(seed)

        def first(count: int) -> Tensor:
            images = starts(problem, self.search, count, generator).flatten(1)
            logits = torch.randn(count, size * classes, generator=generator, dtype=torch.float64)
            return torch.cat([images, logits.to(images)], dim=1)

        def unpack(row: Tensor) -> tuple[Tensor, Tensor]:
            return row[:pixels].view(shape), row[pixels:].view(size, classes).softmax(1)

        def inputs_of(rows: Tensor) -> Tensor:
            return rows[:, :pixels].view(len(rows), *shape)

        found = run_search(
            problem,
            matching_objective(problem, unpack, weighting=self.search.weighting),
            first,
            inputs_of,
            search=self.search,
            name=self.name,
            watch=watch,
        )
        labels = found.rows[:, pixels:].view(-1, size, classes).argmax(2)
        inputs, evaluations = inputs_of(found.rows).clone(), found.evaluations
        for row, course in enumerate(found.courses):
            if self.harden and course.status == Status.CONVERGED.value:
                solution = self._hardened(problem, inputs[row], labels[row], watch)
                inputs[row] = solution.x.view(shape)
                evaluations += solution.evaluations
        return Recovery(
            inputs=inputs,
            input_labels=labels,
            courses=found.courses,
            evaluations=evaluations,
            expired=found.expired,
        )

    def _hardened(self, problem: Problem, inputs: Tensor, labels: Tensor, watch: Watch) -> Solution:
        """Images (N, C, H, W), moved on with the labels (N,) fixed: hard ones are claimed."""
        objective = matching_objective(
            problem, lambda row: (row.view(inputs.shape), labels), weighting=self.search.weighting
        )
        return minimize(
            objective,
            inputs.reshape(1, -1),
            max_steps=self.search.max_steps // 4,
            goal=goal_of(problem, self.search),
            memory=self.search.memory,
            expired=watch.expired,
        )
