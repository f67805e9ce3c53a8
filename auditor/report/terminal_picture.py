"""A small picture of what was rebuilt, in half blocks, for people at a terminal with colours.

Each block is two pixels, the upper one in the colour of the letter, the lower one in that of the
ground. Pictures come from where the evidence went: out of the report, or of the folder beside it.
Nothing is shown that was not written there, so nothing at all with `--evidence none`.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Sequence
from pathlib import Path

from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from auditor.records import Audit
from auditor.report.words import printable

_SIDE = 32  # columns, and pixels of height: 16 lines
_MOST = 4  # pictures beside one another
_GAP = "  "

Pixels = Sequence[Sequence[tuple[int, int, int]]]  # rows of (red, green, blue), 0..255


def print_pictures(audit: Audit, folder: Path, console: Console) -> None:
    """Show the first pictures of the evidence, if there are any and the terminal can show them.

    `folder`: where the audit was written. Plain and dumb terminals, `NO_COLOR` and pipelines get
    nothing; neither does a reader of an audit that shows no leak.
    """
    if audit.verdict.status != "leak" or not _can_show(console):
        return
    pictures, certainty = _embedded(audit) if audit.evidence == "embed" else _separate(folder)
    if not pictures:
        return
    count = min(_MOST, len(pictures), max(1, console.width // (_SIDE + len(_GAP))))
    console.print(Text(f"Rebuilt from the gradient ({printable(certainty)}):", "bold"))
    for line in half_blocks([pixels_of(png) for png in pictures[:count]]):
        console.print(line, no_wrap=True, crop=True)


def half_blocks(pictures: Sequence[Pixels]) -> list[Text]:
    """Lines of blocks, the pictures beside one another; a shorter one ends earlier."""
    lines = []
    for upper in range(0, max(len(rows) for rows in pictures), 2):
        line = Text()
        for rows in pictures:
            _append(line, rows, upper)
            line.append(_GAP)
        lines.append(line)
    return lines


def pixels_of(png: bytes) -> Pixels:
    """The picture, no larger than 32 by 32; a small one is enlarged by a whole factor."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as opened:
        image = opened.convert("RGB")
    scale = _SIDE / max(image.size)
    whole = int(scale) if scale >= 1 else scale
    sides = (max(1, round(image.width * whole)), max(1, round(image.height * whole)))
    way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    raw = image.resize(sides, way).tobytes()
    triples = [(raw[at], raw[at + 1], raw[at + 2]) for at in range(0, len(raw), 3)]
    return [triples[row * sides[0] : (row + 1) * sides[0]] for row in range(sides[1])]


def _append(line: Text, rows: Pixels, upper: int) -> None:
    if upper >= len(rows):
        line.append(" " * len(rows[0]))
        return
    below = rows[upper + 1] if upper + 1 < len(rows) else None
    for column, colour in enumerate(rows[upper]):
        ground = None if below is None else Color.from_rgb(*below[column])
        line.append("▀", Style(color=Color.from_rgb(*colour), bgcolor=ground))


def _can_show(console: Console) -> bool:
    colours = console.color_system in {"256", "truecolor"} and not console.no_color
    return colours and console.is_interactive and console.encoding.startswith("utf")


def _embedded(audit: Audit) -> tuple[list[bytes], str]:
    shown = [exhibit for exhibit in audit.exhibits if exhibit.strip]
    words = dict.fromkeys(exhibit.certainty for exhibit in shown)
    return [base64.b64decode(exhibit.strip[-1]) for exhibit in shown], ", ".join(words)


def _separate(folder: Path) -> tuple[list[bytes], str]:
    paths = sorted((folder / "evidence").glob("sample-*.png"))[:_MOST]
    if not paths:
        return [], ""
    with (folder / "evidence" / "evidence.safetensors").open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return [path.read_bytes() for path in paths], str(header["__metadata__"]["certainty"])
