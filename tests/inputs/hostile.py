"""Makes bad files. Each maker writes one into a folder and gives its path."""

import io
import os
import pickle
import struct
import warnings
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from auditor import zoo

MARK = "executed.txt"  # a pickle that runs leaves this in the folder


class Net(nn.Module):
    """A network of the user's own, which only the user's code can build."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, folder):
        self.command = f"touch '{folder / MARK}'"

    def __reduce__(self):
        return os.system, (self.command,)


class Calls:
    """Calls `target(*arguments)` when it is unpickled."""

    def __init__(self, target, *arguments):
        self.made = target, arguments

    def __reduce__(self):
        return self.made


def lenet(classes=10, size=28, channels=1):
    return zoo.uniform_weights(zoo.LeNet(channels, size, classes))


def gradients(module=None, seed=0):
    module = module or lenet()
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(p.shape, generator=generator) for n, p in module.named_parameters()}


def saved(folder, name, value, *, zipped=True):
    torch.save(value, folder / name, _use_new_zipfile_serialization=zipped)
    return folder / name


def tensors(folder, table, metadata=None):
    save_file(table, folder / "grads.safetensors", metadata=metadata)
    return folder / "grads.safetensors"


def described(folder, text):
    return tensors(folder, gradients(), {"gradaudit": text})


def arrays(folder, table):
    np.savez(folder / "grads.npz", **table)
    return folder / "grads.npz"


def cut(path, keep=0.6):
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    return path


def absent(folder):
    return folder / "none.pt"


def directory(folder):
    return folder


def empty(folder):
    (folder / "empty.pt").touch()
    return folder / "empty.pt"


def picture(folder):
    Image.new("RGB", (8, 8)).save(folder / "cat.png")
    return (folder / "cat.png").rename(folder / "cat.pt")


def text(folder):
    (folder / "notes.pt").write_text("these are no weights\n")
    return folder / "notes.pt"


def plain_pickle(folder, protocol=4):
    (folder / "evil.pkl").write_bytes(pickle.dumps(Evil(folder), protocol))
    return folder / "evil.pkl"


def torch_pickle(folder):
    return saved(folder, "evil.pt", {"fc.weight": Evil(folder)})


def legacy_pickle(folder):
    torch.save([Evil(folder)], folder / "evil.pt", _use_new_zipfile_serialization=False)
    return folder / "evil.pt"


def namespace(folder):
    checkpoint = {"state_dict": lenet().state_dict(), "args": Namespace(lr=0.1)}
    return saved(folder, "checkpoint.pt", checkpoint)


def script(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(str(folder / "model.pt"))
    return folder / "model.pt"


def exported(folder):
    program = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, folder / "model.pt2")
    return folder / "model.pt2"


def repacked(path, compression=zipfile.ZIP_STORED, change=lambda name, raw: raw):
    """The same archive with other members, as a hand-made file would have them."""
    source = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", compression) as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))
    return path


def deflated(folder):
    return repacked(saved(folder, "m.pt", lenet().state_dict()), zipfile.ZIP_DEFLATED)


def with_pickle(folder, raw):
    """A torch file whose data.pkl is `raw`."""
    path = saved(folder, "made.pt", [torch.zeros(4)])
    return repacked(path, change=lambda name, old: raw if name.endswith("data.pkl") else old)


def bytearray_bomb(folder):
    return with_pickle(folder, pickle.dumps([Calls(bytearray, 1 << 40)], 2))


def tensor_bomb(folder):
    raw = b"\x80\x02]ctorch\nFloatTensor\n\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85Ra."
    return with_pickle(folder, raw)


def constructor_bomb(folder):
    large = b"J" + struct.pack("<i", 1 << 30)
    call = b"ctorch.nn.modules.linear\nLinear\n" + large * 2 + b"\x86R."
    return with_pickle(folder, b"\x80\x02" + call)


def partial_of_encode(folder):
    """A whole model with a preset call of something that is no network."""
    model = nn.Linear(2, 2)
    model.preset = Calls(__import__("functools").partial, __import__("_codecs").encode)
    return saved(folder, "m.pt", model)


def storage_lie(folder, legacy=False):
    path = folder / "lie.pt"
    torch.save([torch.zeros(4)], path, _use_new_zipfile_serialization=not legacy)
    claim = b"J" + struct.pack("<i", 1 << 30)

    def lie(name, raw):
        at = raw.index(b"cpuq\x05K\x04") + 5
        return raw[:at] + claim + raw[at + 2 :]

    if legacy:
        path.write_bytes(lie("", path.read_bytes()))
        return path
    return repacked(path, change=lambda n, raw: lie(n, raw) if n.endswith("data.pkl") else raw)


def expanded(folder):
    return saved(folder, "m.pt", {"fc.weight": torch.zeros(1).expand(1_000_000, 1_000_000)})


def shared_many_times(folder):
    """Thousands of views of one storage: each is honest, together they are not."""
    base = torch.zeros(1_000_000)
    return saved(folder, "m.pt", {f"p{i}": base[:] for i in range(5000)})


def own_child(folder):
    model = nn.Sequential(nn.Linear(2, 2))
    vars(model)["_modules"]["self"] = model
    return saved(folder, "m.pt", model)


def doubling(folder):
    """Forty levels, each holding the one below twice: 2**40 paths."""
    model = nn.Sequential(nn.Linear(2, 2))
    for _ in range(40):
        model = nn.Sequential(model, model)
    return saved(folder, "m.pt", model)


def npz_bomb(folder):
    np.savez_compressed(folder / "bomb.npz", w=np.zeros(1 << 26, np.float32))
    return folder / "bomb.npz"


def lying_npz(folder, count=1 << 40):
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(folder / "lie.npz", "w") as archive:
        archive.writestr("w.npy", header.getvalue() + bytes(16))
    return folder / "lie.npz"


def object_npz(folder):
    np.savez(folder / "objects.npz", w=np.array([Evil(folder)], dtype=object))
    return folder / "objects.npz"


def zip_with(folder, *names, name="odd.npz"):
    with warnings.catch_warnings(), zipfile.ZipFile(folder / name, "w") as archive:
        warnings.simplefilter("ignore")  # of the duplicate that is wanted here
        for member in names:
            archive.writestr(member, b"x")
    return folder / name


def encrypted(folder):
    path = zip_with(folder, "a.npy")
    raw = bytearray(path.read_bytes())
    raw[6] |= 1
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    return path


def huge_directory(folder):
    path = zip_with(folder, "a.npy")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x05\x06")
    raw[at + 12 : at + 16] = struct.pack("<I", 1 << 30)
    path.write_bytes(raw)
    return path


def safetensors_header(folder, claim, header=b"{}"):
    (folder / "x.safetensors").write_bytes(struct.pack("<Q", claim) + header)
    return folder / "x.safetensors"


def with_one(table, name, value):
    return {**table, name: value}


def nan_model(folder):
    model = lenet()
    with torch.no_grad():
        model.fc.bias[0] = float("nan")
    return saved(folder, "m.pt", model)


def misfit(folder):
    """A state_dict with one name missing, one too many and one of another shape."""
    state = lenet().state_dict()
    state["fc.wait"] = state.pop("fc.bias")
    state["body.2.bias"] = torch.zeros(13)
    return saved(folder, "m.pt", state)


def factory(folder, body):
    path = Path(folder / "arch.py")
    path.write_text(body)
    return path
