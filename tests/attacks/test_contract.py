"""What every attack promises, on every problem."""

import copy
import functools
import time
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import pytest
import torch
from problems import (
    WATCH,
    Client,
    Net,
    batch,
    client,
    lenet_client,
    net,
    noise,
    noised,
    rounded,
    tiny_lenet,
)
from torch import nn

from auditor.attacks import (
    ATTACKS,
    DLG,
    IDLG,
    PAPER,
    HeadLabels,
    LayerByLayer,
    LevenbergMarquardt,
    Search,
    Watch,
    with_search,
)
from auditor.evidence import examine
from auditor.records import Failed, Problem, Truth

FEW = Search(restarts=3, at_once=2, max_steps=4)


def _few(attack):
    """The attack with few steps, and without the stages that follow."""
    short = with_search(attack, FEW)
    return replace(short, smoothness=()) if isinstance(short, LevenbergMarquardt) else short


EVERY = tuple(_few(attack) for attack in ATTACKS)


def _norm_client():
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 4)
    )
    return Client(module.eval(), *batch(3, 4), mode="train")


def _without(had, part):
    return had.problem({n: g for n, g in had.gradients().items() if part not in n})


def _one_logit():
    had = Client(net("tanh", 1), *batch(2, 1))
    return had.problem(had.gradients() | {"body.1.weight": torch.ones(32, 16)})


PROBLEMS = {
    "one": lambda: lenet_client().problem(),
    "batch": lambda: client("tanh", 4, 5).problem(),
    "sum": lambda: client("tanh", 4, 5, reduction="sum").problem(),
    "smoothed": lambda: client("sigmoid", 2, 5, smoothing=0.1).problem(),
    "smoothed, not declared": lambda: client("sigmoid", 2, 5, smoothing=0.1).problem(
        declared=False
    ),
    "no bias": lambda: client("relu", 4, 5, bias=False).problem(),
    "two classes": lambda: client("tanh", 3, 2).problem(),
    "one class": _one_logit,
    "size unknown": lambda: client("tanh", 4, 5).problem(size=None),
    "size too small": lambda: client("tanh", 4, 5).problem(size=1),
    "size too large": lambda: client("tanh", 4, 5).problem(size=6),
    "head withheld": lambda: _without(client("tanh", 2, 5), "head"),
    "head weight withheld": lambda: _without(client("tanh", 2, 5), "head.weight"),
    "head bias only": lambda: client("tanh", 2, 5).problem(
        {"head.bias": client("tanh", 2, 5).gradients()["head.bias"]}
    ),
    "noise": lambda: client("tanh", 2, 5).problem(noise(net("tanh", 5), 1.0)),
    "noised": lambda: client("tanh", 2, 5).problem(noised(client("tanh", 2, 5).gradients(), 0.1)),
    "half": lambda: client("tanh", 2, 5).problem(
        rounded(client("tanh", 2, 5).gradients(), torch.float16)
    ),
    "batch norm": lambda: _norm_client().problem(),
    "functional head": lambda: Client(_Functional(), *batch(2, 5)).problem(),
    "colour": lambda: Client(tiny_lenet(channels=3), *batch(1, 4, shape=(3, 8, 8))).problem(
        mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4)
    ),
}


class _Functional(Net):
    """Owns its head and never calls it."""

    def __init__(self):
        super().__init__(nn.Tanh(), 5)

    def forward(self, x):
        return nn.functional.linear(self.body(x), self.head.weight, self.head.bias)


each_attack = pytest.mark.parametrize("attack", EVERY, ids=lambda a: a.name)
each_problem = pytest.mark.parametrize("name", PROBLEMS)


def build(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PROBLEMS[name]()


def equal(a, b):
    """Deep equality of records with tensors in them."""
    if isinstance(a, torch.Tensor):
        return a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if is_dataclass(a):
        return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return a == b


def frozen(problem):
    """Everything of a problem that an attack could have touched."""
    module = problem.module
    return {
        "state": {n: v.clone() for n, v in module.state_dict().items()},
        "modes": [m.training for m in module.modules()],
        "hooks": [len(m._forward_hooks) + len(m._backward_hooks) for m in module.modules()],
        "grads": [p.grad is None for p in module.parameters()],
        "needs": [p.requires_grad for p in module.parameters()],
        "gradient": {n: g.clone() for n, g in problem.gradient.items()},
        "knowledge": copy.deepcopy(problem.knowledge),
        "trace": copy.deepcopy(problem.trace),
        "precision": problem.precision,
        "random": torch.get_rng_state().clone(),
    }


@functools.cache
def answer(attack, name):
    """What the attack says with seed 7 of a problem that it can look at, and that problem."""
    problem = build(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)  # the global state must not matter
        return problem, attack.run(problem, seed=7, watch=WATCH)


@each_attack
@each_problem
def test_same_seed_same_answer_and_nothing_touched(attack, name):
    problem = build(name)
    torch.manual_seed(5)
    before = frozen(problem)
    blocked = attack.blocked_by(problem)
    assert blocked is None or blocked.strip()
    assert equal(before, frozen(problem))
    if blocked is not None:
        return
    found = attack.run(problem, seed=7, watch=WATCH)
    assert equal(before, frozen(problem))
    assert equal(found, answer(attack, name)[1])
    assert attack.blocked_by(problem) is None


@each_attack
@each_problem
def test_shapes(attack, name):
    if attack.blocked_by(build(name)) is not None:
        return
    problem, recovery = answer(attack, name)
    classes, size = problem.trace.head.classes, problem.knowledge.batch_size
    claim = recovery.labels
    if claim is not None:
        assert claim.lower.shape == (classes,)
        assert claim.lower.dtype == torch.int64
        assert claim.upper is None or claim.upper.shape == (classes,)
        assert claim.estimate is None or size is None or claim.estimate.shape == (size,)
    if recovery.samples is not None:
        assert recovery.samples.shape[1:] == problem.knowledge.input_shape
        assert len(recovery.samples) == len(recovery.witnesses) >= 1
        assert not recovery.samples.requires_grad
        assert recovery.read_from in problem.gradient
    if recovery.inputs is None:
        return
    restarts = len(recovery.inputs)
    like = next(iter(problem.gradient.values()))
    assert 1 <= restarts <= FEW.restarts
    assert recovery.inputs.shape == (restarts, size, *problem.knowledge.input_shape)
    assert (recovery.inputs.dtype, recovery.inputs.device) == (like.dtype, like.device)
    assert recovery.inputs.isfinite().all()
    assert recovery.input_labels.shape == (restarts, size)
    assert recovery.input_labels.dtype == torch.int64
    assert recovery.input_labels.min() >= 0
    assert recovery.input_labels.max() < classes
    assert len(recovery.courses) == restarts
    assert recovery.evaluations >= restarts
    assert not recovery.inputs.requires_grad
    evidence = examine(problem, recovery, attack=attack.name, seconds=0.0)
    assert len(evidence.residuals) == restarts


@pytest.mark.parametrize("attack", EVERY[1:], ids=lambda a: a.name)
def test_another_seed_starts_elsewhere(attack):
    problem = build("one")
    if attack.blocked_by(problem) is not None:
        return
    one, two = (attack.run(problem, seed=seed, watch=WATCH).inputs for seed in (0, 1))
    assert not torch.equal(one, two)


@each_attack
@each_problem
def test_an_expired_watch_ends_at_once(attack, name):
    problem = build(name)
    if attack.blocked_by(problem) is not None:
        return
    long = with_search(attack, Search(restarts=100, max_steps=100_000))
    begun = time.monotonic()
    recovery = long.run(problem, seed=0, watch=Watch(deadline=begun - 1))
    assert time.monotonic() - begun < 2
    if recovery.labels is None:
        assert recovery.expired
        assert isinstance(examine(problem, recovery, attack=attack.name, seconds=0.0), Failed)


@each_attack
def test_attacks_are_values(attack):
    assert attack == copy.deepcopy(attack)
    assert attack.title
    assert "." in attack.name
    assert attack.name in repr(attack)
    with pytest.raises(FrozenInstanceError):
        attack.name = "other"


def test_names_are_unique_and_cheap_attacks_come_first():
    names = [attack.name for attack in ATTACKS]
    assert len(set(names)) == len(names)
    wanted = [
        "labels.head", "images.layers", "images.spear", "images.linear_rows", "images.lm",
        "images.idlg", "images.dlg",
    ]  # fmt: skip
    assert [name for name in names if name in wanted] == wanted


def test_with_search():
    assert with_search(IDLG(), FEW) == IDLG(search=FEW)
    assert with_search(DLG(), FEW) == DLG(search=FEW)
    assert with_search(HeadLabels(), FEW) == HeadLabels()
    assert with_search(LayerByLayer(), FEW) == LayerByLayer()
    assert with_search(LevenbergMarquardt(), FEW).search == FEW
    assert with_search(LevenbergMarquardt(), PAPER) == LevenbergMarquardt()


# --------------------------------------------------------------------------- the truth is not there


def reachable(root, limit=100_000):
    """Every object that can be reached from a problem by attributes and containers."""
    seen, queue = {}, [root]
    while queue and len(seen) < limit:
        thing = queue.pop()
        if id(thing) in seen or isinstance(thing, type | str | int | float | bool | None.__class__):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, dict):
            queue += [*thing.keys(), *thing.values()]
        elif isinstance(thing, tuple | list | set | frozenset):
            queue += list(thing)
        elif isinstance(thing, nn.Module) or is_dataclass(thing):
            queue += list(vars(thing).values())
        elif isinstance(thing, torch.Tensor):
            queue += [thing.grad, thing.grad_fn]
    assert len(seen) < limit
    return list(seen.values())


@each_problem
def test_the_truth_is_not_reachable_from_a_problem(name):
    assert not any(isinstance(thing, Truth) for thing in reachable(build(name)))


def test_inputs_and_labels_are_not_reachable_from_a_problem():
    had = lenet_client()
    found = reachable(had.problem())
    tensors = [t for t in found if isinstance(t, torch.Tensor)]
    assert len(tensors) >= 2 * len(list(had.module.parameters()))  # the walk went in
    assert not any(t.shape == had.inputs.shape for t in tensors)
    assert {f.name for f in fields(Problem)} == {
        "module", "gradient", "precision", "knowledge", "trace", "mode_shown", "auxiliary",
        "labels", "channel", "statistics", "statistics_unused", "running",
    }  # fmt: skip
