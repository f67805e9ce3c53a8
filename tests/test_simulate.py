"""The simulated client: the gradient that plain `backward()` leaves, and the misuse it refuses."""

import copy
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runs import CLASSES, contents, gradaudit, pictures, small_net
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from auditor.errors import InputError, UsageError
from auditor.facts import Flags
from auditor.records import Truth
from auditor.simulate import client_gradient, read_samples, simulate_dump

LABELS = torch.tensor([2, 0, 2])


def normed_net(channels=3):
    """Convolution, batch norm with a past, ReLU, and a linear head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
        net = nn.Sequential(*layers, nn.Linear(144, CLASSES))
        net[1].running_mean.uniform_(-1, 1)
        net[1].running_var.uniform_(0.5, 2)
        return net.eval()


def by_backward(net, inputs, labels, *, train=False, mean=0.0, std=1.0, **loss):
    """What a training step leaves in the parameters of a copy."""
    client = copy.deepcopy(net).train(train).requires_grad_(True)
    channels = inputs.shape[1]
    shift = torch.as_tensor(mean, dtype=torch.float32).expand(channels).reshape(1, channels, 1, 1)
    scale = torch.as_tensor(std, dtype=torch.float32).expand(channels).reshape(1, channels, 1, 1)
    F.cross_entropy(client((inputs - shift) / scale), labels, **loss).backward()
    return {name: p.grad for name, p in client.named_parameters() if p.grad is not None}


def same(one, two):
    return one.keys() == two.keys() and all(
        torch.allclose(one[name], two[name], rtol=1e-5, atol=1e-7) for name in one
    )


STEPS = {
    "plain": (Flags(), {}),
    "mean and std": (
        Flags(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3)),
        {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)},
    ),
    "one mean for all": (Flags(mean=(0.4,), std=(0.2,)), {"mean": 0.4, "std": 0.2}),
    "train": (Flags(mode="train"), {"train": True}),
    "sum": (Flags(reduction="sum"), {"reduction": "sum"}),
    "smoothing": (Flags(label_smoothing=0.1), {"label_smoothing": 0.1}),
}


@pytest.mark.parametrize("step", STEPS, ids=list(STEPS))
def test_it_is_the_gradient_of_a_training_step(step):
    net, flags, settings = normed_net(), *STEPS[step]
    truth = Truth(pictures(3, channels=3), LABELS)
    made = client_gradient(net, truth, flags, flags.mode or "eval")
    assert same(made, by_backward(net, truth.inputs, LABELS, **settings))
    if step != "plain":  # each setting matters, so the comparison above can fail
        assert not same(made, by_backward(net, truth.inputs, LABELS))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_module_stays_as_it_was(mode):
    net = normed_net()
    net[0].weight.requires_grad_(False)
    state = copy.deepcopy(net.state_dict())
    truth = Truth(pictures(3, channels=3), LABELS)
    made = client_gradient(net, truth, Flags(), mode)
    assert same(made, by_backward(net, truth.inputs, LABELS, train=mode == "train"))
    assert all(torch.equal(net.state_dict()[name], state[name]) for name in state)
    assert not any(module.training for module in net.modules())
    assert all(p.grad is None for p in net.parameters())
    assert not net[0].weight.requires_grad


def test_a_net_in_double_precision():
    net = normed_net().double()
    made = client_gradient(net, Truth(pictures(3, channels=3), LABELS), Flags(), "eval")
    assert {tensor.dtype for tensor in made.values()} == {torch.float64}


def test_the_dump_says_how_it_was_made(tmp_path):
    net, truth = normed_net(), Truth(pictures(3, channels=3), LABELS)
    flags = Flags(mean=(0.4,), reduction="sum", label_smoothing=0.1, mode="train")
    kept = tmp_path / "kept.safetensors"
    dump = simulate_dump(net, truth, flags, keep=kept)
    assert same(dump.tensors, client_gradient(net, truth, flags, "train"))
    said = dump.metadata
    assert (said.batch_size, said.input_shape, said.mode) == (3, (3, 8, 8), "train")
    assert (said.reduction, said.label_smoothing) == ("sum", 0.1)
    assert (said.mean, said.std) == ((0.4,) * 3, (1.0,) * 3)
    assert same(load_file(kept), dump.tensors)
    assert same(simulate_dump(net, truth, flags).tensors, dump.tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.safetensors"]


def test_an_existing_file_is_not_overwritten_with_the_dump(tmp_path):
    mine = tmp_path / "model.pt"
    mine.write_text("mine")
    with pytest.raises(UsageError, match=r"model\.pt"):
        simulate_dump(normed_net(), Truth(pictures(3, channels=3), LABELS), Flags(), keep=mine)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("label", [-1, CLASSES, 10**6])
def test_a_label_that_the_model_does_not_have(label):
    with pytest.raises(UsageError, match=f"labels from 0 to {CLASSES - 1}"):
        client_gradient(small_net(), Truth(pictures(), torch.tensor([label])), Flags(), "eval")


@pytest.mark.parametrize("flags", [Flags(mean=(0.1, 0.2)), Flags(std=(0.1, 0.2))])
def test_two_numbers_for_three_channels(flags):
    with pytest.raises(UsageError, match="3"):
        client_gradient(normed_net(), Truth(pictures(3, channels=3), LABELS), flags, "eval")


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(144, 5)),  # other channels
        nn.Sequential(nn.Conv2d(3, 5, 3)),  # no head
        nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Softmax(1)),
    ],
    ids=["channels", "no head", "softmax"],
)
def test_a_model_that_cannot_be_audited_is_refused_by_name(net):
    with pytest.raises(InputError):
        simulate_dump(net.eval(), Truth(pictures(3, channels=3), LABELS), Flags())


def test_batch_norm_cannot_train_on_one_value_a_channel():
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)).eval()
    one = Truth(pictures(), torch.tensor([1]))
    assert client_gradient(net, one, Flags(), "eval")
    with pytest.raises(UsageError, match="--mode eval"):
        client_gradient(net, one, Flags(), "train")


# --------------------------------------------------------------------------- samples

DIGIT = (4, 1, 0, 3)
DIGITS = np.random.default_rng(0).integers(0, 256, (4, 8, 8), dtype="uint8").tobytes()


@pytest.fixture
def folder(tmp_path):
    """Two pictures, and a data set in MNIST's form, small and made up."""
    for index in range(2):
        grid = (pictures(2)[index, 0].numpy() * 255).round().astype("uint8")
        Image.fromarray(grid).save(tmp_path / f"{index}.png")
    raw = tmp_path / "sets" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 4, 8, 8) + DIGITS)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 4) + bytes(DIGIT))
    torch.save(small_net(), tmp_path / "model.pt")
    return tmp_path


def read(folder, net=None, flags=None, **given):
    nothing = {"inputs": (), "labels": (), "data": None, "dataset": None, "indices": ()}
    return read_samples(net or small_net(), flags or Flags(), **(nothing | given))


def test_pictures_from_files(folder):
    truth, notes = read(folder, inputs=[folder / "0.png", folder / "1.png"], labels=[3, 1])
    assert torch.allclose(truth.inputs, pictures(2), atol=0.5 / 255 + 1e-6)
    assert truth.labels.tolist() == [3, 1]
    assert notes == ()


def test_samples_of_a_data_set(folder):
    truth, _ = read(folder, data=folder / "sets", dataset="mnist", indices=[3, 0])
    wanted = np.frombuffer(DIGITS, "uint8").reshape(4, 1, 8, 8)[[3, 0]] / np.float32(255)
    assert torch.equal(truth.inputs, torch.from_numpy(wanted))
    assert truth.labels.tolist() == [3, 4]


def test_samples_of_another_size_are_resized(folder):
    truth, _ = read(
        folder,
        flags=Flags(input_shape=(1, 16, 16)),
        data=folder / "sets",
        dataset="mnist",
        indices=[0],
    )
    assert truth.inputs.shape == (1, 1, 16, 16)
    assert 0 <= float(truth.inputs.min()) <= float(truth.inputs.max()) <= 1


def misuse(folder):
    sets, one = folder / "sets", [folder / "0.png"]
    return {
        "nothing": {},
        "no labels": {"inputs": one},
        "one label too many": {"inputs": one, "labels": [1, 2]},
        "labels alone": {"labels": [1]},
        "no index": {"data": sets, "dataset": "mnist"},
        "no data set": {"data": sets, "indices": [0]},
        "no directory": {"dataset": "mnist", "indices": [0]},
        "both": {
            "inputs": one,
            "labels": [1],
            "data": sets,
            "dataset": "mnist",
            "indices": [0],
        },
        "a label for the data set": {
            "labels": [1],
            "data": sets,
            "dataset": "mnist",
            "indices": [0],
        },
        "unknown data set": {"data": sets, "dataset": "faces", "indices": [0]},
    }


@pytest.mark.parametrize("name", list(misuse(Path())))
def test_misuse(folder, name):
    with pytest.raises(UsageError):
        read(folder, **misuse(folder)[name])


@pytest.mark.parametrize(
    "given",
    [
        {"dataset": "mnist", "indices": [4]},
        {"dataset": "mnist", "indices": [-1]},
        {"dataset": "cifar10", "indices": [0]},
        {"dataset": "fashion-mnist", "indices": [0]},
    ],
    ids=lambda given: f"{given['dataset']} {given['indices']}",
)
def test_what_is_not_on_disk_is_refused(folder, given):
    with pytest.raises(InputError):
        read(folder, data=folder / "sets", **given)


def test_grey_samples_for_a_model_of_colours(folder):
    with pytest.raises(UsageError, match="3 channels"):
        read(
            folder,
            net=normed_net(),
            flags=Flags(input_shape=(3, 8, 8)),
            data=folder / "sets",
            dataset="mnist",
            indices=[0],
        )


# --------------------------------------------------------------------------- the command


def test_simulate_measures_the_leak_and_keeps_the_dump(folder, tmp_path_factory):
    before = contents(folder)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    run = gradaudit(
        *("simulate", "model.pt", "--input", "0.png", "--label", "3", "--std", "0.5"),
        *("--save-dump", "dump.safetensors", "--out", str(elsewhere / "out")),
        cwd=folder,
    )
    assert run.code == 0, run.err
    audit = json.loads((elsewhere / "out" / "audit.json").read_text(encoding="utf-8"))
    assert {f["code"] for f in audit["findings"]} == {"GA203", "GA201", "GA101"}
    with safe_open(folder / "dump.safetensors", "pt") as file:
        assert json.loads(file.metadata()["gradaudit"])["std"] == [0.5]
    again = gradaudit(
        *("scan", "model.pt", "dump.safetensors", "--out", str(elsewhere / "again")), cwd=folder
    )
    assert again.code == 0, again.err
    (folder / "dump.safetensors").unlink()
    assert contents(folder) == before


def test_simulate_takes_samples_of_a_data_set(folder):
    run = gradaudit(
        *("simulate", "model.pt", "--data", "sets", "--dataset", "mnist", "--index", "1"),
        *("--fail-on", "critical"),
        cwd=folder,
    )
    assert run.code == 1, run.err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), 2),
        (("--input", "0.png"), 2),
        (("--input", "0.png", "--label", "5"), 2),
        (("--input", "0.png", "--label", "x"), 2),
        (("--input", "0.png", "--label", "3", "--mean", "0.1,0.2"), 2),
        (("--input", "0.png", "--label", "3", "--save-dump", "model.pt"), 2),
        (("--input", "0.png", "--label", "3", "--save-dump", "no/where.safetensors"), 2),
        (("--input", "model.pt", "--label", "3"), 3),
        (("--input", "nowhere.png", "--label", "3"), 3),
        (("--input", "0.png", "--label", "3", "--input-shape", "3x8x8"), 3),
        (("--data", "nowhere", "--dataset", "mnist", "--index", "0"), 3),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, tuple) else "",
)
def test_simulate_refuses(folder, arguments, code):
    before = contents(folder)
    run = gradaudit("simulate", "model.pt", *arguments, cwd=folder)
    assert run.code == code, run.err
    assert run.out == ""
    assert "internal error" not in run.err
    assert contents(folder) == before
