"""The input of a linear layer from its gradients, against the truth."""

import pytest
import torch
from nets import Written, chain, draw, seeded
from torch import nn
from torch.nn import functional as F

from auditor.inversion.anchor import read_anchor


def gradients(module, inputs, labels):
    """(1, *shape) by parameter name, from `backward()`."""
    module.zero_grad()
    F.cross_entropy(module(inputs), labels).backward()
    return {name: p.grad[None].clone() for name, p in module.named_parameters()}


def softmax_less_label(label):
    def of(logits):
        return logits.softmax(1) - F.one_hot(torch.tensor([label]), logits.shape[1])

    return of


def never(logits):
    raise AssertionError("with a bias the layers above are not asked")


def read(module, shape, inputs, label, ask=None):
    found = chain(module, shape)
    sent = gradients(module, inputs, torch.tensor([label] * len(inputs)))
    return found, read_anchor(found, sent, ask or softmax_less_label(label))


def cotangent_below(module, chain_, inputs, label):
    """Of the anchor's input, by autograd, when the chain is the anchor alone."""
    leaf = inputs.clone().requires_grad_()
    loss = F.cross_entropy(module(leaf), torch.tensor([label]))
    return torch.autograd.grad(loss, leaf)[0]


ACTIVATIONS = [nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU, nn.GELU, nn.SiLU, nn.LeakyReLU]


@pytest.mark.parametrize("activation", [*ACTIVATIONS, nn.ReLU])
def test_with_a_bias_it_is_a_quotient(activation):
    module = seeded(lambda: nn.Sequential(nn.Linear(12, 9), activation(), nn.Linear(9, 4)))
    inputs = draw(1, 12)
    found, anchored = read(module, (12,), inputs, 2, never)
    torch.testing.assert_close(anchored.values, inputs, rtol=1e-10, atol=1e-12)
    expected = cotangent_below(module, found, inputs, 2)
    torch.testing.assert_close(anchored.cotangent, expected)
    assert float(anchored.off_rank[0]) < 1e-12
    assert anchored.scales == 1


def test_a_flipped_weight():
    def forward(m, x):
        return m.head(torch.tanh(torch.addmm(m.b, x, m.w)))

    module = seeded(lambda: Written(forward, w=draw(12, 9), b=draw(9), head=nn.Linear(9, 4)))
    inputs = draw(1, 12)
    found, anchored = read(module, (12,), inputs, 1)
    assert found.anchor.flips
    torch.testing.assert_close(anchored.values, inputs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(anchored.cotangent, cotangent_below(module, found, inputs, 1))


@pytest.mark.parametrize("activation", [*ACTIVATIONS, nn.ReLU])
@pytest.mark.parametrize("seed", [0, 1])
def test_without_a_bias_the_layers_above_give_the_scale(activation, seed):
    """Of any sign, whatever the size of the input."""
    module = seeded(
        lambda: nn.Sequential(
            nn.Linear(12, 9, bias=False), activation(), nn.Linear(9, 4, bias=False)
        ),
        seed,
    )
    inputs = (0.1, 3.0)[seed] * draw(1, 12, seed=seed)
    found, anchored = read(module, (12,), inputs, 2)
    assert found.anchor.bias is None
    if anchored.scales > 1:
        pytest.fail("four classes leave no choice of the scale here")
    torch.testing.assert_close(anchored.values, inputs, rtol=1e-5, atol=1e-7)
    expected = cotangent_below(module, found, inputs, 2)
    torch.testing.assert_close(anchored.cotangent, expected, rtol=1e-4, atol=1e-8)


def test_a_head_without_bias():
    module = seeded(lambda: nn.Linear(12, 5, bias=False))
    inputs = draw(1, 12)
    _, anchored = read(module, (12,), inputs, 3)
    torch.testing.assert_close(anchored.values, inputs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("factor", [0.5, 0.9, 0.96, 1.06, 1.1, 1.5])
def test_two_classes_without_bias_leave_two_scales(factor):
    """t (1 - p(t)) rises and falls: near its top the two scales are close to one another."""
    module = seeded(lambda: nn.Linear(6, 2, bias=False))
    direction = draw(1, 6)
    with torch.no_grad():
        margin = float(module(direction) @ torch.tensor([[1.0], [-1.0]]).double())
        module.weight.mul_(1 / margin)  # then 1 - p(t) = 1 / (1 + e^t)
    top = 1.2784645  # where 1 + e^-t = t
    inputs = factor * top * direction
    _, anchored = read(module, (6,), inputs, 0)
    assert anchored.scales > 1


def test_several_rows_are_read_one_by_one():
    module = seeded(lambda: nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4)))
    inputs = draw(3, 12)
    found = chain(module, (12,))
    rows = [gradients(module, row[None], torch.tensor([1])) for row in inputs]
    together = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
    anchored = read_anchor(found, together, never)
    torch.testing.assert_close(anchored.values, inputs, rtol=1e-10, atol=1e-12)
    assert anchored.off_rank.shape == (3,)


@pytest.mark.parametrize("bias", [True, False])
def test_two_samples_are_not_of_rank_one(bias):
    module = seeded(lambda: nn.Sequential(nn.Linear(12, 9, bias=bias), nn.Tanh(), nn.Linear(9, 4)))
    if not bias:
        module[2] = seeded(lambda: nn.Linear(9, 4, bias=False))
    _, anchored = read(module, (12,), draw(2, 12), 2)
    assert float(anchored.off_rank[0]) > 1e-2


@pytest.mark.parametrize("bias", [True, False])
def test_no_gradient_is_no_answer(bias):
    module = seeded(lambda: nn.Linear(12, 5, bias=bias))
    found = chain(module, (12,))
    zero = {name: torch.zeros(1, *p.shape).double() for name, p in module.named_parameters()}
    anchored = read_anchor(found, zero, softmax_less_label(0))
    assert anchored.off_rank.isinf().all()
    assert anchored.values.isfinite().all()


def test_off_rank_is_the_distance_from_rank_one():
    """Relative: of d x' plus something orthogonal to both."""
    module = seeded(lambda: nn.Linear(12, 5))
    delta, values = draw(1, 5), draw(1, 12, seed=3)
    other, side = draw(5, seed=4), draw(12, seed=5)
    other -= (other @ delta[0]) / (delta[0] @ delta[0]) * delta[0]
    clean = delta[:, :, None] * values[:, None]
    extra = torch.outer(other, side)
    extra *= 0.1 * clean.norm() / extra.norm()
    sent = {"weight": clean + extra, "bias": delta}
    anchored = read_anchor(chain(module, (12,)), sent, never)
    torch.testing.assert_close(anchored.values, values)
    expected = 0.1 / (1 + 0.1**2 + 2 * 0.1 * _cosine(clean[0], extra)) ** 0.5
    assert float(anchored.off_rank[0]) == pytest.approx(float(expected), rel=1e-10)


def _cosine(a, b):
    return (a * b).sum() / (a.norm() * b.norm())
