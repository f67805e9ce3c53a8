"""What a user can mend, as one small tree.

AuditError                 the message says what was expected, what was found, what to do
|-- UsageError             the command line or a call does not make sense           exit 2
|-- InputError             a file is refused or cannot be read                      exit 3
    |-- UnsafeFileError    the file would execute code, or claims absurd memory     exit 3
"""

from __future__ import annotations


class AuditError(Exception):
    """Base of everything that the reader of the message can mend."""

    def __init__(self, *, expected: str, found: str, todo: str) -> None:
        self.expected = expected
        self.found = found
        self.todo = todo
        super().__init__(f"Expected {expected}; found {found}. {todo}")


class UsageError(AuditError):
    """Flags or arguments that contradict each other or mean nothing (exit 2)."""


class InputError(AuditError):
    """A file that cannot be read, or does not fit the others (exit 3)."""


class UnsafeFileError(InputError):
    """A file that would execute code when loaded, or claims absurd memory (exit 3)."""
