"""Where the command line speaks: stdout for what was asked for, stderr for people."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO

from rich.console import Console

from auditor.report.files import unwritable


class _PatientConsole(Console):
    """A console whose reader may leave; rich would end the process with the code of a leak."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _silence(sys.stderr)


def stderr_console() -> Console:
    """Where people read. Never animated when CI says so."""
    return _PatientConsole(stderr=True, force_interactive=False if os.environ.get("CI") else None)


def put(text: str) -> None:
    """What was asked for, on stdout. That its reader has gone changes no exit code.

    Raises UsageError when it goes to a full disk.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _silence(sys.stdout)
    except OSError as error:
        _silence(sys.stdout)
        raise unwritable(error, Path("stdout")) from error


def _silence(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(text: str, quiet: bool) -> None:
    """One plain line on stderr."""
    if not quiet:
        stderr_console().print(text, highlight=False, markup=False, soft_wrap=True)
