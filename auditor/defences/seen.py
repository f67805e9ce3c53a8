"""What a dump shows of itself: the defence in it, and whether it belongs to this model.

No truth is needed, and none is used. What cannot be told is named in `Looked.unsaid`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from auditor.batch_norm import mode_caveats
from auditor.defences.forms import Forms, forms_of
from auditor.defences.head_search import batch_fit
from auditor.defences.identities import NORM, groups_of, structure_of
from auditor.defences.noise import Floors, Noise, floors_of, read_noise
from auditor.defences.single import HeadFit, is_turned, single_of
from auditor.defences.words import defences_in, tested_words, unsaid_words
from auditor.records import Belongs, Caveat, Channel, DefenceSeen, GradientDump, Mode, Problem

_TELLING = 0.2  # relative size of what noise leaves, up to which other weights would show
_SCALE, _SMOOTHING = 1e-3, 2e-3  # what a scale or a smoothing may be off by
_COLLINEAR, _ENOUGH = 0.05, 16


@dataclass(frozen=True)
class Looked:
    """The answer of `look`."""

    defences: tuple[DefenceSeen, ...]
    channel: Channel
    belongs: Belongs
    tested: tuple[str, ...]
    unsaid: tuple[str, ...]
    caveats: tuple[Caveat, ...]
    mode: Mode | None = None  # of the batch norms, as identities have it


@dataclass(frozen=True)
class _Seen:
    """Everything that was read, before it is put into words."""

    forms: Forms
    noise: Noise
    single: HeadFit | None
    turned: bool
    penalty: float | None  # weight decay that is in the gradient
    other_loss: bool


def look(problem: Problem, dump: GradientDump) -> Looked:
    """Recognise defences, test whether model and dump belong together, collect caveats.

    One forward pass of two samples, and sums over the dump.
    """
    seen = _see(problem, dump)
    single = None if _belongs(seen) == "contradicted" else seen.single
    return Looked(
        defences=defences_in(seen.forms, seen.noise, single, dump, problem.trace.head),
        channel=_channel(seen, dump),
        belongs=_belongs(seen),
        tested=tested_words(seen.noise, seen.single),
        unsaid=unsaid_words(seen.forms, seen.noise, belongs=_belongs(seen)),
        caveats=tuple(_caveats(problem, seen)),
        mode=seen.noise.mode,
    )


def _see(problem: Problem, dump: GradientDump) -> _Seen:
    forms = forms_of(dump.tensors, dump.precision)
    if forms.pruned or forms.signs is not None:  # no sum of what is left has to be zero
        return _Seen(forms, Noise("nothing"), None, False, None, False)
    floors = floors_of(problem, forms.spacings, forms.steps)
    groups = groups_of(problem, structure_of(problem), problem.gradient)
    noise = read_noise(problem, groups, floors)
    if not noise.sigma:
        head = problem.trace.head
        spacings = [forms.spacings.get(name or "", 0.0) for name in (head.weight, head.bias)]
        other = _sums_left(problem, noise, floors)
        single = None if other else single_of(problem, max(problem.precision, *spacings))
        plain = noise.said == "clean" and not forms.steps and not noise.more_samples
        if single is None and not other and plain:
            single = batch_fit(problem, calibrated=not noise.bound)
        turned = not other and noise.said == "clean" and is_turned(problem, single)
        return _Seen(forms, noise, single, turned, None, other)
    penalty = _penalty(problem)
    if penalty is not None:
        noise = Noise("nothing")
    return _Seen(forms, noise, None, False, penalty, False)


def _channel(seen: _Seen, dump: GradientDump) -> Channel:
    forms, single = seen.forms, seen.single
    scaled = forms.clipped is not None or (
        single is not None and bool(single.fits) and 0 < single.scale < 1 - _SCALE - single.blur
    )
    return Channel(
        sigma=seen.noise.sigma,
        masked=forms.pruned,
        signs=forms.signs is not None,
        steps=dict(forms.steps) if dump.kind == "gradient" else {},
        scaled=scaled,
    )


def _belongs(seen: _Seen) -> Belongs:
    noise, single = seen.noise, seen.single
    misfit = single is not None and single.fits is False and noise.said == "clean"
    if noise.said == "other weights" or misfit:
        return "contradicted"
    if noise.said == "clean" and (noise.bound or (single is not None and single.fits)):
        return "shown"
    if noise.said == "noise" and noise.bound and max(g.ratio for g in noise.bound) < _TELLING:
        return "shown"
    return "not tested"


# --------------------------------------------------------------------------- caveats


def _caveats(problem: Problem, seen: _Seen) -> list[Caveat]:
    raised = []
    if _belongs(seen) == "contradicted":
        raised.append(_other_weights(seen))
    if seen.noise.said == "roughly":
        raised.append(_rough(seen.noise))
    if seen.noise.more_samples:
        raised.append(_more_samples(problem))
    if seen.turned:
        raised.append(_turned(seen.single))
    if seen.penalty is not None or seen.other_loss:
        raised.append(_other_loss(seen.penalty))
    if problem.mode_shown is None:  # noise hid it from the test at the start
        raised += mode_caveats(problem.knowledge, seen.noise.mode)
    return raised + ([] if _belongs(seen) == "contradicted" else _of_single(problem, seen))


def _other_weights(seen: _Seen) -> Caveat:
    noise = seen.noise
    how = (
        "no samples, as many as it is said to hold, leave this gradient of this classifier at any "
        "scale (for simulated clients of this model the same test always finds them)"
    )
    if noise.said == "other weights":
        worst = max(noise.bound, key=lambda group: group.ratio)
        kind = "batch norms" if worst.kind == NORM else "units behind ReLU"
        how = (
            f"sums that are zero for any weights are so, those that need this model's ({kind}) are "
            f"off by up to {worst.ratio:.1e} of their size"
        )
    return Caveat(
        "GA310",
        f"The dump was not made with this model's weights: {how}. Stale weights, another model or "
        "another order of its layers: what this audit says of the labels is withdrawn, and a "
        "picture that was not recovered means nothing.",
        voids=True,
    )


def _rough(noise: Noise) -> Caveat:
    worst = max((group.ratio for group in noise.bound), default=0.0)
    return Caveat(
        "GA311",
        f"Model and dump fit each other to {worst:.1e} only, and the dump is more exact than that: "
        "the weights are a step older or newer, or the client computed in reduced precision "
        "(TF32, bfloat16). Attacks that need more digits will fail for that reason.",
        voids=False,
    )


def _more_samples(problem: Problem) -> Caveat:
    return Caveat(
        "GA316",
        f"The gradient holds more samples than the {problem.knowledge.batch_size} that it is said "
        "to hold: a larger batch, several steps or several clients added up; or entries were "
        "changed one by one. What was not rebuilt means nothing.",
        voids=True,
    )


def _turned(single: HeadFit | None) -> Caveat:
    what = (
        "The gradient of the one sample is turned around: this is a change of weights (weights "
        "after training minus weights before). Say --kind update."
    )
    if single is None or not single.fits:
        what = (
            "More classes have a negative gradient than there are samples: the dump is a change of "
            "weights (say --kind update), or the labels were smoothed (say --label-smoothing)."
        )
    return Caveat("GA312", f"{what} Read as it is, every sign would be wrong.", voids=True)


def _other_loss(penalty: float | None) -> Caveat:
    what = (
        "the head's sums over the classes lie in the span of its features, as another loss than "
        "softmax cross-entropy leaves them"
    )
    if penalty is not None:
        what = (
            f"the head's sums over the classes are {penalty:.2g} times those of its weights, as "
            "weight decay leaves them"
        )
    return Caveat(
        "GA315",
        f"The gradient is not that of softmax cross-entropy alone: {what}. Attacks and checks "
        "differentiate the loss that was named.",
        voids=True,
    )


def _of_single(problem: Problem, seen: _Seen) -> list[Caveat]:
    """What the classifier's gradient says of smoothing and scale."""
    single, raised = seen.single, list[Caveat]()
    if single is None or not single.fits or single.scale < 0:
        return raised
    known = problem.knowledge.label_smoothing
    if abs(single.smoothing - known) > _SMOOTHING + single.haze:
        raised.append(
            Caveat(
                "GA313",
                f"The labels were smoothed by {single.smoothing:.3g}, not by {known:g}: say "
                f"--label-smoothing {single.smoothing:.3g}.",
                voids=True,
            )
        )
    if abs(single.scale - 1) > _SCALE + single.blur:
        raised.append(
            Caveat(
                "GA314",
                f"The dump is {single.scale:.4g} times the gradient of such a batch: it was "
                "clipped, summed, accumulated or scaled. Attacks that compare sizes will fail "
                "for that reason.",
                voids=False,
            )
        )
    return raised


# --------------------------------------------------------------------------- other terms


def _sums(problem: Problem) -> tuple[Tensor, Tensor, float] | None:
    """Sums over the classes of the head's gradient and weight, (E,) each, and the former's size."""
    name = problem.trace.head.weight
    if name not in problem.gradient:
        return None
    sent = problem.gradient[name].detach().cpu().double()
    weight = dict(problem.module.named_parameters())[name].detach().cpu().double()
    return sent.sum(0), weight.sum(0), float(sent.norm())


def _sums_left(problem: Problem, noise: Noise, floors: Floors) -> bool:
    """Whether sums are left within the span of the features, which noise would not choose.

    A hundred times what rounding to the dump's digits leaves there.
    """
    found = _sums(problem)
    if found is None or noise.said != "clean" or floors.steps:
        return False
    allowed = 100 * max(floors.relative, *floors.spacings.values(), 1e-6) + 10 * floors.softmax
    return float(found[0].norm()) > allowed * found[2]


def _penalty(problem: Problem) -> float | None:
    """Weight decay: the sums of the gradient are a multiple of those of the weights."""
    found = _sums(problem)
    if found is None or len(found[0]) < _ENOUGH:
        return None
    sums, weights, _ = found
    factor = float(sums @ weights / weights.square().sum().clamp_min(1e-30))
    apart = float((sums - factor * weights).norm())
    return factor if apart < _COLLINEAR * float(sums.norm()) else None
