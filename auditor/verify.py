"""Whether a report shows what its data say, and whether it is about the files at hand. No torch.

A report carries its audit.json as inert data. The page is rendered again from it and compared
byte for byte. Who changes data and page together is found out only beside the audit.json itself.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from pathlib import Path

from auditor import __version__
from auditor.errors import InputError
from auditor.records import Audit, FileRef
from auditor.report.audit_json import from_json, read_audit, to_json
from auditor.report.html import DATA_END, DATA_START, to_html
from auditor.report.words import printable

_MOST = 1 << 28  # bytes of data: a hostile report must not fill the memory


def verified(
    report: Path, *, audit: Path | None = None, model: Path | None = None, grads: Path | None = None
) -> list[str]:
    """What was found to hold, one line each. Raises InputError for the first thing that does not.

    `model`: a file, or the folder of a language model.
    """
    page = _read(report)
    given = None if audit is None else to_json(read_audit(audit)[0])
    text = _data_of(page) or _required(given)
    found = from_json(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    _check_page(page, found, text)
    lines = [f"report: shows what its data say (audit.json, SHA-256 {digest})"]
    if given is None:
        lines.append("audit.json: not given, so data and page may have been changed together")
    elif given != text:
        raise _refused("the data of the report in --audit", "another audit")
    else:
        lines.append("audit.json: is the data of the report")
    for what, path, ref in (("model", model, found.model.file), ("dump", grads, found.dump.file)):
        if path is not None:
            _check_file(what, path, ref)
            lines.append(f"{what}: {printable(ref.name)} has the SHA-256 of the report")
        else:
            lines.append(f"{what}: not given, so not compared")
    return lines


def _read(report: Path) -> str:
    try:
        return report.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            expected="a report.html",
            found=f"{report.name!r}, which cannot be read ({type(error).__name__})",
            todo="Name the report that gradaudit wrote.",
        ) from error


def _required(given: str | None) -> str:
    if given is None:
        raise InputError(
            expected="--audit audit.json beside a report that is too long to carry its data",
            found="the report alone",
            todo="Give the audit.json that was written with it.",
        )
    return given


def _data_of(page: str) -> str:
    """The audit.json inside the page; empty where the page does not carry it."""
    if page.count(DATA_START) != 1 or DATA_END not in page.partition(DATA_START)[2]:
        raise _refused("a report with its data inside", "none, or more than one")
    block = page.partition(DATA_START)[2].partition(DATA_END)[0]
    if not block:
        return ""
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(base64.b64decode(block, validate=True), _MOST)
        if not inflate.eof:
            raise ValueError("too long, or cut off")
        return text.decode("utf-8")
    except (ValueError, zlib.error) as error:  # base64 and UTF-8 errors are ValueErrors
        raise _refused(
            "data that can be read inside the report", f"damaged ones ({error})"
        ) from error


def _check_page(page: str, audit: Audit, text: str) -> None:
    if to_json(audit) != text:
        raise _refused("data in the form that gradaudit writes", "another form")
    version = audit.provenance.version
    if version != __version__:
        raise InputError(
            expected=f"a report of gradaudit {__version__}, which can be rendered again",
            found=f"one of gradaudit {version[:40]!r}",
            todo="Verify it with that version.",
        )
    if _bare(page) != _bare(to_html(audit)):
        raise _refused("the page that the report's data make", "another page")


def _bare(page: str) -> str:
    """The page without its data: another build of zlib packs the same data differently."""
    before, _, rest = page.partition(DATA_START)
    return before + rest.partition(DATA_END)[2]


def _check_file(what: str, path: Path, ref: FileRef) -> None:
    if not ref.sha256:
        raise _refused(f"a report on a {what} file", "a report on an object in memory")
    found = _digest(path)
    if found != ref.sha256:
        raise InputError(
            expected=f"a {what} with SHA-256 {ref.sha256}",
            found=f"{path.name!r} with {found}",
            todo="The report is about another file.",
        )


def _digest(path: Path) -> str:
    if path.is_dir():
        from auditor.inputs.transformers_folder import folder_ref

        digest: str = folder_ref(path).sha256
        return digest
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(
            expected="a file that can be read",
            found=f"{path.name!r}: {error.strerror}",
            todo="Check the path.",
        ) from error


def _refused(expected: str, found: str) -> InputError:
    return InputError(
        expected=expected, found=found, todo="Do not rely on this report; render it again."
    )
