"""Networks with many identities, their clients, and what `look` says of a dump."""

import torch
from problems import Client, dump_of
from residual_nets import used
from torch import nn
from torch.nn import functional as F

from auditor.defences.seen import look
from auditor.zoo import LeNet, uniform_weights


class Normed(nn.Module):
    """Convolution, batch norm, ReLU, convolution, batch norm, ReLU, pooled head."""

    def __init__(self, width=16, classes=10):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
        )
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


def perceptron(act=nn.ReLU, classes=10):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 48), act(), nn.Linear(48, 32), act(), nn.Linear(32, classes)
    )


def convolutional(act=nn.ReLU):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        act(),
        nn.Conv2d(8, 12, 3, padding=1),
        act(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


NETS = {
    "lenet": lambda: uniform_weights(LeNet(3, 8, 10)),
    "perceptron": perceptron,
    "convolutional": convolutional,
    "normed": lambda: used(Normed(), 0),
}


def client_of(name, count=2, *, seed=0, **more):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = NETS[name]().eval()
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    inputs = F.interpolate(coarse, size=(8, 8), mode="bicubic").clamp(0, 1)
    inputs = (inputs + 0.05 * torch.rand(inputs.shape, generator=generator)).clamp(0, 1)
    return Client(module, inputs, torch.randint(10, (count,), generator=generator), **more)


def looked(client, gradients=None, **known):
    gradients = client.gradients() if gradients is None else gradients
    return look(client.problem(gradients, **known), dump_of(client.module, gradients))


def plus_noise(gradients, sigma, seed=0):
    generator = torch.Generator().manual_seed(1000 + seed)  # weights come from small seeds
    return {n: g + sigma * torch.randn(g.shape, generator=generator) for n, g in gradients.items()}


def codes(found):
    return [caveat.code for caveat in found.caveats]


def kinds(found):
    return [defence.kind for defence in found.defences]
