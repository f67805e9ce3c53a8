"""The attacks, cheapest and most exact first. A new one is one file and one line here."""

from __future__ import annotations

from dataclasses import replace

from auditor.attacks.attention import PatchEmbeddings
from auditor.attacks.base import Attack, Milestone, Watch
from auditor.attacks.deconvolution import Deconvolution
from auditor.attacks.defended import Defended
from auditor.attacks.dlg import DLG
from auditor.attacks.first_layer import FirstLayer
from auditor.attacks.idlg import IDLG
from auditor.attacks.images import PAPER, Search
from auditor.attacks.imprint import Imprint
from auditor.attacks.labels import HeadLabels, label_claim
from auditor.attacks.layers import LayerByLayer
from auditor.attacks.linear_rows import LinearRows
from auditor.attacks.priors import ImagePriors
from auditor.attacks.second_order import LevenbergMarquardt
from auditor.attacks.spear import Spear

ATTACKS: tuple[Attack, ...] = (
    HeadLabels(),
    LayerByLayer(),
    FirstLayer(),
    Spear(),
    LinearRows(),
    Imprint(),
    PatchEmbeddings(),
    Deconvolution(),
    Defended(),
    LevenbergMarquardt(),
    IDLG(),
    DLG(),
    ImagePriors(),
)


def with_search(attack: Attack, search: Search) -> Attack:
    """The same attack with other search settings, if it searches at all."""
    if isinstance(attack, DLG):
        return DLG(search=search, harden=search != PAPER)
    if isinstance(attack, LevenbergMarquardt) and search != PAPER:
        return replace(attack, search=search, steps=min(attack.steps, search.max_steps))
    if isinstance(attack, ImagePriors) and search != PAPER:
        return replace(
            attack,
            heats=2 * search.restarts,
            steps=min(attack.steps, search.max_steps),
            heat_steps=min(attack.heat_steps, search.max_steps),
        )
    return IDLG(search=search) if isinstance(attack, IDLG) else attack


__all__ = [
    "ATTACKS",
    "DLG",
    "IDLG",
    "PAPER",
    "Attack",
    "Deconvolution",
    "Defended",
    "FirstLayer",
    "HeadLabels",
    "ImagePriors",
    "Imprint",
    "LayerByLayer",
    "LevenbergMarquardt",
    "LinearRows",
    "Milestone",
    "PatchEmbeddings",
    "Search",
    "Spear",
    "Watch",
    "label_claim",
    "with_search",
]
