"""Every snippet is whole, is printed as it is, and needs nothing of ours to be printed."""

import ast
from importlib.resources import files

import pytest
from runs import gradaudit

from auditor.hooks import FRAMEWORKS, snippet

each = pytest.mark.parametrize("framework", FRAMEWORKS)


def test_each_file_has_a_name_and_each_name_a_file():
    there = {
        path.name.removesuffix(".txt") for path in (files("auditor.hooks") / "snippets").iterdir()
    }
    assert there == set(FRAMEWORKS)


@each
def test_is_python_that_fits_a_screen(framework):
    source = snippet(framework)
    assert ast.get_docstring(ast.parse(source)) is None
    lines = source.splitlines()
    assert len(lines) <= 40
    assert max(len(line) for line in lines) <= 100
    assert lines[0].startswith("# ")
    assert "gradaudit scan " in source


@each
def test_is_printed_as_it_is(framework, tmp_path):
    run = gradaudit("hook", framework, cwd=tmp_path)
    assert (run.code, run.out, run.err) == (0, snippet(framework), "")


def test_another_name_is_a_usage_error(tmp_path):
    run = gradaudit("hook", "../cli", cwd=tmp_path)
    assert run.code == 2
    assert "one of torch, ddp, lightning, opacus, flower, nvflare" in run.err
    assert run.out == ""
