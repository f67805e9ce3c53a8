"""LoRA adapters beside a base model: read, and put into it under the names that peft gives them.

y = W x + (alpha / r) B A x (Hu et al. 2021, arXiv:2106.09685). Only the adapter is trained, and
only its gradient is sent. peft itself is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from auditor.errors import InputError
from auditor.inputs.safety import damaged, safetensors_claims
from auditor.inputs.wording import listed, quoted

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KNOWN = {"use_dora": False, "alpha_pattern": {}, "bias": "none", "layer_replication": None}


class Adapted(nn.Module):
    """A linear layer with a LoRA adapter named `default`, as peft lays it out."""

    def __init__(
        self, base: nn.Module, down: Tensor, up: Tensor, scale: float, drop: float
    ) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_dropout = nn.ModuleDict({"default": nn.Dropout(drop)})
        self.lora_A = nn.ModuleDict({"default": _linear(down)})
        self.lora_B = nn.ModuleDict({"default": _linear(up)})
        self.scale = scale

    def forward(self, inputs: Tensor) -> Tensor:
        down, up = self.lora_A["default"], self.lora_B["default"]
        added: Tensor = up(down(self.lora_dropout["default"](inputs)))
        base: Tensor = self.base_layer(inputs)
        return base + self.scale * added


def with_adapter(module: nn.Module, folder: Path, config: Mapping[str, Any]) -> str:
    """Put the adapter in `folder` into `module`, and say in words what was done.

    Raises InputError for an adapter of another kind, one that is damaged, or of another model.
    """
    _require_lora(config, folder.name)
    tensors = _read(folder)
    lora = {name for name in tensors if ".lora_" in name}
    places = sorted({name.partition(".lora_")[0] for name in lora})
    wanted = {f"{place}.lora_{side}.weight" for place in places for side in "AB"}
    if lora != wanted or not places:
        raise _misfit(folder.name, f"adapters of another form: {listed(sorted(lora ^ wanted))}")
    for place in places:
        down, up = (tensors[f"{place}.lora_{side}.weight"] for side in "AB")
        _insert(module, place, down, up, config, folder.name)
    _replace(module, {n: t for n, t in tensors.items() if n not in lora}, folder.name)
    return f"LoRA adapter in {len(places)} layer{'s' if len(places) > 1 else ''}"


def _require_lora(config: Mapping[str, Any], name: str) -> None:
    other = [key for key, plain in _KNOWN.items() if config.get(key, plain) not in (plain, None)]
    if config.get("peft_type") != "LORA" or other:
        raise InputError(
            expected="a plain LoRA adapter",
            found=f"type {quoted(config.get('peft_type'))}, {listed(other) or 'no settings'} "
            f"in {quoted(name)}",
            todo="Other adapters cannot be audited yet.",
        )


def _read(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise InputError(
            expected=f"the adapter's weights in {WEIGHTS}",
            found=f"none in {quoted(folder.name)}",
            todo="Save them with save_pretrained; pickled adapters are not read.",
        )
    safetensors_claims(path)
    try:
        found = load_file(path)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise damaged(path.name, "safetensors cannot read it") from error
    return {name.removeprefix(_PREFIX): tensor for name, tensor in found.items()}


def _insert(
    module: nn.Module, place: str, down: Tensor, up: Tensor, config: Mapping[str, Any], name: str
) -> None:
    parent, _, last = place.rpartition(".")
    try:
        base = module.get_submodule(place)
    except AttributeError as error:
        raise _misfit(name, f"an adapter for {quoted(place)}, which it does not have") from error
    weight = getattr(base, "weight", None)
    fits = down.ndim == up.ndim == 2 and len(down) == up.shape[1]
    shape = (up.shape[0], down.shape[1]) if fits else ()
    if weight is None or tuple(sorted(weight.shape)) != tuple(sorted(shape)):
        raise _misfit(name, f"an adapter of another shape for {quoted(place)}")
    rank, alpha = len(down), float(config.get("lora_alpha", 8))
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    drop = float(config.get("lora_dropout") or 0.0)
    setattr(module.get_submodule(parent), last, Adapted(base, down, up, scale, drop))


def _replace(module: nn.Module, whole: Mapping[str, Tensor], name: str) -> None:
    """Modules that were trained and saved as a whole, such as a classifier."""
    named = dict(module.named_parameters())
    odd = [n for n, tensor in whole.items() if n not in named or named[n].shape != tensor.shape]
    if odd:
        raise _misfit(name, f"weights for {listed(odd)}")
    with torch.no_grad():
        for key, tensor in whole.items():
            named[key].copy_(tensor)


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
    layer.weight = nn.Parameter(weight.clone())
    return layer


def _misfit(name: str, found: str) -> InputError:
    return InputError(
        expected="an adapter of the base model beside it",
        found=f"in {quoted(name)} {found}",
        todo="Put the files of the model that the adapter was made for into the folder.",
    )
