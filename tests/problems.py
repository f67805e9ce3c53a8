"""Small problems with known answers. The client's gradient comes from plain `backward()`."""

import copy
import functools
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from auditor.attacks import LevenbergMarquardt, Search
from auditor.attacks.base import Watch
from auditor.audit import Case
from auditor.inputs.gradients import match_gradients
from auditor.options import PRESETS, Options, make_options
from auditor.problem import make_problem
from auditor.records import (
    Assumption,
    FileRef,
    Knowledge,
    LoadedModel,
    Metadata,
    Problem,
    Recovery,
    Truth,
)
from auditor.zoo import LeNet, uniform_weights

CPU = torch.device("cpu")
FILE = FileRef("dump.pt", "in memory", 0, "")
WATCH = Watch()


@dataclass(frozen=True)
class Client:
    """What the client had and did; the attacker sees `problem()` of it only."""

    module: nn.Module
    inputs: torch.Tensor  # (N, C, H, W), model units
    labels: torch.Tensor  # (N,)
    reduction: str = "mean"
    smoothing: float = 0.0
    mode: str = "eval"

    @functools.cached_property
    def counts(self):
        return torch.bincount(self.labels, minlength=self.classes)

    @functools.cached_property
    def classes(self):
        return self.logits().shape[1]

    def logits(self):
        with torch.no_grad():
            return copy.deepcopy(self.module).eval()(self.inputs)

    def gradients(self):
        """By name, from `backward()` on a copy, in the mode that the client trained in."""
        client = copy.deepcopy(self.module).train(self.mode == "train").requires_grad_(True)
        loss = F.cross_entropy(
            client(self.inputs),
            self.labels,
            reduction=self.reduction,
            label_smoothing=self.smoothing,
        )
        loss.backward()
        return {name: p.grad for name, p in client.named_parameters() if p.grad is not None}

    def problem(self, gradients=None, *, size="right", declared=True, **known):
        """`size`: the batch size that the attacker is told; None for none."""
        gradients = self.gradients() if gradients is None else gradients
        told = len(self.labels) if size == "right" else size
        facts = knowledge(
            tuple(self.inputs.shape[1:]),
            batch_size=told,
            reduction=self.reduction if declared else "mean",
            reduction_declared=declared,
            label_smoothing=self.smoothing,
            mode=self.mode,
        )
        return problem_of(self.module, gradients, replace(facts, **known))

    def truth(self):
        return Truth(self.inputs.float(), self.labels)


def knowledge(shape, **facts):
    settled = Knowledge(
        input_shape=shape,
        mean=(0.0,) * shape[0],
        std=(1.0,) * shape[0],
        batch_size=1,
        mode="eval",
        reduction="mean",
        reduction_declared=True,
        label_smoothing=0.0,
        assumptions=(Assumption("loss", "cross_entropy", "flag"),),
    )
    return replace(settled, **facts)


def dump_of(module, gradients, metadata=None):
    return match_gradients(gradients, module, file=FILE, metadata=metadata, form="test")


def problem_of(module, gradients, known):
    return make_problem(module, dump_of(module, gradients), known, device=CPU)


def case_of(client, gradients=None, *, truth=False, metadata=None, **known) -> Case:
    gradients = client.gradients() if gradients is None else gradients
    problem = client.problem(gradients, **known)
    return Case(
        LoadedModel(client.module, FILE),
        dump_of(client.module, gradients, metadata or Metadata()),
        problem.knowledge,
        client.truth() if truth else None,
    )


def options_of(*, search=None, budget=None, attacks=None, seed=0, preset="standard") -> Options:
    """The options of a preset, on the CPU, with another search."""
    from auditor.attacks import with_search

    def with_search_of_tests(attack):
        """Few weights of smoothness, where few steps are to be taken."""
        attack = with_search(attack, search)
        few = isinstance(attack, LevenbergMarquardt) and search.max_steps <= QUICK.max_steps
        return replace(attack, smoothness=attack.smoothness[::5]) if few else attack

    options = make_options(preset=preset, attacks=attacks, seed=seed, budget=budget, device="cpu")
    search = search or next(p for p in PRESETS if p.name == preset).search
    return replace(options, attacks=tuple(with_search_of_tests(a) for a in options.attacks))


# --------------------------------------------------------------------------- networks


class Net(nn.Module):
    """Flatten, one hidden layer, a head: what labels need."""

    def __init__(self, act, classes=10, bias=True, hidden=32, pixels=16):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(pixels, hidden), act)
        self.head = nn.Linear(hidden, classes, bias=bias)

    def forward(self, x):
        return self.head(self.body(x))


ACTS = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU, "sigmoid": nn.Sigmoid}


def net(act="relu", classes=10, *, bias=True, seed=0, hidden=32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(ACTS[act](), classes, bias, hidden)


def trained(module, *, classes, seed=0, steps=60, samples=64, lr=0.02):
    """The same module after a few steps of Adam on random labels; it is changed."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(samples, 1, 4, 4, generator=generator)
    labels = torch.randint(classes, (samples,), generator=generator)
    optimizer = torch.optim.Adam(module.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(module(inputs), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return module, inputs, labels


def batch(count, classes, *, seed=0, shape=(1, 4, 4), dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(count, *shape, generator=generator, dtype=dtype)
    return inputs, torch.randint(classes, (count,), generator=generator)


def client(act="relu", count=1, classes=10, *, bias=True, seed=0, **more):
    return Client(
        net(act, classes, bias=bias, seed=seed), *batch(count, classes, seed=seed), **more
    )


def tiny_lenet(*, channels=1, size=8, classes=4, seed=0, bound=0.5):
    return uniform_weights(LeNet(channels, size, classes), bound=bound, seed=seed)


def lenet_client(count=1, *, size=8, classes=4, seed=0, bound=0.5, **more):
    """A network of the papers that is small enough to be inverted within seconds."""
    module = tiny_lenet(size=size, classes=classes, seed=seed, bound=bound)
    return Client(module, *batch(count, classes, seed=seed, shape=(1, size, size)), **more)


# --------------------------------------------------------------------------- dumps


def rounded(gradients, dtype):
    return {name: g.to(dtype).float() for name, g in gradients.items()}


def clipped(gradients, share=0.1):
    return {name: g * share for name, g in gradients.items()}


def noised(gradients, sigma, *, seed=0):
    """Plus normal noise of `sigma` times the root mean square of all values."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.cat([g.flatten() for g in gradients.values()])
    std = sigma * float(flat.square().mean().sqrt())
    return {
        name: g + std * torch.randn(g.shape, generator=generator) for name, g in gradients.items()
    }


def noise(module, scale, *, seed=0):
    """No gradient at all."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scale * torch.randn(p.shape, generator=generator)
        for name, p in module.named_parameters()
    }


# --------------------------------------------------------------------------- attacks for tests


@dataclass(frozen=True)
class Says:
    """An attack that claims what it is told to claim."""

    recovery: Recovery
    name: str = "images.says"
    title: str = "Says"

    def blocked_by(self, problem: Problem):
        return None

    def run(self, problem: Problem, *, seed, watch):
        return self.recovery


QUICK = Search(restarts=2, at_once=2, max_steps=40)  # ends soon, reaches nothing hard
