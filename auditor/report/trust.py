"""What the report says of its own worth, in words: the same in the page and on the terminal."""

from __future__ import annotations

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


def fidelity_words(trust: Trust) -> str:
    """How close the best claim is, without truth."""
    if trust.fidelity is None:
        return "Nothing is said of how close a claim is to what the client had."
    decibels = trust.fidelity
    like = "not recognisable"
    if decibels >= 30:
        like = "an error that is hard to see"
    elif decibels >= 20:
        like = "people and objects are recognisable"
    elif decibels >= 15:
        like = "shapes at best"
    return f"The best claim is worth {number(decibels)} dB, without knowing the truth: {like}."


def bound_words(bound: Bound) -> tuple[str, ...]:
    """The best that an attack could do on this dump, one sentence a kind of attack."""
    return (
        f"{_unbiased(bound)}.",
        "An attack that knows no more of a pixel than its range, before it sees the dump, does no "
        f"better than {number(bound.prior_psnr)} dB on average over the pixels "
        f"({number(bound.worst_psnr)} dB on the sample that the dump tells best). One that knows "
        "more of such pictures can do better.",
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


def trust_lines(trust: Trust) -> list[str]:
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
        worth.append(_unbiased(trust.bound, short=True))
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


def _unbiased(bound: Bound, *, short: bool = False) -> str:
    if bound.unbiased_psnr is None:
        told = "no unbiased attack can tell every pixel"
        return told if short else "No unbiased attack can tell every pixel: some are left open"
    told = f"no unbiased attack can do better than {number(bound.unbiased_psnr)} dB"
    return told if short else told[0].upper() + told[1:]
