"""SARIF, JUnit and Markdown: valid against their schemas, in step with the gate, inert."""

import json
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import pytest
import xmlschema
from jsonschema import Draft202012Validator
from markdown_it import MarkdownIt

from auditor.errors import UsageError
from auditor.gate import Accepted, GateRules, Limits, Reference, judged
from auditor.records import Measure, Severity
from auditor.report.audit_json import from_json, to_json
from auditor.report.formats import FORMATS, format_of, to_text
from auditor.report.junit import to_junit
from auditor.report.markdown import to_markdown
from auditor.report.sarif import to_sarif

SCHEMAS = Path(__file__).parents[1] / "schemas"
SARIF = Draft202012Validator(json.loads((SCHEMAS / "sarif-2.1.0.json").read_text("utf-8")))
AUDIT = Draft202012Validator(
    json.loads((files("auditor") / "schema" / "audit.schema.json").read_text("utf-8"))
)
JUNIT = xmlschema.XMLSchema(SCHEMAS / "junit-10.xsd")

HOSTILE = (
    "</script><img src=x onerror=alert(1)> [a](http://b) ![c](d) `code` | cell | **bold** "
    "<b>&amp;\n# title\x1b[31m\u202e\x00\udcff\ufffe @someone "
    "https://e.org www.f.org $x$ \\| 1. \"'" + "A" * 10_000
)
ACCEPTED = (
    Accepted("GA101", "the labels are public", "2026-12-31"),
    Accepted("GA201", "was once agreed", "2026-01-01"),
    Accepted("GA204", "never seen", "2027-01-01"),
)


def hostile(audit):
    """The audit with HOSTILE wherever a stranger's text can stand."""
    name = {"name": HOSTILE}
    return replace(
        audit,
        verdict=replace(audit.verdict, sentence=HOSTILE, reasons=(HOSTILE,)),
        gate=replace(audit.gate, reason=HOSTILE),
        findings=tuple(
            replace(f, summary=HOSTILE, measures=(Measure(HOSTILE, 1.0, HOSTILE),))
            for f in audit.findings
        ),
        attacks=tuple(replace(a, reason=HOSTILE) for a in audit.attacks),
        caveats=tuple(replace(c, message=HOSTILE) for c in audit.caveats),
        assumptions=tuple(replace(a, value=HOSTILE) for a in audit.assumptions),
        model=replace(
            audit.model,
            file=replace(audit.model.file, **name),
            architecture=HOSTILE,
            notes=(HOSTILE,),
        ),
        dump=replace(audit.dump, file=replace(audit.dump.file, **name), recognised=HOSTILE),
        provenance=replace(audit.provenance, command=("gradaudit", HOSTILE)),
    )


def gated(audit, **rules):
    return judged(audit, GateRules(**rules))


@pytest.fixture(params=["as it is", "hostile", "suppressed", "limits", "baseline"])
def every(request, audit):
    """Every audit of the conftest in each dress."""
    if request.param == "hostile":
        return hostile(audit)
    if request.param == "suppressed":
        return gated(audit, fail_on="high", accepted=ACCEPTED)
    if request.param == "limits":
        return gated(audit, limits=Limits(psnr=25.0, labels=0.5))
    if request.param == "baseline":
        return gated(audit, reference=Reference(replace(audit, findings=()), "ab" * 32))
    return audit


def sarif_of(audit):
    document = json.loads(to_sarif(audit))
    return document, document["runs"][0]


def cases_of(audit):
    suite = ElementTree.fromstring(to_junit(audit)).find("testsuite")
    return suite, suite.findall("testcase")


# --------------------------------------------------------------------------- all formats


def test_sarif_is_valid(every):
    document, _ = sarif_of(every)
    assert [error.message for error in SARIF.iter_errors(document)] == []
    assert to_sarif(every).isascii()


def test_junit_is_valid(every):
    assert [str(error) for error in JUNIT.iter_errors(to_junit(every))] == []


def test_audit_json_carries_what_the_gate_took_into_account(every):
    text = to_json(every)
    assert list(AUDIT.iter_errors(json.loads(text))) == []
    assert to_json(from_json(text)) == text
    if "\udcff" not in every.verdict.sentence:  # half a character is written as U+FFFD
        assert from_json(text) == every


def test_the_schemas_can_refuse(audits):
    document, run = sarif_of(audits["leak"])
    run["results"][0]["level"] = "catastrophe"
    assert list(SARIF.iter_errors(document))
    broken = (
        to_junit(audits["leak"])
        .replace("<failure ", "<failed ", 1)
        .replace("/failure>", "/failed>", 1)
    )
    assert list(JUNIT.iter_errors(broken))


def test_no_control_character_gets_out(every):
    for form in FORMATS:
        text = to_text(every, form)
        assert text == to_text(every, form)
        if form != "json":  # audit.json keeps them, as escapes
            assert not set("\x1b\x00\u202e") & set(text)
            assert "A" * 1000 not in text
        text.encode()


def test_a_format_that_does_not_exist_is_refused():
    assert [format_of(name) for name in FORMATS] == list(FORMATS)
    with pytest.raises(UsageError, match="markdown"):
        format_of("docx")


# --------------------------------------------------------------------------- SARIF


def test_sarif_says_what_the_audit_says(audits):
    audit = audits["leak"]
    _, run = sarif_of(audit)
    assert [result["ruleId"] for result in run["results"]] == ["GA201", "GA101"]
    assert [result["level"] for result in run["results"]] == ["error", "warning"]
    assert {result["kind"] for result in run["results"]} == {"fail"}
    rules = run["tool"]["driver"]["rules"]
    severity = {
        r["id"]: r["properties"].get("security-severity") for r in rules if "properties" in r
    }
    assert severity == {"GA101": "6.1", "GA201": "9.8", "GA302": None}
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert run["artifacts"][0]["location"]["uri"] == "grads.pt"
    assert [a["hashes"]["sha-256"] for a in run["artifacts"]] == ["0f" * 32, "a1" * 32]
    [call] = run["invocations"]
    assert (call["exitCode"], call["executionSuccessful"]) == (1, True)
    told = [n["descriptor"]["id"] for n in call["toolExecutionNotifications"] if "descriptor" in n]
    assert told == ["GA302"]


@pytest.mark.parametrize(
    ("score", "band", "told"),
    [
        (9.0, "high", "8.9"),
        (9.1, "critical", "9.1"),
        (10.0, "critical", "10.0"),
        (0.1, "low", "0.1"),
    ],
)
def test_the_band_is_the_one_that_code_scanning_derives(audits, score, band, told):
    """There, over 9.0 is critical and 7.0 to 8.9 high; nothing is said of 9.0."""
    finding = replace(audits["leak"].findings[0], severity=Severity(score, band))
    _, run = sarif_of(replace(audits["leak"], findings=(finding,)))
    rules = {rule["id"]: rule for rule in run["tool"]["driver"]["rules"]}
    assert rules["GA201"]["properties"]["security-severity"] == told


def test_rules_point_into_the_taxonomies(audits):
    _, run = sarif_of(audits["leak"])
    relations = [
        relation
        for rule in run["tool"]["driver"]["rules"]
        for relation in rule.get("relationships", [])
    ]
    assert len(relations) == 6
    for relation in relations:
        target = relation["target"]
        taxonomy = run["taxonomies"][target["toolComponent"]["index"]]
        assert taxonomy["name"] == target["toolComponent"]["name"]
        assert taxonomy["taxa"][target["index"]]["id"] == target["id"]
    ids = {relation["target"]["id"] for relation in relations}
    assert ids == {"NISTAML.032", "AML.T0024.001", "ML03:2023"}


def test_fingerprints_stay_while_numbers_move(audits):
    audit = audits["leak"]
    again = replace(
        audit,
        findings=tuple(replace(f, summary="other", measures=()) for f in audit.findings),
        provenance=replace(audit.provenance, started="2027-01-01T00:00:00Z", seed=5),
    )
    prints = [[r["partialFingerprints"] for r in sarif_of(a)[1]["results"]] for a in (audit, again)]
    assert prints[0] == prints[1]
    assert prints[0][0] != prints[0][1]
    other = replace(audit, dump=replace(audit.dump, file=replace(audit.dump.file, name="b.pt")))
    assert sarif_of(other)[1]["results"][0]["partialFingerprints"] != prints[0][0]


def test_no_verdict_is_an_open_result_and_never_an_empty_list(audits):
    for name in ("inconclusive", "bare"):
        _, run = sarif_of(audits[name])
        assert [(r["ruleId"], r["kind"]) for r in run["results"]] == [("no-verdict", "open")]
        assert run["invocations"][0]["executionSuccessful"] is False
    _, run = sarif_of(audits["nothing shown"])
    assert run["results"] == []


def test_suppressions_and_the_baseline_are_told(audits):
    audit = gated(audits["leak"], fail_on="high", accepted=ACCEPTED)
    _, run = sarif_of(audit)
    told = {r["ruleId"]: [s["status"] for s in r["suppressions"]] for r in run["results"]}
    assert told == {"GA201": ["rejected"], "GA101": ["accepted"]}
    earlier = replace(audits["leak"], findings=(audits["leak"].findings[1],))
    _, run = sarif_of(gated(audits["leak"], reference=Reference(earlier, "ab" * 32)))
    states = {r["ruleId"]: r["baselineState"] for r in run["results"]}
    assert states == {"GA201": "new", "GA101": "unchanged"}


# --------------------------------------------------------------------------- JUnit


def test_junit_never_contradicts_the_exit_code(every):
    suite, cases = cases_of(every)
    counts = {tag: sum(c.find(tag) is not None for c in cases) for tag in ("failure", "error")}
    assert suite.get("tests") == str(len(cases))
    assert suite.get("failures") == str(counts["failure"])
    assert suite.get("errors") == str(counts["error"])
    code = every.gate.exit_code
    if code == 1:
        assert counts["failure"]
    elif code == 4:
        assert counts["error"]
    elif every.gate.outcome == "passed":
        assert not counts["failure"]
        assert not counts["error"]
    else:
        assert counts["failure"] == len(every.findings)


def test_inconclusive_is_an_error_and_not_a_pass(audits):
    _, cases = cases_of(audits["inconclusive"])
    by_class = [(c.get("classname"), next(iter(c)).tag) for c in cases if len(c)]
    assert by_class == [("gradaudit.gate", "error"), *[("gradaudit.attacks", "error")] * 2]


def test_findings_below_the_threshold_pass_and_suppressed_ones_are_skipped(audits):
    audit = gated(audits["leak"], fail_on="high", accepted=ACCEPTED[:1])
    _, cases = cases_of(audit)
    found = {
        c.get("name")[3:8]: [x.tag for x in c] for c in cases if "findings" in c.get("classname")
    }
    assert found == {"GA201": ["failure", "system-out"], "GA101": ["skipped", "system-out"]}
    _, cases = cases_of(gated(audits["leak"], fail_on="9.9"))
    assert all(case.find("failure") is None for case in cases)


# --------------------------------------------------------------------------- Markdown


def rendered(text):
    """Tokens of the page as CommonMark with tables reads it."""
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    return [inner for token in tokens for inner in [token, *(token.children or [])]]


def test_markdown_obeys_no_stranger(every):
    tokens = rendered(to_markdown(every))
    kinds = {token.type for token in tokens}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "code_inline", "em_open"}
    assert not kinds & {"fence", "code_block", "hr", "blockquote_open"}
    headings = [t for t in tokens if t.type == "heading_open"]
    plain = [t for t in rendered(to_markdown(every)) if t.type == "strong_open"]
    assert len(headings) <= 8
    assert len(plain) == 1  # the word Gate


def test_markdown_shows_hostile_text_as_it_is(audits):
    shown = [
        t.content for t in rendered(to_markdown(hostile(audits["leak"]))) if t.type == "inline"
    ]
    whole = "".join(
        token.content
        for token in rendered(to_markdown(hostile(audits["leak"])))
        if token.type == "text"
    )
    assert shown
    assert (
        "</script><img src=x onerror=alert(1)> [a](http://b) ![c](d) `code` | cell | **bold**"
        in whole
    )


def test_markdown_tables_keep_their_columns(audits):
    for name in ("leak", "inconclusive"):
        lines = to_markdown(hostile(audits[name])).splitlines()
        rows = [
            line.replace("\\\\", "").replace("\\|", "") for line in lines if line.startswith("|")
        ]
        assert rows
        widths = {row.count("|") for row in rows}
        assert widths <= {4, 6}


def test_markdown_fits_a_step_summary(audits):
    audit = hostile(audits["leak"])
    many = replace(audit, findings=audit.findings * 500, attacks=audit.attacks * 500)
    text = to_markdown(replace(many, caveats=audit.caveats * 500))
    assert len(text.encode()) < 1 << 20
    assert "900 more are in audit.json" in text


def test_markdown_says_verdict_gate_and_what_was_accepted(audits):
    text = to_markdown(gated(audits["leak"], fail_on="high", accepted=ACCEPTED))
    words = "".join(t.content for t in rendered(text) if t.type == "text")
    for told in ("leak, critical", "GA201", "GA101 is suppressed until 2026-12-31", "public"):
        assert told in words
    assert "its suppression expired on 2026-01-01" in words
