"""Models of rows of a table: read, checked, measured and told, without the words of pictures."""

import csv
import json
import re

import numpy
import pytest
import torch
from runs import gradaudit
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tables import (
    CLASSES,
    COLUMNS,
    gradients,
    labels_for,
    perceptron,
    standardised,
    statistics,
    table,
    write_case,
    write_csv,
)
from torch import nn

import auditor
from auditor import capture
from auditor.api import case_of
from auditor.attacks import ATTACKS
from auditor.attacks.closed_form import pixel_bounds
from auditor.attacks.second_order import polish
from auditor.audit import run_audit
from auditor.bounds.fisher import PRIOR
from auditor.errors import InputError, UsageError
from auditor.evidence import best_inputs
from auditor.facts import Flags
from auditor.inversion.constraints import Bounds
from auditor.metrics import flat_of, psnr
from auditor.options import make_options
from auditor.problem import from_own_units, is_in_range, to_model_units, to_own_units, to_pixels
from auditor.records import FileRef, LoadedModel, Truth
from auditor.row_words import of_rows

PICTURE_WORDS = re.compile(r"(?i)\b(pictures?|images?(?!\.)|pixels?|gr[ae]y)\b")
FILE = FileRef("model", "in memory", 0, "")


def audited(net, rows, labels, *, attacks=None, truth=True, seed=0, **flags):
    """The result for a client that standardised its rows, and said so."""
    mean, std = statistics(rows.shape[1])
    known = Flags(batch_size=len(rows), mean=tuple(mean.tolist()), std=tuple(std.tolist()), **flags)
    case = case_of(
        LoadedModel(net, FILE),
        gradients(net, standardised(rows), labels),
        known,
        Truth(rows, labels) if truth else None,
    )
    return run_audit(case, make_options(attacks=attacks, device="cpu", budget=60, seed=seed))


def error_of(result, rows):
    """The largest error of any value, in deviations, in the order that fits best."""
    evidence = next(e for e in result.evidence if e.best is not None)
    found = best_inputs(result.problem, evidence).double()
    apart = (found[:, None] - rows[None]).abs() / statistics(rows.shape[1])[1]
    assert sorted(apart.amax(2).argmin(1).tolist()) == list(range(len(rows)))
    return float(apart.amax(2).amin(1).max())


def first(result):
    finding = result.audit.findings[0]
    return finding.code, finding.certainty, finding.severity.band


# --------------------------------------------------------------------------- what is recovered


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh])
def test_one_row_is_proved_and_right(activation, seed):
    rows, labels = table(1, seed=seed), labels_for(1)
    result = audited(perceptron(activation=activation, seed=seed), rows, labels)
    assert first(result) == ("GA201", "proved", "critical")
    assert error_of(result, rows) < 1e-4
    assert "1/250 of a column's deviation" in result.audit.findings[0].summary


@pytest.mark.parametrize("count", [2, 4, 7])
def test_a_batch_through_relu_is_read_with_its_labels(count):
    rows, labels = table(count, seed=count), labels_for(count)
    result = audited(
        perceptron(units=200, seed=count), rows, labels, attacks=["labels", "images.spear"]
    )
    assert first(result) == ("GA201", "verified", "critical")
    assert error_of(result, rows) < 1e-4
    [evidence] = [e for e in result.evidence if e.best is not None]
    found = evidence.recovery.input_labels[evidence.best]
    assert sorted(found.tolist()) == sorted(labels.tolist())


def test_a_batch_through_tanh_is_searched_for():
    rows, labels = table(3, seed=1), labels_for(3)
    result = audited(perceptron(activation=nn.Tanh, units=80), rows, labels)
    assert first(result)[0] == "GA201"
    assert error_of(result, rows) < 1e-2
    assert {r.name for r in result.audit.attacks if r.outcome == "leak"} >= {"images.lm"}


def test_layers_below_a_deep_head_do_not_matter():
    rows, labels = table(1), labels_for(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Linear(COLUMNS, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, CLASSES)
        ).eval()
    result = audited(net, rows, labels)
    assert first(result) == ("GA201", "proved", "critical")
    assert error_of(result, rows) < 1e-4


def test_rows_in_their_own_units_without_statistics():
    """The model takes columns as they come; their size is in the first layer's gradient."""
    rows = table(1, seed=3)
    net = perceptron(activation=nn.Tanh)
    with torch.no_grad():
        net[0].weight /= 100  # or tanh has no slope left
    audit = auditor.scan(
        net,
        gradients(net, rows.float(), labels_for(1)),
        batch_size=1,
        truth=Truth(rows, labels_for(1)),
        device="cpu",
    )
    assert (audit.findings[0].code, audit.findings[0].certainty) == ("GA201", "proved")
    told = {a.what: a.value for a in audit.assumptions}
    assert told["deviation of a column"] == "its size in the first layer's gradient"
    [measured] = [f for f in audit.findings if f.code == "GA203"]
    assert {m.name for m in measured.measures} == {
        "PSNR, median (measured)",
        "PSNR, worst-protected sample (measured)",
        "error, median (measured)",
    }
    assert next(m.value for m in measured.measures if m.unit == "deviations") < 1e-4


def test_the_size_of_a_column_is_that_of_the_only_row():
    rows = table(1, seed=3)
    net = perceptron()
    with torch.no_grad():
        net[0].weight /= 100
    case = case_of(
        LoadedModel(net, FILE), gradients(net, rows.float(), labels_for(1)), Flags(batch_size=1)
    )
    scales = torch.tensor(case.knowledge.scales, dtype=torch.float64)
    assert torch.allclose(scales, rows[0].abs().clamp_min(1.0), rtol=1e-4)


# --------------------------------------------------------------------------- units


def problem_of(count=2):
    return audited(perceptron(), table(count), labels_for(count), attacks=["labels"]).problem


def test_units_go_there_and_back():
    problem, rows = problem_of(), table(4, seed=9)
    inputs = standardised(rows).double()
    assert torch.allclose(to_own_units(problem, inputs), rows, atol=1e-5)
    assert torch.allclose(from_own_units(problem, rows), to_pixels(problem, inputs), atol=1e-6)
    assert torch.allclose(to_model_units(problem, to_pixels(problem, inputs)), inputs, atol=1e-12)


def test_what_is_known_of_a_column_is_what_is_known_of_a_pixel():
    """Mean 1/2, variance 1/12: the prior of the bounds, so that their statement holds."""
    inputs = torch.randn(200_000, COLUMNS, generator=torch.Generator().manual_seed(0)).double()
    units = to_pixels(problem_of(), inputs)
    assert torch.allclose(units.mean(0), torch.full((COLUMNS,), 0.5).double(), atol=3e-3)
    assert torch.allclose(units.var(0), torch.full((COLUMNS,), PRIOR).double(), rtol=2e-2)
    assert float(units.min()) < 0  # nothing is clipped
    assert float(units.max()) > 1


def test_decibels_of_a_row_are_those_of_its_error_in_deviations():
    problem = problem_of()
    inputs = standardised(table(1)).double()
    off = inputs + 0.1  # a tenth of each column's deviation: 0.1 / sqrt(12) of the width
    found = psnr(to_pixels(problem, off), to_pixels(problem, inputs))
    assert float(found) == pytest.approx(20 + 10.79, abs=0.01)


def test_no_value_is_out_of_range_but_one_that_is_no_number():
    problem = problem_of()
    assert is_in_range(problem, torch.tensor([[1e9, -1e9] * (COLUMNS // 2)]))
    assert not is_in_range(problem, torch.full((1, COLUMNS), torch.nan))


def test_the_mean_of_a_batch_says_nothing_of_a_row():
    rows = torch.tensor([[0.9, 0.9], [1.1, 1.1], [0.5, 0.5]], dtype=torch.float64)
    mean = rows.mean(0)
    assert torch.equal(flat_of(rows)[:2], mean.expand(2, -1))
    assert torch.equal(flat_of(rows)[2], torch.full((2,), 0.5, dtype=torch.float64))
    assert torch.equal(flat_of(rows[:1]), torch.full((1, 2), 0.5, dtype=torch.float64))


# --------------------------------------------------------------------------- who says what


def test_a_captured_dump_says_what_the_model_takes(tmp_path):
    write_case(tmp_path, table(3), labels_for(3))
    with safe_open(tmp_path / "grads.safetensors", framework="pt") as file:
        said = json.loads(file.metadata()["gradaudit"])
    assert (said["modality"], said["input_shape"], said["batch_size"]) == ("features", [COLUMNS], 3)
    assert len(said["mean"]) == len(said["std"]) == COLUMNS


def test_numbers_of_tokens_are_no_columns(tmp_path):
    net = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 2))
    with capture(net, tmp_path / "g.safetensors"):
        net(torch.ones(1, 5, dtype=torch.int64)).sum().backward()
    with safe_open(tmp_path / "g.safetensors", framework="pt") as file:
        said = json.loads(file.metadata()["gradaudit"])
    assert "input_shape" not in said
    assert "modality" not in said


def test_without_metadata_the_layers_say_it():
    net, rows = perceptron(), table(1)
    given = gradients(net, standardised(rows), labels_for(1))
    audit = auditor.scan(net, given, batch_size=1, device="cpu")
    assert audit.model.input_shape == (COLUMNS,)
    assert {a.what: a.origin for a in audit.assumptions}["input shape"] == "deduced"
    assert audit.verdict.severity.band == "critical"


def test_a_model_that_flattens_pictures_stays_one_of_pictures_unless_it_is_said():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 3)).eval()
    given = gradients(net, torch.rand(1, 16), torch.tensor([1]))
    plain = auditor.scan(net, given, batch_size=1, device="cpu", attacks=["labels"])
    assert plain.model.input_shape == (1, 4, 4)
    told = auditor.scan(
        net, given, batch_size=1, device="cpu", attacks=["labels"], modality="features"
    )
    assert told.model.input_shape == (16,)


def test_statistics_of_columns_are_in_no_list_of_facts():
    result = audited(perceptron(), table(1), labels_for(1), attacks=["labels"])
    told = {a.what: a.value for a in result.audit.assumptions}
    assert told["mean"] == told["std"] == f"{COLUMNS} numbers, one a column"
    assert told["deviation of a column"] == "1, as columns go in"


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({"input_shape": (3, 4), "batch_size": 1}, "one number of columns"),
        ({"input_shape": (3, 4, 4), "modality": "features", "batch_size": 1}, "one number"),
        ({"input_shape": (COLUMNS,), "modality": "images", "batch_size": 1}, "three sizes"),
        ({"mean": (1.0, 2.0), "batch_size": 1}, "one for each channel or column"),
        ({"columns": ("a", "b"), "batch_size": 1}, "one name for each"),
        ({"input_shape": (COLUMNS + 1,), "batch_size": 1}, f"rows of {COLUMNS + 1} numbers"),
    ],
    ids=["two sides", "picture", "row", "two means", "two names", "other width"],
)
def test_what_does_not_fit_is_refused_in_words(flags, wanted):
    net = perceptron()
    given = gradients(net, standardised(table(1)), labels_for(1))
    with pytest.raises((UsageError, InputError), match=re.escape(wanted)):
        auditor.scan(net, given, **flags)


def test_a_single_logit_is_refused():
    net = perceptron(classes=1)
    logit = net(torch.rand(1, COLUMNS))
    loss = nn.functional.binary_cross_entropy_with_logits(logit, torch.ones(1, 1))
    parts = torch.autograd.grad(loss, list(net.parameters()))
    given = dict(zip(dict(net.named_parameters()), parts, strict=True))
    with pytest.raises(InputError, match="a single logit"):
        auditor.scan(net, given, batch_size=1, device="cpu")


class WithCategories(nn.Module):
    """Three numbers, and one category by its number."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.body = nn.Sequential(nn.Linear(7, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, x):
        return self.body(torch.cat([x[:, :3], self.table(x[:, 3].long())], 1))


def test_columns_of_categories_are_refused():
    net = WithCategories()
    given = gradients(net, torch.tensor([[0.1, 0.2, 0.3, 2.0]]), torch.tensor([0]))
    for flags in ({"input_shape": (4,)}, {"modality": "features"}):
        with pytest.raises(UsageError, match="a model with an embedding"):
            auditor.scan(net, given, batch_size=1, **flags)


def test_auxiliary_pictures_are_refused(tmp_path):
    net = perceptron()
    given = gradients(net, standardised(table(1)), labels_for(1))
    with pytest.raises(UsageError, match="rows of a table"):
        auditor.scan(net, given, batch_size=1, auxiliary=tmp_path)


def test_attacks_that_need_pictures_say_so():
    net = perceptron(activation=nn.Tanh)
    rows = table(2)
    noisy = {
        name: part + 1e-3 * torch.randn(part.shape, generator=torch.Generator().manual_seed(1))
        for name, part in gradients(net, standardised(rows), labels_for(2)).items()
    }
    audit = auditor.scan(
        net, noisy, batch_size=2, device="cpu", attacks=["images.defended", "images.priors"]
    )
    reasons = {a.name: a.reason for a in audit.attacks if a.outcome == "skipped"}
    assert reasons.keys() == {"images.defended", "images.priors"}
    for reason in reasons.values():
        assert "columns of a table have none" in reason
    assert audit.verdict.status == "inconclusive"


# --------------------------------------------------------------------------- words


def test_names_keep_their_words():
    assert of_rows("Images and pixels of a picture") == "Rows and values of a row"
    assert of_rows("images.layers reads 'picture.weight'") == "images.layers reads 'picture.weight'"
    assert of_rows('the file "image of ann.png" holds images') == (
        'the file "image of ann.png" holds rows'
    )


def test_no_sentence_of_an_audit_speaks_of_pictures():
    result = audited(perceptron(activation=nn.Tanh), table(2), labels_for(2), truth=True)
    audit = result.audit
    texts = [audit.verdict.sentence, *audit.verdict.reasons]
    texts += [text for f in audit.findings for text in (f.title, f.summary, *f.premises)]
    texts += [text for a in audit.attacks for text in (a.title, a.reason)]
    texts += [c.message for c in audit.caveats]
    texts += list(audit.trust.bound.assumptions if audit.trust.bound else ())
    assert len(texts) > 3 * len(ATTACKS) / 2
    assert [text for text in texts if PICTURE_WORDS.search(text)] == []


def test_the_names_of_a_model_stay():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.image, self.head = nn.Linear(COLUMNS, 20), nn.Linear(20, 2)

        def forward(self, x):
            return self.head(torch.tanh(self.image(x)))

    result = audited(Named().eval(), table(2), labels_for(2), attacks=["images.spear"])
    [told] = [a.reason for a in result.audit.attacks if a.name == "images.spear"]
    assert "'image.weight'" in told


# --------------------------------------------------------------------------- end to end


def test_from_a_training_loop_to_the_report(tmp_path):
    rows, labels = table(2, seed=4), labels_for(2)
    write_case(tmp_path, rows, labels)
    run = gradaudit(
        *("scan", "model.pt", "grads.safetensors", "--modality", "features"),
        *("--evidence", "separate", "--out", "report"),
        cwd=tmp_path,
    )
    assert run.code == 0, run.err
    assert f"input {COLUMNS} columns" in run.err
    audit = json.loads((tmp_path / "report/audit.json").read_text())
    assert audit["verdict"]["severity"]["band"] == "critical"
    assert audit["model"]["input_shape"] == [COLUMNS]
    folder = tmp_path / "report" / "evidence"
    assert {path.name for path in folder.iterdir()} == {"evidence.safetensors", "rows.csv"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder, *folder.iterdir()))
    kept = load_file(folder / "evidence.safetensors")
    assert kept["inputs"].dtype is torch.float32
    place = int((kept["inputs"][0].double() - rows).square().sum(1).argmin())
    assert torch.allclose(kept["inputs"][0].double(), rows[place], rtol=1e-4, atol=1e-4)
    assert kept["labels"].tolist() in (labels.tolist(), labels.tolist()[::-1])
    with (folder / "rows.csv").open(newline="") as stream:
        header, *body = csv.reader(stream)
    assert header == [*(f"column {number}" for number in range(COLUMNS)), "label"]
    assert [float(cell) for cell in body[0][:-1]] == pytest.approx(rows[place].tolist(), abs=1e-3)
    page = (tmp_path / "report/report.html").read_text()
    assert f"{COLUMNS} columns, train mode" in page or f"{COLUMNS} columns, eval mode" in page
    assert "<img" not in page


def test_simulated_rows_of_a_csv_are_shown_beside_the_truth(tmp_path):
    torch.save(perceptron(), tmp_path / "model.pt")
    rows, labels = table(6, seed=5), labels_for(6)
    write_csv(tmp_path / "rows.csv", rows, labels)
    mean, std = statistics()
    (tmp_path / "mean.txt").write_text("\n".join(map(str, mean.tolist())))
    run = gradaudit(
        *("simulate", "model.pt", "--input", "rows.csv", "--label-column", "diagnosis"),
        *("--index", "4", "--mean", "mean.txt", "--std", ",".join(map(str, std.tolist()))),
        *("--evidence", "embed", "--out", "report"),
        cwd=tmp_path,
    )
    assert run.code == 0, run.err
    audit = json.loads((tmp_path / "report/audit.json").read_text())
    [exhibit] = audit["exhibits"]
    assert exhibit["columns"] == [f"lab_{number}" for number in range(COLUMNS)]
    assert exhibit["values"] == pytest.approx(rows[4].tolist(), rel=1e-4, abs=1e-4)
    assert exhibit["true_values"] == pytest.approx(rows[4].tolist(), rel=1e-5, abs=1e-5)
    assert exhibit["strip"] == []
    page = (tmp_path / "report/report.html").read_text()
    assert "<bdi>lab_0</bdi>" in page
    assert f"{exhibit['values'][0]:.7g}" in page
    assert {"GA201", "GA203"} <= {f["code"] for f in audit["findings"]}
    command = audit["provenance"]["command"]
    assert command[command.index("--std") + 1] == "[removed]"
    assert gradaudit("verify", "report/report.html", cwd=tmp_path).code == 0


@pytest.mark.parametrize("form", ["npz", "pt", "safetensors"])
def test_rows_come_from_other_files_too(tmp_path, form):
    torch.save(perceptron(units=128), tmp_path / "model.pt")
    kept = {"inputs": standardised(table(2)), "labels": labels_for(2)}
    path = tmp_path / f"rows.{form}"
    if form == "npz":
        numpy.savez(path, **{name: part.numpy() for name, part in kept.items()})
    elif form == "pt":
        torch.save(kept, path)
    else:
        save_file(kept, path)
    run = gradaudit(
        *("simulate", "model.pt", "--input", path.name, "--attacks", "labels,images.spear"),
        *("--index", "1", "--index", "0", "--out", "report"),
        cwd=tmp_path,
    )
    assert run.code == 0, run.err
    assert "verified" in run.err


def test_a_row_is_read_off_an_update_of_several_steps(tmp_path):
    torch.save(perceptron(), tmp_path / "model.pt")
    write_csv(tmp_path / "rows.csv", standardised(table(1)).double(), labels_for(1))
    run = gradaudit(
        *("simulate", "model.pt", "--input", "rows.csv", "--label-column", "diagnosis"),
        *("--lr", "0.05", "--local-steps", "3", "--evidence", "separate"),
        cwd=tmp_path,
    )
    assert run.code == 0, run.err
    found = load_file(tmp_path / "gradaudit-report/evidence/evidence.safetensors")["inputs"]
    assert torch.allclose(found, standardised(table(1)), atol=1e-3)


def test_the_truth_of_a_scan_may_be_rows(tmp_path):
    rows, labels = table(1), labels_for(1)
    write_case(tmp_path, rows, labels)
    torch.save({"inputs": rows, "labels": labels}, tmp_path / "truth.pt")
    run = gradaudit("scan", "model.pt", "grads.safetensors", "--truth", "truth.pt", cwd=tmp_path)
    assert run.code == 0, run.err
    found = json.loads((tmp_path / "gradaudit-report/audit.json").read_text())["findings"]
    [measured] = [f for f in found if f["code"] == "GA203"]
    assert next(m["value"] for m in measured["measures"] if m["unit"] == "deviations") < 1e-4


def test_the_truth_of_a_scan_may_be_a_csv_which_names_the_columns(tmp_path):
    rows, labels = table(1), labels_for(1)
    write_case(tmp_path, rows, labels)
    write_csv(tmp_path / "truth.csv", rows, labels)
    asked = ("scan", "model.pt", "grads.safetensors", "--truth", "truth.csv")
    run = gradaudit(*asked, "--label-column", "diagnosis", "--evidence", "embed", cwd=tmp_path)
    assert run.code == 0, run.err
    audit = json.loads((tmp_path / "gradaudit-report/audit.json").read_text())
    [measured] = [f for f in audit["findings"] if f["code"] == "GA203"]
    assert next(m["value"] for m in measured["measures"] if m["unit"] == "deviations") < 1e-4
    assert audit["exhibits"][0]["columns"] == [f"lab_{number}" for number in range(COLUMNS)]


@pytest.mark.parametrize(
    ("asked", "code", "words"),
    [
        (("--truth", "truth.csv"), 3, "--label-column"),  # what to do
        (("--truth", "truth.csv", "--label-column", "lab_x"), 2, "no column 'lab_x'"),
        (("--label-column", "diagnosis"), 2, "--truth FILE.csv"),
        (("--truth", "truth.pt", "--label-column", "diagnosis"), 2, "no header"),
        (("--truth", "narrow.csv", "--label-column", "diagnosis"), 2, "columns"),
    ],
)
def test_a_csv_of_the_truth_that_cannot_be_meant(tmp_path, asked, code, words):
    rows, labels = table(1), labels_for(1)
    write_case(tmp_path, rows, labels)
    write_csv(tmp_path / "truth.csv", rows, labels)
    write_csv(tmp_path / "narrow.csv", rows[:, 1:], labels)
    torch.save({"inputs": rows, "labels": labels}, tmp_path / "truth.pt")
    run = gradaudit("scan", "model.pt", "grads.safetensors", *asked, cwd=tmp_path)
    assert run.code == code, run.err
    assert words in run.err


def test_names_of_columns_that_a_spreadsheet_would_run_are_tamed(tmp_path):
    names = ["=cmd()", *(f"lab_{number}" for number in range(1, COLUMNS))]
    torch.save(perceptron(), tmp_path / "model.pt")
    write_csv(tmp_path / "rows.csv", standardised(table(1)), labels_for(1), names=names)
    run = gradaudit(
        *("simulate", "model.pt", "--input", "rows.csv", "--label-column", "diagnosis"),
        *("--evidence", "separate"),
        cwd=tmp_path,
    )
    assert run.code == 0, run.err
    text = (tmp_path / "gradaudit-report/evidence/rows.csv").read_text()
    assert text.startswith("'=cmd(),lab_1,")


def test_what_would_have_helped_is_asked_of_rows_too(tmp_path):
    rows, labels = table(1), labels_for(1)
    net = write_case(tmp_path, rows, labels)
    audit = auditor.scan(
        net, tmp_path / "grads.safetensors", what_if=True, budget=8, device="cpu",
        truth=Truth(rows, labels),
    )  # fmt: skip
    assert audit.trust.canaries is None or "normal numbers" in audit.trust.canaries.pictures
    tried = {row.setting: row for row in audit.trust.what_if.rows}
    bare = next(row for row in tried.values() if row.defence == "none")
    assert bare.psnr > 59
    assert bare.bound_psnr > 59


def test_the_claim_can_be_wrong_and_is_then_no_leak():
    """A dump of other weights: nothing is verified, nothing is measured as recovered."""
    rows, labels = table(2), labels_for(2)
    net, other = perceptron(seed=0, activation=nn.Tanh), perceptron(seed=1, activation=nn.Tanh)
    mean, std = statistics()
    known = Flags(batch_size=2, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    given = gradients(other, standardised(rows), labels)
    case = case_of(LoadedModel(net, FILE), given, known, Truth(rows, labels))
    options = make_options(attacks=["images.lm"], device="cpu", budget=5)
    result = run_audit(case, options)
    assert not [f for f in result.audit.findings if f.code in {"GA201", "GA203"}]


def test_what_a_withheld_first_layer_hides_is_left_open():
    """Fewer units than columns, and no gradient of theirs: no bounds and no neighbours help."""
    net = perceptron(units=COLUMNS // 2, activation=nn.Sigmoid)
    given = gradients(net, standardised(table(1)), labels_for(1))
    kept = {name: part for name, part in given.items() if not name.startswith("0.")}
    audit = auditor.scan(net, kept, batch_size=1, device="cpu", attacks=["images.layers"])
    [report] = [a for a in audit.attacks if a.name == "images.layers"]
    assert report.links[-1].undetermined == COLUMNS // 2
    assert "hides its input" in report.reason
    [finding] = audit.findings
    assert (finding.code, finding.certainty) == ("GA202", "consistent")
    assert finding.severity.band == "low"


def test_columns_have_no_bounds():
    assert pixel_bounds(problem_of()) == Bounds()


def test_a_claim_may_be_polished_beyond_any_range():
    rows, labels = table(1, seed=3), labels_for(1)
    result = audited(perceptron(activation=nn.Tanh), rows, labels, attacks=["labels"])
    far = standardised(rows).double() * 1.01
    assert float(far.abs().max()) > 1
    found = polish(result.problem, far, labels, steps=20, expired=lambda: False)
    assert torch.allclose(found, standardised(rows).double(), atol=1e-5)
