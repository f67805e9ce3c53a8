"""The few lines that capture a dump where gradients are made, one text for each framework.

They are texts, not modules: none of the frameworks is needed here, and what is printed is what the
tests run. `gradaudit hook` prints them; docs/capturing.md explains them.
"""

from __future__ import annotations

from importlib.resources import files

from auditor.errors import UsageError

FRAMEWORKS = ("torch", "ddp", "lightning", "opacus", "flower", "nvflare")


def snippet(framework: str) -> str:
    """Python source to paste, its first lines a comment. Raises UsageError for another name."""
    if framework not in FRAMEWORKS:
        raise UsageError(
            expected=f"one of {', '.join(FRAMEWORKS)}",
            found=repr(framework),
            todo="Name one of them; docs/capturing.md says what to save elsewhere.",
        )
    return (files(__name__) / "snippets" / f"{framework}.txt").read_text(encoding="utf-8")
