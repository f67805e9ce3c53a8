"""Reads a language model from a folder of `transformers`: config.json, safetensors, tokenizer.

Nothing in the folder is executed and nothing is downloaded: code of the folder's own, pickled
weights and quantised weights are refused, and the hub is switched off while the folder is read.
"""

from __future__ import annotations

import hashlib
import importlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from auditor.errors import InputError, UsageError
from auditor.inputs.adapters import WEIGHTS, with_adapter
from auditor.inputs.files import file_ref
from auditor.inputs.foreign import Reading
from auditor.inputs.modules import audited
from auditor.inputs.safety import safetensors_claims
from auditor.inputs.transformers_config import (
    ADAPTER,
    CONFIG,
    INDEX,
    TASKS,
    architecture_of,
    checked_config,
    read_json,
    task_of,
    weight_files,
)
from auditor.inputs.wording import listed, quoted
from auditor.records import FileRef, LanguageModel, LoadedModel

_TOKENIZERS = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")


def is_folder(path: Path) -> bool:
    """Whether `path` is read by `load_folder`."""
    return path.is_dir() and any((path / name).is_file() for name in (CONFIG, ADAPTER))


def is_transformer(module: nn.Module) -> bool:
    """Whether `module` is a language model of transformers; told without importing it."""
    above = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__}
    name = type(module).__name__
    return "transformers.modeling_utils.PreTrainedModel" in above and any(
        name.endswith(ending) for ending, _ in TASKS
    )


def load_folder(path: Path) -> LanguageModel:
    """The model, its task and its tokenizer: on the CPU, in evaluation mode, float32 or wider.

    Raises UsageError when transformers is not installed, UnsafeFileError for a folder that wants to
    execute code, InputError for one that is incomplete, damaged, or does not fit together.
    """
    transformers = require_transformers()
    config = checked_config(path)
    task = task_of(architecture_of(config, path.name), path.name)
    weights = weight_files(path)
    with _offline(), silenced():
        module, notes = _module(transformers, path, config, weights)
        tokenizer = _tokenizer(transformers, path)
    if (path / ADAPTER).is_file():
        notes.append(with_adapter(module, path, read_json(path / ADAPTER)))
    module, more = audited(module, path.name)
    _require_fit(tokenizer, module, path.name)
    if tokenizer is None:
        more = [*more, "no tokenizer in the folder: text is shown as token numbers"]
    loaded = LoadedModel(module, folder_ref(path), (*notes, *more))
    return LanguageModel(loaded, task, tokenizer)


def require_transformers() -> ModuleType:
    """The package. Raises UsageError with the line that installs it."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise UsageError(
            expected="the package transformers, with which language models are read",
            found="that it is not installed",
            todo='Install it: pip install "gradaudit[text]".',
        ) from error


@contextmanager
def silenced() -> Iterator[None]:
    """No log lines and no progress bars of transformers, both as before afterwards."""
    logging = require_transformers().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _offline() -> Iterator[None]:
    """The hub switched off, as before afterwards."""
    constants: Any = importlib.import_module("huggingface_hub.constants")
    was = constants.HF_HUB_OFFLINE
    said = os.environ.get("HF_HUB_OFFLINE")
    constants.HF_HUB_OFFLINE, os.environ["HF_HUB_OFFLINE"] = True, "1"
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was
        if said is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = said


def _module(
    transformers: ModuleType, folder: Path, config: Mapping[str, Any], weights: tuple[Path, ...]
) -> tuple[nn.Module, list[str]]:
    name = architecture_of(config, folder.name)
    made: Any = getattr(transformers, name, None)
    known = isinstance(made, type) and issubclass(made, transformers.PreTrainedModel)
    if not known:
        raise InputError(
            expected="an architecture that the installed transformers has",
            found=f"{quoted(name)}; installed is {transformers.__version__}",
            todo="Update transformers, or audit a model of another architecture.",
        )
    with Reading("the model", folder.name), _linked(folder, weights) as only:
        settings = made.config_class.from_pretrained(only, local_files_only=True)
        settings._attn_implementation = "eager"
        _require_size(made, settings, weights, folder.name)
        module, told = made.from_pretrained(
            only,
            config=settings,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,  # they are listed, and refused below
            output_loading_info=True,
        )
    _require_complete(told, folder.name)
    left = sorted(told["unexpected_keys"])
    notes = [f"weights that {name} has no place for: {listed(left)}"] if left else []
    return module, notes


@contextmanager
def _linked(folder: Path, weights: tuple[Path, ...]) -> Iterator[Path]:
    """A folder with links to config and weights alone: transformers sees nothing else."""
    with tempfile.TemporaryDirectory() as made:
        for file in (folder / CONFIG, folder / INDEX, *weights):
            if file.is_file():
                (Path(made) / file.name).symlink_to(file.resolve())
        yield Path(made)


def _require_size(made: type[Any], settings: object, weights: tuple[Path, ...], name: str) -> None:
    """A config can claim any size: what it makes must be near what the files hold."""
    claims = [claim for file in weights for claim in safetensors_claims(file)[0]]
    held = sum(math.prod(claim.shape) for claim in claims)
    layers = getattr(settings, "num_hidden_layers", 0)
    if layers > len(claims):
        raise InputError(
            expected=f"weights for the {layers} layers that {CONFIG} describes",
            found=f"{len(claims)} tensors in the files of {quoted(name)}",
            todo="Give the weights that belong to this config.",
        )
    with torch.device("meta"):
        claimed = sum(p.numel() for p in made(settings).parameters())
    if claimed > 2 * held + (1 << 22):
        raise InputError(
            expected=f"weights for the {claimed} parameters that {CONFIG} describes",
            found=f"{held} numbers in the files of {quoted(name)}",
            todo="Give the weights that belong to this config.",
        )


def _require_complete(told: Mapping[str, Any], name: str) -> None:
    missing, other = sorted(told["missing_keys"]), [str(k) for k in told["mismatched_keys"]]
    if missing or other:
        raise InputError(
            expected="all weights of the model",
            found=f"in {quoted(name)} missing or of another shape: {listed([*missing, *other])}",
            todo="Weights that are not there would be drawn at random. Save the model that the "
            "client trained, its head included.",
        )


def _tokenizer(transformers: ModuleType, folder: Path) -> Any:
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        return None
    with Reading("the tokenizer", folder.name):
        return transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )


def _require_fit(tokenizer: Any, module: Any, name: str) -> None:
    if tokenizer is None:
        return
    rows = int(module.get_input_embeddings().weight.shape[0])
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= rows:
        raise InputError(
            expected=f"a tokenizer for the {rows} rows of the embedding",
            found=f"token numbers up to {highest} in {quoted(name)}",
            todo="Give the tokenizer that the model was trained with.",
        )


def folder_ref(folder: Path) -> FileRef:
    """One digest over config, weights and adapter. Raises InputError for an incomplete folder."""
    weights, digest, count = weight_files(folder), hashlib.sha256(), 0
    if (folder / ADAPTER).is_file():
        weights = (*weights, folder / ADAPTER, folder / WEIGHTS)
    for file in (folder / CONFIG, *weights):
        ref = file_ref(file, "")
        digest.update(f"{ref.name} {ref.sha256}\n".encode())
        count += ref.bytes
    return FileRef(folder.resolve().name, "transformers folder", count, digest.hexdigest())
