"""What the attacker knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from auditor.records.files import Auxiliary
from auditor.records.terms import Modality, Mode, Origin, Reduction
from auditor.records.trust import Channel

if TYPE_CHECKING:
    from torch import Tensor, nn

    from auditor.records.claims import LabelClaim


@dataclass(frozen=True)
class Assumption:
    """One fact about the dump and where it came from."""

    what: str
    value: str
    origin: Origin


@dataclass(frozen=True)
class LocalEstimate:
    """What was made of the dump where nobody said how the client trained."""

    what: tuple[str, ...]  # of "learning rate", "local steps": estimated; empty: nothing was
    residual: float | None = None  # relative, of the best count of steps with its pictures
    runner_up: float | None = None  # of the next best count that was tried
    also: tuple[int, ...] = ()  # other counts that explain the dump as well
    reason: str = ""  # why there is no estimate


@dataclass(frozen=True)
class LocalTraining:
    """How a client made an update: plain SGD from the weights of the model. None: not known."""

    lr: float | None
    steps: int | None  # of one epoch
    batch_size: int | None  # samples of one step
    momentum: float = 0.0
    weight_decay: float = 0.0
    epochs: int = 1
    estimate: LocalEstimate | None = None  # None: nothing had to be estimated


@dataclass(frozen=True)
class Knowledge:
    """What is known of the client's step, after flags, metadata and deduction were merged."""

    input_shape: tuple[int, ...]  # (C, H, W), or (D,): the columns of a table
    mean: tuple[float, ...]  # (C,) or (D,)
    std: tuple[float, ...]  # (C,) or (D,)
    batch_size: int | None
    mode: Mode
    reduction: Reduction
    reduction_declared: bool  # False: "mean" is only an assumption
    label_smoothing: float
    assumptions: tuple[Assumption, ...]
    overrides: tuple[str, ...] = ()  # flags that contradict the dump's own metadata
    local: LocalTraining | None = None  # None: the dump is a gradient
    scales: tuple[float, ...] = ()  # (D,) what counts as a column's deviation, model units
    columns: tuple[str, ...] = ()  # (D,) their names, if somebody said them

    @property
    def modality(self) -> Modality:
        return "features" if len(self.input_shape) == 1 else "images"


@dataclass(frozen=True)
class Head:
    """The linear layer whose output is the logits."""

    weight: str  # parameter name, (K, E)
    bias: str | None  # parameter name, (K,)
    classes: int
    features: int
    features_nonnegative: bool  # proved from the traced operations, not sampled


@dataclass(frozen=True, eq=False)
class Normalised:
    """A convolution or linear layer whose output goes into a batch norm and nowhere else.

    `rectified`: through ReLU, leaky ReLU or pooling. `young`: the running statistics are still, for
    a part, those that a batch norm begins with. They say nothing then of the variance of a batch,
    which may lie far below the constant under the root: both modes then do nearly the same.
    """

    weight: str
    bias: str | None
    gain: str | None  # weight of the batch norm
    shift: str | None  # its bias
    mean: Tensor  # (C,), running; of one that is not rectified less the layer's own bias
    deviation: Tensor  # (C,), running
    rectified: bool = False
    young: bool = False


@dataclass(frozen=True, eq=False)
class LayerStatistics:
    """What one batch norm was given in one training step. (C,) each, float64 on the CPU."""

    mean: Tensor
    variance: Tensor  # biased
    mean_error: Tensor  # that rounding left
    variance_error: Tensor


@dataclass(frozen=True)
class Trace:
    """One forward pass, as far as attacks need it."""

    head: Head
    operations: int  # operations met on the way
    dropout: bool  # a dropout that is active in training mode
    batch_norm: bool
    normalised: tuple[Normalised, ...] = ()  # layers in front of a batch norm


@dataclass(frozen=True)
class Problem:
    """All that an attacker knows. The truth is not among it."""

    module: nn.Module  # our own copy: right device, right mode
    gradient: Mapping[str, Tensor]  # what was sent, in the module's dtype and device
    precision: float  # see GradientDump.precision
    knowledge: Knowledge
    trace: Trace
    mode_shown: Mode | None = None  # what the dump itself says of the batch norms' mode
    auxiliary: Auxiliary | None = None
    labels: LabelClaim | None = None  # what an attack already read of the labels
    channel: Channel = field(default_factory=Channel)  # the defence that attacks allow for
    # Of the client's batch, by batch norm, when buffers after one training step were sent along.
    statistics: Mapping[str, LayerStatistics] = field(default_factory=dict)
    statistics_unused: str = ""  # why buffers that came along are not used
    # The running ones of the model, in training mode and when no others are known: for priors.
    running: Mapping[str, LayerStatistics] = field(default_factory=dict)
