"""The filter for NVFlare, fed with the real shareables of a task."""

import pytest
import torch
from hooked import (
    LABEL,
    NET_FILE,
    framework,
    gradient_by_hand,
    leaks_the_picture,
    ran,
    same,
    scanned,
)
from runs import pictures, small_net

framework("nvflare")
from nvflare.apis.dxo import DXO, DataKind, from_shareable  # noqa: E402
from nvflare.apis.fl_context import FLContext  # noqa: E402

HOW = ("--arch", "net.py:make", "--lr", "0.1", "--local-steps", "1", "--batch-size", "1")


@pytest.fixture
def keep(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET_FILE)
    kind = ran("nvflare")["KeepDXO"]

    def passed(path, data_kind, tensors):
        """What the filter lets through of a task's data."""
        data = {name: tensor.numpy() for name, tensor in tensors.items()}
        shareable = DXO(data_kind, data=data).to_shareable()
        left = kind(path).process(shareable, FLContext())
        return from_shareable(left).data

    return passed


@pytest.mark.parametrize("sends", [DataKind.WEIGHT_DIFF, DataKind.WEIGHTS])
def test_nvflare(keep, tmp_path, sends):
    net = small_net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    step = gradient_by_hand(net, pictures(), torch.tensor([LABEL]))
    after = {name: weights - 0.1 * step[name] for name, weights in before.items()}
    difference = {name: after[name] - before[name] for name in after}

    keep("before.pt", DataKind.WEIGHTS, before)
    sent = difference if sends == DataKind.WEIGHT_DIFF else after
    let_through = keep("sent.pt", sends, sent)
    same({name: torch.as_tensor(value) for name, value in let_through.items()}, sent)
    way = (
        ("sent.pt", "--kind", "update") if sends == DataKind.WEIGHT_DIFF else ("--after", "sent.pt")
    )
    audit = scanned(tmp_path, "before.pt", *way, *HOW, "--input-shape", "1x8x8")
    assert leaks_the_picture(audit)


def test_metrics_pass_and_are_not_kept(keep, tmp_path):
    let_through = keep("metrics.pt", DataKind.METRICS, {"loss": torch.tensor(0.5)})
    assert list(let_through) == ["loss"]
    assert not (tmp_path / "metrics.pt").exists()
