"""From evidence about texts to findings. Tensors stop here, and so does every token.

A finding says how much was recovered and how certainly, never what. Besides metrics.py this is the
only file that may take a `TextTruth`, after every attack has ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from auditor.findings import worst_first
from auditor.metrics import label_accuracy
from auditor.records import Certainty, Finding, Measure, Severity
from auditor.rules import finding_of
from auditor.severity import label_severity, text_severity, token_severity
from auditor.text.evidence import filled, is_verified_text, readable, sequences_of
from auditor.text.metrics import matched, rouge_l, rouge_n, token_accuracy
from auditor.text.problem import tolerance_of
from auditor.text.records import TextEvidence, TextProblem, TextTruth, TokenSet

_RECOGNISABLE = 0.6  # ROUGE-L: from here on a text counts as recovered
_SINGLE = "the batch is one text"
_MODEL = "model and loss are as listed under assumptions"


@dataclass(frozen=True)
class _Measured:
    """The claimed sequences beside the true ones, special tokens left out; one number for each."""

    likeness: tuple[float, ...]  # ROUGE-L
    rouge_1: tuple[float, ...]
    rouge_2: tuple[float, ...]
    accuracy: tuple[float, ...]
    exact: int

    @property
    def severity(self) -> Severity:
        return self.severity_as("measured")

    def severity_as(self, certainty: Certainty) -> Severity:
        """The worst-protected sequence decides; the share of recognisable ones adds to it."""
        known = sum(each >= _RECOGNISABLE for each in self.likeness)
        share = max(known, 1) / len(self.likeness)
        return text_severity(certainty=certainty, likeness=max(self.likeness), share=share)

    def measures(self) -> list[Measure]:
        size = len(self.likeness)
        return [
            Measure("sequences recovered exactly (measured)", float(self.exact), f"of {size}"),
            Measure("ROUGE-1, mean (measured)", _mean(self.rouge_1), ""),
            Measure("ROUGE-2, mean (measured)", _mean(self.rouge_2), ""),
            Measure("ROUGE-L, mean (measured)", _mean(self.likeness), ""),
            Measure("token accuracy, mean (measured)", _mean(self.accuracy), ""),
        ]


def text_findings_of(
    problem: TextProblem, evidence: TextEvidence, truth: TextTruth | None
) -> tuple[Finding, ...]:
    """What this evidence shows, worst first. Empty when it shows nothing."""
    found = [
        *_sequence_findings(problem, evidence, truth),
        *_token_findings(problem, evidence, truth),
        *_label_findings(problem, evidence, truth),
    ]
    return worst_first(f for f in found if f.severity.score > 0)


def why_no_text(problem: TextProblem, evidence: TextEvidence) -> str:
    """Why an attack that ended shows nothing, in one sentence."""
    return f"{_unfinished(problem, evidence)}; an attack that failed proves nothing"


def why_more_text(problem: TextProblem, evidence: TextEvidence) -> str:
    """Why more may have leaked than was shown; empty when it cannot be."""
    if is_verified_text(evidence) or evidence.tokens == "proved":
        return ""
    if not any(evidence.sequences) and evidence.labels is not None:
        return ""
    return _unfinished(problem, evidence)


def _unfinished(problem: TextProblem, evidence: TextEvidence) -> str:
    notes = "; ".join(evidence.recovery.notes)
    if evidence.recovery.expired:
        return "the budget ended before the attack did"
    if evidence.worst is not None and not evidence.whole:
        return (
            f"the text that was found leaves a relative residual of {evidence.worst:.1e} in the "
            f"worst tensor, {tolerance_of(problem):.1e} is needed"
        )
    if evidence.whole:
        return "a similar text would explain the dump as well"
    return notes or _unproved(evidence)


def _unproved(evidence: TextEvidence) -> str:
    if evidence.tokens == "estimated":
        return "which tokens occur is an estimate: the embedding is the head as well"
    if any(evidence.sequences):
        return "no whole batch was put together, so its gradient could not be derived"
    if evidence.claimed:
        return "the sequences that were found did not stand the check"
    return "nothing was found"


# --------------------------------------------------------------------------- sequences


def _sequence_findings(
    problem: TextProblem, evidence: TextEvidence, truth: TextTruth | None
) -> list[Finding]:
    shown = [place for place, word in enumerate(evidence.sequences) if word is not None]
    texts = list(readable(evidence)) if shown else _unshown(evidence)
    measured = None if truth is None or not texts else _measure(problem, texts, truth)
    found = []
    if measured is not None and measured.severity.score > 0:
        found.append(_measured_finding(evidence, measured))
    if shown:
        found.append(_claimed_finding(problem, evidence, measured))
    return found


def _unshown(evidence: TextEvidence) -> list[Tensor]:
    """What was claimed and did not stand the check: with truth, its likeness can be measured."""
    batch = evidence.recovery.batch
    return list(evidence.claimed) or ([] if batch is None else list(sequences_of(filled(batch))))


def _claimed_finding(
    problem: TextProblem, evidence: TextEvidence, measured: _Measured | None
) -> Finding:
    """What the dump itself shows; with truth, no worse than what was measured."""
    sure = evidence.sequences.count("verified")
    count = sure or len(evidence.sequences) - evidence.sequences.count(None)
    certainty: Certainty = "verified" if sure else "consistent"
    size = max(problem.knowledge.batch_size or 0, count)
    severity = text_severity(certainty=certainty, likeness=1.0, share=count / size)
    if measured is not None and measured.severity_as(certainty).score < severity.score:
        severity = measured.severity_as(certainty)
    measures = [
        Measure(f"sequences, {certainty}", float(count), f"of {size}"),
        Measure("tokens in them", float(_length(problem, evidence)), ""),
        *_residuals(evidence),
    ]
    if evidence.recovery.chances and not sure:
        chance = max(evidence.recovery.chances)
        measures.append(Measure("chance that noise passes, largest, log10", chance, ""))
    text = _claim_text(evidence, count, size)
    code = "GA501" if sure else "GA502"
    premises = (_MODEL, *evidence.recovery.notes)
    return finding_of(code, severity, certainty, text, evidence.attack, measures, premises)


def _claim_text(evidence: TextEvidence, count: int, size: int) -> str:
    if evidence.whole and "verified" in evidence.sequences:
        what = "The sequence was" if count == 1 else f"All {count} sequences were"
        return f"{what} rebuilt token by token, and the gradient of the batch equals the dump."
    if evidence.whole:
        return (
            f"{count} sequences were rebuilt so that the gradient of the batch is close to the "
            "dump; a similar text would do as well."
        )
    return (
        f"{count} of {size} sequences were read off: what they make the first two blocks read lies "
        "in the space of these blocks' gradients. The whole batch was not derived again."
    )


def _length(problem: TextProblem, evidence: TextEvidence) -> int:
    pairs = zip(evidence.claimed, evidence.sequences, strict=True)
    return sum(len(bare(problem, text)) for text, word in pairs if word is not None)


def _residuals(evidence: TextEvidence) -> list[Measure]:
    if evidence.residual is None or evidence.worst is None:
        return []
    return [
        Measure("relative residual", evidence.residual, ""),
        Measure("relative residual, worst tensor", evidence.worst, ""),
    ]


def _measure(problem: TextProblem, texts: Sequence[Tensor], truth: TextTruth) -> _Measured:
    true = [bare(problem, each) for each in sequences_of(filled(truth.batch))]
    ours = [bare(problem, each) for each in texts]
    pairs = [
        ([] if place is None else ours[place], each)
        for place, each in zip(matched(ours, true), true, strict=True)
    ]
    return _Measured(
        likeness=tuple(rouge_l(a, b) for a, b in pairs),
        rouge_1=tuple(rouge_n(a, b, 1) for a, b in pairs),
        rouge_2=tuple(rouge_n(a, b, 2) for a, b in pairs),
        accuracy=tuple(token_accuracy(a, b) for a, b in pairs),
        exact=sum(a == b for a, b in pairs),
    )


def bare(problem: TextProblem, tokens: Tensor) -> list[int]:
    """The tokens without those that the tokenizer puts around every text: they say nothing."""
    known, found = problem.knowledge, [int(token) for token in tokens]
    if known.start is not None and found[:1] == [known.start]:
        found = found[1:]
    return found[:-1] if known.end is not None and found[-1:] == [known.end] else found


def _measured_finding(evidence: TextEvidence, measured: _Measured) -> Finding:
    count = sum(each >= _RECOGNISABLE for each in measured.likeness)
    text = (
        f"{count} of {len(measured.likeness)} rebuilt texts match the truth at a ROUGE-L of "
        f"{_RECOGNISABLE} or better; {measured.exact} of them are exact."
    )
    premises = ("the truth is what the client had",)
    return finding_of(
        "GA503", measured.severity, "measured", text, evidence.attack, measured.measures(), premises
    )


# --------------------------------------------------------------------------- tokens and labels


def _token_findings(
    problem: TextProblem, evidence: TextEvidence, truth: TextTruth | None
) -> list[Finding]:
    claim, word = evidence.recovery.tokens, evidence.tokens
    if claim is None or word is None:
        return []
    count, every = len(claim.present), problem.layout.vocabulary
    what = "no other token occurs" if claim.complete else "others may occur as well"
    how = "is an estimate" if word == "estimated" else "follows from the rows of the embedding"
    text = f"Which tokens the batch holds {how}: {count} of the {every} in the vocabulary; {what}."
    measures = [Measure(f"tokens {word}", float(count), f"of {every}")]
    if evidence.recovery.longest is not None:
        longest = float(evidence.recovery.longest)
        measures.append(Measure("tokens of the longest sequence", longest, ""))
    if truth is not None:
        measures.append(Measure("token set, F1 (measured)", _set_likeness(claim, truth), ""))
    severity = token_severity(certainty=word, complete=claim.complete)
    return [finding_of("GA504", severity, word, text, evidence.attack, measures, claim.premises)]


def _set_likeness(claim: TokenSet, truth: TextTruth) -> float:
    ours = set(claim.present.tolist())
    theirs = set(truth.batch.tokens[truth.batch.attention].tolist())
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))


def _label_findings(
    problem: TextProblem, evidence: TextEvidence, truth: TextTruth | None
) -> list[Finding]:
    claim, word = evidence.recovery.labels, evidence.labels
    if claim is None or word is None or problem.knowledge.task != "classification":
        return []
    size = problem.knowledge.batch_size
    measures = [Measure(f"labels {word}", float(len(claim)), f"of {size}" if size else "")]
    if truth is not None and len(claim) == len(truth.batch.labels):
        accuracy = label_accuracy(claim.cpu(), truth.batch.labels)
        measures.append(Measure("label accuracy (measured)", accuracy, ""))
    if word == "proved":
        severity = label_severity(proved_share=1.0, complete=True, estimated=True)
        what = "The class of the only sequence" if len(claim) == 1 else f"All {len(claim)} classes"
        verb = "follows" if len(claim) == 1 else "follow"
        text = f"{what} {verb} from the signs of the head's gradient."
        premises = (_MODEL, f"the batch is {len(claim)} texts" if len(claim) > 1 else _SINGLE)
        return [finding_of("GA101", severity, word, text, evidence.attack, measures, premises)]
    severity = label_severity(proved_share=0.0, complete=False, estimated=True)
    text = f"A best multiset of {len(claim)} classes was derived; it is an estimate, uncalibrated."
    return [finding_of("GA103", severity, "estimated", text, evidence.attack, measures, ())]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
