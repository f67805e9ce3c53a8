"""What is known of the local training behind an update."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn

from auditor.errors import UsageError
from auditor.facts.merge import Merge, usage
from auditor.inputs.buffers import steps_counted
from auditor.local_training import schedule
from auditor.records import GradientDump, Kind, LocalTraining, Origin

_MOST = 10_000
_MOST_SAMPLES = 1 << 16


@dataclass(frozen=True)
class LocalFlags:
    """What the caller said of an update. None: nothing."""

    kind: Kind | None = None
    lr: float | None = None
    steps: int | None = None
    batch_size: int | None = None
    epochs: int | None = None
    momentum: float | None = None
    weight_decay: float | None = None

    @property
    def told(self) -> tuple[str, ...]:
        """The flags that only an update has and that were given."""
        flags = {
            "--lr": self.lr,
            "--local-steps": self.steps,
            "--local-batch": self.batch_size,
            "--local-epochs": self.epochs,
            "--momentum": self.momentum,
            "--weight-decay": self.weight_decay,
        }
        return tuple(flag for flag, value in flags.items() if value is not None)


NOTHING_LOCAL = LocalFlags()


def check_local(flags: LocalFlags) -> None:
    """Raise UsageError for what makes no sense."""
    if flags.kind not in {None, "gradient", "update"}:
        raise usage("gradient or update", repr(flags.kind), "--kind")
    if flags.lr is not None and not 0 < flags.lr < math.inf:
        raise usage("a learning rate above 0", flags.lr, "--lr")
    counts = {
        "--local-steps": (flags.steps, _MOST),
        "--local-epochs": (flags.epochs, _MOST),
        "--local-batch": (flags.batch_size, _MOST_SAMPLES),
    }
    for flag, (value, most) in counts.items():
        if value is not None and not 1 <= value <= most:
            raise usage(f"a whole number from 1 to {most}", value, flag)
    for flag, part in (("--momentum", flags.momentum), ("--weight-decay", flags.weight_decay)):
        if part is not None and not 0 <= part < 1:
            raise usage("a number from 0 to below 1", part, flag)


def local_training(
    merge: Merge, flags: LocalFlags, dump: GradientDump, module: nn.Module
) -> LocalTraining | None:
    """What is known of an update; None for a gradient. Raises UsageError."""
    meta = dump.metadata
    if dump.kind == "gradient":
        if flags.told:
            raise UsageError(
                expected="an update: only that has a learning rate and local steps",
                found=f"{', '.join(flags.told)} for a gradient",
                todo="Add --kind update, or leave them out.",
            )
        if flags.kind is not None and meta.kind is not None:
            merge.take("kind", flags.kind, meta.kind, None)
        return None
    said: Origin = "metadata" if flags.kind is None else "flag"
    merge.note("kind", "update: weights after minus weights before", said)
    lr, _ = merge.take("learning rate", flags.lr, meta.lr, None)
    steps, _ = merge.take("local steps", flags.steps, meta.local_steps, None)
    epochs = merge.take("local epochs", flags.epochs, meta.local_epochs, None)[0] or 1
    if steps is None:
        steps = _steps_of_buffers(merge, dump, module, epochs)
    size, _ = merge.take("local batch", flags.batch_size, meta.local_batch, None)
    momentum, _ = merge.take("momentum", flags.momentum, meta.momentum, 0.0)
    decay, _ = merge.take("weight decay", flags.weight_decay, meta.weight_decay, 0.0)
    local = LocalTraining(lr, steps, size, momentum, decay, epochs)
    plan = schedule(local)
    if plan is not None and min(plan.shares) < 0:
        raise UsageError(
            expected="a weight decay that leaves the sign of every step's gradient",
            found=f"{decay:g} at a learning rate of {lr:g}",
            todo="Mend --weight-decay or --lr.",
        )
    return local


def _steps_of_buffers(
    merge: Merge, dump: GradientDump, module: nn.Module, epochs: int
) -> int | None:
    """Batch norms count the steps that they train."""
    counted = steps_counted(dump.buffers, module)
    if counted is None or counted % epochs:
        return None
    merge.note("local steps", counted // epochs, "deduced")
    return counted // epochs


def samples_of(merge: Merge, local: LocalTraining) -> int | None:
    """An epoch goes through the data once, so that it has as many samples as its steps take."""
    if local.steps is None or local.batch_size is None:
        return None
    found = local.steps * local.batch_size
    merge.note("batch size", found, "assumed")
    return found


def with_batches(merge: Merge, local: LocalTraining, samples: int | None) -> LocalTraining:
    """The training with batches that its steps can have gone through. Raises UsageError."""
    if samples is None:
        return local
    if local.batch_size is None:
        if local.steps != 1 or local.epochs != 1:
            merge.note("local batch", samples, "deduced" if samples == 1 else "assumed")
        return replace(local, batch_size=samples)
    batches = -(-samples // local.batch_size)
    steps = None if local.steps is None else local.steps * local.epochs
    if local.batch_size > samples or (steps is not None and batches > steps):
        raise UsageError(
            expected="a batch size that the local steps go through",
            found=f"{samples} samples, local batches of {local.batch_size}"
            + ("" if steps is None else f", {steps} steps"),
            todo="Mend --batch-size, --local-batch or --local-steps.",
        )
    return local
