"""Pictures and data sets: values, sizes, and refusals."""

import struct
import zlib

import hostile
import numpy as np
import pytest
import torch
from PIL import Image

from auditor.errors import InputError, UsageError
from auditor.inputs import load_dataset_samples, load_images

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def picture(folder, pixels=PIXELS, name="a.png"):
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def test_pixels_are_exact_where_nothing_is_changed(tmp_path):
    grey = picture(tmp_path, PIXELS[:, :, 0], "g.png")
    images, notes = load_images([picture(tmp_path)] * 2, input_shape=(3, 6, 5))
    assert images.shape == (2, 3, 6, 5)
    assert images.dtype is torch.float32
    assert np.array_equal(images[1].numpy(), PIXELS.transpose(2, 0, 1) / np.float32(255))
    assert notes == ()
    images, _ = load_images([grey], input_shape=(1, 6, 5))
    assert np.array_equal(images[0, 0].numpy(), PIXELS[:, :, 0] / np.float32(255))


def test_grey_to_colour_repeats_the_channel(tmp_path):
    grey = picture(tmp_path, PIXELS[:, :, 0])
    images, _ = load_images([grey], input_shape=(3, 6, 5))
    assert torch.equal(images[:, 0], images[:, 2])


def test_changes_are_noted(tmp_path):
    flat = np.full((6, 5, 4), 51, dtype=np.uint8)
    images, notes = load_images([picture(tmp_path, flat)], input_shape=(3, 12, 8))
    assert torch.equal(images, torch.full((1, 3, 12, 8), 0.2))
    assert notes == ("a.png resized from 6x5 to 12x8", "transparency of a.png dropped")


def test_resizing_is_bilinear(tmp_path):
    """Doubling a step of 0 and 200: values at a quarter and three quarters between the two."""
    step = np.array([[0, 200]], dtype=np.uint8)
    images, _ = load_images([picture(tmp_path, step)], input_shape=(1, 1, 4))
    assert (images[0, 0, 0] * 255).round().tolist() == [0, 50, 150, 200]


def bomb(folder):
    """A PNG header that claims 60000 x 60000 pixels."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b""))
    return folder / "bomb.png"


def sixteen_bits(folder):
    Image.fromarray(np.full((4, 4), 60000, dtype=np.uint16)).save(folder / "deep.png")
    return folder / "deep.png"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (hostile.absent, "no such file"),
        (hostile.directory, "a directory"),
        (hostile.empty, "an empty file"),
        (hostile.text, "no picture that can be read"),
        (lambda d: hostile.saved(d, "m.png", [1]), "no picture that can be read"),
        (lambda d: hostile.cut(picture(d)), "no picture that can be read"),
        (bomb, "far too many pixels"),
        (sixteen_bits, "more than eight bits"),
    ],
)
def test_bad_pictures_are_refused(tmp_path, make, words):
    with pytest.raises(InputError, match=words):
        load_images([make(tmp_path)], input_shape=(3, 8, 8))


def test_shapes_that_no_picture_has(tmp_path):
    with pytest.raises(UsageError, match="1 or 3 channels"):
        load_images([picture(tmp_path)], input_shape=(2, 6, 5))
    with pytest.raises(UsageError, match="0 pictures"):
        load_images([], input_shape=(3, 6, 5))


def mnist(root, split):
    """Ten samples in the format of the data set's own files."""
    images = np.arange(10 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(10, 28, 28)
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    head = struct.pack(">4I", 0x803, 10, 28, 28)
    (folder / f"{split}-images-idx3-ubyte").write_bytes(head + images.tobytes())
    labels = struct.pack(">2I", 0x801, 10) + bytes(range(10))
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(labels)
    return images


def test_samples_of_a_data_set(tmp_path):
    images = mnist(tmp_path, "train")
    mnist(tmp_path, "t10k")
    inputs, labels = load_dataset_samples(tmp_path, "mnist", [7, 2])
    assert inputs.shape == (2, 1, 28, 28)
    assert np.array_equal(inputs[0, 0].numpy(), images[7] / np.float32(255))
    assert labels.tolist() == [7, 2]
    assert labels.dtype is torch.int64
    with pytest.raises(InputError, match="indices from 0 to 9; found 10, -1"):
        load_dataset_samples(tmp_path, "mnist", [3, 10, -1], split="test")


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10", "cifar100"])
def test_data_set_that_is_not_there(tmp_path, name):
    with pytest.raises(InputError, match="no complete copy"):
        load_dataset_samples(tmp_path, name, [0])
    assert list(tmp_path.rglob("*.gz")) == []


def test_unknown_data_set(tmp_path):
    with pytest.raises(UsageError, match="one of mnist"):
        load_dataset_samples(tmp_path, "imagenet", [0])
