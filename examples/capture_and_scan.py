# Expected verdict: leak, critical
"""Write a dump from a training loop, then audit it, as `gradaudit scan` does.

A client trains on one picture. `capture` records the gradient that the client would send, and the
facts of the step; nothing of the data.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import auditor

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(100, 16), nn.Sigmoid(), nn.Linear(16, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
images, labels = torch.rand(3, 1, 1, 10, 10), torch.tensor([[7], [2], [5]])

for step, (image, label) in enumerate(zip(images, labels, strict=True)):
    optimizer.zero_grad()
    if step == 2:  # the round that is audited: the weights as they are now, and this gradient
        torch.save(model, "model.pt")
        with auditor.capture(model, "grads.safetensors"):
            cross_entropy(model(image), label).backward()
    else:
        cross_entropy(model(image), label).backward()
    optimizer.step()

# The same from a shell: gradaudit scan model.pt grads.safetensors
audit = auditor.scan("model.pt", "grads.safetensors")
for finding in audit.findings:
    print(finding.code, finding.certainty, finding.severity.score, finding.summary)
print(f"Verdict: {audit.verdict.status}, {audit.verdict.severity.band}")
