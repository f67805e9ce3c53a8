# Expected verdict: leak, critical
"""A batch of eight rows of a table, read off the gradient of a small network.

Thirty columns, as in a table of laboratory values; the last ten are yes or no. Each column is
standardised with its mean and deviation, and `capture` is told both: an attacker knows them, and
the report then speaks of errors in deviations of a column.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import auditor

COLUMNS, ROWS = 30, 8

torch.manual_seed(0)
mean, std = 100 * torch.rand(COLUMNS), 1 + 20 * torch.rand(COLUMNS)
table = mean + std * torch.randn(ROWS, COLUMNS)
table[:, 20:] = (table[:, 20:] > mean[20:]).float()
mean[20:], std[20:] = 0.5, 0.5
diagnosis = torch.randint(2, (ROWS,))

model = nn.Sequential(nn.Linear(COLUMNS, 256), nn.ReLU(), nn.Linear(256, 2))
with auditor.capture(model, "grads.safetensors", mean=mean, std=std):
    cross_entropy(model((table - mean) / std), diagnosis).backward()
torch.save(model, "model.pt")

# The same from a shell: gradaudit scan model.pt grads.safetensors
audit = auditor.scan("model.pt", "grads.safetensors")
print(f"The model takes {audit.model.input_shape[0]} columns.")
for finding in audit.findings:
    print(finding.code, finding.certainty, finding.severity.score, finding.summary)
print(f"Verdict: {audit.verdict.status}, {audit.verdict.severity.band}")
