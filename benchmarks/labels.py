"""How many labels of a batch can be told from the head's gradient, beside the published rules.

    python benchmarks/labels.py --data DIR [--checkpoint FILE] [--trials 20] [--batches 8,32,64,256]
        [--first 0] [--only "ResNet-20, trained"]
    python benchmarks/labels.py --proofs 1000

DIR holds cifar10.npz and cifar100.npz (`images` uint8 NHWC, `labels`, `num_classes`). Batches are
drawn from the pictures of a file at random; all pictures of it that are not in the batch, at most
500, are the auxiliary ones. Each trial has its own batch, and its own weights unless they come from
FILE, a ResNet-20 for CIFAR-10. The network runs in evaluation mode, the gradient is that of the
mean loss in float32, and ours is told the batch size and the reduction.

Instance accuracy is sum_c min(estimated_c, true_c) / N. The opponents are written from their
formulas: iDLG's row sums and GradInversion's row minima in ascending order (from the start again
when a batch is larger than the number of classes), the bias-corrected rule (greedy, on the bias),
LLG (the same on the row sums) and iLRG. The calibration error is the expected one over ten bins of
stated probability, of all labels that were not proved; "by chance" is what it would be on average
over so many labels if every stated probability were true: where that is over 0.025, the row has too
few open labels to tell 0.05 from nothing. "all" includes the proved labels. "visible" is no attack,
but a bound on them: see `visible`.

`--proofs` makes dumps over activations, training, modes, batch sizes 1 to 256, biases and
precisions, and counts statements that are false.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import Pictures, Sent, environment, pictures, problem_for
from torch import Tensor, nn
from torch.nn import functional as F

from auditor.attacks.base import Watch
from auditor.attacks.labels import label_claim, proved_labels
from auditor.inputs.gradients import match_gradients
from auditor.problem import make_problem
from auditor.records import Auxiliary, FileRef, Knowledge, LabelClaim, Problem
from auditor.zoo import CifarResNet, LeNet, uniform_weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_BINS = 10
_MOST = 500  # auxiliary pictures
_HALF_SPACING = 2.0**-24  # of float32, relative, at its least; and of numbers just below one
Rule = Callable[["Dump"], Tensor]


@dataclass(frozen=True)
class Dump:
    """The head and its gradient, as every opponent gets them."""

    weight: Tensor  # (K, E) float64
    bias: Tensor  # (K,)
    matrix: Tensor  # (K, E) the head itself
    offset: Tensor  # (K,)
    size: int


# --------------------------------------------------------------------------- opponents


def row_sums(dump: Dump) -> Tensor:
    """iDLG (Zhao, Mopuri, Bilen 2020): the classes with the lowest row sums."""
    return _lowest(dump.weight.sum(1), dump.size)


def row_minima(dump: Dump) -> Tensor:
    """GradInversion (Yin et al. 2021): the classes with the lowest entry."""
    return _lowest(dump.weight.amin(1), dump.size)


def bias_corrected(dump: Dump) -> Tensor:
    """Greedy on the bias gradient: negative entries first, then the lowest, less an impact each."""
    return _greedy(dump.bias, dump.size)


def llg(dump: Dump) -> Tensor:
    """LLG (Wainakh et al. 2021): the same on the row sums."""
    return _greedy(dump.weight.sum(1), dump.size)


def ilrg(dump: Dump) -> Tensor:
    """iLRG (Wang et al. 2023): mean features G_c / g_c, then one linear system, rounded."""
    g, classes = dump.bias, len(dump.bias)
    features = dump.weight / torch.where(g.abs() > 1e-12, g, torch.full_like(g, 1e-12))[:, None]
    predicted = torch.softmax(features @ dump.matrix.mT + dump.offset, 1)
    system = torch.cat([g.new_ones(1, classes), predicted.mT - torch.eye(classes, dtype=g.dtype)])
    right = torch.cat([g.new_tensor([dump.size]), dump.size * g])
    found = torch.linalg.lstsq(system, right[:, None], driver="gelsd").solution[:, 0]
    counts = torch.zeros(classes, dtype=torch.int64)
    for _ in range(dump.size):
        counts[int((found - counts).argmax())] += 1
    return counts


def _lowest(score: Tensor, size: int) -> Tensor:
    order = score.argsort().repeat(size // len(score) + 1)[:size]
    return torch.bincount(order, minlength=len(score))


def _greedy(score: Tensor, size: int) -> Tensor:
    left, counts = score.clone(), torch.zeros(len(score), dtype=torch.int64)
    impact = left.clamp_max(0).sum() * (1 + 1 / len(score)) / size
    for label in (left < 0).nonzero().flatten().tolist()[:size]:
        counts[label] += 1
        left[label] -= impact
    for _ in range(size - int(counts.sum())):
        label = int(left.argmin())
        counts[label] += 1
        left[label] -= impact
    return counts


OPPONENTS: dict[str, Rule] = {
    "iDLG": row_sums,
    "GradInversion": row_minima,
    "bias-corrected": bias_corrected,
    "LLG": llg,
    "iLRG": ilrg,
}

# --------------------------------------------------------------------------- accuracy


def accuracy(counts: Tensor, true: Tensor) -> float:
    """Instance accuracy of counts (K,)."""
    return float(torch.minimum(counts, true).sum() / true.sum())


@dataclass
class Scores:
    """Accuracies by method, and the stated probabilities of ours with what came of them."""

    found: dict[str, list[float]]
    stated: list[float]
    right: list[float]
    proved: int = 0
    calibrated: int = 0
    trials: int = 0
    seconds: float = 0.0

    def take(self, claim: LabelClaim, true: Tensor, *, with_aux: bool) -> None:
        """Note one claim of ours."""
        assert claim.estimate is not None
        counts = torch.bincount(claim.estimate, minlength=len(true))
        self.found["with 500 aux" if with_aux else "ours"].append(accuracy(counts, true))
        if not with_aux:
            self.found["proved"].append(float(claim.lower.sum() / true.sum()))
            return
        self.trials += 1
        self.calibrated += claim.calibration != "uncalibrated"
        self.proved += int(claim.lower.sum())
        if claim.probabilities is None:
            return
        seen = torch.zeros_like(true)
        order = claim.probabilities.argsort(descending=True, stable=True)
        for label, share in zip(
            claim.estimate[order].tolist(), claim.probabilities[order].tolist(), strict=True
        ):
            seen[label] += 1
            if seen[label] > claim.lower[label]:
                self.stated.append(share)
                self.right.append(float(seen[label] <= true[label]))

    def chance(self) -> float:
        """The mean of `error` over the labels that were not proved, if what was stated is true.

        Sums of many independent labels, each with the variance p (1 - p), are about normal.
        """
        stated = torch.tensor(self.stated).double()
        place = (stated * _BINS).long().clamp(0, _BINS - 1)
        variances = torch.zeros(_BINS, dtype=torch.float64)
        variances.index_add_(0, place, stated * (1 - stated))
        return float((2 / torch.pi * variances).sqrt().sum()) / max(len(stated), 1)

    def error(self) -> tuple[float, float]:
        """Expected calibration error of what was not proved, and of everything."""
        stated, right = torch.tensor(self.stated), torch.tensor(self.right)
        place = (stated * _BINS).long().clamp(0, _BINS - 1)
        gaps = [float((stated - right)[place == b].sum().abs()) for b in range(_BINS)]
        return sum(gaps) / max(len(stated), 1), sum(gaps) / max(len(stated) + self.proved, 1)


def dump_of(model: nn.Module, images: Tensor, labels: Tensor) -> Sent:
    """The head's gradient of a batch alone: nothing else is needed here."""
    head = list(model.named_parameters())[-2:]
    loss = F.cross_entropy(model(images), labels)
    parts = torch.autograd.grad(loss, [parameter for _, parameter in head])
    return Sent(model, images, labels, {n: g for (n, _), g in zip(head, parts, strict=True)})


def visible(features: Tensor, logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts by somebody who knows the label of every sample that leaves a trace in the dump.

    A sample leaves a trace if its part of the head's gradient, each entry in units of the rounding
    of that entry (no float32 can be rounded less), is longer than one: then a test that knows all
    other samples and its features could just tell whether it is there. What float32 makes of p
    near one counts: below half a spacing, nothing is left at the label. The rest are guessed
    evenly, as equally likely classes are guessed best.
    """
    gaps = torch.softmax(logits.double(), 1)
    rows = torch.arange(len(labels))
    gaps[rows, labels] = 0
    doubt = gaps.sum(1)
    gaps[rows, labels] = torch.where(doubt > _HALF_SPACING / 2, -doubt, 0.0)
    features = torch.cat([features.double(), torch.ones(len(labels), 1).double()], 1)
    parts = gaps[:, :, None] * features[:, None]  # (N, K, E + 1)
    rounding = _HALF_SPACING / 12**0.5 * parts.sum(0).abs().clamp_min(1e-37)
    traced = (parts / rounding).flatten(1).norm(dim=1) > 1
    known = torch.bincount(labels[traced], minlength=classes)
    left = len(labels) - int(known.sum())
    order = (torch.arange(left) + int(labels.sum())) % classes  # begins anywhere
    return known + torch.bincount(order, minlength=classes)


def head_input(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, E) of the head, and logits (N, K)."""
    seen: list[Tensor] = []
    head = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
    hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        logits = model(images)
    hook.remove()
    return seen[0], logits


def measure(
    make: Callable[[int], nn.Module], data: Pictures, size: int, trials: int, first: int = 0
) -> Scores:
    """Trials of one network and batch size, numbered from `first`."""
    scores = Scores(defaultdict(list), [], [])
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (MEAN, STD))
    for trial in range(first, first + trials):
        generator = torch.Generator().manual_seed(1000 + trial)
        order = torch.randperm(len(data.images), generator=generator)
        mine, others = order[:size], order[size : size + _MOST]
        model = make(trial).eval()
        sent = dump_of(model, (data.images[mine] - mean) / std, data.labels[mine])
        problem = problem_for(sent)
        known = replace(problem.knowledge, mean=MEAN, std=STD, reduction_declared=True)
        problem = replace(problem, knowledge=known)
        true = torch.bincount(data.labels[mine], minlength=data.classes)
        weight, bias = (sent.gradient[n].double() for n in list(sent.gradient))
        head = [p.detach().double() for p in list(model.parameters())[-2:]]
        seen = visible(*head_input(model, sent.images), sent.labels, data.classes)
        scores.found["visible"].append(accuracy(seen, true))
        for name, rule in OPPONENTS.items():
            scores.found[name].append(accuracy(rule(Dump(weight, bias, *head, size)), true))
        scores.take(label_claim(problem, seed=trial), true, with_aux=False)
        begun = time.perf_counter()
        aux = Auxiliary(data.images[others], data.labels[others])
        claim = label_claim(replace(problem, auxiliary=aux), seed=trial, watch=Watch())
        scores.seconds += (time.perf_counter() - begun) / trials
        scores.take(claim, true, with_aux=True)
    return scores


def accuracies(options: argparse.Namespace) -> None:
    """The table over networks and batch sizes."""
    columns = ["proved", *OPPONENTS, "ours", "with 500 aux", "visible"]
    print(
        f"| network | batch | {' | '.join(columns)} | calibrated | calibration error | by chance "
        "| all | s |\n"
        f"|{'---|' * (len(columns) + 7)}",
        flush=True,
    )
    pooled = Scores(defaultdict(list), [], [])
    for name, make, file in networks(options.checkpoint):
        if not name.startswith(options.only):
            continue
        data = pictures(options.data / file, 500)
        for size in options.batches:
            trials = options.trials * max(1, 32 // size)  # small batches say less each
            found = measure(make, data, size, trials, options.first)
            pooled.stated += found.stated
            pooled.right += found.right
            pooled.proved += found.proved
            cells = [f"{sum(found.found[c]) / trials:.3f}" for c in columns]
            open_, every = found.error()
            print(
                f"| {name} | {size} | {' | '.join(cells)} | {found.calibrated}/{found.trials} | "
                f"{open_:.3f} | {found.chance():.3f} | {every:.3f} | {found.seconds:.1f} |",
                flush=True,
            )
    open_, every = pooled.error()
    print(
        f"\nCalibration error with auxiliary pictures over all rows: {open_:.3f} of the "
        f"{len(pooled.stated)} labels that were not proved, {every:.3f} of all. A batch of fewer "
        "than 32 has its trials multiplied."
    )


def networks(checkpoint: Path | None) -> list[tuple[str, Callable[[int], nn.Module], str]]:
    """Name, maker by seed, and the file of pictures."""
    found: list[tuple[str, Callable[[int], nn.Module], str]] = []
    if checkpoint is not None:
        found.append(("ResNet-20, trained, CIFAR-10", lambda _: published(checkpoint), _FILES[0]))
    for file, classes in zip(_FILES, (10, 100), strict=True):
        what = file.removesuffix(".npz").upper().replace("CIFAR", "CIFAR-")
        found += [
            (f"LeNet, {what}", _seeded(lambda k=classes: LeNet(3, 32, k)), file),
            (f"LeNet, uniform weights, {what}", _uniform(classes), file),
            (f"ResNet-20, {what}", _seeded(lambda k=classes: CifarResNet(3, 3, k)), file),
        ]
    return found


_FILES = ("cifar10.npz", "cifar100.npz")


def published(path: Path) -> nn.Module:
    """The ResNet-20 of a checkpoint with `state_dict`."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model = CifarResNet(3)
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return model


def _seeded(make: Callable[[], nn.Module]) -> Callable[[int], nn.Module]:
    def made(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return make()

    return made


def _uniform(classes: int) -> Callable[[int], nn.Module]:
    return lambda seed: uniform_weights(LeNet(3, 32, classes), seed=seed)


# --------------------------------------------------------------------------- proofs

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "ReLU": nn.ReLU,
    "tanh": nn.Tanh,
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
    "sigmoid": nn.Sigmoid,
}
SIZES = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256)
CLASSES = (2, 3, 10, 50, 100)


class Small(nn.Module):
    """A convolution with batch norm, one hidden layer, a head."""

    def __init__(self, act: Callable[[], nn.Module], classes: int, bias: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), act(), nn.Flatten(), nn.Linear(144, 64), act()
        )
        self.head = nn.Linear(64, classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


def proofs(count: int) -> None:
    """How many of `count` dumps carry a false statement."""
    generator = torch.Generator().manual_seed(0)

    def one_of(values: tuple[object, ...]) -> object:
        return values[int(torch.randint(len(values), (), generator=generator))]

    tally: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])  # used, false, labels proved
    for index in range(count):
        torch.manual_seed(index)
        size, classes = int(str(one_of(SIZES))), int(str(one_of(CLASSES)))
        bias, steps = one_of((True, False)), int(str(one_of((0, 5, 40))))
        mode, half = one_of(("eval", "train")), one_of((False, True))
        act = ACTIVATIONS[str(one_of(tuple(ACTIVATIONS)))]
        images, labels = torch.rand(256, 1, 8, 8), torch.randint(classes, (256,))
        if one_of((False, False, True)):  # a client of few classes
            labels = labels % 2
        model = _trained(Small(act, classes, bool(bias)), images, labels, steps)
        model.train(mode == "train" and size > 1)
        mine = torch.randperm(256)[:size]
        claim = proved_labels(_problem(model, images[mine], labels[mine], bool(half)))
        true = torch.bincount(labels[mine], minlength=classes)
        above = claim.upper is not None and bool((claim.upper < true).any())
        false = bool((claim.lower > true).any()) or above
        for statement in claim.statements or ("none",):
            tally[statement][0] += 1
            tally[statement][1] += false
        tally["all"][0] += 1
        tally["all"][1] += false
        tally["all"][2] += int(claim.lower.sum())
    print("| statement | dumps that use it | dumps with a false statement |\n|---|---|---|")
    for statement, (used, false, _) in sorted(tally.items()):
        print(f"| {statement} | {used} | {false} |")
    print(f"\n{tally['all'][2]} labels were proved.")


def _trained(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images[:64]), labels[:64]).backward()
        optimizer.step()
    return model


def _problem(model: nn.Module, images: Tensor, labels: Tensor, half: bool) -> Problem:
    mode = "train" if model.training else "eval"
    names, parameters = zip(*model.named_parameters(), strict=True)
    parts = torch.autograd.grad(F.cross_entropy(model(images), labels), parameters)
    sent = {n: g.half().float() if half else g for n, g in zip(names, parts, strict=True)}
    dump = match_gradients(
        sent, model, file=FileRef("dump", "in memory", 0, ""), metadata=None, form="benchmark"
    )
    known = Knowledge(
        input_shape=tuple(images.shape[1:]),
        mean=(0.0,),
        std=(1.0,),
        batch_size=len(images),
        mode=mode,  # type: ignore[arg-type]
        reduction="mean",
        reduction_declared=True,
        label_smoothing=0.0,
        assumptions=(),
    )
    return make_problem(model, dump, known, device=torch.device("cpu"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument(
        "--batches", type=lambda text: [int(part) for part in text.split(",")],
        default=[8, 32, 64, 256],
    )  # fmt: skip
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--only", default="", help="networks whose name begins so")
    parser.add_argument("--proofs", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{environment()}\n", flush=True)
    if options.proofs:
        proofs(options.proofs)
    if options.data is not None:
        accuracies(options)


if __name__ == "__main__":
    main()
