"""The plan of the house, and a check that it is kept. ROOMS is its documentation."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A room is a module or a folder of `auditor`. It may import the rooms before it, never one after.
# A new room needs a place here. `auditor` itself, the public names, comes after all of them.
ROOMS = (
    "errors",
    "records",
    "rules",
    "hooks",
    "doctor",
    "severity",
    "zoo",
    "inputs",
    "local_training",
    "facts",
    "dumping",
    "metrics",
    "graph",
    "batch_norm",
    "batch_statistics",
    "trace",
    "problem",
    "solve",
    "defences",
    "checks",
    "labels",
    "inversion",
    "planted",
    "attacks",
    "bounds",
    "samples",
    "evidence",
    "trials",
    "reasons",
    "findings",
    "measuring",
    "exhibits",
    "report",
    "gate",
    "config",
    "verify",
    "diff",
    "verdict",
    "row_words",
    "options",
    "summaries",
    "unfinished",
    "what_if",
    "weighing",
    "audit",
    "text",
    "outputs",
    "simulate",
    "demo",
    "api",
    "arguments",
    "configured",
    "streams",
    "session",
    "finished",
    "cli",
    "__main__",
    "__init__",
)
# Solvers know nothing of models; attacks see neither the truth nor what judges them.
NEVER = {
    "solve": set(ROOMS) - {"solve"},
    "inversion": {"metrics", "facts"},
    "attacks": {"metrics", "evidence", "findings", "facts"},
}
TENSOR_FREE = (
    *(
        "errors",
        "records",
        "rules",
        "hooks",
        "severity",
        "report",
        "gate",
        "config",
        "verify",
        "diff",
    ),
    *("verdict", "row_words", "arguments", "configured", "finished"),
)
FILE_LINES = 400
FUNCTION_LINES = 60

FILES = sorted((ROOT / "auditor").rglob("*.py"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "auditor").parts[0].removesuffix(".py")


def imports_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(module, name) of every import, wherever it stands; name is "" for `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((module, alias.name) for alias in node.names)


def rooms_used(tree: ast.AST) -> set[str]:
    """The rooms of `auditor` that a file imports; `__init__` for the package's own names."""
    used = set()
    for module, name in imports_of(tree):
        parts = module.split(".")
        if parts[0] == "auditor" and len(parts) > 1:
            used.add(parts[1])
        elif module == "auditor" and name in ROOMS:
            used.add(name)
        elif module == "auditor" and name != "__version__":  # a constant before every import
            used.add("__init__")
    return used


def uphill(room: str, tree: ast.AST) -> set[str]:
    """The rooms that a file of `room` imports and must not."""
    allowed = set(ROOMS[: ROOMS.index(room) + 1]) - NEVER.get(room, set())
    return rooms_used(tree) - allowed


def at_run_time(tree: ast.Module) -> ast.Module:
    """The file without what stands under `if TYPE_CHECKING`."""

    class Strip(ast.NodeTransformer):
        def visit_If(self, node):
            test = ast.unparse(node.test)
            return node.orelse if test.endswith("TYPE_CHECKING") else self.generic_visit(node)

    return Strip().visit(tree)


def tensors_used(tree: ast.Module) -> set[str]:
    """The tensor libraries that a file imports at run time."""
    heads = {module.split(".")[0] for module, _ in imports_of(at_run_time(tree))}
    return heads & {"torch", "torchvision", "numpy", "scipy", "safetensors"}


def too_long(tree: ast.AST) -> list[str]:
    """Functions over the budget, as "name: lines"."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    lengths = {f.name: (f.end_lineno or f.lineno) - f.lineno + 1 for f in functions}
    return [f"{name}: {lines}" for name, lines in lengths.items() if lines > FUNCTION_LINES]


def _raises_again(handler: ast.ExceptHandler) -> bool:
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def catch_alls(tree: ast.AST) -> list[int]:
    """Lines of `except:`, `except Exception` and `except BaseException` that swallow.

    A handler that cleans up and ends with a bare `raise` swallows nothing.
    """
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and not _raises_again(node):
            names = (
                {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
                if node.type
                else {""}
            )
            if names & {"", "Exception", "BaseException"}:
                lines.append(node.lineno)
    return lines


def talk(tree: ast.AST) -> list[int]:
    """Lines that print or log."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    prints = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    logs = [0 for module, _ in imports_of(tree) if module.split(".")[0] == "logging"]
    return prints + logs


def test_there_is_something_to_check():
    assert {"records", "gate", "metrics"} <= {room_of(path) for path in FILES}


@each_file
def test_every_room_has_a_place(path):
    assert room_of(path) in ROOMS


@each_file
def test_imports_run_one_way(path):
    assert not uphill(room_of(path), tree_of(path))


@each_file
def test_imports_are_absolute(path):
    assert not [module for module, _ in imports_of(tree_of(path)) if module.startswith(".")]


@pytest.mark.parametrize(
    "path", [p for p in FILES if room_of(p) == "attacks"], ids=lambda p: p.name
)
def test_attacks_do_not_know_the_truth(path):
    names = {node.id for node in ast.walk(tree_of(path)) if isinstance(node, ast.Name)}
    imported = {name for _, name in imports_of(tree_of(path))}
    assert "Truth" not in names | imported


@pytest.mark.parametrize(
    "path", [p for p in FILES if room_of(p) in TENSOR_FREE], ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_tensors_in_report_and_gate(path):
    assert not tensors_used(tree_of(path))


@each_file
def test_size_budgets(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= FILE_LINES
    assert not too_long(tree_of(path))


@pytest.mark.parametrize(
    "path", [p for p in FILES if room_of(p) != "cli"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_only_the_command_line_catches_all_and_talks(path):
    assert not catch_alls(tree_of(path))
    assert not talk(tree_of(path))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_report_and_gate_start_without_torch():
    """Static reading misses what is imported by way of others; a fresh interpreter does not."""
    modules = [module_name(path) for path in FILES if room_of(path) in TENSOR_FREE]
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        + "".join(f"import {module}\n" for module in modules)
        + "print(sorted({'torch', 'numpy', 'scipy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# ------------------------------------------------------------- the checks themselves can fail


@pytest.mark.parametrize(
    ("room", "code", "found"),
    [
        ("audit", "from auditor.cli import main", {"cli"}),
        ("audit", "from auditor import cli", {"cli"}),
        ("audit", "import auditor.cli", {"cli"}),
        ("records", "from auditor.rules import RULES", {"rules"}),
        ("gate", "def f():\n    from auditor.audit import run_audit", {"audit"}),
        ("gate", "if TYPE_CHECKING:\n    from auditor.audit import run_audit", {"audit"}),
        ("solve", "from auditor.records import Problem", {"records"}),
        ("solve", "from auditor.solve.lbfgs import minimise", set()),
        ("attacks", "from auditor.metrics import psnr", {"metrics"}),
        ("attacks", "from auditor.problem import gradient_of", set()),
        ("cli", "from auditor import scan", {"__init__"}),
        ("cli", "from auditor import __version__", set()),
        ("gate", "from auditor.nowhere import x", {"nowhere"}),
    ],
)
def test_uphill_is_seen(room, code, found):
    assert uphill(room, ast.parse(code)) == found


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import torch.nn as nn", {"torch"}),
        ("def f():\n    import numpy", {"numpy"}),
        ("if TYPE_CHECKING:\n    import torch", set()),
        ("if typing.TYPE_CHECKING:\n    import torch\nelse:\n    import scipy", {"scipy"}),
    ],
)
def test_tensors_are_seen(code, found):
    assert tensors_used(ast.parse(code)) == found


@pytest.mark.parametrize(("extra", "found"), [(58, []), (59, ["f: 61"])])
def test_long_functions_are_seen(extra, found):
    body = "    x = 1\n" * (extra + 1)
    assert too_long(ast.parse("class A:\n  def f():\n" + body.replace("    ", "      "))) == found


@pytest.mark.parametrize(
    ("clause", "lines"),
    [
        ("except:", [3]),
        ("except Exception:", [3]),
        ("except (ValueError, BaseException) as error:", [3]),
        ("except ValueError:", []),
        ("except BaseException:\n    raise\nexcept:", [5]),
    ],
)
def test_catch_alls_are_seen(clause, lines):
    assert catch_alls(ast.parse(f"try:\n    pass\n{clause}\n    pass")) == lines


@pytest.mark.parametrize(
    ("code", "lines"), [("print(1)", [1]), ("import logging", [0]), ("sprint(1)", [])]
)
def test_talk_is_seen(code, lines):
    assert talk(ast.parse(code)) == lines
