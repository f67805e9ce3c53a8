"""Numbers and names as the reports write them."""

import math

import pytest

from auditor.records import Measure
from auditor.report.words import duration, number, printable, quantity, size


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
