"""Claims and rows for tests of the folder of finished parts."""

import math

import torch

from auditor.records import Course, LabelClaim, LinkReport, Recovery, WhatIfRow
from auditor.unfinished import Claim, Unfinished

KEY = "k" * 64


def everything():
    """A claim that uses every field that may be kept."""
    dice = torch.Generator().manual_seed(0)
    inputs = torch.rand(2, 1, 1, 8, 8, generator=dice, dtype=torch.float64)
    labels = torch.tensor([3]).expand(2, 1)  # a view: both rows are one number in memory
    links = (
        LinkReport("fc.weight", 4, 5, 0, 1e-17, 0.1 + 0.2, 3.0, 7, "converged", False, True),
        LinkReport("body", 9, 5, 4, math.inf, math.nan, math.inf, 0, "stalled", True, False),
    )
    courses = tuple(
        Course((0, 5), (1.0, 1 / 3), (0, 5), torch.rand(2, 1, 1, 8, 8, generator=dice), "converged")
        for _ in range(2)
    )
    recovery = Recovery(
        inputs=inputs,
        input_labels=labels,
        courses=courses,
        evaluations=12,
        expired=True,
        links=links,
        guided=True,
        assumed=("pictures are smooth", 'quotes " and umlauts ü'),
        samples=inputs[0],
        witnesses=(2,),
        read_from="fc.weight",
    )
    return Claim("images.all", 1 / 7, recovery)


def row(setting="noise, sigma 1e-3"):
    return WhatIfRow(
        "noise", setting, 1e-3, "images.lm", 21.5, None, 0.5, 7.25, "high", 0.1, None, "a note"
    )


def labels_claim():
    counts = torch.tensor([0, 1])
    claim = LabelClaim(counts, counts, torch.tensor([1]), ("T1",), ("premise",), True)
    return Claim("labels.head", 0.5, Recovery(labels=claim))


def opened(path, key=KEY, *, recovered=True):
    return Unfinished.beside(path / "report", key, recovered=recovered)
