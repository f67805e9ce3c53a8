"""The project's settings: read strictly, because a gate that falls silent passes everything."""

import pytest

from auditor.config import SPOKEN, check_environment, read_configuration, variable
from auditor.errors import UsageError
from auditor.gate import Accepted

OPTIONS = ("fail-on", "max-psnr", "attacks", "quiet", "seed", "evidence", "mean", *SPOKEN)
ENTRY = '[[suppress]]\ncode = "GA201"\nreason = "agreed"\nexpires = 2027-01-31\n'


def read(folder, text, name="gradaudit.toml"):
    (folder / name).write_text(text, encoding="utf-8")
    return read_configuration(folder, OPTIONS)


def test_no_file_sets_nothing(tmp_path):
    found = read_configuration(tmp_path, OPTIONS)
    assert (found.file, found.options, found.accepted) == (None, None, ())
    assert read(tmp_path, "[tool.other]\nx = 1\n", "pyproject.toml").file is None


@pytest.mark.parametrize("name", ["gradaudit.toml", "pyproject.toml"])
def test_what_is_set(tmp_path, name):
    head = "[tool.gradaudit]\n" if name == "pyproject.toml" else ""
    entry = ENTRY.replace("[[suppress]]", "[[tool.gradaudit.suppress]]") if head else ENTRY
    text = 'fail-on = "high"\nmax-psnr = 25\nmean = [0.5, 0.25]\nquiet = true\n'
    found = read(tmp_path, head + text + entry, name)
    assert found.file == name
    assert found.options == {"fail-on": "high", "max-psnr": 25, "mean": "0.5,0.25", "quiet": True}
    assert found.accepted == (Accepted("GA201", "agreed", "2027-01-31"),)


def test_gradaudit_toml_goes_before_pyproject(tmp_path):
    read(tmp_path, "[tool.gradaudit]\nseed = 1\n", "pyproject.toml")
    assert read(tmp_path, "seed = 2\n").options == {"seed": 2}


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('fail_on = "high"', "'fail-on'"),
        ('failon = "high"', "'fail-on'"),
        ("supress = []", "'suppress'"),
        ("trust-model = true", "command line only"),
        ('arch = "net.py:make"', "command line only"),
        ("label = 3", "command line only"),
        ('evidence = "embed"', "command line only"),
        ("fail-on = {a = 1}", "fail-on"),
        ("fail-on = ", "TOML"),
        ("suppress = 3", "suppress"),
        ("suppress = [3]", "suppress number 1"),
        (ENTRY.replace('reason = "agreed"\n', ""), "reason"),
        (ENTRY.replace('"agreed"', '"  "'), "reason"),
        (ENTRY.replace("expires = 2027-01-31\n", ""), "expires"),
        (ENTRY.replace("2027-01-31", '"soon"'), "expires"),
        (ENTRY.replace("2027-01-31", "2027-01-31T10:00:00"), "expires"),
        (ENTRY.replace("GA201", "GA2O1"), "'GA201'"),
        (ENTRY.replace("GA201", "GA301"), "code"),  # a caveat is no leak that one could accept
        (ENTRY.replace("reason", "resaon"), "'reason'"),
    ],
)
def test_what_is_refused(tmp_path, text, word):
    with pytest.raises(UsageError) as refused:
        read(tmp_path, text)
    assert word in str(refused.value)
    assert "\n" not in str(refused.value).strip()


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "gradaudit.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="TOML"):
        read_configuration(tmp_path, OPTIONS)


@pytest.mark.parametrize("name", ["GRADAUDIT_FAILON", "GRADAUDIT_FAIL_0N", "GRADAUDIT_MAX_PSRN"])
def test_a_variable_that_is_nearly_ours_is_refused(name):
    with pytest.raises(UsageError, match="GRADAUDIT_"):
        check_environment([name], OPTIONS)


def test_other_variables_are_left_alone():
    check_environment(["GRADAUDIT_DEBUG", "GRADAUDIT_IMAGE", "FAIL_ON", "PATH"], OPTIONS)
    check_environment([variable(option) for option in OPTIONS if option not in SPOKEN], OPTIONS)
