"""How near attacks come to the bound: pictures through LeNet, with noise on the gradient.

Every picture is attacked from the dump alone (`images.defended`, which has a prior of its own),
then polished by Gauss-Newton steps without any prior: the estimate of maximum likelihood, which is
what the Cramer-Rao bound is about. Both are measured against the true picture, and both bounds are
taken at it.

The bound holds when the squared error of the estimate without a prior is not below it by more than
sampling error: three standard errors of the mean ratio over pictures and draws of the noise. An
attack whose prior knows how pictures look may beat the bound with a prior of plain uniform pixels;
the table shows by how much.

    python benchmarks/trust_bounds.py --data cifar10.npz
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import Pictures, Sent, environment, lenet_step, pictures, problem_for
from torch import Tensor

from auditor.attacks.base import Watch
from auditor.attacks.defended import Defended
from auditor.bounds.fisher import fisher_of, predicted_psnr
from auditor.bounds.fit import fit_of
from auditor.bounds.jacobian import sensitivity_of
from auditor.bounds.noise import noise_of, whitened
from auditor.problem import gradient_of, to_pixels
from auditor.records import Channel, Problem

SIGMAS = (1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 1e-2)
_POLISH = 6  # Gauss-Newton steps
_ERRORS = 3.0  # standard errors that count as sampling error
_NEAR = 3.0  # dB


@dataclass(frozen=True)
class Run:
    """One picture, one draw of the noise. All in dB."""

    sigma: float
    attack: float  # with its prior
    likelihood: float  # polished without one
    predicted: float  # at the claim, from its own Fisher information
    unbiased: float  # Cramer-Rao, at the truth
    prior: float  # van Trees, at the truth
    at_floor: bool  # the claim's residual is no more than the noise
    seconds: float

    @property
    def ratio(self) -> float:
        """Squared error without a prior, over its bound: 1 is efficient."""
        return 10 ** ((self.unbiased - self.likelihood) / 10)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything and print Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="such as cifar10.npz")
    parser.add_argument("--size", type=int, default=16, help="side of the pictures")
    parser.add_argument("--pictures", type=int, default=3)
    parser.add_argument("--draws", type=int, default=1, help="of the noise, for each picture")
    parser.add_argument("--sigmas", type=float, nargs="+", default=SIGMAS)
    parser.add_argument("--seconds", type=float, default=120.0, help="of one attack")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = pictures(given.data, given.pictures, given.size)
    print(f"{environment()}; LeNet, {given.size}x{given.size}, one picture a gradient\n")
    print(_HEAD)
    for sigma in given.sigmas:
        runs = [
            run(data, picture, sigma, draw, given.seconds)
            for picture in range(given.pictures)
            for draw in range(given.draws)
        ]
        print(row(runs), flush=True)


def run(data: Pictures, picture: int, sigma: float, draw: int, seconds: float) -> Run:
    """Attack one picture and measure."""
    sent = lenet_step(data, slice(picture, picture + 1), seed=picture)
    problem = _noisy(sent, sigma, seed=1000 * draw + picture)
    like = next(iter(problem.gradient.values()))
    truth, labels = sent.images.to(like), sent.labels
    noise = noise_of(problem)
    bound = fisher_of(problem, truth, labels, noise=noise, dense=True)
    assert bound is not None, "there is no budget to run out of"
    begun = time.perf_counter()
    watch = Watch(deadline=time.monotonic() + seconds)
    recovery = Defended().run(problem, seed=draw, watch=watch)
    spent = time.perf_counter() - begun
    assert recovery.inputs is not None
    assert recovery.input_labels is not None
    candidates = list(zip(recovery.inputs, recovery.input_labels, strict=True))
    claim, named = min(candidates, key=lambda pair: _misfit(problem, *pair))
    fit = fit_of(problem, gradient_of(problem, claim, named), claim.numel())
    own = fisher_of(problem, claim, named, noise=noise, dense=True)
    assert own is not None, "there is no budget to run out of"
    polished = _maximum_likelihood(problem, claim, named)
    return Run(
        sigma=sigma,
        attack=_psnr(problem, claim, truth),
        likelihood=_psnr(problem, polished, truth, clip=False),
        predicted=float(predicted_psnr(own)[0]),
        unbiased=-10 * math.log10(bound.unbiased),
        prior=-10 * math.log10(float(bound.posterior.mean())),
        at_floor=fit.at_floor,
        seconds=spent,
    )


def _noisy(sent: Sent, sigma: float, *, seed: int) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    noisy = {
        name: part + sigma * torch.randn(part.shape, generator=generator)
        for name, part in sent.gradient.items()
    }
    problem = problem_for(replace(sent, gradient=noisy))
    return replace(problem, channel=Channel(sigma=sigma))


def _misfit(problem: Problem, inputs: Tensor, labels: Tensor) -> float:
    at = whitened(problem, gradient_of(problem, inputs, labels))
    return float((at - whitened(problem, problem.gradient)).square().sum())


def _maximum_likelihood(problem: Problem, inputs: Tensor, labels: Tensor) -> Tensor:
    """Gauss-Newton on the whitened residual, halving steps that do not descend."""
    noise = noise_of(problem)
    here, lowest = inputs, _misfit(problem, inputs, labels)
    for _ in range(_POLISH):
        found = sensitivity_of(problem, here, labels, noise)
        transposed = found.dense(lambda: False)
        assert transposed is not None, "there is no budget to run out of"
        solved = torch.linalg.lstsq(transposed.mT, -found.residual().mT, driver="gels")
        step = solved.solution.view_as(here)
        length = 1.0
        while length > 1e-3 and not _misfit(problem, here + length * step, labels) < lowest:
            length /= 2
        if length <= 1e-3:
            break
        here = here + length * step
        lowest = _misfit(problem, here, labels)
    return here


def _psnr(problem: Problem, inputs: Tensor, truth: Tensor, *, clip: bool = True) -> float:
    """dB. An estimate without a prior knows no range of pixels either, and is not clipped."""
    pixels = to_pixels(problem, inputs) if clip else inputs
    return -10 * math.log10(float((pixels - truth).square().mean()))


# --------------------------------------------------------------------------- table

_HEAD = (
    "| sigma | runs at the floor | attack, dB | without prior, dB | Cramer-Rao, dB | "
    "squared error / bound | holds | within 3 dB | predicted, dB | with prior (van Trees), dB | "
    "attack over it, dB | seconds |\n" + "|---" * 12 + "|"
)


def row(runs: Sequence[Run]) -> str:
    """One line of the table."""
    reached = [run for run in runs if run.at_floor]

    def mean(name: str, of: Sequence[Run] = runs) -> float:
        return statistics.mean(getattr(run, name) for run in of) if of else math.nan

    ratios = [run.ratio for run in reached] or [math.nan]
    error = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else math.nan
    holds = "yes" if statistics.mean(ratios) + _ERRORS * error >= 1 else "no"
    holds = "one run" if math.isnan(error) else holds
    near = sum(run.unbiased - run.likelihood <= _NEAR for run in runs)
    above = statistics.mean(run.attack - run.prior for run in runs)
    cells = (
        f"{runs[0].sigma:.0e}",
        f"{len(reached)} of {len(runs)}",
        f"{mean('attack'):.1f}",
        f"{mean('likelihood'):.1f}",
        f"{mean('unbiased'):.1f}",
        f"{statistics.mean(ratios):.3f} ± {error:.3f}",
        holds,
        f"{near} of {len(runs)}",
        f"{mean('predicted'):.1f}",
        f"{mean('prior'):.1f}",
        f"{above:+.1f}",
        f"{mean('seconds'):.0f}",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
