"""The commands on finished audits: render, verify, diff. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from auditor.errors import UsageError
from auditor.report.audit_json import read_audit
from auditor.report.files import STDOUT, check_files, write_text
from auditor.streams import put

_AuditFile = Annotated[Path, typer.Argument(metavar="AUDIT", help="A finished audit.json.")]


def render(
    audit: _AuditFile,
    format_: Annotated[
        str,
        typer.Option("--format", metavar="FORMAT", help="html, json, sarif, junit or markdown."),
    ] = "html",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The file to write; html needs one, the rest go to stdout."
        ),
    ] = None,
) -> None:
    """Make report.html, or another format, from a finished audit.json."""
    from auditor.report.formats import format_of, to_text

    form = format_of(format_)
    if out is None and form == "html":
        raise UsageError(
            expected="--out FILE for a page", found="none", todo="Say where the page goes."
        )
    found, _ = read_audit(audit)
    target = STDOUT if out is None else out
    if target == STDOUT:
        put(to_text(found, form))
        return
    check_files({"--out": target}, Path("no such directory"), [audit])
    write_text(
        target, to_text(found, form), private=found.evidence == "embed" and form in ("html", "json")
    )


def verify(
    report: Annotated[Path, typer.Argument(metavar="REPORT", help="A report.html.")],
    audit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The audit.json that it should hold.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The model that it should be about.")
    ] = None,
    grads: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The dump that it should be about.")
    ] = None,
) -> None:
    """Say whether a report shows what its own data say."""
    from auditor.verify import verified

    for line in verified(report, audit=audit, model=model, grads=grads):
        put(line + "\n")


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="An earlier audit.json.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="A later one.")],
) -> None:
    """Say what changed from one audit.json to another."""
    from auditor.diff import changes

    for line in changes(read_audit(old)[0], read_audit(new)[0]):
        put(line + "\n")
