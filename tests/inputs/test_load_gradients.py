"""Every form of a dump gives the same tensors, and says how it was read."""

from collections import OrderedDict
from itertools import combinations

import hostile
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from auditor.errors import InputError
from auditor.inputs import load_gradients, match_gradients
from auditor.inputs.matching import places_by_shape
from auditor.inputs.metadata import metadata_from_json, metadata_to_json
from auditor.records import FileRef, Metadata

FILE = FileRef("grads.pt", "torch", 1, "0")


@pytest.fixture
def net():
    return hostile.lenet()


@pytest.fixture
def good(net):
    return hostile.gradients(net)


def equal(found, wanted):
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted)


def torch_file(value):
    return lambda folder: hostile.saved(folder, "g.pt", value)


def numpy_file(table):
    return lambda folder: hostile.arrays(folder, {n: np.asarray(v) for n, v in table.items()})


FORMS = {
    "list": (lambda g: torch_file(list(g.values())), "torch, list of 8 tensors, matched by order"),
    "tuple": (
        lambda g: torch_file(tuple(g.values())),
        "torch, tuple of 8 tensors, matched by order",
    ),
    "dict": (torch_file, "torch, dict of 8 tensors, matched by name"),
    "OrderedDict": (
        lambda g: torch_file(OrderedDict(reversed(g.items()))),
        "torch, dict of 8 tensors, matched by name",
    ),
    "pairs": (lambda g: torch_file(list(g.items())), "torch, dict of 8 tensors, matched by name"),
    "under a key": (
        lambda g: torch_file({"grads": g, "loss": 0.5}),
        "torch, dict of 8 tensors under 'grads', matched by name",
    ),
    "list under a key": (
        lambda g: torch_file({"gradient": list(g.values())}),
        "torch, list of 8 tensors under 'gradient', matched by order",
    ),
    "vector": (
        lambda g: torch_file(parameters_to_vector(g.values())),
        "torch, one tensor, matched by order, one flat vector",
    ),
    "prefix": (
        lambda g: torch_file({f"_module.{n}": t for n, t in g.items()}),
        "torch, dict of 8 tensors, matched by name, prefix '_module.' removed",
    ),
    "numbered keys": (
        lambda g: torch_file(dict(enumerate(g.values()))),
        "torch, dict of 8 tensors, matched by order",
    ),
    "foreign names": (
        lambda g: torch_file({n.replace(".", "/"): t for n, t in g.items()}),
        "torch, dict of 8 tensors, matched by order",
    ),
    "npz": (numpy_file, "npz, dict of 8 tensors, matched by name"),
    "npz by position": (
        lambda g: lambda d: positional(d, g.values()),
        "npz, dict of 8 tensors, matched by order",
    ),
    "npz big-endian": (
        lambda g: numpy_file({n: t.numpy().astype(">f4") for n, t in g.items()}),
        "npz, dict of 8 tensors, matched by name",
    ),
    "npz columns first": (
        lambda g: numpy_file({n: np.asfortranarray(t.numpy()) for n, t in g.items()}),
        "npz, dict of 8 tensors, matched by name",
    ),
    "npz compressed": (
        lambda g: lambda d: packed(d, g),
        "npz, dict of 8 tensors, matched by name",
    ),
    "safetensors": (
        lambda g: lambda d: hostile.tensors(d, g),
        "safetensors, dict of 8 tensors, matched by name",
    ),
    "safetensors by position": (
        lambda g: lambda d: hostile.tensors(d, {f"grad_{i}": t for i, t in enumerate(g.values())}),
        "safetensors, dict of 8 tensors, matched by order",
    ),
    "Parameters": (
        lambda g: torch_file({n: nn.Parameter(t) for n, t in g.items()}),
        "torch, dict of 8 tensors, matched by name",
    ),
}


def positional(folder, values):
    np.savez(folder / "g.npz", *(np.asarray(v) for v in values))
    return folder / "g.npz"


def packed(folder, table):
    np.savez_compressed(folder / "g.npz", **{n: np.asarray(v) for n, v in table.items()})
    return folder / "g.npz"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_equal_tensors(tmp_path, net, good, form):
    make, recognised = FORMS[form]
    path = make(good)(tmp_path)
    raw = path.read_bytes()
    dump = load_gradients(path, net)
    assert equal(dump.tensors, good)
    assert list(dump.tensors) == [name for name, _ in net.named_parameters()]
    assert not any(tensor.requires_grad for tensor in dump.tensors.values())
    assert dump.recognised == recognised
    assert dump.matched_by in recognised
    assert dump.missing == ()
    assert path.read_bytes() == raw


def test_legacy_file(tmp_path, net, good):
    torch.save(good, tmp_path / "g.pt", _use_new_zipfile_serialization=False)
    assert equal(load_gradients(tmp_path / "g.pt", net).tensors, good)


@pytest.mark.parametrize("form", ["none", "subset", "holes", "list", "short list"])
def test_missing_parameters_are_told(tmp_path, net, good, form):
    kept = {n: t for n, t in good.items() if not n.startswith("body.0")}
    holes = {n: kept.get(n) for n in good}
    raw = {
        "none": good,
        "subset": kept,
        "holes": holes,
        "list": list(holes.values()),
        "short list": list(kept.values()),
    }[form]
    if form == "short list":
        net.body[0].requires_grad_(False)
    dump = load_gradients(hostile.saved(tmp_path, "g.pt", raw), net)
    gone = () if form == "none" else ("body.0.weight", "body.0.bias")
    assert dump.missing == gone
    assert equal(dump.tensors, {n: t for n, t in good.items() if n not in gone})


def test_unique_shapes_place_a_part_of_a_list(net, good):
    head = [good["fc.weight"], good["fc.bias"]]
    dump = match_gradients(head, net, file=FILE, form="in memory")
    assert equal(dump.tensors, {n: good[n] for n in ("fc.weight", "fc.bias")})
    assert dump.recognised.endswith("the only order of shapes that fits")


def subsequences(found, wanted):
    """Slow and plain: every choice of places, in order."""
    return [
        list(places)
        for places in combinations(range(len(wanted)), len(found))
        if [wanted[place] for place in places] == list(found)
    ]


@pytest.mark.parametrize("seed", range(30))
def test_places_by_shape_against_enumeration(seed):
    generator = np.random.default_rng(seed)
    wanted = [(int(x),) for x in generator.integers(0, 4, 7)]
    found = [(int(x),) for x in generator.integers(0, 4, generator.integers(1, 5))]
    all_ways = subsequences(found, wanted)
    ways, places = places_by_shape(found, wanted)
    assert ways == min(2, len(all_ways))
    assert places in all_ways if all_ways else places == []


def test_ten_positions_are_sorted_as_numbers(tmp_path):
    """`arr_10` comes after `arr_9`, whatever the order in the file."""
    net = nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(12)))
    values = [torch.full((2, 2), float(i + 1)) for i in range(12)]
    table = {f"arr_{i}": values[i].numpy() for i in sorted(range(12), key=str)}
    dump = load_gradients(hostile.arrays(tmp_path, table), net)
    assert [float(t[0, 0]) for t in dump.tensors.values()] == [float(i + 1) for i in range(12)]


SPACINGS = {
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
    torch.float32: 2**-23,
    torch.float64: 2**-52,
}


@pytest.mark.parametrize(
    ("rounded", "stored"),
    [(r, s) for r in SPACINGS for s in SPACINGS if torch.promote_types(r, s) is s],
)
def test_precision_is_that_of_the_rounding_not_of_the_storage(tmp_path, rounded, stored):
    net = nn.Linear(3, 4).double()
    generator = torch.Generator().manual_seed(3)
    table = {
        n: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(rounded).to(stored)
        for n, p in net.named_parameters()
    }
    dump = load_gradients(hostile.saved(tmp_path, "g.pt", table), net)
    assert dump.precision == SPACINGS[rounded]
    assert all(tensor.dtype is stored for tensor in dump.tensors.values())


def test_one_value_decides_the_precision_of_its_tensor(net, good):
    """And the coarsest tensor of many values that of the dump: mixed precision rounds some only."""
    table = {n: t.bfloat16().float() for n, t in good.items()}
    table["fc.bias"][-1] = 1 + 2**-20
    dump = match_gradients(table, net, file=FILE, form="in memory")
    assert dump.precision == 2**-7
    for tensor in table.values():
        tensor.view(-1)[-1] = 1 + 2**-20
    dump = match_gradients(table, net, file=FILE, form="in memory")
    assert dump.precision == 2**-23


def test_metadata_comes_with_the_dump(tmp_path, net, good):
    wanted = Metadata(
        batch_size=4,
        input_shape=(1, 28, 28),
        loss="cross_entropy",
        reduction="sum",
        label_smoothing=0.1,
        mode="train",
        mean=(0.5,),
        std=(0.25,),
        versions={"torch": "2.10"},
    )
    text = metadata_to_json(wanted)
    assert metadata_from_json(text) == wanted
    assert metadata_from_json('{"future": 1}') == Metadata()
    dump = load_gradients(hostile.described(tmp_path, text), net)
    assert dump.metadata == wanted
    assert equal(dump.tensors, good)


@pytest.mark.parametrize("raw", ["text", 3, {"fc.bias": 3}, [None, "x"]])
def test_match_refuses_other_objects(net, raw):
    with pytest.raises(InputError):
        match_gradients(raw, net, file=FILE, form="in memory")


def test_match_takes_numpy_and_leaves_it_alone(net, good):
    raw = {n: t.numpy().copy() for n, t in good.items()}
    dump = match_gradients(raw, net, file=FILE, form="in memory")
    dump.tensors["fc.bias"].zero_()
    assert np.array_equal(raw["fc.bias"], good["fc.bias"].numpy())
    assert dump.file is FILE
