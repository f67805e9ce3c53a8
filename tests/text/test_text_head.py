"""Labels at known places: against the labels that the client had."""

from dataclasses import replace

import pytest
import torch
from token_clients import (
    bert,
    causal_client,
    class_client,
    gpt2,
    llama,
    masked_bert,
    masked_client,
    texts,
)

from auditor.text.head import class_labels, labels_at, places_of

CAUSAL = {
    "gpt2": gpt2,
    "gpt2, untied": lambda: gpt2(tie_word_embeddings=False),
    "llama": llama,
    "llama, tied": lambda: llama(tie_word_embeddings=True),
}


def read(client, problem):
    """What is read at every place that has a label, without any being told."""
    tokens, attention = client.batch.tokens, client.batch.attention
    last = torch.zeros_like(attention)
    last[torch.arange(len(tokens)), attention.sum(1) - 1] = True
    at = (attention & ~last).nonzero()
    places = places_of(problem, tokens, attention, at)
    entered = torch.unique(tokens[attention & ~last])
    roots = tuple((at[:, 1] == 0).nonzero().flatten().tolist())
    found = labels_at(problem, places, entered=entered, next_place={}, roots=roots)
    return found, [(place, int(tokens[row, col + 1])) for place, (row, col) in enumerate(at)]


@pytest.mark.parametrize("made", CAUSAL.values(), ids=CAUSAL)
def test_every_label_of_a_causal_model(made):
    client = causal_client(made(), texts([9, 7]))
    found, expected = read(client, client.problem())
    assert found.complete
    assert dict(found.counts) == dict.fromkeys(expected, 1)


@pytest.mark.parametrize("made", [CAUSAL["gpt2"], CAUSAL["llama"]])
def test_the_batch_size_only_gives_the_scale(made):
    client = causal_client(made(), texts([9, 7]))
    told, open_ = (read(client, client.problem(batch_size=size))[0] for size in (2, None))
    assert told.counts == open_.counts


def test_a_confident_model_does_not_hide_the_number_of_its_labels():
    module = llama()
    client = causal_client(module, texts([9]))
    with torch.no_grad():
        hidden = module.model(client.batch.tokens).last_hidden_state[0]
        module.lm_head.weight[client.batch.tokens[0, 1]] += 0.12 * hidden[0]
        sure = module(client.batch.tokens).logits[0, 0].softmax(0)[client.batch.tokens[0, 1]]
    assert sure > 0.5
    found, expected = read(client, client.problem())
    assert dict(found.counts) == dict.fromkeys(expected, 1)


def test_without_the_heads_gradient_nothing_is_read():
    client = causal_client(llama(), texts([9]))
    rest = {n: g for n, g in client.gradients().items() if "lm_head" not in n}
    assert read(client, client.problem(rest))[0] is None


def test_places_that_are_not_the_clients_give_nothing_whole():
    client = causal_client(llama(), texts([9, 7]))
    other = causal_client(client.module, texts([9, 7], seed=5))
    found, _ = read(replace(client, batch=other.batch), client.problem())
    assert found is None or not found.complete


def test_masked_labels_stand_where_the_client_masked():
    client = masked_client(masked_bert(), texts([12, 9], ends=True), [(0, 3), (0, 7), (1, 2)])
    tokens, attention = client.batch.tokens, client.batch.attention
    at = attention.nonzero()
    problem = client.problem()
    places = places_of(problem, tokens, attention, at)
    entered = torch.unique(tokens[attention])
    found = labels_at(problem, places, entered=entered, next_place={})
    labels = client.batch.labels[attention]
    expected = {(n, int(v)): 1 for n, v in enumerate(labels) if v >= 0}
    assert dict(found.counts) == expected
    assert found.totals == tuple(int(v >= 0) for v in labels)


@pytest.mark.parametrize("labels", [[0, 0, 0], [2, 0, 1]])
def test_class_labels_of_several_texts(labels):
    client = class_client(bert(), texts([9, 7, 5], ends=True), labels)
    problem = client.problem()
    at = torch.tensor([[0, 0], [1, 0], [2, 0]])
    places = places_of(problem, client.batch.tokens, client.batch.attention, at)
    assert class_labels(problem, places) == {n: (label,) for n, label in enumerate(labels)}


def test_a_text_that_is_there_twice_under_two_labels():
    one, two = texts([9, 7], ends=True)
    client = class_client(bert(), [one, one, two], [0, 2, 1])
    problem = client.problem()
    at = torch.tensor([[0, 0], [2, 0]])
    places = places_of(problem, client.batch.tokens, client.batch.attention, at)
    assert class_labels(problem, places) == {0: (0, 2), 1: (1,)}
    assert class_labels(client.problem(batch_size=None), places) is None
