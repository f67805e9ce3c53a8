"""The estimate of whole claims: accuracy where it is known, honest words elsewhere."""

import copy
from dataclasses import replace

import pytest
import torch
from problems import Client, Net, batch, client, clipped, net, trained
from torch import nn

from auditor.attacks.base import Watch
from auditor.attacks.labels import label_claim, proved_labels
from auditor.labels.reference import reference_of, synthetic_pictures
from auditor.metrics import label_accuracy
from auditor.records import Auxiliary


def never():
    return False


def with_aux(problem, count=60, classes=10, seed=5):
    images, labels = batch(count, classes, seed=seed)
    return replace(problem, auxiliary=Auxiliary(images, labels))


def mean_accuracy(clients, **more):
    scores = [label_accuracy(label_claim(c.problem(**more)).estimate, c.labels) for c in clients]
    return sum(scores) / len(scores)


@pytest.mark.parametrize("size", [8, 64, 256])
@pytest.mark.parametrize("act", ["relu", "tanh", "silu", "sigmoid"])
def test_an_untrained_network_gives_its_labels_away(act, size):
    clients = [client(act, size, 10, seed=seed) for seed in range(2)]
    assert mean_accuracy(clients) >= 0.97


@pytest.mark.parametrize("act", ["relu", "sigmoid"])
def test_also_without_a_bias(act):
    assert mean_accuracy([client(act, 32, 10, bias=False, seed=s) for s in range(2)]) >= 0.9


def test_also_with_label_smoothing():
    assert mean_accuracy([client("relu", 32, 10, smoothing=0.1, seed=s) for s in range(2)]) >= 0.97


def test_also_of_a_client_with_one_class():
    images, _ = batch(64, 10)
    had = Client(net("tanh", 10), images, torch.full((64,), 3))
    claim = label_claim(had.problem(declared=False))
    assert label_accuracy(claim.estimate, had.labels) >= 0.95
    assert "for clients of few classes" in claim.calibration


@pytest.mark.parametrize("aux", [True, False])
def test_the_claim_says_what_it_was_calibrated_on(aux):
    problem = client("relu", 64, 10).problem()
    claim = label_claim(with_aux(problem) if aux else problem)
    kind = "60 auxiliary" if aux else "300 synthetic"
    assert claim.calibration == f"self-simulated on {kind} images"
    proved = torch.repeat_interleave(torch.arange(10), claim.lower)
    assert int((claim.probabilities == 1).sum()) >= len(proved)
    assert claim.probabilities.shape == claim.estimate.shape
    assert ((claim.probabilities > 0) & (claim.probabilities <= 1)).all()
    assert torch.equal(claim.undetermined, claim.probabilities < 0.5)
    assert torch.equal(claim.estimate, claim.estimate.sort().values)


def test_a_complete_proof_needs_no_simulation():
    claim = label_claim(client("tanh", 1, 10).problem())
    assert claim.complete
    assert claim.calibration == "proved"
    assert claim.probabilities.tolist() == [1.0]
    assert not claim.undetermined.any()


def test_classes_without_auxiliary_pictures_are_named():
    problem = with_aux(client("relu", 64, 10).problem(), count=9, classes=4)
    seen = len(set(problem.auxiliary.labels.tolist()))
    claim = label_claim(problem)
    assert f"9 auxiliary images ({10 - seen} of 10 classes have none)" in claim.calibration


@pytest.mark.parametrize("how", ["clipped", "expired", "too small a size"])
def test_what_cannot_be_simulated_is_uncalibrated(how):
    had = client("relu", 64, 10)
    watch = Watch(deadline=0.0) if how == "expired" else Watch()
    sent = clipped(had.gradients()) if how == "clipped" else had.gradients()
    claim = label_claim(had.problem(sent, size=3 if "small" in how else 64), watch=watch)
    assert claim.calibration == "uncalibrated"
    assert claim.probabilities is None
    assert len(claim.estimate) == (3 if "small" in how else 64)


def test_where_the_rules_contradict_each_other_the_rest_is_undetermined():
    """A network that knows its data, and synthetic pictures that are nothing like them."""
    module, images, labels = trained(net("relu", 10), classes=10, steps=300)
    had = Client(module, images[:32], labels[:32])
    claim = label_claim(had.problem())
    assert claim.calibration == "uncalibrated"
    proved = int(claim.lower.sum())
    assert int(claim.undetermined.sum()) == 32 - proved
    counts = torch.bincount(claim.estimate, minlength=10)
    assert (counts >= claim.lower).all()
    assert (counts <= claim.upper).all()
    above = counts[counts > claim.lower]  # what was added, was added to the emptiest
    assert int(above.max() - counts.min()) <= 1


def test_proofs_do_not_depend_on_auxiliary_pictures():
    problem = client("relu", 64, 10).problem()
    with_, without = label_claim(with_aux(problem)), proved_labels(problem)
    assert torch.equal(with_.lower, without.lower)
    assert torch.equal(with_.upper, without.upper)
    assert with_.statements == without.statements


# --------------------------------------------------------------------------- reference pictures


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 32, 32), (3, 17, 9)])
def test_synthetic_pictures_are_pictures(shape):
    found = synthetic_pictures(10, shape, torch.Generator().manual_seed(0))
    assert found.shape == (10, *shape)
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found.flatten(1).std(1) > 0.02).all()


def test_the_reference_is_what_the_model_says():
    had = client("tanh", 4, 10)
    problem = with_aux(had.problem())
    found = reference_of(problem, seed=0, expired=never)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found.labels, problem.auxiliary.labels[order])
    images = problem.auxiliary.images[order]
    features = had.module.body(images)
    predicted = torch.softmax(had.module.head(features), 1)
    torch.testing.assert_close(found.features, features.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.probabilities, predicted.double(), atol=1e-5, rtol=0)


def test_batch_norm_in_training_mode_sees_batches_of_the_clients_size():
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Sigmoid(), nn.Flatten(), nn.Linear(12, 4)
    )
    images, labels = batch(8, 4)
    problem = with_aux(Client(module.eval(), images, labels, mode="train").problem(), classes=4)
    found = reference_of(problem, seed=0, expired=never)
    assert len(found.features) == 56  # whole batches
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    ours = copy.deepcopy(module).train()
    first = torch.softmax(ours(problem.auxiliary.images[order[:8]]), 1)
    torch.testing.assert_close(found.probabilities[:8], first.double(), atol=1e-5, rtol=0)


class _ByHand(Net):
    """Its head is a product that no linear function makes."""

    def forward(self, x):
        return self.body(x) @ self.head.weight.T + self.head.bias


def test_a_head_that_cannot_be_watched_is_not_simulated():
    images, labels = batch(8, 10)
    torch.manual_seed(0)
    had = Client(_ByHand(nn.ReLU(), 10), images, labels)
    problem = replace(client("relu", 8, 10).problem(), module=had.module)
    assert reference_of(problem, seed=0, expired=never) is None
    assert label_claim(problem).calibration in {"uncalibrated", "proved"}


class _Picky(Net):
    """Its forward pass depends on the data."""

    refuses = False

    def forward(self, x):
        if self.refuses:
            raise RuntimeError("not this picture")
        return super().forward(x)


def test_a_model_that_refuses_the_pictures_keeps_its_proofs():
    torch.manual_seed(0)
    had = Client(_Picky(nn.ReLU(), 10), *batch(64, 10))
    problem = had.problem()
    before = proved_labels(problem)
    problem.module.refuses = True
    claim = label_claim(problem)
    assert claim.calibration == "uncalibrated"
    assert claim.lower.any()
    assert torch.equal(claim.lower, before.lower)
