"""Layouts: each name is one of the network's own, and networks of no known family are refused."""

import pytest
import torch
from token_clients import (
    Adapted,
    bert,
    distilbert,
    gpt2,
    gpt2_classifier,
    llama,
    masked_bert,
    roberta,
    with_adapters,
)
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from auditor.errors import InputError
from auditor.text.hidden import reader_of
from auditor.text.layout import layout_of

NETWORKS = {
    "gpt2": (gpt2, "causal", True, True),
    "gpt2, untied": (lambda: gpt2(tie_word_embeddings=False), "causal", True, False),
    "gpt2, classes": (gpt2_classifier, "classification", True, False),
    "llama": (llama, "causal", True, False),
    "llama, tied": (lambda: llama(tie_word_embeddings=True), "causal", True, True),
    "bert": (bert, "classification", False, False),
    "bert, masked": (masked_bert, "masked", False, True),
    "roberta": (roberta, "classification", False, False),
    "distilbert": (distilbert, "classification", False, False),
}


@pytest.mark.parametrize(("made", "task", "causal", "tied"), NETWORKS.values(), ids=NETWORKS)
def test_every_name_is_one_of_the_networks(made, task, causal, tied):
    module = made()
    layout, named = layout_of(module, task), dict(module.named_parameters())
    names = [layout.embedding, layout.positions, layout.types, layout.head, layout.head_bias]
    assert {name for name in names if name is not None} <= set(named)
    assert (layout.causal, layout.tied) == (causal, tied)
    assert named[layout.embedding].shape == (layout.vocabulary, layout.width)
    assert layout.norm is None or module.get_submodule(layout.norm) is not None
    assert (layout.norm is None) == (task == "classification")


@pytest.mark.parametrize("made", [gpt2, llama, bert])
def test_projections_read_what_is_as_wide_as_the_network(made):
    module = made()
    layout = layout_of(module, "classification" if made is bert else "causal")
    named = dict(module.named_parameters())
    assert len(layout.first) == len(layout.second) == 3
    for projection in (*layout.first, *layout.second):
        matrix = named[projection.weight].mT if projection.turned else named[projection.weight]
        rows = matrix[slice(*projection.rows)]
        assert rows.shape[1] == layout.width
        assert len(rows) == projection.rows[1] - projection.rows[0] > 0


def test_adapters_are_projections_of_their_own():
    module = with_adapters(bert(), 4)
    layout = layout_of(module, "classification")
    adapters = [p for p in layout.first if "lora_A" in p.weight]
    assert [p.rows for p in adapters] == [(0, 4), (0, 4)]
    assert {p.weight.rpartition(".self.")[2].split(".")[0] for p in adapters} == {"query", "value"}
    assert isinstance(module.get_submodule(reader_of((adapters[0],))), Adapted)


def test_a_network_with_one_block_has_no_second():
    assert layout_of(bert(num_hidden_layers=1), "classification").second == ()


def test_a_network_of_no_known_family_is_refused():
    config = T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    with torch.random.fork_rng(devices=[]), pytest.raises(InputError, match="family"):
        layout_of(T5ForConditionalGeneration(config), "causal")


def test_a_network_without_a_head_is_refused():
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    with torch.random.fork_rng(devices=[]):
        module = BertModel(config)
    for task in ("classification", "masked"):
        with pytest.raises(InputError, match="head"):
            layout_of(module, task)
