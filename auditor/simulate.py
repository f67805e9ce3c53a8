"""The dump that a client would have sent for given inputs, and its truth."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from auditor.dumping import save_gradients
from auditor.errors import UsageError
from auditor.facts import Flags, deduce_input_shape, per_channel
from auditor.inputs.gradients import load_gradients
from auditor.inputs.images import load_dataset_samples, load_images
from auditor.records import GradientDump, Mode, Truth
from auditor.trace import trace


def simulate_dump(
    module: nn.Module, truth: Truth, flags: Flags, *, keep: Path | None = None
) -> GradientDump:
    """One training step's gradient for the samples of `truth`, as `auditor.capture` writes it.

    `keep` is where the dump is left; otherwise it lives in a temporary directory only. Raises
    UsageError when labels and model do not fit.
    """
    if keep is not None and keep.exists():
        raise UsageError(
            expected="a new file for the dump", found=f"{keep.name!r}", todo="Name another one."
        )
    mode: Mode = flags.mode or "eval"
    gradients = client_gradient(module, truth, flags, mode)
    channels = truth.inputs.shape[1]
    with tempfile.TemporaryDirectory() as folder:
        path = keep or Path(folder) / "simulated.safetensors"
        save_gradients(
            module,
            gradients,
            path,
            batch_size=len(truth.labels),
            input_shape=tuple(truth.inputs.shape[1:]),
            reduction=flags.reduction or "mean",
            label_smoothing=flags.label_smoothing or 0.0,
            mode=mode,
            mean=per_channel(flags.mean, channels, default=0.0, flag="--mean"),
            std=per_channel(flags.std, channels, default=1.0, flag="--std"),
        )
        return load_gradients(path, module)


def client_gradient(module: nn.Module, truth: Truth, flags: Flags, mode: Mode) -> dict[str, Tensor]:
    """What `loss.backward()` leaves in the parameters; the module itself is not touched."""
    classes = trace(module, tuple(truth.inputs.shape[1:])).head.classes
    if int(truth.labels.min()) < 0 or int(truth.labels.max()) >= classes:
        raise UsageError(
            expected=f"labels from 0 to {classes - 1}, the classes of this model",
            found=f"one from {int(truth.labels.min())} to {int(truth.labels.max())}",
            todo="Mend --label.",
        )
    client = copy.deepcopy(module).requires_grad_(True)
    if mode == "train":
        client.train()
    logits = _logits(client, truth, flags)
    loss = F.cross_entropy(
        logits,
        truth.labels,
        reduction=flags.reduction or "mean",
        label_smoothing=flags.label_smoothing or 0.0,
    )
    named = dict(client.named_parameters())
    parts = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: part for name, part in zip(named, parts, strict=True) if part is not None}


def _logits(client: nn.Module, truth: Truth, flags: Flags) -> Tensor:
    first = next(client.parameters())
    channels = truth.inputs.shape[1]
    mean, std = (
        torch.tensor(per_channel(values, channels, default=default, flag=flag)).view(-1, 1, 1)
        for values, default, flag in ((flags.mean, 0.0, "--mean"), (flags.std, 1.0, "--std"))
    )
    try:
        logits: Tensor = client(((truth.inputs - mean) / std).to(first.dtype))
    except ValueError as error:  # batch norm cannot train on one value a channel
        raise UsageError(
            expected="samples that the model can train on",
            found=str(error),
            todo="Give more samples, or say --mode eval.",
        ) from error
    return logits


def read_samples(
    module: nn.Module,
    flags: Flags,
    *,
    inputs: Sequence[Path],
    labels: Sequence[int],
    data: Path | None,
    dataset: str | None,
    indices: Sequence[int],
) -> tuple[Truth, tuple[str, ...]]:
    """The client's samples, from picture files or from a data set on disk, and notes about them.

    Raises UsageError when it is not one of the two, or labels and inputs do not pair up.
    """
    shape = shape_for(module, flags)
    if inputs and data is None and dataset is None and not indices:
        if len(inputs) != len(labels):
            raise UsageError(
                expected="one --label for each --input",
                found=f"{len(inputs)} inputs and {len(labels)} labels",
                todo="Repeat --input FILE --label K for each picture.",
            )
        pictures, notes = load_images(inputs, input_shape=shape)
        return Truth(pictures, torch.tensor(list(labels))), notes
    if not inputs and not labels and data is not None and dataset is not None and indices:
        pictures, known = load_dataset_samples(data, dataset, indices)
        return Truth(_fitted(pictures, shape), known), ()
    raise UsageError(
        expected="either --input and --label, or --data, --dataset and --index",
        found="neither of the two, or parts of both",
        todo="For example --input face.png --label 3.",
    )


def _fitted(pictures: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Pictures (N, C, H, W) of a data set at the model's size."""
    if pictures.shape[1] != shape[0]:
        raise UsageError(
            expected=f"pictures with {shape[0]} channels, as the model takes them",
            found=f"{pictures.shape[1]} in this data set",
            todo="Choose another data set.",
        )
    if tuple(pictures.shape[2:]) == shape[1:]:
        return pictures
    return F.interpolate(pictures, size=shape[1:], mode="bilinear", antialias=True).clamp(0, 1)


def shape_for(module: nn.Module, flags: Flags) -> tuple[int, int, int]:
    """The input shape that was said, or the only one that fits. Raises UsageError."""
    channels, height, width = flags.input_shape or deduce_input_shape(module)
    return channels, height, width
