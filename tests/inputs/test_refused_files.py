"""Every bad file: which error, with which words, in how much time and memory."""

import contextlib
import random
import time
import zipfile
from pathlib import Path

import hostile as bad
import pytest
import torch
from torch import nn

from auditor import inputs
from auditor.errors import AuditError, InputError, UnsafeFileError

MIB = 1 << 20
INF, NAN = float("inf"), float("nan")


def grads(change):
    """A maker of a .pt dump for the LeNet, with `change(good dict)` in the place of the dict."""
    return lambda folder: bad.saved(folder, "grads.pt", change(bad.gradients()))


def ones(name, value):
    return grads(lambda good: bad.with_one(good, name, torch.full_like(good[name], value)))


# Files refused whatever they are given as.
BOTH = [
    ("missing", bad.absent, InputError, "no such file"),
    ("directory", bad.directory, InputError, "a directory"),
    ("empty", bad.empty, InputError, "an empty file"),
    ("text", bad.text, InputError, "a file of another kind"),
    ("picture", bad.picture, InputError, "a picture"),
    (
        "truncated .pt",
        lambda d: bad.cut(bad.saved(d, "m.pt", bad.lenet().state_dict())),
        InputError,
        "trunc",
    ),
    (
        "truncated .safetensors",
        lambda d: bad.cut(bad.tensors(d, bad.gradients())),
        InputError,
        "truncated",
    ),
    ("truncated header", lambda d: bad.safetensors_header(d, 4096), InputError, "truncated"),
    ("header no JSON", lambda d: bad.safetensors_header(d, 2, b"{]"), InputError, "cannot be read"),
    ("plain pickle", bad.plain_pickle, UnsafeFileError, "posix.system"),
    ("plain pickle 2", lambda d: bad.plain_pickle(d, 2), UnsafeFileError, "posix.system"),
    ("torch pickle", bad.torch_pickle, UnsafeFileError, "posix.system"),
    ("legacy pickle", bad.legacy_pickle, UnsafeFileError, "posix.system"),
    ("Namespace", bad.namespace, UnsafeFileError, "argparse.Namespace"),
    ("deflated .pt", bad.deflated, UnsafeFileError, "compressed members"),
    ("bytearray bomb", bad.bytearray_bomb, UnsafeFileError, "builtins.bytearray"),
    ("tensor bomb", bad.tensor_bomb, UnsafeFileError, "torch.FloatTensor"),
    ("storage that lies", bad.storage_lie, UnsafeFileError, "4.0 GiB"),
    ("old storage that lies", lambda d: bad.storage_lie(d, True), UnsafeFileError, "than it holds"),
    ("expanded", bad.expanded, UnsafeFileError, "expanded tensor of shape 1000000x1000000"),
    ("shared", bad.shared_many_times, UnsafeFileError, "18.6 GiB"),
    ("zip of others", lambda d: bad.zip_with(d, "a.txt"), InputError, "a zip archive of something"),
    ("duplicate", lambda d: bad.zip_with(d, "a.npy", "a.npy"), UnsafeFileError, "the same name"),
    ("outside", lambda d: bad.zip_with(d, "../a.npy"), UnsafeFileError, "point outside"),
    ("absolute", lambda d: bad.zip_with(d, "/a.npy"), UnsafeFileError, "point outside"),
    ("encrypted", bad.encrypted, UnsafeFileError, "encrypted"),
    ("huge directory", bad.huge_directory, UnsafeFileError, "directory of 1.0 GiB"),
    ("no opcodes", lambda d: bad.with_pickle(d, b"\x80\x02q"), InputError, "damaged"),
    ("stack empty", lambda d: bad.with_pickle(d, b"\x80\x02R."), InputError, "damaged"),
    ("protocol 4", lambda d: bad.with_pickle(d, b"\x80\x04\x8f."), InputError, "PROTO 4"),
    ("new opcode", lambda d: bad.with_pickle(d, b"\x80\x02\x8f."), InputError, "EMPTY_SET"),
    ("TorchScript", bad.script, InputError, "TorchScript"),
    ("pt2", bad.exported, InputError, "pt2|torch.export"),
]
MODELS = [
    (
        "endless pickle",
        lambda d: bad.with_pickle(d, b"\x80\x02](" + b"K\x01" * 1_100_000 + b"e."),
        UnsafeFileError,
        "more than 1000000 pickle operations",
    ),
    ("long pickle", lambda d: bad.with_pickle(d, bytes(65 * MIB)), UnsafeFileError, "of 65.0 MiB"),
    ("unknown class", lambda d: bad.saved(d, "m.pt", bad.Net()), UnsafeFileError, "hostile.Net"),
    (
        "constructor",
        bad.constructor_bomb,
        UnsafeFileError,
        "a call of 'torch.nn.modules.linear.Lin",
    ),
    ("partial", bad.partial_of_encode, UnsafeFileError, "functools.partial of '_codecs.encode'"),
    ("own child", bad.own_child, InputError, "contain themselves"),
    ("doubling", bad.doubling, InputError, "contain themselves"),
    ("NaN", bad.nan_model, InputError, "NaN or infinity in 'fc.bias'"),
    ("hooks", lambda d: bad.saved(d, "m.pt", hooked()), InputError, "hooks"),
    ("npz", lambda d: bad.arrays(d, {"w": [1.0]}), InputError, "an .npz archive"),
    ("number", lambda d: bad.saved(d, "m.pt", 3), InputError, "type 'int'"),
    ("no weights", lambda d: bad.saved(d, "m.pt", {"epoch": 3}), InputError, "the keys 'epoch'"),
    ("script untrusted", bad.script, UnsafeFileError, "--trust-model"),
    ("pt2 untrusted", bad.exported, UnsafeFileError, "--trust-model"),
]
DUMPS = [
    ("npz bomb", bad.npz_bomb, UnsafeFileError, "claims 256.0 MiB"),
    ("lying npz", bad.lying_npz, UnsafeFileError, "claims 4.0 TiB"),
    ("small lie", lambda d: bad.lying_npz(d, 1 << 20), UnsafeFileError, "whose header claims 4.0"),
    ("objects", bad.object_npz, UnsafeFileError, "pickled objects"),
    (
        "truncated .npz",
        lambda d: bad.cut(bad.arrays(d, bad.gradients()), 0.9),
        InputError,
        "truncated",
    ),
    ("npz no header", lambda d: bad.zip_with(d, "a.npy"), InputError, "no valid .npy header"),
    ("damaged npz", lambda d: flipped(bad.arrays(d, bad.gradients())), InputError, "damaged"),
    ("a model", lambda d: bad.saved(d, "m.pt", bad.lenet()), InputError, "torch|auditor.zoo.LeNet"),
    ("NaN", ones("fc.bias", NAN), InputError, "NaN or infinity in 'fc.bias'"),
    ("infinity", ones("body.0.bias", INF), InputError, "infinity in 'body.0.bias'"),
    (
        "zeros",
        grads(lambda g: {n: torch.zeros_like(t) for n, t in g.items()}),
        InputError,
        "dump of zeros",
    ),
    (
        "integers",
        grads(lambda g: {n: t.int() for n, t in g.items()}),
        InputError,
        r"'body.0.weight' \(int32\)",
    ),
    (
        "complex",
        grads(lambda g: bad.with_one(g, "fc.bias", g["fc.bias"] + 0j)),
        InputError,
        "complex64",
    ),
    (
        "sparse",
        grads(lambda g: bad.with_one(g, "fc.weight", g["fc.weight"].to_sparse())),
        InputError,
        "a sparse tensor",
    ),
    ("update", grads(lambda g: {"delta": g}), InputError, "--kind update"),
    ("checkpoint", grads(lambda g: {"state_dict": g}), InputError, "checkpoint"),
    ("rounds", grads(lambda g: [g, g]), InputError, "2 rounds"),
    (
        "weights",
        lambda d: bad.saved(d, "g.pt", bad.lenet().state_dict()),
        InputError,
        "own weights",
    ),
    ("no tensors", grads(lambda g: {"fc.bias": "x"}), InputError, "'str' instead of a tensor"),
    ("empty dict", grads(lambda g: {}), InputError, "empty dump"),
    ("holes only", grads(lambda g: [None] * len(g)), InputError, "empty dump"),
    ("twice", grads(lambda g: g | {"module.fc.bias": g["fc.bias"]}), InputError, "both for"),
    ("ambiguous", grads(lambda g: [g["body.2.bias"]]), InputError, "fit in several ways"),
    (
        "foreign names",
        lambda d: bad.tensors(d, {"a": torch.ones(3), "b": torch.ones(2)}),
        InputError,
        "does not have: 'a', 'b'",
    ),
    (
        "per sample",
        grads(lambda g: {n: torch.stack([t, t, t]) for n, t in g.items()}),
        InputError,
        "per-sample gradients of 3 samples",
    ),
    (
        "another model",
        lambda d: bad.saved(d, "g.pt", bad.gradients(bad.lenet(100, 32, 3))),
        InputError,
        r"3 of another shape: 'body.0.weight' \(12x3x5x5 instead of 12x1x5x5\)",
    ),
    (
        "another list",
        lambda d: bad.saved(d, "g.pt", list(bad.gradients(nn.Linear(3, 4)).values())),
        InputError,
        "2 tensors for 8 parameters",
    ),
    ("metadata", lambda d: bad.described(d, "[1]"), InputError, "a JSON object"),
    ("batch size 0", lambda d: bad.described(d, '{"batch_size": 0}'), InputError, "'batch_size'"),
    ("batch size abc", lambda d: bad.described(d, '{"batch_size": "abc"}'), InputError, "'abc'"),
    (
        "mean length",
        lambda d: bad.described(d, '{"input_shape": [3, 8, 8], "mean": [0.5]}'),
        InputError,
        "each of 3 channels in the metadata field 'mean'",
    ),
    ("mode", lambda d: bad.described(d, '{"mode": "test"}'), InputError, "'mode'"),
    ("reduction", lambda d: bad.described(d, '{"reduction": "none"}'), InputError, "'reduction'"),
    ("std", lambda d: bad.described(d, '{"std": [-1.0]}'), InputError, "'std'"),
    (
        "smoothing",
        lambda d: bad.described(d, '{"label_smoothing": 1}'),
        InputError,
        "'label_smoothing'",
    ),
    (
        "shape",
        lambda d: bad.described(d, '{"input_shape": [3, 65536, 65536]}'),
        InputError,
        "2..28",
    ),
]


def hooked():
    model = nn.Sequential(nn.Linear(2, 2))
    model._forward_hooks[0] = nn.Linear
    return model


def flipped(path):
    """One byte changed in the numbers of the first member, which its checksum shows."""
    raw = bytearray(path.read_bytes())
    raw[300] ^= 0xFF
    path.write_bytes(raw)
    return path


def as_model(path):
    return inputs.load_model(path, arch=None)


def as_dump(path):
    return inputs.load_gradients(path, bad.lenet())


def rows():
    for read, table in ((as_model, BOTH + MODELS), (as_dump, BOTH + DUMPS)):
        for name, make, error, words in table:
            yield pytest.param(read, make, error, words, id=f"{read.__name__}-{name}")


def peak(*, reset=False):
    """Highest resident memory since the last reset, in bytes; 0 where only Linux could tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize(("read", "make", "error", "words"), list(rows()))
def test_bad_file_is_refused_quickly_and_in_little_memory(tmp_path, read, make, error, words):
    path = make(tmp_path)
    before, started = peak(reset=True), time.perf_counter()
    with pytest.raises(error, match=words) as raised:
        read(path)
    assert time.perf_counter() - started < 5
    assert peak() - before < 200 * MIB
    assert not (tmp_path / bad.MARK).exists()
    assert str(tmp_path) not in raised.value.found or "no such file" in raised.value.found
    assert raised.value.expected
    assert raised.value.todo


def test_the_evil_pickle_would_run_if_it_were_unpickled(tmp_path):
    """Else the rows above would prove nothing."""
    torch.load(bad.torch_pickle(tmp_path), weights_only=False)
    assert (tmp_path / bad.MARK).exists()


def test_missing_extra_and_misshapen_names_come_together(tmp_path):
    with pytest.raises(InputError) as raised:
        inputs.load_model(bad.misfit(tmp_path), arch="lenet:1x28x10")
    assert "1 missing: 'fc.bias'" in raised.value.found
    assert "1 unexpected: 'fc.wait'" in raised.value.found
    assert "1 of another shape: 'body.2.bias' (13 instead of 12)" in raised.value.found


def test_long_lists_of_names_are_cut(tmp_path):
    state = {f"layer{i}.weight": torch.zeros(1) for i in range(30)}
    with pytest.raises(InputError, match=r"30 unexpected: .*'layer9.weight' and 20 more"):
        inputs.load_model(bad.saved(tmp_path, "m.pt", state), arch="lenet")


def test_names_from_files_are_escaped(tmp_path):
    state = {"\x1b[31mred\x07": torch.ones(2)}
    with pytest.raises(InputError) as raised:
        inputs.load_gradients(bad.saved(tmp_path, "g.pt", state), nn.Linear(3, 3))
    assert "\x1b" not in str(raised.value)
    assert "\x07" not in str(raised.value)


@pytest.mark.parametrize("change", ["difference", "list"])
def test_difference_of_state_dicts_is_told_apart(tmp_path, change):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    state = {name: torch.ones_like(value) for name, value in model.state_dict().items()}
    path = bad.saved(tmp_path, "g.pt", state if change == "difference" else list(state.values()))
    with pytest.raises(InputError, match=r"'1.running_mean'.*the difference of two"):
        inputs.load_gradients(path, model)


def test_weights_after_training_are_no_gradients(tmp_path):
    model = bad.lenet()
    state = {name: value + 0.01 for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match="own weights, or nearly so"):
        inputs.load_gradients(bad.saved(tmp_path, "g.pt", state), model)


def test_second_root_in_an_archive_cannot_hide_a_pickle(tmp_path):
    path = bad.saved(tmp_path, "m.pt", {"w": torch.ones(2)})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("zz/data.pkl", b"\x80\x02cposix\nsystem\n.")
    with pytest.raises(InputError, match="several folders"):
        inputs.load_model(path)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("form", ["torch", "legacy", "safetensors", "npz"])
def test_flipped_bytes_give_an_answer_or_one_of_our_errors(tmp_path, form, seed):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 3))
    table = bad.gradients(model)
    path = {
        "torch": lambda: bad.saved(tmp_path, "m.pt", model),
        "legacy": lambda: bad.saved(tmp_path, "m.pt", table, zipped=False),
        "safetensors": lambda: bad.tensors(tmp_path, table, {"gradaudit": '{"batch_size": 2}'}),
        "npz": lambda: bad.arrays(tmp_path, table),
    }[form]()
    good = path.read_bytes()
    rng = random.Random(seed)
    for _ in range(40):
        raw = bytearray(good)
        for _ in range(rng.choice([1, 1, 3])):
            raw[rng.randrange(min(len(raw), 4000))] = rng.randrange(256)
        path.write_bytes(raw if rng.random() < 0.9 else raw[: rng.randrange(1, len(raw))])
        for read in (as_model, lambda p: inputs.load_gradients(p, model), inputs.describe):
            with contextlib.suppress(AuditError):
                read(path)


def test_peak_would_show_a_bomb():
    before = peak(reset=True)
    torch.ones(300 * MIB // 4)
    assert peak() == 0 or peak() - before > 200 * MIB
