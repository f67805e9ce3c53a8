"""The lines for a plain loop, and for DDP with two processes over gloo."""

import subprocess
import sys

import torch
from hooked import gradient_by_hand, leaks_the_picture, one_sample, ran, same, scanned
from runs import PLAIN, pictures, small_net
from safetensors.torch import load_file

from auditor.hooks import snippet


def test_torch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, images, labels = one_sample()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    gradient = gradient_by_hand(net, images, labels)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    ran("torch")["captured_step"](net, optimizer, images, labels)
    same(load_file("grads.safetensors"), gradient)
    same(dict(net.named_parameters()), {n: w - 0.1 * gradient[n] for n, w in before.items()})
    assert leaks_the_picture(scanned(tmp_path, "model.pt", "grads.safetensors"))


# One process of two. Each has a picture of its own; rank 1 is the client that is audited.
RANK = """
import sys
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

{snippet}

rank, net = int(sys.argv[1]), torch.load("net.pt", weights_only=False)
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://{store}", rank=rank, world_size=2)
ddp_model = DistributedDataParallel(net)
capture_rank(ddp_model, rank=1, batch_size=1, input_shape=(1, 8, 8))
optimizer = torch.optim.SGD(ddp_model.parameters(), lr=0.1)
images = torch.load("images.pt")
for _ in range(2):  # the second step leaves the files alone
    optimizer.zero_grad()
    cross_entropy(ddp_model(images[rank : rank + 1]), torch.tensor([2 + rank])).backward()
    if rank == 0 and _ == 0:
        torch.save({{name: p.grad for name, p in ddp_model.named_parameters()}}, "mean.pt")
    optimizer.step()
torch.save(net.state_dict(), f"trained-{{rank}}.pt")
dist.destroy_process_group()
"""


def two_ranks(folder):
    """Run both processes to their end."""
    (folder / "rank.py").write_text(RANK.format(snippet=snippet("ddp"), store=folder / "store"))
    command = [sys.executable, "rank.py"]
    kept = {"cwd": folder, "env": PLAIN, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(rank)], **kept) for rank in (0, 1)]
    try:
        told = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], told


def test_ddp(tmp_path):
    net, images = small_net(), pictures(2)
    torch.save(net, tmp_path / "net.pt")
    torch.save(images, tmp_path / "images.pt")
    two_ranks(tmp_path)
    own = [gradient_by_hand(net, images[r : r + 1], torch.tensor([2 + r])) for r in (0, 1)]
    same(load_file(tmp_path / "grads.safetensors"), own[1])
    audit = scanned(tmp_path, "model.pt", "grads.safetensors")
    assert leaks_the_picture(audit)
    assert audit["dump"]["batch_size"] == 1

    # What the ranks step by is the mean of both, as without the hook.
    mean = {name: (own[0][name] + own[1][name]) / 2 for name in own[0]}
    wrapped = torch.load(tmp_path / "mean.pt")
    same(wrapped, {f"module.{name}": gradient for name, gradient in mean.items()})
    trained = [torch.load(tmp_path / f"trained-{rank}.pt") for rank in (0, 1)]
    same(trained[0], trained[1])
    flags = ("--batch-size", "2", "--input-shape", "1x8x8", "--attacks", "labels")
    audit = scanned(tmp_path, "model.pt", "mean.pt", *flags)
    assert "prefix 'module.' removed" in audit["dump"]["recognised"]
    assert "GA101" in {finding["code"] for finding in audit["findings"]}
