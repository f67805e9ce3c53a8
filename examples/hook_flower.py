# Expected verdict: leak, critical
"""Flower: a mod keeps the weights that come and those that leave. Needs: pip install flwr

The function is what `gradaudit hook flower` prints. The message is made by hand here; in a
federation, the server sends it.
"""

import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, Metadata, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn.functional import cross_entropy

import auditor


def capture_weights(message, context, call_next):
    before = [record.to_torch_state_dict() for record in message.content.array_records.values()]
    reply = call_next(message, context)
    if message.metadata.message_type.startswith("train") and not reply.has_error():
        after = [record.to_torch_state_dict() for record in reply.content.array_records.values()]
        folder = Path(f"client-{context.node_id}")
        folder.mkdir(exist_ok=True)
        torch.save(before[0], folder / "before.pt")
        torch.save(after[0], folder / "after.pt")
    return reply


torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Sigmoid(), nn.Linear(12, 5))
app = ClientApp(mods=[capture_weights])


@app.train()
def train(message, context):
    net.load_state_dict(message.content["arrays"].to_torch_state_dict())
    cross_entropy(net(torch.rand(1, 1, 8, 8)), torch.tensor([4])).backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    return Message(RecordDict({"arrays": ArrayRecord(net.state_dict())}), reply_to=message)


metadata = Metadata(1, "", 1, 7, "", "", time.time(), 60.0, "train")
content = RecordDict({"arrays": ArrayRecord(net.state_dict())})
app(Message(content, metadata=metadata), Context(1, 7, {}, RecordDict(), {}))

# From a shell: gradaudit scan before.pt --after after.pt --arch net.py:make --lr 0.1 ...
before, after = (
    torch.load(f"client-7/{name}.pt", weights_only=True) for name in ("before", "after")
)
net.load_state_dict(before)
update = {name: after[name] - before[name] for name in before}
facts = {"input_shape": (1, 8, 8), "batch_size": 1, "lr": 0.1, "local_steps": 1}
audit = auditor.scan(net, update, kind="update", **facts)
print(f"Verdict: {audit.verdict.status}, {audit.verdict.severity.band}")
