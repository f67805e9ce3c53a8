"""Auxiliary pictures from folders and archives."""

import numpy as np
import pytest
import torch
from PIL import Image

from auditor.errors import InputError
from auditor.inputs import load_auxiliary

SHAPE = (3, 6, 5)
PICTURES = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


def folders(root, names):
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.fromarray(PICTURES[place]).save(root / name / "a.png")
    return root


@pytest.mark.parametrize(
    ("names", "labels"), [(["cat", "dog", "ape"], [1, 2, 0]), (["7", "10", "0"], [7, 10, 0])]
)
def test_a_folder_a_class(tmp_path, names, labels):
    found = load_auxiliary(folders(tmp_path / "aux", names), input_shape=SHAPE)
    wanted = torch.from_numpy(PICTURES[:3]).permute(0, 3, 1, 2).float() / 255
    for place, label in enumerate(labels):
        at = found.labels.tolist().index(label)
        assert torch.equal(found.images[at], wanted[place])


@pytest.mark.parametrize("form", ["NHWC", "NCHW", "float"])
def test_an_archive(tmp_path, form):
    images = PICTURES if form == "NHWC" else PICTURES.transpose(0, 3, 1, 2)
    images = images.astype(np.float32) / 255 if form == "float" else images
    np.savez(tmp_path / "aux.npz", images=images, labels=np.array([3, 0, 1, 1]), num_classes=4)
    found = load_auxiliary(tmp_path / "aux.npz", input_shape=SHAPE)
    wanted = torch.from_numpy(PICTURES).permute(0, 3, 1, 2).float() / 255
    assert torch.allclose(found.images, wanted)
    assert found.labels.tolist() == [3, 0, 1, 1]
    assert found.labels.dtype == torch.int64


def test_grey_pictures_without_a_channel(tmp_path):
    np.savez(tmp_path / "aux.npz", images=PICTURES[..., 0], labels=np.zeros(4, dtype=np.int64))
    found = load_auxiliary(tmp_path / "aux.npz", input_shape=(1, 6, 5))
    assert torch.equal(found.images[:, 0], torch.from_numpy(PICTURES[..., 0]).float() / 255)


BAD = {
    "no labels": {"images": PICTURES},
    "another size": {"images": PICTURES[:, :5], "labels": np.zeros(4, dtype=np.int64)},
    "too few labels": {"images": PICTURES, "labels": np.zeros(3, dtype=np.int64)},
    "no pictures": {"images": PICTURES[:0], "labels": np.zeros(0, dtype=np.int64)},
    "negative label": {"images": PICTURES, "labels": np.array([0, 1, -1, 2])},
    "labels with a point": {"images": PICTURES, "labels": np.zeros(4)},
    "normalised": {"images": PICTURES / 64.0 - 2, "labels": np.zeros(4, dtype=np.int64)},
    "not a number": {"images": PICTURES * np.nan, "labels": np.zeros(4, dtype=np.int64)},
    "whole numbers": {"images": PICTURES.astype(np.int32), "labels": np.zeros(4, dtype=np.int64)},
}


@pytest.mark.parametrize("name", BAD)
def test_archives_that_do_not_fit(tmp_path, name):
    np.savez(tmp_path / "aux.npz", **BAD[name])
    with pytest.raises(InputError, match="auxiliary data"):
        load_auxiliary(tmp_path / "aux.npz", input_shape=SHAPE)


def test_a_folder_without_pictures(tmp_path):
    (tmp_path / "aux" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match="0 in 1 folders under 'aux'"):
        load_auxiliary(tmp_path / "aux", input_shape=SHAPE)


def test_files_that_are_neither(tmp_path):
    torch.save({"images": torch.zeros(1)}, tmp_path / "aux.pt")
    with pytest.raises(InputError, match=r"an \.npz file"):
        load_auxiliary(tmp_path / "aux.pt", input_shape=SHAPE)
    with pytest.raises(InputError, match="no such file"):
        load_auxiliary(tmp_path / "nowhere", input_shape=SHAPE)
