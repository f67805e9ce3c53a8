"""The callback for Lightning, in a real fit."""

import pytest
import torch
from hooked import framework, gradient_by_hand, leaks_the_picture, one_sample, ran, same, scanned
from safetensors.torch import load_file
from torch.nn import functional as F


@pytest.fixture
def lightning():
    """Loaded by the test that needs it, not when tests are gathered."""
    return framework("lightning")


def client_of(lightning, net):
    class Client(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net

        def training_step(self, batch, _):
            images, labels = batch
            return F.cross_entropy(self.net(images), labels)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Client()


@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
@pytest.mark.filterwarnings("ignore::FutureWarning:lightning")
def test_lightning(lightning, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, images, labels = one_sample()
    expected = gradient_by_hand(net, images, labels)
    callback = ran("lightning")["CaptureGradient"]("net", batch_size=1, input_shape=(1, 8, 8))
    trainer = lightning.Trainer(
        max_steps=2,
        accelerator="cpu",
        callbacks=[callback],
        gradient_clip_val=1e-3,  # comes after the callback
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels))
    trainer.fit(client_of(lightning, net.train()), data)
    same(load_file("grads.safetensors"), expected)
    assert leaks_the_picture(scanned(tmp_path, "model.pt", "grads.safetensors"))
