"""The report as one HTML file: no script, no remote reference, styled under a hashed policy.

Nothing here is trusted: file names, parameter names and messages come from files that a
stranger may have made. Jinja escapes them all, `printable` spells out hidden characters, and
the content security policy in the page forbids whatever would get past both.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from dataclasses import dataclass

from jinja2 import Environment
from markupsafe import Markup

from auditor.records import AttackReport, Audit, Caveat, Curve, Exhibit, LinkReport, Measure
from auditor.report import charts, trust, what_if, words
from auditor.report.audit_json import to_json
from auditor.report.templates import environment
from auditor.report.what_if_chart import leakage_charts
from auditor.rules import Rule, rule

# What stands around the audit.json inside the page; `gradaudit verify` looks for it.
DATA_START = '<template id="audit-data">'
DATA_END = "</template>"

_MOST_DATA = 100_000  # characters; the page is to stay below 300 KB
_MOST_ROWS = 200  # of a table or a list; audit.json always holds everything
_STANDARDS = {
    "NISTAML.032": "NIST AI 100-2 E2025, data reconstruction",
    "AML.T0024.001": "MITRE ATLAS, invert AI model",
    "ML03:2023": "OWASP Machine Learning Security Top 10, model inversion",
}


@dataclass(frozen=True)
class _Frame:
    """One picture of a film strip."""

    source: Markup  # data: URI
    step: int


@dataclass(frozen=True)
class _Sample:
    """One exhibit with its pictures; the last one of the strip is the claim."""

    exhibit: Exhibit
    strip: tuple[_Frame, ...]
    claim: Markup | None
    truth: Markup | None
    error_bar: Markup | None


@dataclass(frozen=True)
class _Attack:
    """One attack with its charts and the tables that say the same."""

    report: AttackReport
    residuals: Markup  # empty: nothing to draw
    curves: tuple[Curve, ...]
    layers: Markup
    tensors: tuple[Measure, ...]
    links: tuple[LinkReport, ...]
    unsolved: LinkReport | None  # the first one: whatever stands below rests on it


@dataclass(frozen=True)
class _Standard:
    """One entry of a public catalogue, and the findings that fall under it."""

    reference: str
    name: str
    codes: tuple[str, ...]


def to_html(audit: Audit) -> str:
    """The whole report. Same audit, same text.

    Raises ValueError for an audit that `to_json` refuses: exhibits that may not be here, say,
    or that are no PNG.
    """
    data = to_json(audit)
    digest = hashlib.sha256(data.encode()).hexdigest()
    templates = environment()
    page = templates.get_template("report.html")
    return page.render(
        audit=audit,
        attacks=[_attack(report, i) for i, report in enumerate(audit.attacks)],
        caveats=[(caveat, _rule_of(caveat)) for caveat in audit.caveats],
        certainty=words.CERTAINTY,
        most=_MOST_ROWS,
        policy=_policy(templates),
        remedies=what_if.remedies_of(audit),
        samples=[_sample(exhibit) for exhibit in audit.exhibits],
        scale=charts.score_scale(audit.verdict.severity.score, ident="scale"),
        standards=_standards(audit),
        data=_packed(data),
        digest=digest,
        table=words.takes_rows(audit),
        trust=trust,
        what_if=what_if,
        leakages=leakage_charts(audit.trust.what_if),
        words=words,
    )


def _packed(data: str) -> Markup:
    """The audit.json as the content of a template element: never shown, never run, no markup.

    Nothing, where it would make the page large: then the audit.json itself has to stand beside it.
    """
    content = base64.b64encode(zlib.compress(data.encode(), 9)).decode()
    content = content if len(content) <= _MOST_DATA else ""
    return Markup(DATA_START) + Markup(content) + Markup(DATA_END)  # noqa: S704 - base64


def _policy(templates: Environment) -> str:
    """The content security policy with the hash of the one style sheet of the page."""
    style = templates.get_template("style.html").render()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _attack(report: AttackReport, index: int) -> _Attack:
    curves, layers, name = report.curves, report.layers, report.name
    return _Attack(
        report=report,
        residuals=charts.residual_chart(curves, ident=f"curve-{index}", name=name),
        curves=charts.drawable(curves)[: charts.MOST_CURVES],
        layers=charts.layer_chart(layers, ident=f"layers-{index}", name=name),
        tensors=layers[:_MOST_ROWS],
        links=report.links[:_MOST_ROWS],
        unsolved=next((link for link in report.links if not link.solved), None),
    )


def _rule_of(caveat: Caveat) -> Rule | None:
    try:
        return rule(caveat.code)
    except KeyError:  # an audit.json of a later version may know more codes
        return None


# --------------------------------------------------------------------------- pictures


def _sample(exhibit: Exhibit) -> _Sample:
    pairs = zip(exhibit.strip, exhibit.strip_steps, strict=True)
    strip = tuple(_Frame(_source(text), step) for text, step in pairs)
    return _Sample(
        exhibit=exhibit,
        strip=strip,
        claim=strip[-1].source if strip else None,
        truth=_source(exhibit.truth) if exhibit.truth is not None else None,
        error_bar=_source(exhibit.error_bar) if exhibit.error_bar is not None else None,
    )


def _source(picture: str) -> Markup:
    return Markup("data:image/png;base64,{}").format(picture)


# --------------------------------------------------------------------------- gathered


def _standards(audit: Audit) -> list[_Standard]:
    pairs = []
    for finding in audit.findings:
        try:
            pairs += [(reference, finding.code) for reference in rule(finding.code).references]
        except KeyError:
            continue
    found = what_if.gathered(pairs).items()
    return [_Standard(ref, _STANDARDS.get(ref.split()[0], ""), codes) for ref, codes in found]
