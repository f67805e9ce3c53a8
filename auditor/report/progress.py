"""Progress on stderr: a bar on a terminal, one plain line now and then everywhere else."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from auditor.report.words import duration

_PLAIN_EVERY = 10.0  # seconds between two plain lines of one attack


class _Milestone(Protocol):
    @property
    def attack(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def residual(self) -> float: ...


class ProgressLine:
    """Shows milestones of attacks; a context manager, so that the bar is gone at the end."""

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._last: dict[str, float] = {}
        self._first: dict[
            str, tuple[float, int]
        ] = {}  # when an attack was first seen, and its step

    def __enter__(self) -> ProgressLine:
        if self._console.is_interactive and not self._quiet:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("residual {task.fields[residual]:.1e}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, milestone: _Milestone) -> None:
        if self._quiet:
            return
        if self._bar is not None:
            self._show(self._bar, milestone)
            return
        now = time.monotonic()
        self._first.setdefault(milestone.attack, (now, milestone.done))
        if now - self._last.get(milestone.attack, -_PLAIN_EVERY) >= _PLAIN_EVERY:
            self._last[milestone.attack] = now
            self._console.print(
                f"{milestone.attack}: step {milestone.done} of at most {milestone.total}, "
                f"residual {milestone.residual:.1e}{self._left(milestone, now)}",
                highlight=False,
                markup=False,
            )

    def _left(self, milestone: _Milestone, now: float) -> str:
        """How long the rest takes at the pace so far; a search that converges ends before."""
        since, step = self._first[milestone.attack]
        if milestone.done <= step:
            return ""
        rest = (now - since) / (milestone.done - step) * max(0, milestone.total - milestone.done)
        return f", at most {duration(rest)} left at this pace"

    def _show(self, bar: Progress, milestone: _Milestone) -> None:
        task = self._tasks.get(milestone.attack)
        if task is None:
            task = bar.add_task(
                milestone.attack, total=milestone.total, residual=milestone.residual
            )
            self._tasks[milestone.attack] = task
        bar.update(task, completed=milestone.done, residual=milestone.residual)
