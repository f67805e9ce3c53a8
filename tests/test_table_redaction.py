"""No value of a row, and nothing that tells of its columns, is in an output that nobody asked for.

A row of numbers that cannot turn up by chance is planted, with means and deviations as odd. Then
everything that a run left behind is searched for them.
"""

import base64
import json
import re

import pytest
import torch
from runs import contents, gradaudit
from safetensors.torch import load_file
from tables import perceptron, write_csv
from test_redaction import FORMATS, inside
from torch import nn
from torch.nn import functional as F

from auditor import capture
from auditor.errors import UsageError

COLUMNS = 8
# Six figures each: five of them in a row are no coincidence.
ROW = torch.tensor(
    [[613.527, -48.2719, 7.39164, 90417.3, 0.528317, 3671.52, -9.16483, 24.7951]],
    dtype=torch.float64,
)
MEAN = torch.tensor([527.319, -31.8427, 6.18273, 81726.4, 0.417283, 2938.47, -7.38291, 19.2847])
STD = torch.tensor([71.2839, 18.4721, 1.92837, 9182.74, 0.182739, 827.193, 2.84719, 5.19283])
NAMES = [f"haemoglobin_{number}" for number in range(COLUMNS)]
LABEL = 1


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clinic")
    net = perceptron(columns=COLUMNS, units=24, activation=nn.Sigmoid)
    told = {"mean": MEAN, "std": STD}
    with capture(net, folder / "grads.safetensors", **told):
        F.cross_entropy(net(((ROW - MEAN) / STD).float()), torch.tensor([LABEL])).backward()
    net.zero_grad()
    torch.save(net, folder / "model.pt")
    torch.save({"inputs": ROW, "labels": torch.tensor([LABEL])}, folder / "truth.pt")
    write_csv(folder / "rows.csv", ROW, torch.tensor([LABEL]), names=NAMES)
    for name, values in told.items():
        (folder / f"{name}.txt").write_text(",".join(map(repr, values.tolist())))
    return folder


def commands(home):
    inline = [",".join(map(repr, values.tolist())) for values in (MEAN, STD)]
    scan = ("scan", f"{home}/model.pt", f"{home}/grads.safetensors")
    rows = ("simulate", f"{home}/model.pt", "--input", f"{home}/rows.csv")
    labelled = (*rows, "--label-column", "diagnosis")
    return {
        "scan": scan,
        "scan with truth": (*scan, "--truth", f"{home}/truth.pt"),
        "scan with a CSV": (
            *(*scan, "--truth", f"{home}/rows.csv"),
            *("--label-column", "diagnosis"),
        ),
        "scan, other statistics": (*scan, "--mean", inline[1], f"--std={inline[1]}"),
        "simulate": (*labelled, "--mean", inline[0], "--std", inline[1]),
        "simulate from files": (*labelled, f"--mean={home}/mean.txt", f"--std={home}/std.txt"),
    }


COMMANDS = tuple(commands(""))


def planted():
    """Every number that could betray the row, or the people behind its columns."""
    model = ((ROW - MEAN) / STD).float().double()
    return [ROW[0], MEAN.double(), STD.double(), model[0]]


def shows_numbers(files, rows):
    """Names of files that hold one of the numbers, in digits or as bytes."""
    found = []
    for name, data in files.items():
        text = data.decode("utf-8", "replace")
        for values in rows:
            digits = [re.escape(f"{abs(value):.6g}"[:6]) for value in values.tolist()]
            spelled = any(re.search(rf"(?<![\d.]){each}", text) for each in digits)
            raws = [values.to(kind).numpy().tobytes() for kind in (torch.float32, torch.float64)]
            raws += [raw.hex().encode() for raw in raws]
            raws += [base64.b64encode(raw[shift:])[:-8] for raw in raws[:2] for shift in range(3)]
            if spelled or any(raw in data for raw in raws):
                found.append(name)
    return sorted(set(found))


def run_in(folder, home, command, *flags):
    files = [part for form in FORMATS for part in (f"--{form}", f"x.{form}")]
    words = (*commands(home)[command], "--out", "report", "--seed", "1", *files, *flags)
    run = gradaudit(*words, cwd=folder)
    assert run.code in {0, 4}, run.err
    left = {str(name): data for name, data in contents(folder).items()}
    left["data in report.html"] = inside(left["report/report.html"])
    return left | {"stdout": run.out.encode(), "stderr": run.err.encode()}


@pytest.mark.parametrize(
    "written",
    [
        lambda values: values.float().numpy().tobytes(),
        lambda values: base64.b64encode(b"ab" + values.numpy().tobytes()),
        lambda values: json.dumps(values.tolist()).encode(),
        lambda values: " ".join(f"{value:.3f}" for value in values.tolist()).encode(),
        lambda values: f"the third is {values[2].item():.7g} mmol".encode(),
    ],
    ids=["raw", "base64", "json", "three places", "one"],
)
def test_the_search_can_fail(written):
    files = {"file": b"before " + written(ROW[0]) + b" after"}
    assert shows_numbers(files, [ROW[0]]) == ["file"]
    assert shows_numbers(files, [ROW[0] * 1.7]) == []


@pytest.mark.parametrize("evidence", ["none", "separate"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_value_is_in_the_outputs(tmp_path, home, command, evidence):
    left = run_in(tmp_path, home, command, "--evidence", evidence)
    kept = {name for name in left if name.startswith("report/evidence")}
    told = {name: data for name, data in left.items() if name not in kept}
    assert bool(kept) == (evidence == "separate")
    assert shows_numbers(told, planted()) == []
    for column in (b"haemoglobin", b"diagnosis"):
        assert [name for name, data in told.items() if column in data] == []
    assert json.loads(told["report/audit.json"])["exhibits"] == []


@pytest.mark.parametrize("command", ["scan", "simulate"])
def test_who_asks_for_it_gets_it(tmp_path, home, command):
    """Also the proof that the search above looks at the right things."""
    left = run_in(tmp_path, home, command, "--evidence", "embed")
    showing = ["data in report.html", "report/audit.json", "report/report.html", "x.json"]
    assert shows_numbers(left, [ROW[0]]) == showing
    assert b"<strong>TLP:RED</strong>" in left["report/report.html"]
    named = [name for name, data in left.items() if b"haemoglobin" in data]
    assert sorted(named) == (showing if command == "simulate" else [])
    assert shows_numbers(left, [MEAN.double(), STD.double()]) == []


def test_the_folder_holds_the_row(tmp_path, home):
    left = run_in(tmp_path, home, "simulate", "--evidence", "separate")
    assert b"haemoglobin_0,haemoglobin_1" in left["report/evidence/rows.csv"]
    kept = load_file(tmp_path / "report" / "evidence" / "evidence.safetensors")["inputs"]
    assert torch.allclose(kept.double(), ROW, rtol=1e-5)


def test_a_column_without_a_deviation_is_named_by_its_place_and_no_other_is_told(tmp_path, home):
    constant = STD.tolist()
    constant[3] = 0.0
    net = torch.load(home / "model.pt", weights_only=False)
    with (
        pytest.raises(UsageError) as captured,
        capture(net, tmp_path / "g.safetensors", mean=MEAN, std=constant),
    ):
        pass
    given = ",".join(map(repr, constant))
    scan = ("scan", f"{home}/model.pt", f"{home}/grads.safetensors")
    run = gradaudit(*scan, "--std", given, cwd=tmp_path)
    short = gradaudit(*scan, "--std", ",".join(map(repr, STD.tolist()[:6])), cwd=tmp_path)
    assert run.code == short.code == 2
    for text in (str(captured.value), run.err, short.err):
        assert shows_numbers({"text": text.encode()}, [STD.double(), MEAN.double()]) == []
    for text in (str(captured.value), " ".join(run.err.split())):
        assert f"places 3 of {COLUMNS}" in text
        assert "say 1" in text
