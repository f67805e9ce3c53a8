"""The report leaks nothing that nobody asked for: not the picture, not the label, not who ran it.

A recognisable picture, label and user are planted. Then everything that a run left behind is
searched for them, in every notation that we could think of.
"""

import base64
import json
import re
import socket
import struct
import tempfile
import zlib

import pytest
import torch
from PIL import Image
from runs import contents, gradaudit, pictures
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from auditor import capture
from auditor.exhibits import png_of

USER = "zaphod_beeblebrox"
CLASSES = 20011
LABEL = 14593  # also the index in the data set: five digits do not turn up by chance
PICTURE = pictures()[0]  # (1, 8, 8)
BANNER = b"<strong>TLP:RED</strong>"
FORMATS = ("json", "sarif", "junit", "markdown")
TOLD = {
    *("report/audit.json", "report/report.html", "data in report.html", "stdout", "stderr"),
    *(f"x.{form}" for form in FORMATS),
}
# What may hold evidence when it was asked for; SARIF, JUnit and Markdown never do.
SHOWING = ["data in report.html", "report/audit.json", "report/report.html", "x.json"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The user's files, far away from where the reports go."""
    folder = tmp_path_factory.mktemp("far") / "home" / USER
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Sigmoid(), nn.Linear(16, CLASSES))
    with capture(net.eval(), folder / "grads.safetensors"):
        F.cross_entropy(net(PICTURE[None]), torch.tensor([LABEL])).backward()
    net.zero_grad()
    torch.save(net, folder / "model.pt")
    torch.save(net.state_dict(), folder / "weights.pt")
    torch.save({"inputs": PICTURE[None], "labels": torch.tensor([LABEL])}, folder / "truth.pt")
    Image.fromarray((PICTURE[0].numpy() * 255).round().astype("uint8")).save(folder / "input.png")
    write_data_set(folder / "sets")
    return folder


def write_data_set(folder):
    """In MNIST's form; the planted picture is number LABEL."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    grid = (PICTURE[0].numpy() * 255).round().astype("uint8").tobytes()
    images = bytes(64 * LABEL) + grid
    for part in ("train", "t10k"):
        header = struct.pack(">4i", 2051, LABEL + 1, 8, 8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images)
        labels = struct.pack(">2i", 2049, LABEL + 1) + bytes(LABEL + 1)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)


@pytest.fixture
def rooms(tmp_path, monkeypatch):
    """Where the run takes place, and where its temporary files go."""
    for name in ("here", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


COMMANDS = {
    "scan": ("scan", "{home}/model.pt", "{home}/grads.safetensors"),
    "scan with truth": (
        *("scan", "{home}/model.pt", "{home}/grads.safetensors"),
        *("--truth", "{home}/truth.pt"),
    ),
    "simulate a picture": (
        *("simulate", "{home}/model.pt", "--input", "{home}/input.png", "--label", str(LABEL)),
    ),
    "simulate, with equals signs": (
        *("simulate", "{home}/model.pt", "--input={home}/input.png", f"--label={LABEL}"),
    ),
    "simulate a sample": (
        *("simulate", "{home}/model.pt", "--data", "{home}/sets", "--dataset", "mnist"),
        *("--index", str(LABEL)),
    ),
}


def run_in(rooms, home, command, *flags):
    """The text of both streams and every file that the run left behind."""
    arguments = [part.format(home=home) for part in COMMANDS[command]]
    before = contents(home)
    files = [part for form in FORMATS for part in (f"--{form}", f"x.{form}")]
    run = gradaudit(
        *arguments,
        *("--out", "report", "--seed", "1", *files, *flags),
        cwd=rooms / "here",
        env={"USER": USER, "LOGNAME": USER, "HOME": str(home)},
    )
    assert run.code == 0, run.err
    assert contents(home) == before
    assert contents(rooms / "tmp") == {}
    made = sorted(path.name for path in (rooms / "here").iterdir())
    assert made == sorted(["report", *(f"x.{form}" for form in FORMATS)])
    left = {str(name): data for name, data in contents(rooms / "here").items()}
    left["data in report.html"] = inside(left["report/report.html"])
    return left | {"stdout": run.out.encode(), "stderr": run.err.encode()}


def inside(page):
    """The audit that the page carries, unpacked: packed, it would hide from every search."""
    [block] = re.findall(rb'<template id="audit-data">([^<]*)</template>', page)
    return zlib.decompress(base64.b64decode(block))


# --------------------------------------------------------------------------- the search


def notations(picture):
    """A picture (C, H, W), pixels 0..1, as bytes that could betray it."""
    for dtype in (torch.float16, torch.float32, torch.float64):
        for values in (picture, picture * 255):
            raw = values.to(dtype).contiguous().numpy()
            yield from (raw.tobytes(), raw.byteswap().tobytes())
    grid = (picture * 255).round().to(torch.uint8)
    yield from (grid.numpy().tobytes(), (255 - grid).numpy().tobytes(), png_of(picture))


def cores(raw):
    """The raw bytes, and their middle in hexadecimal and base64 at every alignment."""
    yield raw
    yield raw.hex().encode()
    for shift in range(3):
        yield base64.b64encode(raw[shift:])[:-8]


def in_figures(picture, text):
    """Whether four neighbouring pixels are spelled out as numbers."""
    values = picture.flatten().tolist()
    styles = [lambda v: str(round(v * 255)), repr, lambda v: f"{v * 255:.1f}"]
    styles += [lambda v, places=places: f"{v:.{places}f}" for places in (2, 3, 4, 6)]
    for style in styles:
        words = [re.escape(style(value)) for value in values]
        for four in fours(words):
            if re.search(r"(?<![\d.])" + r"\d*[\s,;:|\[\]]+".join(four), text):
                return True
    return False


def fours(words):
    return [words[start : start + 4] for start in range(0, len(words) - 3, 4)]


def shows_picture(files, pictures_of_it):
    return [
        name
        for name, data in files.items()
        for picture in pictures_of_it
        if any(core in data for raw in notations(picture) for core in cores(raw))
        or in_figures(picture, data.decode("utf-8", "replace"))
    ]


def shows_image(files):
    """Any picture at all: there is no reason for one in a report without evidence."""
    return [n for n, d in files.items() if b"\x89PNG" in d or b"iVBORw0" in d or b"<img" in d]


def shows_label(files):
    number = re.compile(rb"(?<![0-9A-Za-z.])%d(?![0-9A-Za-z])" % LABEL)
    return [name for name, data in files.items() if number.search(data)]


def shows_person(files, home, rooms):
    words = [USER, str(home), str(home.parent), str(rooms), f"{home.parent.name}/"]
    words += [socket.gethostname()] if len(socket.gethostname()) > 5 else []
    return [(name, word) for name, data in files.items() for word in words if word.encode() in data]


@pytest.mark.parametrize(
    "written",
    [
        lambda p: p.numpy().tobytes(),
        lambda p: b"x" + base64.b64encode(b"ab" + p.double().numpy().tobytes()),
        lambda p: b"data:image/png;base64," + base64.b64encode(png_of(p)),
        lambda p: (p * 255).round().to(torch.uint8).numpy().tobytes().hex().encode(),
        lambda p: json.dumps(p.tolist()).encode(),
        lambda p: json.dumps((p * 255).round().int().flatten().tolist()).encode(),
        lambda p: ", ".join(f"{v:.3f}" for v in p.flatten()).encode(),
    ],
    ids=["raw", "base64", "png", "hex", "json", "integers", "three places"],
)
def test_the_search_for_the_picture_can_fail(written):
    assert shows_picture({"file": b"before" + written(PICTURE) + b"after"}, [PICTURE]) == ["file"]
    assert not shows_picture({"file": b"before" + written(PICTURE.sqrt()) + b"after"}, [PICTURE])


@pytest.mark.parametrize("text", ["class {}", '"label": {},', "[{}]", "--label={}", "{}.0", "({})"])
def test_the_search_for_the_label_can_fail(text):
    assert shows_label({"file": text.format(LABEL).encode()}) == ["file"]
    assert not shows_label({"file": text.format(LABEL + 1).encode()})
    assert not shows_label({"file": text.format(f"7{LABEL}2").encode()})


# --------------------------------------------------------------------------- the promise


@pytest.fixture(scope="module")
def recovered(home, tmp_path_factory):
    """What the attack finds, picture by picture: the runs below find the same, bit by bit."""
    found = []
    for number, command in enumerate(COMMANDS):
        folder = tmp_path_factory.mktemp("recovered")
        (folder / "here").mkdir()
        arguments = [part.format(home=home) for part in COMMANDS[command]]
        run = gradaudit(
            *arguments, "--out", f"{number}", "--evidence", "separate", "--seed", "1", cwd=folder
        )
        assert run.code == 0, run.err
        found.append(load_file(folder / f"{number}" / "evidence" / "evidence.safetensors"))
    assert [entry["labels"].tolist() for entry in found] == [[LABEL]] * 4 + [[0]]
    for entry in found:
        assert F.mse_loss(entry["inputs"][0], PICTURE) < 1e-4
    return [PICTURE, *(entry["inputs"][0] for entry in found)]


@pytest.mark.parametrize("evidence", ["none", "separate"])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_recovered_is_in_the_outputs(rooms, home, recovered, command, evidence):
    left = run_in(rooms, home, command, "--evidence", evidence)
    kept = {name for name in left if name.startswith("report/evidence")}
    told = {name: data for name, data in left.items() if name not in kept}
    assert told.keys() == TOLD
    assert bool(kept) == (evidence == "separate")
    assert shows_picture(told, recovered) == []
    assert shows_image(told) == []
    assert shows_label(told) == []
    assert shows_person(told, home, rooms) == []
    assert BANNER not in told["report/report.html"]
    assert json.loads(told["report/audit.json"])["exhibits"] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_who_asks_for_it_gets_it_under_a_red_banner(rooms, home, recovered, command):
    """Also the proof that the search above looks at the right things."""
    left = run_in(rooms, home, command, "--evidence", "embed")
    assert left.keys() == TOLD
    assert sorted(set(shows_picture(left, recovered))) == SHOWING
    assert sorted(shows_image(left)) == SHOWING
    if "sample" not in command:
        assert sorted(shows_label(left)) == SHOWING
    assert BANNER in left["report/report.html"]
    assert b"<title>TLP:RED" in left["report/report.html"]
    assert shows_person(left, home, rooms) == []


def test_the_evidence_folder_holds_what_was_recovered(rooms, home, recovered):
    left = run_in(rooms, home, "scan", "--evidence", "separate")
    folder = {name: data for name, data in left.items() if name.startswith("report/evidence/")}
    assert sorted(set(shows_picture(folder, recovered))) == sorted(folder)
    assert len(folder) == 2


def interrupted_in(rooms, home, monkeypatch, *flags, **env):
    """Everything that lies about after Ctrl-C in the third attack."""

    def stops(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("auditor.attacks.IDLG.run", stops)
    scan = ("scan", home / "model.pt", home / "grads.safetensors", "--seed", "1")
    attacks = ("--attacks", "labels,images.layers,images.idlg")
    run = gradaudit(*scan, *attacks, *flags, cwd=rooms / "here", env=env)
    assert run.code == 130
    left = {str(name): data for name, data in contents(rooms).items()}
    return left | {"stdout": run.out.encode(), "stderr": run.err.encode()}


@pytest.mark.parametrize(
    ("flags", "env"), [(("--evidence", "none"), {}), (("--evidence", "embed"), {"CI": "true"})]
)
def test_an_interrupted_run_leaves_nothing_recovered(
    rooms, home, recovered, monkeypatch, flags, env
):
    left = interrupted_in(rooms, home, monkeypatch, *flags, **env)
    assert shows_picture(left, recovered) == []
    assert shows_label(left) == []
    assert left.keys() == {"stdout", "stderr"}


def test_what_an_interrupted_run_keeps_is_its_owners_alone(rooms, home, recovered, monkeypatch):
    """Also the proof that the search above looks at the right things."""
    left = interrupted_in(rooms, home, monkeypatch, "--evidence", "separate")
    [kept] = left.keys() - {"stdout", "stderr"}
    assert set(shows_picture(left, recovered)) == {kept}
    folder = (rooms / kept).parent
    assert folder.name == ".gradaudit-report-unfinished"
    assert (folder.stat().st_mode & 0o777, (rooms / kept).stat().st_mode & 0o777) == (0o700, 0o600)


def test_an_architecture_file_is_named_without_its_folder(rooms, home):
    (home / "net.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Flatten(), "
        f"nn.Linear(64, 16), nn.Sigmoid(), nn.Linear(16, {CLASSES}))\n"
    )
    run = gradaudit(
        *("scan", home / "weights.pt", home / "grads.safetensors"),
        *("--arch", f"{home}/net.py:make", "--out", "report", "--attacks", "labels"),
        *("--evidence", "none"),
        cwd=rooms / "here",
    )
    assert run.code == 0, run.err
    left = {str(name): data for name, data in contents(rooms / "here").items()}
    assert shows_person(left | {"err": run.err.encode()}, home, rooms) == []
    command = json.loads(left["report/audit.json"])["provenance"]["command"]
    assert command[:5] == ["gradaudit", "scan", "weights.pt", "grads.safetensors", "--arch"]
    assert command[5] == "net.py:make"


def test_a_crash_tells_nothing(rooms, home, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError(f"label {LABEL}, pixels {PICTURE.tolist()}, {home}")

    monkeypatch.setattr("auditor.audit.findings_of", fails)
    run = gradaudit("scan", home / "model.pt", home / "grads.safetensors", cwd=rooms / "here")
    assert run.code == 5
    streams = {"stdout": run.out.encode(), "stderr": run.err.encode()}
    assert shows_picture(streams, [PICTURE]) == []
    assert shows_label(streams) == []
    assert shows_person(streams, home, rooms) == []
