# Expected verdict: leak, critical
"""Lightning: a callback writes the gradient of one step. Needs: pip install lightning

The class is what `gradaudit hook lightning` prints.
"""

import logging
import warnings

import lightning
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import auditor
from auditor import save_gradients

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


class CaptureGradient(lightning.Callback):
    def __init__(self, network, step=0, **facts):
        self.network, self.step, self.facts = network, step, facts

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.step:
            network = getattr(pl_module, self.network)
            gradients = {name: p.grad for name, p in network.named_parameters()}
            torch.save(network, "model.pt")
            save_gradients(network, gradients, "grads.safetensors", **self.facts)


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Sigmoid(), nn.Linear(12, 5))

    def training_step(self, batch, _):
        return cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


torch.manual_seed(0)
capture = CaptureGradient("net", step=1, batch_size=1, input_shape=(1, 8, 8))
quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
trainer = lightning.Trainer(
    max_steps=3, accelerator="cpu", callbacks=[capture], enable_checkpointing=False, **quiet
)
data = TensorDataset(torch.rand(3, 1, 8, 8), torch.tensor([4, 2, 0]))
trainer.fit(Classifier(), DataLoader(data))

audit = auditor.scan("model.pt", "grads.safetensors")
print(f"Verdict: {audit.verdict.status}, {audit.verdict.severity.band}")
