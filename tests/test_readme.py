"""The README says what the program does. Whatever can be compared with the code is compared."""

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from runs import PLAIN, gradaudit, small_net
from test_architecture import ROOMS

import auditor
from auditor.attacks import ATTACKS
from auditor.gate import ExitCode
from auditor.records import Certainty
from auditor.rules import RULES
from auditor.severity import BANDS
from auditor.text.attacks import TEXT_ATTACKS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "docs/command-line.md", "docs/architecture.md", "docs/attacks/README.md")
TEXT = "\n\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
# One typer writes INTEGER where another writes <int>.
TYPES = re.compile(r"<\w+>|\b(INTEGER|FLOAT|PATH)\b|[{}]")


def blocks_of(page, language):
    """What stands between fences that name this language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [text for kind, text in found if kind == language]


def blocks(language):
    return blocks_of(TEXT, language)


def table(first_column):
    """Rows of the table that begins with this heading, as lists of cells."""
    _, found, rest = TEXT.partition(f"\n| {first_column} |")
    assert found, first_column
    rows = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def words(text):
    return TYPES.sub(" ", text).split()


def test_the_first_page_is_short():
    assert len(README.splitlines()) < 200


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_exit_codes_are_those_of_the_program():
    told = [(int(code), name) for code, name, _ in table("exit code")]
    assert told == [(int(code), code.name.lower()) for code in ExitCode]


def test_attacks_are_those_of_the_program():
    told = [(name, title) for name, title, _ in table("name")]
    assert told == [(attack.name, attack.title) for attack in ATTACKS]


def test_attacks_on_text_are_those_of_the_program():
    told = [(name, title) for name, title, _ in table("name of text")]
    assert told == [(attack.name, attack.title) for attack in TEXT_ATTACKS]


def test_bands_are_those_of_the_program():
    lowest = [(name, float(score.split()[0])) for name, score in table("band")]
    assert lowest == [("none", 0.0), *reversed(BANDS)]
    for (_, score), (_, above) in zip(table("band")[1:], lowest[2:], strict=False):
        assert float(score.split()[-1]) == pytest.approx(above - 0.1)


def test_rooms_are_those_of_the_house():
    assert [room for room, _ in table("room")] == [r for r in ROOMS if not r.startswith("__")]


def test_every_word_of_certainty_is_explained():
    assert [word for word, _ in table("word")] == list(get_args(Certainty))


def help_of(*command):
    """As a terminal of 80 columns shows it."""
    code = "import sys; sys.argv[0] = 'gradaudit'; from auditor.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *command],
        env=PLAIN,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


def test_help_texts_are_those_of_the_program():
    shown = {}
    for block in blocks("console"):
        command, _, output = block.partition("\n")
        shown[command] = output
        assert all(len(line) <= 80 for line in output.splitlines())
    assert shown.keys() == {"$ gradaudit --help", "$ gradaudit scan --help"}
    for command, output in shown.items():
        assert words(output) == words(help_of(*command.split()[2:])), f"renew {command}"


def test_every_command_that_is_shown_exists():
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    lines += re.findall(r"`(gradaudit [a-z].*?)`", TEXT)
    assert len(lines) >= 8
    for line in lines:
        name, verb, *rest = line.split()
        assert name == "gradaudit", line
        known = help_of(verb, "--help")
        for word in rest:
            if word.startswith("--"):
                assert f"{word} " in known, line


def test_codes_that_are_shown_exist():
    assert set(re.findall(r"GA\d{3}", TEXT)) <= {rule.code for rule in RULES}


def test_the_tour_works(tmp_path, monkeypatch):
    """The Python of the README, run as it stands, then the audit that follows it."""
    [code] = blocks("python")
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(192, 12), torch.nn.Sigmoid(), torch.nn.Linear(12, 5)
    )
    there = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "images": torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
        "labels": torch.tensor([3]),
    }
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), there)
    for line in blocks("sh")[0].splitlines():
        run = gradaudit(*line.split()[1:], cwd=tmp_path)
        assert run.code == 0, run.err
        assert "LEAK, CRITICAL" in run.err
    assert (tmp_path / "gradaudit-report" / "evidence").is_dir()


def test_scan_in_one_line_as_shown():
    model = small_net()
    loss = torch.nn.functional.cross_entropy(model(torch.rand(1, 1, 8, 8)), torch.tensor([0]))
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    [shown] = re.findall(r"`(auditor\.scan\(.*?\))`", README)
    audit = eval(shown, {"auditor": auditor, "model": model, "gradients": gradients})
    assert audit.verdict.status == "leak"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)]+)\)", README))))
def test_links_lead_somewhere(target):
    if not target.startswith("https://"):
        assert (ROOT / target.partition("#")[0]).exists()


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^    make (\w+)", README, re.MULTILINE))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_no_number_that_only_a_measurement_can_give():
    """Seconds, ratios and rates of success are in benchmarks/RESULTS.md, beside the machine."""
    assert not re.findall(r"\b\d+(?:\.\d+)?\s?(?:seconds|s|minutes|min|ms|GB|MB|times|x)\b", README)


def test_make_demo_can_be_run_twice():
    """The report of the first run is in the way of the second."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [recipe] = re.findall(r"^\t.*gradaudit demo.*$", makefile, re.MULTILINE)
    assert "--overwrite" in recipe
