"""Reads a model without executing anything from its file."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from auditor.errors import InputError, UnsafeFileError, UsageError
from auditor.inputs.architectures import build_architecture
from auditor.inputs.files import Kind, file_ref, kind_of
from auditor.inputs.matching import bare_names, differences, removed_prefixes
from auditor.inputs.modules import audited, require_sound
from auditor.inputs.safety import damaged, safetensors_claims
from auditor.inputs.torchfiles import load_checked, look_into, plain_pickle
from auditor.inputs.wording import listed, quoted
from auditor.records import LoadedModel

STATE_KEYS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
)
_REFUSED: dict[Kind, str] = {
    "picture": "a picture",
    "npy": "a .npy array",
    "npz": "an .npz archive of arrays",
    "zip": "a zip archive of something else",
    "tar": "a tar archive",
    "unknown": "a file of another kind",
}
_REMEDY = (
    "Save the weights alone, torch.save(model.state_dict(), path), and give the architecture "
    "with --arch: torchvision:resnet18, a name of auditor.zoo, or path/to/file.py:factory."
)


@dataclass(frozen=True)
class _Content:
    """What a file holds: a module, or weights by name."""

    found: nn.Module | dict[str, Tensor]
    form: str
    note: str = ""


def load_model(path: Path, *, arch: str | None = None, trust_model: bool = False) -> LoadedModel:
    """Read the model at `path`: on the CPU, in eval mode, all parameters requiring gradients.

    `arch` names the network for a file that holds weights only. `trust_model` allows TorchScript
    and torch.export files, which run as programs. Raises UsageError when `arch` is missing,
    unknown or superfluous, UnsafeFileError for a file that would execute code, InputError for
    one that is damaged, of another kind, or does not fit the architecture.
    """
    kind = kind_of(path)
    content = _content(path, kind, trust_model=trust_model)
    if isinstance(content.found, nn.Module):
        if arch is not None:
            raise UsageError(
                expected="--arch only for files that hold weights alone",
                found=f"{quoted(path.name)}, a whole model, and --arch {arch}",
                todo="Leave --arch out.",
            )
        module, notes = content.found, [content.note]
    else:
        module, notes = _filled(content, path.name, arch)
    module, more = audited(module, path.name)
    kept = tuple(note for note in (*notes, *more) if note)
    return LoadedModel(module=module, file=file_ref(path, content.form), notes=kept)


def load_weights(path: Path) -> dict[str, Tensor]:
    """The weights and buffers in a file, by name, as a state_dict or a whole model holds them.

    Raises InputError and UnsafeFileError as `load_model` does.
    """
    content = _content(path, kind_of(path), trust_model=False)
    if isinstance(content.found, nn.Module):
        return dict(content.found.state_dict())
    _require_dense(content.found)
    return content.found


def _content(path: Path, kind: Kind, *, trust_model: bool) -> _Content:
    if kind in _REFUSED:
        raise InputError(
            expected="a model: a torch file or safetensors",
            found=f"{quoted(path.name)}, {_REFUSED[kind]}",
            todo="Give the model first and the gradients second.",
        )
    if kind == "pickle":
        raise plain_pickle(path, todo=_REMEDY)
    if kind in {"TorchScript", "pt2"}:
        return _program(path, kind, trust_model=trust_model)
    if kind == "safetensors":
        return _Content(_read_safetensors(path), "safetensors")
    file = look_into(path, legacy=kind == "torch legacy")
    return _unwrapped(load_checked(file, classes=True, todo=_REMEDY), path.name)


def _program(path: Path, kind: Kind, *, trust_model: bool) -> _Content:
    if not trust_model:
        raise UnsafeFileError(
            expected="a model that can be read without running it",
            found=f"{quoted(path.name)}, a {kind} file, which is a program",
            todo=f"{_REMEDY} If you made this file yourself, --trust-model runs it.",
        )
    try:
        with warnings.catch_warnings():
            for ours in (DeprecationWarning, FutureWarning):
                warnings.filterwarnings("ignore", category=ours, module=r"torch\.|auditor\.")
            # torch 2.10 warns of its own buffer while it reads a .pt2 file
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            module = _run_program(path, kind)
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        raise damaged(path.name, f"torch cannot load the {kind} program") from error
    return _Content(module, kind, f"{kind} program executed because it was trusted")


def _run_program(path: Path, kind: Kind) -> nn.Module:
    if kind == "TorchScript":
        loaded: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        return loaded
    return torch.export.load(str(path)).module()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    safetensors_claims(path)
    try:
        return load_file(path)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise damaged(path.name, "safetensors cannot read it") from error


def _unwrapped(loaded: object, name: str, note: str = "") -> _Content:
    """The module or the weights in a checkpoint, found under at most two usual keys."""
    if isinstance(loaded, nn.Module):
        require_sound(loaded, name)
        return _Content(loaded, "torch module", note)
    if not isinstance(loaded, Mapping):
        raise _no_model(name, f"an object of type {quoted(type(loaded).__name__)}")
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
    if tensors and len(tensors) == len(loaded):
        return _Content(tensors, "torch state_dict" if not note else "torch checkpoint", note)
    for key in STATE_KEYS:
        inner = loaded.get(key)
        if isinstance(inner, Mapping | nn.Module) and note.count("'") < 4:
            return _unwrapped(inner, name, f"{note or 'taken from the checkpoint'} key {key!r}")
    raise _no_model(name, f"a dict with the keys {listed(loaded)}")


def _no_model(name: str, found: str) -> InputError:
    return InputError(
        expected="a model, its state_dict, or a checkpoint with one under a usual key",
        found=f"{found} in {quoted(name)}",
        todo="Save it with torch.save(model.state_dict(), path).",
    )


def _filled(content: _Content, name: str, arch: str | None) -> tuple[nn.Module, list[str]]:
    """The network that `arch` names with the weights of the file in it."""
    assert isinstance(content.found, dict)
    tensors = content.found
    if arch is None:
        raise UsageError(
            expected="--arch, because the file holds weights and no architecture",
            found=f"{quoted(name)}, {len(tensors)} tensors by name",
            todo="Add --arch torchvision:resnet18, --arch lenet (auditor.zoo), or "
            "--arch path/to/file.py:factory.",
        )
    _require_dense(tensors)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    module, notes = build_architecture(arch, shapes)
    state = module.state_dict()
    fitted = bare_names(tensors, state)
    found = {fitted[key]: tensor for key, tensor in tensors.items()}
    notes += [content.note, removed_prefixes(fitted), _completed(found, state)]
    problems = differences(_shapes(found), _shapes(state), missing_too=True)
    if problems:
        raise InputError(
            expected=f"weights that fit --arch {arch}",
            found=f"in {quoted(name)}: {'; '.join(problems)}",
            todo="Give the architecture that the weights were trained with.",
        )
    module.to(_widest(found)).load_state_dict(found)
    return module, notes


def _completed(found: dict[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """Put in the step counters of batch norm that files before torch 0.4.1 do not have."""
    counters = [key for key in state if key.endswith("num_batches_tracked") and key not in found]
    found.update({key: state[key] for key in counters})
    return f"{len(counters)} counters num_batches_tracked were not in the file" if counters else ""


def _require_dense(tensors: Mapping[str, Tensor]) -> None:
    known = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    bad = [
        key
        for key, tensor in tensors.items()
        if tensor.layout is not torch.strided
        or (tensor.dtype not in known and (tensor.is_floating_point() or tensor.is_complex()))
    ]
    if bad:
        raise InputError(
            expected="dense weights of float16, bfloat16, float32 or float64",
            found=f"other numbers in {listed(bad)}",
            todo="Convert the weights first.",
        )


def _widest(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The one floating type that holds all weights exactly."""
    widest = torch.float16
    floats = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(floats) == 1:
        return floats.pop()
    for dtype in floats:
        widest = torch.promote_types(widest, dtype)
    return widest if floats else torch.float32


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}
