"""Token sets: exactly the client's from an untied embedding, a part of them from a tied one."""

import pytest
import torch
from token_clients import (
    END,
    MASK,
    START,
    adapters_only,
    bert,
    causal_client,
    class_client,
    gpt2,
    llama,
    masked_bert,
    masked_client,
    roberta,
    texts,
    with_adapters,
)

from auditor.attacks.base import Watch
from auditor.text.attacks import Tokens
from auditor.text.embedding import entered_tokens, longest_of


def claim_of(problem):
    attack = Tokens()
    assert attack.blocked_by(problem) is None
    return attack.run(problem, seed=0, watch=Watch())


def present(recovery):
    return set(recovery.tokens.present.tolist())


def entered(client):
    """Tokens that the first layer sees and the loss depends on."""
    causal = client.task == "causal"
    return {token for row in client.sequences for token in (row[:-1] if causal else row)}


@pytest.mark.parametrize("made", [bert, roberta])
def test_an_untied_embedding_gives_exactly_the_tokens(made):
    client = class_client(made(), texts([9, 14, 5], ends=True), [0, 1, 2])
    recovery = claim_of(client.problem(longest=None))
    assert present(recovery) == entered(client)
    assert recovery.tokens.complete
    assert recovery.longest == 14


@pytest.mark.parametrize("made", [llama, lambda: gpt2(tie_word_embeddings=False)])
def test_a_causal_model_leaves_last_tokens_out_and_says_so(made):
    client = causal_client(made(), texts([9, 14, 5]))
    recovery = claim_of(client.problem(longest=None))
    assert present(recovery) == entered(client)
    assert not recovery.tokens.complete
    assert any("last token" in premise for premise in recovery.tokens.premises)


def test_the_longest_text_of_a_causal_model_counts_its_last_token():
    client = causal_client(gpt2(), texts([9, 14, 5]))
    assert claim_of(client.problem(longest=None)).longest == 14


def test_without_learned_positions_the_length_is_open():
    assert longest_of(causal_client(llama(), texts([9])).problem(longest=None)) is None


@pytest.mark.parametrize("made", [gpt2, lambda: llama(tie_word_embeddings=True)])
def test_a_tied_embedding_gives_the_tokens_that_went_in(made):
    client = causal_client(made(), texts([9, 14, 5]))
    recovery = claim_of(client.problem())
    assert present(recovery) == entered(client)
    assert recovery.tokens.by == "tied embedding"
    assert entered_tokens(client.problem()) is None


def test_the_decoder_bias_of_a_masked_model_gives_masked_tokens():
    client = masked_client(masked_bert(), texts([12], ends=True), [(0, 3), (0, 7)])
    recovery = claim_of(client.problem())
    masked = set(client.batch.labels[client.batch.tokens == MASK].tolist())
    assert len(masked) == 2
    assert present(recovery) == entered(client) | masked


def test_a_pruned_dump_gives_fewer_tokens_and_no_wrong_one():
    client = class_client(bert(), texts([9, 14], ends=True), [0, 1])

    def pruned(g):
        return torch.where(g.abs() >= g.abs().flatten().quantile(0.999), g, 0.0)

    dump = {name: pruned(g) for name, g in client.gradients().items()}
    found = present(claim_of(client.problem(dump)))
    assert found < entered(client)


@pytest.mark.parametrize("tied", [False, True])
def test_noise_on_every_row_is_no_token_set(tied):
    client = causal_client(gpt2(tie_word_embeddings=tied), texts([9]))
    generator = torch.Generator().manual_seed(0)
    noised = {
        name: g + 1e-3 * g.std(correction=0) * torch.randn(g.shape, generator=generator)
        for name, g in client.gradients().items()
    }
    problem = client.problem(noised)
    why = Tokens().blocked_by(problem)
    if why is None:
        recovery = Tokens().run(problem, seed=0, watch=Watch())
        assert recovery.tokens is None
        why = " ".join(recovery.notes)
    assert "noise" in why


def test_a_coarse_dump_still_gives_the_set_of_an_untied_embedding():
    client = class_client(bert(), texts([9, 14], ends=True), [0, 1])
    coarse = {name: g.bfloat16() for name, g in client.gradients().items()}
    assert present(claim_of(client.problem(coarse))) == entered(client)


def test_a_coarse_dump_of_a_tied_embedding_is_an_honest_skip():
    client = causal_client(gpt2(), texts([9]))
    coarse = {name: g.bfloat16() for name, g in client.gradients().items()}
    assert "coarse" in Tokens().blocked_by(client.problem(coarse))


def test_a_dump_without_the_embedding_is_an_honest_skip():
    client = class_client(with_adapters(bert(), 8), texts([9], ends=True), [1])
    problem = client.problem(adapters_only(client.gradients()), start=START, end=END)
    assert "no gradient of the embedding" in Tokens().blocked_by(problem)
