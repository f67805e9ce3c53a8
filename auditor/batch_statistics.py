"""Statistics of the client's batch that came back with the buffers of its batch norms.

In training mode batch norm writes (1 - m) old + m batch into its running mean and variance, the
variance in its unbiased form. Old values and momentum m are in the model, so buffers sent after one
step give the batch's own statistics, layer by layer, up to rounding: a side channel that needs no
gradient. In an attack they are equations beside those of the gradient (as a term of an objective:
GradInversion, Yin et al. 2021, arXiv:2104.07586), and a claim that misses them is not the batch.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from auditor.inputs.buffers import counts_of
from auditor.inputs.precision import coarsest_spacing
from auditor.inputs.wording import quoted
from auditor.local_training import total_steps
from auditor.records import GradientDump, Knowledge, LayerStatistics

# Relative errors that single precision leaves in a mean over many places, ours and the client's.
_SUMMED = 4e-6
# Of the variance: a negative one up to so many of its errors is rounding.
_ROUNDED = 10.0


@dataclass(frozen=True)
class Sent:
    """What buffers say of the batch, by batch norm; else why they were not used."""

    layers: Mapping[str, LayerStatistics] = field(default_factory=dict)
    unused: str = ""  # empty: they were used, or none came


def statistics_in(dump: GradientDump, module: nn.Module, known: Knowledge) -> Sent:
    """The statistics of the batch, if the dump's buffers are those after one training step.

    `module` is the client's before that step, with its running statistics.
    """
    before = dict(module.named_buffers())
    running = [name for name in dump.buffers if name.endswith(("running_mean", "running_var"))]
    if not any(name in before and _moved(dump.buffers[name], before[name]) for name in running):
        return Sent()
    if (missing := _why_not_one_step(dump, module, known)) is not None:
        return Sent(unused=missing)
    assert known.batch_size is not None
    like = next(module.parameters())
    two = places_of(module, like.new_zeros(2, *known.input_shape))  # a whole batch may be large
    places = {name: count * known.batch_size // 2 for name, count in two.items()}
    spacing = coarsest_spacing(dump.tensors.values())
    layers = statistics_sent(module, dump.buffers, places=places, spacing=spacing)
    wrong = next((name for name, one in layers.items() if not _is_possible(one)), None)
    if wrong is not None:
        why = (
            "are negative or no numbers: its momentum is another one, or they are not of this step"
        )
        return Sent(unused=f"the variances that the buffers of {quoted(wrong)} give {why}")
    return Sent({name: _clamped(one) for name, one in layers.items()})


def _moved(after: Tensor, before: Tensor) -> bool:
    return not torch.equal(after.to(before), before)


def _why_not_one_step(dump: GradientDump, module: nn.Module, known: Knowledge) -> str | None:
    counts = counts_of(dump.buffers, module)
    steps = None if known.local is None else total_steps(known.local)
    if known.batch_size is None:
        return "the batch size is unknown"
    if counts - {0, 1}:
        return f"they count {max(counts)} steps, and mix the batches of all of them"
    if counts == {0}:
        return "they moved, but count no step"
    if steps is None and not counts:
        return "the number of local steps is unknown"
    if steps not in {None, 1}:
        return f"the client took {steps} steps, and they mix the batches of all of them"
    return None


def _is_possible(one: LayerStatistics) -> bool:
    finite = one.mean.isfinite().all() and one.variance.isfinite().all()
    return bool(finite and (one.variance >= -_ROUNDED * one.variance_error).all())


def _clamped(one: LayerStatistics) -> LayerStatistics:
    variance = one.variance.clamp_min(0)
    return LayerStatistics(one.mean, variance, one.mean_error, one.variance_error)


def statistics_sent(
    module: nn.Module,
    after: Mapping[str, Tensor],
    *,
    places: Mapping[str, int],
    spacing: float = 0.0,
) -> dict[str, LayerStatistics]:
    """The statistics of the client's batch, by the name of the batch norm.

    `after` holds the buffers that came back after one training step on `module`; `places` how many
    numbers a channel each batch norm averaged (samples times height times width). `spacing` is the
    relative error of the changes that the buffers were made from. What does not fit is left out.
    """
    found = {}
    for name, norm in module.named_modules():
        mean, variance = after.get(f"{name}.running_mean"), after.get(f"{name}.running_var")
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
            continue
        if mean is None or variance is None or norm.running_var is None or name not in places:
            continue
        if mean.shape != norm.running_mean.shape or variance.shape != norm.running_var.shape:
            continue
        if not _moved(mean, norm.running_mean) and not _moved(variance, norm.running_var):
            continue  # frozen: it was not trained
        share, count = _share(norm, after.get(f"{name}.num_batches_tracked")), places[name]
        if share == 0 or count < 2:
            continue
        batch_mean, mean_error = _undone(mean, norm.running_mean, share, spacing)
        unbiased, variance_error = _undone(variance, norm.running_var, share, spacing)
        biased = (count - 1) / count
        found[name] = LayerStatistics(
            batch_mean, unbiased * biased, mean_error, variance_error * biased
        )
    return found


def _undone(after: Tensor, before: Tensor, share: float, spacing: float) -> tuple[Tensor, Tensor]:
    """The batch's value in a running one, and the error that rounding left in it; (C,) each."""
    new, old = after.detach().double().cpu(), before.detach().double().cpu()
    eps = torch.finfo(before.dtype).eps
    error = (eps * (new.abs() + old.abs()) + spacing * (new - old).abs()) / share
    return (new - (1 - share) * old) / share, error


def _share(norm: nn.modules.batchnorm._BatchNorm, tracked: Tensor | None) -> float:
    """The weight of the new batch in a running value; without a momentum, a plain average."""
    if norm.momentum is not None:
        return float(norm.momentum)
    if tracked is None and norm.num_batches_tracked is not None:
        tracked = norm.num_batches_tracked + 1
    return 0.0 if tracked is None else 1.0 / max(int(tracked), 1)


def running_statistics(module: nn.Module) -> dict[str, LayerStatistics]:
    """The running statistics of a model, as if they were those of a batch, without errors."""
    found = {}
    for name, norm in module.named_modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
            assert norm.running_var is not None
            mean, variance = (
                part.detach().double().cpu() for part in (norm.running_mean, norm.running_var)
            )
            none = torch.zeros_like(mean)
            found[name] = LayerStatistics(mean, variance, none, none)
    return found


def places_of(module: nn.Module, inputs: Tensor) -> dict[str, int]:
    """How many numbers a channel each batch norm averages over a batch like `inputs`.

    One that is called more than once has no statistics of its own, and is left out.
    """
    ours = copy.deepcopy(module).eval()
    names = [n for n, m in ours.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad(), tapped(ours, names) as seen:
        ours(inputs)
    once = {name: given[0] for name, given in seen.items() if len(given) == 1}
    return {name: given.numel() // given.shape[1] for name, given in once.items()}


# --------------------------------------------------------------------------- beside a candidate


@contextmanager
def tapped(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Tensor]]]:
    """What the modules of these names are given inside `with`, one entry a call."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    named = dict(module.named_modules())

    def keep(name: str) -> object:
        return named[name].register_forward_pre_hook(lambda _, given: seen[name].append(given[0]))

    handles = [keep(name) for name in seen]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()  # type: ignore[attr-defined]


def statistics_of(given: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of what a batch norm is given, (N, C, ...)."""
    flat = given.transpose(0, 1).flatten(1)  # (C, N * places)
    return flat.mean(1), flat.var(1, correction=0)


def apart(
    sent: Mapping[str, LayerStatistics], seen: Mapping[str, list[Tensor]], *, tolerance: float
) -> dict[str, Tensor]:
    """By layer, how far a candidate's statistics are from those sent: (2C,), their squares sum to 1
    where everything is off by its own size.

    Means in units of the standard deviation, standard deviations relative to themselves; units are
    so large that an error of rounding is within `tolerance`.
    """
    return {name: _apart(one, seen[name][0], tolerance) for name, one in sent.items() if seen[name]}


def _apart(sent: LayerStatistics, given: Tensor, tolerance: float) -> Tensor:
    mean, variance = statistics_of(given)
    deviation, mean_unit, deviation_unit, floor = (
        part.to(given) for part in _units(sent, tolerance)
    )
    # The floor keeps the root differentiable where a candidate does not vary at all.
    mine = (variance + floor).sqrt()
    rows = torch.cat(
        [(mean - sent.mean.to(given)) / mean_unit, (mine - deviation) / deviation_unit]
    )
    return rows / math.sqrt(len(rows))


def _units(sent: LayerStatistics, tolerance: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standard deviation, units of mean and standard deviation, what is added to variances."""
    floor = 1e-6 * sent.variance + sent.variance_error + 1e-30
    deviation = (sent.variance + floor).sqrt()
    mean_error = sent.mean_error + _SUMMED * (sent.mean.abs() + deviation)
    deviation_error = sent.variance_error / (2 * deviation) + _SUMMED * deviation
    deviation_error = deviation_error + _SUMMED * sent.mean.abs()  # it is subtracted
    mean_unit = torch.maximum(deviation, mean_error / tolerance)
    return deviation, mean_unit, torch.maximum(deviation, deviation_error / tolerance), floor


def distances(rows: Mapping[str, Tensor]) -> dict[str, float]:
    """The size of each layer's rows: root mean square of the relative differences."""
    return {name: float(part.detach().norm()) for name, part in rows.items()}
