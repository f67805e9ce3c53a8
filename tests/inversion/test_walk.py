"""From the anchor to the picture, and what each layer says of itself."""

import pytest
import torch
from nets import Written, chain, draw, seeded
from torch import nn
from torch.nn import functional as F

from auditor.inversion.anchor import read_anchor
from auditor.inversion.constraints import Bounds
from auditor.inversion.link_solver import Settings
from auditor.inversion.walk import walk
from auditor.solve import Status

EPS = 2.0**-52


def gradients(module, inputs, label=1):
    """By parameter name, in double precision, from `backward()`."""
    module.zero_grad()
    F.cross_entropy(module(inputs), torch.tensor([label] * len(inputs))).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def never(logits):
    raise AssertionError("these anchors have a bias")


def two(sent, precision=1e-12):
    """The dump, and the dump with small errors."""
    generator = torch.Generator().manual_seed(5)

    def again(g):
        drawn = torch.randn(g.shape, generator=generator, dtype=torch.float64)
        return torch.stack([g, g + precision * g.abs() * drawn])

    return {name: again(g) for name, g in sent.items()}


def read(module, shape, inputs, *, rows=None, precision=1e-12, seed=0, drop=(), **more):
    found = chain(module, shape)
    rows = two(gradients(module, inputs), precision) if rows is None else rows
    rows = {name: value for name, value in rows.items() if name not in drop}
    settings = Settings(precision, 1e-13, **more)
    return found, walk(
        found, rows, read_anchor(found, rows, never), precision=precision,
        bounds=Bounds(0.0, 1.0), settings=settings,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


def picture(*shape, seed=1):
    return torch.rand(1, *shape, generator=torch.Generator().manual_seed(seed)).double()


ACTIVATIONS = {
    "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "softplus": nn.Softplus, "elu": nn.ELU,
    "gelu": nn.GELU, "silu": nn.SiLU, "leaky relu": lambda: nn.LeakyReLU(0.1), "relu": nn.ReLU,
    "hardtanh": nn.Hardtanh, "relu6": nn.ReLU6,
}  # fmt: skip


def lenet(activation, channels=1, width=12, size=8):
    side = (size + 1) // 2
    return nn.Sequential(
        nn.Conv2d(channels, width, 5, stride=2, padding=2), activation(),
        nn.Conv2d(width, width, 3, padding=1), activation(),
        nn.Flatten(), nn.Linear(width * side**2, 4),
    )  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_picture_comes_back(name):
    module = seeded(lambda: lenet(ACTIVATIONS[name]))
    inputs = picture(1, 8, 8)
    _, found = read(module, (1, 8, 8), inputs)
    assert [link.layer for link in found.links] == ["5.weight", "2.weight", "0.weight"]
    assert all(link.solved for link in found.links), found.links
    assert [link.undetermined for link in found.links] == [0, 0, 0]
    assert float((found.inputs[0] - inputs.flatten()).abs().max()) < 1e-6
    assert float((found.inputs[1] - inputs.flatten()).abs().max()) < 1e-5


@pytest.mark.parametrize("channel", range(4))
def test_a_unit_that_is_barely_on_is_not_taken_for_off(channel):
    """Its value is below the margin, and its gradient as large as any: one misread unit."""
    module = seeded(lambda: lenet(nn.ReLU, channels=3, width=16, size=12))
    inputs = picture(3, 12, 12)
    with torch.no_grad():
        before = module[0](inputs)[0, channel].flatten()
        lifted = before.sort().values[18]
        module[0].bias[channel] += 2e-6 - lifted  # half of its places are below zero
    _, found = read(module, (3, 12, 12), inputs, precision=1e-7)
    assert all(link.solved for link in found.links), found.links
    assert float((found.inputs[0] - inputs.flatten()).abs().max()) < 1e-5


def test_the_numbers_of_a_report():
    module = seeded(lambda: lenet(nn.Sigmoid))
    _, found = read(module, (1, 8, 8), picture(1, 8, 8))
    anchor, second, first = found.links
    assert (anchor.unknowns, anchor.equations) == (12 * 16, 4 * 12 * 16)
    assert (second.unknowns, second.equations) == (12 * 16, 12 * 16 + 12 * 12 * 9)
    assert (first.unknowns, first.equations) == (64, 12 * 16 + 12 * 25)
    assert anchor.status == "closed form"
    for link in (second, first):
        assert link.condition >= 1
        assert link.steps > 0
        assert link.residual < 1e-9
        assert not link.constrained
        assert link.status in {status.value for status in Status}


def test_batches_of_different_problems():
    """Rows are dumps of their own: each gives its own picture."""
    module = seeded(lambda: lenet(nn.Tanh))
    inputs = torch.cat([picture(1, 8, 8, seed=seed) for seed in range(3)])
    sent = [gradients(module, row[None], label=place) for place, row in enumerate(inputs)]
    rows = {name: torch.stack([one[name] for one in sent]) for name in sent[0]}
    found = chain(module, (1, 8, 8))
    made = walk(
        found, rows, read_anchor(found, rows, never), precision=1e-12, bounds=Bounds(0.0, 1.0),
        settings=Settings(1e-12, 1e-13, repeated=False),
    )  # fmt: skip
    torch.testing.assert_close(made.inputs, inputs.flatten(1), rtol=0, atol=1e-7)


OPEN = {
    # (module, picture, unknowns less rank)
    "average": (
        lambda: nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(1, 8, 3), nn.Sigmoid(), nn.Flatten(),
                              nn.Linear(32, 4)), (1, 8, 8), 48,
    ),
    "global average": (
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 9, 1), nn.Sigmoid(),
                              nn.Flatten(), nn.Linear(9, 4)), (3, 6, 6), 105,
    ),
    "never visited": (
        lambda: nn.Sequential(nn.Conv2d(1, 8, 2, stride=2), nn.Sigmoid(), nn.Flatten(),
                              nn.Linear(128, 4)), (1, 9, 9), 17,
    ),
    "a crop": (
        lambda: Written(lambda m, x: m.b(torch.tanh(m.a(x[:, :, 2:, :])).flatten(1)),
                        a=nn.Conv2d(1, 9, 3, padding=1), b=nn.Linear(9 * 48, 4)), (1, 8, 8), 16,
    ),
    "one pixel": (
        lambda: Written(
            lambda m, x: m.b(torch.tanh(m.a(F.pad(x.flatten(1)[:, 1:], (1, 0)).view(-1, 1, 8, 8)))
                             .flatten(1)),
            a=nn.Conv2d(1, 9, 3, padding=1), b=nn.Linear(9 * 64, 4)), (1, 8, 8), 1,
    ),
    "the mean": (
        lambda: Written(
            lambda m, x: m.b(torch.tanh(m.a(
                (x.flatten(1) @ (torch.eye(64) - 1 / 64).to(x)).view(-1, 1, 8, 8))).flatten(1)),
            a=nn.Conv2d(1, 9, 3, padding=1), b=nn.Linear(9 * 64, 4)), (1, 8, 8), 1,
    ),
}  # fmt: skip


OPEN_AND_SEEDS = [
    *((name, 0) for name in OPEN),
    *((name, seed) for name in ("one pixel", "the mean") for seed in range(1, 6)),
]


@pytest.mark.parametrize(("name", "seed"), OPEN_AND_SEEDS)
def test_what_a_layer_hides_is_counted_and_never_called_solved(name, seed):
    make, shape, hidden = OPEN[name]
    module = seeded(make)
    inputs = picture(*shape)
    _, found = read(module, shape, inputs, seed=seed)
    last = found.links[-1]
    assert not last.solved
    assert last.undetermined >= 1
    # Counted by one random vector: chi-squared with `hidden` degrees of freedom.
    assert -4 * (2 * hidden) ** 0.5 <= last.undetermined - hidden <= 4 * (2 * hidden) ** 0.5 + 12
    if found.inputs is not None:
        assert float((found.inputs[0] - inputs.flatten()).abs().max()) > 1e-3


def test_a_hidden_layer_in_the_middle_ends_the_walk():
    """1x1 with fewer outputs than inputs, and a gradient that was not sent."""
    module = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.Sigmoid(), nn.Conv2d(8, 3, 1), nn.Sigmoid(),
            nn.Flatten(), nn.Linear(108, 4),
        )
    )  # fmt: skip
    _, found = read(module, (1, 6, 6), picture(1, 6, 6), drop=("2.weight",))
    assert found.inputs is None
    assert found.links[-1].layer == "2.weight"
    assert not found.links[-1].solved
    expected = 8 * 36 - 3 * 36
    assert abs(found.links[-1].undetermined - expected) <= 3 * (2 * expected) ** 0.5
    # With the gradient of the weight the same layer is determined.
    _, found = read(module, (1, 6, 6), picture(1, 6, 6))
    unknowns, equations = found.links[1].unknowns, found.links[1].equations
    assert (unknowns, equations) == (288, 108 + 24)
    assert not found.links[1].solved  # 132 equations cannot


def test_inequalities_may_decide_what_equations_leave_open():
    """Features behind a ReLU are mostly zero: their signs are worth equations."""
    module = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 8, 3, padding=1), nn.Sigmoid(),
            nn.Flatten(), nn.Linear(8 * 36, 4),
        )
    )  # fmt: skip
    with torch.no_grad():
        module[0].bias.sub_(0.4)  # a unit in four stays on
    inputs = picture(1, 6, 6)
    _, found = read(module, (1, 6, 6), inputs, drop=("2.weight",))
    middle = found.links[1]
    assert middle.undetermined > 0
    if middle.solved:
        assert middle.constrained
        assert float((found.inputs[0] - inputs.flatten()).abs().max()) < 1e-3


def test_two_samples_end_at_the_anchor():
    module = seeded(lambda: lenet(nn.Sigmoid))
    inputs = torch.cat([picture(1, 8, 8), picture(1, 8, 8, seed=2)])
    F.cross_entropy(module(inputs), torch.tensor([0, 1])).backward()
    rows = two({name: p.grad for name, p in module.named_parameters()})
    _, found = read(module, (1, 8, 8), None, rows=rows)
    assert found.inputs is None
    assert len(found.links) == 1
    assert not found.links[0].solved
    assert found.links[0].residual > 1e-3


def test_two_samples_that_the_anchor_cannot_tell_apart_end_below():
    """The same label and alike features: the head's gradient has rank one to a part in 10^5."""
    module = seeded(lambda: lenet(nn.Sigmoid))
    inputs = torch.cat([picture(1, 8, 8), picture(1, 8, 8, seed=2)])
    _, found = read(module, (1, 8, 8), inputs)
    assert not all(link.solved for link in found.links)


@pytest.mark.parametrize("name", ["0.weight", "2.weight", "5.weight", "5.bias"])
def test_nan_is_never_solved(name):
    module = seeded(lambda: lenet(nn.ReLU))
    rows = two(gradients(module, picture(1, 8, 8)))
    rows[name].view(2, -1)[:, 0] = torch.nan
    _, found = read(module, (1, 8, 8), None, rows=rows)
    assert not all(link.solved for link in found.links)


@pytest.mark.parametrize("name", ["0.weight", "2.weight", "5.weight", "5.bias"])
def test_wrong_gradients_are_never_solved(name):
    """Noise in place of one tensor."""
    module = seeded(lambda: lenet(nn.Sigmoid))
    rows = two(gradients(module, picture(1, 8, 8)))
    shape = rows[name].shape[1:]
    rows[name] = (draw(*shape) * rows[name][0].square().mean().sqrt()).expand(2, *shape).clone()
    _, found = read(module, (1, 8, 8), None, rows=rows)
    assert not all(link.solved for link in found.links)


def test_an_expired_budget():
    module = seeded(lambda: lenet(nn.Sigmoid))
    _, found = read(module, (1, 8, 8), picture(1, 8, 8), expired=lambda: True)
    assert not found.links[-1].solved
    assert found.links[-1].status == Status.STOPPED.value


def test_the_walk_does_not_depend_on_the_seed():
    module = seeded(lambda: lenet(nn.SiLU))
    inputs = picture(1, 8, 8)
    first, second = (read(module, (1, 8, 8), inputs, seed=seed)[1] for seed in (0, 1))
    torch.testing.assert_close(first.inputs, second.inputs, rtol=0, atol=1e-7)
    again = read(module, (1, 8, 8), inputs, seed=0)[1]
    assert torch.equal(first.inputs, again.inputs)
