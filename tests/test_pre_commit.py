"""The hook for pre-commit, and the command behind it: many files, and 3 when one would run code."""

import os
import pickle
import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from runs import gradaudit, write_case

[HOOK] = yaml.safe_load(
    (Path(__file__).parents[1] / ".pre-commit-hooks.yaml").read_text(encoding="utf-8")
)


class Runs:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.fixture
def case(tmp_path):
    write_case(tmp_path)
    return tmp_path


def staged(folder):
    """What pre-commit does with the files of a commit."""
    names = sorted(path.name for path in folder.iterdir() if re.search(HOOK["files"], path.name))
    program, *arguments = shlex.split(HOOK["entry"])
    assert program == "gradaudit"
    return gradaudit(*arguments, *names, cwd=folder)


def test_plain_files_pass_each_under_its_name(case):
    (case / "notes.md").write_text("# not a model")
    run = staged(case)
    assert (run.code, run.err) == (0, "")
    assert [line for line in run.out.splitlines() if line.endswith(":")] == [
        "grads.safetensors:",
        "model.pt:",
    ]


@pytest.mark.parametrize("plain", [False, True], ids=["torch file", "pickle"])
def test_a_file_that_would_run_code_stops_the_commit(case, plain):
    if plain:
        (case / "bad.pt").write_bytes(pickle.dumps(Runs()))
    else:
        torch.save({"weights": Runs()}, case / "bad.pt")
    run = staged(case)
    assert run.code == 3
    assert "refused: posix.system" in run.out
    assert "model.pt:" in run.out  # the others are looked at all the same
    assert not (case / "executed").exists()


def test_a_program_stops_the_commit(case):
    with warnings.catch_warnings():  # torch calls its own format old
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(case / "script.pt")
    assert staged(case).code == 3


def test_a_damaged_file_stops_the_commit(case):
    (case / "cut.safetensors").write_bytes((case / "grads.safetensors").read_bytes()[:40])
    run = staged(case)
    assert (run.code, run.out) == (3, "")
    assert "cut.safetensors" in run.err


def test_one_file_needs_no_title(case):
    assert gradaudit("inspect", "model.pt", cwd=case).out.startswith("torch, ")
