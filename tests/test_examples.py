"""Every example runs, and ends with the verdict that its first line promises."""

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from runs import PLAIN

from auditor.hooks import FRAMEWORKS, snippet

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
PROMISE = re.compile(r"# Expected verdict: (?P<verdict>[a-z ,]+)(?:; exit code (?P<code>\d+))?")
each_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)


def promise_of(path):
    found = PROMISE.fullmatch(path.read_text(encoding="utf-8").splitlines()[0])
    assert found, f"the first line of {path.name} promises no verdict"
    return found["verdict"], int(found["code"] or 0)


def missing_for(path):
    """The libraries that an example imports and that are not here."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {getattr(node, "module", None) or node.names[0].name for node in nodes}
    return sorted(name for name in {n.partition(".")[0] for n in names} if find_spec(name) is None)


def code_of(source):
    """Everything from the first function or class on."""
    return source[re.search(r"^(def|class) ", source, re.MULTILINE).start() :].strip()


def test_each_kind_of_verdict_has_an_example():
    verdicts = {promise_of(path)[0] for path in EXAMPLES}
    assert {"leak, critical", "inconclusive"} <= verdicts
    assert {path.suffix for path in FOLDER.iterdir() if path.is_file()} == {".py"}


@each_example
def test_an_example_is_short(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


@each_example
def test_an_example_keeps_its_promise(path, tmp_path):
    missing = missing_for(path)
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: make test-frameworks")
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


@pytest.mark.parametrize("framework", FRAMEWORKS[1:])
def test_each_framework_has_an_example_with_the_lines_that_are_printed(framework):
    """The plain loop has `capture_and_scan.py`."""
    example = (FOLDER / f"hook_{framework}.py").read_text(encoding="utf-8")
    assert code_of(snippet(framework)) in example
    assert f"`gradaudit hook {framework}`" in example
