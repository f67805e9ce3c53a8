"""The formats of an audit, and the one function that picks its writer."""

from __future__ import annotations

from typing import Literal, get_args

from auditor.errors import UsageError
from auditor.records import Audit
from auditor.report.audit_json import to_json
from auditor.report.html import to_html
from auditor.report.junit import to_junit
from auditor.report.markdown import to_markdown
from auditor.report.sarif import to_sarif

Format = Literal["html", "json", "sarif", "junit", "markdown"]
FORMATS: tuple[Format, ...] = get_args(Format)


def format_of(name: str) -> Format:
    """The format of this name. Raises UsageError."""
    for form in FORMATS:
        if form == name:
            return form
    raise UsageError(
        expected=f"a format: {', '.join(FORMATS)}", found=repr(name), todo="Mend --format."
    )


def to_text(audit: Audit, form: Format) -> str:
    """The audit in one format. Same audit, same text."""
    match form:
        case "html":
            return to_html(audit)
        case "json":
            return to_json(audit)
        case "sarif":
            return to_sarif(audit)
        case "junit":
            return to_junit(audit)
        case "markdown":
            return to_markdown(audit)
