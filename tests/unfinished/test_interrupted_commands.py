"""Ctrl-C, SIGTERM and the same command again, as a user meets them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import PLAIN, contents, gradaudit, write_case

from auditor.attacks import IDLG
from auditor.report.audit_json import from_json

ROOT = Path(__file__).parents[2]
SCAN = ("scan", "model.pt", "grads.safetensors", "--attacks", "labels,images.layers,images.idlg")
KEPT = Path(".gradaudit-report-unfinished")


def interrupted(path, monkeypatch, *flags, env=(), error=KeyboardInterrupt):
    """The run of a user who presses Ctrl-C while iDLG runs."""

    def stops(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(IDLG, "run", stops)
        return gradaudit(*SCAN, *flags, cwd=path, env=dict(env))


def audit_in(folder):
    document = json.loads((folder / "gradaudit-report" / "audit.json").read_text("utf-8"))
    del document["provenance"]["seconds"], document["provenance"]["started"]
    for attack in document["attacks"]:
        del attack["seconds"]
    return document


def test_the_same_command_goes_on_and_ends_as_if_nothing_had_been(tmp_path, monkeypatch):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_case(tmp_path / name)
    run = interrupted(tmp_path / "one", monkeypatch)
    assert (run.code, run.out) == (130, "")
    assert run.err.splitlines()[-1] == (
        f"Interrupted. 1 attack kept in {KEPT}; the same command goes on from there."
    )
    assert not (tmp_path / "one" / "gradaudit-report").exists()
    again = gradaudit(*SCAN, cwd=tmp_path / "one")
    whole = gradaudit(*SCAN, cwd=tmp_path / "other")
    assert again.code == whole.code == 0
    assert "1 attack taken from the interrupted audit of 20" in again.err.splitlines()[0]
    assert "taken from" not in whole.err
    assert audit_in(tmp_path / "one") == audit_in(tmp_path / "other")
    assert not (tmp_path / "one" / KEPT).exists()


def test_other_settings_begin_anew(tmp_path, monkeypatch):
    write_case(tmp_path)
    interrupted(tmp_path, monkeypatch)
    run = gradaudit(*SCAN, "--seed", "1", cwd=tmp_path)
    assert run.code == 0
    assert "taken from" not in run.err
    assert not (tmp_path / KEPT).exists()  # this audit is done, and nothing of the old one is left


def test_a_crash_loses_no_finished_attack(tmp_path, monkeypatch):
    write_case(tmp_path)
    assert interrupted(tmp_path, monkeypatch, error=RuntimeError("why")).code == 5
    assert "1 attack taken from" in gradaudit(*SCAN, cwd=tmp_path).err


def test_who_wants_to_hear_nothing_is_told_of_what_lies_on_the_disk(tmp_path, monkeypatch):
    write_case(tmp_path)
    assert f"1 attack kept in {KEPT}" in interrupted(tmp_path, monkeypatch, "-q").err
    assert interrupted(tmp_path, monkeypatch, "-q", "--evidence", "none").err == ""


@pytest.mark.parametrize(
    ("flags", "env"),
    [
        (("--evidence", "none"), {}),
        ((), {"CI": "1"}),
        (("--evidence", "separate"), {"CI": "1"}),
        (("--evidence", "embed"), {"CI": "1"}),
    ],
)
def test_nothing_recovered_touches_the_disk_where_it_must_not(tmp_path, monkeypatch, flags, env):
    write_case(tmp_path)
    before = contents(tmp_path)
    run = interrupted(tmp_path, monkeypatch, *flags, env=env)
    assert run.code == 130
    assert run.err.splitlines()[-1] == "Interrupted. The same command begins anew."
    assert contents(tmp_path) == before
    assert not (tmp_path / KEPT).exists()


def test_a_damaged_part_is_said_and_made_anew(tmp_path, monkeypatch):
    write_case(tmp_path)
    interrupted(tmp_path, monkeypatch)
    (part,) = (tmp_path / KEPT).iterdir()
    part.write_bytes(part.read_bytes()[:-8])
    run = gradaudit(*SCAN, cwd=tmp_path)
    assert run.code == 0
    assert run.err.splitlines()[0] == f"1 file of {KEPT} damaged: not used."
    audit = from_json((tmp_path / "gradaudit-report" / "audit.json").read_text("utf-8"))
    assert audit.findings[0].certainty == "proved"


def test_a_folder_that_others_can_read_is_not_used(tmp_path, monkeypatch):
    write_case(tmp_path)
    interrupted(tmp_path, monkeypatch)
    (tmp_path / KEPT).chmod(0o755)
    run = gradaudit(*SCAN, cwd=tmp_path)
    assert run.code == 0
    assert run.err.splitlines()[0].startswith(f"{KEPT} is not used: others than you")
    assert (tmp_path / KEPT).exists()


def test_a_disk_that_is_full_at_the_end_loses_nothing(tmp_path, monkeypatch):
    write_case(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("auditor.outputs.to_html", full)
        assert gradaudit(*SCAN, cwd=tmp_path).code == 2
    assert "2 attacks taken from" in gradaudit(*SCAN, cwd=tmp_path).err


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_from_outside_counts_as_ctrl_c(tmp_path, number):
    """In a process of its own, so that the key is the same in another one as well."""
    write_case(tmp_path)
    slow = (
        "import sys, time; sys.path.insert(0, sys.argv.pop(1))\n"
        "from auditor.attacks import IDLG\n"
        "IDLG.run = lambda *_, **__: (print('now', flush=True), time.sleep(60))\n"
        "from auditor.cli import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", slow, str(ROOT), *SCAN],
        cwd=tmp_path, env=PLAIN | {"PYTHONHASHSEED": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "now\n"
        process.send_signal(number)
        begun = time.monotonic()
        _, err = process.communicate(timeout=60)
    assert time.monotonic() - begun < 30
    assert process.returncode == 130
    assert f"1 attack kept in {KEPT}" in err.splitlines()[-1]
    assert "1 attack taken from" in gradaudit(*SCAN, cwd=tmp_path).err
