"""What a caller may choose, and what is refused."""

import pytest
import torch

from auditor.attacks import ATTACKS, DLG, IDLG, PAPER
from auditor.errors import UsageError
from auditor.options import PRESETS, make_options, pick_device


def test_defaults():
    options = make_options()
    assert options.preset.name == "standard"
    assert options.selected == {attack.name for attack in ATTACKS}
    assert [a.name for a in options.attacks] == [a.name for a in ATTACKS]
    assert not options.named
    assert (options.seed, options.budget, options.evidence) == (0, 300, "none")


@pytest.mark.parametrize("preset", PRESETS, ids=lambda p: p.name)
def test_presets_reach_the_attacks(preset):
    options = make_options(preset=preset.name)
    assert options.budget == preset.budget
    assert all(a.search == preset.search for a in options.attacks if isinstance(a, IDLG | DLG))


def test_presets_look_harder_and_harder():
    fast, standard, deep, paper = PRESETS
    assert fast.budget < standard.budget < deep.budget
    assert fast.search.max_steps < standard.search.max_steps < deep.search.max_steps
    assert fast.search.restarts <= standard.search.restarts <= deep.search.restarts
    assert min(p.search.restarts for p in (fast, standard, deep)) >= 2  # one cannot be confirmed
    assert paper.search == PAPER
    assert paper.everything
    assert deep.everything
    assert not standard.everything


EVERY = {
    "labels.head",
    "images.layers",
    "images.first_layer",
    "images.spear",
    "images.linear_rows",
    "images.imprint",
    "images.attention",
    "images.deconvolution",
    "images.defended",
    "images.lm",
    "images.idlg",
    "images.dlg",
    "images.priors",
}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (None, EVERY),
        ([], EVERY),
        (["labels"], {"labels.head"}),
        (["images"], EVERY - {"labels.head"}),
        (["images.dlg"], {"images.dlg"}),
        (["labels", "images.dlg"], {"labels.head", "images.dlg"}),
    ],
)
def test_attacks_by_name_and_family(names, chosen):
    options = make_options(attacks=names)
    assert options.selected == chosen
    assert options.named == bool(names)


@pytest.mark.parametrize("names", [["image"], ["dlg"], [""], ["labels", "x"], ["images."]])
def test_unknown_attacks(names):
    with pytest.raises(UsageError, match="--attacks"):
        make_options(attacks=names)


@pytest.mark.parametrize("budget", [0, -1.0, float("nan")])
def test_budgets_that_are_none(budget):
    with pytest.raises(UsageError, match="--budget"):
        make_options(budget=budget)


def test_a_budget_overrides_the_preset():
    assert make_options(preset="paper", budget=5).budget == 5
    assert make_options(preset="fast", budget=0.5).budget == 0.5


def test_unknown_preset():
    with pytest.raises(UsageError, match="fast, standard, deep, paper"):
        make_options(preset="quick")


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    best = next((kind for kind, is_there in there.items() if is_there), "cpu")
    assert pick_device("auto") == torch.device(best)


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device"):
        pick_device("cuda")
    with pytest.raises(UsageError, match="--device"):
        pick_device("cuda:0")


@pytest.mark.parametrize("name", ["", "gpu", "cpu:x", "cpu:-1", ":0", "meta"])
def test_devices_that_are_none(name):
    with pytest.raises(UsageError):
        pick_device(name)


@pytest.mark.parametrize("seed", [-(2**70), 2**64, 2**200])
def test_seeds_that_no_generator_takes(seed):
    with pytest.raises(UsageError):
        make_options(seed=seed)
