"""Flags first, then the dump's metadata, then deduction; the rest is assumed, and said so."""

import pytest
import torch
from problems import dump_of, net, noise, tiny_lenet
from torch import nn

from auditor.errors import InputError, UsageError
from auditor.facts import Flags, deduce_input_shape, flags_from_text, settle
from auditor.records import Metadata

SHAPE = Flags(input_shape=(1, 4, 4))
FULL = Metadata(
    batch_size=3,
    input_shape=(1, 4, 4),
    loss="cross_entropy",
    reduction="sum",
    label_smoothing=0.2,
    mode="train",
    mean=(0.4,),
    std=(0.25,),
)


def settled(flags=SHAPE, metadata=None, module=None):
    module = module or net("tanh", 4)
    return settle(dump_of(module, noise(module, 1.0), metadata), module, flags)


def origins(known):
    return {a.what: a.origin for a in known.assumptions}


def values(known):
    return {a.what: a.value for a in known.assumptions}


def text(**flags):
    empty = dict.fromkeys(
        ["input_shape", "mean", "std", "batch_size", "mode", "reduction", "label_smoothing"]
    )
    return flags_from_text(**(empty | flags))


# --------------------------------------------------------------------------- where facts come from


def test_metadata_is_taken():
    known = settled(Flags(), FULL)
    assert (known.batch_size, known.input_shape) == (3, (1, 4, 4))
    assert (known.mean, known.std) == ((0.4,), (0.25,))
    assert (known.mode, known.reduction, known.label_smoothing) == ("train", "sum", 0.2)
    assert known.reduction_declared
    assert set(origins(known).values()) == {"metadata"}
    assert known.overrides == ()


def test_flags_come_first_and_contradictions_are_kept():
    flags = Flags((1, 4, 4), (0.5,), (0.2,), 2, "eval", "mean", 0.0)
    known = settled(flags, FULL)
    assert (known.batch_size, known.mean, known.std) == (2, (0.5,), (0.2,))
    assert (known.mode, known.reduction, known.label_smoothing) == ("eval", "mean", 0.0)
    assert set(origins(known).values()) == {"flag"}
    assert len(known.overrides) == 6  # all but the shape, which is the same
    assert "mode eval instead of train" in known.overrides
    assert "batch size 2 instead of 3" in known.overrides
    assert "mean 0.5 instead of 0.4" in known.overrides


def test_flags_that_repeat_the_metadata_override_nothing():
    flags = Flags((1, 4, 4), (0.4,), (0.25,), 3, "train", "sum", 0.2)
    assert settled(flags, FULL).overrides == ()


def test_what_nobody_said_is_assumed_and_listed():
    known = settled()
    assert known.batch_size is None
    assert (known.mean, known.std) == ((0.0,), (1.0,))
    assert (known.mode, known.reduction, known.label_smoothing) == ("eval", "mean", 0.0)
    assert not known.reduction_declared
    found = origins(known)
    for what in ("mode", "reduction", "label smoothing", "normalisation", "loss"):
        assert found[what] == "assumed"
    assert found["input shape"] == "flag"
    assert "batch size" not in found  # unknown is not assumed: it has a caveat of its own


@pytest.mark.parametrize(("given", "left"), [("mean", "std"), ("std", "mean")])
def test_half_a_normalisation_is_listed_as_assumed(given, left):
    known = settled(Flags(input_shape=(1, 4, 4), **{given: (0.5,)}))
    assert origins(known)[given] == "flag"
    assert origins(known)[left] == "assumed"


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_reduction_that_was_said_is_declared(reduction):
    assert settled(Flags(input_shape=(1, 4, 4), reduction=reduction)).reduction_declared
    assert settled(SHAPE, Metadata(reduction=reduction)).reduction_declared


def test_one_number_serves_all_channels():
    known = settled(
        Flags(input_shape=(3, 8, 8), mean=(0.5,), std=(0.1, 0.2, 0.3)),
        module=tiny_lenet(channels=3),
    )
    assert known.mean == (0.5, 0.5, 0.5)
    assert known.std == (0.1, 0.2, 0.3)


def test_every_assumption_is_named_once():
    for flags, meta in ((SHAPE, None), (Flags(), FULL), (SHAPE, FULL)):
        names = [a.what for a in settled(flags, meta).assumptions]
        assert len(names) == len(set(names))


def test_another_loss_is_refused():
    with pytest.raises(InputError, match="mse"):
        settled(SHAPE, Metadata(loss="mse"))


# --------------------------------------------------------------------------- what makes no sense


@pytest.mark.parametrize(
    "flags",
    [
        Flags(batch_size=0),
        Flags(batch_size=-3),
        Flags(label_smoothing=1.0),
        Flags(label_smoothing=-0.1),
        Flags(label_smoothing=float("nan")),
        Flags(std=(0.0,)),
        Flags(std=(-1.0,)),
        Flags(std=(float("nan"),)),
        Flags(std=(float("inf"),)),
        Flags(mean=(float("inf"),)),
        Flags(mean=()),
        Flags(std=()),
        Flags(input_shape=(1, 4)),
        Flags(input_shape=(1, 0, 4)),
        Flags(input_shape=(1, 4, 4), mean=(0.1, 0.2)),
        Flags(input_shape=(1, 4, 4), std=(0.1, 0.2)),
    ],
    ids=str,
)
def test_flags_that_make_no_sense(flags):
    with pytest.raises(UsageError):
        settled(flags, Metadata(input_shape=(1, 4, 4)))


def test_flags_from_text():
    flags = text(
        input_shape="3x32x16", mean="0.5,0.4,0.3", std="0.2", batch_size=4, mode="train",
        reduction="sum", label_smoothing=0.1,
    )  # fmt: skip
    assert flags == Flags((3, 32, 16), (0.5, 0.4, 0.3), (0.2,), 4, "train", "sum", 0.1)
    assert text() == Flags()
    assert text(input_shape="3X8x8").input_shape == (3, 8, 8)


@pytest.mark.parametrize(
    "flags",
    [
        {"input_shape": "32x32"},
        {"input_shape": "3x32x32x1"},
        {"input_shape": "axbxc"},
        {"input_shape": "-1x3x3"},
        {"input_shape": ""},
        {"input_shape": "0x3x3"},
        {"mean": "a"},
        {"mean": ""},
        {"mean": "0.1,,0.2"},
        {"mean": "nan"},
        {"std": "0"},
        {"std": "1e999"},
        {"batch_size": 0},
        {"mode": "training"},
        {"reduction": "none"},
        {"label_smoothing": 2.0},
    ],
    ids=str,
)
def test_text_that_makes_no_sense(flags):
    with pytest.raises(UsageError):
        text(**flags)


# --------------------------------------------------------------------------- the input shape


@pytest.mark.parametrize(
    ("pixels", "shape"), [(16, (1, 4, 4)), (48, (3, 4, 4)), (784, (1, 28, 28)), (3072, (3, 32, 32))]
)
def test_the_only_shape_that_fits(pixels, shape):
    module = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 4))
    assert deduce_input_shape(module) == shape


def test_deduced_shapes_are_listed_as_deduced():
    known = settled(Flags())
    assert known.input_shape == (1, 4, 4)
    assert origins(known)["input shape"] == "deduced"
    assert values(known)["input shape"] == "1x4x4"


def test_several_shapes_that_fit_are_a_question():
    with pytest.raises(UsageError, match="3x5x5 and 3x6x6 fit"):
        deduce_input_shape(tiny_lenet(channels=3, size=8))


def test_a_model_that_takes_any_size_is_a_question():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UsageError, match="both"):
        deduce_input_shape(nn.Sequential(module, nn.Linear(4, 2)))


def test_no_shape_that_fits():
    with pytest.raises(UsageError, match="no square picture"):
        deduce_input_shape(nn.Sequential(nn.Flatten(), nn.Linear(17, 4)))


def test_deduction_leaves_the_model_alone():
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 4)).train()
    before = {n: v.clone() for n, v in module.state_dict().items()}
    assert deduce_input_shape(module) == (1, 4, 4)
    assert all(torch.equal(before[n], v) for n, v in module.state_dict().items())
    assert module.training
    assert {v.device.type for v in module.state_dict().values()} == {"cpu"}
