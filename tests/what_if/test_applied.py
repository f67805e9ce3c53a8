"""The defences as functions: closed forms, slow definitions, and other libraries."""

import math

import pytest
import torch
from scipy import stats

from auditor.defences import applied


def gradient(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": torch.randn(40, 30, generator=generator, dtype=dtype),
        "b": 10 * torch.randn(25, generator=generator, dtype=dtype),
    }


def flat(tensors):
    return torch.cat([part.flatten() for part in tensors.values()])


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


def test_nothing_done_is_single_precision():
    clean = gradient()
    sent = applied.as_it_is(clean)
    assert torch.equal(flat(sent.gradient), flat(clean).float().double())
    assert sent.channel.is_clear
    assert sent.precision == 2.0**-23


def test_noise_is_normal_of_that_sigma_and_told():
    clean = {"a": torch.zeros(200, 100, dtype=torch.float64)}
    sent = applied.noised(clean, 0.25, dice())
    assert sent.channel.sigma == 0.25
    assert stats.kstest(flat(sent.gradient).numpy() / 0.25, "norm").pvalue > 1e-3
    other = applied.noised(clean, 0.25, dice(1))
    assert (
        abs(float(torch.corrcoef(torch.stack([flat(sent.gradient), flat(other.gradient)]))[0, 1]))
        < 0.03
    )


def test_clipping_keeps_the_direction_and_gives_the_norm():
    clean = gradient()
    sent = applied.clipped(clean, 2.0)
    assert applied.norm_of(sent.gradient) == pytest.approx(2.0, rel=1e-6)
    assert applied.cosine(clean, sent.gradient) == pytest.approx(1.0)
    assert sent.channel.scaled


def test_a_short_gradient_is_not_clipped():
    sent = applied.clipped(gradient(), 1e6)
    assert torch.equal(flat(sent.gradient), flat(applied.as_it_is(gradient()).gradient))
    assert sent.channel.is_clear


@pytest.mark.parametrize("dropped", [0.0, 0.5, 0.9, 0.99])
def test_the_largest_entries_are_kept_by_sorting(dropped):
    clean = gradient()
    sent = flat(applied.largest_kept(clean, dropped).gradient)
    values = flat(clean)
    kept = sorted(range(len(values)), key=lambda i: -abs(float(values[i])))
    kept = set(kept[: len(values) - math.floor(dropped * len(values))])
    assert {i for i in range(len(values)) if sent[i] != 0} == kept
    assert applied.largest_kept(clean, dropped).channel.masked == (dropped > 0)


def test_signs():
    sent = applied.signs_of({"a": torch.tensor([-3.0, 0.0, 1e-9])})
    assert sent.gradient["a"].tolist() == [-1.0, 0.0, 1.0]
    assert sent.channel.signs


@pytest.mark.parametrize("shift", [0.0, 2.0, -7.0])
def test_int8_is_that_of_torch(shift):
    clean = {name: part.float() + shift for name, part in gradient().items()}
    sent = applied.as_int8(clean)
    for name, part in clean.items():
        low, high = min(float(part.min()), 0.0), max(float(part.max()), 0.0)
        scale = (high - low) / 255
        zero = -round(low / scale)
        theirs = torch.fake_quantize_per_tensor_affine(part, scale, zero, 0, 255)
        # A number in the middle of two levels may go either way.
        apart = (sent.gradient[name] - theirs).abs()
        assert float((apart > 1e-5 * scale).float().mean()) < 5e-3
        assert float(apart.max()) < 1.01 * scale
        assert sent.channel.steps[name] == pytest.approx(scale)
        assert len(sent.gradient[name].unique()) <= 256


def test_int8_of_zeros_is_zero():
    sent = applied.as_int8({"a": torch.zeros(4, dtype=torch.float64)})
    assert not sent.gradient["a"].any()
    assert sent.channel.is_clear


@pytest.mark.parametrize(("dtype", "spacing"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_types_round_and_say_how_coarse_they_are(dtype, spacing):
    clean = gradient()
    sent = applied.as_type(clean, dtype)
    assert sent.precision == spacing
    apart = (flat(sent.gradient) - flat(clean)).abs() / flat(clean).abs()
    assert 0.4 * spacing < float(apart.max()) <= 0.5 * spacing * (1 + 1e-6)


def test_withheld_tensors_are_missing():
    sent = applied.without(gradient(), ["b"])
    assert list(sent.gradient) == ["a"]


def test_cosine_of_what_was_withheld_counts_as_zero():
    clean = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    assert applied.cosine(clean, {"a": torch.tensor([3.0])}) == pytest.approx(0.6)
    assert applied.cosine(clean, {"a": torch.zeros(1)}) is None


# --------------------------------------------------------------------------- DP-SGD


def test_private_sum_without_noise_is_that_of_clipped_samples():
    samples = [gradient(seed) for seed in range(3)]
    sent = applied.privately(samples, 5.0, 0.0, dice(), mean=False)
    clipped = [flat(s) * min(1.0, 5.0 / float(flat(s).norm())) for s in samples]
    assert torch.allclose(flat(sent.gradient), sum(clipped), rtol=1e-5, atol=1e-6)


def test_private_mean_is_the_sum_over_the_samples():
    samples = [gradient(seed) for seed in range(4)]
    whole = applied.privately(samples, 5.0, 0.7, dice(), mean=False)
    mean = applied.privately(samples, 5.0, 0.7, dice(), mean=True)
    assert torch.allclose(flat(whole.gradient), 4 * flat(mean.gradient), rtol=1e-5, atol=1e-5)
    assert whole.channel.sigma == pytest.approx(4 * mean.channel.sigma) == pytest.approx(3.5)


def test_private_sum_is_that_of_opacus():
    """Opacus keeps the samples' own gradients; its noise is left out, its clipping compared."""
    pytest.importorskip("opacus")
    from opacus.optimizers import DPOptimizer

    layer = torch.nn.Linear(30, 40, bias=False)
    samples = [{"weight": gradient(seed, torch.float32)["a"]} for seed in range(3)]
    optimizer = DPOptimizer(
        torch.optim.SGD(layer.parameters(), lr=1.0),
        noise_multiplier=0.0, max_grad_norm=5.0, expected_batch_size=3,
    )  # fmt: skip
    layer.weight.grad_sample = torch.stack([s["weight"] for s in samples])
    optimizer.clip_and_accumulate()
    optimizer.add_noise()
    optimizer.scale_grad()
    ours = applied.privately(samples, 5.0, 0.0, dice(), mean=True).gradient["weight"]
    assert torch.allclose(layer.weight.grad, ours, rtol=1e-4, atol=1e-6)


def test_the_noise_of_dp_sgd_is_the_multiplier_times_the_norm():
    zeros = [{"a": torch.zeros(100, 100, dtype=torch.float64)}] * 2
    sent = applied.privately(zeros, 3.0, 0.5, dice(), mean=False)
    assert float(flat(sent.gradient).std()) == pytest.approx(1.5, rel=0.02)
    assert not sent.channel.scaled
