"""The steps of action.yml as a runner would run them, but for what is downloaded."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from runs import PLAIN, write_case

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "action.yml").read_text(encoding="utf-8")
ACTION = yaml.safe_load(TEXT)
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}
EXPRESSION = re.compile(r"\$\{\{ (.+?) \}\}")
# A stand-in for Python: makes an "environment" whose gradaudit is this checkout's.
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$LOG"
mkdir -p "$3/bin"
printf '#!/usr/bin/env bash\\n%s\\n' 'printf "%s\\n" "$@" >> "$LOG"' > "$3/bin/python"
printf '#!/usr/bin/env bash\\n%s\\n' 'exec {python} -m auditor "$@"' > "$3/bin/gradaudit"
chmod +x "$3"/bin/*
"""


class Runner:
    """As much of a runner as the action uses, in a folder with a blank in its name."""

    def __init__(self, folder, **inputs):
        self.work, self.temp = folder / "the work", folder / "the temp"
        self.work.mkdir()
        self.temp.mkdir()
        self.log = self.temp / "pip"
        python = self.temp / "python"
        python.write_text(PYTHON.format(python=sys.executable))
        python.chmod(0o755)
        given = {name: str(entry.get("default", "")) for name, entry in ACTION["inputs"].items()}
        given |= {name.replace("_", "-"): value for name, value in inputs.items()}
        self.known = {f"inputs.{name}": value for name, value in given.items()}
        self.known |= {"inputs.python": str(python), "runner.temp": str(self.temp)}
        self.known |= {"github.action_path": str(ROOT), "steps.audit.outputs.exit-code": ""}

    def value(self, text):
        return EXPRESSION.sub(lambda found: self.known[found[1]], text)

    def step(self, name):
        step = STEPS[name]
        files = {n: str(self.temp / n) for n in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        env = {key: self.value(text) for key, text in step["env"].items()}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            cwd=self.work,
            env=PLAIN | {"CI": "true", "PYTHONPATH": str(ROOT), "LOG": str(self.log)} | files | env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        if name == "Audit":
            told = (self.temp / "GITHUB_OUTPUT").read_text()
            self.known["steps.audit.outputs.exit-code"] = told.strip().removeprefix("exit-code=")
        return done

    def run(self):
        """The exit code of the action and its step summary; what is always run, is."""
        assert self.step("Install gradaudit").returncode == 0
        audit = self.step("Audit")
        assert self.step("Step summary").returncode == 0
        self.told = audit.stderr
        return audit.returncode, (self.temp / "GITHUB_STEP_SUMMARY").read_text()


@pytest.fixture
def runner(tmp_path):
    def make(**inputs):
        made = Runner(tmp_path, **inputs)
        write_case(made.work)
        return made

    return make


FILES = {"model": "model.pt", "grads": "grads.safetensors"}


def test_a_leak_fails_the_build_and_is_in_the_summary(runner):
    there = runner(**FILES)
    code, summary = there.run()
    assert code == 1, there.told
    assert "critical" in summary.lower()
    assert (there.work / "gradaudit-report" / "report.html").is_file()
    assert not (there.work / "gradaudit-report" / "evidence").exists()
    assert (there.temp / "GITHUB_OUTPUT").read_text() == "exit-code=1\n"


def test_it_installs_the_checkout_of_the_action(runner):
    there = runner(**FILES)
    there.step("Install gradaudit")
    venv = f"{there.temp}/gradaudit-venv"
    pip = ["-m", "pip", "install", "--quiet", str(ROOT)]
    assert there.log.read_text().splitlines() == ["-m", "venv", venv, *pip]


def test_arguments_come_one_a_line_and_without_a_gate_a_leak_passes(runner):
    there = runner(**FILES, fail_on="", arguments="--attacks\nlabels\n\n--seed=3\n", out="a report")
    code, summary = there.run()
    assert code == 0, there.told
    assert "medium" in summary.lower()
    written = (there.work / "a report" / "audit.json").read_text()
    assert '"seed": 3' in written


@pytest.mark.parametrize(
    "hostile",
    ['$(touch pwned) "; touch pwned; "', "--help"],
)
def test_an_input_is_a_name_and_no_command(runner, hostile):
    there = runner(model=hostile, grads="grads.safetensors")
    code, summary = there.run()
    assert code == 3, there.told
    assert "exit code 3" in summary
    assert not (there.work / "pwned").exists()


def test_expressions_stay_out_of_scripts():
    for step in STEPS.values():
        assert not EXPRESSION.search(step.get("run", ""))
    used = {name for name in EXPRESSION.findall(TEXT) if name.startswith("inputs.")}
    assert {f"inputs.{name}" for name in ACTION["inputs"]} <= used | {"inputs.artifact"}


def test_what_others_wrote_is_pinned_to_a_commit():
    used = [step["uses"] for step in STEPS.values() if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name) for name in used)


def test_the_report_is_kept_also_after_a_failure():
    for name in ("Step summary", "Keep the report"):
        assert "always()" in STEPS[name]["if"]
    assert STEPS["Keep the report"]["with"]["path"] == "${{ inputs.out }}"
