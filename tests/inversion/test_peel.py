"""Features, cotangents and equations of a residual network, against autograd."""

import pytest
import torch
from residual_nets import residual_client
from torch.nn import functional as F

from auditor.graph import again, record
from auditor.inversion.deconvolve import candidates_of
from auditor.inversion.features import convolutions, features_of
from auditor.inversion.peel import Peeling, blocks_of, margin_of
from auditor.inversion.peel_solver import Settings, read_feature, solve
from auditor.trace import trace

SETTINGS = Settings(tolerance=1e-12, steps=500, enough=1e-8)


class Known:
    """A recorded network, the truth of every feature, and the client's gradient."""

    def __init__(self, **options):
        had = residual_client(**options)
        self.module, self.picture = had.module, had.inputs
        _, self.recording = record(had.module, torch.full_like(had.inputs, 0.5))
        self.features = features_of(self.recording)
        self.values = {self.recording.given: had.inputs}
        for feature in self.features.each[1:]:
            below = {node: self.values[node] for node in feature.below}
            found = self.features.evaluate(feature.way, below)
            self.values[feature.node] = found.get(feature.node, again(feature.node, found))
        self.gradient = had.gradients()
        self.labels = had.labels

    def named(self, weight):
        return next(f for f in self.features.each if weight in f.name)

    def begun(self, weight="three.conv1.weight"):
        """A peeling that knows one input and its cotangent, as autograd has them."""
        seen = {}

        def hold(_, given, output):
            output.retain_grad()
            seen["output"] = output

        module = self.module.get_submodule(weight.removesuffix(".weight"))
        handle = module.register_forward_hook(hold)
        F.cross_entropy(self.module(self.picture), self.labels).backward()
        handle.remove()
        peeling = Peeling(self.features, self.gradient)
        user = self.named(weight)
        operator = next(o for o in convolutions(user, self.recording) if o.weight == weight)
        norm = self.module.get_submodule(weight.replace("conv", "bn").removesuffix(".weight"))
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        source = self.features.feature(operator.node.parents[0])
        peeling.know(source, self.values[source.node])
        peeling.hand_from(user, seen["output"].grad / scale.detach().view(-1, 1, 1))
        return peeling, source


def test_features_are_what_the_network_makes():
    known = Known()
    activations = [f for f in known.features.each if f.pre is not None]
    assert len(activations) == 7
    assert [len(f.below) for f in activations] == [1, 1, 2, 1, 2, 1, 2]
    head = known.features.each[-1]
    assert head.name == "output"
    assert head.below == (activations[-1].node,)


def test_max_pooling_begins_anew():
    known = Known(pooled=True)
    pooled = next(f for f in known.features.each if "max_pool" in f.name)
    assert pooled.pre is None
    assert pooled.node in known.named("one.conv1.weight").below


def test_cotangents_handed_down_are_those_of_autograd():
    known = Known()
    source = known.named("two.conv2.weight")  # the third block reads it twice: itself and around
    given = known.values[source.node].detach().requires_grad_()
    block = known.module.three
    inner = block.bn1(block.conv1(given))
    outer = block.bn2(block.conv2(F.relu(inner))) + given
    loss = F.cross_entropy(known.module.head(F.relu(outer).mean((2, 3))), known.labels)
    true, of_inner, of_outer = torch.autograd.grad(loss, [given, inner, outer])
    peeling = Peeling(known.features, known.gradient)
    peeling.hand_from(known.named("three.conv1.weight"), of_inner)
    assert not peeling.is_ready(source)
    peeling.hand_from(known.named("three.conv2.weight"), of_outer)
    assert peeling.is_ready(source)
    peeling.know(source, known.values[source.node])
    peeling.hand_down(source)
    torch.testing.assert_close(peeling.handed[source.node].above, true)
    slope = (known.values[source.node] > 0).double()
    torch.testing.assert_close(peeling.cotangent(source), true * slope)


def test_a_feature_follows_from_what_is_above_it():
    known = Known()
    peeling, source = known.begun("two.conv2.weight")
    peeling.hand_down(source)
    below = known.named("one.conv2.weight")
    assert peeling.is_ready(below)
    found = read_feature(peeling, below, SETTINGS)
    assert found is not None
    true = known.values[below.node]
    assert float((found.value - true).norm() / true.norm()) < 1e-8
    assert found.residual < 1e-9


def test_equations_hold_for_the_truth_and_for_nothing_else():
    known = Known()
    peeling, source = known.begun("two.conv2.weight")
    peeling.hand_down(source)
    below = known.named("one.conv2.weight")
    true = known.values[below.node]
    for block in blocks_of(peeling, below):
        apart = block.counted * (block.function(true) - block.told)
        assert float(apart.norm()) < 1e-9 * float((block.counted * block.told).norm())
        other = block.counted * (block.function(true + 0.1) - block.told)
        assert float(other.norm()) > 1e-3 * float((block.counted * block.told).norm())


def test_a_misread_unit_is_turned_back():
    known = Known()
    peeling, source = known.begun("two.conv2.weight")
    value = known.values[source.node].clone()
    smallest = value.flatten()[value.flatten() > 0].min()
    place = int((value.flatten() == smallest).nonzero()[0])
    spoiled = value.flatten().clone()
    zero = int((spoiled == 0).nonzero()[0])
    spoiled[zero] = -0.4 * smallest  # an error, so that the margin is above the smallest value
    peeling.know(source, spoiled.view_as(value))
    assert margin_of(spoiled) > smallest
    assert not peeling.undone[source.node].known[0, place]
    peeling.hand_down(source)
    below = known.named("one.conv2.weight")
    before = solve(blocks_of(peeling, below), below.node.shape, SETTINGS)
    after = read_feature(peeling, below, SETTINGS)
    assert after is not None
    assert peeling.undone[source.node].known[0, place]
    assert after.residual < 1e-6 * before.residual


def test_too_few_equations_are_not_solved():
    known = Known()
    peeling, source = known.begun("two.conv2.weight")
    peeling.hand_down(source)
    below = known.named("one.conv2.weight")
    peeling.gradient = {n: g for n, g in peeling.gradient.items() if n != "two.conv1.weight"}
    peeling.undone.clear()
    assert read_feature(peeling, below, SETTINGS) is None


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_left_open_shows_in_a_random_start(seed):
    known = Known()
    peeling, source = known.begun("two.conv2.weight")
    peeling.hand_down(source)
    below = known.named("one.conv2.weight")
    blocks = blocks_of(peeling, below)[:1]
    silent = [type(b)(b.user, b.weight, b.function, b.told, b.counted.clone()) for b in blocks]
    silent[0].counted[1:] = 0  # one channel's equations only: most of the input is open
    drawn = Settings(1e-12, 500, 1e-8, generator=torch.Generator().manual_seed(seed))
    one = solve(silent, below.node.shape, SETTINGS)
    other = solve(silent, below.node.shape, drawn)
    assert float((one.value - other.value).norm() / one.value.norm()) > 0.1


def test_only_convolutions_whose_input_nothing_else_reads_are_candidates():
    known = Known()
    shifts = {n.weight: n.shift for n in trace(known.module, (3, 8, 8)).normalised}
    found = [c.weight for c in candidates_of(known.features, shifts, known.gradient)]
    assert found == ["two.conv2.weight", "three.conv2.weight"]
