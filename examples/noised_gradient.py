# Expected verdict: inconclusive
"""A clipped and noised gradient: no attack succeeds, and that is not called safe.

Softmax cross-entropy makes the last layer's gradients sum to zero over the classes. Noise breaks
that, which the audit sees (GA301). From then on a failed attack means nothing. What bounds every
attacker is the calibration of the noise, not this audit.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import auditor

torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.Sigmoid(), nn.Linear(12, 5))
image, label = torch.rand(1, 1, 6, 6), torch.tensor([4])
gradients = torch.autograd.grad(cross_entropy(model(image), label), list(model.parameters()))

norm = torch.stack([g.norm() for g in gradients]).norm()
clipped = [g / max(1.0, float(norm)) for g in gradients]
noised = [g + 0.1 * torch.randn_like(g) for g in clipped]

audit = auditor.scan(model, noised, batch_size=1, mode="eval", reduction="mean", budget=3)
for caveat in audit.caveats:
    print(caveat.code, caveat.message)
for attack in audit.attacks:
    print(attack.name, attack.outcome, attack.reason)
print(f"Verdict: {audit.verdict.status}")
