"""How numbers, names and verdict words are written, the same in every writer.

Names come from files that a stranger may have made, so `printable` is applied to all of them.
"""

from __future__ import annotations

import math
import unicodedata

from auditor.records import (
    Audit,
    Band,
    Baseline,
    Certainty,
    GateResult,
    Limit,
    LinkReport,
    Measure,
    Origin,
    Suppression,
)

# Cc: terminal escapes. Cf: text that turns around or hides. Cs: halves of a character.
# Zl, Zp: line ends that some readers honour and others do not.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

CERTAINTY: dict[Certainty, str] = {
    "proved": "A mathematical identity holds on this very dump, or, for an input, the equations "
    "of every layer hold and leave nothing open. Given the premises, no other answer is possible.",
    "verified": "The gradient of the claim was computed anew and equals the dump in half of its "
    "digits or more, in every tensor, and independent restarts reached the same answer; of a text, "
    "with the most similar other token in one place it does not.",
    "consistent": "The gradient of the claim is close to the dump, but nothing rules out "
    "another input with the same gradient.",
    "measured": "Compared with the true data that the user supplied.",
    "estimated": "A best guess from the numbers of the dump. It can be wrong.",
}

ORIGIN: dict[Origin, str] = {
    "flag": "the command line",
    "metadata": "the dump itself",
    "deduced": "deduced from the numbers",
    "assumed": "assumed, nobody said so",
}

LIMIT_FLAG = {"PSNR": "--max-psnr", "labels": "--max-labels"}

_CLOSED_FORM = "closed form"  # a layer that needed no solver
# How a solver ends that did all it could (solve.Status). After any other word, what is open may be
# so for want of time.
_FINISHED = frozenset({_CLOSED_FORM, "reached the goal", "found no further descent"})

# Where each band begins; docs/severity.md has the whole scale.
BANDS: tuple[tuple[Band, float], ...] = (
    ("low", 0.0),
    ("medium", 4.0),
    ("high", 7.0),
    ("critical", 9.1),
)


def printable(text: str, limit: int = 600) -> str:
    """The text on one line, with every hidden character spelled out and its middle cut out.

    Tabs and line ends become spaces. Other control and format characters become escapes such
    as ``\\x1b``, so that a hostile name is seen and not obeyed.
    """
    if len(text) > limit:
        cut = len(text) - limit
        text = f"{text[: limit // 2]} … {cut} characters … {text[-(limit // 2) :]}"
    return "".join(_shown(letter) for letter in text)


def _shown(letter: str) -> str:
    if letter in "\t\n\r":
        return " "
    if unicodedata.category(letter) not in _HIDDEN:
        return letter
    code = ord(letter)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def number(value: float) -> str:
    """About three figures; powers of ten where the number is very small or very large."""
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if value == int(value) and size < 1e6:
        return str(int(value))
    if size >= 1e6 or size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}×{power_of_ten(int(exponent))}"
    if size >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def own_value(value: float) -> str:
    """A value of a column, in the digits that single precision has."""
    return f"{value:.7g}"


def power_of_ten(exponent: int) -> str:
    """`10⁻⁸` for -8."""
    return "10" + str(exponent).translate(_SUPERSCRIPT)


def quantity(measure: Measure) -> str:
    """The value of a measure with its unit."""
    return f"{number(measure.value)} {measure.unit}".strip()


def at_least(bound: float) -> str:
    """A lower bound."""
    return f"at least {number(bound)}" if math.isfinite(bound) else number(bound)


def link_status(link: LinkReport) -> str:
    """Whether a layer was solved, how its solver ended, and what had to help."""
    word = "solved" if link.solved else "not solved"
    helped = "; inequalities helped" if link.solved else "; inequalities did not suffice"
    return f"{word} ({link.status}{helped if link.constrained else ''})"


def why_unsolved(link: LinkReport) -> str:
    """What a layer that was not solved keeps to itself, in one sentence."""
    share = f"about {link.undetermined} of {link.unknowns} numbers"
    if link.status not in _FINISHED:
        open_yet = f": {share} were still open" if link.undetermined else ""
        return f"This layer was not solved to the end ({link.status}){open_yet}."
    if link.undetermined:
        return f"This layer hides its input: {share} are left open by its equations."
    other = "it is not of one sample" if link.status == _CLOSED_FORM else "a pattern was misread"
    return (
        "The equations of this layer do not hold for the answer: the dump is not precise enough, "
        f"or {other}."
    )


def duration(seconds: float) -> str:
    """Seconds below two minutes, minutes and seconds from there on."""
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds >= 0.05 or seconds == 0 else "under 0.1 s"
    return f"{int(seconds) // 60} min {int(seconds) % 60} s"


def size(count: int) -> str:
    """A number of bytes in the largest unit that leaves a number of at least one."""
    amount = float(count)
    for unit in ("bytes", "KB", "MB", "GB"):
        if amount < 1000:
            return f"{count} bytes" if unit == "bytes" else f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.4g} TB"


def shape(sides: tuple[int, ...]) -> str:
    """`3 × 32 × 32`; one side is the columns of a table, no sides are those of a text."""
    if len(sides) == 1:
        return f"{sides[0]} columns"
    return " × ".join(str(side) for side in sides) or "text"


def takes_rows(audit: Audit) -> bool:
    """Whether the audited model takes rows of a table."""
    return len(audit.model.input_shape) == 1


def verdict_word(audit: Audit) -> str:
    """The one word or two that stand above everything else.

    The band is named for a leak only: "none" beside "inconclusive" would read as good news.
    """
    verdict = audit.verdict
    if verdict.status == "leak":
        return f"leak, {verdict.severity.band}"
    return verdict.status


def score_words(audit: Audit) -> str:
    """The score in words. An inconclusive audit that found nothing has no score at all."""
    verdict = audit.verdict
    if verdict.status == "inconclusive" and verdict.severity.score == 0:
        return "no score"
    return f"{verdict.severity.score:.1f} of 10"


def gate_words(audit: Audit) -> str:
    """One line on the gate."""
    gate = audit.gate
    if gate.outcome == "no gate" or not (asked := _asked(gate)):
        return f"not set (exit code {gate.exit_code}). {gate.reason}".strip()
    return f"{gate.outcome} ({asked}, exit code {gate.exit_code}). {gate.reason}".strip()


def _asked(gate: GateResult) -> str:
    asked = [] if gate.fail_on is None else [f"--fail-on {gate.fail_on}"]
    asked += [f"{LIMIT_FLAG[limit.measure]} {limit.most:g}" for limit in gate.limits]
    return ", ".join(asked + ["--baseline"] * (gate.baseline is not None))


def limit_words(limit: Limit) -> str:
    """One limit on a measure: whether it is kept."""
    unit = " dB" if limit.measure == "PSNR" else ""
    flag = f"{LIMIT_FLAG[limit.measure]} {limit.most:g}"
    if limit.outcome == "not known":
        return f"{flag}: not known"
    found = "nothing found" if limit.found is None else f"{limit.found:.4g}{unit} found"
    return f"{flag}: {limit.outcome}, {found}"


def gate_lines(audit: Audit) -> list[str]:
    """What the gate took into account besides the threshold, one line each."""
    gate = audit.gate
    lines = [limit_words(limit) for limit in gate.limits]
    if gate.baseline is not None:
        lines.append(_baseline_words(gate.baseline))
    return lines + [suppression_words(each) for each in gate.suppressions]


def suppression_words(each: Suppression) -> str:
    """Who reads this must see what was accepted, why, and until when."""
    state = {
        "active": f"{each.code} is suppressed until {each.expires}",
        "expired": f"{each.code}: its suppression expired on {each.expires}",
        "unused": f"{each.code} is suppressed until {each.expires}, but was not found",
    }[each.state]
    return f"{state}. Reason given: {each.reason}"


def _baseline_words(baseline: Baseline) -> str:
    new = ", ".join(baseline.new) or "nothing"
    worse = ", ".join(baseline.worse) or "nothing"
    return (
        f"Compared with the audit of {baseline.started} (SHA-256 {baseline.sha256[:12]}): "
        f"new: {new}; worse: {worse}."
    )
