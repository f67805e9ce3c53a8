# Expected verdict: leak, critical
"""NVFlare: a filter keeps what a client sends. Needs: pip install nvflare

The class is what `gradaudit hook nvflare` prints. A task's data are made by hand here; in a job,
the executor makes them, and they pass through the filter on their way out.
"""

import torch
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_context import FLContext
from torch import nn
from torch.nn.functional import cross_entropy

import auditor


class KeepDXO(DXOFilter):
    def __init__(self, path):
        kinds = [DataKind.WEIGHTS, DataKind.WEIGHT_DIFF]
        super().__init__(supported_data_kinds=kinds, data_kinds_to_filter=kinds)
        self.path = path

    def process_dxo(self, dxo, shareable, fl_ctx):
        tensors = {name: torch.as_tensor(value) for name, value in dxo.data.items()}
        torch.save(tensors, self.path)  # None is returned: nothing was changed


torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Sigmoid(), nn.Linear(12, 5))
torch.save(net, "before.pt")
before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
cross_entropy(net(torch.rand(1, 1, 8, 8)), torch.tensor([4])).backward()
torch.optim.SGD(net.parameters(), lr=0.1).step()

difference = {name: (net.state_dict()[name] - before[name]).numpy() for name in before}
task_result = DXO(DataKind.WEIGHT_DIFF, data=difference).to_shareable()
KeepDXO("sent.pt").process(task_result, FLContext())

# The same from a shell: gradaudit scan before.pt sent.pt --kind update --lr 0.1 ...
facts = {"input_shape": (1, 8, 8), "batch_size": 1, "lr": 0.1, "local_steps": 1}
audit = auditor.scan("before.pt", "sent.pt", kind="update", **facts)
print(f"Verdict: {audit.verdict.status}, {audit.verdict.severity.band}")
