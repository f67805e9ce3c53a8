"""Labels by feature matching: the fit against autograd, the search against trying everything."""

import itertools
from dataclasses import replace

import pytest
import torch
from problems import Client as Had
from problems import Net
from torch import nn
from torch.nn import functional as F

from auditor.attacks.labels import label_claim
from auditor.labels.decoding import Decoder, readable, trust
from auditor.labels.matching import (
    _free,
    _noise,
    _normal,
    _state,
    fit,
    places_of,
    rows_of,
    strongest,
    with_pull,
)
from auditor.labels.reference import Reference
from auditor.labels.rules import Heads, Layer
from auditor.labels.search import Limits, Starts, search
from auditor.labels.simulation import Client, counts_of, draw, heads_of
from auditor.metrics import label_accuracy
from auditor.records import Auxiliary

K, E = 8, 20
EPS = torch.finfo(torch.float32).eps


def never():
    return False


def world(seed=0, count=240, sure=1.5):
    """A head that is sure of most pictures, by very different degrees, and wrong on some."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(K, E, generator=generator).double()
    labels = torch.arange(count) % K
    spread = torch.randn(count, E, generator=generator).double()
    features = (0.7 * matrix[labels] + spread).relu()
    offset = torch.randn(K, generator=generator).double()
    layer = Layer(sure * matrix, offset)
    logits = features @ layer.matrix.mT + offset
    return layer, Reference(features, torch.softmax(logits, 1), labels, "test")


def dump(layer, features, labels, *, bias=True):
    """The client's own arithmetic: autograd in float32, summed over the batch."""
    matrix = layer.matrix.float().requires_grad_()
    offset = layer.offset.float().requires_grad_()
    logits = F.linear(features.float(), matrix, offset)
    loss = F.cross_entropy(logits, labels, reduction="sum")
    weight, shift = torch.autograd.grad(loss, (matrix, offset))
    return Heads(weight.double()[None], shift.double()[None] if bias else None)


def rows_for(layer, heads, known=None):
    rows = rows_of(heads, layer, precision=EPS, typical=4.0)
    return rows if known is None else with_pull(rows, known.features, known.labels)


def no_limits(size):
    return Limits(torch.zeros(K, dtype=torch.int64), torch.full((K,), size))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("pulled", [True, False])
def test_the_normal_equations_are_those_of_autograd(bias, pulled):
    layer, known = world()
    heads = dump(layer, known.features[:3], known.labels[:3], bias=bias)
    rows = rows_for(layer, heads, known if pulled else None)
    labels = torch.tensor([[0, 1, 1], [2, 5, 0]])
    places = torch.randn(2, 3, rows.size, generator=torch.Generator().manual_seed(1)).double()
    noise, free = _noise(rows, labels), _free(rows)

    def left(moves):
        moved = places[1] + (moves.reshape(3, -1) @ free)
        return _state(rows, noise[1:], labels[1:], moved[None]).left.flatten()

    nought = torch.zeros(3 * len(free)).double()
    jacobian = torch.autograd.functional.jacobian(left, nought)
    normal, slope = _normal(rows, noise, free, _state(rows, noise, labels, places))
    torch.testing.assert_close(normal[1], jacobian.mT @ jacobian)
    torch.testing.assert_close(slope[1, :, 0], jacobian.mT @ left(nought))


def test_the_pull_is_the_mahalanobis_distance():
    layer, known = world()
    rows = rows_for(layer, dump(layer, known.features[:4], known.labels[:4]), known)
    means = torch.stack(
        [
            torch.cat([known.features[known.labels == c], known.features.mean(0)[None]]).mean(0)
            for c in range(K)
        ]
    )
    rest = known.features - means[known.labels]
    ridge = 0.05 * rest.square().mean() * torch.eye(E, dtype=torch.float64)
    inverse = torch.linalg.inv(rest.mT @ rest / len(rest) + ridge)
    places = torch.randn(1, 2, rows.size, generator=torch.Generator().manual_seed(2)).double()
    apart = places[0] @ rows.basis[:E].mT - means[[3, 6]]
    expected = (apart @ inverse @ apart.mT).trace()
    torch.testing.assert_close(rows.pull(places, torch.tensor([[3, 6]]))[0], expected)


@pytest.mark.parametrize("bias", [True, False])
def test_the_true_labels_lead_to_the_true_features(bias):
    """Samples from 0.8 to 1e-6 of doubt, each found to the precision that its trace has."""
    layer, known = world(sure=1.0)
    doubt = 1 - known.probabilities[torch.arange(240), known.labels]
    mine = [int((doubt - size).abs().argmin()) for size in (0.8, 1e-2, 1e-4, 1e-6)]
    features, labels = known.features[mine], known.labels[mine]
    rows = rows_for(layer, dump(layer, features, labels, bias=bias))
    assert rows.size == 4
    true = places_of(rows, features)
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(3)).double()
    noise = 1e-8 * noise / doubt[mine][:, None]  # more where less is seen
    found = fit(rows, labels[None], (true + noise)[None], steps=100)
    assert float(found.misfit) < rows.target.numel()
    rebuilt = found.places[0] @ rows.basis[:E].mT
    apart = (rebuilt - features).norm(dim=1) / features.norm(dim=1)
    assert bool((apart < torch.tensor([1e-4, 1e-3, 1e-2, 0.05])).all())


def test_a_sure_sample_is_seen_in_the_rows_of_other_classes():
    """It leaves exactly nothing at its label, and yet its features add a direction."""
    layer, known = world(sure=3.0)
    doubt = 1 - known.probabilities[torch.arange(240), known.labels]
    sure = int(((doubt < 1e-8) & (doubt > 1e-10)).nonzero()[0])
    alone = dump(layer, known.features[[sure]], known.labels[[sure]])
    assert float(alone.bias[0, known.labels[sure]]) == 0
    assert float(alone.bias[0].amax()) > 0
    assert rows_for(layer, alone).size == 1


def best_of_all(rows, size, starts):
    """Every multiset, each from many pictures: the slow definition of the search."""
    every = list(itertools.combinations_with_replacement(range(K), size))
    generator = torch.Generator().manual_seed(0)
    misfits = []
    for multiset in every:
        labels = torch.tensor(multiset).expand(12, -1)
        pictures = torch.stack(
            [
                own[torch.randint(len(own), (12,), generator=generator)]
                for own in ((starts.labels == c).nonzero()[:, 0] for c in multiset)
            ],
            1,
        )
        found = fit(rows, labels, places_of(rows, starts.features)[pictures], steps=30)
        misfits.append(float(found.misfit.min()))
    return every[misfits.index(min(misfits))]


@pytest.mark.parametrize("seed", range(1))
def test_the_search_finds_what_trying_everything_finds(seed):
    layer, known = world(seed, sure=1.0)
    starts = Starts(known.features[60:], known.labels[60:])
    mine = torch.randperm(60, generator=torch.Generator().manual_seed(seed))[:3]
    rows = rows_for(layer, dump(layer, known.features[mine], known.labels[mine]), known)
    assert rows.size == 3
    generator = torch.Generator().manual_seed(seed)
    found = search(rows, no_limits(3), starts, generator=generator, expired=never)
    assert tuple(found.labels[0].sort().values.tolist()) == best_of_all(rows, 3, starts)
    assert found.misfit.tolist() == sorted(found.misfit.tolist())


def test_the_search_keeps_to_what_is_proved():
    layer, known = world(0, sure=1.0)
    mine = torch.arange(3)
    rows = rows_for(layer, dump(layer, known.features[mine], known.labels[mine]))
    lower, upper = torch.zeros(K, dtype=torch.int64), torch.full((K,), 3)
    lower[7], upper[0] = 2, 0
    generator = torch.Generator().manual_seed(0)
    starts = Starts(known.features[60:], known.labels[60:])
    found = search(rows, Limits(lower, upper), starts, generator=generator, expired=never)
    for labels in found.labels:
        counts = torch.bincount(labels, minlength=K)
        assert counts[7] >= 2
        assert counts[0] == 0
    over = Limits(lower + 2, upper)
    assert search(rows, over, starts, generator=generator, expired=never) is None
    assert search(rows, no_limits(3), starts, generator=generator, expired=lambda: True) is None


def overlaps(sure, size, count=6, **more):
    layer, known = world(0, sure=sure)
    decoder = Decoder(layer, size, EPS, known, torch.arange(60, 240))
    shares = []
    for seed in range(count):
        mine = torch.randperm(60, generator=torch.Generator().manual_seed(seed))[:size]
        heads = dump(layer, known.features[mine], known.labels[mine], **more)
        found = decoder(heads, no_limits(size), seed=seed, expired=never)
        assert len(found.added) == size
        both = torch.minimum(
            torch.bincount(found.added, minlength=K),
            torch.bincount(known.labels[mine], minlength=K),
        )
        shares.append(float(both.sum()) / size)
    return sum(shares) / count


@pytest.mark.parametrize(("sure", "bias"), [(0.3, True), (2.0, True), (1.0, False)])
def test_labels_of_small_batches_are_told_however_sure_the_model_is(sure, bias):
    assert overlaps(sure, 5, bias=bias) >= 0.95


def test_what_cannot_be_read_is_left_alone():
    layer, known = world()
    heads = dump(layer, known.features[:12], known.labels[:12])
    every = torch.arange(240)
    told = Decoder(layer, 12, EPS, known, every)
    assert told(heads, no_limits(12), seed=0, expired=never) is None  # more samples than rows
    few = Decoder(layer, 3, EPS, known, every)
    assert few(heads, no_limits(3), seed=0, expired=never) is None  # it holds more than three
    assert not readable(heads, 17, 0.0)
    assert not readable(heads, 8, 0.1)
    assert not readable(Heads(None, heads.bias), 8, 0.0)
    assert readable(heads, 8, 0.0)


def test_samples_without_a_trace_are_guessed_and_said_to_be():
    layer, known = world(sure=6.0)
    doubt = 1 - known.probabilities[torch.arange(240), known.labels]
    mine = torch.cat([(doubt > 0.1).nonzero()[:2, 0], doubt.argsort()[:2]])
    heads = dump(layer, known.features[mine], known.labels[mine])
    decoder = Decoder(layer, 4, EPS, known, torch.arange(240))
    found = decoder(heads, no_limits(4), seed=0, expired=never)
    seen = rows_for(layer, heads).size
    assert seen < 4
    assert int(found.seen.sum()) == seen
    assert bool((found.margins[~found.seen] < 0).all())
    assert bool((found.margins[found.seen] >= 0).all())


@pytest.mark.slow
def test_stated_probabilities_are_kept_on_other_pictures():
    """Half of the pictures teach, 30 batches of the others are read."""
    layer, known = world(0, 400, sure=3.0)
    teach = Reference(known.features[:200], known.probabilities[:200], known.labels[:200], "test")
    client = Client(5, K, 0.0, EPS, True, True, None)

    def nothing(heads):
        return torch.zeros(len(heads.bias), K, dtype=torch.float64)

    taught = trust(client, teach, layer, nothing, nothing, seed=0, expired=never)
    assert taught.overlap > taught.rival
    decoder = Decoder(layer, 5, EPS, teach, torch.arange(200))
    generator = torch.Generator().manual_seed(1)
    stated, right = [], []
    for seed in range(30):
        drawn = draw(client, known, torch.arange(200, 400), 1, generator)
        found = decoder(heads_of(client, known, drawn), no_limits(5), seed=seed, expired=never)
        counts = counts_of(drawn.labels, K)[0]
        stated.append(float(taught.map(found.margins).mean()))
        claimed = torch.bincount(found.added, minlength=K)
        right.append(float(torch.minimum(claimed, counts).sum()) / 5)
    assert abs(sum(stated) - sum(right)) / 30 < 0.06


def test_no_time_no_trust():
    layer, known = world()
    client = Client(5, K, 0.0, EPS, True, True, None)
    zeros = torch.zeros(1, K, dtype=torch.float64)
    answer = trust(
        client, known, layer, lambda _: zeros, lambda _: zeros, seed=0, expired=lambda: True
    )
    assert answer is None


def test_simulated_clients_lose_what_float32_loses():
    layer, known = world(sure=3.0)
    client = Client(4, K, 0.0, EPS, True, True, None)
    drawn = draw(client, known, torch.arange(240), 30, torch.Generator().manual_seed(0))
    simulated = heads_of(client, known, drawn)
    for row in range(30):
        mine = drawn.pictures[row]
        sent = dump(layer, known.features[mine], drawn.labels[row])
        nothing = sent.bias[0].abs() < 1e-12
        torch.testing.assert_close(simulated.bias[row], sent.bias[0], rtol=2e-5, atol=2 * EPS * 4)
        assert bool((simulated.bias[row][nothing].abs() < 2e-7).all())


class Sure(Net):
    """A trained network: pictures of a class are alike, and it is sure of most."""


def sure_client(size, seed):
    generator = torch.Generator().manual_seed(0)
    kinds = torch.rand(K, 1, 4, 4, generator=generator)
    labels = torch.arange(600) % K
    noise = torch.randn(600, 1, 4, 4, generator=generator)
    images = (kinds[labels] + 0.2 * noise).clamp(0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Sure(nn.ReLU(), K)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(module(images[400:]), labels[400:]).backward()
        optimizer.step()
    optimizer.zero_grad()
    mine = torch.randperm(200, generator=torch.Generator().manual_seed(seed))[:size]
    return Had(module, images[mine], labels[mine]), Auxiliary(images[200:400], labels[200:400])


def test_a_claim_of_a_trained_network_with_auxiliary_pictures():
    had, auxiliary = sure_client(6, seed=0)
    claim = label_claim(replace(had.problem(), auxiliary=auxiliary))
    assert label_accuracy(claim.estimate, had.labels) >= 5 / 6
    assert claim.calibration == "self-simulated on 200 auxiliary images"
    assert bool((torch.bincount(claim.estimate, minlength=K) >= claim.lower).all())


def test_the_first_directions_alone():
    layer, known = world()
    rows = rows_for(layer, dump(layer, known.features[:5], known.labels[:5]), known)
    part = strongest(rows, 2, clean=False)
    assert part.size == 2
    assert part.pull.form.shape == (2, 2)
    assert bool((part.rounding >= rows.rounding).all())
    assert torch.equal(strongest(rows, 2, clean=True).rounding, rows.rounding)
