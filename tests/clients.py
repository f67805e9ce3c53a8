"""Clients that train on their own and send what it did to their weights."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from auditor.facts import Flags, LocalFlags, settle
from auditor.inputs.gradients import match_gradients
from auditor.problem import make_problem
from auditor.records import FileRef

CPU = torch.device("cpu")
FILE = FileRef("update.pt", "in memory", 0, "")


@dataclass(frozen=True)
class LocalClient:
    """Trains with `torch.optim.SGD`, batches in order; the truth that simulations are held to."""

    module: nn.Module
    inputs: torch.Tensor  # (N, C, H, W)
    labels: torch.Tensor  # (N,)
    lr: float = 0.1
    steps: int = 1
    batch: int | None = None
    momentum: float = 0.0
    decay: float = 0.0
    epochs: int = 1
    reduction: str = "mean"
    dtype: torch.dtype = torch.float32
    train: bool = False

    def trained(self):
        client = copy.deepcopy(self.module).to(self.dtype).train(self.train)
        sgd = torch.optim.SGD(
            client.parameters(), self.lr, momentum=self.momentum, weight_decay=self.decay
        )
        size = self.batch or len(self.labels)
        batches = list(zip(self.inputs.split(size), self.labels.split(size), strict=True))
        for step in range(self.steps * self.epochs):
            inputs, labels = batches[step % len(batches)]
            sgd.zero_grad()
            logits = client(inputs.to(self.dtype))
            F.cross_entropy(logits, labels, reduction=self.reduction).backward()
            sgd.step()
        return client

    def update(self):
        after, before = self.trained().state_dict(), self.module.state_dict()
        return {name: after[name] - before[name].to(after[name].dtype) for name in after}

    def flags(self, **other):
        local = {
            "kind": "update", "lr": self.lr, "steps": self.steps, "batch_size": self.batch,
            "momentum": self.momentum, "weight_decay": self.decay, "epochs": self.epochs,
        }  # fmt: skip
        samples = other.pop("samples", len(self.labels))
        facts = {"batch_size": samples, "reduction": self.reduction}
        return Flags(
            input_shape=tuple(self.inputs.shape[1:]),
            mode="train" if self.train else "eval",
            label_smoothing=0.0,
            mean=(0.0,),
            std=(1.0,),
            local=LocalFlags(**{**local, **other}),
            **facts,
        )

    def dump(self):
        return match_gradients(self.update(), self.module, file=FILE, form="test", kind="update")

    def problem(self, **told):
        """`told`: what the attacker is told otherwise, `samples` of them; None for nothing."""
        dump = self.dump()
        known = settle(dump, self.module, self.flags(**told))
        return make_problem(self.module, dump, known, device=CPU)
