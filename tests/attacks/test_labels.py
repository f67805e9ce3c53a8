"""Nothing is ever proved that is false, on many batches, networks, precisions and defences."""

import functools
from dataclasses import replace

import pytest
import torch
from problems import (
    ACTS,
    WATCH,
    Client,
    Net,
    batch,
    client,
    clipped,
    net,
    noise,
    noised,
    problem_of,
    rounded,
    trained,
)
from torch import nn

from auditor.attacks import HeadLabels, label_claim
from auditor.attacks.labels import proved_labels
from auditor.checks import head_sums
from auditor.metrics import label_accuracy

CLASSES = (2, 3, 10, 40)  # 40: more than the 32 features
SIZES = (1, 2, 8, 64)
DUMPS = {
    "single": lambda g: g,
    "half": lambda g: rounded(g, torch.float16),
    "brain": lambda g: rounded(g, torch.bfloat16),
    "clipped": clipped,
}


@functools.cache
def network(act, classes, bias, steps, seed=0):
    """A network and data that it has seen; `steps` of training."""
    module = net(act, classes, bias=bias, seed=seed)
    return trained(module, classes=classes, seed=seed, steps=steps)


def clients(*, seed, steps, smoothing=0.0, reduction="mean", sizes=SIZES):
    """Every network and batch size; batches of one class only when the seed is odd."""
    for act in ACTS:
        for classes in CLASSES:
            for bias in (True, False):
                module, inputs, labels = network(act, classes, bias, steps, seed)
                for size in sizes:
                    y = labels[:1].expand(size) if seed % 2 else labels[:size]
                    more = {"reduction": reduction, "smoothing": smoothing}
                    yield (act, classes, bias, size), Client(module, inputs[:size], y, **more)


def assert_true(claim, had, told, where):
    counts = had.counts
    assert (claim.lower >= 0).all(), where
    assert (claim.lower <= counts).all(), (where, claim.statements)
    if told is None:  # the records promise: no upper bound without a batch size
        assert claim.upper is None, (where, claim.statements)
    elif claim.upper is not None:
        assert (claim.upper >= counts).all(), (where, claim.statements)
    if claim.complete:  # every label is known, and how often when the size is
        assert ((claim.lower > 0) == (counts > 0)).all(), (where, claim.statements)
        assert told is None or (claim.lower == counts).all(), (where, claim.statements)
    if claim.estimate is not None and told is not None:
        found = torch.bincount(claim.estimate, minlength=had.classes)
        assert len(claim.estimate) == told, where
        assert (found >= claim.lower).all(), where
        assert torch.equal(claim.estimate, claim.estimate.sort().values), where
    if not claim.lower.any():
        assert not claim.complete, where


@pytest.mark.parametrize("dump", DUMPS)
@pytest.mark.parametrize(
    ("seed", "steps", "smoothing", "reduction"),
    [
        (0, 0, 0.0, "mean"),
        (1, 40, 0.0, "sum"),
        (2, 40, 0.1, "mean"),
        (3, 0, 0.1, "sum"),
    ],
)
def test_nothing_false_is_proved(dump, seed, steps, smoothing, reduction):
    """128 batches a case: size and reduction told, only the size, only the reduction."""
    proved = 0
    for where, had in clients(seed=seed, steps=steps, smoothing=smoothing, reduction=reduction):
        sent = DUMPS[dump](had.gradients())
        problem = had.problem(sent)
        size = len(had.labels)
        for told, declared in ((size, True), (size, False), (None, True)):
            known = replace(
                problem.knowledge,
                batch_size=told,
                reduction_declared=declared,
                reduction=reduction if declared else "mean",
            )
            claim = proved_labels(replace(problem, knowledge=known))
            assert_true(claim, had, told, (*where, dump, told, declared))
            proved += int(claim.lower.sum())
    assert proved > 100  # else nothing was tested


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("told", [1, None])
def test_one_sample_with_bias_is_always_complete(classes, act, smoothing, told):
    """Except for two classes with smoothed labels, where an unknown scale leaves both open."""
    for steps in (0, 40):
        module, inputs, labels = network(act, classes, True, steps)
        for i in range(5):
            had = Client(module, inputs[i : i + 1], labels[i : i + 1], smoothing=smoothing)
            claim = proved_labels(had.problem(size=told))
            assert_true(claim, had, told, (act, classes, steps, i))
            if classes > 2:
                assert claim.complete
                assert claim.estimate.tolist() == had.labels.tolist()
            elif told == 1 and not smoothing:
                assert claim.complete


@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("act", ACTS)
def test_one_sample_without_bias_is_complete(classes, act):
    for steps in (0, 40):
        module, inputs, labels = network(act, classes, False, steps)
        for i in range(5):
            had = Client(module, inputs[i : i + 1], labels[i : i + 1])
            claim = proved_labels(had.problem())
            assert claim.complete
            assert claim.estimate.tolist() == had.labels.tolist()


def test_a_batch_whose_classes_all_occur_once_is_complete():
    """T1 shows each class, T5 and T6 that there is no other."""
    inputs, _ = batch(4, 10)
    had = Client(net("tanh", 10), inputs, torch.tensor([1, 4, 6, 9]))
    claim = label_claim(had.problem())
    assert claim.complete
    assert claim.lower.tolist() == had.counts.tolist()
    assert claim.estimate.tolist() == [1, 4, 6, 9]
    assert "T6" in claim.statements
    assert label_accuracy(claim.estimate, had.labels) == 1


def test_counts_need_the_reduction():
    """All of one class: T5 counts them, without a declared reduction it must not."""
    inputs, _ = batch(8, 10)
    had = Client(net("tanh", 10), inputs, torch.full((8,), 3))
    told, untold = (label_claim(had.problem(declared=d)) for d in (True, False))
    assert "T5" in told.statements
    assert "T5" not in untold.statements
    assert told.lower[3] >= 5  # 8 * (1 - p), p near 0.1
    assert untold.lower[3] == 1
    assert any("mean over the batch (as said)" in premise for premise in told.premises)


def test_the_rank_stands_in_for_an_unknown_size():
    had = Client(net("tanh", 10), batch(8, 10)[0], torch.tensor([3, 3, 3, 3, 3, 3, 1, 2]))
    claim = label_claim(had.problem(size=None))
    assert 2 <= claim.lower[3] <= 6
    assert claim.upper is None
    assert claim.estimate is None


@pytest.mark.parametrize("act", ["relu", "sigmoid", "tanh", "silu"])
def test_rows_of_the_weight_speak_only_for_features_without_sign(act):
    had = client(act, 8, 10, bias=False)
    claim = proved_labels(had.problem())
    assert ("T2" in claim.statements) == (act in {"relu", "sigmoid"})
    assert bool(claim.lower.any()) == (act in {"relu", "sigmoid"})


def test_every_statement_brings_its_premise():
    claim = label_claim(client("relu", 8, 10).problem())
    text = " / ".join(claim.premises)
    for part in ("softmax cross-entropy", "no feature of the head", "the batch holds 8", "mean"):
        assert part in text


# ------------------------------------------------------------------ a batch size that is wrong


def wrongly_told(told, labels, *, act="tanh", classes=10, dump=lambda g: g, declared=True):
    inputs, _ = batch(len(labels), classes)
    had = Client(net(act, classes), 8 * inputs - 4, torch.tensor(labels))
    return proved_labels(had.problem(dump(had.gradients()), size=told, declared=declared)), had


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize(
    ("told", "labels"),
    [
        (1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (1, [3] * 8),
        (4, [0, 1, 2, 3, 4, 5, 6, 7]),
        (4, [3] * 8),
        (4, [3, 3, 3, 3, 3, 3, 1, 2]),
        (1, [3, 3]),
        (2, [3, 3, 3, 4]),
    ],
)
def test_too_small_a_size_is_contradicted_by_the_rank(told, labels, act, declared):
    """More independent rows than samples: nothing rests on the size that was said."""
    claim, had = wrongly_told(told, labels, act=act, declared=declared)
    assert not claim.complete
    assert claim.upper is None
    assert (claim.lower <= had.counts).all()
    assert claim.at_least > told
    assert not claim.statements


@pytest.mark.parametrize("told", [9, 16, 1000])
@pytest.mark.parametrize("act", ACTS)
def test_too_large_a_size_completes_nothing(told, act):
    claim, _ = wrongly_told(told, [0, 1, 2, 3, 4, 5, 6, 7], act=act)
    assert not claim.complete
    assert ((claim.lower > 0) <= torch.tensor([1] * 8 + [0] * 2).bool()).all()  # presence holds
    assert any(f"the batch holds {told} samples (as said)" in p for p in claim.premises)


def test_a_sum_that_is_called_a_mean_proves_no_counts():
    had = Client(
        net("tanh", 10), batch(8, 10)[0], torch.tensor([3, 3, 3, 3, 3, 3, 1, 2]), reduction="sum"
    )
    problem = had.problem()
    claim = label_claim(replace(problem, knowledge=replace(problem.knowledge, reduction="mean")))
    assert (claim.lower <= had.counts).all()
    assert "T5" not in claim.statements


# --------------------------------------------------------------------------- noise


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize("bias", [True, False])
def test_pure_noise_proves_nothing(scale, bias):
    for act in ("relu", "tanh"):
        for classes in CLASSES:
            module = net(act, classes, bias=bias)
            had = Client(module, *batch(1, classes))
            for seed in range(5):
                for told in (1, 8, None):
                    claim = proved_labels(had.problem(noise(module, scale, seed=seed), size=told))
                    where = (act, classes, seed, told)
                    assert not claim.lower.any(), where
                    assert claim.upper is None, where
                    assert not claim.complete, where
                    assert not claim.statements, where


@pytest.mark.parametrize("scale", [1e-8, 1.0])
def test_noise_shaped_like_one_class_proves_nothing(scale):
    """One row stands out, or all rows are multiples of one; the sums do not vanish."""
    module = net("relu", 10)
    had = Client(module, *batch(1, 10))
    generator = torch.Generator().manual_seed(1)
    for seed in range(20):
        row = noise(module, scale, seed=seed)
        row["head.weight"][seed % 10] -= 9 * scale
        row["head.bias"][seed % 10] -= 9 * scale
        one = noise(module, scale, seed=seed)
        factors = torch.randn(10, generator=generator) + 1
        one["head.weight"] = torch.outer(factors, torch.rand(32, generator=generator)) * scale
        one["head.bias"] = factors * scale
        for told in (1, 8, None):
            for sent in (row, one):
                claim = proved_labels(had.problem(sent, size=told))
                assert not claim.lower.any()
                assert not claim.statements


@pytest.mark.parametrize("sigma", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("dump", ["single", "brain"])
def test_noised_dumps_prove_nothing_false(sigma, dump):
    seed = {1e-2: 1, 1.0: 1}.get(sigma, 0)  # batches of one class
    for index, (where, had) in enumerate(clients(seed=seed, steps=40, sizes=(1, 8))):
        sent = DUMPS[dump](noised(had.gradients(), sigma, seed=index))
        problem = had.problem(sent)
        for told in (len(had.labels), None):
            known = replace(problem.knowledge, batch_size=told)
            claim = proved_labels(replace(problem, knowledge=known))
            assert_true(claim, had, told, (*where, told))


@pytest.mark.parametrize("sigma", [1e-3, 1e-2, 0.1])
def test_noise_is_noticed(sigma):
    for act in ACTS:
        for size in (1, 8):
            had = client(act, size, 10)
            sums = head_sums(had.problem(noised(had.gradients(), sigma)))
            assert not sums.vanish


# --------------------------------------------------------------------------- what is not there


def test_without_the_head_there_is_nothing_to_read():
    had = client("relu", 4, 10)
    sent = {n: g for n, g in had.gradients().items() if not n.startswith("head")}
    problem = had.problem(sent)
    assert HeadLabels().blocked_by(problem) == "the dump holds no gradient of the head"
    claim = label_claim(problem)
    assert not claim.lower.any()
    assert claim.estimate is None


@pytest.mark.parametrize("left_out", ["head.weight", "head.bias"])
@pytest.mark.parametrize("size", SIZES)
def test_half_a_head_proves_nothing_false(left_out, size):
    for act in ACTS:
        for classes in CLASSES:
            module, inputs, labels = network(act, classes, True, 40)
            had = Client(module, inputs[:size], labels[:size])
            sent = {n: g for n, g in had.gradients().items() if n != left_out}
            for told in (size, None):
                claim = proved_labels(had.problem(sent, size=told))
                assert_true(claim, had, told, (act, classes, told))


def test_dropped_features_do_not_matter_to_the_bias():
    """T1 holds in any mode; the client's dropout mask is not known."""
    torch.manual_seed(0)
    module = Net(nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), 10)
    for seed in range(20):
        torch.manual_seed(seed)
        had = Client(module, *batch(8, 10, seed=seed), mode="train")
        claim = proved_labels(had.problem())
        assert_true(claim, had, 8, seed)
        assert claim.lower.any()


def test_features_that_training_makes_negative_prove_nothing_false():
    """Alpha dropout after a ReLU: without bias, rows of absent classes have negative entries."""
    torch.manual_seed(0)
    module = Net(nn.Sequential(nn.ReLU(), nn.AlphaDropout(0.5)), 10, bias=False)
    for seed in range(20):
        torch.manual_seed(seed)
        had = Client(module, *batch(4, 10, seed=seed), mode="train")
        claim = proved_labels(had.problem())
        assert (claim.lower <= had.counts).all(), claim.statements


def test_a_model_with_one_logit():
    module = net("relu", 1)
    had = Client(module, *batch(2, 1))
    sent = had.gradients() | {"body.1.weight": torch.ones(32, 16)}
    claim = label_claim(had.problem(sent))
    assert not claim.lower.any() or claim.lower.tolist() == [2]


# --------------------------------------------------------------------------- the estimate


@pytest.mark.parametrize("size", [2, 8, 64])
def test_the_estimate_is_good_on_an_untrained_network(size):
    """A guess; on these it is known to be nearly always right."""
    scores = [
        label_accuracy(label_claim(had.problem()).estimate, had.labels)
        for had in (client("relu", size, 10, seed=seed) for seed in range(5))
    ]
    assert sum(scores) / len(scores) > 0.9


def test_the_estimate_keeps_within_the_bounds():
    for seed in range(10):
        had = client("sigmoid", 8, 3, seed=seed)
        claim = label_claim(had.problem())
        found = torch.bincount(claim.estimate, minlength=3)
        assert (found >= claim.lower).all()
        assert (found <= claim.upper).all()


def test_no_statement_is_named_that_proves_nothing():
    """Two labels that the model predicts already: no entry of the head is below zero."""
    module = net("tanh", 4, bias=True)
    sent = noise(module, 1.0)
    sent["head.weight"], sent["head.bias"] = torch.zeros(4, 32), torch.zeros(4)
    problem = problem_of(module, sent, client("tanh", 2, 4).problem().knowledge)
    claim = label_claim(problem)
    assert not claim.lower.any()
    assert not claim.statements


def test_the_attack_returns_the_claim():
    had = client("relu", 2, 4)
    problem = had.problem()
    found = HeadLabels().run(problem, seed=0, watch=WATCH).labels
    expected = label_claim(problem)
    assert torch.equal(found.lower, expected.lower)
    assert found.statements == expected.statements


# --------------------------------------------------------------------------- clean dumps


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("steps", [0, 40, 300])
def test_a_clean_dump_is_not_called_noised(bias, steps):
    """Also when the network has learnt its data and p - y is mostly rounding."""
    for act in ACTS:
        for classes in (3, 10, 100):
            module, inputs, labels = network(act, classes, bias, steps)
            for size in (1, 8):
                had = Client(module, inputs[:size], labels[:size])
                sent = had.gradients()
                if float(sent["head.weight"].norm()) > 1e-4:
                    sums = head_sums(had.problem(sent))
                    assert sums.vanish, (act, classes, size, sums)


# --------------------------------------------------------------------------- absence


def test_absence_of_classes_bounds_the_counts_of_the_others():
    """Four samples of three classes among a hundred: T9 closes what T1 leaves open."""
    used = 0
    for seed in range(3):
        inputs, labels = batch(4, 100, seed=seed)
        labels = torch.cat([labels[:1], labels[:3]])  # one of them twice
        had = Client(net("tanh", 100, seed=seed), 8 * inputs - 4, labels)
        claim = proved_labels(had.problem(declared=False))
        assert_true(claim, had, 4, seed)
        if "T9" in claim.statements:
            used += 1
            assert (claim.upper == 0).any()
            assert not (claim.upper[had.counts > 0] == 0).any()
    assert used
