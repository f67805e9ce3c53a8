"""Adam on the sign of the gradient (Geiping et al. 2020, arXiv:2003.14053), over independent rows.

Each coordinate moves at about the same pace whatever the size of its derivative: a step looks at
which way is down, never at how steep it is. Adam: Kingma and Ba 2014, arXiv:1412.6980.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from auditor.solve.lbfgs import Watcher
from auditor.solve.rows import Solution, Status, ValueAndGradient

_MEAN, _SPREAD, _TINY = 0.9, 0.999, 1e-8  # Adam's own constants
_DECAYS = (3 / 8, 5 / 8, 7 / 8)  # of all steps; the length of a step falls to a tenth at each


def step_length(first: float, step: int, max_steps: int) -> float:
    """The length of step number `step` (from 0) of `max_steps`."""
    return first * 0.1 ** sum(step >= int(share * max_steps) for share in _DECAYS)


def signed_adam(
    value_and_gradient: ValueAndGradient,
    start: Tensor,
    *,
    max_steps: int,
    step: float = 0.1,
    project: Callable[[Tensor], Tensor] = lambda rows: rows,
    watch: Watcher | None = None,
    expired: Callable[[], bool] = lambda: False,
) -> Solution:
    """Minimise every row of `start` (R, D) in `max_steps` steps, the first of length `step`.

    `project` takes rows (R, D) back to where they may be, after every step. The answer holds the
    best point that each row met. `watch` sees every step and may stop the run.
    """
    x = project(start.detach().clone())
    mean, spread = torch.zeros_like(x), torch.zeros_like(x)
    best_x, best_value = x.clone(), x.new_full((len(x),), torch.inf)
    done, stopped, diverged = 0, False, torch.zeros(len(x), dtype=torch.bool, device=x.device)
    while True:
        value, gradient = value_and_gradient(x)
        diverged |= ~value.isfinite()
        better = value < best_value
        best_x = torch.where(better.unsqueeze(1), x, best_x)
        best_value = torch.where(better, value, best_value)
        stopped = (watch is not None and watch(done, x, value)) or expired()
        if stopped or done >= max_steps or bool(diverged.all()):
            break
        sign = gradient.nan_to_num(0.0).sign()
        mean = _MEAN * mean + (1 - _MEAN) * sign
        spread = _SPREAD * spread + (1 - _SPREAD) * sign.square()
        rate = step_length(step, done, max_steps) / (1 - _MEAN ** (done + 1))
        scale = (spread / (1 - _SPREAD ** (done + 1))).sqrt() + _TINY
        x = project(x - rate * mean / scale)
        done += 1
    last = Status.STOPPED if stopped else Status.EXHAUSTED
    status = tuple(Status.DIVERGED if bad else last for bad in diverged.tolist())
    return Solution(best_x, best_value, status, done, (done + 1) * len(x))
