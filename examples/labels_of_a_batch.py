# Expected verdict: leak, medium
"""Labels alone: a ReLU network and a batch of eight, two of them of the same class.

Matching gradients needs second derivatives, and those of ReLU are zero almost everywhere. The
labels need no search: they follow from the signs of the last layer's gradient.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import auditor

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 8, kernel_size=3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 15 * 15, 100)
)
images, labels = torch.rand(8, 3, 32, 32), torch.tensor([3, 14, 15, 92, 65, 35, 89, 3])
gradients = torch.autograd.grad(cross_entropy(model(images), labels), list(model.parameters()))

audit = auditor.scan(
    model,
    gradients,
    input_shape=(3, 32, 32),
    batch_size=8,
    mode="eval",
    reduction="mean",
    attacks=["labels"],
)
for finding in audit.findings:
    print(finding.code, finding.certainty, finding.severity.score, finding.summary)
print(f"Verdict: {audit.verdict.status}, {audit.verdict.severity.band}")
