import itertools
import math
from pathlib import Path

import pytest

from auditor.errors import UsageError
from auditor.severity import (
    BANDS,
    TRUST,
    band_of,
    input_severity,
    label_severity,
    parse_threshold,
    text_severity,
    token_severity,
)

DOC = Path(__file__).parents[1] / "docs" / "severity.md"
WEAKEST_FIRST = ["estimated", "consistent", "verified", "proved"]  # measured stands beside


def example_rows():
    lines = DOC.read_text(encoding="utf-8").splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if "|" in line]
    return [row for row in cells if row[0].startswith(("labels:", "inputs:", "texts:"))]


def severity_of(row):
    what, certainty, psnr, share = row[:4]
    if what.startswith("texts:"):
        return text_severity(certainty=certainty, likeness=float(psnr), share=float(share))
    if what.startswith("inputs:"):
        return input_severity(certainty=certainty, psnr=float(psnr), share=float(share))
    return label_severity(
        proved_share=None if share == "?" else float(share),
        complete="all proved" in what,
        estimated="a guess" in what or "guess for" in what,
    )


@pytest.mark.parametrize("row", example_rows(), ids=lambda row: row[0])
def test_examples_of_the_page(row):
    severity = severity_of(row)
    assert (f"{severity.score:.1f}", severity.band) == (row[4], row[5])


def test_the_page_has_examples_of_every_band():
    assert {row[5] for row in example_rows()} == {"none", *(band for band, _ in BANDS)}


def test_tokens_of_the_page():
    text = DOC.read_text(encoding="utf-8")
    found = [
        ("every token that occurs, proved", "proved", True),
        ("some tokens, proved", "proved", False),
        ("a set that is an estimate", "estimated", True),
    ]
    for what, certainty, complete in found:
        score = token_severity(certainty=certainty, complete=complete).score
        assert f"| {what} | {score} |" in text


def test_text_severity_is_monotone():
    shares, likenesses = (0.01, 0.125, 0.5, 1.0), [n / 20 for n in range(21)]
    for share, likeness in itertools.product(shares, likenesses):
        scores = [
            text_severity(certainty=word, likeness=likeness, share=share).score
            for word in WEAKEST_FIRST
        ]
        assert scores == sorted(scores)
    for word in WEAKEST_FIRST:
        for fixed in (0.4, 1.0):
            by_share = [
                text_severity(certainty=word, likeness=fixed, share=share).score for share in shares
            ]
            by_likeness = [
                text_severity(certainty=word, likeness=likeness, share=fixed).score
                for likeness in likenesses
            ]
            assert by_share == sorted(by_share)
            assert by_likeness == sorted(by_likeness)


@pytest.mark.parametrize(("likeness", "share"), [(1.0, 0.0), (1.1, 1.0), (-0.1, 1.0), (0.5, 1.5)])
def test_text_severity_refuses_what_is_no_share(likeness, share):
    with pytest.raises(ValueError, match="share"):
        text_severity(certainty="verified", likeness=likeness, share=share)


def test_band_table_of_the_page():
    text = DOC.read_text(encoding="utf-8")
    tops = [10.0, *(round(lowest - 0.1, 1) for _, lowest in BANDS)]
    for (band, lowest), top in zip(BANDS, tops, strict=False):
        assert f"| {band} | {lowest} to {top} |" in text


@pytest.mark.parametrize(
    ("score", "band"),
    [
        (0.0, "none"),
        (0.04, "none"),
        (0.05, "low"),
        (3.94, "low"),
        (3.95, "medium"),
        (6.94, "medium"),
        (6.95, "high"),
        (8.9, "high"),
        (9.0, "high"),
        (9.04, "high"),
        (9.05, "critical"),
        (10.0, "critical"),
    ],
)
def test_band_edges(score, band):
    assert band_of(score) == band


@pytest.mark.parametrize("score", [-0.1, 10.1, math.nan, math.inf])
def test_no_band_outside_the_scale(score):
    with pytest.raises(ValueError, match="0 to 10"):
        band_of(score)


def test_inputs_are_monotone_in_certainty_psnr_and_share():
    decibels = [-math.inf, 0, 9.9, 10, 10.5, 15, 19.9, 20, 25, 29.9, 30, 60, math.inf]
    shares = [1e-6, 0.01, 0.125, 0.5, 0.99, 1.0]
    grid = list(itertools.product(range(4), range(len(decibels)), range(len(shares))))
    score = {
        (c, d, s): input_severity(
            certainty=WEAKEST_FIRST[c], psnr=decibels[d], share=shares[s]
        ).score
        for c, d, s in grid
    }
    for (c, d, s), value in score.items():
        for up in ((c + 1, d, s), (c, d + 1, s), (c, d, s + 1)):
            assert score.get(up, value) >= value, (c, d, s)
    assert len(set(score.values())) > 30  # not monotone by being constant


def test_labels_are_monotone_in_share_guess_and_completeness():
    shares = [0.0, 1e-6, 0.01, 0.125, 0.25, 0.5, 0.9, 1.0]
    for estimated in (False, True):
        scores = [
            label_severity(proved_share=s, complete=False, estimated=estimated).score
            for s in shares
        ]
        assert scores == sorted(scores)
        everything = label_severity(proved_share=1.0, complete=True, estimated=estimated).score
        assert everything > scores[-1]
    for share in shares:
        without = label_severity(proved_share=share, complete=False, estimated=False).score
        assert label_severity(proved_share=share, complete=False, estimated=True).score >= without


def test_a_single_proved_label_never_vanishes():
    assert label_severity(proved_share=1e-9, complete=False, estimated=False).score == 0.1


def test_measured_and_proved_weigh_the_same():
    assert TRUST["measured"] == TRUST["proved"] == TRUST["verified"]


def test_labels_alone_stay_below_high_and_consistent_below_critical():
    assert label_severity(proved_share=1.0, complete=True, estimated=True).band == "medium"
    assert input_severity(certainty="consistent", psnr=math.inf, share=1.0).band == "high"


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
def test_refuses_an_impossible_share_of_inputs(share):
    with pytest.raises(ValueError, match="share"):
        input_severity(certainty="verified", psnr=30.0, share=share)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_refuses_an_impossible_share_of_labels(share):
    with pytest.raises(ValueError, match="share"):
        label_severity(proved_share=share, complete=False, estimated=False)


def test_refuses_nan_decibels():
    with pytest.raises(ValueError, match="nan"):
        input_severity(certainty="verified", psnr=math.nan, share=1.0)


@pytest.mark.parametrize(
    ("text", "threshold"),
    [
        ("low", 0.1),
        ("medium", 4.0),
        ("high", 7.0),
        ("critical", 9.1),
        (" High ", 7.0),
        ("0.1", 0.1),
        ("7", 7.0),
        ("7.25", 7.25),
        ("10", 10.0),
        ("10.0", 10.0),
    ],
)
def test_thresholds(text, threshold):
    assert parse_threshold(text) == threshold


@pytest.mark.parametrize(
    "text",
    ["", "none", "0", "0.0", "0.09", "10.1", "11", "nan", "inf", "-1", "1e1", "1_0", "hi", "7,5"],
)
def test_refused_thresholds(text):
    with pytest.raises(UsageError) as caught:
        parse_threshold(text)
    assert repr(text) in str(caught.value)
