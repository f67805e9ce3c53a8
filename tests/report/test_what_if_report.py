"""What would have helped, as the report draws and words it."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from auditor.records import Trust, WhatIf, WhatIfRow
from auditor.report.html import to_html
from auditor.report.what_if import gate, passing, refuted, remedies_of
from auditor.report.what_if_chart import leakage_charts, strength_words

TOP, BOTTOM = 14.0, 192.0  # the drawing inside 480 x 240


def row(kind, setting, strength, psnr, passes, *, bound=None, cosine=1.0, score=0.0):
    band = "none" if score < 4 else "critical"
    return WhatIfRow(
        kind, setting, strength, "images.lm", psnr, bound, 1.0, score, band, cosine, passes, "why"
    )


ROWS = (
    row("none", "no defence", 0.0, 60.0, False, score=10.0),
    row("noise", "noise, sigma 1e-3", 1e-3, 40.0, False, bound=50.0, score=10.0),
    row("noise", "noise, sigma 1e-2", 1e-2, 10.0, True, bound=19.0, cosine=0.9),
    row("top-k", "top-k, 90 % dropped", 0.9, 8.0, True, bound=12.0, cosine=0.95),
    row("sign", "signs only", 1.0, 8.0, True, cosine=0.99),
    row("dp-sgd", "DP-SGD", 1.0, 30.0, False, score=10.0),
    row("larger batch", "batch 8 times as large", 8.0, 9.0, True, cosine=None),
)


def tried(rows=ROWS, **more):
    return WhatIf(
        "the step of one sample",
        "a score under 7.0 (high)",
        rows,
        tuple(f"{r.setting}: 1.0 dB reached" for r in rows if r.passes),
        **{"left_out": ("sign: the budget ended",), **more},
    )


def with_what_if(audit, found):
    return replace(audit, trust=replace(audit.trust, what_if=found))


# --------------------------------------------------------------------------- charts


def polylines(drawing):
    root = ET.fromstring(str(drawing))
    lines = {}
    for line in root.iter("polyline"):
        pairs = [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]
        lines[line.get("class")] = pairs
    return lines


def test_a_chart_for_each_defence_with_several_strengths():
    charts = leakage_charts(tried())
    assert [chart.defence for chart in charts] == ["Noise"]
    assert leakage_charts(None) == ()


def test_decibels_are_drawn_to_scale():
    (chart,) = leakage_charts(tried())
    lines = polylines(chart.drawing)
    heights = [(BOTTOM - y) / (BOTTOM - TOP) * 60 for _, y in lines["line best"]]
    assert heights == pytest.approx([60.0, 40.0, 10.0], abs=0.1)
    assert [(BOTTOM - y) / (BOTTOM - TOP) * 60 for _, y in lines["line limit"]] == pytest.approx(
        [50.0, 19.0], abs=0.1
    )
    places = [x for x, _ in lines["line best"]]
    assert [x for x, _ in lines["line limit"]] == places[1:]


def test_the_chart_says_in_words_what_it_shows():
    (chart,) = leakage_charts(tried())
    root = ET.fromstring(str(chart.drawing))
    told = root.find("desc").text
    assert "noise, sigma 1e-2: 10 dB, bound 19 dB" in told
    assert (
        root.get("aria-labelledby")
        == f"{root.find('title').get('id')} {root.find('desc').get('id')}"
    )


@pytest.mark.parametrize("value", [0.0, -30.0, 200.0, 1e9])
def test_extreme_values_stay_inside_the_drawing(value):
    rows = (row("noise", "a", 1e-3, value, None), row("noise", "b", 1e-2, 5.0, None, bound=value))
    (chart,) = leakage_charts(tried(rows))
    for points in polylines(chart.drawing).values():
        assert all(TOP <= y <= BOTTOM for _, y in points)


def test_names_are_escaped():
    rows = tuple(row("noise", "<script>\u202e", s, 5.0, None) for s in (0.1, 1.0))
    (chart,) = leakage_charts(tried(rows))
    assert "<script>" not in chart.drawing
    assert "\u202e" not in chart.drawing


@pytest.mark.parametrize(
    ("kind", "strength", "words"),
    [
        ("noise", 1e-3, "10⁻³"),
        ("top-k", 0.99, "99 %"),
        ("larger batch", 8.0, "8"),
        ("none", 0, "none"),
    ],
)
def test_strengths_are_short(kind, strength, words):
    assert strength_words(row(kind, "", strength, None, None)) == words


# --------------------------------------------------------------------------- page and remedies


def test_every_row_stands_in_the_table(audits):
    page = to_html(with_what_if(audits["leak"], tried()))
    section = page.split('id="what-if"')[1].split("</section>")[0]
    for each in ROWS:
        assert f'<th scope="row">{each.setting}</th>' in section
    assert "No setting is called safe" in section
    assert "sign: the budget ended" in section


def test_without_a_what_if_there_is_no_section(audits):
    page = to_html(replace(audits["leak"], trust=Trust()))
    assert 'id="what-if"' not in page
    assert 'href="#what-if"' not in page


def test_remedies_begin_with_what_helped_here_the_cheapest_first(audits):
    remedies = remedies_of(with_what_if(audits["leak"], tried()))
    measured = [remedy.text for remedy in remedies if not remedy.codes]
    assert [re.split(r":", text)[0] for text in measured] == [
        "Top-k, 90 % dropped", "Noise, sigma 1e-2", "Signs only", "Batch 8 times as large",
    ]  # fmt: skip
    assert remedies[: len(measured)] == [r for r in remedies if not r.codes]
    assert "10 dB were reached (bound 19 dB), score 0.0" in measured[1]
    assert ["enough for a better one" in text for text in measured] == [False, False, True, True]


def test_what_was_refuted_is_not_recommended_as_it_stands(audits):
    found = tried()
    assert refuted(found) == {"none", "dp-sgd"}
    general = [r for r in remedies_of(with_what_if(audits["leak"], found)) if r.codes]
    assert general
    assert all("DP-SGD did not suffice" in r.text for r in general if "DP-SGD" in r.text)


def test_a_remedy_whose_every_defence_was_refuted_is_left_out(audits):
    failing = (
        *ROWS,
        row("secure aggregation", "sum over 10 clients", 10.0, 30.0, False, score=10.0),
    )
    plain = remedies_of(replace(audits["leak"], trust=Trust()))
    assert any("secure aggregation" in remedy.text for remedy in plain)
    left = [r for r in remedies_of(with_what_if(audits["leak"], tried(failing))) if r.codes]
    assert not any("secure aggregation" in remedy.text for remedy in left)


def test_a_defence_with_one_passing_setting_is_not_refuted():
    assert "noise" not in refuted(tried())
    assert [r.setting for r in passing(tried(ROWS[:2]))] == []


@pytest.mark.parametrize(
    ("passes", "words"), [(True, "passes"), (False, "fails"), (None, "no answer")]
)
def test_the_gate_has_three_answers(passes, words):
    assert gate(row("noise", "", 1.0, None, passes)) == words
