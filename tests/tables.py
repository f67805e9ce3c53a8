"""Models of rows of a table, and clients with such rows, for tests."""

import torch
from torch import nn
from torch.nn import functional as F

from auditor import capture

COLUMNS = 12
CLASSES = 2


def perceptron(*, columns=COLUMNS, units=48, classes=CLASSES, activation=nn.ReLU, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(columns, units), activation(), nn.Linear(units, classes)
        ).eval()


def statistics(columns=COLUMNS):
    """Means and deviations of columns, of several sizes."""
    generator = torch.Generator().manual_seed(7)
    mean = 100 * torch.rand(columns, generator=generator, dtype=torch.float64)
    return mean, 0.1 + 20 * torch.rand(columns, generator=generator, dtype=torch.float64)


def table(count, *, columns=COLUMNS, seed=0):
    """Rows (N, D) in their own units: normal columns, and three of zeros and ones at the end."""
    generator = torch.Generator().manual_seed(seed)
    mean, std = statistics(columns)
    rows = mean + std * torch.randn(count, columns, generator=generator, dtype=torch.float64)
    rows[:, -3:] = (rows[:, -3:] > mean[-3:]).double()
    return rows


def labels_for(count):
    return torch.arange(count) * 3 % CLASSES


def standardised(rows):
    mean, std = statistics(rows.shape[1])
    return ((rows - mean) / std).float()


def gradients(net, inputs, labels):
    """By name, of the mean loss."""
    loss = F.cross_entropy(net(inputs), labels)
    parts = torch.autograd.grad(loss, list(net.parameters()))
    return dict(zip(dict(net.named_parameters()), parts, strict=True))


def write_case(folder, rows, labels, *, net=None, **settings):
    """model.pt and grads.safetensors in `folder`, as a training loop would write them."""
    net = perceptron() if net is None else net
    mean, std = statistics(rows.shape[1])
    settings = {"mean": mean, "std": std} | settings
    with capture(net, folder / "grads.safetensors", **settings):
        F.cross_entropy(net(standardised(rows)), labels).backward()
    net.zero_grad()
    torch.save(net, folder / "model.pt")
    return net


def write_csv(path, rows, labels, *, names=None):
    """With a header; the label is the last column, `diagnosis`."""
    names = names or [f"lab_{number}" for number in range(rows.shape[1])]
    lines = [",".join([*names, "diagnosis"])]
    pairs = zip(rows.tolist(), labels.tolist(), strict=True)
    lines += [",".join([*map(repr, row), str(label)]) for row, label in pairs]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
