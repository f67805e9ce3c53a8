"""Every form in which people keep a model, and what comes out of it."""

import warnings
from collections import OrderedDict

import hostile
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision import models

from auditor import zoo
from auditor.errors import InputError, UsageError
from auditor.inputs import load_model
from auditor.inputs.files import file_ref


@pytest.fixture
def net():
    torch.manual_seed(0)
    return zoo.build("lenet:1x28x10").eval()


def same(found, wanted, size=(2, 1, 28, 28)):
    x = torch.rand(size, generator=torch.Generator().manual_seed(1))
    return torch.equal(found(x), wanted(x))


def wrapped(net, prefix):
    return OrderedDict((prefix + name, value) for name, value in net.state_dict().items())


def small_vit(**settings):
    """All classes of vit_b_16, the preset LayerNorm among them, without its 86 million weights."""
    return models.VisionTransformer(224, 32, 2, 2, 32, 64, **settings)


@pytest.mark.parametrize(
    "build", [models.resnet18, small_vit, models.mobilenet_v3_small, models.swin_t]
)
def test_whole_torchvision_module_gives_the_same_output(tmp_path, build):
    model = build(num_classes=10).eval()
    path = hostile.saved(tmp_path, "m.pt", model)
    before = file_ref(path, "torch module")
    loaded = load_model(path)
    assert type(loaded.module) is type(model)
    with torch.no_grad():
        assert same(loaded.module, model, (1, 3, 224, 224))
    assert loaded.file == before == file_ref(path, "torch module")  # the bytes are untouched
    assert loaded.file.bytes == path.stat().st_size
    assert loaded.notes == ()


@pytest.mark.parametrize(
    "make",
    [
        lambda net: net,
        nn.DataParallel,
        lambda net: {"model": net, "epoch": 3},
        lambda net: nn.Sequential(net, nn.Identity()),
    ],
    ids=["module", "DataParallel", "under a key", "Sequential"],
)
def test_whole_modules_of_ours(tmp_path, net, make):
    loaded = load_model(hostile.saved(tmp_path, "m.bin", make(net)))
    assert same(loaded.module, net)
    assert loaded.file.format == "torch module"


def test_module_is_ready_for_the_audit(tmp_path, net):
    net.train().requires_grad_(False)
    loaded = load_model(hostile.saved(tmp_path, "m.pt", net))
    assert not loaded.module.training
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in loaded.module.parameters())
    assert "frozen in the file" in loaded.notes[0]


@pytest.mark.parametrize(
    "make",
    [
        lambda net: net.state_dict(),
        lambda net: dict(net.state_dict()),
        lambda net: dict(net.named_parameters()),
        lambda net: {"state_dict": net.state_dict(), "epoch": 3, "losses": [1.0, 0.5]},
        lambda net: {"model": {"state_dict": net.state_dict()}, "optimizer": {}},
        lambda net: {"net": wrapped(net, "module.")},
        lambda net: wrapped(net, "module._orig_mod."),
        lambda net: wrapped(net, "_module."),
        lambda net: wrapped(net, "_fsdp_wrapped_module."),
        lambda net: wrapped(net, "model."),
        lambda net: {k.replace("body.", "body._orig_mod."): v for k, v in wrapped(net, "").items()},
    ],
)
def test_weights_in_every_wrapping(tmp_path, net, make):
    loaded = load_model(hostile.saved(tmp_path, "m.pt", make(net)), arch="lenet:1x28x10")
    assert same(loaded.module, net)


def test_legacy_format(tmp_path, net):
    torch.save(net.state_dict(), tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    assert same(load_model(tmp_path / "m.pth", arch="lenet:1x28x10").module, net)


def test_legacy_whole_module_says_what_to_do(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch cannot show the source of some classes
        torch.save(nn.Linear(2, 2), tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"before 1\.6"):
        load_model(tmp_path / "m.pth")


def test_safetensors(tmp_path, net):
    save_file(wrapped(net, "module."), tmp_path / "m.safetensors")
    loaded = load_model(tmp_path / "m.safetensors", arch="lenet")
    assert same(loaded.module, net)
    assert loaded.notes == (
        "architecture lenet:1x28x10 deduced from the shapes in the file",
        "prefix 'module.' removed",
    )


@pytest.mark.parametrize(
    ("arch", "spec"),
    [
        ("lenet", "lenet:3x32x100"),
        ("lenet", "lenet:2x16x5"),
        ("resnet20", "resnet20:1x32x7"),
        ("torchvision:mobilenet_v3_small", "torchvision:mobilenet_v3_small:7"),
        ("torchvision:squeezenet1_1", "torchvision:squeezenet1_1:7"),
        ("torchvision:regnet_y_400mf", "torchvision:regnet_y_400mf:7"),
        ("torchvision:googlenet", "torchvision:googlenet:7"),
    ],
)
def test_sizes_are_deduced_from_the_tensors(tmp_path, arch, spec):
    if arch.startswith("torchvision"):
        settings = {"init_weights": False} if "googlenet" in arch else {}
        model = models.get_model(spec.split(":")[1], weights=None, num_classes=7, **settings)
    else:
        model = zoo.build(spec)
    save_file(model.state_dict(), tmp_path / "m.safetensors")  # which sorts the names
    loaded = load_model(tmp_path / "m.safetensors", arch=arch)
    assert loaded.module.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], value)
    if arch != "lenet" or spec != "lenet:3x32x100":
        assert any("deduced" in note for note in loaded.notes)


@pytest.mark.parametrize(
    ("stored", "audited"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_dtype_of_the_file_is_kept_and_halves_are_widened(tmp_path, net, stored, audited, whole):
    net.to(stored)
    path = hostile.saved(tmp_path, "m.pt", net if whole else net.state_dict())
    loaded = load_model(path, arch=None if whole else "lenet")
    for name, value in loaded.module.named_parameters():
        assert value.dtype is audited
        assert torch.equal(value, net.get_parameter(name).to(audited))
    assert any("half precision" in note for note in loaded.notes) == (stored.itemsize == 2)


def test_random_state_is_left_alone(tmp_path, net):
    path = hostile.saved(tmp_path, "m.pt", net.state_dict())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_model(path, arch="lenet")
    assert torch.equal(torch.get_rng_state(), before)


def test_old_files_without_step_counters(tmp_path):
    state = {k: v for k, v in zoo.build("resnet20").state_dict().items() if "num_batches" not in k}
    loaded = load_model(hostile.saved(tmp_path, "m.pt", state), arch="resnet20")
    assert any("num_batches_tracked were not in the file" in note for note in loaded.notes)


def test_own_factory_is_run_and_said_so(tmp_path, net):
    (tmp_path / "width.py").write_text("CLASSES = 10\n")
    body = "from width import CLASSES\nfrom auditor.zoo import LeNet\n"
    file = hostile.factory(tmp_path, body + "def make():\n    return LeNet(1, 28, CLASSES)\n")
    path = hostile.saved(tmp_path, "m.pt", net.state_dict())
    loaded = load_model(path, arch=f"{file}:make")
    assert same(loaded.module, net)
    assert "your own code" in loaded.notes[0]


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        (None, "--arch, because the file holds weights"),
        ("torchvision:resnet81", "Did you mean"),
        ("torchvision:fasterrcnn_resnet50_fpn", "fasterrcnn"),
        ("lenett", "Did you mean lenet"),
        ("lenet:1x28", "CHANNELSxSIZExCLASSES"),
        ("nowhere.py:make", "without arguments"),
        ("arch.py:absent", "AttributeError"),
        ("arch.py:fails", "ValueError: no"),
        ("arch.py:number", "type 'int'"),
    ],
)
def test_wrong_arch(tmp_path, net, monkeypatch, arch, words):
    hostile.factory(
        tmp_path, "def fails():\n    raise ValueError('no')\ndef number():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    path = hostile.saved(tmp_path, "m.pt", net.state_dict())
    with pytest.raises(UsageError, match=words):
        load_model(path, arch=arch)


def test_arch_beside_a_whole_model(tmp_path, net):
    with pytest.raises(UsageError, match="Leave --arch out"):
        load_model(hostile.saved(tmp_path, "m.pt", net), arch="lenet")


@pytest.mark.parametrize("make", [hostile.script, hostile.exported])
def test_trusted_programs_run(tmp_path, make):
    loaded = load_model(make(tmp_path), trust_model=True)
    weight, bias = loaded.module.weight, loaded.module.bias
    x = torch.tensor([[1.0, 2.0]])
    assert torch.equal(loaded.module(x), F.linear(x, weight, bias))
    assert "executed because it was trusted" in loaded.notes[0]


def test_running_statistics_must_be_finite(tmp_path):
    model = zoo.build("resnet20")
    model.bn1.running_var[0] = float("inf")
    with pytest.raises(InputError, match=r"'bn1\.running_var'"):
        load_model(hostile.saved(tmp_path, "m.pt", model))
