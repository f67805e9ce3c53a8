"""Small language models, what a client trained them on, and the problem that an attacker has.

The client's gradient comes from plain `backward()`.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)

from auditor.inputs.gradients import match_gradients
from auditor.records import FileRef
from auditor.text.problem import causal_labels, make_text_problem
from auditor.text.records import IGNORED, TextKnowledge, TokenBatch

CPU = torch.device("cpu")
WORDS = 300
PAD, START, END, MASK = 0, 1, 2, 3
_SHARED = {"vocab_size": WORDS, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
_ROTARY = _SHARED | {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_BERT = _SHARED | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
    "initializer_range": 0.1,  # so small a network attends evenly with less
}


def gpt2(*, head=GPT2LMHeadModel, width=96, **more):
    config = GPT2Config(n_embd=width, n_layer=3, n_head=4, n_positions=40, **_SHARED, **more)
    return seeded(head, config)


def gpt2_classifier():
    return gpt2(head=GPT2ForSequenceClassification, num_labels=3)


def llama(*, head=LlamaForCausalLM, **more):
    return seeded(head, LlamaConfig(**_ROTARY, **more))


def gemma():
    return seeded(GemmaForCausalLM, GemmaConfig(**_ROTARY, head_dim=24))


def llama_classifier():
    return llama(head=LlamaForSequenceClassification, num_labels=3)


def bert(*, head=BertForSequenceClassification, **more):
    return seeded(head, BertConfig(**(_BERT | {"num_labels": 3} | more)))


def masked_bert(**more):
    return bert(head=BertForMaskedLM, **more)


def roberta(*, head=RobertaForSequenceClassification):
    return seeded(head, RobertaConfig(**_BERT, num_labels=3))


def masked_roberta():
    return roberta(head=RobertaForMaskedLM)


def masked_distilbert():
    return distilbert(head=DistilBertForMaskedLM)


def distilbert(*, head=DistilBertForSequenceClassification):
    config = DistilBertConfig(
        dim=64,
        hidden_dim=128,
        n_layers=3,
        n_heads=4,
        max_position_embeddings=40,
        num_labels=3,
        initializer_range=0.1,
        vocab_size=WORDS,
        pad_token_id=PAD,
    )
    return seeded(head, config)


def seeded(made, config, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return made(config).eval()


class Adapted(nn.Module):
    """A linear layer with an adapter beside it, by the names that peft gives them."""

    def __init__(self, base, rank, generator):
        super().__init__()
        self.base_layer = base
        inputs, outputs = base.in_features, base.out_features
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, outputs, bias=False)})
        for part in (self.lora_A, self.lora_B):
            nn.init.normal_(part["default"].weight, std=0.05, generator=generator)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def with_adapters(module, rank, seed=0):
    """Adapters on the queries and values of a BERT or Llama model."""
    generator = torch.Generator().manual_seed(seed)
    adapted = copy.deepcopy(module)
    for name, part in list(adapted.named_modules()):
        if name.endswith((".query", ".value", ".q_proj", ".v_proj")):
            parent = adapted.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], Adapted(part, rank, generator))
    return adapted


def adapters_only(gradients):
    return {name: g for name, g in gradients.items() if "lora_" in name}


@dataclass(frozen=True)
class TokenClient:
    """What the client had; the attacker sees `problem()` of it only."""

    module: nn.Module
    task: str
    batch: TokenBatch

    @property
    def sequences(self):
        pairs = zip(self.batch.tokens, self.batch.attention, strict=True)
        return sorted(row[kept].tolist() for row, kept in pairs)

    def gradients(self):
        client = copy.deepcopy(self.module)
        client(
            input_ids=self.batch.tokens,
            attention_mask=self.batch.attention.long(),
            labels=self.batch.labels,
        ).loss.backward()
        return {name: p.grad for name, p in client.named_parameters() if p.grad is not None}

    def problem(self, gradients=None, *, module=None, **known):
        """`module`: the model that the attacker has, when it is not the client's."""
        module = module or self.module
        gradients = self.gradients() if gradients is None else gradients
        file = FileRef("dump", "in memory", 0, "")
        dump = match_gradients(gradients, module, file=file, form="test")
        facts = TextKnowledge(
            task=self.task,
            batch_size=len(self.batch.tokens),
            longest=int(self.batch.attention.sum(1).max()),
            classes=module.config.num_labels if self.task == "classification" else 0,
            padding=PAD,
            start=None,
            end=None,
            mask=MASK if self.task == "masked" else None,
            assumptions=(),
        )
        return make_text_problem(module, dump, replace(facts, **known), device=CPU)


def texts(lengths, *, seed=0, ends=False):
    """Random token ids of these lengths; `ends`: each between the start and the end token."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(4, WORDS, (n,), generator=generator).tolist() for n in lengths]
    return [[START, *row[1:-1], END] for row in rows] if ends else rows


def padded(rows):
    """Tokens and attention (N, T), padded on the right."""
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
    attention = torch.tensor([[True] * len(r) + [False] * (longest - len(r)) for r in rows])
    return tokens, attention


def causal_client(module, rows):
    tokens, attention = padded(rows)
    labels = causal_labels(tokens, attention)
    return TokenClient(module, "causal", TokenBatch(tokens, attention, labels))


def class_client(module, rows, labels):
    tokens, attention = padded(rows)
    return TokenClient(
        module, "classification", TokenBatch(tokens, attention, torch.tensor(labels))
    )


def masked_client(module, rows, places):
    """`places`: (row, position) of what the client masked."""
    tokens, attention = padded(rows)
    labels = torch.full_like(tokens, IGNORED)
    for place in places:
        labels[place] = tokens[place]
        tokens[place] = MASK
    return TokenClient(module, "masked", TokenBatch(tokens, attention, labels))
