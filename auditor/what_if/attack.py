"""A defended step attacked as an audit would: every claim is checked again, none sees the truth."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from auditor.attacks import Attack, Search, Watch, with_search
from auditor.evidence import is_verified
from auditor.options import Options
from auditor.records import Evidence, Problem
from auditor.trials.running import attempt, within

# The papers' own searches: what they find, second-order matching finds sooner.
_PLAIN = frozenset({"images.dlg", "images.idlg"})
_ADAPTIVE = "images.defended"
_ALWAYS = frozenset({"labels.head", _ADAPTIVE, "images.lm"})


@dataclass(frozen=True)
class Attacked:
    """What came of all attacks on one defended step."""

    evidence: tuple[Evidence, ...]
    ran: tuple[str, ...]  # names of the attacks that could look
    finished: bool  # none of those that decide was cut short before anything was verified


def chosen(options: Options) -> tuple[Attack, ...]:
    """The attacks that the user selected, with standard settings, without those of the papers.

    Those that a defence has to stand up to are among them, whatever was selected: a failure of
    others says nothing of it.
    """
    return tuple(
        with_search(attack, Search())
        for attack in options.attacks
        if attack.name in _ALWAYS
        or (attack.name in options.selected and (options.named or attack.name not in _PLAIN))
    )


def attack_all(
    problem: Problem, attacks: tuple[Attack, ...], *, seed: int, watch: Watch
) -> Attacked:
    """Run them in order until one is verified. Each has half of the time that is left.

    Of a dump with a defence the adaptive attack and those before it decide; searches that know
    nothing of the defence may be cut short. Of any other dump all of them decide.
    """
    looking = [attack for attack in adaptive_first(attacks) if attack.blocked_by(problem) is None]
    found: list[Evidence] = []
    ran: list[str] = []
    finished = True
    for place, attack in enumerate(looking):
        if any(is_verified(problem, evidence) for evidence in found):
            return Attacked(tuple(found), tuple(ran), True)
        share = _share(watch, last=place == len(looking) - 1)
        evidence = attempt(problem, attack, seed=seed, watch=share)
        ran.append(attack.name)
        cut = share.expired() if evidence is None else evidence.recovery.expired
        finished = finished and not (cut and place <= _decisive(problem, looking))
        if evidence is None:
            continue
        found.append(evidence)
        problem = _with_labels(problem, evidence)
    return Attacked(tuple(found), tuple(ran), finished)


def _decisive(problem: Problem, looking: list[Attack]) -> int:
    """The place of the last attack that has to have run to its end."""
    names = [attack.name for attack in looking]
    if problem.channel.is_clear or _ADAPTIVE not in names:
        return len(names) - 1
    return names.index(_ADAPTIVE)


def adaptive_first(attacks: tuple[Attack, ...]) -> list[Attack]:
    """The one that allows for a defence before every other search; closed forms stay in front."""
    adaptive = [attack for attack in attacks if attack.name == _ADAPTIVE]
    rest = [attack for attack in attacks if attack.name != _ADAPTIVE]
    searches = [place for place, attack in enumerate(rest) if attack.name in _SEARCHES]
    place = min(searches, default=len(rest))
    return [*rest[:place], *adaptive, *rest[place:]]


_SEARCHES = frozenset({"images.lm", "images.priors", *_PLAIN})


def _share(watch: Watch, *, last: bool) -> Watch:
    if watch.deadline is None or last:
        return watch
    return within(watch, max(watch.deadline - time.monotonic(), 0.0) / 2)


def _with_labels(problem: Problem, evidence: Evidence) -> Problem:
    claim = evidence.recovery.labels
    return problem if claim is None else replace(problem, labels=claim)
