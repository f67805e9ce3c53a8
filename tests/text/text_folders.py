"""Folders of small language models with a tokenizer, and an attack that knows the answer."""

import json
from dataclasses import dataclass

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from auditor.text.records import TextRecovery

SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
TEXTS = ("the quick brown fox jumps over the lazy dog", "call zaphod on 4471193 at noon")
SECRETS = ("zaphod", "4471193", "quick")
RIGHT_TO_LEFT = "\u05e9\u05dc\u05d5\u05dd"
STACKED = "Z\u0351\u036b\u0343\u0369"
HOSTILE = "<script>alert(1)</script>"
TURNED = "\u202egnp\u202c"
_WORDS = [*dict.fromkeys(" ".join(TEXTS).split()), RIGHT_TO_LEFT, STACKED, HOSTILE, TURNED]
WORDS = [*SPECIAL, *_WORDS, *(f"word{n}" for n in range(300 - len(SPECIAL) - len(_WORDS)))]
_SHARED = {"vocab_size": len(WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tokenizer(*, framed=False, words=WORDS):
    """One token a word; `framed` puts [CLS] and [SEP] around every text."""
    made = Tokenizer(models.WordLevel({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if framed:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
        )
    names = ("pad", "cls", "sep", "mask", "unk")
    special = {f"{name}_token": token for name, token in zip(names, SPECIAL, strict=True)}
    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def gpt2(positions=40):
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=positions, **_SHARED)
    return seeded(GPT2LMHeadModel, config)


def llama():
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        **_SHARED,
    )
    return seeded(LlamaForCausalLM, config)


def bert(head=BertForSequenceClassification):
    config = BertConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=40,
        num_labels=3,
        **_SHARED,
    )
    return seeded(head, config)


def masked():
    return bert(BertForMaskedLM)


def seeded(made, config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return made(config).eval()


def write_folder(folder, model, *, framed=False, words=WORDS):
    """What `save_pretrained` of both writes."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer(framed=framed, words=words).save_pretrained(folder)
    if bars:
        logging.enable_progress_bar()
    return folder


def write_adapter(folder, names, *, rank=4, alpha=8, more=None, **config):
    """As peft writes it. Returns the tensors by the names of the file."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, (rows, columns) in names.items():
        stem = f"base_model.model.{name}"
        tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, columns, generator=generator) / 8
        tensors[f"{stem}.lora_B.weight"] = torch.randn(rows, rank, generator=generator) / 50
    tensors |= more or {}
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha} | config
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return tensors


@dataclass(frozen=True)
class Oracle:
    """Claims what it was given."""

    recovery: TextRecovery
    name: str = "text.spans"
    title: str = "Claims what it was given"
    blocked: str | None = None

    def __repr__(self):
        return "Oracle()"

    def blocked_by(self, problem):
        return self.blocked

    def run(self, problem, *, seed, watch):
        return self.recovery
