"""What the report says of its own worth: in the page, on the terminal, or that it knows nothing."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from auditor.records import CanaryReport, ControlReport, Trust
from auditor.report.console import print_audit
from auditor.report.html import to_html
from auditor.report.trust import (
    belongs_words,
    bound_words,
    canary_words,
    control_words,
    fidelity_words,
    strength_words,
    trust_lines,
)


def section(audit):
    """The section's markup, on one line."""
    page = to_html(audit)
    return " ".join(page.split('id="trust"')[1].split("</section>")[0].split())


def with_trust(audit, **fields):
    return replace(audit, trust=replace(audit.trust, **fields))


def test_everything_that_is_known_is_in_the_page(audits):
    text = section(audits["leak"])
    for words in (
        "Model and dump belong together",
        "588 sums over the classes hold",
        "0.001 (9.6×10⁻⁴ to 0.00104)",
        "The best claim is worth 41.5 dB, without knowing the truth",
        "No unbiased attack can tell every pixel: some are left open.",
        "does no better than 38.2 dB on average",
        "(40.1 dB on the sample that the dump tells best)",
        "noise is normal",
        "images.lm: None of 3 gradients of noise gave a picture.",
        "19 of 20 were opened.",
        "no error bar: the Jacobian did not fit in the budget",
    ):
        assert words in text


def test_what_is_not_known_is_said(audits):
    text = section(replace(audits["leak"], trust=Trust()))
    for words in (
        "Whether model and dump belong together was not tested.",
        "None was seen. That is no proof that there is none.",
        "Nothing is said of how close a claim is",
        "No negative control was run",
        "No canaries",
    ):
        assert words in text
    assert "What is not said" not in text
    assert "The best that an attack could do" not in text


def test_the_section_can_be_reached(audits):
    assert '<a href="#trust">' in to_html(audits["leak"])


def test_a_contradiction_is_loud(audits):
    words = belongs_words(replace(audits["leak"].trust, belongs="contradicted"))
    assert "do not belong together" in words
    assert "may not be the client" in words


def test_an_unbiased_bound_has_its_number(audits):
    bound = replace(audits["leak"].trust.bound, unbiased_psnr=33.25)
    assert bound_words(bound)[0] == "No unbiased attack can do better than 33.2 dB."


@pytest.mark.parametrize(
    ("decibels", "words"),
    [(9.0, "not recognisable"), (16.0, "shapes at best"), (20.0, "recognisable"), (30.0, "hard")],
)
def test_fidelity_in_words(decibels, words):
    assert words in fidelity_words(Trust(fidelity=decibels))


def test_a_strength_without_an_interval(audits):
    noise, sign = audits["leak"].trust.defences
    assert strength_words(replace(noise, low=None)) == "0.001"
    assert strength_words(sign) == "no strength"


def test_terminal_has_three_lines_at_most(audits):
    lines = trust_lines(audits["leak"].trust)
    assert len(lines) == 3
    assert "noise 0.001" in lines[0]
    assert "41.5 dB without truth" in lines[1]
    assert "0 of 3 gave as much; simulated dumps opened: 19 of 20" in lines[2]
    assert trust_lines(Trust()) == []
    assert len(trust_lines(Trust(belongs="shown"))) == 1


def test_terminal_shows_them(audits):
    stream = io.StringIO()
    print_audit(audits["leak"], Console(file=stream, width=200))
    assert "negative control: 0 of 3" in stream.getvalue()
    stream = io.StringIO()
    print_audit(replace(audits["leak"], trust=Trust()), Console(file=stream, width=200))
    assert "Trust" not in stream.getvalue()


def test_foreign_words_are_escaped(audits):
    """A name of a parameter may stand in what was tested."""
    hostile = "<img src=x onerror=alert(1)>"
    trust = replace(
        audits["leak"].trust,
        tested=(hostile,),
        unsaid=(hostile,),
        control=ControlReport(hostile, 1, 1, hostile),
        canaries=CanaryReport(1, 3, 0.0, 0.9, 20.0, hostile, hostile),
    )
    assert "<img" not in section(with_trust(audits["leak"], **vars(trust)))


def test_nothing_run_is_no_good_news():
    assert "No negative control was run" in control_words(None)
    assert "was not counted" in canary_words(None)
