"""Which patch embeddings are found, why others are not, and their equations solved."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from vits import (
    READABLE,
    TOKENS,
    WIDTH,
    Tokens,
    attending,
    by_convolution,
    by_reshaping,
    client_of,
    convolution,
    decibels,
    learnt,
    proves,
    read,
)

from auditor.evidence import is_verified
from auditor.graph import record
from auditor.inversion.attention import AttentionSystem
from auditor.inversion.embedding import PatchEmbedding, embedding_of
from auditor.inversion.layers import Broken
from auditor.inversion.patches import PatchSystem, errors_of, errors_seen, report_of


def find(client, sent=None):
    recording = record(client.module, torch.full_like(client.inputs, 0.5))[1]
    return embedding_of(recording, client.gradients() if sent is None else sent)


def reason_of(make, sent=None):
    found = find(client_of(make), sent)
    assert isinstance(found, Broken)
    return found.reason


@pytest.mark.parametrize("name", READABLE)
def test_names_and_sizes(name):
    found = find(client_of(READABLE[name]))
    assert isinstance(found, PatchEmbedding)
    assert found.weight.name == "embed.weight"
    assert found.positions.name in {"positions", "positions.weight"}
    assert found.tokens == (4 if name in {"padded", "groups"} else TOKENS)
    assert found.width == (WIDTH // 2 if name == "groups" else WIDTH)


@pytest.mark.parametrize("name", READABLE)
def test_gradients_of_the_operators_output(name):
    """Against autograd, which sees the tensor itself."""
    client = client_of(READABLE[name])
    made = []
    hook = client.module.embed.register_forward_hook(lambda _, __, output: made.append(output))
    loss = nn.functional.cross_entropy(client.module(client.inputs), client.labels)
    hook.remove()
    (true,) = torch.autograd.grad(loss, made)
    true = true[0].flatten(1) if true.ndim == 4 else true[0].T  # (d, T)
    system = PatchSystem(find(client), client.inputs)
    found = system.equations(client.gradients()).tokens.flatten()
    torch.testing.assert_close(found, true.double().flatten(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", READABLE)
def test_the_picture_against_dense_least_squares(name):
    """An independent definition: dL/dW for given token gradients is affine in the pixels."""
    client = client_of(READABLE[name])
    client = precise(client)
    system = PatchSystem(find(client), client.inputs)
    equations = system.equations(client.gradients())

    def sent(pixels):
        picture = pixels.view(1, -1)
        patches = system.patches.forward(system.before.forward(picture) + system.before.offset)
        return (equations.tokens @ patches[0].mT).flatten()

    zero = torch.zeros(64, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(sent, zero)
    right = equations.weights.flatten() - sent(zero)
    dense = torch.linalg.lstsq(jacobian, right, driver="gelsd").solution
    reading = system.solve(equations, zero + 0.5, 1e-15)
    assert reading.open == 0
    torch.testing.assert_close(reading.picture, dense, rtol=0, atol=1e-7)
    torch.testing.assert_close(dense, client.inputs.flatten(), rtol=0, atol=1e-7)


def test_the_start_decides_what_is_open_and_nothing_else():
    client = client_of(READABLE["reshaping and a linear layer"])
    system = PatchSystem(find(client), client.inputs)
    equations = system.equations(client.gradients())
    lame = type(equations)(equations.tokens.clone(), equations.weights)
    lame.tokens[:, :, 3] = lame.tokens[:, :, 5]  # two patches that cannot be told apart
    starts = [torch.rand(64, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    readings = [system.solve(lame, start, 1e-7) for start in starts]
    assert [reading.open for reading in readings] == [4, 4]
    apart = (readings[1].picture - readings[0].picture).view(8, 8)
    moved = apart.view(4, 2, 4, 2).permute(0, 2, 1, 3).reshape(16, 4).abs().sum(1) > 1e-2
    assert moved.nonzero().flatten().tolist() == [3, 5]
    report = report_of(system, readings, 1e-7, lame)
    assert not report.solved
    assert report.undetermined == 4


def test_surplus_equations_show_the_errors_of_a_dump():
    client = client_of(READABLE["positions from a table"])
    system = PatchSystem(find(client), client.inputs)
    exact = system.equations(client.gradients())
    generator = torch.Generator().manual_seed(0)
    for noise in (1e-6, 1e-4, 1e-2):
        sent = type(exact)(exact.tokens, exact.disturbed(noise, generator).weights)
        reading = system.solve(sent, torch.full((64,), 0.5), 1e-7)
        seen = errors_seen(reading, sent)
        assert noise / 3 < seen < 3 * noise
        assert errors_of(seen, sent, 1e-8) == seen  # more than the format explains
        assert errors_of(seen, sent, 1.0) == 3 * seen  # less than another tensor has


# --------------------------------------------------------------------------- attention

ATTENDING = {
    "three layers": attending(),
    "one fused layer": attending(fused=True),
    "a linear embedding": attending(
        tokens=lambda m, x: by_reshaping(x, m.embed) * 0.5 + m.positions,
        embed=lambda: nn.Linear(4, WIDTH),
        positions=lambda: learnt(TOKENS, WIDTH),
    ),
}


def without_embedding(client):
    return {name: g for name, g in client.gradients().items() if name != "embed.weight"}


@pytest.mark.parametrize("name", ATTENDING)
def test_the_attentions_identity(name):
    """G' z is the sum of W' dL/dW, with z from a forward pass and G from autograd."""
    client = client_of(ATTENDING[name])
    seen = []
    hook = client.module.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    loss = nn.functional.cross_entropy(client.module(client.inputs), client.labels)
    hook.remove()
    (gradient,) = torch.autograd.grad(loss, seen)
    found = find(client, without_embedding(client))
    equations = AttentionSystem(found, client.inputs).equations(client.gradients())
    close = {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(equations.tokens[0], gradient[0].T.double(), **close)
    product = gradient[0].T.double() @ seen[0][0].detach().double()
    torch.testing.assert_close(equations.weights[0], product, **close)


def precise(client):
    """The same client, in double precision."""
    return replace(client, module=client.module.double(), inputs=client.inputs.double())


@pytest.mark.parametrize("name", ATTENDING)
def test_an_embedding_that_was_not_sent(name):
    client = precise(client_of(ATTENDING[name]))
    problem = client.problem(without_embedding(client))
    recovery, evidence = read(problem)
    assert [link.layer for link in recovery.links] == ["head.weight", "blocks.0.read.0.weight"]
    assert all(link.solved for link in recovery.links), recovery.links
    assert decibels(client, problem, recovery) > 100
    assert proves(problem, evidence)


@pytest.mark.parametrize("name", ATTENDING)
@pytest.mark.parametrize("seed", range(3))
def test_single_precision_proves_nothing_wrong(name, seed):
    """A softmax passes little on: the condition of these equations is 1e3 to 1e6."""
    client = client_of(ATTENDING[name], seed=seed)
    problem = client.problem(without_embedding(client))
    recovery, evidence = read(problem)
    right = decibels(client, problem, recovery)
    assert right > 59 or not proves(problem, evidence)
    assert right > 30 or not is_verified(problem, evidence)
    assert right > 50 or not all(link.solved for link in recovery.links)


@pytest.mark.parametrize("name", ATTENDING)
def test_the_embedding_itself_is_preferred(name):
    assert not find(client_of(ATTENDING[name])).readers


@pytest.mark.parametrize(
    "make",
    [
        attending(shortcut=True),
        attending(norm=True),
        READABLE["class token, positions on all"],
        READABLE["torch's encoder layer"],
    ],
)
def test_attentions_that_do_not_admit_it(make):
    client = client_of(make)
    assert (
        "no gradient of the first layer's weight" in find(client, without_embedding(client)).reason
    )


def test_an_attention_whose_weights_were_not_all_sent():
    client = client_of(ATTENDING["three layers"])
    sent = set(without_embedding(client)) - {"blocks.0.read.1.weight"}
    assert "no gradient of the first layer's weight" in find(client, sent).reason


def test_an_embedding_wider_than_a_token():
    """Tokens are read, but patches of 32 numbers do not follow from 24."""

    def make():
        return attending(
            tokens=lambda m, x: by_convolution(x, m.embed) + m.positions,
            embed=lambda: nn.Conv2d(2, WIDTH, 4, stride=4),
            positions=lambda: learnt(1, 4, WIDTH),
        )()

    client = client_of(make, shape=(2, 8, 8))
    recovery, evidence = read(problem := client.problem(without_embedding(client)))
    assert recovery.links[-1].undetermined == 4 * (32 - WIDTH)
    assert len(recovery.inputs) == 1
    assert not proves(problem, evidence)


# --------------------------------------------------------------------------- what is not found


def with_positions(tokens, **parts):
    parts = {"embed": convolution(), "positions": learnt(1, TOKENS, WIDTH)} | parts
    return lambda: Tokens(tokens, mean=True, **parts)


class Filtered(nn.Module):
    """A convolution whose weight is computed: standardised, as some stems do."""

    def __init__(self):
        super().__init__()
        self.weight = learnt(WIDTH, 1, 2, 2)

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return nn.functional.conv2d(x, weight, stride=2)


HIDDEN = {
    "before 'native_layer_norm'": with_positions(
        lambda m, x: m.norm(by_convolution(x, m.embed)) + m.positions, norm=nn.LayerNorm(WIDTH)
    ),
    "before 'relu'": with_positions(
        lambda m, x: by_convolution(x, m.embed).relu() + m.positions
    ),
    # added once more, further up: its gradient is not that of the tokens
    "no position embedding of its own": with_positions(
        lambda m, x: torch.tanh(by_convolution(x, m.embed) + m.positions) + m.positions
    ),
    "before it is used more than once": with_positions(
        lambda m, x: (t := by_convolution(x, m.embed)) + m.positions + t.tanh()
    ),
    "computed, or used": with_positions(
        lambda m, x: by_convolution(x, m.embed) + m.positions, embed=Filtered()
    ),
    "writes into views": with_positions(
        lambda m, x: by_convolution(x, m.embed).add_(m.positions)
    ),
    "plain numbers": with_positions(
        lambda m, x: by_convolution(x, m.embed) + m.positions * float(x.mean())
    ),
    "visits the picture itself": with_positions(
        lambda m, x: by_convolution(x.sigmoid(), m.embed) + m.positions
    ),
}  # fmt: skip


@pytest.mark.parametrize("word", HIDDEN)
def test_reasons(word):
    assert word in reason_of(HIDDEN[word])


def test_one_weight_for_two_convolutions():
    make = with_positions(
        lambda m, x: by_convolution(x, m.embed) + m.positions + by_convolution(x.tanh(), m.embed)
    )
    assert "used more than once" in reason_of(make)


def test_positions_that_are_shared_by_tokens():
    """Rows of positions, the same for each column: their gradient is a sum over tokens."""
    make = with_positions(
        lambda m, x: m.embed(x).flatten(2).transpose(1, 2)
        + m.positions.repeat_interleave(4, 1).contiguous(),
        positions=learnt(1, 4, WIDTH),
    )  # fmt: skip
    assert "no position embedding of its own" in reason_of(make)
    expanded = with_positions(
        lambda m, x: by_convolution(x, m.embed) + m.positions.expand(1, TOKENS, WIDTH),
        positions=learnt(1, 1, WIDTH),
    )
    assert "no position embedding of its own" in reason_of(expanded)


def test_positions_that_are_looked_up_twice():
    places = torch.arange(TOKENS) // 2

    make = with_positions(
        lambda m, x: by_convolution(x, m.embed) + m.positions(places),
        positions=nn.Embedding(TOKENS, WIDTH),
    )
    assert "no position embedding of its own" in reason_of(make)


def test_constant_positions():
    waves = torch.randn(1, TOKENS, WIDTH)
    make = with_positions(lambda m, x: by_convolution(x, m.embed) + waves)
    assert "no position embedding of its own" in reason_of(make)


def test_positions_in_two_parts_that_overlap():
    """A slice that something else reads as well; a slice beside it does not matter."""

    def overlapping(m, x):
        made = by_convolution(x, m.embed) + m.positions[:, 1:]
        return torch.cat([m.positions[:, :2], made], 1)

    def beside(m, x):
        made = by_convolution(x, m.embed) + m.positions[:, 1:]
        return torch.cat([m.positions[:, :1], made], 1)

    parts = {"positions": learnt(1, TOKENS + 1, WIDTH)}
    assert "no position embedding of its own" in reason_of(with_positions(overlapping, **parts))
    assert isinstance(find(client_of(with_positions(beside, **parts))), PatchEmbedding)


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)),
         "before 'relu'"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), "no position embedding"),
        (lambda: nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5)),
         "visits the picture itself"),
    ],
)  # fmt: skip
def test_other_networks(module, word):
    assert word in reason_of(module)


@pytest.mark.parametrize("name", ["positions", "embed.weight"])
def test_gradients_that_were_not_sent(name):
    client = client_of(READABLE["reshaping and a linear layer"])
    found = find(client, set(client.gradients()) - {name})
    assert isinstance(found, Broken)
    assert repr(name) in found.reason
