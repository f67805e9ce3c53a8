"""Inputs that were read one by one, through the whole audit: findings, exhibits and files."""

import base64
import io
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from problems import Says, case_of
from relu_batches import client_of, perceptron
from safetensors.torch import load_file
from test_outputs import mode

from auditor.attacks import labels as label_attack
from auditor.audit import run_audit
from auditor.evidence import is_equal
from auditor.options import make_options
from auditor.outputs import write_audit
from auditor.records import Course, Recovery


def batch():
    """Six samples behind 64 units: some rows hold one sample alone."""
    return client_of(6, module=perceptron(units=64))


def audit(had, evidence="none", attacks=("images.linear_rows", "images.imprint"), truth=False):
    options = make_options(
        attacks=list(attacks), evidence=evidence, preset="fast", device="cpu", budget=60
    )
    return run_audit(case_of(had, truth=truth), options)


def distances(had, pictures):
    """Largest difference of each picture to the nearest true one."""
    apart = (pictures[:, None] - had.inputs[None]).abs().flatten(2).amax(2)
    return apart.amin(1)


def test_single_inputs_are_a_leak_of_their_own():
    result = audit(batch())
    (finding,) = [f for f in result.audit.findings if f.code == "GA204"]
    assert finding.certainty == "verified"
    assert result.audit.verdict.status == "leak"
    assert "against the rows of the gradient" in result.audit.verdict.sentence
    assert "restarts" not in result.audit.verdict.sentence


def test_several_attacks_that_read_the_same_inputs_are_one_finding():
    had = batch()
    both = audit(had, attacks=["images.linear_rows", "images.linear_rows"])
    twice = [e for e in both.evidence if any(e.samples)]
    assert len(twice) == 1
    with mock.patch("auditor.audit._run_one", side_effect=lambda *_: twice[0]):
        result = audit(had, attacks=["images.linear_rows", "images.spear"])
    assert len(result.evidence) == 2
    assert [f.code for f in result.audit.findings].count("GA204") == 1


@pytest.mark.parametrize("truth", [False, True])
def test_embedded_evidence_shows_them_and_nothing_else_does(truth):
    had = batch()
    assert audit(had, truth=truth).audit.exhibits == ()
    shown = audit(had, "embed", truth=truth).audit.exhibits
    assert shown
    for exhibit in shown:
        assert len(exhibit.strip) == 1
        picture = Image.open(io.BytesIO(base64.b64decode(exhibit.strip[0])))
        values = torch.from_numpy(np.array(picture, dtype=np.float32)).view(1, 1, 8, 8) / 255
        assert float(distances(had, values)) < 1 / 500
        assert (exhibit.truth is not None) == truth


def test_separate_evidence_holds_them_for_its_owner(tmp_path):
    had = batch()
    result = audit(had, "separate")
    write_audit(result, tmp_path / "audit")
    folder = tmp_path / "audit" / "evidence"
    assert mode(folder) == 0o700
    held = load_file(folder / "evidence.safetensors")
    (evidence,) = [e for e in result.evidence if any(e.samples)]
    assert len(held["inputs"]) == sum(word is not None for word in evidence.samples)
    assert float(distances(had, held["inputs"]).max()) < 1e-4
    assert len(list(folder.glob("sample-*.png"))) == len(held["inputs"])


def searched(had, pictures):
    """A search that ends with these pictures (N, C, H, W), from a start of zeros."""
    film = torch.stack([torch.zeros_like(pictures), pictures])
    return Says(
        Recovery(
            inputs=pictures.double()[None],
            input_labels=had.labels[None],
            courses=(Course((0, 9), (1.0, 0.5), (0, 9), film, "ran out of steps"),),
        )
    )


def audit_with_search(had, pictures):
    """The audit of linear rows and this search, in this order."""
    options = make_options(attacks=["images.linear_rows"], evidence="embed", device="cpu")
    search = searched(had, pictures)
    selected = (*options.selected, search.name)
    attacks = (*options.attacks, search)
    return run_audit(case_of(had), replace(options, attacks=attacks, selected=selected))


def test_a_search_that_failed_does_not_stand_before_them():
    had = batch()
    result = audit_with_search(had, 1 - had.inputs)
    read, failed = result.evidence
    assert not is_equal(result.problem, failed)
    assert [e.label for e in result.audit.exhibits] == ["not read"] * len(read.samples)
    assert all(len(e.strip) == 1 for e in result.audit.exhibits)
    assert [f.code for f in result.audit.findings] == ["GA204"]


def test_a_search_that_found_the_batch_stands_before_them():
    had = batch()
    result = audit_with_search(had, had.inputs)
    assert is_equal(result.problem, result.evidence[1])
    labels = [f"class {label}" for label in had.labels.tolist()]
    assert [e.label for e in result.audit.exhibits] == labels
    assert all(len(e.strip) == 2 for e in result.audit.exhibits)
    assert {f.code for f in result.audit.findings} == {"GA202", "GA204"}


def test_labels_are_estimated_once_for_all_attacks():
    had = batch()
    with mock.patch.object(
        label_attack, "estimate_labels", wraps=label_attack.estimate_labels
    ) as asked:
        audit(had, attacks=["labels", "images.linear_rows", "images.spear", "images.idlg"])
    assert asked.call_count == 1
