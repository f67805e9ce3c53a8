"""What `gradaudit doctor` says is so, and that something is missing is an exit code."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from runs import gradaudit

from auditor import doctor
from auditor.doctor import is_fit, look_around

ROOT = Path(__file__).parents[1]


def looks(folder):
    return {look.what: look for look in look_around(folder)}


def test_versions_and_devices_are_those_of_this_machine(tmp_path):
    found = looks(tmp_path)
    assert found["torch"].found == metadata.version("torch")
    assert found["cpu"].found == f"{torch.get_num_threads()} threads"
    assert ("gpu" in found) is not torch.cuda.is_available()
    assert is_fit(found.values())


def test_the_command_prints_a_line_each(tmp_path):
    run = gradaudit("doctor", cwd=tmp_path)
    assert (run.code, run.err) == (0, "")
    lines = run.out.splitlines()
    assert len(lines) == len(looks(tmp_path))
    assert all(line.split()[0] in {"ok", "optional"} for line in lines)


def test_what_is_needed_is_what_the_package_requires():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {f"{name}>={oldest}" for name, oldest in doctor._NEEDED} == set(project["dependencies"])
    extras = project["optional-dependencies"]
    assert {name: [f"{package}>={old}"] for name, package, old, _ in doctor._EXTRAS} == extras
    assert project["requires-python"] == ">=" + ".".join(map(str, doctor._PYTHON))


@pytest.fixture
def versions(monkeypatch):
    """Other versions than those that are installed; None for a package that is not."""
    real = metadata.version

    def pretend(**told):
        def version(name):
            if name not in told:
                return real(name)
            if told[name] is None:
                raise metadata.PackageNotFoundError(name)
            return told[name]

        monkeypatch.setattr(doctor.metadata, "version", version)

    return pretend


@pytest.mark.parametrize(
    ("version", "state"),
    [
        ("2.9.1", "missing"),
        ("2.10", "ok"),
        ("2.10.0+cpu", "ok"),
        ("3.0.0a1", "ok"),
        ("2", "missing"),
    ],
)
def test_versions_are_compared_by_number(versions, tmp_path, version, state):
    versions(torch=version)
    look = looks(tmp_path)["torch"]
    assert (look.state, look.found.split(",")[0]) == (state, version)


def test_what_is_missing_is_named_with_a_way_to_get_it(versions, tmp_path):
    versions(safetensors=None)
    run = gradaudit("doctor", cwd=tmp_path)
    assert run.code == 4
    [line] = [line for line in run.out.splitlines() if line.startswith("missing")]
    assert re.fullmatch(r'missing +safetensors +not installed. pip install "safetensors>=.*"', line)


def test_an_extra_may_be_missing(versions, tmp_path):
    versions(transformers=None)
    run = gradaudit("doctor", cwd=tmp_path)
    assert run.code == 0
    assert 'no language models. pip install "gradaudit[text]"' in run.out


def test_a_torch_that_cannot_be_loaded_is_not_a_crash(monkeypatch, tmp_path):
    def broken(name):
        raise OSError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(doctor, "import_module", broken)
    found = look_around(tmp_path)
    assert not is_fit(found)
    [look] = [look for look in found if look.state == "missing"]
    assert look.found == "cannot be loaded (OSError)"


def test_each_gpu_has_a_line(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda at: f"Card {at}")
    found = looks(tmp_path)
    assert [found[f"cuda:{at}"].found for at in (0, 1)] == ["Card 0", "Card 1"]


def test_a_folder_that_cannot_be_written_is_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.tempfile, "gettempdir", lambda: str(tmp_path / "nowhere"))
    found = looks(tmp_path)
    assert found["folder for temporary files"].state == "missing"
    assert found["folder for the report"].state == "ok"
