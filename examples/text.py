# Expected verdict: leak, critical
"""A language model: two sentences of one client, read off its gradient token by token.

The model is a small GPT-2 with random weights, made on the spot. With a real one, give the folder
that save_pretrained wrote in place of the model, or the model with its tokenizer.
Needs the extra: pip install "gradaudit[text]".
"""

import torch
from transformers import GPT2Config, GPT2LMHeadModel, logging

import auditor

logging.set_verbosity_error()
torch.manual_seed(0)
sentences = ["the patient was seen on friday", "transfer 4471193 to the account of anna"]
words = ["", *dict.fromkeys(" ".join(sentences).split())]
numbers = {word: number for number, word in enumerate(words)}
model = GPT2LMHeadModel(
    GPT2Config(
        vocab_size=400,
        n_embd=96,
        n_layer=3,
        n_head=4,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
    )
).eval()

rows = [[numbers[word] for word in sentence.split()] for sentence in sentences]
longest = max(len(row) for row in rows)
tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
there = torch.tensor([[at < len(row) for at in range(longest)] for row in rows])
loss = model(tokens, attention_mask=there.long(), labels=tokens.masked_fill(~there, -100)).loss
gradients = torch.autograd.grad(loss, list(model.parameters()))

audit = auditor.scan(model, gradients, batch_size=2, mode="eval")
for finding in audit.findings:
    print(finding.code, finding.certainty, finding.severity.score, finding.summary)
print(f"Verdict: {audit.verdict.status}, {audit.verdict.severity.band}")
