"""What decides how an audit comes out, as one digest: parts are used under the same one only."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import nn

from auditor import __version__
from auditor.options import Options
from auditor.records import Auxiliary, GradientDump, Knowledge, LoadedModel, Truth
from auditor.summaries import versions_here


def key_of(
    model: LoadedModel,
    dump: GradientDump,
    knowledge: Knowledge,
    truth: Truth | None,
    auxiliary: Auxiliary | None,
    options: Options,
    gate: str | None,
) -> str:
    """64 hexadecimal digits of what was read, all facts and choices, and the versions.

    Of a model's code it holds the forward pass of each module, not what that calls.
    """
    chosen = (options.preset, options.attacks, sorted(options.selected), options.named)
    limits = (options.seed, options.budget, str(options.device), options.what_if, gate)
    facts = (knowledge, dump.kind, dump.precision, dump.missing)
    made = (model.file.sha256, str(model.module), sorted(versions_here().items()))
    digest = hashlib.sha256(repr((__version__, made, facts, chosen, limits)).encode())
    for part in (*_code(model.module), *_tensors(model.module, dump, truth, auxiliary)):
        digest.update(part)
    return digest.hexdigest()


def _tensors(
    module: nn.Module, dump: GradientDump, truth: Truth | None, auxiliary: Auxiliary | None
) -> Iterator[bytes]:
    named = {f"model {name}": tensor for name, tensor in module.state_dict().items()}
    named |= {f"dump {name}": tensor for name, tensor in {**dump.tensors, **dump.buffers}.items()}
    if truth is not None:
        named |= {"inputs": truth.inputs, "labels": truth.labels}
    if auxiliary is not None:
        named |= {"images": auxiliary.images, "their labels": auxiliary.labels}
    for name, tensor in named.items():
        plain = tensor.detach().cpu().contiguous()
        yield repr((name, plain.dtype, plain.shape)).encode()
        yield plain.flatten().view(torch.uint8).numpy().tobytes()


def _code(module: nn.Module) -> Iterator[bytes]:
    """The forward pass of each kind of module: weights stay the same when that is edited."""
    for kind in dict.fromkeys(type(inner) for inner in module.modules()):
        code = getattr(getattr(kind, "forward", None), "__code__", None)
        if code is not None:
            plain = [each for each in code.co_consts if isinstance(each, str | int | float)]
            yield repr((kind.__qualname__, code.co_names, code.co_code, plain)).encode()
