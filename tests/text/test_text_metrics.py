"""ROUGE over tokens: closed forms, and a slow definition to compare with."""

import itertools
from collections import Counter

import pytest
import torch

from auditor.text.metrics import matched, rouge_l, rouge_n, token_accuracy


@pytest.mark.parametrize(
    ("claimed", "true", "n", "score"),
    [
        ([1, 2, 3], [1, 2, 3], 1, 1.0),
        ([3, 2, 1], [1, 2, 3], 1, 1.0),
        ([3, 2, 1], [1, 2, 3], 2, 0.0),
        ([1, 2, 3, 4], [1, 2, 9, 4], 1, 0.75),
        ([1, 2, 3, 4], [1, 2, 9, 4], 2, 1 / 3),
        ([1, 2], [1, 2, 3, 4], 1, 2 * 1.0 * 0.5 / 1.5),  # precision 1, recall 1/2
        ([1, 1, 1], [1, 2, 3], 1, 1 / 3),  # a run counts as often as it is in both
        ([], [1], 1, 0.0),
        ([1], [1], 2, 1.0),
        ([1], [2], 2, 0.0),
        ([], [], 1, 1.0),
    ],
)
def test_rouge_n_by_hand(claimed, true, n, score):
    assert rouge_n(claimed, true, n) == pytest.approx(score)


@pytest.mark.parametrize(
    ("claimed", "true", "score"),
    [
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([3, 2, 1], [1, 2, 3], 1 / 3),
        ([1, 9, 3], [1, 2, 3], 2 / 3),
        ([1, 3], [1, 2, 3], 0.8),
        ([], [1], 0.0),
        ([], [], 1.0),
    ],
)
def test_rouge_l_by_hand(claimed, true, score):
    assert rouge_l(claimed, true) == pytest.approx(score)


def texts(count, longest=7, words=4):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        length = int(torch.randint(1, longest, (), generator=generator))
        yield torch.randint(words, (length,), generator=generator).tolist()


def slow_common(left, right):
    """The longest common subsequence by trying all of them."""
    for size in range(min(len(left), len(right)), 0, -1):
        if any(
            ours == theirs
            for ours in itertools.combinations(left, size)
            for theirs in itertools.combinations(right, size)
        ):
            return size
    return 0


def test_rouge_l_equals_the_slow_definition():
    found = list(texts(60))
    for left, right in itertools.pairwise(found):
        common = slow_common(left, right)
        precision, recall = common / len(left), common / len(right)
        f1 = 2 * precision * recall / (precision + recall) if common else 0.0
        assert rouge_l(left, right) == pytest.approx(f1)


def test_rouge_1_equals_the_counts():
    found = list(texts(60))
    for left, right in itertools.pairwise(found):
        common = sum(min(Counter(left)[word], Counter(right)[word]) for word in range(4))
        assert rouge_n(left, right, 1) == pytest.approx(2 * common / (len(left) + len(right)))


@pytest.mark.parametrize("measure", [rouge_l, token_accuracy, lambda a, b: rouge_n(a, b, 2)])
def test_measures_are_symmetric_and_at_most_one(measure):
    found = list(texts(40))
    for left, right in itertools.pairwise(found):
        assert measure(left, right) == pytest.approx(measure(right, left))
        assert 0.0 <= measure(left, right) <= 1.0
        assert measure(left, left) == 1.0


def test_token_accuracy_counts_places():
    assert token_accuracy([1, 2, 3], [1, 9, 3]) == pytest.approx(2 / 3)
    assert token_accuracy([1, 2], [1, 2, 3, 4]) == 0.5
    assert token_accuracy([2, 1], [1, 2]) == 0.0


def test_pairs_are_the_best_ones():
    true = [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert matched([[7, 8, 9], [1, 2, 3], [4, 5, 5]], true) == [1, 2, 0]
    assert matched([[4, 5, 6]], true) == [None, 0, None]
    assert matched([], true) == [None, None, None]
    assert sorted(matched([[1, 2, 3]] * 3, true)) == [0, 1, 2]
