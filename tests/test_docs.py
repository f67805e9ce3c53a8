"""What the pages for users say of the command line and of one another is so."""

import re
from pathlib import Path

import pytest
import yaml
from runs import gradaudit

from auditor.hooks import FRAMEWORKS, snippet

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "docs" / f"{name}.md"
    for name in ("quick-start", "capturing", "reading-a-report", "limits", "ci", "tables")
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def text_of(page):
    return page.read_text(encoding="utf-8")


def commands():
    """Every command that is shown, in a page or at the head of a snippet: (verb, words)."""
    texts = [" ".join(block for _, block in FENCE.findall(text_of(page))) for page in PAGES]
    texts += ["\n".join(re.findall(r"`(gradaudit [a-z][^`]*)`", text_of(page))) for page in PAGES]
    texts += [re.sub(r"^# ?", "", snippet(name), flags=re.MULTILINE) for name in FRAMEWORKS]
    for text in texts:
        shown = re.sub(r"\\?\n\s*(?=--)", " ", text)  # a command over several lines
        for line in re.findall(r"(?<![\w-])gradaudit ([a-z]+\b[^\n#;'`]*)", shown):
            verb, *words = line.split()
            yield verb, words


def test_every_command_and_flag_that_is_shown_exists(tmp_path):
    shown = list(commands())
    assert ["--junit" in words for _, words in shown].count(True) == 2
    assert {"scan", "hook", "doctor", "simulate", "inspect", "explain"} <= {
        verb for verb, _ in shown
    }
    known = {verb: gradaudit(verb, "--help", cwd=tmp_path).out for verb, _ in shown}
    for verb, words in shown:
        for word in words:
            if word.startswith("--"):
                assert f"{word.partition('=')[0]} " in known[verb], (verb, word)


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        goal = (page.parent / path) if path else page
        assert goal.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", goal.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in slugs, target


def test_each_framework_is_in_the_table():
    rows = re.findall(r"^\| `(\w+)` \|", text_of(ROOT / "docs" / "capturing.md"), re.MULTILINE)
    assert tuple(rows) == FRAMEWORKS


def test_the_inputs_of_the_action_are_those_of_the_table():
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    page = text_of(ROOT / "docs" / "ci.md")
    table = page.partition("| input |")[2].partition("\n\n")[0]
    told = {
        name: (default.strip("` ") or "")
        for name, default in re.findall(r"^\| `([\w-]+)` \|.*\|([^|]*)\|$", table, re.MULTILINE)
    }
    assert told == {name: entry.get("default", "") for name, entry in action["inputs"].items()}


def test_recipes_can_be_read():
    page = text_of(ROOT / "docs" / "ci.md")
    recipes = [yaml.safe_load(block) for kind, block in FENCE.findall(page) if kind == "yaml"]
    assert len(recipes) == 3
    [steps] = [recipe["jobs"]["gradient"]["steps"] for recipe in recipes if "jobs" in recipe]
    [used] = [step["with"] for step in steps if "OWNER/" in step.get("uses", "")]
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    assert used.keys() <= action["inputs"].keys()


def test_exit_codes_are_those_of_the_program():
    from auditor.gate import ExitCode

    page = text_of(ROOT / "docs" / "ci.md")
    told = re.findall(r"^\| (\d+) \| (\w+) \|", page, re.MULTILINE)
    assert [(int(code), name) for code, name in told] == [
        (int(c), c.name.lower()) for c in ExitCode
    ]


def test_codes_that_are_shown_exist(tmp_path):
    for code in {code for page in PAGES for code in re.findall(r"GA\d{3}", text_of(page))}:
        assert gradaudit("explain", code, cwd=tmp_path).code == 0
