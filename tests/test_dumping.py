"""`capture` writes what backward left, how it came about, and nothing of the data."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import auditor
from auditor.dumping import capture, save_gradients
from auditor.errors import UsageError
from auditor.inputs import load_gradients


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.Dropout(), nn.Linear(4, 3))


def step(net, count=2, seed=1):
    x = torch.rand((count, 3, 2, 2), generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(net(x), torch.arange(count)).backward()
    return x


def grads(net):
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


def fields(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["gradaudit"])


def test_round_trip(tmp_path, net):
    path = tmp_path / "g.safetensors"
    with capture(net, path, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)):
        step(net)
    dump = load_gradients(path, net)
    assert dump.tensors.keys() == grads(net).keys()
    assert all(torch.equal(dump.tensors[n], g) for n, g in grads(net).items())
    assert dump.recognised == "safetensors, dict of 4 tensors, matched by name"
    said = dump.metadata
    assert (said.batch_size, said.input_shape, said.mode) == (2, (3, 2, 2), "train")
    assert (said.loss, said.reduction, said.label_smoothing) == ("cross_entropy", "mean", 0.0)
    assert (said.mean, said.std) == ((0.5,) * 3, (0.25,) * 3)
    assert said.versions == {"torch": torch.__version__, "gradaudit": auditor.__version__}


def test_nothing_of_the_data_is_written(tmp_path, net):
    with capture(net, tmp_path / "g.safetensors"):
        x = step(net)
    raw = (tmp_path / "g.safetensors").read_bytes()
    assert all(sample.numpy().tobytes() not in raw for sample in x)
    wanted = {"batch_size", "input_shape", "loss", "reduction", "label_smoothing", "mode"}
    assert fields(tmp_path / "g.safetensors").keys() == wanted | {"kind", "modality", "versions"}
    assert [p.name for p in tmp_path.iterdir()] == ["g.safetensors"]  # no temporary file is left
    assert (tmp_path / "g.safetensors").stat().st_mode & 0o077 == 0


def test_several_calls_leave_the_batch_size_to_the_user(tmp_path, net):
    for given in (None, 5):
        net.zero_grad()
        with capture(net.eval(), tmp_path / "g", batch_size=given):
            step(net, 2)
            step(net, 3)
        said = load_gradients(tmp_path / "g", net).metadata
        assert (said.batch_size, said.input_shape, said.mode) == (given, (3, 2, 2), "eval")


def test_numbers_may_come_from_numpy_and_torch(tmp_path, net):
    mean, std = np.array([0.5, 0.25, 0.125]), torch.tensor([0.5, 0.25, 0.125])
    shape = torch.zeros(3, 2, 2).shape
    with capture(
        net, tmp_path / "g", mean=mean, std=std, input_shape=shape, batch_size=np.int64(2)
    ):
        step(net)
    said = load_gradients(tmp_path / "g", net).metadata
    assert said.mean == said.std == (0.5, 0.25, 0.125)
    assert (said.batch_size, said.input_shape) == (2, (3, 2, 2))


def test_what_the_user_says_wins(tmp_path, net):
    with capture(
        net, tmp_path / "g", batch_size=9, input_shape=(3, 1, 4), reduction="sum", loss="mine"
    ):
        step(net)
    said = load_gradients(tmp_path / "g", net).metadata
    assert (said.batch_size, said.input_shape) == (9, (3, 1, 4))
    assert (said.reduction, said.loss) == ("sum", "mine")


def test_holes_and_wrappers(tmp_path, net):
    net[1].requires_grad_(False)
    with capture(nn.DataParallel(net), tmp_path / "g"):
        step(net)
    with safe_open(tmp_path / "g", "pt") as file:
        assert sorted(file.keys()) == ["module.3.bias", "module.3.weight"]
    dump = load_gradients(tmp_path / "g", net)
    assert dump.missing == ("1.weight", "1.bias")
    assert dump.metadata.batch_size is None  # the wrapper itself was never called


def test_nothing_is_written_when_the_block_raises(tmp_path, net):
    path = tmp_path / "g"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), capture(net, path):
        step(net, 1 // 0)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["g"]
    assert not net._forward_pre_hooks


def test_an_old_dump_is_replaced(tmp_path, net):
    (tmp_path / "g").write_bytes(b"old")
    with capture(net, tmp_path / "g"):
        step(net)
    assert load_gradients(tmp_path / "g", net).metadata.batch_size == 2


def test_old_gradients_are_refused(tmp_path, net):
    step(net)
    with pytest.raises(UsageError, match="zero_grad"), capture(net, tmp_path / "g"):
        pytest.fail("entered")
    net.zero_grad(set_to_none=False)  # zeros are as good as none
    with capture(net, tmp_path / "g"):
        step(net)


def test_no_gradient_at_all(tmp_path, net):
    with pytest.raises(UsageError, match=r"backward\(\) inside"), capture(net, tmp_path / "g"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"reduction": "none"}, "reduction"),
        ({"mean": (0.5,), "input_shape": (3, 2, 2)}, "each of 3 channels"),
        ({"std": (0.0, 1.0, 1.0)}, "'std'"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
    ],
)
def test_settings_are_checked_before_the_block(tmp_path, net, settings, words):
    with pytest.raises(UsageError, match=words), capture(net, tmp_path / "g", **settings):
        pytest.fail("entered")


def test_folder_must_exist_before_the_block(tmp_path, net):
    with pytest.raises(UsageError, match="existing folder"), capture(net, tmp_path / "no" / "g"):
        pytest.fail("entered")


@pytest.mark.parametrize("form", ["dict", "tuple", "trained only", "holes"])
def test_save_gradients_takes_what_autograd_gives(tmp_path, net, form):
    net.eval()
    if form in {"trained only", "holes"}:
        net[1].requires_grad_(False)
    trained = {n: p for n, p in net.named_parameters() if p.requires_grad}
    loss = nn.functional.cross_entropy(net(torch.ones(2, 3, 2, 2)), torch.tensor([0, 2]))
    found = torch.autograd.grad(loss, list(trained.values()))
    table = dict(zip(trained, found, strict=True))
    holes = {n: table.get(n) for n, _ in net.named_parameters()}
    raw = {"dict": table, "tuple": found, "trained only": found, "holes": [*holes.values()]}[form]
    save_gradients(net, raw, tmp_path / "g", batch_size=2, input_shape=(3, 2, 2))
    dump = load_gradients(tmp_path / "g", net)
    assert dump.tensors.keys() == table.keys()
    assert all(torch.equal(dump.tensors[n], t) for n, t in table.items())
    said = dump.metadata
    assert (said.batch_size, said.input_shape, said.mode) == (2, (3, 2, 2), "eval")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"fc": torch.ones(1)}, "other names: 'fc'"),
        ({"3.bias": torch.ones(4)}, "'3.bias' of shape 4"),
        ([torch.ones(3)], "1 gradients for 4 parameters"),
        ([None] * 4, "found none"),
    ],
)
def test_save_gradients_refuses_what_does_not_fit(tmp_path, net, raw, words):
    with pytest.raises(UsageError, match=words):
        save_gradients(net, raw, tmp_path / "g")
    assert list(tmp_path.iterdir()) == []
