"""The mode of batch norms, read off a gradient or off buffers that came back."""

import copy

import pytest
import torch
from problems import dump_of, problem_of
from torch import nn
from torch.nn import functional as F

from auditor import scan
from auditor.batch_norm import (
    mode_caveats,
    mode_of,
    mode_of_buffers,
    normalised_layers,
    with_deduced_mode,
)
from auditor.checks import caveats_of
from auditor.graph import record
from auditor.records import Assumption, Knowledge
from auditor.zoo import build

SHAPE = (3, 8, 8)


class Branched(nn.Module):
    """A convolution whose output goes into a batch norm and past it, and one that only goes in."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        first = self.a(x)
        again = self.norm(self.b(F.relu(self.norm(first) + first)))
        return self.head(again.mean((2, 3)))


def convolutional(bias=True, activation=nn.ReLU):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8), activation(),
        nn.Conv2d(8, 12, 3, stride=2, bias=bias), nn.BatchNorm2d(12), activation(),
        nn.Flatten(), nn.Linear(48, 4),
    )  # fmt: skip


def dense(bias=True, activation=nn.ReLU):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 20, bias=bias), nn.BatchNorm1d(20), activation(),
        nn.Linear(20, 4),
    )  # fmt: skip


NETS = {
    f"{make.__name__} {'with' if bias else 'without'} bias, {activation.__name__}": (
        make, bias, activation,
    )
    for make in (convolutional, dense) for bias in (True, False)
    for activation in (nn.ReLU, nn.Tanh)
}  # fmt: skip


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
        for module in model.modules():  # as after some training
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def pictures(count, seed=0, shape=SHAPE):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def sent_by(model, mode, count=8, seed=0, shape=SHAPE):
    """The gradient of one step, by name; the model stays as it is."""
    client = copy.deepcopy(model).train(mode == "train")
    labels = torch.arange(count) % 4
    F.cross_entropy(client(pictures(count, seed, shape)), labels).backward()
    return {name: p.grad for name, p in client.named_parameters()}


def shown(model, sent, shape=SHAPE, precision=2.0**-23):
    recording = record(copy.deepcopy(model).eval(), torch.zeros(1, *shape))[1]
    named = dict(model.named_parameters())
    return mode_of(normalised_layers(recording, model), named, sent, precision=precision)


def names(model, shape=SHAPE):
    recording = record(copy.deepcopy(model).eval(), torch.zeros(1, *shape))[1]
    found = normalised_layers(recording, model)
    return {(layer.weight, layer.bias, layer.gain, layer.shift) for layer in found}


def test_the_layers_before_batch_norms():
    assert names(convolutional()) == {
        ("0.weight", "0.bias", "1.weight", "1.bias"), ("3.weight", "3.bias", "4.weight", "4.bias"),
    }  # fmt: skip
    assert names(dense(bias=False)) == {("1.weight", None, "2.weight", "2.bias")}
    assert names(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))) == set()


def test_a_layer_that_also_goes_past_its_batch_norm_does_not_count():
    assert names(Branched()) == {("b.weight", "b.bias", "norm.weight", "norm.bias")}


def test_every_convolution_of_a_residual_network_counts():
    model = build("resnet20")
    weights = {layer[0] for layer in names(model, (3, 32, 32))}
    assert weights == {n for n, p in model.named_parameters() if p.ndim == 4}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", NETS)
def test_the_mode_is_read_off_the_gradient(name, mode, seed):
    make, bias, activation = NETS[name]
    model = seeded(lambda: make(bias, activation), seed)
    for count in (2, 8, 32):
        found = shown(model, sent_by(model, mode, count, seed))
        # Normalised over two numbers, everything is +1 or -1 but for the constant under the root.
        degenerate = make is dense and not bias and count == 2
        assert found in ({mode, None} if degenerate else {mode}), count


@pytest.mark.parametrize("variance", [1e-6, 1e-4])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_where_the_constant_under_the_root_counts_nothing_false_is_said(mode, variance):
    model = seeded(lambda: convolutional(bias=False))
    with torch.no_grad():
        model[0].weight *= variance**0.5
        model[3].weight *= variance**0.5
    assert shown(model, sent_by(model, mode)) in {mode, None}


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_without_gains_only_right_angles_speak(mode):
    model = seeded(lambda: convolutional(bias=False))
    sent = {n: g for n, g in sent_by(model, mode).items() if n not in {"1.weight", "4.bias"}}
    found = shown(model, sent)
    assert found == ("train" if mode == "train" else None)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_residual_network_without_biases_tells_its_mode(mode):
    model = seeded(lambda: build("resnet20"))
    sent = sent_by(model, mode, 4, shape=(3, 32, 32))
    assert shown(model, sent, (3, 32, 32)) == mode


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_half_precision_tells_the_mode_too(mode):
    model = seeded(convolutional)
    sent = {n: g.half() for n, g in sent_by(model, mode).items()}
    assert shown(model, sent, precision=2.0**-11) == mode


def test_noise_is_not_taken_for_training_mode():
    model = seeded(convolutional)
    sent = sent_by(model, "train")
    generator = torch.Generator().manual_seed(1)
    noised = {
        n: g + 0.1 * g.square().mean().sqrt() * torch.randn(g.shape, generator=generator)
        + 1e-3 * torch.randn(g.shape, generator=generator)
        for n, g in sent.items()
    }  # fmt: skip
    assert shown(model, noised) != "train"


def test_a_dump_that_holds_nothing_of_these_layers_says_nothing():
    model = seeded(convolutional)
    sent = {n: g for n, g in sent_by(model, "train").items() if n.startswith("7.")}
    assert shown(model, sent) is None
    zero = {n: torch.zeros_like(g) for n, g in sent_by(model, "train").items()}
    assert shown(model, zero) is None


def test_layers_that_disagree_say_nothing():
    model = seeded(convolutional)
    training, evaluation = sent_by(model, "train"), sent_by(model, "eval")
    mixed = {n: (training if n.startswith("0.") else evaluation)[n] for n in training}
    assert shown(model, mixed) is None


# --------------------------------------------------------------------------- not side by side

BETWEEN = {
    "relu": nn.ReLU,
    "leaky relu": lambda: nn.LeakyReLU(0.1),
    "relu in place": lambda: nn.ReLU(inplace=True),
    "relu and max pooling": lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
    "average pooling": lambda: nn.AvgPool2d(3, stride=1, padding=1),
}


def rectified(between=nn.ReLU, bias=True):
    """Every batch norm behind something that is positively homogeneous."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=bias), between(), nn.BatchNorm2d(8),
        nn.Conv2d(8, 12, 2, bias=bias), between(), nn.BatchNorm2d(12),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 4),
    )  # fmt: skip


def rectified_dense(bias=True):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 20, bias=bias), nn.ReLU(), nn.BatchNorm1d(20),
        nn.Linear(20, 4),
    )  # fmt: skip


def gradients_before(module, mode):
    """Sum over samples and places of d z for each channel, with z before the ReLU, by autograd."""
    client, kept = copy.deepcopy(module).double().train(mode == "train"), []
    client[0].register_forward_hook(lambda _, __, made: (made.retain_grad(), kept.append(made))[1])
    labels = torch.arange(8) % 4
    F.cross_entropy(client(pictures(8).double()), labels).backward()
    return (kept[0].grad * kept[0]).sum((0, 2, 3)).detach(), client


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("name", ["relu", "leaky relu", "relu and max pooling", "average pooling"])
def test_values_times_gradients_are_the_same_before_what_is_homogeneous(name, mode):
    """The identity that the mode is read from, in double precision."""
    module = seeded(lambda: rectified(BETWEEN[name]))
    sums, client = gradients_before(module, mode)
    row, norm = client[0], client[2]
    products = (row.weight * row.weight.grad).flatten(1).sum(1) + row.bias * row.bias.grad
    torch.testing.assert_close(products.detach(), sums)
    by_gain = norm.weight * norm.weight.grad
    if mode == "eval":
        shifted = norm.running_mean / (norm.running_var + norm.eps).sqrt()
        expected = by_gain + norm.weight * norm.bias.grad * shifted
    else:
        variance = client[1](row(pictures(8).double())).var((0, 2, 3), correction=0)
        expected = by_gain * norm.eps / (variance + norm.eps)
    torch.testing.assert_close(sums, expected.detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", BETWEEN)
def test_the_mode_is_read_through_what_is_homogeneous(name, bias, mode, seed):
    model = seeded(lambda: rectified(BETWEEN[name], bias), seed)
    with torch.no_grad():  # else what is normalised hardly varies, beside the constant
        model[0].weight *= 3
        model[3].weight *= 3
    for count in (2, 8, 32):
        assert shown(model, sent_by(model, mode, count, seed)) == mode


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("bias", [True, False])
def test_the_mode_is_read_through_relu_in_a_perceptron(bias, mode):
    model = seeded(lambda: rectified_dense(bias))
    assert shown(model, sent_by(model, mode, 16)) == mode


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_bias_that_was_not_sent_leaves_what_is_behind_relu_open(mode):
    model = seeded(rectified)
    sent = {n: g for n, g in sent_by(model, mode).items() if n not in {"0.bias", "3.bias"}}
    assert shown(model, sent) is None


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("variance", [1e-6, 1e-5, 1e-4])
@pytest.mark.parametrize("seed", range(5))
def test_where_what_relu_lets_through_hardly_varies_nothing_false_is_said(seed, variance, mode):
    model = seeded(rectified, seed)
    with torch.no_grad():
        for layer in (model[0], model[3]):
            layer.weight *= variance**0.5
            layer.bias *= variance**0.5
    assert shown(model, sent_by(model, mode, seed=seed)) in {mode, None}


@pytest.mark.parametrize("between", [nn.Tanh, nn.SiLU, nn.ReLU6])
def test_what_is_not_homogeneous_hides_the_mode(between):
    assert names(rectified(between)) == set()


def flattened():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.Flatten(), nn.BatchNorm1d(144), nn.Linear(144, 4)
    )


class Sliced(nn.Module):
    """Half of the channels are normalised; of places, batch norm takes each for a channel."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(4)
        self.b, self.places = nn.Linear(36, 4, bias=False), nn.BatchNorm1d(4)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        half = self.norm(self.a(x)[:, :4]).flatten(2)  # (N, 4, 36)
        return self.head(self.places(self.b(half)).flatten(1))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("make", [flattened, Sliced])
def test_a_batch_norm_over_other_channels_than_the_layers_says_nothing(make, mode):
    model = seeded(make)
    assert names(model) == set()
    assert shown(model, sent_by(model, mode)) is None


@pytest.mark.parametrize("seed", range(5))
def test_a_dropout_before_batch_norm_is_not_taken_for_evaluation_mode(seed):
    """It is gone from a pass in evaluation mode, and the bias's gradient is not zero then."""

    def make():
        parts = list(convolutional())
        dropping = [nn.Dropout2d(0.5), nn.Dropout2d(0.5)]
        return nn.Sequential(parts[0], dropping[0], *parts[1:4], dropping[1], *parts[4:])

    model = seeded(make, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dropped = sent_by(model, "train", seed=seed)
    assert shown(model, dropped) is None
    assert shown(model, sent_by(model, "eval", seed=seed)) == "eval"


# --------------------------------------------------------------------------- what follows


def knowing(mode, origin):
    return Knowledge(
        SHAPE, (0.0,) * 3, (1.0,) * 3, 8, mode, "mean", True, 0.0,
        (Assumption("batch size", "8", "flag"), Assumption("mode", mode, origin)),
    )  # fmt: skip


def test_an_assumed_mode_gives_way_to_the_dump():
    found = with_deduced_mode(knowing("eval", "assumed"), "train")
    assert found.mode == "train"
    assert found.assumptions[-1] == Assumption("mode", "train", "deduced")
    assert [a.what for a in found.assumptions] == ["batch size", "mode"]
    assert mode_caveats(found, "train") == ()


@pytest.mark.parametrize("client_mode", ["train", "eval"])
@pytest.mark.parametrize(("between", "tells"), [(nn.ReLU, True), (nn.Tanh, False)])
def test_a_mode_that_nobody_said_is_deduced_or_listed_as_assumed(between, tells, client_mode):
    model = seeded(lambda: rectified(between))
    problem = problem_of(model, sent_by(model, client_mode), knowing("eval", "assumed"))
    dump = dump_of(model, sent_by(model, client_mode))
    listed = [c.message for c in caveats_of(problem, dump) if c.code == "GA302"]
    if tells:
        assert problem.knowledge.mode == client_mode
        assert listed == []
    else:
        assert problem.knowledge.mode == "eval"
        assert listed == ["Assumed, because nobody said: mode."]


@pytest.mark.parametrize("origin", ["flag", "metadata"])
def test_a_mode_that_was_said_stays_and_is_contradicted(origin):
    known = knowing("eval", origin)
    assert with_deduced_mode(known, "train") == known
    (caveat,) = mode_caveats(known, "train")
    assert caveat.code == "GA309"
    assert caveat.voids
    assert mode_caveats(known, None) == ()
    assert mode_caveats(known, "eval") == ()


# --------------------------------------------------------------------------- buffers


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_buffers_that_came_back_tell_the_mode(mode):
    model = seeded(convolutional)
    client = copy.deepcopy(model).train(mode == "train")
    client(pictures(4))
    assert mode_of_buffers(model, dict(client.named_buffers())) == mode
    assert mode_of_buffers(model, {}) is None
    counters = {n: b for n, b in client.named_buffers() if n.endswith("tracked")}
    assert mode_of_buffers(model, counters) is None


# --------------------------------------------------------------------------- young statistics


def faint(seen, *, loud=1.0):
    """As in round nought: what batch norms are given varies less than the constant under the root.

    Depthwise convolutions, hard swish, eps of 1e-3 and momentum of 0.01, as in MobileNetV3.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers, width = [], 3
        for groups, to in ((1, 16), (16, 16), (1, 24), (24, 24), (1, 16)):
            norm = nn.BatchNorm2d(to, eps=1e-3, momentum=0.01)
            conv = nn.Conv2d(width, to, 3, padding=1, groups=groups, bias=False)
            nn.init.normal_(conv.weight, std=loud * 0.02)
            layers += [conv, norm, nn.Hardswish()]
            width = to
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 6))
        model = nn.Sequential(*layers, *head)
        with torch.no_grad():
            for place in range(seen):
                model.train()(pictures(16, seed=place, shape=(3, 12, 12)))
    return model.eval()


@pytest.mark.parametrize("seen", [0, 1, 60])
@pytest.mark.parametrize(("mode", "count"), [("train", 2), ("train", 8), ("eval", 2)])
@pytest.mark.parametrize("told", [True, False])
def test_a_network_of_the_first_rounds_belongs_to_its_dump(seen, mode, count, told):
    model = faint(seen)
    sent = sent_by(model, mode, count, shape=(3, 12, 12))
    audit = scan(
        model, sent, batch_size=count, mode=mode if told else None, attacks=["labels"],
        input_shape=(3, 12, 12), reduction="mean", device="cpu",
    )  # fmt: skip
    assert not {"GA309", "GA310", "GA311"} & {caveat.code for caveat in audit.caveats}
    assert audit.trust.belongs != "contradicted"
    assert audit.verdict.status == "leak"  # labels
    [said] = [entry for entry in audit.assumptions if entry.what == "mode"]
    assert said.value == mode
    assert told or mode == "eval" or said.origin == "deduced"


def test_statistics_are_young_while_the_first_ones_count():
    def young(seen, momentum=0.1):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=momentum))
        model = nn.Sequential(*model, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
        with torch.no_grad():
            for place in range(seen):
                model.train()(pictures(8, seed=place))
        recording = record(copy.deepcopy(model).eval(), torch.zeros(1, *SHAPE))[1]
        [layer] = normalised_layers(recording, model)
        return layer.young

    assert [young(seen) for seen in (0, 1, 28, 29, 40)] == [True, True, True, False, False]
    assert young(100, momentum=0.01)
    assert not young(1, momentum=None)  # the mean over all batches so far


def test_statistics_from_elsewhere_are_not_young():
    model = seeded(convolutional)  # as another framework leaves them: no batch was counted
    recording = record(copy.deepcopy(model).eval(), torch.zeros(1, *SHAPE))[1]
    assert not any(layer.young for layer in normalised_layers(recording, model))
