"""The picture on the terminal: right colours, and only where people asked for it and can see it."""

import base64
import io
import json
import re
import struct
from dataclasses import replace

import pytest
from rich.console import Console

from auditor.report.terminal_picture import half_blocks, pixels_of, print_pictures

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
CELL = re.compile(r"\x1b\[38;2;(\d+;\d+;\d+);48;2;(\d+;\d+;\d+)m(▀+)")


@pytest.fixture(autouse=True)
def _a_good_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def terminal(**settings):
    ready = {"force_terminal": True, "color_system": "truecolor", "width": 100} | settings
    return Console(file=io.StringIO(), legacy_windows=False, **ready)


def shown(audit, folder, **settings):
    console = terminal(**settings)
    print_pictures(audit, folder, console)
    return console.file.getvalue()


def png(rows):
    from PIL import Image

    image = Image.new("RGB", (len(rows[0]), len(rows)))
    image.putdata([pixel for row in rows for pixel in row])
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def test_each_block_is_two_pixels():
    console = terminal()
    for line in half_blocks([[[RED, GREEN], [BLUE, WHITE]]]):
        console.print(line)
    cells = [(upper, lower) for upper, lower, _ in CELL.findall(console.file.getvalue())]
    assert cells == [("255;0;0", "0;0;255"), ("0;255;0", "255;255;255")]


def test_an_odd_row_has_no_lower_half():
    [first, second] = half_blocks([[[RED], [RED], [GREEN]]])
    assert first.plain == second.plain == "▀  "
    assert second.spans[0].style.bgcolor is None


def test_a_shorter_picture_ends_earlier():
    lines = half_blocks([[[RED]] * 2, [[BLUE]] * 4])
    assert [line.plain for line in lines] == ["▀  ▀  ", "   ▀  "]


def test_small_pictures_grow_by_a_whole_factor_and_large_ones_shrink():
    assert pixels_of(png([[RED, GREEN], [BLUE, WHITE]]))[0] == [RED] * 16 + [GREEN] * 16
    small = pixels_of(png([[RED] * 12] * 6))
    assert (len(small), len(small[0])) == (12, 24)
    large = pixels_of(png([[BLUE] * 90] * 300))
    assert (len(large), len(large[0])) == (32, 10)
    assert set(large[5]) == {BLUE}


def test_the_embedded_picture(audits, tmp_path):
    audit = audits["embedded"]
    text = shown(audit, tmp_path)
    assert f"Rebuilt from the gradient ({audit.exhibits[0].certainty}):" in text
    expected = pixels_of(base64.b64decode(audit.exhibits[0].strip[-1]))
    upper, lower, _ = CELL.search(text).groups()
    assert upper == ";".join(map(str, expected[0][0]))
    assert lower == ";".join(map(str, expected[1][0]))


@pytest.fixture
def separate(audits, tmp_path):
    """An audit and the folder beside it, as outputs.py writes them."""
    (tmp_path / "evidence").mkdir()
    for number, colour in enumerate((RED, BLUE)):
        (tmp_path / "evidence" / f"sample-{number:03d}.png").write_bytes(png([[colour] * 8] * 8))
    header = json.dumps({"__metadata__": {"certainty": "proved", "units": "pixels 0..1"}}).encode()
    content = struct.pack("<Q", len(header)) + header
    (tmp_path / "evidence" / "evidence.safetensors").write_bytes(content)
    return replace(audits["leak"], evidence="separate"), tmp_path


def test_pictures_of_the_folder_stand_beside_one_another(separate):
    text = shown(*separate)
    assert "Rebuilt from the gradient (proved):" in text
    line = text.splitlines()[1]
    assert "38;2;255;0;0" in line
    assert "38;2;0;0;255" in line
    assert len(text.splitlines()) == 1 + 16


def test_a_narrow_terminal_gets_one(separate):
    text = shown(*separate, width=40)
    assert "38;2;0;0;255" not in text


def test_nothing_without_evidence(audits, tmp_path):
    assert shown(replace(audits["leak"], evidence="none"), tmp_path) == ""
    assert shown(replace(audits["leak"], evidence="separate"), tmp_path) == ""  # labels only


def test_nothing_unless_it_is_a_leak(separate, audits):
    audit, folder = separate
    assert shown(replace(audit, verdict=audits["inconclusive"].verdict), folder) == ""


@pytest.mark.parametrize(
    "settings",
    [
        {"force_terminal": False},  # a pipe
        {"force_interactive": False},  # CI is set
        {"no_color": True},
        {"color_system": "standard"},  # 16 colours are no picture
        {"color_system": None},
    ],
)
def test_nothing_where_it_cannot_be_seen(separate, settings):
    assert shown(*separate) != ""
    assert shown(*separate, **settings) == ""


def test_nothing_on_a_dumb_terminal_or_with_no_color(separate, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert shown(*separate) == ""
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert shown(*separate) == ""
