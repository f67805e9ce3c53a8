"""What the folder of a language model says of itself, checked before anything of it is loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from auditor.errors import InputError, UnsafeFileError
from auditor.inputs.safety import damaged, safetensors_claims
from auditor.inputs.wording import listed, quoted
from auditor.records import Task

CONFIG, ADAPTER = "config.json", "adapter_config.json"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
TASKS: tuple[tuple[str, Task], ...] = (
    ("ForCausalLM", "causal"),
    ("LMHeadModel", "causal"),
    ("ForMaskedLM", "masked"),
    ("ForSequenceClassification", "classification"),
)
_IMPLEMENTATIONS = (None, "eager", "sdpa", "flash_attention_2", "flex_attention")
_JSON_BYTES = 64 << 20
_REMEDY = "Write the folder with model.save_pretrained(DIR) and tokenizer.save_pretrained(DIR)."


def task_of(architecture: str, name: str) -> Task:
    """What a class of transformers was trained for. Raises InputError for one without a loss."""
    for ending, task in TASKS:
        if architecture.endswith(ending):
            return task
    raise InputError(
        expected="a language model that was trained: causal, masked, or sequence classification",
        found=f"{quoted(architecture)} in {quoted(name)}",
        todo="Save the class whose loss the client computed: BertForSequenceClassification, say.",
    )


def checked_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder that wants to run nothing. Raises InputError, UnsafeFileError."""
    if not (folder / CONFIG).is_file():
        raise InputError(
            expected=f"a folder with {CONFIG}",
            found=f"{quoted(folder.name)} without one",
            todo="An adapter alone is not enough: put the base model's files beside it."
            if (folder / ADAPTER).is_file()
            else _REMEDY,
        )
    config = read_json(folder / CONFIG)
    others = [read_json(file) for file in sorted(folder.glob("*config.json"))]
    if any("auto_map" in each for each in others):
        raise UnsafeFileError(
            expected="a model of an architecture that transformers itself has",
            found=f"code of its own (auto_map) in {quoted(folder.name)}, which would run",
            todo="gradaudit never runs a folder's code; audit a model of a known architecture.",
        )
    kernels = [key for key, value in _settings(config) if _names_a_kernel(key, value)]
    if kernels:
        raise UnsafeFileError(
            expected="an implementation that transformers itself has",
            found=f"code of the hub under {listed(kernels)} in {quoted(folder.name)}",
            todo=f"Remove it from {CONFIG}: it changes how fast the model computes, not what.",
        )
    if config.get("quantization_config"):
        raise InputError(
            expected="weights that are numbers",
            found=f"quantised weights in {quoted(folder.name)}",
            todo="Save the weights that the client trained on, before they are quantised.",
        )
    return config


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Every setting, those inside others as well."""
    left = [config]
    while left:
        for key, value in left.pop().items():
            yield key, value
            left += [value] if isinstance(value, dict) else []


def _names_a_kernel(key: str, value: object) -> bool:
    """Attention and experts can be computed by code that is fetched by its name."""
    named = key.endswith("_implementation") and value not in _IMPLEMENTATIONS
    return named or (key == "use_kernels" and bool(value))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError when it is not one."""
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise damaged(path.name, "it is far larger than such a file is")
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path.name, "it is no JSON") from error
    if not isinstance(found, dict):
        raise damaged(path.name, "it is no JSON object")
    return found


def architecture_of(config: Mapping[str, Any], name: str) -> str:
    """The one class that the config names. Raises InputError for none and for several."""
    said = config.get("architectures")
    if not isinstance(said, list) or len(said) != 1 or not isinstance(said[0], str):
        raise InputError(
            expected=f"one class under 'architectures' in {CONFIG}",
            found=f"{quoted(said)} in {quoted(name)}",
            todo=_REMEDY,
        )
    return said[0]


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that hold the weights, headers checked. Raises InputError."""
    if (folder / INDEX).is_file():
        table = read_json(folder / INDEX).get("weight_map")
        names = set(table.values()) if isinstance(table, dict) else set()
        if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
            raise damaged(INDEX, "it does not name files of its folder")
        files = tuple(folder / name for name in sorted(names))
    else:
        files = (folder / "model.safetensors",)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise _no_weights(folder, missing)
    for file in files:
        safetensors_claims(file)
    return files


def _no_weights(folder: Path, missing: list[str]) -> InputError:
    pickles = [file.name for pattern in _PICKLES for file in sorted(folder.glob(pattern))]
    if pickles:
        return UnsafeFileError(
            expected="weights in safetensors, which hold numbers only",
            found=f"pickled weights alone in {quoted(folder.name)}: {listed(pickles)}",
            todo="Convert them where you trust them: model.save_pretrained(DIR).",
        )
    return InputError(
        expected="weights in safetensors",
        found=f"no {listed(missing)} in {quoted(folder.name)}",
        todo=_REMEDY,
    )
