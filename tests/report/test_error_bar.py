"""The map of error bars beside the picture: where it was asked for, and nowhere else."""

import base64
import io
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from problems import lenet_client

from auditor.bounds.fisher import fisher_of
from auditor.bounds.heat import heat_map
from auditor.evidence import examine
from auditor.exhibits import exhibits_of
from auditor.records import Course, Recovery
from auditor.report.html import to_html


def test_every_sample_has_its_own_map():
    had = lenet_client(2)
    problem = had.problem()
    inputs = had.inputs.double()
    course = Course((0,), (0.0,), (0,), inputs[None], "converged")
    claim = Recovery(inputs=inputs[None], input_labels=had.labels[None], courses=(course,))
    evidence = examine(problem, claim, attack="images.lm", seconds=0.0)
    fisher = fisher_of(problem, had.inputs, had.labels, noise=0.05)
    colours = heat_map(fisher)
    shown = exhibits_of(problem, evidence, None, colours)
    for exhibit, expected in zip(shown, colours, strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(exhibit.error_bar)))
        found = torch.from_numpy(np.array(image)).permute(2, 0, 1).long()
        assert torch.equal(found, (255 * expected).round().long())
    assert shown[0].error_bar != shown[1].error_bar
    assert all(exhibit.error_bar is None for exhibit in exhibits_of(problem, evidence, None))


def test_the_page_shows_it_with_its_scale(audits):
    audit = audits["embedded"]
    first = replace(audit.exhibits[0], error_bar=audit.exhibits[1].strip[0])
    page = to_html(replace(audit, exhibits=(first, *audit.exhibits[1:])))
    assert page.count("Error bar of each place") == 1
    assert "grey levels" in page
    assert "Error bar of each place" not in to_html(audit)
