"""Inside the room `text`: attacks see neither the truth nor what judges them."""

import ast
from pathlib import Path

import pytest
from test_architecture import imports_of, tree_of

FOLDER = Path(__file__).parents[2] / "auditor" / "text"
# What comes after the attacks. Whatever else the folder holds, attacks are made of.
AFTER = {
    *("checks", "classes", "metrics", "evidence", "findings", "exhibits"),
    *("audit", "settle", "simulate"),
}
FILES = [path for path in sorted(FOLDER.rglob("*.py")) if path.stem not in AFTER]


def forbidden(tree):
    """Judges and truth among the imports of a file."""
    found = set()
    for module, name in imports_of(tree):
        parts = module.split(".")
        if parts[:2] == ["auditor", "text"]:
            found |= AFTER & {*parts[2:], name}
        found |= {name} & {"TextTruth", "Truth"}
        found |= (
            {parts[1]} & {"metrics", "evidence", "findings"} if parts[0] == "auditor" else set()
        )
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_attacks_know_neither_truth_nor_judges(path):
    assert not forbidden(tree_of(path))


def test_there_are_attacks_to_check():
    assert {"spans", "tokens", "base", "problem"} <= {path.stem for path in FILES}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from auditor.text.evidence import examine_text", {"evidence"}),
        ("from auditor.text import findings", {"findings"}),
        ("from auditor.text.records import TextTruth", {"TextTruth"}),
        ("from auditor.metrics import psnr", {"metrics"}),
        ("from auditor.text.problem import gradient_of", set()),
        ("import torch", set()),
    ],
)
def test_the_check_can_fail(code, found):
    assert forbidden(ast.parse(code)) == found
