"""Reads a client's update: the buffers in it are kept apart, two files of weights are subtracted.

An update is weights after training minus weights before. The weights before are the model's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from auditor.errors import InputError
from auditor.inputs.buffers import is_buffer
from auditor.inputs.files import file_ref
from auditor.inputs.gradients import match_gradients
from auditor.inputs.matching import bare_names, differences
from auditor.inputs.models import load_weights
from auditor.inputs.wording import listed, quoted
from auditor.records import GradientDump


def load_update(before: Path | None, after: Path, module: nn.Module) -> GradientDump:
    """The update between two files of weights; without `before`, from those of `module`.

    Raises InputError when a file cannot be read, does not fit the model or the other file, or when
    `before` does not hold the model's weights.
    """
    start = {name: value.detach() for name, value in module.state_dict().items()}
    if before is not None:
        _require_same(_fitted(before, start, set()), start, before.name)
    buffers = {name for name, _ in module.named_buffers()}
    changes = {
        name: value.double() - start[name].double() if _fits(name, value, start) else value
        for name, value in _fitted(after, start, buffers).items()
    }
    ref = file_ref(after, "weights after training")
    form = "weights after training less weights before"
    return match_gradients(changes, module, file=ref, form=form, kind="update")


def _fits(name: str, value: Tensor, wanted: Mapping[str, Tensor]) -> bool:
    return name in wanted and wanted[name].shape == value.shape


def _fitted(
    path: Path, wanted: Mapping[str, Tensor], buffers: Collection[str]
) -> dict[str, Tensor]:
    """The weights in a file under the names of the model; `buffers` may be of any shape.

    With buffers, those of batch norms that the model does not have are let through as well.
    """
    found = load_weights(path)
    bare = bare_names(found, wanted)
    renamed = {bare[name]: value.detach().cpu() for name, value in found.items()}
    free = {
        n for n in renamed if buffers and is_buffer(n, buffers) and not _fits(n, renamed[n], wanted)
    }
    shapes, ours = (
        {n: tuple(v.shape) for n, v in part.items() if n not in free} for part in (renamed, wanted)
    )
    problems = differences(shapes, ours, missing_too=False)
    if problems:
        raise InputError(
            expected="weights of this model",
            found=f"in {quoted(path.name)}: {'; '.join(problems)}",
            todo="Give the state_dict of the same network.",
        )
    return renamed


def _require_same(found: Mapping[str, Tensor], model: Mapping[str, Tensor], name: str) -> None:
    other = [n for n, value in found.items() if not torch.equal(value.to(model[n]), model[n])]
    if other:
        raise InputError(
            expected="the model's own weights as the weights before training",
            found=f"other numbers in {quoted(name)}: {listed(other)}",
            todo="Give the model as it was before the client trained it; --before may be left out.",
        )
