"""Small vision transformers for tests: many ways to make tokens and to add positions."""

import torch
from problems import WATCH, Client, batch
from torch import nn
from torch.nn import functional as F

from auditor.attacks.attention import PatchEmbeddings
from auditor.evidence import examine, is_proved
from auditor.metrics import psnr
from auditor.problem import to_pixels
from auditor.records import Failed
from auditor.zoo import Block, ViT

ATTACK = PatchEmbeddings()
WIDTH, TOKENS, SIZE = 24, 16, 8  # 2x2 patches of an 8x8 picture


def learnt(*shape):
    return nn.Parameter(0.1 * torch.randn(*shape))


class Tokens(nn.Module):
    """`tokens(self, x)` makes (N, T, WIDTH); two blocks and a head follow."""

    def __init__(self, tokens, *, mean=False, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.tokens, self.mean = tokens, mean
        self.blocks = nn.Sequential(Block(WIDTH, 2), Block(WIDTH, 2))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x):
        made = self.blocks(self.tokens(self, x))
        return self.head(made.mean(1) if self.mean else made[:, 0])


def by_convolution(x, convolution):
    return convolution(x).flatten(2).transpose(1, 2)


def by_reshaping(x, linear):
    """Rows of pixels, patch by patch, as einops users write it."""
    count, channels = len(x), x.shape[1]
    cut = x.view(count, channels, SIZE // 2, 2, SIZE // 2, 2).permute(0, 2, 4, 3, 5, 1)
    return linear(cut.reshape(count, TOKENS, -1))


def with_class_token(m, tokens):
    return torch.cat([m.token.expand(len(tokens), -1, -1), tokens], 1)


def convolution(channels=1, **more):
    return nn.Conv2d(channels, WIDTH, 2, stride=2, **more)


def small_vit(width=WIDTH, **more):
    return ViT(1, SIZE, 5, patch=2, width=width, depth=2, heads=2, **more)


def _sliced():
    """Positions are added before the class token joins, which has a position of its own (MAE)."""

    def tokens(m, x):
        made = by_convolution(x, m.embed) + m.positions[:, 1:]
        return torch.cat([(m.token + m.positions[:, :1]).expand(len(x), -1, -1), made], 1)

    parts = {"positions": learnt(1, TOKENS + 1, WIDTH), "token": learnt(1, 1, WIDTH)}
    return Tokens(tokens, embed=convolution(), **parts)


def _looked_up():
    def tokens(m, x):
        places = torch.arange(TOKENS + 1, device=x.device)
        return with_class_token(m, by_convolution(x, m.embed)) + m.positions(places)

    parts = {"positions": nn.Embedding(TOKENS + 1, WIDTH), "token": learnt(1, 1, WIDTH)}
    return Tokens(tokens, embed=convolution(bias=False), **parts)


def _reshaped():
    return Tokens(
        lambda m, x: by_reshaping(x, m.embed) + m.positions, mean=True,
        embed=nn.Linear(4, WIDTH), positions=learnt(TOKENS, WIDTH),
    )  # fmt: skip


def _unfolded():
    def tokens(m, x):
        patches = F.unfold(x, 2, stride=2).transpose(1, 2)
        return with_class_token(m, m.embed(patches)) + m.positions

    parts = {"positions": learnt(1, TOKENS + 1, WIDTH), "token": learnt(1, 1, WIDTH)}
    return Tokens(tokens, embed=nn.Linear(4, WIDTH, bias=False), **parts)


def _scaled():
    """The tokens of "Attention Is All You Need", and a picture that the model normalises."""

    def tokens(m, x):
        made = by_convolution((x - 0.45) / 0.22, m.embed) * WIDTH**0.5
        return m.positions + with_class_token(m, made)

    parts = {"positions": learnt(1, TOKENS + 1, WIDTH), "token": learnt(1, 1, WIDTH)}
    return Tokens(tokens, embed=convolution(), **parts)


def _positions_on_the_map():
    """Positions are added to the feature map, before it becomes tokens."""
    return Tokens(
        lambda m, x: (m.embed(x) + m.positions).flatten(2).transpose(1, 2), mean=True,
        embed=convolution(), positions=learnt(1, WIDTH, 4, 4),
    )  # fmt: skip


def _overlapping():
    """Patches of 3x3 every two pixels, with padding."""
    return Tokens(
        lambda m, x: by_convolution(x, m.embed) + m.positions, mean=True,
        embed=nn.Conv2d(1, WIDTH, 3, stride=2, padding=1), positions=learnt(1, TOKENS, WIDTH),
    )  # fmt: skip


def _padded():
    """A 8x8 picture, padded to 10x10 with ones and cut into patches of 5x5."""
    return Tokens(
        lambda m, x: by_convolution(F.pad(x, (1, 1, 1, 1), value=1.0), m.embed) + m.positions,
        mean=True, embed=nn.Conv2d(1, WIDTH, 5, stride=5), positions=learnt(1, 4, WIDTH),
    )  # fmt: skip


def _normed():
    norm = nn.BatchNorm2d(WIDTH)
    for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        tensor.uniform_(0.5, 1.2)
    return Tokens(
        lambda m, x: m.norm(m.embed(x)).flatten(2).transpose(1, 2) + m.positions, mean=True,
        embed=convolution(), norm=norm, positions=learnt(1, TOKENS, WIDTH),
    )  # fmt: skip


def _grouped():
    """Half of the width sees the first channel, half the second: as if there were two models."""
    return Tokens(
        lambda m, x: by_convolution(x.expand(-1, 2, -1, -1), m.embed) + m.positions, mean=True,
        embed=nn.Conv2d(2, WIDTH, 4, stride=4, groups=2), positions=learnt(1, 4, WIDTH),
    )  # fmt: skip


def _library():
    """torch's own encoder layer, with its norms after the sums."""
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0, batch_first=True)
    model = Tokens(
        lambda m, x: by_convolution(x, m.embed) + m.positions, mean=True,
        embed=convolution(), positions=learnt(1, TOKENS, WIDTH),
    )  # fmt: skip
    model.blocks = nn.Sequential(layer)
    return model


class Attention(nn.Module):
    """One head that reads its tokens themselves: no norm before it, no shortcut around it."""

    def __init__(self, *, fused=False, shortcut=False, norm=False):
        super().__init__()
        self.read = nn.ModuleList([nn.Linear(WIDTH, WIDTH * (3 if fused else 1), bias=fused)])
        if not fused:
            self.read += [nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2)]
        for layer in self.read:  # as initialised, all tokens are attended to alike
            nn.init.normal_(layer.weight, std=0.5)
        self.norm = nn.LayerNorm(WIDTH) if norm else nn.Identity()
        self.shortcut = shortcut

    def forward(self, x):
        z = self.norm(x)
        query, key, value = torch.cat([layer(z) for layer in self.read], -1).chunk(3, -1)
        made = (query @ key.mT).softmax(-1) @ value
        return made + x if self.shortcut else made


def attending(*, tokens=None, embed=None, positions=None, **more):
    """APRIL's setting: the first attention reads patch embedding plus positions."""

    def make():
        embedding = convolution() if embed is None else embed()
        parts = {"embed": embedding, "token": learnt(1, 1, WIDTH)}
        parts["positions"] = learnt(1, TOKENS + 1, WIDTH) if positions is None else positions()
        model = Tokens(tokens or _classed, mean=True, **parts)
        model.blocks = nn.Sequential(Attention(**more), Block(WIDTH, 2))
        return model

    return make


def _classed(m, x):
    return with_class_token(m, by_convolution(x, m.embed)) + m.positions


READABLE = {
    "class token, positions on all": small_vit,
    "positions before the class token": _sliced,
    "positions from a table": _looked_up,
    "reshaping and a linear layer": _reshaped,
    "unfolding and a linear layer": _unfolded,
    "scaled tokens": _scaled,
    "positions on the map": _positions_on_the_map,
    "overlapping patches": _overlapping,
    "padded": _padded,
    "batch norm": _normed,
    "groups": _grouped,
    "torch's encoder layer": _library,
}


def made(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def client_of(make, *, seed=0, shape=(1, SIZE, SIZE), **more):
    return Client(made(make, seed), *batch(1, 5, seed=seed, shape=shape), **more)


def read(problem, seed=0, watch=WATCH):
    """The claim and its evidence."""
    assert ATTACK.blocked_by(problem) is None
    recovery = ATTACK.run(problem, seed=seed, watch=watch)
    return recovery, examine(problem, recovery, attack=ATTACK.name, seconds=0.0)


def proves(problem, evidence):
    return not isinstance(evidence, Failed) and is_proved(problem, evidence)


def decibels(client, problem, recovery):
    """Of the dump's own reading, against the truth; the worst sample of the batch."""
    found = to_pixels(problem, recovery.inputs[0].double())
    truth = to_pixels(problem, client.inputs.double())
    return float(psnr(found.expand_as(truth), truth).min())
