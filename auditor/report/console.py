"""The short summary for people, on stderr.

Foreign text enters as `Text`, never as rich markup, and after `printable`: a file named
`[red]` or one with a terminal escape in its name is shown and does nothing.
"""

from __future__ import annotations

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from auditor.records import Audit, Band, Caveat
from auditor.report.trust import trust_lines
from auditor.report.words import (
    gate_lines,
    gate_words,
    printable,
    score_words,
    takes_rows,
    verdict_word,
)

# Colour is never alone: the word stands beside it.
_STYLE: dict[Band, str] = {
    "none": "bold",
    "low": "bold blue",
    "medium": "bold yellow",
    "high": "bold red",
    "critical": "bold white on red",
}
_UNSURE = "bold magenta"


def print_audit(audit: Audit, console: Console) -> None:
    """Prints verdict, findings, what could not be looked at, caveats, assumptions and gate.

    Holds no recovered value: the records have none outside the exhibits, and those stay out.
    """
    console.print(_headline(audit), highlight=False)
    console.print(_clean(audit.verdict.sentence), highlight=False)
    _print_list(console, "Recognised", _recognised(audit))
    if audit.findings:
        console.print(_findings(audit), highlight=False)
    _print_list(
        console,
        "Trust",
        [_clean(line) for line in trust_lines(audit.trust, table=takes_rows(audit))],
    )
    _print_list(console, "Could not be looked at", _unseen(audit))
    _print_list(console, "Caveats", [_caveat(caveat) for caveat in audit.caveats])
    _print_list(console, "Assumed, nobody said so", _assumed(audit))
    console.print(Text.assemble(("Gate: ", "bold"), _clean(gate_words(audit))), highlight=False)
    for line in gate_lines(audit):
        console.print(Padding(_clean(line), (0, 0, 0, 2), expand=False), highlight=False)
    if audit.verdict.status != "leak":
        console.print("An attack that failed proves nothing.", highlight=False)


def _clean(text: str) -> Text:
    return Text(printable(text))


def _headline(audit: Audit) -> Text:
    verdict = audit.verdict
    style = _UNSURE if verdict.status == "inconclusive" else _STYLE[verdict.severity.band]
    names = f"{audit.model.file.name} + {audit.dump.file.name}"
    word = Text(f" {verdict_word(audit).upper()} ", style)
    return Text.assemble(word, f" {score_words(audit)}  ", _clean(names))


def _recognised(audit: Audit) -> list[Text]:
    shape = "x".join(str(side) for side in audit.model.input_shape) or "text"
    shape = f"{shape} columns" if takes_rows(audit) else shape
    model = f"model: {audit.model.architecture}, {audit.model.classes} classes, input {shape}"
    lines = [model, *(f"model: {note}" for note in audit.model.notes)]
    return [_clean(line) for line in [*lines, f"dump: {audit.dump.recognised}"]]


def _findings(audit: Audit) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("code", "what", "certainty"):
        table.add_column(title, justify="left", overflow="fold", no_wrap=title != "what")
    table.add_column("score", justify="left", no_wrap=True)
    for finding in audit.findings:
        severity = finding.severity
        score = Text(f"{severity.score:.1f} {severity.band}", _STYLE[severity.band])
        row = (finding.code, finding.title, finding.certainty)
        table.add_row(*(_clean(text) for text in row), score)
    return table


def _unseen(audit: Audit) -> list[Text]:
    """Reasons of the verdict, then attacks that they do not name; caveats come further below."""
    told = {caveat.message for caveat in audit.caveats}
    lines = [reason for reason in audit.verdict.reasons if reason not in told]
    for attack in audit.attacks:
        named = any(reason.startswith(f"{attack.name}:") for reason in lines)
        if attack.outcome in ("skipped", "failed") and not named:
            lines.append(f"{attack.name} {attack.outcome}: {attack.reason}")
    return [_clean(line) for line in lines]


def _caveat(caveat: Caveat) -> Text:
    line = Text.assemble(_clean(caveat.code), " ", _clean(caveat.message))
    return Text.assemble(line, (" (voids the verdict)", _UNSURE)) if caveat.voids else line


def _assumed(audit: Audit) -> list[Text]:
    facts = [fact for fact in audit.assumptions if fact.origin == "assumed"]
    return [_clean(f"{fact.what}: {fact.value}") for fact in facts]


def _print_list(console: Console, title: str, lines: list[Text]) -> None:
    if not lines:
        return
    console.print(Text(title, "bold"), highlight=False)
    for line in lines:
        console.print(Padding(line, (0, 0, 0, 2), expand=False), highlight=False)
