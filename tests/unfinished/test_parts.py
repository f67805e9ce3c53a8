"""A finished part as a file and back, and files that are none."""

import json
import struct
from dataclasses import fields, replace

import pytest
import torch
from claims_of import KEY, everything, labels_claim, row
from safetensors.torch import load, save

from auditor.unfinished import Claim
from auditor.unfinished.parts import read_part, to_bytes


def same(one, other):
    """Equality to the last bit, field by field; not a number equals itself."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    if hasattr(one, "__dataclass_fields__"):
        pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(one)]
        return type(one) is type(other) and all(same(a, b) for a, b in pairs)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


PARTS = {
    "everything": everything(),
    "nothing": Claim("images.lm", 0.0, replace(everything().recovery, inputs=None, courses=())),
    "a failure": Claim("images.lm", 3.5, None, "out of memory"),
    "labels": labels_claim(),
    "a row": row(),
}


@pytest.mark.parametrize("name", PARTS)
def test_a_part_comes_back_to_the_last_bit(tmp_path, name):
    path = tmp_path / "part"
    path.write_bytes(to_bytes(PARTS[name], KEY))
    assert same(read_part(path, KEY), PARTS[name])
    assert read_part(path, "another") is None


def test_the_comparison_can_fail():
    claim = everything()
    near = replace(claim.recovery, inputs=claim.recovery.inputs + 1e-16 + 1e-15)
    assert not same(claim, replace(claim, recovery=near))
    assert not same(claim, replace(claim, seconds=1 / 7 + 1e-16))


def told(content):
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["part"])


def forged(change, part=None):
    """The file of a part whose JSON was changed."""
    content = to_bytes(part or everything(), KEY)
    document = told(content)
    change(document)
    return save(load(content), metadata={"part": json.dumps(document)})


def setting(name, value):
    return lambda document: document["record"].__setitem__(name, value)


def nested(name, value):
    return lambda document: document["record"]["recovery"].__setitem__(name, value)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95",
        to_bytes(everything(), KEY)[:-1],
        to_bytes(everything(), KEY)[:100],
        save({"x": torch.zeros(1)}),
        save({"x": torch.zeros(1)}, metadata={"part": "{"}),
        save({"x": torch.zeros(1)}, metadata={"part": "[" * 20_000}),
        save({"x": torch.zeros(1)}, metadata={"part": "[]"}),
        forged(lambda document: document.pop("key")),
        forged(lambda document: document.update(kind="audit")),
        forged(setting("seconds", "long")),
        forged(setting("unknown", 1)),
        forged(lambda document: document["record"].pop("failure")),
        forged(nested("evaluations", True)),
        forged(nested("assumed", "smooth")),
        forged(nested("inputs", {"tensor": "9999", "device": "cpu"})),
        forged(nested("inputs", {"tensor": "0000", "device": "nowhere"})),
        forged(nested("inputs", {"tensor": "0000"})),
        forged(nested("inputs", 3)),
        forged(setting("band", "purple"), row()),
        forged(setting("score", "7"), row()),
    ],
)
def test_what_is_no_part_of_ours_is_refused(tmp_path, content):
    path = tmp_path / "part"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no part of an audit"):
        read_part(path, KEY)


def test_a_forged_file_is_read_when_nothing_was_changed(tmp_path):
    path = tmp_path / "part"
    path.write_bytes(forged(lambda document: None))
    assert same(read_part(path, KEY), everything())
