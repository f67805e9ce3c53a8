"""Every command of the README, run as it stands on files of these names."""

import re
import shlex
from unittest import mock

import pytest
import torch
import torchvision
from PIL import Image
from runs import gradaudit
from test_readme import README, blocks_of
from text_folders import TEXTS, gpt2, tokenizer, write_folder
from torch import nn
from torch.nn import functional as F

from auditor import capture

LINES = [line for text in blocks_of(README, "sh") for line in text.splitlines()]
FINISHED = re.findall(r"`(gradaudit (?:render|verify|diff|inspect|explain|doctor)[^`]*)`", README)
# Long enough for what the commands are to show, not for what they might find.
QUICK = {"GRADAUDIT_PRESET": "fast", "GRADAUDIT_BUDGET": "5"}
NET = """
from torch import nn


def make_model():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Sigmoid(), nn.Linear(8, 10))
"""


class FakeCifar(torchvision.datasets.FakeData):
    """Stands for the real one, which is 170 MB and checked by its sum."""

    def __init__(self, root, *, train, download=False):
        super().__init__(size=8, image_size=(3, 32, 32), num_classes=10)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.Sigmoid(), nn.Linear(8, 10)).eval()


def dump(model, inputs, labels, folder):
    with capture(model, folder / "grads.safetensors"):
        F.cross_entropy(model(inputs), labels).backward()
    model.zero_grad()


def trained(model, *, steps, size):
    """The state_dict after so many steps of SGD with a rate of 0.01."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(torch.rand(size, 3, 32, 32)), torch.randint(10, (size,))).backward()
        optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def write_language_model(folder):
    model = gpt2()
    write_folder(folder / "MODEL_DIR", model)
    tokens = tokenizer()(TEXTS[0], return_tensors="pt")["input_ids"]
    with capture(model, folder / "grads.safetensors"):
        model(input_ids=tokens, labels=tokens).loss.backward()


def write_files(folder, line):
    """What the line names. One picture, one label, weights of the network that it asks for."""
    if "MODEL_DIR" in line:
        write_language_model(folder)
        return
    model = torchvision.models.resnet18(num_classes=10).eval() if "resnet18" in line else net()
    torch.save(model, folder / "model.pt")
    torch.save(model.state_dict(), folder / "weights.pt")
    dump(model, torch.rand(1, 3, 32, 32), torch.tensor([3]), folder)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    if "--kind update" in line or "--after" in line:
        after = trained(model, steps=5, size=8)
        torch.save(after, folder / "trained.pt")
        torch.save({name: after[name] - before[name] for name in after}, folder / "update.pt")
    (folder / "path" / "to").mkdir(parents=True)
    (folder / "path" / "to" / "net.py").write_text(NET)
    Image.new("RGB", (32, 32), (200, 120, 40)).save(folder / "face.png")
    (folder / "DIR").mkdir()


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_readme_runs(line, tmp_path):
    torch.manual_seed(0)
    write_files(tmp_path, line)
    with mock.patch.object(torchvision.datasets, "CIFAR10", FakeCifar):
        run = gradaudit(*shlex.split(line)[1:], cwd=tmp_path, env=QUICK)
    assert run.code == ("--fail-on" in line), run.err
    written = {path.name for path in (tmp_path / "gradaudit-report").iterdir()}
    assert {"audit.json", "report.html"} <= written
    for name in re.findall(r"--(?:sarif|markdown) (\S+)", line):
        assert (tmp_path / name).stat().st_size > 0


def test_the_commands_on_finished_audits_run(tmp_path):
    assert {line.split()[1] for line in FINISHED} >= {"render", "verify", "diff", "inspect"}
    write_files(tmp_path, "scan model.pt")
    assert gradaudit("scan", "model.pt", "grads.safetensors", cwd=tmp_path, env=QUICK).code == 0
    for name in ("audit.json", "report.html"):
        (tmp_path / name).write_bytes((tmp_path / "gradaudit-report" / name).read_bytes())
    for name in ("old.json", "new.json"):
        (tmp_path / name).write_bytes((tmp_path / "audit.json").read_bytes())
    for line in FINISHED:
        words = [word.replace("FILE", "model.pt") for word in shlex.split(line)[1:]]
        run = gradaudit(*words, cwd=tmp_path)
        assert run.code == 0, (line, run.err)


def test_no_command_of_the_readme_is_left_out():
    shown = set(re.findall(r"^gradaudit (?:scan|simulate) .*$", README, re.MULTILINE))
    assert shown == set(LINES)
    assert len(LINES) >= 10
