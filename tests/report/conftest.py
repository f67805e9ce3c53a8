"""Small audits, made by hand: what `findings.py` would hand to the writers."""

import base64
import math
import random
import struct
import zlib
from dataclasses import replace

import pytest

from auditor.records import (
    SCHEMA_VERSION,
    Assumption,
    AttackReport,
    Audit,
    Bound,
    CanaryReport,
    Caveat,
    ControlReport,
    Curve,
    DefenceSeen,
    DumpSummary,
    Exhibit,
    FileRef,
    Finding,
    GateResult,
    LinkReport,
    Measure,
    ModelSummary,
    Provenance,
    Severity,
    Trust,
    Verdict,
    WhatIf,
    WhatIfRow,
)
from auditor.rules import rule

_TENSORS = ("body.0.weight", "body.0.bias", "body.2.weight", "body.2.bias", "fc.weight", "fc.bias")


def png(rows):
    """PNG in base64 of rows of (r, g, b)."""
    height, width = len(rows), len(rows[0])
    raw = b"".join(b"\0" + bytes(value for pixel in row for value in pixel) for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + body).decode()


def scene(side, share, seed):
    """A disc over a horizon, seen through noise: `share` 0 is noise only, 1 the picture."""
    dice = random.Random(seed)
    rows = []
    for y in range(side):
        row = []
        for x in range(side):
            disc = math.hypot(x - side * (0.3 + 0.1 * seed), y - side * 0.35) < side * 0.18
            ground = y > side * 0.68 + side * 0.05 * math.sin(x / 4 + seed)
            true = (240, 170, 60) if disc else (60, 95, 60) if ground else (120, 165, 215)
            row.append(tuple(int(share * c + (1 - share) * dice.randrange(256)) for c in true))
        rows.append(row)
    return png(rows)


def finding(code, score, band, certainty, **changes):
    entry = rule(code)
    return replace(
        Finding(
            code=code,
            title=entry.title,
            severity=Severity(score, band),
            certainty=certainty,
            summary=entry.meaning,
            attack="images.matching",
            measures=(),
            premises=(),
            remedy=entry.remedy,
        ),
        **changes,
    )


def labels_finding():
    return finding(
        "GA101",
        6.1,
        "medium",
        "proved",
        attack="labels.head-bias",
        summary="All 2 labels of the batch follow from the signs and sizes in the gradient of "
        "fc.bias.",
        measures=(Measure("labels proved", 2.0, "of 2"), Measure("classes", 10.0, "")),
        premises=("The loss is softmax cross-entropy.", "The reduction is the mean."),
    )


def image_finding():
    return finding(
        "GA201",
        9.8,
        "critical",
        "verified",
        measures=(
            Measure("samples rebuilt", 2.0, "of 2"),
            Measure("relative residual", 3.14e-9, ""),
            Measure("restart agreement", 61.23, "dB"),
            Measure("PSNR against the truth", 48.71, "dB"),
        ),
        premises=("The model of the file is the model of the client.",),
    )


def curve(restart, end, points=60):
    values = tuple(10 ** (end * i / (points - 1)) for i in range(points))
    status = "converged" if end < -7 else "stalled"
    return Curve(restart, status, tuple(5 * i for i in range(points)), values)


def links():
    """From the classifier down; the picture's own layer hides part of it."""
    closed, arrived = "closed form", "reached the goal"
    return (
        LinkReport("fc.weight", 768, 7680, 0, 3.1e-8, 2.2e-9, 1.0, 0, closed, False, True),
        LinkReport("body.2.weight", 3072, 3500, 41, 7e-4, 6e-6, 8123.4, 2210, arrived, True, True),
        LinkReport("body.0.weight", 3072, 2868, 204, 0.31, 5e-7, 96.0, 370, arrived, True, False),
    )


def attacks():
    layers = tuple(Measure(n, 10.0 ** (-9 + i / 3), "") for i, n in enumerate(_TENSORS))
    return (
        AttackReport(
            "labels.head-bias",
            "Labels from the signs of the head's bias gradient",
            "leak",
            "Every label is proved.",
            "HeadBias()",
            0.004,
            0,
            (),
            (),
        ),
        AttackReport(
            "images.matching",
            "Images by matching the gradient (L-BFGS)",
            "leak",
            "3 of 4 restarts reached one answer.",
            "Matching(restarts=4, steps=300, history=100)",
            23.4,
            4812,
            tuple(curve(i, end) for i, end in enumerate((-8.2, -8.5, -1.1, -8.4))),
            layers,
        ),
        AttackReport(
            "images.analytic",
            "Images from the first linear layer",
            "skipped",
            "The first layer is a convolution.",
            "Analytic()",
            0.0,
            0,
            (),
            (),
        ),
        AttackReport(
            "images.adam",
            "Images by matching with a prior (Adam)",
            "not selected",
            "The verdict could not get worse.",
            "Prior()",
            0.0,
            0,
            (),
            (),
        ),
        AttackReport(
            "images.layers",
            "Images read layer by layer",
            "failed",
            "The layer 'body.0.weight' hides its input.",
            "LayerByLayer()",
            2.1,
            1,
            (Curve(0, "read layer by layer", (0,), (0.12,)),),
            tuple(Measure(n, 0.01, "") for n in _TENSORS),
            links(),
        ),
    )


def assumptions():
    return (
        Assumption("input shape", "3 × 32 × 32", "metadata"),
        Assumption("batch size", "2", "deduced"),
        Assumption("loss", "cross-entropy, mean", "assumed"),
        Assumption("normalisation", "mean 0.5, std 0.5", "flag"),
    )


def leak():
    """A critical leak, evidence kept apart."""
    return Audit(
        schema_version=SCHEMA_VERSION,
        verdict=Verdict(
            "leak",
            Severity(9.8, "critical"),
            "Both training images and both labels were rebuilt from the gradient, and "
            "independent restarts confirm it.",
            ("Token recovery: the model takes images.",),
        ),
        gate=GateResult("high", 7.0, "failed", 1, "The score 9.8 is at or over 7.0."),
        findings=(image_finding(), labels_finding()),
        attacks=attacks(),
        caveats=(Caveat("GA302", "The reduction is assumed to be the mean (--reduction).", False),),
        assumptions=assumptions(),
        model=ModelSummary(
            FileRef("lenet.pt", "torch module", 62_480, "a1" * 32),
            "LeNet",
            62_006,
            10,
            (3, 32, 32),
            "eval",
            ("prefix 'module.' removed",),
        ),
        dump=DumpSummary(
            FileRef("grads.pt", "torch tensors", 251_904, "0f" * 32),
            "dict of 6 tensors, matched by name",
            6,
            (),
            1.2e-7,
            2,
        ),
        evidence="separate",
        exhibits=(),
        trust=trust(),
        provenance=Provenance(
            "0.1.0",
            "2026-11-21T05:40:42Z",
            24.1,
            ("gradaudit", "scan", "lenet.pt", "grads.pt", "--fail-on", "high"),
            0,
            "standard",
            "cpu",
            "float64",
            {"torch": "2.15.0", "python": "3.11.7"},
        ),
    )


def trust():
    """Every record of it, with and without a value where both are allowed."""
    return Trust(
        defences=(
            DefenceSeen(
                "noise", 1e-3, 9.6e-4, 1.04e-3, "Gaussian noise of 1e-3.", "588 sums over classes"
            ),
            DefenceSeen("sign", None, None, None, "Only signs were sent.", "two values"),
        ),
        belongs="shown",
        tested=("588 sums over the classes hold",),
        fidelity=41.5,
        bound=Bound(
            1e-3, "estimated noise", "dense", 3072, 2990.5, None, 38.2, 40.1, ("noise is normal",)
        ),
        control=ControlReport("images.lm", 3, 0, "None of 3 gradients of noise gave a picture."),
        canaries=CanaryReport(19, 20, 0.75, 0.999, 20.0, "noise", "19 of 20 were opened."),
        what_if=WhatIf(
            reference="the verified picture of this dump",
            gate="high (7.0)",
            rows=(
                WhatIfRow(
                    "noise", "sigma 1e-3", 1e-3, "images.defended", 31.0, 38.2, 1.0, 10.0,
                    "critical", 0.99, False, "",
                ),
                WhatIfRow(
                    "top-k", "99 % dropped", 0.99, "", None, None, None, 0.0, "none", None, None,
                    "not run: the budget ended",
                ),
            ),
            weakest=("sigma 1e-1: 8.2 dB reached, score 0.0",),
            left_out=("DP-SGD: needs one gradient a sample",),
            paper="",
        ),
        unsaid=("no error bar: the Jacobian did not fit in the budget",),
    )  # fmt: skip


def embedded():
    """The same leak with pictures."""
    shares = (0.0, 0.1, 0.25, 0.5, 0.8, 0.97)
    exhibits = tuple(
        Exhibit(
            sample=i,
            label=("cat", "ship")[i],
            certainty="verified",
            strip=tuple(scene(32, share, i) for share in shares),
            strip_steps=(0, 20, 40, 80, 160, 295),
            truth=scene(32, 1.0, i) if i == 0 else None,
        )
        for i in range(2)
    )
    return replace(leak(), evidence="embed", exhibits=exhibits)


def labels_only():
    """A medium leak: labels, no picture, no gate."""
    return replace(
        leak(),
        verdict=Verdict(
            "leak", Severity(6.1, "medium"), "Both labels of the batch are in the gradient.", ()
        ),
        gate=GateResult(None, None, "no gate", 0, ""),
        findings=(labels_finding(),),
        attacks=(attacks()[0], replace(attacks()[1], outcome="nothing shown", reason="No restart "
                 "came near the dump.", curves=(curve(0, -1.2), curve(1, -0.8)), layers=())),
        evidence="none",
    )  # fmt: skip


def nothing_shown():
    """Every attack ran and showed nothing."""
    return replace(
        leak(),
        verdict=Verdict("no leak shown", Severity(0.0, "none"), "No attack showed a leak.", ()),
        gate=GateResult("medium", 4.0, "passed", 0, "Nothing scores 4.0 or more."),
        findings=(),
        attacks=(replace(attacks()[1], outcome="nothing shown", reason="No restart came near."),),
        caveats=(),
        evidence="none",
    )


def inconclusive():
    """A caveat voids the verdict."""
    return replace(
        leak(),
        verdict=Verdict(
            "inconclusive",
            Severity(0.0, "none"),
            "The dump does not look like the gradient of this model under cross-entropy.",
            ("GA301 voids the verdict.", "The budget of 60 s ended in images.matching."),
        ),
        gate=GateResult("high", 7.0, "inconclusive", 4, "The audit came to no verdict."),
        findings=(),
        attacks=(
            replace(attacks()[1], outcome="failed", reason="The budget ended.", layers=()),
            attacks()[2],
        ),
        caveats=(
            Caveat("GA301", "Row sums of fc.weight reach 3.2e-02 of their size.", True),
            Caveat("GA304", "No gradient for body.0.bias.", False),
        ),
        dump=replace(leak().dump, missing=("body.0.bias",), batch_size=None),
        evidence="none",
    )


def bare():
    """As little as the records allow: no finding, no attack, no caveat, no fact."""
    return replace(
        nothing_shown(),
        verdict=Verdict("inconclusive", Severity(0.0, "none"), "Nothing could look.", ()),
        gate=GateResult(None, None, "no gate", 4, ""),
        attacks=(),
        assumptions=(),
        model=replace(leak().model, notes=()),
        provenance=replace(leak().provenance, command=(), versions={}),
    )


AUDITS = {
    "leak": leak,
    "embedded": embedded,
    "labels only": labels_only,
    "nothing shown": nothing_shown,
    "inconclusive": inconclusive,
    "bare": bare,
}


@pytest.fixture(params=AUDITS)
def audit(request):
    """Each of the audits in turn."""
    return AUDITS[request.param]()


@pytest.fixture
def audits():
    """All of the audits by name."""
    return {name: make() for name, make in AUDITS.items()}
