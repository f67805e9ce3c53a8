"""Labels first, then the images by gradient matching.

With the labels y fixed, find x that minimises the distance between its gradient and the dump, by
L-BFGS. Needs a twice differentiable network; ReLU networks leave the search on flat ground.
Source: Zhao, Mopuri, Bilen 2020, arXiv:2001.02610.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.attacks.images import Search, run_search, starts
from auditor.attacks.labels import label_claim
from auditor.attacks.matching import matching_objective
from auditor.problem import why_not_simulated
from auditor.records import Problem, Recovery


@dataclass(frozen=True)
class IDLG:
    """Fixes the labels that the head's gradient gives away, then searches for the images."""

    search: Search = field(default_factory=Search)
    name: str = "images.idlg"
    title: str = "Images by gradient matching, labels read off first (iDLG)"

    def blocked_by(self, problem: Problem) -> str | None:
        if problem.knowledge.batch_size is None:
            return "the batch size is unknown: say it with --batch-size"
        missing = why_not_simulated(problem)
        if missing is not None:
            return missing
        if label_claim(problem).estimate is None:
            return "the head's gradient gives no labels to start from"
        return None

    def run(self, problem: Problem, *, seed: int, watch: Watch) -> Recovery:
        claim = label_claim(problem)
        assert claim.estimate is not None, "blocked_by was not asked"
        known = problem.knowledge
        shape = (len(claim.estimate), *known.input_shape)
        labels = claim.estimate.to(next(iter(problem.gradient.values())).device)
        generator = torch.Generator().manual_seed(seed)

        def inputs_of(rows: Tensor) -> Tensor:
            return rows.view(len(rows), *shape)

        objective = matching_objective(
            problem, lambda row: (row.view(shape), labels), weighting=self.search.weighting
        )
        found = run_search(
            problem,
            objective,
            lambda count: starts(problem, self.search, count, generator).flatten(1),
            inputs_of,
            search=self.search,
            name=self.name,
            watch=watch,
        )
        return Recovery(
            inputs=inputs_of(found.rows),
            input_labels=labels.expand(len(found.rows), -1),
            courses=found.courses,
            evaluations=found.evaluations,
            expired=found.expired,
        )
