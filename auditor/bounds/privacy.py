"""What differential privacy promises of a setting of DP-SGD, and what that means for pictures.

Reconstruction robustness (Balle, Cherubin, Hayes 2022, arXiv:2201.04845): an attacker who would
guess the data well enough with probability kappa before the dump does so with probability gamma at
most after it. All bounds here hold for every attack and every model. Neighbouring batches differ by
one sample that is there or not.
"""

from __future__ import annotations

import importlib.util
import math
import warnings

from scipy.stats import norm

from auditor.errors import UsageError


def epsilon_of(noise_multiplier: float, *, sample_rate: float, steps: int, delta: float) -> float:
    """Epsilon of `steps` steps of DP-SGD at `delta`, by Opacus' accountant (Rényi).

    `noise_multiplier`: standard deviation of the noise over the clipping norm. `sample_rate`: the
    chance of a sample to be in a batch, 0..1. Needs the extra `dp`: raises UsageError without it,
    and for settings that no run of DP-SGD has.
    """
    missing = why_no_accountant()
    if missing is not None:
        raise UsageError(
            expected="the package opacus, for the epsilon of DP-SGD",
            found="it is not installed",
            todo='Install it: pip install "gradaudit[dp]".',
        )
    _check(noise_multiplier, sample_rate, steps, delta)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecated imports, and of orders at the edge
        from opacus.accountants import RDPAccountant

        accountant = RDPAccountant()
        accountant.history = [(noise_multiplier, sample_rate, steps)]
        return float(accountant.get_epsilon(delta=delta))


def why_no_accountant() -> str | None:
    """Why `epsilon_of` cannot answer, for people; None when it can."""
    if importlib.util.find_spec("opacus") is None:
        return 'opacus is not installed (pip install "gradaudit[dp]")'
    return None


def gaussian_robustness(noise_multiplier: float, *, steps: int, prior: float) -> float:
    """gamma of `steps` releases of the whole batch's clipped gradient with normal noise.

    Phi(Phi^-1(kappa) + sqrt(steps) / noise_multiplier) (Hayes, Mahloujifar, Balle 2023,
    arXiv:2302.07225; Kaissis, Hayes, Ziller, Rueckert 2023, arXiv:2307.03928). `prior` is kappa,
    0..1. Raises ValueError outside of what these can be.
    """
    if not (noise_multiplier > 0 and steps >= 1 and 0 <= prior <= 1):
        raise ValueError("noise_multiplier > 0, steps >= 1 and 0 <= prior <= 1 are needed")
    return float(norm.cdf(norm.ppf(prior) + math.sqrt(steps) / noise_multiplier))


def _check(noise_multiplier: float, sample_rate: float, steps: int, delta: float) -> None:
    if noise_multiplier > 0 and 0 < sample_rate <= 1 and steps >= 1 and 0 < delta < 1:
        return
    raise UsageError(
        expected="noise over 0, a sample rate in (0, 1], 1 step or more, delta in (0, 1)",
        found=f"{noise_multiplier:g}, {sample_rate:g}, {steps}, {delta:g}",
        todo="Give the settings that the client trains with.",
    )
