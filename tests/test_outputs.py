"""What lands on disk: one directory an audit, whole or not at all, and who may read it."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from runs import LABEL, contents, pictures, small_net
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F

from auditor import outputs
from auditor.api import case_of
from auditor.audit import run_audit
from auditor.errors import UsageError
from auditor.facts import Flags
from auditor.options import make_options
from auditor.outputs import write_audit
from auditor.records import FileRef, LoadedModel
from auditor.report.audit_json import from_json
from auditor.report.html import to_html

WRITTEN = {"audit.json", "report.html"}


def result_of(evidence="none", attacks=None, labels=(LABEL,), size=None, noise=0.0, **flags):
    """An audit of what a client with `labels` would have sent."""
    net = small_net()
    loss = F.cross_entropy(net(pictures(len(labels))), torch.tensor(labels))
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    generator = torch.Generator().manual_seed(0)
    sent = [g + noise * torch.randn(g.shape, generator=generator) for g in gradients]
    case = case_of(
        LoadedModel(net, FileRef("net.pt", "in memory", 0, "")),
        sent,
        Flags(batch_size=size, input_shape=(1, 8, 8), **flags),
    )
    options = make_options(attacks=attacks, evidence=evidence, preset="fast", device="cpu")
    return run_audit(case, options)


@pytest.fixture(scope="module")
def separate():
    return result_of("separate", size=1)


@pytest.fixture(scope="module")
def embed():
    return result_of("embed", size=1)


def mode(path):
    return path.stat().st_mode & 0o777


def names(folder):
    return {entry.name for entry in folder.iterdir()}


# --------------------------------------------------------------------------- the two files


def test_the_report_and_the_audit_are_those_of_the_result(tmp_path):
    result = result_of(attacks=["labels"])
    write_audit(result, tmp_path / "out")
    assert names(tmp_path / "out") == WRITTEN
    text = (tmp_path / "out" / "audit.json").read_text(encoding="utf-8")
    assert from_json(text) == result.audit
    page = (tmp_path / "out" / "report.html").read_bytes()
    assert page == to_html(result.audit).encode("utf-8")
    assert mode(tmp_path / "out") == 0o755
    assert names(tmp_path) == {"out"}


def test_missing_directories_are_made(tmp_path):
    write_audit(result_of(attacks=["labels"]), tmp_path / "a" / "b" / "out")
    assert names(tmp_path / "a" / "b" / "out") == WRITTEN


# --------------------------------------------------------------------------- evidence


def test_separate_evidence_is_for_its_owner_alone(tmp_path, separate):
    write_audit(separate, tmp_path / "out")
    folder = tmp_path / "out" / "evidence"
    assert names(tmp_path / "out") == WRITTEN | {"evidence"}
    assert names(folder) == {"evidence.safetensors", "sample-000.png"}
    assert mode(folder) == 0o700
    assert {mode(path) for path in folder.iterdir()} == {0o600}
    assert mode(tmp_path / "out") == 0o755


def test_separate_evidence_holds_labels_and_pictures(tmp_path, separate):
    write_audit(separate, tmp_path / "out")
    folder = tmp_path / "out" / "evidence"
    found = load_file(folder / "evidence.safetensors")
    assert found["labels"].dtype is torch.int64
    assert found["labels"].tolist() == [LABEL]
    assert (found["inputs"].dtype, found["inputs"].shape) == (torch.float32, (1, 1, 8, 8))
    assert 0 <= float(found["inputs"].min()) <= float(found["inputs"].max()) <= 1
    assert torch.allclose(found["inputs"], pictures(), atol=1e-2)
    with safe_open(folder / "evidence.safetensors", "pt") as file:
        assert file.metadata() == {"units": "pixels 0..1", "certainty": "proved"}
    with Image.open(folder / "sample-000.png") as image:
        assert (image.mode, image.size) == ("L", (8, 8))
        shown = torch.from_numpy(np.array(image).astype(int))
    assert torch.equal(shown, (found["inputs"][0, 0] * 255).round().long())


def test_pixels_are_undone_of_the_normalisation(tmp_path):
    """The client's net took (x - 0.5) / 0.25 = z; what we gave as `pictures` was z."""
    net = small_net()
    loss = F.cross_entropy(net((pictures() - 0.5) / 0.25), torch.tensor([LABEL]))
    sent = torch.autograd.grad(loss, list(net.parameters()))
    loaded = LoadedModel(net, FileRef("net.pt", "in memory", 0, ""))
    case = case_of(loaded, sent, Flags((1, 8, 8), (0.5,), (0.25,), 1))
    options = make_options(evidence="separate", preset="fast", device="cpu")
    write_audit(run_audit(case, options), tmp_path / "out")
    found = load_file(tmp_path / "out" / "evidence" / "evidence.safetensors")
    assert torch.allclose(found["inputs"], pictures(), atol=1e-2)


def test_labels_without_pictures(tmp_path):
    """Every label of the batch, sorted, and no picture where none was looked for."""
    labels = (0, 2, 4, 2)
    result = result_of("separate", ["labels"], labels, size=4, reduction="mean")
    write_audit(result, tmp_path / "out")
    folder = tmp_path / "out" / "evidence"
    assert names(folder) == {"evidence.safetensors"}
    found = load_file(folder / "evidence.safetensors")
    assert found.keys() == {"labels"}
    assert found["labels"].tolist() == sorted(labels)


@pytest.mark.parametrize("evidence", ["none", "separate", "embed"])
def test_nothing_leaked_so_nothing_is_kept(tmp_path, evidence):
    result = result_of(evidence, ["labels"], size=1, noise=0.3)
    assert result.audit.verdict.status == "inconclusive"
    write_audit(result, tmp_path / "out")
    assert names(tmp_path / "out") == WRITTEN


def test_a_picture_that_is_no_leak_is_not_kept_as_one(tmp_path):
    """The searches ended, far from the dump: what they ended with is no evidence."""
    result = result_of("separate", ["images.idlg", "images.dlg"], size=1, noise=0.3)
    outcomes = {a.name: a.outcome for a in result.audit.attacks}
    assert {outcomes[name] for name in ("images.idlg", "images.dlg")} == {"failed"}
    assert set(outcomes.values()) == {"not selected", "failed"}
    write_audit(result, tmp_path / "out")
    assert names(tmp_path / "out") == WRITTEN


def test_an_embedding_report_is_for_its_owner_alone(tmp_path, embed):
    write_audit(embed, tmp_path / "out")
    assert names(tmp_path / "out") == WRITTEN
    assert mode(tmp_path / "out") == 0o700
    assert {mode(path) for path in (tmp_path / "out").iterdir()} == {0o600}
    audit = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert [exhibit["label"] for exhibit in audit["exhibits"]] == [f"class {LABEL}"]


@pytest.mark.parametrize(("channels", "shown"), [(1, "L"), (3, "RGB"), (2, "L"), (4, "L")])
def test_pictures_of_any_channel_count_become_png(channels, shown):
    picture = torch.linspace(-0.2, 1.2, channels * 20).view(channels, 4, 5)
    with Image.open(io.BytesIO(outputs.png_of(picture))) as image:
        assert (image.mode, image.size) == (shown, (5, 4))


# --------------------------------------------------------------------------- replacing


@pytest.fixture
def older(tmp_path, separate):
    write_audit(separate, tmp_path / "out")
    return tmp_path / "out"


def test_an_older_audit_is_replaced_whole(older):
    """None of its evidence is left beside the new report."""
    result = result_of("none", ["labels"])
    with pytest.raises(UsageError, match="--overwrite"):
        write_audit(result, older)
    write_audit(result, older, overwrite=True)
    assert names(older) == WRITTEN
    assert from_json((older / "audit.json").read_text(encoding="utf-8")) == result.audit
    assert names(older.parent) == {"out"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_foreign_file_stops_everything(older, embed, overwrite):
    (older / "thesis.tex").write_text("years of work")
    before = contents(older)
    with pytest.raises(UsageError, match="thesis"):
        write_audit(embed, older, overwrite=overwrite)
    assert contents(older) == before


@pytest.mark.parametrize("full", [False, True])
def test_a_directory_that_is_there_stays_the_same_one(tmp_path, separate, embed, full):
    """It may be a mount point, as in the container of SECURITY.md: nobody can move that away."""
    out = tmp_path / "out"
    out.mkdir()
    if full:
        write_audit(separate, out)
    number = out.stat().st_ino
    write_audit(embed, out, overwrite=full)
    assert out.stat().st_ino == number
    assert names(out) == WRITTEN
    assert {mode(path) for path in out.iterdir()} == {0o600}


def test_a_link_is_followed(tmp_path, separate):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    write_audit(separate, tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert names(tmp_path / "disk") == WRITTEN | {"evidence"}
    assert names(tmp_path) == {"disk", "out"}


@pytest.mark.parametrize("step", ["to_json", "to_html", "save", "png_of"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was_there(tmp_path, older, separate, monkeypatch, step, error):
    before = contents(tmp_path)

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(outputs, step, fails)
    told = UsageError if isinstance(error, OSError) else type(error)
    with pytest.raises(told):
        write_audit(separate, older, overwrite=True)
    with pytest.raises(told):
        write_audit(separate, tmp_path / "new")
    assert contents(tmp_path) == before
    assert names(tmp_path) == {"out"}
    assert names(older) == WRITTEN | {"evidence"}
