"""Where the templates come from, and what an import of a writer costs."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jinja2
import pytest

from auditor.report import templates
from auditor.report.audit_json import to_json
from auditor.report.html import to_html

ROOT = Path(__file__).resolve().parents[2]
RENDER = """
import sys
from pathlib import Path
import auditor
from auditor.report.audit_json import from_json
from auditor.report.html import to_html
assert sys.argv[1] in auditor.__file__, auditor.__file__
Path("report.html").write_text(to_html(from_json(Path("audit.json").read_text("utf-8"))), "utf-8")
"""


def python(code, *arguments, folder, path):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def package(folder, *, with_templates):
    """The package as it lies in a wheel, in a zip."""
    wheel = folder / "built.zip"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in (ROOT / "auditor").rglob("*.py"):
            archive.write(file, file.relative_to(ROOT))
        for file in (ROOT / "reports" / "templates").iterdir() if with_templates else ():
            archive.write(file, f"auditor/_templates/{file.name}")
    return wheel


def test_renders_from_inside_a_zip(audits, tmp_path):
    (tmp_path / "audit.json").write_text(to_json(audits["embedded"]), "utf-8")
    wheel = package(tmp_path, with_templates=True)
    result = python(RENDER, "built.zip", folder=tmp_path, path=wheel)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "report.html").read_text("utf-8") == to_html(audits["embedded"])


def test_says_so_when_the_templates_are_missing(audits, tmp_path):
    (tmp_path / "audit.json").write_text(to_json(audits["bare"]), "utf-8")
    wheel = package(tmp_path, with_templates=False)
    result = python(RENDER, "built.zip", folder=tmp_path, path=wheel)
    assert "installed without its report templates" in result.stderr


def test_a_checkout_uses_its_own_templates(audits, tmp_path):
    for name in ("auditor", "reports"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    (tmp_path / "auditor" / "_templates").mkdir(exist_ok=True)
    (tmp_path / "auditor" / "_templates" / "style.html").touch()
    (tmp_path / "auditor" / "_templates" / "report.html").write_text("the wheel's")
    (tmp_path / "reports" / "templates" / "report.html").write_text("the checkout's")
    (tmp_path / "audit.json").write_text(to_json(audits["bare"]), "utf-8")
    # without pyproject.toml beside it, a folder named reports is anybody's
    for expected in ("the wheel's", "the checkout's"):
        result = python(RENDER, str(tmp_path), folder=tmp_path, path=tmp_path)
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "report.html").read_text() == expected
        (tmp_path / "pyproject.toml").touch()


def test_every_template_is_html_and_nothing_is_marked_safe():
    for file in (ROOT / "reports" / "templates").iterdir():
        assert file.suffix == ".html", file
        text = file.read_text("utf-8")
        for word in ("safe", "autoescape", "Markup"):
            assert f"|{word}" not in text.replace(" ", "")
            assert f"{{%{word}" not in text.replace(" ", "")


def test_the_environment_is_strict():
    environment = templates.environment()
    assert environment.from_string("{{ x }}").render(x="<b>\x1b") == "&lt;b&gt;\\x1b"
    with pytest.raises(jinja2.UndefinedError):
        environment.from_string("{{ y }}").render()
    with pytest.raises(TypeError):
        environment.from_string("{{ x }}").render(x=None)


@pytest.mark.parametrize("name", ["html", "audit_json", "console"])
def test_writers_load_nothing_heavy(name, tmp_path):
    code = (
        f"import sys, auditor.report.{name}\n"
        "heavy = {'torch', 'numpy', 'PIL', 'scipy', 'torchvision'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = python(code, folder=tmp_path, path=ROOT)
    assert result.returncode == 0, result.stderr
