"""The summary on the terminal."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from auditor.records import FileRef
from auditor.report.console import print_audit


def printed(audit, **settings):
    stream = io.StringIO()
    print_audit(audit, Console(file=stream, width=settings.pop("width", 100), **settings))
    return stream.getvalue()


def test_leak_in_words(audits):
    text = printed(audits["leak"])
    assert "LEAK, CRITICAL" in text.splitlines()[0]
    assert "9.8 of 10" in text.splitlines()[0]
    for words in (
        "GA201  The training input was rebuilt from the gradient  verified   9.8 critical",
        "images.analytic skipped: The first layer is a convolution.",
        "GA302 The reduction is assumed",
        "loss: cross-entropy, mean",
        "Gate: failed (--fail-on high, exit code 1).",
    ):
        assert words in text
    assert "normalisation" not in text  # given by a flag, so not assumed


def test_no_leak_never_reads_as_safe(audits):
    assert "An attack that failed proves nothing." in printed(audits["nothing shown"])
    text = printed(audits["inconclusive"])
    assert "INCONCLUSIVE" in text
    assert "no score" in text
    assert not re.search(r"\b0\.0\b", text)
    assert "(voids the verdict)" in text


def test_plain_without_a_terminal(audit):
    assert "\x1b" not in printed(audit)


def test_no_color_leaves_no_colour(audits, monkeypatch):
    assert "\x1b[1;37;41m" in printed(audits["leak"], force_terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;37;41m" not in printed(audits["leak"], force_terminal=True)


def test_exhibits_stay_out(audits):
    text = printed(audits["embedded"])
    assert "ship" not in text
    assert audits["embedded"].exhibits[0].strip[0][:40] not in text


@pytest.mark.parametrize("terminal", [False, True])
def test_hostile_names_are_shown_and_do_nothing(audits, terminal):
    name = "[red]x[/red][/]\x1b]0;owned\x07\u202e"
    audit = audits["leak"]
    hostile = replace(
        audit,
        model=replace(audit.model, file=FileRef(name, "", 0, "00" * 32)),
        findings=(replace(audit.findings[0], title=name),),
        caveats=(replace(audit.caveats[0], message=name),),
        assumptions=(replace(audit.assumptions[2], value=name),),
        attacks=(replace(audit.attacks[2], reason=name),),
        gate=replace(audit.gate, reason=name),
    )
    text = printed(hostile, force_terminal=terminal, width=200)
    assert text.count("[red]x[/red][/]\\x1b]0;owned\\x07\\u202e") == 6
    assert "\x1b]0" not in text
    assert "\u202e" not in text


def test_narrow_terminals(audit):
    assert all(len(line) <= 40 for line in printed(audit, width=40).splitlines())
