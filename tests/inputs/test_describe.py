"""`inspect` tells what is in a file, good or bad, and runs nothing."""

import hostile
import pytest
import torch
from torch import nn

from auditor.inputs import describe


def shapes(description):
    return {line.name: (line.shape, line.dtype) for line in description.tensors}


def state(model):
    names = {k: (tuple(v.shape), str(v.dtype)[6:]) for k, v in model.state_dict().items()}
    return dict(sorted(names.items()))


@pytest.fixture
def model():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(4, 2).half())


def test_whole_module(tmp_path, model):
    found = describe(hostile.saved(tmp_path, "m.pt", model))
    assert found.kind == "torch"
    assert dict(sorted(shapes(found).items())) == state(model)
    assert "torch.nn.modules.conv.Conv2d" in found.classes
    assert found.unsafe == ()
    assert found.notes == ("a whole model of class torch.nn.modules.container.Sequential",)
    assert found.file.bytes == (tmp_path / "m.pt").stat().st_size


@pytest.mark.parametrize("zipped", [True, False])
def test_state_dict_and_list(tmp_path, model, zipped):
    for value in (model.state_dict(), {"model": model.state_dict()}, [*model.parameters()]):
        torch.save(value, tmp_path / "s.pt", _use_new_zipfile_serialization=zipped)
        found = describe(tmp_path / "s.pt")
        wanted = list(state(model).values()) if isinstance(value, dict) else None
        if wanted:
            assert sorted(shapes(found).values()) == sorted(wanted)
        else:
            assert [line.name for line in found.tensors] == ["0", "1", "2", "3", "4", "5"]
        assert found.unsafe == found.classes == ()


def test_safetensors_and_npz(tmp_path):
    table = {"a": torch.ones(2, 3), "b": torch.ones(4)}
    found = describe(hostile.tensors(tmp_path, table, {"gradaudit": "{}"}))
    assert shapes(found) == {"a": ((2, 3), "F32"), "b": ((4,), "F32")}
    assert found.notes == ("metadata keys: 'gradaudit'",)
    found = describe(hostile.arrays(tmp_path, {n: t.numpy() for n, t in table.items()}))
    assert shapes(found) == {"a": ((2, 3), "float32"), "b": ((4,), "float32")}


@pytest.mark.parametrize(
    ("make", "unsafe", "words"),
    [
        (hostile.torch_pickle, "posix.system", "would be refused"),
        (hostile.plain_pickle, "posix.system", "never loaded"),
        (hostile.namespace, "argparse.Namespace", "would be refused"),
        (hostile.bytearray_bomb, "builtins.bytearray", "would be refused"),
        (hostile.script, None, "this is a program"),
        (hostile.exported, None, "this is a program"),
        (hostile.expanded, None, "expanded tensor"),
        (hostile.own_child, None, "a whole model"),
        (hostile.doubling, None, "a whole model"),
    ],
)
def test_bad_files_are_described_and_not_run(tmp_path, make, unsafe, words):
    found = describe(make(tmp_path))
    assert any(words in note for note in found.notes)
    assert unsafe in found.unsafe if unsafe else found.unsafe == ()
    assert not (tmp_path / hostile.MARK).exists()


def test_namespace_checkpoint_still_lists_its_weights(tmp_path):
    found = describe(hostile.namespace(tmp_path))
    assert "state_dict.fc.weight" in shapes(found)
