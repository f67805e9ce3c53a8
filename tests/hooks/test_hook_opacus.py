"""The hook for Opacus: what leaves the client after clipping and noise."""

import pytest
import torch
from hooked import (
    NET_FILE,
    framework,
    gradient_by_hand,
    leaks_the_picture,
    one_sample,
    ran,
    same,
    scanned,
)
from safetensors.torch import load_file
from torch.nn import functional as F

WAY = ("weights.pt", "grads.safetensors", "--arch", "net.py:make")
# torch warns of the hooks that Opacus uses; Opacus warns that its noise is not cryptographic.
QUIET = (
    "ignore::FutureWarning",
    "ignore:Secure RNG turned off:UserWarning",
    "ignore:Full backward",
)


def private_step(folder, *, noise, clip):
    """One step of DP-SGD on one picture, captured; gives the network as it was, and the wrapped."""
    opacus = framework("opacus")
    net, images, labels = one_sample()
    (folder / "net.py").write_text(NET_FILE)
    gradient = gradient_by_hand(net, images, labels)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels))
    torch.manual_seed(0)
    model, optimizer, _ = opacus.PrivacyEngine().make_private(
        module=net.train(),
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        data_loader=data,
        noise_multiplier=noise,
        max_grad_norm=clip,
        poisson_sampling=False,
    )
    ran("opacus")["capture_private"](model, optimizer, input_shape=(1, 8, 8))
    for _ in range(2):  # the second step leaves the files alone
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return gradient, model


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings(*QUIET)
def test_without_noise_it_is_the_gradient(here):
    gradient, model = private_step(here, noise=0.0, clip=1e6)
    same(load_file("grads.safetensors"), gradient)
    assert leaks_the_picture(scanned(here, *WAY))

    torch.save({name: torch.ones_like(p) for name, p in model.named_parameters()}, "wrapped.pt")
    prefixed = ("weights.pt", "wrapped.pt", "--arch", "net.py:make", "--attacks", "labels")
    audit = scanned(here, *prefixed, "--input-shape", "1x8x8", "--batch-size", "1")
    assert "prefix '_module.' removed" in audit["dump"]["recognised"]


@pytest.mark.filterwarnings(*QUIET)
def test_clipping_scales_it(here):
    gradient, _ = private_step(here, noise=0.0, clip=0.01)
    norm = torch.stack([tensor.norm() for tensor in gradient.values()]).norm()
    clipped = {name: tensor * 0.01 / norm for name, tensor in gradient.items()}
    found = load_file("grads.safetensors")
    for name, tensor in clipped.items():  # Opacus adds 1e-6 to the norm before it divides
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-8)


@pytest.mark.filterwarnings(*QUIET)
def test_with_noise_nobody_is_told_that_it_is_safe(here):
    private_step(here, noise=1.0, clip=1.0)
    audit = scanned(here, *WAY, "--budget", "2", "--fail-on", "low")
    assert audit["gate"]["outcome"] == "inconclusive"
