"""What needs no tensor starts without torch: a help text must not take seconds."""

import re
import subprocess
import sys

import pytest
from runs import PLAIN, gradaudit, write_case

# Runs the command line as `gradaudit` would, then names the heavy modules that are loaded.
PROGRAM = """
import sys
from auditor.cli import main
sys.argv = ["gradaudit", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {"torch", "torch._dynamo", "torchvision", "numpy", "scipy", "PIL", "jinja2"}
    heavy &= set(sys.modules)
    sys.stderr.write(f"\\nheavy: {sorted(heavy)}\\n")
"""


def start(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        cwd=cwd,
        env=PLAIN,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audited")
    write_case(folder)
    scan = ("scan", "model.pt", "grads.safetensors", "--attacks", "labels")
    assert gradaudit(*scan, cwd=folder).code == 0
    return folder


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--help",), 0),
        (("--version",), 0),
        ((), 2),
        (("scan", "--help"), 0),
        (("simulate", "--help"), 0),
        (("explain", "GA101"), 0),
        (("explain", "GA999"), 2),
        (("hook", "ddp"), 0),
        (("scan", "model.pt", "grads.safetensors", "--fail-on", "purple"), 2),
        (("scan", "model.pt", "grads.safetensors"), 2),  # an older audit is in the way
        (("render", "gradaudit-report/audit.json", "--out", "page.html"), 0),
        (("render", "gradaudit-report/audit.json", "--format", "sarif"), 0),
        (("verify", "gradaudit-report/report.html", "--model", "model.pt"), 0),
        (("diff", "gradaudit-report/audit.json", "gradaudit-report/audit.json"), 0),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, tuple) else "",
)
def test_starts_without_torch(audited, arguments, code):
    done = start(*arguments, cwd=audited)
    assert done.returncode == code, done.stderr
    writes = ["jinja2"] if arguments[0:1] in (("render",), ("verify",)) else []
    assert done.stderr.endswith(f"heavy: {writes}\n")


def test_the_check_can_fail_and_an_audit_loads_no_compiler(audited):
    scan = ("scan", "model.pt", "grads.safetensors", "--attacks", "labels", "--out", "again")
    done = start(*scan, cwd=audited)
    assert done.returncode == 0, done.stderr
    assert "'torch'" in done.stderr
    assert "torch._dynamo" not in done.stderr


def test_importing_the_package_is_light():
    code = "import sys, auditor; assert 'torch' not in sys.modules; print(auditor.__all__)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    ("line", "answer"), [("gradaudit sca", "scan"), ("gradaudit scan --fail", "--fail-on")]
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_works(shell, line, answer):
    """Completion leaves by SystemExit, which must not be taken for a crash."""
    env = PLAIN | {
        "_GRADAUDIT_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert answer in re.split(r"[\s\":()]+", done.stdout)
    assert "simulate" not in done.stdout
    assert done.stderr.endswith("heavy: []\n")
