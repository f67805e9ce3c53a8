# Expected verdict: inconclusive
"""Opacus: what leaves a client after clipping and noise. Needs: pip install opacus

The function is what `gradaudit hook opacus` prints. No attack succeeds here, and that is no proof:
what bounds every attacker is the noise and its accountant.
"""

import warnings

import opacus
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import auditor
from auditor import save_gradients

warnings.filterwarnings("ignore")  # Opacus: noise for trials, not for keeping secrets


def capture_private(model, optimizer, **facts):
    network = model._module
    facts = {"batch_size": optimizer.expected_batch_size, **facts}

    def keep(inner, args, kwargs):
        gradients = {name: p.grad for name, p in network.named_parameters()}
        torch.save(network.state_dict(), "weights.pt")
        save_gradients(network, gradients, "grads.safetensors", **facts)
        handle.remove()

    handle = optimizer.original_optimizer.register_step_pre_hook(keep)


def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Sigmoid(), nn.Linear(12, 5))


torch.manual_seed(0)
network, images, labels = make(), torch.rand(1, 1, 8, 8), torch.tensor([4])
model, optimizer, _ = opacus.PrivacyEngine().make_private(
    module=network,
    optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
    data_loader=DataLoader(TensorDataset(images, labels)),
    noise_multiplier=1.0,
    max_grad_norm=1.0,
    poisson_sampling=False,
)
capture_private(model, optimizer, input_shape=(1, 8, 8))
cross_entropy(model(images), labels).backward()
optimizer.step()

# With the file of a network, the same from a shell: --arch net.py:make in place of the object.
network = make()
network.load_state_dict(torch.load("weights.pt", weights_only=True))
audit = auditor.scan(network, "grads.safetensors", budget=3)
print(f"Verdict: {audit.verdict.status}")
