"""What is in the wheel and the sdist, and whether the wheel works away from the checkout."""

import dataclasses
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from auditor import __version__
from auditor.inputs.metadata import metadata_from_json
from auditor.records import (
    SCHEMA_VERSION,
    Audit,
    DumpSummary,
    FileRef,
    GateResult,
    Metadata,
    ModelSummary,
    Provenance,
    Severity,
    Trust,
    Verdict,
)

ROOT = Path(__file__).parents[1]
TEMPLATES = sorted(
    path.relative_to(ROOT / "reports" / "templates").as_posix()
    for path in (ROOT / "reports" / "templates").rglob("*")
    if path.is_file() and path.name != ".gitkeep"
)


def run(*command, cwd):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The sdist from the checkout and the wheel from that sdist, without network."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


@pytest.fixture(scope="session")
def wheel_names(built):
    with zipfile.ZipFile(built[0]) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="session")
def bin_folder(built, tmp_path_factory):
    """A new environment that holds the wheel; its dependencies are those of this interpreter."""
    home = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home.parent)
    python = home / "bin" / "python"
    install = ("install", "--quiet", "--no-deps", "--no-index", built[0])
    run(sys.executable, "-m", "pip", "--python", python, *install, cwd=home.parent)
    site = Path(
        run(python, "-c", "import sysconfig as s; print(s.get_path('purelib'))", cwd=home).strip()
    )
    borrowed = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    # After the installation: pip must not think that the checkout is installed already. A path
    # in a .pth file comes last and is not searched for further .pth files.
    (site / "borrowed.pth").write_text("\n".join(borrowed), encoding="utf-8")
    return python.parent


def test_templates_are_in_the_wheel(wheel_names):
    """An ignore rule can drop them without a word; see [tool.hatch.build] artifacts."""
    packed = {
        name.removeprefix("auditor/_templates/") for name in wheel_names if "/_templates/" in name
    }
    assert TEMPLATES
    assert packed - {".gitkeep"} == set(TEMPLATES)


def test_every_module_is_in_the_wheel(wheel_names):
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "auditor").rglob("*.py")}
    assert modules <= wheel_names
    assert {n for n in wheel_names if n.endswith(".py")} == modules


@pytest.mark.parametrize("name", ["auditor/py.typed", "auditor/schema/audit.schema.json"])
def test_data_files_are_in_the_wheel(wheel_names, name):
    assert name in wheel_names


def test_nothing_foreign_is_in_the_wheel(wheel_names):
    assert {name.split("/")[0] for name in wheel_names} == {
        "auditor",
        f"gradaudit-{__version__}.dist-info",
    }


def test_metadata_entry_point_and_license(built):
    info = f"gradaudit-{__version__}.dist-info"
    with zipfile.ZipFile(built[0]) as archive:
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        license_text = archive.read(f"{info}/licenses/LICENSE")
    assert (metadata["Version"], metadata["License-Expression"]) == (__version__, "Apache-2.0")
    assert "gradaudit = auditor.cli:main" in entry_points
    assert license_text == (ROOT / "LICENSE").read_bytes()
    assert b"Version 2.0, January 2004" in license_text


def test_sdist_holds_what_a_packager_needs(built):
    with tarfile.open(built[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"reports/templates/{name}" for name in TEMPLATES} <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "Makefile"} <= names
    assert {"tests/test_packaging.py", "docs/severity.md"} <= names
    assert not {name for name in names if name.startswith((".venv", "dist"))}


def test_the_installed_package_is_the_one_of_the_wheel(bin_folder, tmp_path):
    code = "import auditor; print(auditor.__file__)"
    assert str(bin_folder.parent) in run(bin_folder / "python", "-c", code, cwd=tmp_path)


@pytest.mark.parametrize("command", [["gradaudit"], ["python", "-m", "auditor"]])
def test_version_and_help_away_from_the_checkout(bin_folder, tmp_path, command):
    program = [bin_folder / command[0], *command[1:]]
    assert __version__ in run(*program, "--version", cwd=tmp_path)
    help_text = run(*program, "--help", cwd=tmp_path)
    for verb in ("scan", "demo", "render"):
        assert verb in help_text


def test_renders_with_the_templates_of_the_wheel(bin_folder, tmp_path):
    """A mark in the installed templates shows up, so nothing else was read."""
    [folder] = (bin_folder.parent / "lib").glob("python*/site-packages/auditor/_templates")
    for template in folder.rglob("*.html"):
        with template.open("a", encoding="utf-8") as stream:
            stream.write("<!-- from the wheel -->")
    audit, page = tmp_path / "audit.json", tmp_path / "out.html"
    audit.write_text(json.dumps(dataclasses.asdict(small_audit())), encoding="utf-8")
    run(bin_folder / "gradaudit", "render", audit, "--out", page, cwd=tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "Nothing was shown here." in text
    assert "<!-- from the wheel -->" in text


def small_audit():
    file = FileRef("model.pt", "torch module", 10, "0" * 64)
    return Audit(
        schema_version=SCHEMA_VERSION,
        verdict=Verdict("no leak shown", Severity(0.0, "none"), "Nothing was shown here.", ()),
        gate=GateResult(None, None, "no gate", 0, "no --fail-on was given"),
        findings=(),
        attacks=(),
        caveats=(),
        assumptions=(),
        model=ModelSummary(file, "LeNet", 10, 10, (1, 28, 28), "eval", ()),
        dump=DumpSummary(file, "dict of 8 tensors", 8, (), 1e-7, 1),
        evidence="none",
        exhibits=(),
        trust=Trust(),
        provenance=Provenance(
            __version__,
            "2026-01-01T00:00:00Z",
            1.0,
            ("gradaudit",),
            0,
            "fast",
            "cpu",
            "float32",
            {},
        ),
    )


def test_the_page_on_file_formats_names_every_field_of_the_metadata():
    text = (ROOT / "docs" / "file-formats.md").read_text(encoding="utf-8")
    rows = text.split("| field |")[1].split("\n\n")[0].splitlines()[2:]
    named = {name.strip(" `") for row in rows for name in row.split("|")[1].split(",")}
    assert named == {field.name for field in dataclasses.fields(Metadata)}
    example = text.split("```json")[1].split("```")[0]
    assert json.loads(example).keys() == named
    metadata = metadata_from_json(example)
    assert (metadata.batch_size, metadata.input_shape, metadata.mode) == (1, (3, 32, 32), "eval")
