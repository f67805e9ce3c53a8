"""The mod for Flower, in a real ClientApp with real messages, and in a simulation."""

import subprocess
import sys
import time

import pytest
import torch
from hooked import LABEL, NET_FILE, framework, leaks_the_picture, ran, same, scanned
from runs import PLAIN, pictures, small_net
from torch import nn
from torch.nn import functional as F

from auditor.hooks import snippet

flwr = framework("flwr")
from flwr.app import (  # noqa: E402
    ArrayRecord,
    Context,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp  # noqa: E402


def client(net, images, labels, *, steps):
    """A Flower client that takes `steps` steps of SGD, 0.1 each, and sends its weights."""
    app = ClientApp(mods=[ran("flower")["capture_weights"]])

    @app.train()
    def train(message, context):
        net.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()
        content = {"arrays": ArrayRecord(net.state_dict()), "metrics": MetricRecord({"loss": 0.0})}
        return Message(RecordDict(content), reply_to=message)

    @app.evaluate()
    def evaluate(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"loss": 0.0})}), reply_to=message)

    return app


def message(kind, net):
    """What the server sends to node 7."""
    told = Metadata(1, "", 1, 7, "", "", time.time(), 60.0, kind)
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict())}), metadata=told)


def context():
    return Context(1, 7, {}, RecordDict(), {})


def test_weights_before_and_after_are_an_update(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(NET_FILE)
    net, sent = small_net(), small_net()
    app = client(net, pictures(), torch.tensor([LABEL]), steps=1)
    reply = app(message("train", sent), context())
    same(torch.load("client-7/before.pt"), sent.state_dict())
    same(torch.load("client-7/after.pt"), net.state_dict())
    same(reply.content["arrays"].to_torch_state_dict(), net.state_dict())
    settings = ("--lr", "0.1", "--local-steps", "1", "--batch-size", "1", "--input-shape", "1x8x8")
    before, after = "client-7/before.pt", "client-7/after.pt"
    audit = scanned(tmp_path, before, "--after", after, "--arch", "net.py:make", *settings)
    assert leaks_the_picture(audit)


def test_an_evaluation_leaves_the_files_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = small_net()
    client(net, pictures(), torch.tensor([LABEL]), steps=1)(message("evaluate", net), context())
    assert list(tmp_path.iterdir()) == []


def test_buffers_that_come_along_count_the_steps(tmp_path, monkeypatch):
    """Flower sends the whole state_dict, statistics of batch norm included."""
    monkeypatch.chdir(tmp_path)
    norm = "nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.Linear(12, 5))"
    (tmp_path / "net.py").write_text(f"from torch import nn\n\ndef make():\n    return {norm}\n")
    torch.manual_seed(0)
    net = eval(norm, {"nn": nn}).train()
    app = client(net, pictures(4), torch.tensor([0, 1, 1, 4]), steps=3)
    app(message("train", net), context())
    settings = (
        "--lr",
        "0.1",
        "--local-batch",
        "4",
        "--input-shape",
        "1x8x8",
        "--attacks",
        "labels",
    )
    before, after = "client-7/before.pt", "client-7/after.pt"
    audit = scanned(tmp_path, before, "--after", after, "--arch", "net.py:make", *settings)
    told = {fact["what"]: (fact["value"], fact["origin"]) for fact in audit["assumptions"]}
    assert told["local steps"] == ("3", "deduced")
    assert audit["verdict"]["status"] == "leak"


SIMULATION = """
import torch
from torch.nn.functional import cross_entropy
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from net import make

{snippet}

client, server = ClientApp(mods=[capture_weights]), ServerApp()

@client.train()
def train(message, context):
    net = make()
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    cross_entropy(net(torch.load("images.pt")), torch.tensor([3])).backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    content = {{"arrays": ArrayRecord(net.state_dict()),
               "metrics": MetricRecord({{"num-examples": 1}})}}
    return Message(RecordDict(content), reply_to=message)

@server.main()
def main(grid, context):
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=2)
    arrays = ArrayRecord(torch.load("weights.pt"))
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=1)

run_simulation(server, client, 2)
"""


@pytest.mark.slow
def test_in_a_simulation(tmp_path):
    framework("ray")
    (tmp_path / "net.py").write_text(NET_FILE)
    (tmp_path / "simulation.py").write_text(SIMULATION.format(snippet=snippet("flower")))
    net = small_net()
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    torch.save(pictures(), tmp_path / "images.pt")
    silent = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "simulation.py"],
        cwd=tmp_path,
        env=PLAIN | silent | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    clients = sorted(tmp_path.glob("client-*"))
    assert len(clients) == 2, done.stderr
    same(torch.load(clients[0] / "before.pt"), net.state_dict())
    settings = ("--lr", "0.1", "--local-steps", "1", "--batch-size", "1", "--input-shape", "1x8x8")
    for folder in clients:
        before, after = folder / "before.pt", folder / "after.pt"
        audit = scanned(tmp_path, before, "--after", after, "--arch", "net.py:make", *settings)
        assert leaks_the_picture(audit)
