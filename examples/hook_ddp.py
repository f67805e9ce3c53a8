# Expected verdict: leak, critical
"""DDP with two processes over gloo: what rank 1 sends to the other is audited.

The function is what `gradaudit hook ddp` prints. The ranks train as they would without it.
"""

import tempfile

import torch
from torch import distributed
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.functional import cross_entropy

import auditor
from auditor import save_gradients


def capture_rank(ddp_model, rank=0, **facts):
    network, own = ddp_model.module, {}
    names = {p: name for name, p in network.named_parameters() if p.requires_grad}

    def keep(group, bucket):
        if torch.distributed.get_rank(group) == rank and len(own) < len(names):
            for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
                own[names[parameter]] = gradient.detach().cpu().clone()
            if len(own) == len(names):
                torch.save(network, "model.pt")
                save_gradients(network, own, "grads.safetensors", **facts)
        return allreduce_hook(group, bucket)

    ddp_model.register_comm_hook(None, keep)


def train(rank, store):
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}/store", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 12), torch.nn.Sigmoid(), torch.nn.Linear(12, 5)
    )
    model = torch.nn.parallel.DistributedDataParallel(network)
    capture_rank(model, rank=1, batch_size=1, input_shape=(1, 8, 8))
    images, labels = torch.rand(2, 1, 8, 8), torch.tensor([4, 2])
    cross_entropy(model(images[rank : rank + 1]), labels[rank : rank + 1]).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    distributed.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as store:
        torch.multiprocessing.spawn(train, args=(store,), nprocs=2)
    audit = auditor.scan("model.pt", "grads.safetensors")
    print(f"Verdict: {audit.verdict.status}, {audit.verdict.severity.band}")
