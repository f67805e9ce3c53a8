"""What transformers and tokenizers raise about a broken folder, as an InputError.

Their errors have no common class, and tokenizers raises `Exception` itself.
"""

from __future__ import annotations

from types import TracebackType

from auditor.errors import InputError
from auditor.inputs.wording import quoted

_LIBRARIES = ("transformers", "tokenizers", "huggingface_hub", "safetensors")
_KNOWN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


class Reading:
    """A block in which `what` of the folder `name` is read by one of these libraries."""

    def __init__(self, what: str, name: str) -> None:
        self.what, self.name = what, name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and _is_theirs(kind):
            raise InputError(
                expected=f"a folder that transformers can read {self.what} from",
                found=f"{quoted(self.name)}, of which it cannot ({kind.__name__})",
                todo="Write the folder again with save_pretrained.",
            ) from error


def _is_theirs(kind: type[BaseException]) -> bool:
    foreign = kind.__module__.partition(".")[0] in _LIBRARIES
    return kind is Exception or foreign or issubclass(kind, _KNOWN)
