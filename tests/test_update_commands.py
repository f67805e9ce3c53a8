"""Updates and auxiliary pictures on the command line and from Python."""

import copy

import numpy as np
import pytest
import torch
from runs import CLASSES, LABEL, contents, gradaudit, pictures, small_net
from torch.nn import functional as F

from auditor import InputError, scan
from auditor.report.audit_json import from_json

TRAINED = ["--lr", "0.1", "--local-steps", "4", "--momentum", "0.9", "--weight-decay", "0"]


def trained(net, steps=4):
    client = copy.deepcopy(net)
    sgd = torch.optim.SGD(client.parameters(), lr=0.1, momentum=0.9)
    for _ in range(steps):
        sgd.zero_grad()
        F.cross_entropy(client(pictures()), torch.tensor([LABEL])).backward()
        sgd.step()
    return client


def update_of(net):
    after = trained(net).state_dict()
    return {name: after[name] - before for name, before in net.state_dict().items()}


@pytest.fixture
def folder(tmp_path):
    net = small_net()
    torch.save(net, tmp_path / "model.pt")
    torch.save(net.state_dict(), tmp_path / "before.pt")
    torch.save(trained(net).state_dict(), tmp_path / "after.pt")
    torch.save(update_of(net), tmp_path / "update.pt")
    return tmp_path


@pytest.mark.parametrize(
    "dump",
    [
        ["update.pt", "--kind", "update"],
        ["--after", "after.pt"],
        ["--before", "before.pt", "--after", "after.pt"],
    ],
    ids=["update", "after", "before and after"],
)
def test_every_way_to_give_an_update(folder, dump):
    run = gradaudit("scan", "model.pt", *dump, *TRAINED, "--batch-size", 1, cwd=folder)
    assert run.code == 0, run.err
    audit = from_json((folder / "gradaudit-report" / "audit.json").read_text())
    assert audit.verdict.severity.band == "critical"
    found = {finding.code: finding for finding in audit.findings}
    assert found["GA201"].attack == "images.first_layer"
    assert found["GA101"].certainty == "proved"
    told = {a.what: (a.value, a.origin) for a in audit.assumptions}
    assert told["kind"] == ("update: weights after minus weights before", "flag")
    assert told["local steps"] == ("4", "flag")


def test_without_the_training_the_rest_says_what_is_missing(folder):
    run = gradaudit(
        "scan", "model.pt", "--after", "after.pt", "--batch-size", 1, cwd=folder
    )  # fmt: skip
    assert run.code == 0, run.err
    audit = from_json((folder / "gradaudit-report" / "audit.json").read_text())
    reasons = {attack.name: attack.reason for attack in audit.attacks}
    assert "--lr" in reasons["images.lm"]
    assert "GA101" in {finding.code for finding in audit.findings}
    first = next(attack for attack in audit.attacks if attack.name == "images.first_layer")
    assert first.outcome == "leak"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "neither"),
        (["--before", "before.pt"], 2, "--after"),
        (["update.pt", "--after", "after.pt"], 2, "not both"),
        (["--after", "after.pt", "--kind", "gradient"], 2, "--kind"),
        (["update.pt", "--kind", "weights"], 2, "--kind"),
        (["update.pt", "--kind", "gradient", "--lr", "0.1"], 2, "--kind update"),
        (["update.pt", "--kind", "update", "--lr", "0"], 2, "--lr"),
        (["update.pt", "--kind", "update", "--local-steps", "0"], 2, "--local-steps"),
        (["update.pt", "--kind", "update", "--momentum", "1"], 2, "--momentum"),
        (["update.pt"], 3, "--kind update"),
        (["before.pt"], 3, "--after"),
        (["--after", "before.pt"], 3, "zeros"),
        (["--before", "after.pt", "--after", "before.pt"], 3, "weights before"),
        (["update.pt", "--kind", "update", "--aux", "nowhere"], 3, "no such file"),
    ],
    ids=str,
)
def test_what_makes_no_sense(folder, arguments, code, words):
    run = gradaudit("scan", "model.pt", *arguments, cwd=folder)
    assert run.code == code
    assert words in run.err.replace("\n", " ")
    assert not (folder / "gradaudit-report").exists()


def test_no_path_of_the_auxiliary_pictures_is_told(folder):
    secret = folder / "someone-private" / "aux.npz"
    secret.parent.mkdir()
    images = (pictures(4).numpy() * 255).astype(np.uint8)
    np.savez(secret, images=images, labels=np.arange(4))
    run = gradaudit(
        "scan", "model.pt", "update.pt", "--kind", "update", "--aux", secret, "--budget", "5",
        "--attacks", "labels", cwd=folder,
    )  # fmt: skip
    assert run.code == 0, run.err
    written = contents(folder / "gradaudit-report")
    assert not any(b"someone-private" in raw for raw in written.values())


def test_auxiliary_pictures_of_another_task(tmp_path):
    net = small_net()
    np.savez(
        tmp_path / "aux.npz", images=pictures(2).numpy(), labels=np.array([0, CLASSES])
    )  # fmt: skip
    with pytest.raises(InputError, match=f"labels below {CLASSES}"):
        scan(net, update_of(net), kind="update", auxiliary=tmp_path / "aux.npz", batch_size=1)


def test_scan_of_an_update_in_memory():
    net = small_net()
    audit = scan(
        net, update_of(net), kind="update", lr=0.1, local_steps=4, momentum=0.9, batch_size=1
    )
    assert audit.verdict.status == "leak"
    assert {finding.code for finding in audit.findings} >= {"GA101", "GA201"}


def test_simulate_makes_an_update(folder):
    from PIL import Image

    pixels = (pictures()[0, 0].numpy() * 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    run = gradaudit(
        "simulate", "model.pt", "--input", "a.png", "--label", LABEL, *TRAINED,
        "--save-dump", "u.safetensors", cwd=folder,
    )  # fmt: skip
    assert run.code == 0, run.err
    audit = from_json((folder / "gradaudit-report" / "audit.json").read_text())
    assert "GA203" in {finding.code for finding in audit.findings}
    assert {a.what: a.origin for a in audit.assumptions}["kind"] == "flag"
    again = gradaudit("scan", "model.pt", "u.safetensors", "--out", "again", cwd=folder)
    assert again.code == 0, again.err
    assert "rebuilt" in again.err


def test_simulate_needs_rate_and_steps(folder):
    from PIL import Image

    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(folder / "a.png")
    run = gradaudit(
        "simulate", "model.pt", "--input", "a.png", "--label", 0, "--lr", "0.1", cwd=folder
    )
    assert run.code == 2
    assert "--local-steps" in run.err
