"""How near a text came to the true one: ROUGE over tokens, token accuracy, pairs of a batch.

ROUGE is the F1 score of Lin (2004), over the tokens of the model and not over words: the same for
every language, and with nothing left out or stemmed. 1.0 is the best.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

Tokens = Sequence[int]


def rouge_n(claimed: Tokens, true: Tokens, n: int) -> float:
    """F1 of the runs of `n` tokens, each counted as often as it occurs in both; 0..1.

    Of texts that are too short for any run: 1 when they are equal, else 0.
    """
    ours, theirs = _runs(claimed, n), _runs(true, n)
    if not ours or not theirs:
        return float(list(claimed) == list(true))
    return _f1((ours & theirs).total(), ours.total(), theirs.total())


def rouge_l(claimed: Tokens, true: Tokens) -> float:
    """F1 of the longest common subsequence; 0..1."""
    if not claimed or not true:
        return float(list(claimed) == list(true))
    return _f1(_longest_common(claimed, true), len(claimed), len(true))


def token_accuracy(claimed: Tokens, true: Tokens) -> float:
    """The share of places of the longer text that hold the same token in both; 0..1."""
    places = max(len(claimed), len(true))
    same = sum(a == b for a, b in zip(claimed, true, strict=False))
    return same / places if places else 1.0


def matched(claimed: Sequence[Tokens], true: Sequence[Tokens]) -> list[int | None]:
    """For each true text the claim that goes with it, none twice: the best sum of ROUGE-L.

    The order within a batch means nothing. None: no claim is left for it.
    """
    near = np.array([[rouge_l(ours, each) for ours in claimed] for each in true])
    near = near.reshape(len(true), len(claimed))
    rows, columns = linear_sum_assignment(near, maximize=True)
    pairs = dict(zip(rows.tolist(), columns.tolist(), strict=True))
    return [pairs.get(row) for row in range(len(true))]


def _runs(tokens: Tokens, n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1))


def _f1(common: int, ours: int, theirs: int) -> float:
    return 2 * common / (ours + theirs)


def _longest_common(left: Tokens, right: Tokens) -> int:
    row = [0] * (len(right) + 1)
    for a in left:
        above = 0
        for place, b in enumerate(right, start=1):
            above, row[place] = row[place], above + 1 if a == b else max(row[place], row[place - 1])
    return row[-1]
