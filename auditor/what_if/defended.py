"""The client's step under one setting: what it sends, and what an attacker then knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from auditor.defences import applied
from auditor.defences.applied import Defended
from auditor.local_training import LONGEST, total_steps
from auditor.problem import gradient_of, is_one_gradient, to_model_units, why_not_simulated
from auditor.records import Channel, DefenceKind, Knowledge, LocalTraining, Problem, Truth
from auditor.trials.stand_ins import told_of_stand_ins
from auditor.what_if.reference import joined, more_samples
from auditor.what_if.settings import Setting

CLIP = 1.0  # of DP-SGD, the norm that a sample's gradient is clipped to
_LR = 0.01  # of local steps, where the dump is a gradient and nobody says
_EACH_CLIPPED = "the attacks know that the samples were clipped, but do not follow each one's"
_MOST_SAMPLES = 256  # of one dump that is attacked


@dataclass(frozen=True)
class Sent:
    """One row before it is attacked."""

    problem: Problem
    truth: Truth  # all samples behind the dump, for measuring only
    cosine: float | None
    note: str = ""
    factor: float = 1.0  # what noise was put on is so many times the gradient


class NotApplicable(Exception):
    """Why a setting cannot be made for this step, in words."""


def send(problem: Problem, truth: Truth, setting: Setting, generator: torch.Generator) -> Sent:
    """The dump of this step under `setting`, as a problem. Raises NotApplicable."""
    bare = _bare(problem, len(truth.labels))
    match setting.kind:
        case "larger batch" | "secure aggregation":
            return _with_others(bare, truth, setting, generator)
        case "local steps":
            return _longer(bare, truth, setting)
        case "dp-sgd":
            return _private(bare, truth, setting, generator)
    clean = gradient_at(bare, truth)
    sent = _defended(bare, clean, setting, generator)
    return Sent(_received(bare, sent), truth, applied.cosine(clean, sent.gradient), _note(sent))


def gradient_at(problem: Problem, truth: Truth) -> dict[str, Tensor]:
    """What a client with these samples computes, before any defence."""
    like = next(iter(problem.gradient.values()))
    inputs = to_model_units(problem, truth.inputs.to(like))
    return gradient_of(problem, inputs, truth.labels.to(like.device))


def _bare(problem: Problem, samples: int) -> Problem:
    """The problem without what the audited dump itself gave away or had been defended with."""
    missing = why_not_simulated(problem)
    if missing is not None:
        raise NotApplicable(missing)
    known = replace(problem.knowledge, batch_size=samples)
    # Without buffers: most settings change the step that they would come from.
    return replace(problem, knowledge=known, labels=None, channel=Channel(), statistics={})


def _received(problem: Problem, sent: Defended) -> Problem:
    return replace(problem, gradient=sent.gradient, precision=sent.precision, channel=sent.channel)


def _defended(
    problem: Problem, clean: Mapping[str, Tensor], setting: Setting, generator: torch.Generator
) -> Defended:
    """What is made of the gradient alone."""
    strength = setting.strength
    ways: dict[DefenceKind, Callable[[], Defended]] = {
        "none": lambda: applied.as_it_is(clean),
        "noise": lambda: applied.noised(clean, strength, generator),
        "clipping": lambda: applied.clipped(clean, strength * applied.norm_of(clean)),
        "top-k": lambda: applied.largest_kept(clean, strength),
        "sign": lambda: applied.signs_of(clean),
        "int8": lambda: applied.as_int8(clean),
        "fp16": lambda: applied.as_type(clean, torch.float16),
        "bf16": lambda: applied.as_type(clean, torch.bfloat16),
        "withheld head bias": lambda: applied.without(clean, _withheld(problem, setting)),
        "frozen layer": lambda: applied.without(clean, _withheld(problem, setting)),
    }
    return ways[setting.kind]()


def _note(sent: Defended) -> str:
    return "the attacker knows the gradient up to a factor" if sent.channel.scaled else ""


# --------------------------------------------------------------------------- layers


def _withheld(problem: Problem, setting: Setting) -> tuple[str, ...]:
    """Names of what is not sent. Raises NotApplicable when it is not in the dump, or all of it."""
    names = _layer(problem, setting)
    left = set(problem.gradient) - set(names)
    if not names or not left:
        raise NotApplicable("the dump holds no such gradient, or nothing else")
    return names


def _layer(problem: Problem, setting: Setting) -> tuple[str, ...]:
    head, sent = problem.trace.head, problem.gradient
    if setting.kind == "withheld head bias":
        wanted = [head.bias]
    elif setting.strength == 1:
        wanted = [head.weight, head.bias]
    else:
        first = next(iter(sent))
        owner = first.rpartition(".")[0]
        wanted = [name for name in sent if name.rpartition(".")[0] == owner]
    return tuple(name for name in wanted if name in sent and name is not None)


# --------------------------------------------------------------------------- samples and steps


def _with_others(
    problem: Problem, truth: Truth, setting: Setting, generator: torch.Generator
) -> Sent:
    """A larger batch, or the mean over clients, which is the same when each sends one gradient."""
    count, alone = len(truth.labels), setting.kind == "larger batch"
    size = count * int(setting.strength)
    known = problem.knowledge
    if not alone and (known.mode == "train" or not is_one_gradient(problem)):
        raise NotApplicable(
            "each client trains or normalises by itself, and no attack here follows several"
        )
    if size > _MOST_SAMPLES:
        raise NotApplicable(f"{size} samples are more than are attacked here ({_MOST_SAMPLES})")
    everybody = joined(truth, more_samples(problem, size - count, generator))
    local = known.local
    if local is not None and local.batch_size is not None:
        local = replace(local, batch_size=local.batch_size * int(setting.strength))
    wider = replace(problem, knowledge=replace(known, batch_size=size, local=local))
    sent = applied.as_it_is(gradient_at(wider, everybody))
    who = "samples" if alone else "clients"
    note = f"the other {who} have {told_of_stand_ins(problem)}"
    # What the server is after is the sum; of a larger batch, the step itself is another one.
    return Sent(_received(wider, sent), everybody, None if alone else 1.0, note)


def _longer(problem: Problem, truth: Truth, setting: Setting) -> Sent:
    known, times = problem.knowledge, int(setting.strength)
    local, note = known.local, ""
    if local is None or local.lr is None or local.steps is None:
        local, note = LocalTraining(_LR, 1, None), f"with a learning rate of {_LR:g}"
    local = replace(local, steps=times * (local.steps or 1))
    steps = total_steps(local) or 0
    if steps > LONGEST:
        raise NotApplicable(f"{steps} local steps are more than are simulated ({LONGEST})")
    longer = replace(problem, knowledge=_training(known, local))
    missing = why_not_simulated(longer)
    if missing is not None:
        raise NotApplicable(missing)
    clean = gradient_at(problem, truth)
    sent = applied.as_it_is(gradient_at(longer, truth))
    cosine = applied.cosine(clean, sent.gradient)
    return Sent(_received(longer, sent), truth, cosine, note)


def _training(known: Knowledge, local: LocalTraining) -> Knowledge:
    return replace(known, local=local)


def _private(problem: Problem, truth: Truth, setting: Setting, generator: torch.Generator) -> Sent:
    """DP-SGD. Raises NotApplicable where a sample has no gradient of its own."""
    known = problem.knowledge
    if known.mode == "train" and problem.trace.batch_norm:
        raise NotApplicable("batch norm in training mode mixes the samples: none has a gradient")
    if not is_one_gradient(problem):
        raise NotApplicable("DP-SGD within local steps is not simulated")
    one = replace(problem, knowledge=replace(known, batch_size=1, local=None))
    alone = [
        Truth(truth.inputs[i : i + 1], truth.labels[i : i + 1]) for i in range(len(truth.labels))
    ]
    samples = [gradient_at(one, each) for each in alone]
    mean = known.reduction == "mean"
    sent = applied.privately(samples, CLIP, setting.strength, generator, mean=mean)
    clean = gradient_at(problem, truth)
    factor = max(applied.clip_factor(sample, CLIP) for sample in samples)
    cosine = applied.cosine(clean, sent.gradient)
    note = _note(sent) if len(samples) == 1 else _EACH_CLIPPED if sent.channel.scaled else ""
    return Sent(_received(problem, sent), truth, cosine, note, factor)
