"""Makes the pictures of reports in docs/figures. Needs playwright and Chromium.

    python benchmarks/screenshots.py [--budget 240]

Three real audits of the demo's network: one picture that was rebuilt (critical), labels of a batch
within the limit of the gate (passed), and a gradient under noise ten times its size (inconclusive).
No audit says "clean": an attack that failed proves nothing.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright
from torch import Tensor

from auditor.attacks import Milestone
from auditor.audit import Case, run_audit
from auditor.demo import demo_case, demo_model
from auditor.facts import Flags, settle
from auditor.options import make_options
from auditor.records import Audit, FileRef, LoadedModel, Truth
from auditor.report.html import to_html
from auditor.simulate import simulate_dump

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
WHOLE = Path(tempfile.gettempdir())  # the whole page, to look at


def client(inputs: Tensor, labels: Tensor, *, noise: float = 0.0) -> Case:
    """A client with these samples, without the truth. `noise`: relative to the gradient's rms."""
    model = LoadedModel(demo_model(seed=0), FileRef("lenet.pt", "in memory", 0, "0" * 64))
    flags = Flags()
    dump = simulate_dump(model.module, Truth(inputs, labels), flags)
    entries = torch.cat([part.flatten() for part in dump.tensors.values()])
    generator = torch.Generator().manual_seed(0)
    sigma = noise * float(entries.square().mean().sqrt())
    for part in dump.tensors.values():
        part.add_(sigma * torch.randn(part.shape, generator=generator))
    return Case(model, dump, settle(dump, model.module, flags))


def critical(budget: float) -> Audit:
    options = make_options(preset="standard", budget=budget, evidence="embed", what_if=True)
    return run_audit(demo_case(seed=0), options, fail_on="high", progress=told).audit


def passed(budget: float) -> Audit:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(16, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (16,), generator=generator)
    options = make_options(attacks=["labels"], budget=budget)
    return run_audit(client(inputs, labels), options, fail_on="high", progress=told).audit


def inconclusive(budget: float) -> Audit:
    generator = torch.Generator().manual_seed(0)
    case = client(torch.rand(1, 3, 32, 32, generator=generator), torch.tensor([3]), noise=10.0)
    return run_audit(case, make_options(budget=budget), fail_on="high", progress=told).audit


def told(milestone: Milestone) -> None:
    print(f"{milestone.attack} {milestone.done}/{milestone.total} {milestone.residual:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=240.0, help="seconds for each audit")
    budget = parser.parse_args().budget
    torch.set_num_threads(1)
    FIGURES.mkdir(exist_ok=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for make in (critical, passed, inconclusive):
            report = Path(folder) / "report.html"
            report.write_text(to_html(make(budget)), encoding="utf-8")
            page = browser.new_page(viewport={"width": 1100, "height": 1400})
            page.goto(report.as_uri())
            page.screenshot(path=FIGURES / f"report-{make.__name__}.png")
            page.screenshot(path=WHOLE / f"whole-{make.__name__}.png", full_page=True)
        browser.close()


if __name__ == "__main__":
    main()
