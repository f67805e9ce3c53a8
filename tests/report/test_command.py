"""The command line as a report shows it: what to repeat, not where, and nothing of the truth."""

import pytest

from auditor.report.command import REMOVED, public_command


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ([], []),
        (["scan", "model.pt", "grads.pt"], ["scan", "model.pt", "grads.pt"]),
        (["scan", "/home/ann/m.pt", "../ann/g.pt"], ["scan", "m.pt", "g.pt"]),
        (["--out", "C:\\Users\\ann\\report"], ["--out", "report"]),
        (["--out=/home/ann/report"], ["--out=report"]),
        (["--out", "/home/ann/report/"], ["--out", "report"]),
        (["--arch", "/home/ann/net.py:make"], ["--arch", "net.py:make"]),
        (["--arch=~ann/net.py:make"], ["--arch=net.py:make"]),
        (["--mean", "0.5,0.4", "--std=-0.2"], ["--mean", "0.5,0.4", "--std=-0.2"]),
        (["--mean", "1,2,3,4,5", "--std=5,4,3,2,1"], ["--mean", REMOVED, f"--std={REMOVED}"]),
        (["--label", "3", "--seed", "3"], ["--label", REMOVED, "--seed", "3"]),
        (["--label=3"], [f"--label={REMOVED}"]),
        (["--index", "77", "--index=78"], ["--index", REMOVED, f"--index={REMOVED}"]),
        (["--label", "3", "--label", "4"], ["--label", REMOVED] * 2),
        (["--label", "--label", "4"], ["--label", REMOVED, "4"]),  # the first takes the second
        (["--label"], ["--label"]),
        (["--label-smoothing", "0.1"], ["--label-smoothing", "0.1"]),
        (["--label-smoothing=0.1"], ["--label-smoothing=0.1"]),
    ],
    ids=lambda words: " ".join(words) or "nothing",
)
def test_public_command(given, shown):
    assert public_command(given) == ("gradaudit", *shown)


def test_no_directory_is_left_whatever_the_position():
    arguments = ["simulate", "/home/ann/m.pt", "--input", "/home/ann/face.png", "--label", "12"]
    for flag in ("--data", "--save-dump", "--truth", "--out", "--arch"):
        arguments += [flag, f"/home/ann/{flag}.x", f"{flag}=/home/ann/{flag}.x"]
    text = " ".join(public_command(arguments))
    assert "ann" not in text
    assert "/" not in text
    assert "12" not in text
