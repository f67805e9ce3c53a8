"""Finished rows on disk, so that an interrupted audit goes on where it was.

The file holds the rows' numbers and words, never a picture or a label, and is no part of the
report. It is written anew after each row, beside its place, and then moved there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from auditor import __version__
from auditor.options import Options
from auditor.records import GradientDump, Knowledge, Truth, WhatIfRow
from auditor.what_if.settings import SETTINGS

_NAMES = {field.name for field in fields(WhatIfRow)}


class Store:
    """The rows of one audit, found again by its key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def beside(cls, out: Path) -> Store:
        """The one that belongs to the report directory `out`."""
        out = out.absolute()
        return cls(out.parent / f".{out.name}-what-if.json")

    def rows(self, key: str) -> tuple[WhatIfRow, ...]:
        """What was finished under this key; nothing when the file is another audit's, or broken."""
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["key"] != key:
                return ()
            return tuple(WhatIfRow(**row) for row in kept["rows"] if set(row) == _NAMES)
        except (OSError, ValueError, KeyError, TypeError):
            return ()

    def keep(self, key: str, rows: Iterable[WhatIfRow]) -> None:
        """Replace what is there by these rows, all at once."""
        text = json.dumps({"key": key, "rows": [asdict(row) for row in rows]})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        side = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            side.write_text(text, encoding="utf-8")
            side.replace(self.path)
        finally:
            side.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def key_of(
    module: nn.Module,
    dump: GradientDump,
    knowledge: Knowledge,
    truth: Truth | None,
    options: Options,
    gate: str | None,
) -> str:
    """A digest of all that decides what a row says, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    chosen = (options.preset.name, sorted(options.selected), options.named, options.seed)
    limits = (options.budget, str(options.device), gate)
    words = (__version__, torch.__version__, knowledge, chosen, limits, SETTINGS)
    digest.update(repr(words).encode())
    tensors = [*module.state_dict().values(), *dump.tensors.values()]
    if truth is not None:
        tensors += [truth.inputs, truth.labels]
    for tensor in tensors:
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().contiguous()
    form = repr((plain.dtype, plain.shape)).encode()
    return form + plain.flatten().view(torch.uint8).numpy().tobytes()
