# Expected verdict: leak, critical
"""Audit a model and its gradient without any file, and measure the result against the truth."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import auditor

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Sigmoid(), nn.Linear(16, 10)).eval()
image, label = torch.rand(1, 3, 8, 8), torch.tensor([4])

# What the client would send: one tensor for each parameter, in their order.
gradients = torch.autograd.grad(cross_entropy(model(image), label), list(model.parameters()))

audit = auditor.scan(
    model,
    gradients,
    input_shape=(3, 8, 8),
    batch_size=1,
    mode="eval",
    reduction="mean",
    truth=auditor.Truth(image, label),  # no attack sees it; it is compared with the result
)
for finding in audit.findings:
    measures = ", ".join(f"{m.name} {m.value:.3g} {m.unit}".strip() for m in finding.measures)
    print(f"{finding.code} {finding.certainty}: {measures}")
print(f"Verdict: {audit.verdict.status}, {audit.verdict.severity.band}")
