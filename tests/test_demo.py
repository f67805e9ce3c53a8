"""The demo: a real leak, offline, in a report that shows it."""

import json
import re
import socket
import stat

import pytest
import torch
from runs import contents, gradaudit
from torch.nn import functional as F

from auditor.demo import CLASSES, LABEL, demo_case, demo_model, demo_truth


def test_the_case_is_one_plain_training_step():
    case = demo_case(seed=0)
    net, truth = case.model.module, case.truth
    assert truth.inputs.shape == (1, 3, 32, 32)
    assert 0 <= float(truth.inputs.min()) < 0.3 < 0.7 < float(truth.inputs.max()) <= 1
    assert (truth.labels.tolist(), LABEL < CLASSES) == ([LABEL], True)
    loss = F.cross_entropy(net(truth.inputs), truth.labels)
    named = dict(net.named_parameters())
    for name, part in zip(named, torch.autograd.grad(loss, list(named.values())), strict=True):
        assert torch.allclose(case.dump.tensors[name], part, rtol=1e-4, atol=1e-7)
    assert case.knowledge.batch_size == 1
    assert [fact for fact in case.knowledge.assumptions if fact.origin == "assumed"] == []


def test_the_seed_makes_the_weights_and_not_the_picture():
    one, two = demo_model(seed=0).state_dict(), demo_model(seed=0).state_dict()
    other = demo_model(seed=1).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(demo_truth().inputs, demo_truth().inputs)


@pytest.mark.slow
def test_demo_from_end_to_end_without_a_network(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise AssertionError("the demo reached for the network")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, offline)
    run = gradaudit("demo", cwd=tmp_path)
    assert run.code == 0, run.err
    assert run.out == "gradaudit-demo/report.html\n"
    assert [path.name for path in tmp_path.iterdir()] == ["gradaudit-demo"]
    folder = tmp_path / "gradaudit-demo"
    assert {str(name) for name in contents(folder)} == {"audit.json", "report.html"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    audit = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
    assert (audit["verdict"]["status"], audit["verdict"]["severity"]["band"]) == (
        "leak",
        "critical",
    )
    measured = next(f for f in audit["findings"] if f["certainty"] == "measured")
    psnr = {m["name"]: m["value"] for m in measured["measures"]}["PSNR, median (measured)"]
    assert psnr > 30
    assert {"GA201", "GA203", "GA101"} == {f["code"] for f in audit["findings"]}
    page = (folder / "report.html").read_text(encoding="utf-8")
    [exhibit] = audit["exhibits"]
    assert exhibit["label"] == f"class {LABEL}"
    for picture in (exhibit["strip"][-1], exhibit["truth"]):
        assert f"data:image/png;base64,{picture}" in page
    assert not re.search(r"""(?:src|href)=["']https?:""", page)
