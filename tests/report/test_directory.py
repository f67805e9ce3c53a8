"""Where a report may go: never on top of anything that is not ours."""

import os
from pathlib import Path

import pytest

from auditor.errors import UsageError
from auditor.report.directory import OURS, check_target


def older_audit(folder):
    folder.mkdir()
    for name in OURS - {"evidence"}:
        (folder / name).write_text(name)
    (folder / "evidence").mkdir()
    (folder / "evidence" / "sample-000.png").write_bytes(b"")
    return folder


@pytest.mark.parametrize("overwrite", [False, True])
def test_new_and_empty_directories_are_taken(tmp_path, overwrite):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "new/and/deeper"):
        check_target(tmp_path / name, overwrite=overwrite)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty"]  # looking makes nothing


def test_an_older_audit_needs_the_word(tmp_path):
    out = older_audit(tmp_path / "report")
    with pytest.raises(UsageError, match="--overwrite"):
        check_target(out, overwrite=False)
    check_target(out, overwrite=True)


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "audit.json.bak", "Audit.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_file_is_named_and_refused(tmp_path, name, overwrite):
    out = older_audit(tmp_path / "report")
    (out / name).write_text("mine")
    with pytest.raises(UsageError, match="not ours to replace") as caught:
        check_target(out, overwrite=overwrite)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", ["file", "file/report", "file/a/b", "dangling"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_can_never_be_a_directory_is_refused(tmp_path, name, overwrite):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="--out"):
        check_target(tmp_path / name, overwrite=overwrite)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("name", ["", "report"])
def test_a_directory_without_the_right_to_write_is_refused(tmp_path, name):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="write"):
            check_target(tmp_path / name, overwrite=True)
    finally:
        tmp_path.chmod(0o700)


def test_relative_paths_are_looked_at_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_target(Path("report"), overwrite=False)
    check_target(Path(), overwrite=False)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UsageError, match="'mine'"):
        check_target(Path(), overwrite=True)
