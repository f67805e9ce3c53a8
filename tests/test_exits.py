"""Every exit code and every format, in one table.

Whatever ends a run, all formats are there and say the same, or none is there.
"""

import json
from dataclasses import dataclass, field
from xml.etree import ElementTree

import pytest
from runs import contents, gradaudit, small_net, write_case
from torch import nn

from auditor.report.audit_json import from_json
from auditor.report.formats import to_text

SCAN = ("scan", "model.pt", "grads.safetensors", "-q")
FORMS = ("json", "sarif", "junit", "markdown")
FILES = tuple(part for form in FORMS for part in (f"--{form}", f"x.{form}"))
SUPPRESS = '[[suppress]]\ncode = "GA101"\nreason = "public labels"\nexpires = {}\n'


@dataclass(frozen=True)
class Row:
    """One way in which a run ends."""

    code: int
    flags: tuple = ()
    settings: str = ""  # gradaudit.toml
    variables: dict = field(default_factory=dict)
    baseline: str = ""  # which file of the case becomes old.json
    raised: BaseException | None = None  # instead of the audit
    scan: tuple = SCAN


NO_TIME = ("--budget", "1e-3", "--attacks", "images.layers")  # labels take none
TABLE = {
    "no gate": Row(0),
    "below the threshold": Row(0, ("--fail-on", "high")),
    "at the threshold": Row(1, ("--fail-on", "medium")),
    "threshold from the file": Row(1, settings='fail-on = "medium"\n'),
    "threshold from a variable": Row(1, variables={"GRADAUDIT_FAIL_ON": "medium"}),
    "variable before file": Row(
        0, settings='fail-on = "low"\n', variables={"GRADAUDIT_FAIL_ON": "high"}
    ),
    "flag before variable": Row(0, ("--fail-on", "high"), variables={"GRADAUDIT_FAIL_ON": "low"}),
    "a limit that is exceeded": Row(1, ("--max-labels", "0.5")),
    "a limit that nobody looked at": Row(4, ("--max-psnr", "20")),
    "suppressed": Row(0, ("--fail-on", "medium"), SUPPRESS.format("2999-01-01")),
    "suppressed once": Row(1, ("--fail-on", "medium"), SUPPRESS.format("2020-01-01")),
    "nothing new": Row(0, ("--baseline", "old.json"), baseline="same"),
    "something new": Row(1, ("--baseline", "old.json"), baseline="empty"),
    "no such threshold": Row(2, ("--fail-on", "purple")),
    "no such limit": Row(2, ("--max-labels", "7")),
    "unknown setting": Row(2, settings='fail-up = "high"\n'),
    "setting of the wrong kind": Row(2, settings='quiet = "yes"\n'),
    "no reason": Row(2, settings=SUPPRESS.replace('"public labels"', '""').format("2999-01-01")),
    "nearly a variable": Row(2, variables={"GRADAUDIT_FAILON": "high"}),
    "one file twice": Row(2, ("--json", "x.sarif")),
    "a file in no directory": Row(2, ("--json", "nowhere/x.json")),
    "a file over the model": Row(2, ("--json", "model.pt")),
    "no such model": Row(3, scan=("scan", "nowhere.pt", "grads.safetensors", "-q")),
    "another model's baseline": Row(3, ("--baseline", "old.json"), baseline="other"),
    "a newer baseline": Row(3, ("--baseline", "old.json"), baseline="newer"),
    "a damaged baseline": Row(3, ("--baseline", "old.json"), baseline="damaged"),
    "no baseline": Row(3, ("--baseline", "old.json")),
    "no time": Row(4, NO_TIME),
    "no time, with a gate": Row(4, (*NO_TIME, "--fail-on", "low")),
    "no time, waived": Row(0, (*NO_TIME, "--allow-inconclusive")),
    "no time but for labels": Row(0, ("--budget", "1e-3")),
    "a mistake of ours": Row(5, raised=RuntimeError("why")),
    "interrupted": Row(130, raised=KeyboardInterrupt()),
}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """Texts of older audits by name."""
    folder = tmp_path_factory.mktemp("earlier")
    write_case(folder)
    found = {}
    for name, net in (("same", None), ("other", nn.Sequential(*small_net(), nn.Linear(5, 5)))):
        write_case(folder, net)
        assert gradaudit(*SCAN, "--attacks", "labels", "--out", name, cwd=folder).code == 0
        found[name] = (folder / name / "audit.json").read_text("utf-8")
    document = json.loads(found["same"])
    found["empty"] = json.dumps(document | {"findings": []})
    found["newer"] = json.dumps(document | {"schema_version": "9.0"})
    found["damaged"] = found["same"][:-100]
    return found


@pytest.mark.parametrize("name", TABLE)
def test_the_table(tmp_path, monkeypatch, earlier, name):
    row = TABLE[name]
    write_case(tmp_path)
    if row.settings:
        (tmp_path / "gradaudit.toml").write_text(row.settings)
    if row.baseline:
        (tmp_path / "old.json").write_text(earlier[row.baseline], encoding="utf-8")
    if row.raised is not None:

        def fails(*_, **__):
            raise row.raised

        monkeypatch.setattr("auditor.audit.run_audit", fails)
    before = contents(tmp_path)
    flags = ("--attacks", "labels", "--evidence", "none", *FILES, *row.flags)
    run = gradaudit(*row.scan, *flags, cwd=tmp_path, env=row.variables)
    assert run.code == row.code, run.err
    if row.code in (0, 1, 4):
        all_agree(tmp_path, run)
    else:
        assert contents(tmp_path) == before
        assert run.out == ""
        assert "Traceback" not in run.err
        assert bool(run.err) == (row.code != 130)


def all_agree(folder, run):
    """Each format is what its writer makes of the one audit, and carries its exit code."""
    assert run.out == "gradaudit-report/report.html\n"
    audit = from_json((folder / "gradaudit-report" / "audit.json").read_text("utf-8"))
    assert audit.gate.exit_code == run.code
    for form in FORMS:
        assert (folder / f"x.{form}").read_text("utf-8") == to_text(audit, form)
    [sarif] = json.loads((folder / "x.sarif").read_text("utf-8"))["runs"]
    assert sarif["invocations"][0]["exitCode"] == run.code
    suite = ElementTree.parse(folder / "x.junit").getroot().find("testsuite")
    assert (run.code == 1) <= (int(suite.get("failures")) > 0)
    assert (run.code == 4) <= (int(suite.get("errors")) > 0)
    assert f"exit code {run.code}" in (folder / "x.markdown").read_text("utf-8")


def test_the_table_has_every_code():
    assert {row.code for row in TABLE.values()} == {0, 1, 2, 3, 4, 5, 130}


def test_what_the_file_set_is_in_the_command_that_repeats_the_run(tmp_path):
    write_case(tmp_path)
    (tmp_path / "gradaudit.toml").write_text('attacks = ["labels"]\nevidence = "none"\nseed = 3\n')
    variables = {"GRADAUDIT_FAIL_ON": "high"}
    run = gradaudit(*SCAN, "--seed", "5", cwd=tmp_path, env=variables)
    assert run.code == 0, run.err
    audit = from_json((tmp_path / "gradaudit-report" / "audit.json").read_text("utf-8"))
    command = audit.provenance.command
    assert command[:5] == ("gradaudit", "scan", "model.pt", "grads.safetensors", "-q")
    assert audit.provenance.seed == 5
    told = set(zip(command[5::2], command[6::2], strict=True))
    assert told == {
        ("--seed", "5"),
        ("--attacks", "labels"),
        ("--evidence", "none"),
        ("--fail-on", "high"),
    }


def test_the_help_needs_no_settings(tmp_path):
    (tmp_path / "gradaudit.toml").write_text("broken")
    assert gradaudit("scan", "--help", cwd=tmp_path).code == 0
    assert gradaudit("attacks", cwd=tmp_path).code == 0
    assert gradaudit(*SCAN, cwd=tmp_path).code == 2
