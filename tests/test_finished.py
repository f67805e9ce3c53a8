"""render, verify and diff: commands on finished audits."""

import base64
import json
import os
import re
import subprocess
import sys
import zlib

import pytest
from runs import PLAIN, contents, gradaudit, write_case

import auditor
from auditor.diff import changes
from auditor.report.audit_json import from_json
from auditor.report.formats import FORMATS, to_text

SCAN = ("scan", "model.pt", "grads.safetensors", "--attacks", "labels,images.idlg")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    write_case(folder)
    assert gradaudit(*SCAN, "--evidence", "none", cwd=folder).code == 0
    for name in ("audit.json", "report.html"):
        (folder / name).write_bytes((folder / "gradaudit-report" / name).read_bytes())
    return folder


@pytest.fixture
def case(done, tmp_path):
    for path in done.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def verify(folder, *flags):
    return gradaudit("verify", "report.html", *flags, cwd=folder)


# --------------------------------------------------------------------------- render


@pytest.mark.parametrize("form", FORMATS)
def test_render_writes_each_format(case, form):
    expected = to_text(from_json((case / "audit.json").read_text("utf-8")), form)
    run = gradaudit("render", "audit.json", "--format", form, "--out", "page", cwd=case)
    assert (run.code, run.out, run.err) == (0, "", "")
    assert (case / "page").read_text("utf-8") == expected
    if form != "html":
        run = gradaudit("render", "audit.json", "--format", form, cwd=case)
        assert (run.code, run.out, run.err) == (0, expected, "")


def test_what_scan_writes_is_what_render_writes(case):
    files = {form: f"x.{form}" for form in FORMATS if form != "html"}
    flags = [part for form, name in files.items() for part in (f"--{form}", name)]
    run = gradaudit(*SCAN, *flags, cwd=case)
    assert (run.code, run.out) == (0, "gradaudit-report/report.html\n")
    audit = (case / "gradaudit-report" / "audit.json").read_text("utf-8")
    for form, name in files.items():
        assert (case / name).read_text("utf-8") == to_text(from_json(audit), form)


@pytest.mark.skipif(os.name == "nt", reason="such names are not possible there")
def test_hostile_file_names_are_shown_and_not_obeyed(case):
    name = "<img src=x onerror=alert(1)>\x1b[31m|`[a](b)\u202e'\"&.pt"
    (case / "model.pt").rename(case / name)
    flags = [part for form in FORMATS[1:] for part in (f"--{form}", f"x.{form}")]
    run = gradaudit("scan", name, *SCAN[2:], *flags, cwd=case)
    assert run.code == 0, run.err
    assert "\x1b" not in run.err
    page = (case / "gradaudit-report" / "report.html").read_text("utf-8")
    for text in (page, *((case / f"x.{form}").read_text("utf-8") for form in FORMATS[1:])):
        assert "\x1b" not in text
        assert "\u202e" not in text
    for text in (
        page,
        (case / "x.junit").read_text("utf-8"),
        (case / "x.markdown").read_text("utf-8"),
    ):
        assert "<img src=x" not in text
    run = gradaudit("verify", "gradaudit-report/report.html", "--model", name, cwd=case)
    assert run.code == 0, run.err
    assert "\x1b" not in run.out


def test_stdout_holds_the_format_and_nothing_else(case):
    run = gradaudit(*SCAN, "--sarif", "-", cwd=case)
    assert run.code == 0
    assert json.loads(run.out)["version"] == "2.1.0"
    assert "gradaudit-report/report.html" in run.err


def test_a_reader_of_stdout_that_leaves_changes_nothing(case):
    reader, writer = os.pipe()
    os.close(reader)
    line = [sys.executable, "-m", "auditor", *SCAN, "--attacks", "labels", "--json", "-", "-q"]
    process = subprocess.Popen(line, cwd=case, env=PLAIN, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    assert (case / "gradaudit-report" / "report.html").is_file()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("arguments", [("--json", "-"), ()])
def test_a_full_disk_is_no_pass_and_no_leak(case, arguments):
    line = [sys.executable, "-m", "auditor", *SCAN[:3], "--attacks", "labels", *arguments, "-q"]
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [*line, "--fail-on", "medium"],
            check=False,
            cwd=case,
            env=PLAIN,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert run.returncode == 2, run.stderr
    assert "No space left" in run.stderr
    assert "internal error" not in run.stderr


@pytest.mark.parametrize("form", FORMATS[1:])
def test_ctrl_c_while_a_format_is_made_leaves_no_report(case, monkeypatch, form):
    """Finished attacks are kept beside it: the same command goes on from them."""

    def stops(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"auditor.report.formats.to_{form}", stops)
    before = contents(case)
    flags = [part for form in FORMATS[1:] for part in (f"--{form}", f"x.{form}")]
    assert gradaudit(*SCAN, *flags, cwd=case).code == 130
    kept = ".gradaudit-report-unfinished"
    assert {path: held for path, held in contents(case).items() if kept not in str(path)} == before


def test_render_of_a_newer_or_damaged_audit_is_refused(case):
    text = (case / "audit.json").read_text("utf-8")
    for changed, word in (
        (
            text.replace('"schema_version": "1.0"', '"schema_version": "9.0"'),
            "version of gradaudit that wrote it",
        ),
        (text[:-200], "no JSON"),
        (text.replace('"score": 10.0', '"score": 11.0'), "score"),
        ("\0" * 100, "no JSON"),
    ):
        (case / "bad.json").write_text(changed, encoding="utf-8")
        for command in (
            ("render", "bad.json", "--out", "page"),
            ("diff", "audit.json", "bad.json"),
        ):
            run = gradaudit(*command, cwd=case)
            assert run.code == 3
            assert word in run.err
        assert not (case / "page").exists()


# --------------------------------------------------------------------------- verify


def test_verify_says_what_holds(case):
    run = verify(case)
    assert run.code == 0, run.err
    assert "shows what its data say" in run.out
    assert "may have been changed together" in run.out
    run = verify(
        case, "--audit", "audit.json", "--model", "model.pt", "--grads", "grads.safetensors"
    )
    assert run.code == 0, run.err
    assert run.out.count("has the SHA-256 of the report") == 2
    assert "may have been" not in run.out


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Leak, critical", "Leak, low"),
        ("<h1>", "<h1 >"),
        ("10.0 of 10", "0.0 of 10"),
        ("</body>", "<p>All is well.</p></body>"),
        ('<template id="audit-data">', '<template id="audit-date">'),
    ],
)
def test_a_changed_page_is_refused(case, old, new):
    page = (case / "report.html").read_text("utf-8")
    assert old in page
    (case / "report.html").write_text(page.replace(old, new, 1), encoding="utf-8")
    run = verify(case)
    assert (run.code, run.out) == (3, "")
    assert "Do not rely on this report" in run.err


def packed(text):
    return base64.b64encode(zlib.compress(text)).decode()


@pytest.mark.parametrize(
    "block",
    ["", "!!!", "AAAA", packed(b"\xff"), packed(b"{}"), packed(b"[" * 100_000), packed(b"")[:-8]],
    ids=["none", "no base64", "no zlib", "no text", "no audit", "deep", "cut"],
)
def test_damaged_data_are_refused(case, block):
    page = (case / "report.html").read_text("utf-8")
    page, count = re.subn(r'(<template id="audit-data">)[^<]*', rf"\g<1>{block}", page)
    assert count == 1
    (case / "report.html").write_text(page, encoding="utf-8")
    assert verify(case).code == 3


def test_a_bomb_is_refused(case, monkeypatch):
    monkeypatch.setattr("auditor.verify._MOST", 1 << 16)
    page = (case / "report.html").read_text("utf-8")
    page = re.sub(r'(<template id="audit-data">)[^<]*', rf"\g<1>{packed(bytes(1 << 24))}", page)
    (case / "report.html").write_text(page, encoding="utf-8")
    run = verify(case)
    assert run.code == 3
    assert "too long" in run.err


def test_data_and_page_changed_together_are_found_beside_the_audit(case):
    """The same audit with another reason: a consistent forgery, that only the audit.json shows."""
    text = (case / "audit.json").read_text("utf-8")
    forged = from_json(text.replace("no --fail-on was given", "all is well"))
    (case / "report.html").write_text(to_text(forged, "html"), encoding="utf-8")
    assert verify(case).code == 0
    run = verify(case, "--audit", "audit.json")
    assert run.code == 3
    assert "another audit" in run.err


def test_other_files_are_refused(case):
    assert verify(case, "--model", "grads.safetensors").code == 3
    assert verify(case, "--grads", "model.pt").code == 3
    assert verify(case, "--grads", "nowhere").code == 3
    assert gradaudit("verify", "nowhere.html", cwd=case).code == 3
    assert gradaudit("verify", "model.pt", cwd=case).code == 3


def test_a_report_of_another_version_is_refused_with_a_word(case, monkeypatch):
    monkeypatch.setattr("auditor.verify.__version__", "99.0")
    run = verify(case)
    assert run.code == 3
    assert "99.0" in run.err
    assert auditor.__version__ in run.err


def test_a_report_too_long_for_its_data_needs_the_audit(case, monkeypatch):
    monkeypatch.setattr("auditor.report.html._MOST_DATA", 10)
    run = gradaudit("render", "audit.json", "--out", "report.html", cwd=case)
    assert run.code == 0, run.err
    assert "--audit" in verify(case).err
    assert verify(case, "--audit", "audit.json").code == 0


def test_the_zlib_of_another_machine_does_not_matter(case):
    page = (case / "report.html").read_text("utf-8")
    [block] = re.findall(r'<template id="audit-data">([^<]*)', page)
    again = base64.b64encode(zlib.compress(zlib.decompress(base64.b64decode(block)), 1)).decode()
    assert again != block
    (case / "report.html").write_text(page.replace(block, again), encoding="utf-8")
    assert verify(case).code == 0


# --------------------------------------------------------------------------- diff


def test_nothing_changed(case):
    run = gradaudit("diff", "audit.json", "audit.json", cwd=case)
    assert (run.code, run.out) == (0, "nothing changed\n")


def test_diff_says_what_changed(case):
    run = gradaudit(*SCAN[:3], "--attacks", "labels", "--fail-on", "high", cwd=case)
    assert run.code == 0
    run = gradaudit("diff", "audit.json", "gradaudit-report/audit.json", cwd=case)
    assert run.code == 0
    lines = run.out.splitlines()
    assert lines[0] == "verdict: leak, critical (10.0 of 10) -> leak, medium (6.0 of 10)"
    assert "gone: GA201 The training input was rebuilt from the gradient (10.0 critical)" in lines
    assert any(line.startswith("images.idlg: leak -> not selected") for line in lines)
    assert any(line.startswith("gate: no gate -> passed") for line in lines)


def test_diff_of_one_and_the_same_run_is_empty_but_for_time(case):
    assert gradaudit(*SCAN, cwd=case).code == 0
    folder = case / "gradaudit-report"
    old, new = (
        from_json(p.read_text("utf-8")) for p in (case / "audit.json", folder / "audit.json")
    )
    assert old != new
    assert changes(old, new) == ["nothing changed"]


def test_the_commands_write_nothing_else(case):
    before = contents(case)
    verify(case)
    gradaudit("diff", "audit.json", "audit.json", cwd=case)
    gradaudit("render", "audit.json", "--format", "junit", cwd=case)
    assert contents(case) == before
