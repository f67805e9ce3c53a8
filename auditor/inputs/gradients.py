"""Reads a dump, of gradients or of an update, and fits it to the model: by name, else by order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from auditor.errors import InputError
from auditor.inputs.buffers import Split, buffers_after, split_buffers
from auditor.inputs.entries import Entries, entries_of, require_floats, tensors_of
from auditor.inputs.files import Kind as FileKind
from auditor.inputs.files import file_ref, kind_of
from auditor.inputs.matching import (
    bare_names,
    differences,
    numbered_order,
    places_by_shape,
    removed_prefixes,
)
from auditor.inputs.metadata import KEY, metadata_from_json
from auditor.inputs.pickles import Call
from auditor.inputs.precision import (
    dump_spacing,
    is_difference,
    not_finite,
    update_spacing,
)
from auditor.inputs.safety import (
    byte_limit,
    damaged,
    read_npz,
    require_at_most,
    safetensors_claims,
)
from auditor.inputs.torchfiles import check, load_checked, look_into, plain_pickle
from auditor.inputs.wording import listed, quoted
from auditor.records import FileRef, GradientDump, Kind, Metadata

_REMEDY = (
    "Save plain tensors: torch.save({name: p.grad for name, p in model.named_parameters()}, path)"
    "; numpy arrays go into an .npz file."
)
_REFUSED: dict[FileKind, str] = {
    "picture": "a picture",
    "npy": "a single .npy array",
    "TorchScript": "a TorchScript program",
    "pt2": "a torch.export program",
    "zip": "a zip archive of something else",
    "tar": "a tar archive",
    "unknown": "a file of another kind",
}


@dataclass(frozen=True)
class _Match:
    tensors: dict[str, Tensor]
    how: Literal["name", "order"]
    note: str


def load_gradients(path: Path, module: nn.Module, *, kind: Kind | None = None) -> GradientDump:
    """Read the dump at `path` for `module`, without executing anything in it.

    Takes .npz, safetensors and files of torch.save, whatever their names are. `kind`: what the dump
    holds; None leaves it to the dump's metadata, then takes a gradient. Raises InputError for what
    does not fit, UnsafeFileError for what would execute or claims absurd memory.
    """
    form = kind_of(path)
    if form in _REFUSED:
        raise InputError(
            expected="gradients: a torch file, .npz or safetensors",
            found=f"{quoted(path.name)}, {_REFUSED[form]}",
            todo="Save the gradients with auditor.capture, torch.save or numpy.savez.",
        )
    if form == "pickle":
        raise plain_pickle(path, todo=_REMEDY)
    metadata = Metadata()
    limit = byte_limit(sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers())))
    if form == "npz":
        raw: object = tensors_of(read_npz(path, limit=limit))
    elif form == "safetensors":
        raw, metadata = _read_safetensors(path, limit)
    else:
        raw = _read_torch(path, limit, legacy=form == "torch legacy")
    ref = file_ref(path, form)
    said = kind or metadata.kind
    return _dump(raw, module, ref, metadata, form, said, ordered=form != "safetensors")


def match_gradients(
    raw: object,
    module: nn.Module,
    *,
    file: FileRef,
    metadata: Metadata | None = None,
    form: str,
    kind: Kind | None = None,
) -> GradientDump:
    """Fit gradients or an update in memory to `module`; `form` begins what `recognised` says.

    `raw`: tensors by name, in the order of the parameters, or as one flat vector; None where
    there is none. Raises InputError when they do not fit or are not of the `kind`.
    """
    said = metadata or Metadata()
    return _dump(raw, module, file, said, form, kind or said.kind, ordered=True)


def _read_torch(path: Path, limit: int, *, legacy: bool) -> object:
    file = look_into(path, legacy=legacy)
    value = file.outline.value
    if isinstance(value, Call) and value.new:
        raise InputError(
            expected="a dump of gradients",
            found=f"a whole object of class {quoted(getattr(value.target, 'path', '?'))}",
            todo="Give the model first and the gradients second.",
        )
    require_at_most(check(file, classes=False, todo=_REMEDY), limit, path.name)
    return load_checked(file, classes=False, todo=_REMEDY)


def _read_safetensors(path: Path, limit: int) -> tuple[dict[str, Tensor], Metadata]:
    claims, texts = safetensors_claims(path)
    require_at_most(sum(claim.bytes for claim in claims), limit, path.name)
    metadata = metadata_from_json(texts[KEY]) if KEY in texts else Metadata()
    try:
        return load_file(path), metadata
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise damaged(path.name, "safetensors cannot read it") from error


def _dump(
    raw: object,
    module: nn.Module,
    file: FileRef,
    metadata: Metadata,
    form: str,
    said: Kind | None,
    *,
    ordered: bool,
) -> GradientDump:
    parameters, kind = dict(module.named_parameters()), said or "gradient"
    split = Split(entries_of(raw, kind=kind), {})
    if kind == "update":
        split = split_buffers(split.entries, module)
    entries = split.entries
    _require_some(entries)
    match = _by_name(entries, module) or _by_order(entries, module, ordered=ordered)
    _require_gradients(match.tensors, parameters, kind)
    tensors = {name: match.tensors[name] for name in parameters if name in match.tensors}
    if said is None:
        _refuse_difference(tensors, parameters)
    if kind == "update":  # what did not move was not trained
        tensors = {name: change for name, change in tensors.items() if bool(change.any())}
    note = f", {match.note}" if match.note else ""
    what = "an update, " if kind == "update" else ""
    return GradientDump(
        tensors=tensors,
        missing=tuple(name for name in parameters if name not in tensors),
        recognised=f"{form}, {what}{entries.form}, matched by {match.how}{note}",
        matched_by=match.how,
        precision=update_spacing(tensors, parameters)
        if kind == "update"
        else dump_spacing(tensors.values()),
        file=file,
        metadata=metadata,
        kind=kind,
        buffers=buffers_after(split.changes, module),
        set_aside=split.aside,
    )


def _by_name(entries: Entries, module: nn.Module) -> _Match | None:
    """None when no name of the dump is one of the model's."""
    if entries.names is None:
        return None
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    buffers = {name for name, _ in module.named_buffers()}
    fitted = bare_names(entries.names, shapes.keys() | buffers)
    if not any(bare in shapes for bare in fitted.values()):
        return None
    _refuse_buffers([name for name, bare in fitted.items() if bare in buffers])
    require_floats(entries.names, entries.tensors)
    named = zip(fitted.values(), entries.tensors, strict=True)
    found = {name: tensor for name, tensor in named if tensor is not None or name not in shapes}
    sizes = {name: _shape(tensor) for name, tensor in found.items()}
    problems = differences(sizes, shapes, missing_too=False)
    if problems:
        raise _other_model("; ".join(problems), _per_sample(sizes, shapes))
    tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
    return _Match(tensors, "name", removed_prefixes(fitted))


def _by_order(entries: Entries, module: nn.Module, *, ordered: bool) -> _Match:
    names, tensors = _in_order(entries, ordered=ordered)
    _refuse_state_order(tensors, module)
    require_floats(names, tensors)
    wanted = [(name, p) for name, p in module.named_parameters()]
    trained = [(name, p) for name, p in wanted if p.requires_grad]
    for candidates in (wanted, trained):
        if _fits(tensors, [p for _, p in candidates]):
            pairs = zip(candidates, tensors, strict=True)
            return _Match({n: t for (n, _), t in pairs if t is not None}, "order", "")
        flat = _flat(tensors, candidates)
        if flat is not None:
            return _Match(flat, "order", "one flat vector")
    return _by_shape(names, tensors, wanted)


def _by_shape(
    names: Sequence[str], tensors: Sequence[Tensor | None], wanted: Sequence[tuple[str, Tensor]]
) -> _Match:
    """The only way in which the shapes run through those of the model."""
    present = [tensor for tensor in tensors if tensor is not None]
    shapes = [tuple(p.shape) for _, p in wanted]
    ways, places = places_by_shape([tuple(t.shape) for t in present], shapes)
    if ways == 1:
        found = {wanted[place][0]: t for place, t in zip(places, present, strict=True)}
        return _Match(found, "order", "the only order of shapes that fits")
    if ways > 1:
        raise InputError(
            expected="one gradient for each parameter, or names",
            found=f"{len(present)} tensors for {len(wanted)} parameters, which fit in several ways",
            todo="Save a dict with the parameter names as keys.",
        )
    numbered = {str(i): _shape(t) for i, t in enumerate(tensors)}
    by_place = {str(i): shape for i, shape in enumerate(shapes)}
    hint = _per_sample(numbered, by_place) if len(numbered) == len(by_place) else ""
    if len(present) == len(wanted):
        problems = differences(numbered, by_place, missing_too=False)
        raise _other_model("by position, " + "; ".join(problems), hint)
    told = "" if names[0].startswith("number ") else f", named {listed(names)}"
    raise _other_model(f"{len(present)} tensors for {len(wanted)} parameters{told}", "")


def _in_order(
    entries: Entries, *, ordered: bool
) -> tuple[tuple[str, ...], tuple[Tensor | None, ...]]:
    """Names for messages and tensors, sorted by number where names are numbered."""
    if entries.names is None:
        return tuple(f"number {i}" for i in range(len(entries.tensors))), entries.tensors
    numbered = numbered_order(entries.names)
    if numbered is None and not ordered and len(entries.names) > 1:
        raise _other_model(f"names that the model does not have: {listed(entries.names)}", "")
    table = dict(zip(entries.names, entries.tensors, strict=True))
    names = tuple(numbered or entries.names)
    return names, tuple(table[name] for name in names)


def _fits(tensors: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> bool:
    return len(tensors) == len(parameters) and all(
        t is None or t.shape == p.shape for t, p in zip(tensors, parameters, strict=True)
    )


def _flat(
    tensors: Sequence[Tensor | None], parameters: Sequence[tuple[str, Tensor]]
) -> dict[str, Tensor] | None:
    vector = tensors[0]
    sizes = [p.numel() for _, p in parameters]
    if len(tensors) != 1 or vector is None or vector.shape != (sum(sizes),):
        return None
    parts = zip(parameters, torch.split(vector, sizes), strict=True)
    return {name: part.reshape(p.shape) for (name, p), part in parts}


def _shape(tensor: Tensor | None) -> tuple[int, ...]:
    return tuple(tensor.shape) if tensor is not None else ()


def _per_sample(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """A hint when every tensor has the right shape behind one common first dimension."""
    heads = {
        shape[0] if shape[1:] == wanted.get(name) and shape else None
        for name, shape in found.items()
    }
    if len(heads) != 1 or None in heads:
        return ""
    return f"They look like per-sample gradients of {heads.pop()} samples: save one, or their mean."


def _require_some(entries: Entries) -> None:
    if not any(tensor is not None for tensor in entries.tensors):
        raise InputError(
            expected="at least one gradient",
            found=f"an empty dump ({entries.form})",
            todo="Save the gradients after backward() and before zero_grad().",
        )


def _refuse_buffers(names: Sequence[str]) -> None:
    if names:
        raise InputError(
            expected="gradients, which exist for parameters only",
            found=f"buffers among them: {listed(names)}; that looks like a state_dict, or like "
            "the difference of two",
            todo="Say --kind update if it is weights after training minus weights before; name a "
            "file of weights after training with --after.",
        )


def _refuse_state_order(tensors: Sequence[Tensor | None], module: nn.Module) -> None:
    """A list in the order of the state_dict, buffers among the parameters."""
    buffers = {name for name, _ in module.named_buffers()}
    state = module.state_dict() if buffers else {}
    if state and _fits(tensors, list(state.values())) and buffers & state.keys():
        _refuse_buffers([name for name in state if name in buffers])


def _require_gradients(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], kind: Kind
) -> None:
    bad = [name for name, tensor in tensors.items() if not_finite(tensor)]
    if bad:
        raise InputError(
            expected="finite numbers",
            found=f"NaN or infinity in {listed(bad)}",
            todo="Look for overflow (loss scaling, half precision) where the dump was made.",
        )
    if not any(bool(tensor.any()) for tensor in tensors.values()):
        raise InputError(
            expected="numbers that are not all zero",
            found="a dump of zeros",
            todo="Give the weights after training, and the model as it was before."
            if kind == "update"
            else "Save the gradients after backward() and before zero_grad().",
        )
    if _resemble(tensors, parameters):
        raise InputError(
            expected="gradients, or the difference of weights",
            found="numbers that equal the model's own weights, or nearly so",
            todo="This is a state_dict. Save parameter.grad instead of the parameters, or name it "
            "with --after if it holds the weights after training.",
        )


def _refuse_difference(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> None:
    if is_difference(tensors, parameters):  # read as a gradient, every sign would be wrong
        raise InputError(
            expected="a gradient, because nothing says that it is an update",
            found="numbers that lead from the model's weights to other float32 weights exactly, "
            "as a difference of weights does",
            todo="Say --kind update if it is weights after training minus weights before, or "
            "--kind gradient if it is a gradient all the same.",
        )


def _resemble(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> bool:
    """Within a tenth of the weights: no gradient is, weights after some training are."""
    apart = size = 0.0
    for name, tensor in tensors.items():
        weights = parameters[name].detach().to("cpu", torch.float32)
        apart += float((tensor.to("cpu", torch.float32) - weights).square().sum())
        size += float(weights.square().sum())
    return apart <= 0.1**2 * size


def _other_model(found: str, hint: str) -> InputError:
    return InputError(
        expected="gradients shaped like the parameters of this model",
        found=f"a dump of another model: {found}",
        todo=hint or "Give the model that the gradients were computed with.",
    )
