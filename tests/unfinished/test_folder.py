"""The folder of finished parts: who may read it, what is in it, what of it is used."""

import hashlib
import os

import pytest
import torch
from claims_of import KEY, everything, labels_claim, opened, row

from auditor.unfinished import Claim
from auditor.unfinished.parts import to_bytes
from auditor.unfinished.words import left_by, taken_from

FAILED = Claim("images.lm", 2.0, None, "out of memory")


def folder(path):
    return path / ".report-unfinished"


def modes(path):
    return {oct(entry.stat().st_mode & 0o777) for entry in path.iterdir()}


def plant(path, content):
    (path / f"{hashlib.sha256(content).hexdigest()}.safetensors").write_bytes(content)


def test_only_its_owner_reads_it(tmp_path):
    before = os.umask(0)
    try:
        opened(tmp_path).keep(everything())
        opened(tmp_path).keep(row())
    finally:
        os.umask(before)
    assert oct(folder(tmp_path).stat().st_mode & 0o777) == "0o700"
    assert modes(folder(tmp_path)) == {"0o600"}
    assert [entry.name for entry in tmp_path.iterdir()] == [".report-unfinished"]


def test_what_was_kept_is_there_again(tmp_path):
    first = opened(tmp_path)
    for part in (everything(), FAILED, row("one"), row("two")):
        first.keep(part)
    again = opened(tmp_path)
    assert set(again.claims) == {"images.all", "images.lm"}
    assert again.claims["images.lm"] == FAILED
    assert again.rows == {"one": row("one"), "two": row("two")}
    assert torch.equal(again.claims["images.all"].recovery.inputs, everything().recovery.inputs)
    assert again.damaged == 0
    assert taken_from(again)[0].startswith("2 attacks and 2 what-if rows taken from the interrupt")
    assert taken_from(opened(tmp_path / "elsewhere")) == []


def test_a_newer_part_of_the_same_name_counts(tmp_path):
    first = opened(tmp_path)
    first.keep(FAILED)
    (old,) = folder(tmp_path).iterdir()
    os.utime(old, (1, 1))
    first.keep(Claim("images.lm", 3.0, None, "a linear system could not be solved"))
    assert opened(tmp_path).claims["images.lm"].seconds == 3.0


def test_without_evidence_no_recovered_value_is_written_or_read(tmp_path):
    silent = opened(tmp_path, recovered=False)
    silent.keep(everything())
    assert not folder(tmp_path).exists()
    silent.keep(FAILED)
    silent.keep(row())
    assert set(opened(tmp_path).claims) == {"images.lm"}
    opened(tmp_path).keep(everything())
    assert set(opened(tmp_path, recovered=False).claims) == {"images.lm"}
    assert set(opened(tmp_path).claims) == {"images.lm", "images.all"}


def test_what_is_proved_of_labels_is_never_taken_from_a_file(tmp_path):
    opened(tmp_path).keep(labels_claim())
    assert not folder(tmp_path).exists()
    opened(tmp_path).keep(FAILED)
    plant(folder(tmp_path), to_bytes(labels_claim(), KEY))
    assert set(opened(tmp_path).claims) == {"images.lm"}


def test_parts_of_another_audit_are_not_used(tmp_path):
    opened(tmp_path).keep(everything())
    other = opened(tmp_path, "x" * 64)
    assert (other.claims, other.rows, other.damaged) == ({}, {}, 0)
    other.keep(row())
    assert set(opened(tmp_path).claims) == {"images.all"}  # and wait for theirs


def test_damage_is_said_and_ignored(tmp_path):
    first = opened(tmp_path)
    first.keep(everything())
    first.keep(row())
    for path in folder(tmp_path).iterdir():
        content = path.read_bytes()
        if b"what-if" not in content:
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # one bit of one pixel
    again = opened(tmp_path)
    assert again.claims == {}
    assert set(again.rows) == {"noise, sigma 1e-3"}
    assert taken_from(again)[0] == "1 file of .report-unfinished damaged: not used."


def test_a_file_that_is_whole_and_none_of_ours_is_ignored(tmp_path):
    opened(tmp_path).keep(FAILED)
    plant(folder(tmp_path), b"\x80\x04cos\nsystem\n")
    assert opened(tmp_path).damaged == 1


def looser(path):
    folder(path).chmod(0o750)


def linked(path):
    folder(path).rename(path / "elsewhere")
    folder(path).symlink_to(path / "elsewhere")


def replaced(path):
    for entry in folder(path).iterdir():
        entry.unlink()
    folder(path).rmdir()
    folder(path).write_text("a file")


@pytest.mark.parametrize("change", [looser, linked, replaced])
def test_a_folder_that_is_not_ours_alone_is_not_used(tmp_path, change):
    opened(tmp_path).keep(FAILED)
    change(tmp_path)
    again = opened(tmp_path)
    assert again.claims == {}
    again.keep(row())
    again.clear(rows=False)
    assert folder(tmp_path).exists()  # nor removed
    assert taken_from(again) == [
        ".report-unfinished is not used: others than you could write or read it."
    ]
    assert "others than you" in left_by(again)


def test_what_cannot_be_kept_ends_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    unfinished = opened(tmp_path)
    monkeypatch.setattr("auditor.unfinished.folder.write_aside", full)
    unfinished.keep(row())
    assert unfinished.rows == {}
    assert "No space left on device" in left_by(unfinished)
    assert "begins anew" in left_by(unfinished)


def test_a_folder_that_cannot_be_listed_ends_nothing(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    opened(tmp_path).keep(row())
    monkeypatch.setattr("pathlib.Path.glob", refused)
    assert taken_from(opened(tmp_path)) == [".report-unfinished is not used: Permission denied."]


def test_a_part_of_another_device_is_no_damage_to_this_audit(tmp_path):
    opened(tmp_path).keep(FAILED)
    content = to_bytes(everything(), "x" * 64).replace(b'\\"cpu\\"', b'\\"gpu\\"')
    plant(folder(tmp_path), content)
    assert opened(tmp_path).damaged == 0
    assert opened(tmp_path, "x" * 64).damaged == 1


def test_a_write_that_is_interrupted_leaves_no_part(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    opened(tmp_path).keep(row("one"))
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            opened(tmp_path).keep(row("two"))
    again = opened(tmp_path)
    assert (set(again.rows), again.damaged) == ({"one"}, 0)
    assert len(list(folder(tmp_path).iterdir())) == 1


def test_at_the_end_it_is_gone(tmp_path):
    unfinished = opened(tmp_path)
    unfinished.keep(everything())
    unfinished.clear(rows=False)
    assert list(tmp_path.iterdir()) == []
    opened(tmp_path).clear(rows=False)  # and nothing is no mistake


def test_rows_wait_for_more_time_and_claims_do_not(tmp_path):
    unfinished = opened(tmp_path)
    unfinished.keep(everything())
    unfinished.keep(row())
    unfinished.clear(rows=True)
    again = opened(tmp_path)
    assert (again.claims, set(again.rows)) == ({}, {"noise, sigma 1e-3"})


def test_what_is_left_is_said_with_how_to_go_on(tmp_path):
    unfinished = opened(tmp_path)
    assert left_by(unfinished) == "Interrupted. The same command begins anew."
    unfinished.keep(FAILED)
    unfinished.keep(row())
    assert left_by(unfinished) == (
        "Interrupted. 1 attack and 1 what-if row kept in .report-unfinished; "
        "the same command goes on from there."
    )
