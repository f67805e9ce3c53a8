"""Progress for people: a bar on a terminal, a line now and then elsewhere, never on stdout."""

import io
from dataclasses import dataclass

import pytest
from rich.console import Console

from auditor.report import progress
from auditor.report.progress import ProgressLine


@dataclass(frozen=True)
class Milestone:
    attack: str = "images.idlg"
    done: int = 20
    total: int = 6000
    residual: float = 0.012


@pytest.fixture
def clock(monkeypatch):
    """Seconds, moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def console(*, terminal):
    stream = io.StringIO()
    return Console(file=stream, force_terminal=terminal, width=100, color_system=None), stream


def test_plain_lines_come_at_most_every_ten_seconds(clock):
    people, stream = console(terminal=False)
    with ProgressLine(people) as line:
        for second in range(25):
            clock[0] = 1000.0 + second
            line(Milestone(done=second))
    told = "images.idlg: step {} of at most 6000, residual 1.2e-02{}".format
    assert stream.getvalue().splitlines() == [
        told(0, ""),
        told(10, ", at most 99 min 50 s left at this pace"),  # a step a second
        told(20, ", at most 99 min 40 s left at this pace"),
    ]


def test_each_attack_has_its_own_clock(clock):
    people, stream = console(terminal=False)
    with ProgressLine(people) as line:
        line(Milestone("images.idlg"))
        line(Milestone("images.dlg"))
        line(Milestone("images.dlg"))
    assert [text.split(":")[0] for text in stream.getvalue().splitlines()] == [
        "images.idlg",
        "images.dlg",
    ]


def test_an_attack_cannot_give_orders_to_the_terminal(clock):
    people, stream = console(terminal=False)
    with ProgressLine(people) as line:
        line(Milestone("[red]x[/red]"))
    assert stream.getvalue().startswith("[red]x[/red]: step")


@pytest.mark.parametrize("terminal", [False, True])
def test_quiet_says_nothing(terminal):
    people, stream = console(terminal=terminal)
    with ProgressLine(people, quiet=True) as line:
        line(Milestone())
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    people, stream = console(terminal=True)
    with ProgressLine(people) as line:
        line(Milestone(done=1500))
        line(Milestone(done=3000, residual=0.5))
        line(Milestone("images.dlg", done=60))
        assert [task.completed for task in line._bar.tasks] == [3000, 60]
        assert line._bar.tasks[0].fields == {"residual": 0.5}
    text = stream.getvalue()
    assert "images.idlg" in text
    assert "\x1b[2K" in text  # the line is wiped
    assert "step" not in text


def test_the_bar_ends_with_an_error_too(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    people, _ = console(terminal=True)
    line = ProgressLine(people)

    def interrupted():
        with line:
            line(Milestone())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not line._bar.live.is_started
