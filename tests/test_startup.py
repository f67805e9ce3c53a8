"""What needs no tensor starts without torch: a help text must not take seconds."""

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
    heavy = {"torch", "torch._dynamo", "torchvision", "numpy", "scipy", "PIL"} & set(sys.modules)
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
        (("scan", "model.pt", "grads.safetensors", "--fail-on", "purple"), 2),
        (("scan", "model.pt", "grads.safetensors"), 2),  # an older audit is in the way
        (("render", "gradaudit-report/audit.json", "--out", "page.html"), 0),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, tuple) else "",
)
def test_starts_without_torch(audited, arguments, code):
    done = start(*arguments, cwd=audited)
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith("heavy: []\n")


def test_the_check_can_fail_and_an_audit_loads_no_compiler(audited):
    scan = ("scan", "model.pt", "grads.safetensors", "--attacks", "labels", "--out", "again")
    done = start(*scan, cwd=audited)
    assert done.returncode == 0, done.stderr
    assert "'torch'" in done.stderr
    assert "torch._dynamo" not in done.stderr


def test_importing_the_package_is_light():
    code = "import sys, auditor; assert 'torch' not in sys.modules; print(auditor.__all__)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_completion_works(tmp_path):
    """Completion leaves by SystemExit, which must not be taken for a crash."""
    env = PLAIN | {
        "_GRADAUDIT_COMPLETE": "complete_bash",
        "COMP_WORDS": "gradaudit sca",
        "COMP_CWORD": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["scan"]
