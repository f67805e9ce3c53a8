"""The gradient or the update that a client would have sent for given inputs, and its truth."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from auditor.audit import Case
from auditor.dumping import save_gradients
from auditor.errors import UsageError
from auditor.facts import Flags, deduce_input_shape, per_channel, settle
from auditor.inputs.gradients import load_gradients
from auditor.inputs.images import load_dataset_samples, load_images
from auditor.inputs.tables import load_table
from auditor.inputs.wording import listed, quoted, shaped
from auditor.records import GradientDump, LoadedModel, Mode, Truth
from auditor.trace import require_classes, trace


def simulated_case(
    loaded: LoadedModel, truth: Truth, flags: Flags, *, keep: Path | None = None
) -> Case:
    """What is audited when a client with these samples sent its dump. Raises UsageError."""
    dump = simulate_dump(loaded.module, truth, flags, keep=keep)
    return Case(loaded, dump, settle(dump, loaded.module, flags), truth)


def simulate_dump(
    module: nn.Module, truth: Truth, flags: Flags, *, keep: Path | None = None
) -> GradientDump:
    """One training step's gradient for the samples of `truth`, as `auditor.capture` writes it.

    Where `flags` say that it is an update: the change of the weights after their local steps.

    `keep` is where the dump is left; otherwise it lives in a temporary directory only. Raises
    UsageError when labels and model do not fit.
    """
    if keep is not None and keep.exists():
        raise UsageError(
            expected="a new file for the dump", found=f"{keep.name!r}", todo="Name another one."
        )
    mode: Mode = flags.mode or "eval"
    local = flags.local
    made = client_update if local.kind == "update" else client_gradient
    gradients = made(module, truth, flags, mode)
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
            kind=local.kind or "gradient",
            lr=local.lr,
            local_steps=local.steps,
            local_batch=local.batch_size,
            local_epochs=local.epochs,
            momentum=local.momentum,
            weight_decay=local.weight_decay,
        )
        return load_gradients(path, module)


def client_gradient(module: nn.Module, truth: Truth, flags: Flags, mode: Mode) -> dict[str, Tensor]:
    """What `loss.backward()` leaves in the parameters; the module itself is not touched."""
    client = _client(module, truth, mode)
    loss = _loss(client, truth, flags)
    named = dict(client.named_parameters())
    parts = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: part for name, part in zip(named, parts, strict=True) if part is not None}


def client_update(module: nn.Module, truth: Truth, flags: Flags, mode: Mode) -> dict[str, Tensor]:
    """Weights and buffers after training with `torch.optim.SGD`, minus those before.

    The steps take batches in the order of the samples, in turn. Raises UsageError when learning
    rate or steps are not said.
    """
    local, count = flags.local, len(truth.labels)
    if local.lr is None or local.steps is None:
        raise UsageError(
            expected="a learning rate and local steps, which an update is made with",
            found="only one of them",
            todo="Say both --lr and --local-steps.",
        )
    client = _client(module, truth, mode)
    before = {name: value.clone() for name, value in client.state_dict().items()}
    optimizer = torch.optim.SGD(
        client.parameters(), local.lr, local.momentum or 0.0, weight_decay=local.weight_decay or 0.0
    )
    size = local.batch_size or count
    batches = [
        Truth(truth.inputs[first : first + size], truth.labels[first : first + size])
        for first in range(0, count, size)
    ]
    for step in range(local.steps * (local.epochs or 1)):
        optimizer.zero_grad()
        _loss(client, batches[step % len(batches)], flags).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: value - before[name] for name, value in client.state_dict().items()}


def _client(module: nn.Module, truth: Truth, mode: Mode) -> nn.Module:
    """A copy that can be trained. Raises UsageError for labels that the model does not have."""
    head = trace(module, tuple(truth.inputs.shape[1:])).head
    require_classes(head)
    classes = head.classes
    if int(truth.labels.min()) < 0 or int(truth.labels.max()) >= classes:
        raise UsageError(
            expected=f"labels from 0 to {classes - 1}, the classes of this model",
            found=f"one from {int(truth.labels.min())} to {int(truth.labels.max())}",
            todo="Mend --label.",
        )
    client = copy.deepcopy(module).requires_grad_(True)
    return client.train() if mode == "train" else client


def _loss(client: nn.Module, truth: Truth, flags: Flags) -> Tensor:
    return F.cross_entropy(
        _logits(client, truth, flags),
        truth.labels,
        reduction=flags.reduction or "mean",
        label_smoothing=flags.label_smoothing or 0.0,
    )


def _logits(client: nn.Module, truth: Truth, flags: Flags) -> Tensor:
    first = next(client.parameters())
    channels, rest = truth.inputs.shape[1], [1] * (truth.inputs.dim() - 2)
    mean, std = (
        torch.tensor(per_channel(values, channels, default=default, flag=flag)).view(-1, *rest)
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


def client_samples(
    module: nn.Module,
    flags: Flags,
    inputs: Sequence[Path],
    labels: Sequence[int],
    data: Path | None,
    dataset: str | None,
    indices: Sequence[int],
    label_column: str | None,
) -> tuple[Truth, Flags, tuple[str, ...]]:
    """The client's pictures or rows, whichever the model takes, what is known then, and notes.

    Raises UsageError and InputError as `read_samples` and `read_rows` do.
    """
    shape = input_shape_of(module, flags)
    if len(shape) == 1:
        if data is not None or dataset is not None:
            raise UsageError(
                expected="--input FILE, for a model that takes rows of a table",
                found="a data set of pictures",
                todo="Give a CSV with a header, an .npz or a .pt file with --input.",
            )
        truth, columns = read_rows(shape[0], inputs, labels, indices, label_column)
        return truth, replace(flags, input_shape=shape, columns=columns), ()
    if label_column is not None:
        raise UsageError(
            expected="--label-column for a model that takes rows of a table",
            found=f"one that takes pictures of shape {shaped(shape)}",
            todo="Leave it out, or say --modality features.",
        )
    said = replace(flags, input_shape=shape)
    read, notes = read_samples(module, said, inputs, labels, data, dataset, indices)
    return read, flags, notes


def read_samples(
    module: nn.Module,
    flags: Flags,
    inputs: Sequence[Path],
    labels: Sequence[int],
    data: Path | None,
    dataset: str | None,
    indices: Sequence[int],
) -> tuple[Truth, tuple[str, ...]]:
    """The client's pictures, from files or from a data set on disk, and notes about them.

    Raises UsageError when it is not one of the two, or labels and inputs do not pair up.
    """
    channels, height, width = input_shape_of(module, flags)
    shape = (channels, height, width)
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


def input_shape_of(module: nn.Module, flags: Flags) -> tuple[int, ...]:
    """The input shape that was said, or the only one that fits. Raises UsageError."""
    return flags.input_shape or deduce_input_shape(module, flags.modality)


def read_rows(
    columns: int,
    inputs: Sequence[Path],
    labels: Sequence[int],
    indices: Sequence[int],
    label_column: str | None,
) -> tuple[Truth, tuple[str, ...]]:
    """The client's rows of a table with so many columns, from one file, and the columns' names.

    `indices`: which rows of it, all if there are none. Labels come from the file, or one for each
    row. Raises UsageError and InputError where they do not fit.
    """
    if len(inputs) != 1:
        raise UsageError(
            expected="one file with rows of a table: a CSV with a header, .npz, .pt",
            found=f"{len(inputs)} files",
            todo="Give --input FILE once; --index chooses rows of it.",
        )
    table = load_table(inputs[0], label_column=label_column).chosen(indices)
    count, width = table.rows.shape
    if width != columns:
        named = f": {listed(table.columns)}" if table.columns else ""
        raise UsageError(
            expected=f"{columns} columns, as the model takes them",
            found=f"{width} in {quoted(inputs[0].name)}{named}",
            todo="Give the columns that the model was trained on, in that order. --label-column "
            "NAME says which one holds the labels.",
        )
    told = table.labels
    if labels:
        if told is not None or len(labels) != count:
            raise UsageError(
                expected="one --label for each row, where the file does not hold them",
                found=f"{count} rows and {len(labels)} labels",
                todo="Leave --label out, or give one for each row in the order of the rows.",
            )
        told = torch.tensor(list(labels))
    if told is None:
        raise UsageError(
            expected="a label for each row",
            found="none",
            todo="Say --label-column NAME for a CSV, or --label K once for each row.",
        )
    return Truth(table.rows, told), table.columns
