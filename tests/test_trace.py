"""The head is found by operations, and "no feature can be negative" is never said wrongly."""

import copy

import pytest
import torch
from problems import CPU, Net, dump_of, knowledge, net
from torch import nn
from torch.nn import functional as F

from auditor.errors import InputError
from auditor.problem import make_problem
from auditor.trace import trace

SHAPE = (1, 4, 4)


def wide(classes=3):
    return nn.Linear(16, classes)


class Shuffled(nn.Module):
    """The head is registered first and its bias before its weight."""

    def __init__(self):
        super().__init__()
        self.logit_bias = nn.Parameter(torch.zeros(3))
        self.logit_weight = nn.Parameter(torch.randn(3, 8))
        self.early = nn.Linear(16, 8)

    def forward(self, x):
        features = F.relu(self.early(x.flatten(1)))
        return F.linear(features, self.logit_weight, self.logit_bias)


class Forward(nn.Module):
    """16 pixels, a linear layer to 8 features, `between`, a head; `after` on the logits."""

    def __init__(self, between=lambda h: h, after=lambda z: z, *, bias=True, width=8, classes=3):
        super().__init__()
        self.body = nn.Linear(16, 8)
        self.head = nn.Linear(width, classes, bias=bias)
        self.between, self.after = between, after

    def forward(self, x):
        return self.after(self.head(self.between(self.body(x.flatten(1)))))


def features_of(module, count=200, seed=0):
    """What goes into the head, (count, E), for inputs of several sizes and signs."""
    seen = []
    handle = module.head.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for scale in (0.1, 1.0, 30.0):
            module(scale * torch.randn(count, *SHAPE, generator=generator))
    handle.remove()
    return torch.cat(seen)


# --------------------------------------------------------------------------- the head


def test_head_of_a_plain_network():
    found = trace(net("relu", 10), SHAPE)
    assert (found.head.weight, found.head.bias) == ("head.weight", "head.bias")
    assert (found.head.classes, found.head.features) == (10, 32)
    assert found.operations >= 4  # flatten, linear, relu, linear
    assert not found.dropout
    assert not found.batch_norm


def test_the_order_of_parameters_means_nothing():
    found = trace(Shuffled(), SHAPE).head
    assert (found.weight, found.bias) == ("logit_weight", "logit_bias")
    assert (found.classes, found.features) == (3, 8)


def test_head_without_bias():
    head = trace(net("relu", 5, bias=False), SHAPE).head
    assert (head.weight, head.bias) == ("head.weight", None)


@pytest.mark.parametrize(
    "after",
    [
        nn.LogSoftmax(1),
        nn.LogSoftmax(-1),
        nn.Identity(),
        lambda z: z.view(len(z), -1),
        lambda z: z.clone(),
        lambda z: z.double(),
    ],
    ids=["log_softmax", "log_softmax_last", "identity", "view", "clone", "double"],
)
def test_what_hands_the_logits_on_is_passed(after):
    assert trace(Forward(after=after), SHAPE).head.weight == "head.weight"


@pytest.mark.parametrize(
    "after",
    [
        nn.Softmax(1),
        lambda z: z * 2,
        lambda z: z + 1,
        nn.ReLU(),
        lambda z: z[:, torch.tensor([2, 0, 1])],
        lambda z: z.flip(1),
        lambda z: z[:, :2],
        nn.LogSoftmax(0),
    ],
    ids=["softmax", "times", "plus", "relu", "index", "flip", "part", "log_softmax_over_batch"],
)
def test_what_changes_the_logits_is_refused(after):
    with pytest.raises(InputError, match="linear"):
        trace(Forward(after=after), SHAPE)


def test_a_softmax_is_named_in_the_message():
    with pytest.raises(InputError, match="softmax: return the logits"):
        trace(Forward(after=nn.Softmax(1)), SHAPE)


def test_a_convolutional_head_is_refused():
    module = nn.Sequential(nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError):
        trace(module, SHAPE)


class Twice(nn.Module):
    """The head's weight has a second use."""

    def __init__(self, second):
        super().__init__()
        self.head = nn.Linear(16, 16)
        self.second = second

    def forward(self, x):
        return self.head(self.second(self.head, x.flatten(1)))


@pytest.mark.parametrize(
    "second",
    [
        lambda head, x: head(x),
        lambda head, x: x + head.weight.sum(),
        lambda head, x: x @ head.weight,
        lambda head, x: x + head.bias,
    ],
    ids=["module", "sum", "product", "bias"],
)
def test_a_shared_head_is_refused(second):
    with pytest.raises(InputError):
        trace(Twice(second), SHAPE)


class OneViewTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16))

    def forward(self, x):
        turned = self.weight.t()
        return torch.mm(F.relu(torch.mm(x.flatten(1), turned)), turned)


def test_a_head_shared_through_one_view_is_refused():
    with pytest.raises(InputError):
        trace(OneViewTwice(), SHAPE)


class Turned(nn.Module):
    """logits = x W with W (E, K): the weight's rows are features, not classes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 16))

    def forward(self, x):
        return torch.mm(x.flatten(1), self.weight)


def test_a_square_head_with_features_in_rows_is_refused():
    with pytest.raises(InputError):
        trace(Turned(), SHAPE)


class Part(nn.Module):
    """The head uses a part of a longer bias: its gradient is longer than the logits."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 16))
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x):
        return F.linear(x.flatten(1), self.weight, self.bias[:3])


def test_a_head_with_a_part_of_a_bias_is_refused():
    with pytest.raises(InputError):
        trace(Part(), SHAPE)


def test_a_reparametrised_head_is_refused():
    module = net("relu", 3)
    nn.utils.parametrizations.weight_norm(module.head)
    with pytest.raises(InputError):
        trace(module, SHAPE)


@pytest.mark.parametrize(
    "after", [lambda z: (z, z), lambda z: z[0], lambda z: z[:, :, None], lambda z: {"z": z}]
)
def test_outputs_that_are_no_logits_are_refused(after):
    with pytest.raises(InputError, match="logits of shape"):
        trace(Forward(after=after), SHAPE)


def test_a_shape_that_the_model_does_not_take_is_refused():
    with pytest.raises(InputError, match="--input-shape"):
        trace(net(), (1, 5, 5))


def test_a_model_without_parameters_is_refused():
    with pytest.raises(InputError):
        trace(nn.Flatten(), SHAPE)


# --------------------------------------------------------------------------- nothing is changed


def _state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
def test_model_and_random_state_are_left_alone(training):
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(16, 3)
    ).train(training)
    module[1].eval()  # flags that differ from one another stay so
    before, flags = _state(module), [m.training for m in module.modules()]
    grads = [p.requires_grad for p in module.parameters()]
    torch.manual_seed(3)
    random = torch.get_rng_state()
    found = trace(module, SHAPE)
    assert found.dropout
    assert found.batch_norm
    assert [m.training for m in module.modules()] == flags
    assert [p.requires_grad for p in module.parameters()] == grads
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_flags_come_back_when_the_forward_pass_fails():
    module = net().train()
    with pytest.raises(InputError):
        trace(module, (1, 5, 5))
    assert all(inner.training for inner in module.modules())


# --------------------------------------------------------------------------- signs of features

NEVER_NEGATIVE = {
    "relu": F.relu,
    "relu_": lambda h: F.relu(h, inplace=True),
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "relu6": F.relu6,
    "clamp": lambda h: h.clamp(0, 1),
    "clamp_min": lambda h: h.clamp(min=0),
    "relu then mean": lambda h: F.relu(h).view(-1, 4, 2).mean(2),
    "relu then pool": lambda h: F.max_pool2d(F.relu(h).view(-1, 2, 2, 2), 2).flatten(1),
    "relu then average": lambda h: F.avg_pool2d(F.relu(h).view(-1, 2, 2, 2), 2).flatten(1),
    "relu then adaptive": lambda h: F.adaptive_avg_pool2d(F.relu(h).view(-1, 2, 2, 2), 1).flatten(
        1
    ),
    "relu then dropout": lambda h: F.dropout(F.relu(h), 0.5, training=False),
    "sum of two": lambda h: F.relu(h) + torch.sigmoid(h),
    "cat": lambda h: torch.cat([F.relu(h), torch.sigmoid(h)], 1),
    "select": lambda h: F.relu(h).view(-1, 2, 4).select(1, 0),
    "slice": lambda h: F.relu(h)[:, :4],
    "softmax": lambda h: h.softmax(1),
    "abs": torch.abs,
}
CAN_BE_NEGATIVE = {
    "nothing": lambda h: h,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "silu": F.silu,
    "leaky": F.leaky_relu,
    "elu": F.elu,
    "layer norm": lambda h: F.layer_norm(F.relu(h), (8,)),
    "minus": lambda h: F.relu(h) - 0.5,
    "plus a negative number": lambda h: F.relu(h) + (-0.5),
    "times": lambda h: F.relu(h) * -1,
    "add with alpha": lambda h: torch.add(F.relu(h), torch.sigmoid(h), alpha=-1),
    "plus a constant tensor": lambda h: F.relu(h) + torch.full((8,), -0.5),
    "clamp max": lambda h: h.clamp(max=6),
    "clamp below zero": lambda h: h.clamp(-1, 6),
    "hardtanh": F.hardtanh,
    "clamp with both negative": lambda h: h.clamp(0, -1),
    "softplus of negative beta": lambda h: F.softplus(h, beta=-1),
    "average with negative divisor": lambda h: F.avg_pool2d(
        F.relu(h).view(-1, 2, 2, 2), 2, divisor_override=-1
    ).flatten(1),
    "half of them": lambda h: torch.cat([F.relu(h), h], 1),
    "relu plus itself before": lambda h: F.relu(h) + h,
    "matrix after": lambda h: F.relu(h) @ -torch.eye(8),
    "neg": lambda h: -F.relu(h),
    "log of sigmoid": lambda h: torch.sigmoid(h).log(),
}


def _write_to_a_view(h):
    y = F.relu(h)
    y.view(-1).sub_(1)
    return y


def _write_to_a_slice(h):
    y = F.relu(h)
    y[:, 0] = -1
    return y


def _write_to_a_mask(h):
    y = F.relu(h)
    y[y < 0.1] = -1
    return y


def _write_after_a_view(h):
    y = F.relu(h)
    z = y.view(-1, 8)
    y.sub_(1)
    return z


def _write_through_data(h):
    y = F.relu(h)
    y.data.sub_(1)
    return y


def _write_to_detached(h):
    y = F.relu(h)
    y.detach().sub_(1)
    return y


def _write_by_out(h):
    y = F.relu(h)
    z = y.view(-1, 8)
    torch.sub(y, 1, out=y)
    return z


def _write_in_place(h):
    y = F.relu(h)
    return y.sub_(1)


def _write_by_list(h):
    y = F.relu(h)
    torch._foreach_sub_([y], 1.0)
    return y


WRITES = [
    _write_to_a_view,
    _write_to_a_slice,
    _write_to_a_mask,
    _write_after_a_view,
    _write_through_data,
    _write_to_detached,
    _write_by_out,
    _write_in_place,
    _write_by_list,
]


def _forward(between):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        probe = between(torch.randn(2, 8)).shape[1]
        return Forward(between, width=probe)


@pytest.mark.parametrize("name", NEVER_NEGATIVE)
def test_features_that_cannot_be_negative(name):
    module = _forward(NEVER_NEGATIVE[name])
    assert trace(module, SHAPE).head.features_nonnegative
    assert features_of(module).min() >= 0


@pytest.mark.parametrize("name", CAN_BE_NEGATIVE)
def test_features_that_can_be_negative(name):
    module = _forward(CAN_BE_NEGATIVE[name])
    assert features_of(module).min() < 0  # the row is worth something
    assert not trace(module, SHAPE).head.features_nonnegative


@pytest.mark.parametrize("between", WRITES)
def test_writing_in_place_is_noticed(between):
    module = _forward(between)
    assert features_of(module).min() < 0
    assert not trace(module, SHAPE).head.features_nonnegative


def test_an_in_place_activation_after_a_layer_is_no_obstacle():
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(8, 3)
    )
    assert trace(module, SHAPE).head.features_nonnegative


def test_batch_norm_after_the_activation():
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3)
    )
    assert not trace(module, SHAPE).head.features_nonnegative


class Noisy(nn.Module):
    """A layer that behaves otherwise in training mode."""

    def forward(self, x):
        return x - 0.5 if self.training else x


@pytest.mark.parametrize("layer", [Noisy(), nn.AlphaDropout(0.5)], ids=["own", "alpha dropout"])
def test_the_features_of_the_mode_that_the_client_trained_in(layer):
    module = Net(nn.Sequential(nn.ReLU(), layer), 3)
    gradients = {name: torch.ones_like(p) for name, p in module.named_parameters()}
    signs = {
        mode: make_problem(
            module, dump_of(module, gradients), knowledge(SHAPE, mode=mode), device=CPU
        ).trace.head.features_nonnegative
        for mode in ("eval", "train")
    }
    assert signs == {"eval": True, "train": False}


def test_dropout_keeps_the_sign_in_training_mode():
    module = Net(nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), 3)
    gradients = {name: torch.ones_like(p) for name, p in module.named_parameters()}
    known = knowledge(SHAPE, mode="train")
    found = make_problem(module, dump_of(module, gradients), known, device=CPU).trace
    assert found.dropout
    assert found.head.features_nonnegative


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_dropout_is_seen_when_it_can_act(p):
    assert trace(nn.Sequential(nn.Flatten(), nn.Dropout(p), wide()), SHAPE).dropout == (p > 0)


def test_functional_dropout_is_seen():
    class Inline(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = wide()

        def forward(self, x):
            return self.head(F.dropout(x.flatten(1), 0.5, training=True))

    assert trace(Inline(), SHAPE).dropout


# ------------------------------------------------------------------ property: random networks

_LAYERS = {
    "relu": nn.ReLU,
    "relu_": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "batch": lambda: nn.BatchNorm2d(4),
    "group": lambda: nn.GroupNorm(2, 4),
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "max": lambda: nn.MaxPool2d(3, 1, 1),
    "average": lambda: nn.AvgPool2d(3, 1, 1),
    "dropout": lambda: nn.Dropout(0.3),
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


class Random(nn.Module):
    """Random layers, joined by sums and shortcuts at random."""

    def __init__(self, seed):
        super().__init__()
        self.choice = torch.Generator().manual_seed(seed)
        names = list(_LAYERS)
        self.names = [names[self._draw(len(names))] for _ in range(4)]
        self.layers = nn.ModuleList(_LAYERS[name]() for name in self.names)
        self.joins = [self._draw(5) for _ in self.names]
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(64, 3)

    def _draw(self, below):
        return int(torch.randint(below, (), generator=self.choice))

    def forward(self, x):
        x = kept = self.first(x)
        for layer, join in zip(self.layers, self.joins, strict=True):
            y = layer(x)
            x = {0: lambda y=y, k=kept: y + k, 1: lambda y=y, k=kept: y + F.relu(k)}.get(
                join, lambda y=y: y
            )()
            kept = x
        return self.head(x.flatten(1))


def test_random_networks_never_break_the_promise():
    said = 0
    for seed in range(150):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = Random(seed).eval()
        if trace(module, SHAPE).head.features_nonnegative:
            said += 1
            lowest = float(features_of(copy.deepcopy(module), 50, seed).min())
            assert lowest >= 0, (seed, module.names, module.joins, lowest)
    assert said >= 20  # else nothing was tested
