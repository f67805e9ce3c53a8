"""What a dump shows of itself: noise, pruning, rounding, mode, and whether the model belongs to it.

    python benchmarks/trust_detection.py --data FILE.npz [--checkpoint FILE.th] [--trials 8]

FILE.npz holds `images` (uint8, NHWC), `labels` and `num_classes`; FILE.th the published ResNet-20
for CIFAR-10. float32 dumps of the papers' LeNet (weights uniform in +-0.5), of a perceptron with
ReLU (default weights) and of the ResNet-20 (with --checkpoint), batches of 1, 4 and 8; each trial
has weights and pictures of its own (the ResNet-20 pictures only). The batch size is told, nothing
else. Nothing of the truth reaches `look`.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import Pictures, Sent, case_for, environment, pictures
from networks import perceptron
from peers import normalised, published
from torch import Tensor, nn
from torch.nn import functional as F

from auditor.checks import head_sums
from auditor.defences import applied
from auditor.defences.seen import Looked, look
from auditor.problem import make_problem
from auditor.records import Mode
from auditor.zoo import LeNet, uniform_weights

BATCHES = (1, 4, 8)
SIGMAS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
DROPPED = (0.1, 0.5, 0.9, 0.99)
_NORM = 0.1
Gradient = dict[str, Tensor]


@dataclass(frozen=True)
class Client:
    """One network and one batch, in model units."""

    name: str
    model: nn.Module
    inputs: Tensor
    labels: Tensor
    trial: int

    def gradient(
        self, model: nn.Module | None = None, *, mode: Mode = "eval", **loss: object
    ) -> Gradient:
        """Of the mean cross-entropy, unless `loss` says otherwise."""
        used = copy.deepcopy(model or self.model).train(mode == "train")
        value = F.cross_entropy(used(self.inputs), self.labels, **loss)  # type: ignore[arg-type]
        parts = torch.autograd.grad(value, list(used.parameters()))
        return dict(zip((n for n, _ in used.named_parameters()), parts, strict=True))


def clients(name: str, data: Pictures, checkpoint: Path | None, trials: int) -> Iterator[Client]:
    """Each trial's, for every batch size."""
    for trial in range(trials):
        model = network(name, trial, data.classes, checkpoint)
        for batch in BATCHES:
            rows = slice(8 * trial, 8 * trial + batch)
            images = data.images[rows]
            inputs = normalised(images) if name == "ResNet-20" else images
            yield Client(name, model, inputs, data.labels[rows], trial)


def network(name: str, seed: int, classes: int, checkpoint: Path | None) -> nn.Module:
    """In evaluation mode."""
    if name == "LeNet":
        return uniform_weights(LeNet(3, 32, classes), seed=seed)
    if name == "ResNet-20":
        assert checkpoint is not None
        return published(checkpoint)
    torch.manual_seed(seed)
    return perceptron(nn.ReLU, classes=classes)


def looked(
    client: Client, gradient: Mapping[str, Tensor], *, batch: int = 0, mode: Mode | None = None
) -> tuple[Looked, bool]:
    """What `look` says, and whether the sums over the classes void the verdict (GA301)."""
    sent = Sent(client.model, client.inputs, client.labels, dict(gradient))
    case = case_for(sent, batch_size=batch or len(client.labels))
    known = case.knowledge if mode is None else replace(case.knowledge, mode=mode)
    problem = make_problem(client.model, case.dump, known, device=torch.device("cpu"))
    if mode is not None:  # as if it had been told, not deduced
        problem = replace(problem, knowledge=replace(problem.knowledge, mode=mode))
    sums = head_sums(problem)
    return look(problem, case.dump), sums is not None and not sums.vanish


def strength(found: Looked, kind: str) -> float | None:
    """Of the one defence of this kind; None when it was not seen."""
    return next((d.strength for d in found.defences if d.kind == kind), None)


def generator(client: Client) -> torch.Generator:
    """Noise must not come from the seed that the weights came from."""
    return torch.Generator().manual_seed(10_000 + client.trial)


# --------------------------------------------------------------------------- the tables


def sigma_table(every: list[Client]) -> Iterator[str]:
    yield "| network | batch | dumps | within 10 % | worst | in the 95 % interval | other reports |"
    yield "|---|---|---|---|---|---|---|"
    for name, batch in sorted({(c.name, len(c.labels)) for c in every}):
        errors, covered, other = [], 0, 0
        for client in every:
            if (client.name, len(client.labels)) != (name, batch):
                continue
            clean = client.gradient()
            for sigma in SIGMAS:
                noised = applied.noised(clean, sigma, generator(client)).gradient
                found, _ = looked(client, noised)
                seen = next((d for d in found.defences if d.kind == "noise"), None)
                error = 1.0 if seen is None else abs((seen.strength or 0.0) / sigma - 1)
                errors.append(error)
                ends = (None, None) if seen is None else (seen.low, seen.high)
                covered += (
                    ends[0] is not None and ends[1] is not None and (ends[0] <= sigma <= ends[1])
                )
                other += len(found.defences) > 1 or bool(found.caveats)
        near = sum(error <= 0.1 for error in errors)
        yield (
            f"| {name} | {batch} | {len(errors)} | {near} | {max(errors):.1%} | {covered} | "
            f"{other} |"
        )


def pruning_table(every: list[Client]) -> Iterator[str]:
    yield "| network | share dropped | dumps | recognised | worst error of the share |"
    yield "|---|---|---|---|---|"
    for name in sorted({c.name for c in every}):
        mine = [(client, client.gradient()) for client in every if client.name == name]
        for dropped in DROPPED:
            shares = []
            for client, clean in mine:
                zeros = sum(int((g == 0).sum()) for g in clean.values())
                if zeros < dropped * sum(g.numel() for g in clean.values()):
                    sent = applied.largest_kept(clean, dropped).gradient
                    shares.append(strength(looked(client, sent)[0], "top-k"))
            seen = [share for share in shares if share is not None]
            worst = max((abs(share - dropped) for share in seen), default=0.0)
            yield f"| {name} | {dropped:.0%} | {len(shares)} | {len(seen)} | {worst:.2%} |"


def forms_of(client: Client) -> dict[str, tuple[str, Gradient]]:
    """What is sent, and the kind that it should be taken for, by name."""
    clean = client.gradient()
    rough = applied.noised(clean, 1e-2, generator(client)).gradient
    return {
        "int8": ("int8", applied.as_int8(clean).gradient),
        "float16": ("fp16", applied.as_type(clean, torch.float16).gradient),
        "bfloat16": ("bf16", applied.as_type(clean, torch.bfloat16).gradient),
        "signs": ("sign", applied.signs_of(clean).gradient),
        f"clipped to {_NORM}": ("clipping", applied.clipped(clean, _NORM).gradient),
        "scaled by 0.37": ("clipping", {n: 0.37 * g for n, g in clean.items()}),
        "noise, then float16": ("fp16", applied.as_type(rough, torch.float16).gradient),
        "no head bias": (
            "withheld head bias",
            {n: g for n, g in clean.items() if n != _bias(client)},
        ),
    }


def _bias(client: Client) -> str:
    """The last parameter of these networks."""
    return [name for name, _ in client.model.named_parameters()][-1]


def counted(every: list[Client], outcomes: Callable[[Client], dict[str, bool]]) -> Iterator[str]:
    """A table of how often something was so, by network."""
    names = sorted({client.name for client in every})
    right, total = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    kinds: list[str] = []
    for client in every:
        for kind, so in outcomes(client).items():
            kinds += [kind] * (kind not in kinds)
            total[client.name, kind] += 1
            right[client.name, kind] += so
    yield f"| what | {' | '.join(names)} |"
    yield "|---" * (len(names) + 1) + "|"
    for kind in kinds:
        cells = [
            f"{right[name, kind]} of {total[name, kind]}" if total[name, kind] else "-"
            for name in names
        ]
        yield f"| {kind} | {' | '.join(cells)} |"


def forms(client: Client) -> dict[str, bool]:
    """A dump that is shorter than the norm is not clipped, and left out."""
    short = applied.norm_of(client.gradient()) <= _NORM
    return {
        name: any(d.kind == kind for d in looked(client, sent)[0].defences)
        for name, (kind, sent) in forms_of(client).items()
        if not (short and name.startswith("clipped"))
    }


def clean(client: Client) -> dict[str, bool]:
    found, _ = looked(client, client.gradient())
    return {
        "a defence in a clean dump (0 is right)": bool(found.defences),
        "a caveat on a clean dump (0 is right)": bool(found.caveats),
        "model and dump shown to belong together": found.belongs == "shown",
    }


def modes(client: Client) -> dict[str, bool]:
    """Told right and told wrong, with and without noise; only where there are batch norms."""
    if client.name != "ResNet-20":
        return {}
    said = {}
    modes_: tuple[Mode, Mode] = ("eval", "train")
    for mode, wrong in zip(modes_, modes_[::-1], strict=True):
        exact = client.gradient(mode=mode)
        noised = applied.noised(exact, 1e-3, generator(client)).gradient
        for name, sent in (("", exact), (", sigma 1e-3", noised)):
            right = all_codes(client, sent, mode)
            said[f"{mode} mode{name}, told right: nothing raised"] = "GA309" not in right
            said[f"{mode} mode{name}, told wrong: GA309"] = "GA309" in all_codes(
                client, sent, wrong
            )
    return said


def all_codes(client: Client, sent: Gradient, mode: Mode) -> set[str]:
    """With those of the test at the start, which reads the mode of exact dumps."""
    from auditor.batch_norm import mode_caveats

    found, _ = looked(client, sent, mode=mode)
    case = case_for(Sent(client.model, client.inputs, client.labels, sent))
    problem = make_problem(client.model, case.dump, case.knowledge, device=torch.device("cpu"))
    known = replace(problem.knowledge, mode=mode)
    return {c.code for c in (*found.caveats, *mode_caveats(known, problem.mode_shown))}


def mismatches(client: Client) -> dict[str, bool]:
    """Whether what is wrong with the dump is said."""
    clean_, count = client.gradient(), len(client.labels)
    named = dict(client.model.named_parameters())
    step = copy.deepcopy(client.model)
    with torch.no_grad():
        for name, parameter in step.named_parameters():
            parameter.sub_(clean_[name], alpha=0.01)
    draw = generator(client)
    shuffled = {
        n: g.flatten()[torch.randperm(g.numel(), generator=draw)].reshape(g.shape)
        for n, g in clean_.items()
    }
    sums = client.gradient(reduction="sum")
    found = {
        "another model's dump: contradicted": codes(client, _others(client)) >= {"GA310"},
        "the same with noise 1e-4: contradicted": codes(client, _others(client, 1e-4)) >= {"GA310"},
        "weights one step of 0.01 later: said": bool(
            codes(client, client.gradient(step)) & {"GA310", "GA311"}
        ),
        "entries shuffled in each tensor: voided": looked(client, shuffled)[1],
        "pure noise: voided": looked(client, _noise(client))[1],
        "labels smoothed by 0.1: said": bool(
            codes(client, client.gradient(label_smoothing=0.1)) & {"GA312", "GA313"}
        ),
        "a change of weights: GA312": "GA312"
        in codes(client, {n: -0.01 * g for n, g in clean_.items()}),
        "weight decay 5e-4: GA315": "GA315"
        in codes(client, {n: g + 5e-4 * named[n].detach() for n, g in clean_.items()}),
    }
    if count > 1:
        found["summed, not averaged: GA314"] = "GA314" in codes(client, sums)
    if count == 4:
        found["4 samples, told 2: said"] = bool(codes(client, clean_, batch=2) & {"GA310", "GA316"})
    return found


def codes(client: Client, sent: Gradient, *, batch: int = 0) -> set[str]:
    return {caveat.code for caveat in looked(client, sent, batch=batch)[0].caveats}


def _others(client: Client, sigma: float = 0.0) -> Gradient:
    """The dump of the same batch through weights of another draw."""
    other = copy.deepcopy(client.model)
    draw = torch.Generator().manual_seed(500 + client.trial)
    with torch.no_grad():
        for parameter in other.parameters():
            order = torch.randperm(parameter.numel(), generator=draw)
            parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
    sent = client.gradient(other)
    return applied.noised(sent, sigma, draw).gradient if sigma else sent


def _noise(client: Client) -> Gradient:
    draw = generator(client)
    return {
        n: 0.1 * torch.randn(p.shape, generator=draw) for n, p in client.model.named_parameters()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--trials", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = pictures(given.data, 8 * given.trials)
    names = ["LeNet", "MLP"] + (["ResNet-20"] if given.checkpoint else [])
    every = [c for name in names for c in clients(name, data, given.checkpoint, given.trials)]
    print(environment())
    tables: tuple[tuple[str, Iterator[str]], ...] = (
        ("sigma, from 1e-5 to 1e-1", sigma_table(every)),
        ("pruning", pruning_table(every)),
        ("other forms, recognised", counted(every, forms)),
        ("clean dumps", counted(every, clean)),
        ("mode", counted(every, modes)),
        ("mismatches", counted(every, mismatches)),
    )
    for title, lines in tables:
        begun = time.perf_counter()
        print(f"\n{title}\n", flush=True)
        print("\n".join(lines), flush=True)
        print(f"\n({time.perf_counter() - begun:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
