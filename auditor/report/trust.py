"""What the report says of its own worth, in words: the same in the page and on the terminal."""

from __future__ import annotations

import math

from auditor.records import Bound, CanaryReport, ControlReport, DefenceSeen, Trust
from auditor.report.words import number

_BELONGS = {
    "shown": "Model and dump belong together: identities that hold for every batch of this model "
    "hold on this dump.",
    "contradicted": "Model and dump do not belong together: identities that hold for every batch "
    "of this model fail on this dump. What was recovered may not be the client's.",
    "not tested": "Whether model and dump belong together was not tested.",
}
_BELONGS_SHORT = {
    "shown": "model and dump belong together",
    "contradicted": "model and dump do not belong together",
    "not tested": "not tested whether model and dump belong together",
}


def belongs_words(trust: Trust) -> str:
    """Whether the dump is one of this model."""
    return _BELONGS[trust.belongs]


def strength_words(seen: DefenceSeen) -> str:
    """The strength of a defence with its interval, as far as they are known."""
    if seen.strength is None:
        return "no strength"
    if seen.low is None or seen.high is None:
        return number(seen.strength)
    return f"{number(seen.strength)} ({number(seen.low)} to {number(seen.high)})"


# One unknown, what is known of it before, all of them, and what they are parts of.
_PICTURES = ("pixel", "its range", "pixels", "pictures")
_TABLE = ("value", "its column's mean and deviation", "values", "rows")
# From so many dB on; the last is what is left.
_LIKE = (
    (30.0, "an error that is hard to see"),
    (20.0, "people and objects are recognisable"),
    (15.0, "shapes at best"),
    (-math.inf, "not recognisable"),
)
_LIKE_ROWS = (
    (30.0, "an error of a tenth of a column's deviation or less"),
    (20.0, "an error of a third of a column's deviation or less"),
    (15.0, "little more than what is usual in each column"),
    (-math.inf, "no more than what is usual in each column"),
)


def fidelity_words(trust: Trust, *, table: bool = False) -> str:
    """How close the best claim is, without truth; `table`: it is of rows of a table."""
    if trust.fidelity is None:
        return "Nothing is said of how close a claim is to what the client had."
    decibels = trust.fidelity
    words = _LIKE_ROWS if table else _LIKE
    like = next(said for least, said in words if decibels >= least)
    return f"The best claim is worth {number(decibels)} dB, without knowing the truth: {like}."


def bound_words(bound: Bound, *, table: bool = False) -> tuple[str, ...]:
    """The best that an attack could do on this dump, one sentence a kind of attack."""
    one, known, many, such = _TABLE if table else _PICTURES
    return (
        f"{_unbiased(bound, one)}.",
        f"An attack that knows no more of a {one} than {known}, before it sees the dump, does no "
        f"better than {number(bound.prior_psnr)} dB on average over the {many} "
        f"({number(bound.worst_psnr)} dB on the sample that the dump tells best). One that knows "
        f"more of such {such} can do better.",
        f"The dump tells about {number(bound.effective)} of {bound.unknowns} directions better "
        f"than that. It holds for noise of {number(bound.sigma)} an entry ({bound.origin}).",
    )


def control_words(control: ControlReport | None) -> str:
    """What the same attack claimed of gradients that cannot hold the data."""
    if control is None:
        return "No negative control was run: there is no claim to test, or the time was over."
    return f"{control.attack}: {control.summary}"


def canary_words(canaries: CanaryReport | None) -> str:
    """How often the attacks open dumps of which the truth is known."""
    if canaries is None:
        return (
            "No canaries: how often the attacks open a dump of this model was not counted on "
            "simulated ones."
        )
    return canaries.summary


def trust_lines(trust: Trust, *, table: bool = False) -> list[str]:
    """At most three lines for the terminal; none when nothing was tested."""
    if trust == Trust():
        return []
    seen = ", ".join(
        d.kind if d.strength is None else f"{d.kind} {strength_words(d)}" for d in trust.defences
    )
    lines = [_BELONGS_SHORT[trust.belongs] + (f"; defences seen: {seen}" if seen else "")]
    worth = []
    if trust.fidelity is not None:
        worth.append(f"the best claim is worth {number(trust.fidelity)} dB without truth")
    if trust.bound is not None:
        worth.append(_unbiased(trust.bound, (_TABLE if table else _PICTURES)[0], short=True))
    lines += ["; ".join(worth)] if worth else []
    tried = []
    if trust.control is not None:
        tried.append(
            f"negative control: {trust.control.recovered} of {trust.control.controls} gave as much"
        )
    if trust.canaries is not None:
        tried.append(
            f"simulated dumps opened: {trust.canaries.opened} of {trust.canaries.simulated}"
        )
    return lines + (["; ".join(tried)] if tried else [])


def _unbiased(bound: Bound, one: str, *, short: bool = False) -> str:
    if bound.unbiased_psnr is None:
        told = f"no unbiased attack can tell every {one}"
        return told if short else f"N{told[1:]}: some are left open"
    told = f"no unbiased attack can do better than {number(bound.unbiased_psnr)} dB"
    return told if short else told[0].upper() + told[1:]
