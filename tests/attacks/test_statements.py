"""Each statement on matrices written down here, with the premise that it needs and without it."""

import pytest
import torch
from torch.nn import functional as F

from auditor.attacks import statements as st

EPS = torch.finfo(torch.float32).eps


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def head_gradient(features, labels, weight, bias, *, smoothing=0.0, reduction="mean"):
    """G (K, E) and g (K,) by their closed form, from features (N, E)."""
    classes = len(weight)
    p = torch.softmax(features @ weight.T + bias, 1)
    target = F.one_hot(labels, classes).double() * (1 - smoothing) + smoothing / classes
    delta = (p - target) / (len(labels) if reduction == "mean" else 1)
    return delta.T @ features, delta.sum(0)


def case(count, classes, width=6, *, seed=0, positive=False, sharp=1.0, **more):
    features = normal(count, width, seed=seed)
    features = features.abs() if positive else features
    weight, bias = sharp * normal(classes, width, seed=seed + 1), normal(classes, seed=seed + 2)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    g = head_gradient(features, labels, weight, bias, **more)
    return features, labels, weight, bias, *g


def counts_of(labels, classes):
    return torch.bincount(labels, minlength=classes)


# --------------------------------------------------------------------------- T1, T2


def test_presence_by_hand():
    g = torch.tensor([-0.3, 0.1, 0.2, -1e-9], dtype=torch.float64)
    assert st.presence_by_bias(g, margin=1e-6, smoothing=0.0).tolist() == [
        True,
        False,
        False,
        False,
    ]
    assert not st.presence_by_bias(g, margin=0.5, smoothing=0.0).any()
    smoothed = st.presence_by_bias(
        torch.tensor([-0.02, -0.03, 0.05, 0.0]), margin=0.0, smoothing=0.1
    )
    assert smoothed.tolist() == [False, True, False, False]  # 0.1 / 4 = 0.025


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_presence_by_bias_is_never_wrong(seed, smoothing, reduction):
    _, labels, *_, g = case(8, 5, seed=seed, sharp=3, smoothing=smoothing, reduction=reduction)
    mass = smoothing * (1 if reduction == "mean" else 8)
    present = st.presence_by_bias(g, margin=1e-12, smoothing=mass)
    assert not (present & (counts_of(labels, 5) == 0)).any()


def test_without_its_smoothing_term_presence_by_bias_would_be_wrong():
    wrong = 0
    for seed in range(20):
        _, labels, *_, g = case(8, 5, seed=seed, sharp=6, smoothing=0.2)
        present = st.presence_by_bias(g, margin=1e-12, smoothing=0.0)
        wrong += int((present & (counts_of(labels, 5) == 0)).any())
    assert wrong


def test_presence_by_weight_needs_features_without_sign():
    """The premise is not decoration: with signed features the statement is false."""
    wrong = {True: 0, False: 0}
    for positive in wrong:
        for seed in range(20):
            _, labels, _, _, weight, _ = case(4, 6, seed=seed, positive=positive)
            present = st.presence_by_weight(weight, margin=1e-12)
            wrong[positive] += int((present & (counts_of(labels, 6) == 0)).sum())
    assert wrong[True] == 0
    assert wrong[False] > 10


# --------------------------------------------------------------------------- T3


def t3(weight, bias, g_weight, g, *, precision=EPS, smoothing=0.0):
    return st.single_by_bias(g_weight, g, weight, bias, precision=precision, smoothing=smoothing)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 64.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_one_sample_is_recognised_at_any_scale(seed, classes, scale, smoothing):
    _, labels, weight, bias, g_weight, g = case(1, classes, seed=seed, smoothing=smoothing)
    found = t3(weight, bias, scale * g_weight, scale * g, smoothing=smoothing)
    if found is None:  # two classes and an unknown scale: smoothed labels may fit both ways
        assert classes == 2
        assert smoothing
    else:
        assert found.label == int(labels)
        assert found.statement == "T3"


@pytest.mark.parametrize("classes", [3, 10])
def test_an_overconfident_sample_under_smoothing(classes):
    """p of the label exceeds its smoothed target: its own gradient entry is not the lowest."""
    label = 1
    weight, bias = normal(classes, 6), torch.zeros(classes, dtype=torch.float64)
    features = 3 * weight[label][None] / weight[label].norm()
    g_weight, g = head_gradient(features, torch.tensor([label]), weight, bias, smoothing=0.1)
    assert float(torch.softmax(features @ weight.T, 1)[0, label]) > 0.95
    assert int(g.argmin()) != label
    found = t3(weight, bias, g_weight, g, smoothing=0.1)
    assert found is not None
    assert found.label == label


@pytest.mark.parametrize("seed", range(20))
def test_two_classes_with_smoothing_are_never_told_wrongly(seed):
    for sharp in (0.3, 2.0):
        _, labels, weight, bias, g_weight, g = case(1, 2, seed=seed, sharp=sharp, smoothing=0.2)
        found = t3(weight, bias, g_weight, g, smoothing=0.2)
        assert found is None or found.label == int(labels)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("count", [2, 8])
def test_a_batch_is_no_single_sample(seed, classes, count):
    _, _, weight, bias, g_weight, g = case(count, classes, seed=seed)
    assert t3(weight, bias, g_weight, g) is None


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("sharp", [0.1, 1.0])
def test_two_classes_cannot_prove_a_single_sample(count, sharp):
    """With two classes every batch has rank one, some scale always fits, and 1 is no rare one."""
    for seed in range(200):
        _, labels, weight, bias, g_weight, g = case(count, 2, seed=seed, sharp=sharp)
        found = t3(weight, bias, g_weight, g)
        mixed = len(labels.unique()) == 2
        assert found is None or not found.proves_single or not mixed, seed


def test_copies_with_two_labels_are_no_single_sample():
    features = normal(1, 6).expand(2, -1)
    weight, bias = normal(4, 6, seed=1), normal(4, seed=2)
    g_weight, g = head_gradient(features, torch.tensor([0, 1]), weight, bias)
    assert t3(weight, bias, g_weight, g) is None


def test_another_model_is_no_single_sample():
    _, _, weight, bias, g_weight, g = case(1, 10)
    assert t3(weight + normal(10, 6, seed=9), bias, g_weight, g) is None


@pytest.mark.parametrize("sigma", [1e-4, 1e-2])
def test_noise_is_no_single_sample(sigma):
    _, _, weight, bias, g_weight, g = case(1, 10)
    noisy = g_weight + sigma * normal(10, 6, seed=4)
    assert t3(weight, bias, noisy, g + sigma * normal(10, seed=5)) is None


def test_rank_one_noise_is_no_single_sample():
    for seed in range(20):
        a, v = normal(10, seed=seed), normal(6, seed=seed + 50)
        a -= a.mean()
        found = t3(normal(10, 6, seed=1), normal(10, seed=2), torch.outer(a, v), a)
        assert found is None


def test_nothing_at_all_is_no_single_sample():
    zero = torch.zeros(4, 6, dtype=torch.float64)
    assert t3(normal(4, 6), normal(4), zero, zero[:, 0]) is None


# --------------------------------------------------------------------------- T4


def t4(weight, bias, g_weight, *, told=True, precision=EPS):
    return st.single_without_bias(g_weight, weight, bias, precision=precision, told_single=told)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("classes", [3, 10])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 50.0])
def test_one_sample_without_bias(seed, classes, scale):
    _, labels, weight, _, g_weight, _ = case(1, classes, seed=seed)
    features = normal(1, 6, seed=seed)
    nothing = torch.zeros(classes, dtype=torch.float64)
    g_weight, _ = head_gradient(features, labels, weight, nothing)
    found = t4(weight, None, scale * g_weight)
    assert found is not None
    assert found.label == int(labels)
    assert found.statement in {"T4", "T4'"}
    assert found.proves_single == (found.statement == "T4")


def test_what_the_dump_does_not_hold_may_be_in_the_model():
    """The head has a bias, its gradient is withheld."""
    right = 0
    for seed in range(20):
        _, labels, weight, bias, g_weight, _ = case(1, 5, seed=seed)
        found = t4(weight, bias, g_weight, told=False)
        assert found is None or found.label == int(labels)
        right += found is not None
    assert right >= 15


@pytest.mark.parametrize("told", [True, False])
def test_two_classes_without_bias_are_never_told_wrongly(told):
    """a and -a fit as well as one another: the sign of the features is not known."""
    nothing = torch.zeros(2, dtype=torch.float64)
    for seed in range(60):
        features, labels, weight, _, _, _ = case(1, 2, seed=seed)
        g_weight, _ = head_gradient(features, labels, weight, nothing)
        found = t4(weight, None, g_weight, told=told)
        assert found is None or found.label == int(labels), seed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_two_classes_that_take_everything_are_never_told_wrongly(dtype):
    """The bias keeps all others below the precision: as if there were two classes."""
    bias = torch.tensor([0.0, 0.0, -40.0, -40.0, -40.0, -40.0], dtype=torch.float64)
    for seed in range(40):
        features, weight = normal(1, 6, seed=seed + 100), normal(6, 6, seed=seed)
        labels = torch.tensor([seed % 2])
        g_weight, _ = head_gradient(features, labels, weight, bias)
        sent = g_weight.to(dtype).double()
        found = t4(weight, bias, sent, precision=torch.finfo(dtype).eps)
        assert found is None or found.label == int(labels), seed


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("count", [2, 8])
def test_a_batch_without_bias_is_no_single_sample(seed, count):
    _, _, weight, bias, g_weight, _ = case(count, 5, seed=seed)
    assert t4(weight, bias, g_weight) is None
    assert t4(weight, bias, g_weight, told=False) is None


@pytest.mark.parametrize("count", [2, 8])
def test_two_classes_without_bias_cannot_prove_a_single_sample(count):
    for seed in range(20):
        _, _, weight, bias, g_weight, _ = case(count, 2, seed=seed)
        found = t4(weight, bias, g_weight, told=False)
        assert found is None or not found.proves_single


def test_rank_one_noise_has_no_label():
    for seed in range(30):
        a, v = normal(8, seed=seed), normal(6, seed=seed + 50)
        a -= a.mean()
        assert t4(normal(8, 6, seed=1), None, torch.outer(a, v)) is None


# --------------------------------------------------------------------------- T5, T7, rank


def test_counts_by_hand():
    g = torch.tensor([-0.5, 0.3, 0.2], dtype=torch.float64)

    def below(**more):
        settings = {"samples": 4, "slack": 1e-6, "smoothing": 0.0, "reduction": "mean"} | more
        return st.counts_below(g, **settings).tolist()

    assert below() == [2, 0, 0]  # 4 * 0.5, and nothing rounds it up
    assert below(samples=5) == [3, 0, 0]  # 2.5
    assert below(reduction="sum") == [1, 0, 0]
    assert below(smoothing=0.3) == [3, 0, 0]  # (2 - 0.4) / 0.7 = 2.29
    assert below(slack=0.6, samples=5) == [2, 0, 0]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("count", [1, 8, 64])
def test_counts_are_lower_bounds(seed, reduction, smoothing, count):
    _, labels, *_, g = case(count, 4, seed=seed, sharp=2, reduction=reduction, smoothing=smoothing)
    lower = st.counts_below(g, samples=count, slack=1e-9, smoothing=smoothing, reduction=reduction)
    true = counts_of(labels, 4)
    assert (lower <= true).all()
    assert (st.counts_above(lower, count) >= true).all()


def test_fewer_samples_give_weaker_bounds():
    _, labels, *_, g = case(16, 4, seed=3)
    bounds = [
        st.counts_below(g, samples=n, slack=1e-9, smoothing=0.0, reduction="mean")
        for n in (1, 4, 16)
    ]
    assert (bounds[0] <= bounds[1]).all()
    assert (bounds[1] <= bounds[2]).all()
    assert (bounds[2] <= counts_of(labels, 4)).all()


def test_upper_bounds_by_hand():
    assert st.counts_above(torch.tensor([2, 0, 1]), 5).tolist() == [4, 2, 3]
    assert st.counts_above(torch.tensor([2, 0, 3]), 5).tolist() == [2, 0, 3]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rank_never_exceeds_the_batch(count, dtype):
    precision = max(torch.finfo(dtype).eps, EPS)
    for seed in range(10):
        *_, g_weight, _ = case(count, 20, width=30, seed=seed)
        rank = st.samples_at_least(g_weight.to(dtype).double(), precision)
        assert 1 <= rank <= count
    if dtype == torch.float64:
        assert rank == count


# --------------------------------------------------------------------------- T8, T9


@pytest.mark.parametrize("seed", range(5))
def test_known_counts_give_the_mean_prediction(seed):
    features, labels, weight, bias, _, g = case(8, 5, seed=seed)
    found = st.mean_probabilities(g, counts_of(labels, 5), 8)
    torch.testing.assert_close(found, torch.softmax(features @ weight.T + bias, 1).mean(0))


def absent(g_weight, labels, *, samples=None, precision=EPS):
    classes = len(g_weight)
    candidates = torch.ones(classes, dtype=torch.bool)
    samples = len(labels) if samples is None else samples
    return st.absent_by_span(g_weight, candidates, samples=samples, precision=precision)


@pytest.mark.parametrize("sharp", [0.2, 2.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_a_class_that_occurs_is_never_absent(count, dtype, sharp):
    told = 0
    for seed in range(5):
        _, labels, *_, g_weight, _ = case(count, 20, width=30, seed=seed, sharp=sharp)
        found = absent(g_weight.to(dtype).double(), labels)
        assert not (found & (counts_of(labels, 20) > 0)).any()
        told += int(found.sum())
    assert told > 20  # else nothing was tested


@pytest.mark.parametrize("seed", range(8))
def test_the_least_dip_of_two_samples_is_that_of_a_search_over_all_directions(seed):
    """In a plane every direction can be tried: v(t) = cos t u1 + sin t u2, divided by -v_c."""
    *_, g_weight, _ = case(2, 6, width=8, seed=seed)
    span = torch.linalg.svd(g_weight, full_matrices=False)[0][:, :2]
    angles = torch.linspace(0, 2 * torch.pi, 200_001, dtype=torch.float64)[:-1]
    directions = span @ torch.stack([angles.cos(), angles.sin()])
    for label in range(6):
        below = directions[:, directions[label] < -1e-4]
        rest = torch.arange(6) != label
        dips = (-below[rest] / -below[label]).amax(0).clamp_min(0)
        assert st._least_dip(span, label) == pytest.approx(float(dips.min()), abs=2e-3)


def test_nothing_is_absent_unless_the_rank_is_the_size_beyond_doubt():
    _, labels, *_, g_weight, _ = case(3, 20, width=30, seed=1)
    assert absent(g_weight, labels).any()
    assert not absent(g_weight, labels, samples=2).any()  # more samples than told
    assert not absent(g_weight, labels, samples=4).any()  # fewer
    assert not absent(g_weight, labels, precision=1e-2).any()  # too coarse
    assert not absent(g_weight[:3], labels).any()  # no room for a span: N >= K
    assert not absent(torch.zeros_like(g_weight), labels).any()
    noise = 1e-4 * g_weight.norm() * normal(*g_weight.shape, seed=2)
    assert not absent(g_weight + noise, labels).any()


def test_counts_left_by_hand():
    assert st.counts_left(torch.tensor([2, 0, 3]), 4).tolist() == [1, 0, 2]
    assert st.counts_left(torch.tensor([4, 4, 4]), 4).tolist() == [0, 0, 0]
