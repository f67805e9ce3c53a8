"""What was read: the model, the dump, the truth, and pictures of the auditor's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from auditor.records.terms import Kind, Modality, Mode, Reduction, Task

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class FileRef:
    """A file as the report names it: base name only, never a path."""

    name: str
    format: str  # "torch module", "torch state_dict", "safetensors", "npz", ...
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Metadata:
    """What a dump says of itself. None: it does not say."""

    batch_size: int | None = None
    input_shape: tuple[int, ...] | None = None  # (C, H, W), or (D,) of a table
    loss: str | None = None  # "cross_entropy" is the one that we can audit
    reduction: Reduction | None = None
    label_smoothing: float | None = None
    mode: Mode | None = None
    mean: tuple[float, ...] | None = None  # per channel, pixel units 0..1; or per column
    std: tuple[float, ...] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    kind: Kind | None = None
    lr: float | None = None  # these six are of an update, see LocalTraining
    local_steps: int | None = None
    local_batch: int | None = None
    local_epochs: int | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    modality: Modality | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model that was read without executing anything from its file."""

    module: nn.Module
    file: FileRef
    notes: tuple[str, ...] = ()  # "prefix 'module.' removed", ...


@dataclass(frozen=True)
class LanguageModel:
    """A transformers model with what belongs to it."""

    model: LoadedModel
    task: Task
    tokenizer: object | None  # a PreTrainedTokenizerBase; None: the folder holds none


@dataclass(frozen=True)
class GradientDump:
    """Gradients by parameter name, each shaped like its parameter, in the dump's dtype."""

    tensors: Mapping[str, Tensor]
    missing: tuple[str, ...]  # parameters for which the dump holds nothing
    recognised: str  # "dict of 10 tensors, matched by name"
    matched_by: Literal["name", "order"]
    precision: float  # relative spacing of the coarsest type that holds every value exactly
    file: FileRef
    metadata: Metadata = Metadata()
    kind: Kind = "gradient"
    buffers: Mapping[str, Tensor] = field(default_factory=dict)  # after training, when sent along
    set_aside: tuple[str, ...] = ()  # buffers that do not fit the model, with why, for people


@dataclass(frozen=True)
class Truth:
    """What the client really had. Only `findings.py` and `metrics.py` may take one."""

    inputs: Tensor  # (N, C, H, W), pixel units 0..1; or (N, D), columns in their own units
    labels: Tensor  # (N,) int64


@dataclass(frozen=True)
class Auxiliary:
    """Labelled pictures like those of the client, but the auditor's own."""

    images: Tensor  # (M, C, H, W), pixel units 0..1
    labels: Tensor  # (M,) int64
