"""What the client really had: forms, units, and refusals."""

import hostile
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from auditor.errors import InputError, UnsafeFileError
from auditor.inputs import load_truth

BYTES = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
LABELS = np.array([7, 3])


def npz(folder, inputs=BYTES, labels=LABELS, **more):
    return hostile.arrays(folder, {"inputs": inputs, "labels": labels, **more})


def torch_file(folder):
    table = {"inputs": torch.tensor(BYTES) / 255, "labels": torch.tensor(LABELS)}
    return hostile.saved(folder, "truth.pt", table)


def safetensors(folder):
    table = {"inputs": torch.tensor(BYTES) / 255, "labels": torch.tensor(LABELS)}
    save_file(table, folder / "truth.safetensors")
    return folder / "truth.safetensors"


@pytest.mark.parametrize("make", [npz, torch_file, safetensors])
def test_every_form_comes_back_in_pixel_units(tmp_path, make):
    truth = load_truth(make(tmp_path))
    assert truth.inputs.dtype is torch.float32
    assert np.array_equal(truth.inputs.numpy(), BYTES / np.float32(255))
    assert truth.labels.dtype is torch.int64
    assert truth.labels.tolist() == [7, 3]


def test_doubles_keep_their_digits(tmp_path):
    inputs = BYTES / 255.0
    assert np.array_equal(load_truth(npz(tmp_path, inputs)).inputs.numpy(), inputs)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint32])
def test_labels_of_any_integer_type(tmp_path, kind):
    assert load_truth(npz(tmp_path, labels=LABELS.astype(kind))).labels.tolist() == [7, 3]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda d: hostile.arrays(d, {"inputs": BYTES}), "no 'labels'"),
        (lambda d: hostile.arrays(d, {"x": BYTES}), "no 'inputs', 'labels'"),
        (lambda d: npz(d, BYTES[0]), r"shape 3x4x5"),
        (lambda d: npz(d, BYTES.transpose(0, 2, 3, 1)), "channels seem to come last"),
        (lambda d: npz(d, BYTES[:, :2]), "1 or 3 channels"),
        (lambda d: npz(d, BYTES[:0], LABELS[:0]), r"\(N, C, H, W\)"),
        (lambda d: npz(d, BYTES / 64.0), "not normalised"),
        (lambda d: npz(d, BYTES / 255.0 - 0.5), "not normalised"),
        (lambda d: npz(d, np.full_like(BYTES, np.nan, dtype=float)), "not normalised"),
        (lambda d: npz(d, BYTES.astype(np.int32)), "uint8 0..255"),
        (lambda d: npz(d, labels=LABELS[:1]), "2 inputs and 1 labels"),
        (lambda d: npz(d, labels=LABELS[:, None]), r"\(N,\)"),
        (lambda d: npz(d, labels=LABELS / 2), "whole numbers"),
        (lambda d: npz(d, labels=-LABELS), "negative"),
        (lambda d: npz(d, labels=np.array(["a", "b"])), r"'labels' \(<U1\)"),
        (lambda d: npz(d, BYTES.astype(np.longdouble)), "float128|at most 64 bits"),
        (lambda d: hostile.saved(d, "t.pt", [torch.ones(2)]), "type 'list'"),
        (hostile.picture, "another kind"),
        (hostile.absent, "no such file"),
        (lambda d: hostile.cut(npz(d)), "truncated"),
    ],
)
def test_bad_truth_is_refused(tmp_path, make, words):
    with pytest.raises(InputError, match=words):
        load_truth(make(tmp_path))


@pytest.mark.parametrize(
    "make", [hostile.lying_npz, hostile.object_npz, hostile.torch_pickle, hostile.expanded]
)
def test_hostile_truth_is_refused(tmp_path, make):
    with pytest.raises(UnsafeFileError):
        load_truth(make(tmp_path))
    assert not (tmp_path / hostile.MARK).exists()
