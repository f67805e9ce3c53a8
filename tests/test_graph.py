"""A recording replayed with another input is the module with that input."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from auditor.graph import Node, constant, parameter_behind, record, replay
from auditor.inversion.layers import layers_of


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double().eval()


def draw(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def replayed(module, first, second):
    """What the recording at `first` makes of `second`."""
    _, recording = record(module, first)
    path = [layer.node for layer in layers_of(recording)]
    assert path[-1] is recording.output
    return replay(path, recording.given, second)


class Written(nn.Module):
    """A module of one function, with a parameter and a buffer."""

    def __init__(self, forward):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.register_buffer("shift", torch.randn(6))
        self.function = forward

    def forward(self, x):
        return self.function(self, x)


def _in_place(m, x):
    y = x * 2
    y += m.shift
    y.mul_(0.5).sub_(0.1)
    return torch.sigmoid_(y)


def _constants(m, x):
    c = torch.arange(6, dtype=x.dtype) / 7
    c.add_(1)
    return x * c + torch.ones(6, dtype=x.dtype).cumsum(0) * m.shift


def _split(m, x):
    left, right = x.split([2, 4], dim=1)
    return torch.cat([right.tanh(), left], 1) @ m.weight


def _unbound(m, x):
    first, *_, last = x.unbind(1)
    return torch.stack([first, last.exp()], 1)


def _topk(m, x):
    return x.max(1).values[:, None] * torch.ones(6, dtype=x.dtype)


def _turned(m, x):
    return F.linear(x @ m.weight, m.weight.t().t().transpose(0, 1))


def _residual(m, x):
    return x + torch.relu(x @ m.weight) + m.shift


def _swapped(m, x):
    return torch.sub(m.shift, x, alpha=3)


def _keywords(m, x):
    return torch.addmm(m.shift, x, m.weight, beta=0.5, alpha=2.0)


def _out(m, x):
    made = torch.empty_like(x)
    torch.mul(x, m.shift, out=made)
    return made + 1


FUNCTIONS = [
    _in_place, _constants, _split, _unbound, _topk, _turned, _residual, _swapped, _keywords, _out,
]  # fmt: skip


@pytest.mark.parametrize("function", FUNCTIONS)
def test_replay_of_written_forwards(function):
    module = seeded(lambda: Written(function))
    first, second = draw(1, 6), draw(1, 6, seed=2)
    torch.testing.assert_close(
        replayed(module, first, second), module(second).detach(), rtol=0, atol=0
    )


class TakesArgument(nn.Module):
    """Writes into what it was given."""

    def forward(self, x):
        return x.mul_(2).sum(1)


def _batch_norm(affine):
    norm = nn.BatchNorm2d(4, affine=affine)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return norm


MODULES = {
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, dilation=2, padding="same"), nn.GELU(approximate="tanh"),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3),
    ),
    "batch norm": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 1), _batch_norm(True), nn.ELU(inplace=True)
    ),
    "batch norm without affine": lambda: nn.Sequential(nn.Conv2d(2, 4, 1), _batch_norm(False)),
    "group and layer norm": lambda: nn.Sequential(
        nn.GroupNorm(1, 2), nn.LayerNorm([8, 8]), nn.Hardtanh(-0.5, 2.0)
    ),
    "pools": lambda: nn.Sequential(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(3), nn.Softplus(2, 10)),
    "reflected": lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 3)),
    "attention": lambda: nn.Sequential(
        nn.Flatten(1, 2), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_replay_of_modules(name):
    module = seeded(MODULES[name])
    first, second = draw(1, 2, 8, 8), draw(1, 2, 8, 8, seed=2)
    expected = module(second).detach()
    torch.testing.assert_close(replayed(module, first, second), expected, rtol=1e-12, atol=1e-14)


def test_replay_leaves_its_value_alone():
    module = TakesArgument()
    value = draw(1, 6)
    kept = value.clone()
    torch.testing.assert_close(replayed(module, draw(1, 6, seed=2), value), kept.sum(1) * 2)
    assert torch.equal(value, kept)


def test_replay_leaves_parameters_and_buffers_alone():
    module = seeded(lambda: Written(_in_place))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    replayed(module, draw(1, 6), draw(1, 6, seed=2))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_replay_carries_gradients():
    module = seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)))
    _, recording = record(module, draw(1, 6))
    value = draw(1, 6, seed=2).requires_grad_()
    path = [layer.node for layer in layers_of(recording)]
    (found,) = torch.autograd.grad(replay(path, recording.given, value).sum(), value)
    (expected,) = torch.autograd.grad(module(value).sum(), value)
    torch.testing.assert_close(found, expected)


def test_replay_from_the_middle():
    module = seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)))
    _, recording = record(module, draw(1, 6))
    layers = layers_of(recording)
    at = [layer.operation for layer in layers].index("tanh")
    value = draw(1, 4)
    found = replay([layer.node for layer in layers[at + 1 :]], layers[at].node, value)
    torch.testing.assert_close(found, module[2](value).detach())


class Spy(nn.Module):
    """Keeps weak references to what it computes."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.seen = []

    def note(self, x):
        self.seen.append(weakref.ref(x))
        return x

    def forward(self, x):
        for _ in range(3):
            x = self.note(torch.sigmoid(self.note(self.linear(x))))
        out = self.note(torch.empty_like(x))
        torch.mul(x, 2.0, out=out)
        return self.note(torch.add(out, 1)), self.note(x.max(1).values)


def test_nothing_computed_is_kept_alive():
    module = seeded(Spy)
    output, recording = record(module, draw(1, 6))
    del output
    gc.collect()
    assert recording.output.operation == "add"
    assert [reference() for reference in module.seen] == [None] * len(module.seen)


def test_leaves_are_values_of_parameters_buffers_and_the_input():
    module = seeded(lambda: Written(_residual))
    value = draw(1, 6)
    _, recording = record(module, value)
    leaves = _leaves(recording.output)
    names = {node.parameter for node in leaves}
    assert names == {"weight", None}
    assert any(torch.equal(node.value, module.shift) for node in leaves)
    assert recording.given in leaves
    assert recording.given.shape == (1, 6)


def _leaves(node, seen=None):
    seen = set() if seen is None else seen
    if node in seen:
        return set()
    seen.add(node)
    if not node.parents:
        return {node}
    return set().union(*(_leaves(parent, seen) for parent in node.parents))


def test_shapes_and_places_of_operations_with_several_results():
    _, recording = record(seeded(lambda: Written(_split)), draw(1, 6))
    parts = [layer.node for layer in layers_of(recording) if "split" in layer.operation]
    assert {node.call.place for node in parts} == {0, 1}
    assert {node.shape for node in parts} == {(1, 2), (1, 4)}


def test_uses_count_operations_not_views():
    module = seeded(lambda: Written(_turned))
    _, recording = record(module, draw(1, 6))
    assert recording.uses["weight"] == 2
    module = seeded(lambda: nn.Linear(6, 3))
    _, recording = record(module, draw(1, 6))
    assert recording.uses == {"weight": 1, "bias": 1}


def test_parameters_through_transposes():
    module = seeded(lambda: Written(lambda m, x: x @ m.weight.t()))
    _, recording = record(module, draw(1, 6))
    assert parameter_behind(recording.output.parents[1]) == ("weight", True)
    module = seeded(lambda: Written(lambda m, x: x @ m.weight.t().transpose(0, 1)))
    _, recording = record(module, draw(1, 6))
    assert parameter_behind(recording.output.parents[1]) == ("weight", False)


def test_writes_into_views_are_noted():
    def forward(m, x):
        y = x.clone()
        y[:, :2] = 0
        return y

    assert record(seeded(lambda: Written(forward)), draw(1, 6))[1].writes_through_views
    assert not record(seeded(lambda: Written(_in_place)), draw(1, 6))[1].writes_through_views


def test_constants_that_are_computed():
    def forward(m, x):
        scale = (m.shift.exp() + 1).sqrt_()
        return x * scale

    module = seeded(lambda: Written(forward))
    _, recording = record(module, draw(1, 6))
    found = constant(recording.output.parents[1])
    torch.testing.assert_close(found, (module.shift.exp() + 1).sqrt())


def test_constants_used_many_times_are_computed_once():
    """c + c twelve times over: without a memory, 2^12 calls."""
    calls = []

    def forward(m, x):
        c = m.shift
        for _ in range(12):
            c = c + c
        return x * c

    module = seeded(lambda: Written(forward))
    _, recording = record(module, draw(1, 6))
    made = recording.output.parents[1]

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(func)
            return func(*args, **(kwargs or {}))

    with Count():
        found = constant(made)
    torch.testing.assert_close(found, module.shift * 2.0**12)
    assert len(calls) <= 24


def test_a_compiled_model_is_recorded_as_it_was_written():
    module = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    compiled, given = torch.compile(module, backend="eager"), torch.rand(2, 1, 2, 2)
    for _ in range(2):  # before it was ever called, and after
        made, recording = record(compiled, given)
        assert torch.equal(made, module(given))
        assert recording.operations == record(module, given)[1].operations
        assert torch.equal(compiled(given), made)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripted_modules():
    module = seeded(lambda: nn.Sequential(nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3)))
    scripted = torch.jit.script(module)
    first, second = draw(1, 6), draw(1, 6, seed=2)
    output, recording = record(scripted, first)
    torch.testing.assert_close(output, module(first).detach())
    assert isinstance(recording.output, Node)
    torch.testing.assert_close(replayed(scripted, first, second), module(second).detach())


def test_nested_outputs_and_modules_that_do_nothing():
    class Named(nn.Module):
        def forward(self, x):
            return {"logits": x * 2, "features": x}

    output, recording = record(Named(), draw(1, 6))
    assert recording.output.operation == "mul"
    assert set(output) == {"logits", "features"}
    value = draw(1, 6)
    output, recording = record(nn.Identity(), value)
    assert output is value
    assert recording.output is recording.given
    assert layers_of(recording) == ()


def test_recording_draws_no_gradients():
    output, _ = record(seeded(lambda: nn.Linear(6, 3)), draw(1, 6))
    assert not output.requires_grad
