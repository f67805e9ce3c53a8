"""Single files: whole or not there, whatever happens on the way."""

import errno
import os
import threading
from pathlib import Path

import pytest

from auditor.errors import UsageError
from auditor.report import files
from auditor.report.files import STDOUT, check_files, write_text

OUT = Path("report")


def inside(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written(tmp_path):
    write_text(tmp_path / "a.json", "å\n")
    assert (tmp_path / "a.json").read_bytes() == "å\n".encode()
    write_text(tmp_path / "a.json", "b")
    assert (tmp_path / "a.json").read_bytes() == b"b"
    assert inside(tmp_path) == ["a.json"]


def test_who_may_read_it(tmp_path):
    old = os.umask(0o022)
    try:
        write_text(tmp_path / "open", "a")
        write_text(tmp_path / "secret", "a", private=True)
    finally:
        os.umask(old)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("open", "secret")]
    assert modes == [0o644, 0o600]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch, error):
    (tmp_path / "a.json").write_text("old")

    def fails(*_):
        raise error

    monkeypatch.setattr(Path, "replace", fails)
    told = UsageError if isinstance(error, OSError) else KeyboardInterrupt
    for name in ("a.json", "b.json"):
        with pytest.raises(told):
            write_text(tmp_path / name, "new")
    assert inside(tmp_path) == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_device_is_named(tmp_path):
    with pytest.raises(UsageError, match="No space left"):
        write_text(Path("/dev/full"), "a" * 10)


def test_a_full_disk_in_the_middle(tmp_path, monkeypatch):
    """Half of the bytes go through, then the system refuses."""

    class Half:
        def __init__(self, handle, _):
            self.handle = handle

        def __enter__(self):
            return self

        def __exit__(self, *_):
            os.close(self.handle)

        def write(self, content):
            os.write(self.handle, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fdopen", Half)
    with pytest.raises(UsageError, match="No space left"):
        write_text(tmp_path / "a.json", "0123456789")
    assert inside(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_written_as_it_is(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    write_text(tmp_path / "pipe", "text")
    reader.join(10)
    assert read == ["text"]
    assert inside(tmp_path) == ["pipe"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_a_shell_substitutes_is_written_as_it_is(tmp_path):
    """`--json >(program)` names a pipe by the number of its open end."""
    reader, writer = os.pipe()
    place = Path(f"/dev/fd/{writer}")
    check_files({"--json": place}, OUT, [])
    write_text(place, "text")
    os.close(writer)
    assert os.read(reader, 10) == b"text"
    os.close(reader)


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_a_long_name(tmp_path):
    write_text(tmp_path / ("n" * 250), "a")
    assert inside(tmp_path) == ["n" * 250]


def test_places_that_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt").write_text("m")
    (tmp_path / "folder").mkdir()
    for path, word in (
        (Path("model.pt"), "which is read"),
        (Path("folder/../model.pt"), "which is read"),
        (Path("folder"), "a directory"),
        (Path("nowhere/a.json"), "not there"),
        (Path("report/a.json"), "own directory"),
        (Path("report"), "own directory"),
    ):
        with pytest.raises(UsageError, match=word):
            check_files({"--json": path}, OUT, [Path("model.pt")])
    for twice in (Path("a"), STDOUT):
        with pytest.raises(UsageError, match="twice"):
            check_files({"--json": twice, "--sarif": twice}, OUT, [])
    check_files({"--json": STDOUT, "--sarif": Path("a.sarif")}, OUT, [Path("model.pt")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match="no right"):
        check_files({"--json": tmp_path / "a"}, OUT, [])
    tmp_path.chmod(0o700)
