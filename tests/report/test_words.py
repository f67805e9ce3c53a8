"""Numbers and names as the reports write them."""

import math

import pytest

from auditor.records import LinkReport, Measure
from auditor.report.words import (
    at_least,
    duration,
    link_status,
    number,
    printable,
    quantity,
    size,
    why_unsolved,
)
from auditor.solve import Status


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (8.0, "8"),
        (62006, "62006"),
        (38.2713, "38.3"),
        (9.8, "9.8"),
        (0.0794, "0.0794"),
        (160.4, "160"),
        (3.14e-9, "3.1×10⁻⁹"),
        (-2.5e12, "-2.5×10¹²"),
        (math.inf, "not finite"),
        (math.nan, "not finite"),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_quantity_has_its_unit():
    assert quantity(Measure("labels", 5.0, "of 8")) == "5 of 8"
    assert quantity(Measure("residual", 0.5, "")) == "0.5"


def test_a_bound_is_named_as_one():
    assert at_least(96.04) == "at least 96.0"
    assert at_least(math.inf) == at_least(math.nan) == "not finite"


def link(status, *, left_open=0, constrained=False, solved=False):
    counts = {"unknowns": 3072, "equations": 2868, "undetermined": left_open, "steps": 7}
    sizes = {"gap": 0.3, "residual": 1e-6, "condition": 96.0}
    return LinkReport("w", **counts, **sizes, status=status, constrained=constrained, solved=solved)


@pytest.mark.parametrize(
    ("constrained", "solved", "text"),
    [
        (False, True, "solved (reached the goal)"),
        (True, True, "solved (reached the goal; inequalities helped)"),
        (False, False, "not solved (reached the goal)"),
        (True, False, "not solved (reached the goal; inequalities did not suffice)"),
    ],
)
def test_status_of_a_layer(constrained, solved, text):
    found = link("reached the goal", constrained=constrained, solved=solved)
    assert link_status(found) == text


@pytest.mark.parametrize("status", Status)
def test_a_layer_hides_something_only_when_its_solver_had_the_time_to_tell(status):
    word = status.value
    said, misfit = why_unsolved(link(word, left_open=204)), why_unsolved(link(word))
    if status in {Status.CONVERGED, Status.STALLED}:
        assert said == (
            "This layer hides its input: about 204 of 3072 numbers are left open by its equations."
        )
        assert misfit == (
            "The equations of this layer do not hold for the answer: the dump is not precise "
            "enough, or a pattern was misread."
        )
    else:
        end = f"This layer was not solved to the end ({word})"
        assert said == f"{end}: about 204 of 3072 numbers were still open."
        assert misfit == f"{end}."


def test_a_quotient_has_no_pattern_to_misread():
    assert why_unsolved(link("closed form")).endswith("or it is not of one sample.")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (0.01, "under 0.1 s"), (23.44, "23.4 s"), (125, "2 min 5 s")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (62_480, "62.5 KB"), (3 * 10**12, "3 TB")],
)
def test_size(count, text):
    assert size(count) == text


def test_hidden_characters_are_spelled_out():
    text = "a\x1b[31mb\u202ec\u200bd\udcffe\nf\U000e0041"
    assert printable(text) == "a\\x1b[31mb\\u202ec\\u200bd\\udcffe f\\U000e0041"
    assert printable("müller_日本.pt") == "müller_日本.pt"


def test_long_names_lose_their_middle():
    text = printable("a" * 500 + "z" * 500, limit=100)
    assert text.startswith("a" * 50)
    assert text.endswith("z" * 50)
    assert "900 characters" in text
    assert printable("a" * 100, limit=100) == "a" * 100
