"""Every example runs, and ends with the verdict that its first line promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import PLAIN

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
PROMISE = re.compile(r"# Expected verdict: (?P<verdict>[a-z ,]+)(?:; exit code (?P<code>\d+))?")
each_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)


def promise_of(path):
    found = PROMISE.fullmatch(path.read_text(encoding="utf-8").splitlines()[0])
    assert found, f"the first line of {path.name} promises no verdict"
    return found["verdict"], int(found["code"] or 0)


def test_each_kind_of_verdict_has_an_example():
    verdicts = {promise_of(path)[0] for path in EXAMPLES}
    assert {"leak, critical", "inconclusive"} <= verdicts
    assert {path.suffix for path in FOLDER.iterdir() if path.is_file()} == {".py"}


@each_example
def test_an_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


@each_example
def test_an_example_keeps_its_promise(path, tmp_path):
    verdict, code = promise_of(path)
    done = subprocess.run(
        [sys.executable, path],
        cwd=tmp_path,
        env=PLAIN,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("Verdict: ")]
    assert told == [f"Verdict: {verdict}"]
    assert done.stderr == ""
