# Expected verdict: leak, medium; exit code 0
"""A gate in a build: labels are tolerated here, pictures are not.

The same from a shell: gradaudit scan model.pt grads.safetensors --fail-on high
"""

import sys

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import auditor

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 10))
image, label = torch.rand(1, 3, 8, 8), torch.tensor([6])
loss = cross_entropy(model(image), label)
named = dict(model.named_parameters())
gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))

# Only labels are looked for: the gate says so, and a pass says nothing about pictures.
audit = auditor.scan(model, gradients, attacks=["labels"], fail_on="high")
print(f"Verdict: {audit.verdict.status}, {audit.verdict.severity.band}")
print(f"Gate {audit.gate.outcome}: {audit.gate.reason}")
sys.exit(audit.gate.exit_code)
