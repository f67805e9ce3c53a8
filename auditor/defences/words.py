"""What was seen in a dump, in the words of the report."""

from __future__ import annotations

from collections.abc import Iterator

from auditor.defences.forms import Forms
from auditor.defences.identities import NORM, OUTER, SUMS, UNITS, Group
from auditor.defences.noise import Noise
from auditor.defences.single import HeadFit
from auditor.records import DefenceSeen, GradientDump, Head

_KINDS = {
    SUMS: "sums over the classes",
    OUTER: "ranks of linear layers",
    UNITS: "units behind ReLU",
    NORM: "batch norms",
}
_HALF = 9.8e-4  # spacing of float16


def defences_in(
    forms: Forms, noise: Noise, single: HeadFit | None, dump: GradientDump, head: Head
) -> tuple[DefenceSeen, ...]:
    """Every defence that shows, the strongest statement of each."""
    found = [
        *_noise(noise),
        *_pruning(forms),
        *_signs(forms),
        *_grid(forms),
        *_sixteen_bits(forms),
        *_clipping(forms, single),
        *_missing(forms, dump, head),
    ]
    if noise.more_samples:
        basis = "rank of the gradients of linear layers"
        summary = (
            "More samples were added up than the batch is said to hold, or entries were changed "
            "one by one."
        )
        found.append(DefenceSeen("larger batch", None, None, None, summary, basis))
    return tuple(found)


def _noise(noise: Noise) -> Iterator[DefenceSeen]:
    if noise.said == "noise and more":
        yield from _changed(noise)
        return
    if not noise.sigma:
        return
    groups = (*noise.free, *noise.bound)
    if noise.said == "noise by layer":
        sizes = sorted(group.variance**0.5 for group in groups)
        yield DefenceSeen(
            "noise",
            noise.sigma,
            None,
            None,
            f"Noise was added whose standard deviation differs between layers, from {sizes[0]:.1e} "
            f"to {sizes[-1]:.1e}; {noise.sigma:.1e} on average.",
            _basis(groups),
        )
        return
    groups = noise.free if noise.said == "other weights" else groups
    yield DefenceSeen(
        "noise",
        noise.sigma,
        noise.low,
        noise.high,
        f"Independent noise of standard deviation {noise.sigma:.2e} was added to every entry.",
        _basis(groups),
    )


def _changed(noise: Noise) -> Iterator[DefenceSeen]:
    """More than noise, or something else: entries that were dropped or multiplied one by one."""
    if noise.sigma:
        size = noise.sigma
        yield DefenceSeen(
            "noise",
            size,
            None,
            noise.high,
            f"If noise was added, its standard deviation is {size:.1e} at most: small entries are "
            "no larger.",
            "the median size of the entries",
        )
    yield DefenceSeen(
        "unknown",
        None,
        None,
        None,
        "More than noise broke the identities: entries were dropped, multiplied or changed "
        "otherwise.",
        _basis((*noise.free, *noise.bound)),
    )


def _basis(groups: tuple[Group, ...]) -> str:
    """How many identities of which kinds."""
    counts = {kind: sum(group.degrees for group in groups if group.kind == kind) for kind in _KINDS}
    parts = [f"{round(count)} of {_KINDS[kind]}" for kind, count in counts.items() if count]
    return f"what is left of identities: {', '.join(parts)}"


def _pruning(forms: Forms) -> Iterator[DefenceSeen]:
    if not forms.pruned:
        return
    zeros = forms.zeros
    assert zeros.threshold is not None
    where = "one threshold for all tensors" if zeros.together else "a threshold for each tensor"
    share = zeros.share
    if not zeros.together:  # what dead units leave in single tensors is no pruning
        share = sorted(zeros.each.values())[len(zeros.each) // 2]
    yield DefenceSeen(
        "top-k",
        share,
        share,
        share,
        f"{share:.1%} of the entries are zero and none lies between zero and "
        f"{zeros.threshold:.2e}: only the largest were kept ({where}).",
        "the gap above zero",
    )


def _signs(forms: Forms) -> Iterator[DefenceSeen]:
    if forms.signs is not None:
        yield DefenceSeen(
            "sign",
            forms.signs,
            None,
            None,
            f"All entries of a tensor have the same size, {forms.signs:.2e} on average: only "
            "signs were sent.",
            "the sizes of the entries",
        )


def _grid(forms: Forms) -> Iterator[DefenceSeen]:
    if not forms.steps:
        return
    steps = sorted(forms.steps.values())
    yield DefenceSeen(
        "int8",
        steps[len(steps) // 2],
        steps[0],
        steps[-1],
        f"The entries of {len(steps)} tensors lie on a grid of at most 256 levels each, "
        f"{steps[0]:.1e} to {steps[-1]:.1e} apart.",
        "the differences between entries",
    )


def _sixteen_bits(forms: Forms) -> Iterator[DefenceSeen]:
    if forms.sixteen_bits is None:
        return
    half = forms.sixteen_bits < 2 * _HALF
    name = "float16" if half else "bfloat16"
    yield DefenceSeen(
        "fp16" if half else "bf16",
        forms.sixteen_bits,
        None,
        None,
        f"The entries are {name} numbers, rounded to {forms.sixteen_bits:.1e} of their size.",
        "the digits of the entries",
    )


def _clipping(forms: Forms, single: HeadFit | None) -> Iterator[DefenceSeen]:
    if forms.clipped is not None:
        norm, each = forms.clipped.norm, forms.clipped.each
        what = "The longest tensors all have" if each else "The whole gradient has"
        summary = f"{what} the norm {norm:.6g}: it was clipped to that."
        yield DefenceSeen("clipping", norm, norm, norm, summary, "the norms of the tensors")
    elif single is not None and single.fits and 0 < single.scale < 0.999 - single.blur:
        summary = f"The gradient was multiplied with {single.scale:.4g}."
        basis = "the prediction that belongs to the features in the head's gradient"
        yield DefenceSeen("clipping", None, None, None, summary, basis)
    if forms.saturated is not None:
        size = forms.saturated
        summary = f"Several entries have the largest size of all, {size:.6g}: cut off one by one."
        yield DefenceSeen("clipping", size, size, size, summary, "the largest entries")


def _missing(forms: Forms, dump: GradientDump, head: Head) -> Iterator[DefenceSeen]:
    basis = "the names of the tensors"
    if head.bias is not None and head.bias in dump.missing:
        summary = "The gradient of the classifier's bias was not sent."
        yield DefenceSeen("withheld head bias", None, None, None, summary, basis)
    others = [name for name in dump.missing if name != head.bias]
    if others:
        summary = f"{len(others)} tensors were not sent, {others[0]} among them."
        yield DefenceSeen("frozen layer", float(len(others)), None, None, summary, basis)
    if forms.empty and not forms.pruned:
        count = len(forms.empty)
        summary = (
            f"{count} tensors are zero everywhere, {forms.empty[0]} among them: frozen, or nothing "
            "of the batch reached them."
        )
        yield DefenceSeen("frozen layer", float(count), None, None, summary, "their entries")


def tested_words(noise: Noise, single: HeadFit | None) -> tuple[str, ...]:
    """Which identities were tested, and how far they hold."""
    groups, words = (*noise.free, *noise.bound), list[str]()
    for kind, name in _KINDS.items():
        mine = [group for group in groups if group.kind == kind]
        if mine:
            worst, count = max(group.ratio for group in mine), round(sum(g.degrees for g in mine))
            words.append(f"{name}: {count} identities, off by {worst:.1e} of their size at most")
    if single is not None and single.fits is not None:
        verb = "fits" if single.fits else "does not fit"
        words.append(f"the classifier's gradient {verb} predictions of this classifier")
    return tuple(words)


def unsaid_words(forms: Forms, noise: Noise, *, belongs: str) -> tuple[str, ...]:
    """Statements that are not made, and why."""
    said = []
    if forms.pruned:
        said.append(
            "how much noise the entries carry that were kept: what was dropped hides every identity"
        )
    if forms.signs is not None:
        said.append("noise, clipping or pruning before the signs were taken: signs do not show it")
    if forms.steps:
        step = max(forms.steps.values())
        said.append(f"noise below {step / 12**0.5:.1e} before rounding to the grid: it is lost")
        if forms.clipped is None:
            said.append("whether the gradient was clipped before rounding: its norm is not visible")
    if noise.sigma:
        said.append("whether the gradient was clipped before the noise: its norm is not visible")
    if noise.said == "noise and more":
        said.append(
            "what was done to which entries besides noise, and whether more samples were added up "
            "than was said: nothing tells them apart"
        )
    if noise.said == "noise by layer":
        said.append(
            "whether each layer got its own noise or the weights are not those that made the dump: "
            "both leave this"
        )
    if noise.said == "nothing" and not forms.pruned and forms.signs is None:
        said.append("whether there is noise: the dump holds no tensors with an identity")
    if belongs == "not tested":
        said.append("whether model and dump belong together: nothing in the dump could show it")
    return tuple(said)
