"""Whole texts by spans: what is found is what the client had, or nothing at all."""

import copy
import time
from dataclasses import replace

import pytest
import torch
from token_clients import (
    END,
    MASK,
    START,
    Adapted,
    adapters_only,
    bert,
    causal_client,
    class_client,
    distilbert,
    gemma,
    gpt2,
    gpt2_classifier,
    llama,
    llama_classifier,
    masked_bert,
    masked_client,
    masked_distilbert,
    masked_roberta,
    roberta,
    texts,
    with_adapters,
)

from auditor.attacks.base import Watch
from auditor.text.attacks import Spans
from auditor.text.problem import gradient_of, residuals_of, tolerance_of

WATCH = Watch()


def found_by(problem, attack=None, watch=WATCH):
    attack = attack or Spans()
    assert attack.blocked_by(problem) is None
    return attack.run(problem, seed=0, watch=watch)


def sequences(recovery):
    return sorted(text.tolist() for text in recovery.sequences)


def explains(problem, recovery):
    """Whether the claimed batch's gradient equals the dump in every tensor."""
    residuals = residuals_of(problem, gradient_of(problem, recovery.batch))
    return max(residuals.values()) <= tolerance_of(problem)


def assert_exact(client, problem, recovery):
    assert sequences(recovery) == client.sequences
    assert explains(problem, recovery)


# ------------------------------------------------------------------------- decoders

DECODERS = {
    "gpt2": gpt2,
    "gpt2, untied": lambda: gpt2(tie_word_embeddings=False),
    "llama": llama,
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "gemma": gemma,  # its norm multiplies by one more than its gain
}


@pytest.fixture(params=DECODERS.values(), ids=DECODERS)
def decoder(request):
    return request.param()


@pytest.mark.parametrize("lengths", [(9,), (9, 12, 7)])
def test_a_decoder_gives_its_texts_with_the_last_token(decoder, lengths):
    client = causal_client(decoder, texts(lengths))
    problem = client.problem()
    assert_exact(client, problem, found_by(problem))


def test_nothing_has_to_be_known_of_the_batch(decoder):
    client = causal_client(decoder, texts([9, 12, 7]))
    problem = client.problem(batch_size=None, longest=None)
    assert_exact(client, problem, found_by(problem))


def test_equal_texts_and_texts_that_begin_alike(decoder):
    one, two = texts([9, 12])
    rows = [one, one, two, two[:6], [*two[:4], *one[4:]]]
    client = causal_client(decoder, rows)
    problem = client.problem()
    assert_exact(client, problem, found_by(problem))


def test_a_last_token_that_also_goes_in(decoder):
    one, two = texts([8, 9])
    rows = [[*one, two[3]], [*two, one[0]]]
    client = causal_client(decoder, rows)
    problem = client.problem()
    assert_exact(client, problem, found_by(problem))


def test_a_token_that_is_repeated(decoder):
    one = texts([10])[0]
    client = causal_client(decoder, [[*one[:4], one[3], one[3], *one[4:]]])
    problem = client.problem()
    assert_exact(client, problem, found_by(problem))


@pytest.mark.parametrize("made", [gpt2_classifier, llama_classifier])
def test_a_decoder_that_classifies(made):
    client = class_client(made(), texts([9, 12, 7], ends=True), [0, 1, 2])
    problem = client.problem()
    recovery = found_by(problem)
    assert_exact(client, problem, recovery)
    pairs = {
        tuple(t.tolist()): int(k)
        for t, k in zip(recovery.sequences, recovery.batch.labels, strict=True)
    }
    kept = zip(client.batch.tokens, client.batch.attention, client.batch.labels, strict=True)
    assert pairs == {tuple(t[a].tolist()): int(k) for t, a, k in kept}


# ------------------------------------------------------------------------- encoders

ENDS = {"start": START, "end": END}


@pytest.mark.parametrize("made", [bert, roberta, distilbert])
def test_an_encoder_that_classifies(made):
    client = class_client(made(), texts([9], ends=True), [1])
    problem = client.problem(longest=None, **ENDS)
    assert_exact(client, problem, found_by(problem))


def test_two_texts_of_an_encoder_with_padding():
    client = class_client(bert(), texts([9, 12], ends=True), [0, 2])
    problem = client.problem(longest=None, **ENDS)
    recovery = found_by(problem)
    assert_exact(client, problem, recovery)
    assert sorted(recovery.batch.labels.tolist()) == [0, 2]


def test_an_encoder_whose_special_tokens_are_unknown():
    client = class_client(bert(), texts([8]), [1])
    problem = client.problem(longest=None)
    assert_exact(client, problem, found_by(problem))


@pytest.mark.parametrize("made", [masked_bert, masked_roberta, masked_distilbert])
def test_a_masked_model_gives_its_text_and_what_was_masked(made):
    client = masked_client(made(), texts([12], ends=True), [(0, 3), (0, 7)])
    problem = client.problem(longest=None, **ENDS)
    recovery = found_by(problem)
    assert_exact(client, problem, recovery)
    assert torch.equal(recovery.batch.labels, client.batch.labels)
    assert (recovery.batch.tokens == MASK).sum() == 2


def test_a_masked_token_that_also_stands_elsewhere():
    row = texts([12], ends=True)[0]
    row[7] = row[4]
    client = masked_client(masked_bert(), [row], [(0, 3), (0, 7)])
    problem = client.problem(longest=None, **ENDS)
    recovery = found_by(problem)
    assert torch.equal(recovery.batch.labels, client.batch.labels)
    assert explains(problem, recovery)


# ------------------------------------------------------------------------- adapters


def test_adapters_alone_give_the_text_of_an_encoder():
    client = class_client(with_adapters(bert(), 16), texts([9], ends=True), [1])
    problem = client.problem(adapters_only(client.gradients()), **ENDS)
    assert sequences(found_by(problem)) == client.sequences


def test_adapters_alone_give_a_decoders_text_but_for_its_last_token():
    client = causal_client(with_adapters(llama(), 16), texts([9]))
    problem = client.problem(adapters_only(client.gradients()))
    recovery = found_by(problem)
    assert sequences(recovery) == [client.sequences[0][:-1]]
    assert recovery.batch is None
    assert "head" in " ".join(recovery.notes)


def test_adapters_that_are_still_at_zero_are_an_honest_skip():
    module = with_adapters(bert(), 16)
    for part in module.modules():
        if isinstance(part, Adapted):
            torch.nn.init.zeros_(part.lora_B["default"].weight)
    client = class_client(module, texts([9], ends=True), [1])
    problem = client.problem(adapters_only(client.gradients()), **ENDS)
    assert "zero" in Spans().blocked_by(problem)


def test_more_tokens_than_the_adapters_have_rows_are_an_honest_skip():
    client = class_client(with_adapters(bert(), 4), texts([20], ends=True), [1])
    problem = client.problem(adapters_only(client.gradients()), **ENDS)
    assert Spans().blocked_by(problem) is not None


# ------------------------------------------------------------------------- nothing rather than lies


def nothing(problem):
    """Blocked, or looked and claimed no text at all."""
    attack = Spans()
    if attack.blocked_by(problem) is not None:
        return True
    recovery = attack.run(problem, seed=0, watch=WATCH)
    return not recovery.sequences and recovery.batch is None


CLIENTS = {
    "gpt2": lambda seed: causal_client(gpt2(), texts([9, 12, 7], seed=seed)),
    "llama": lambda seed: causal_client(llama(), texts([9, 12, 7], seed=seed)),
    "bert": lambda seed: class_client(bert(), texts([9, 12], ends=True, seed=seed), [0, 1]),
}


@pytest.fixture(params=CLIENTS.values(), ids=CLIENTS)
def client(request):
    return request.param(0)


def test_the_dump_of_another_model_gives_nothing(client):
    other = copy.deepcopy(client.module)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.1 * parameter.std(correction=0) * noise)
    assert nothing(client.problem(module=other))


@pytest.mark.parametrize("share", [1e-4, 1e-2, 1.0])
def test_a_dump_with_noise_gives_nothing(client, share):
    generator = torch.Generator().manual_seed(0)
    noised = {
        name: g + share * g.std(correction=0) * torch.randn(g.shape, generator=generator)
        for name, g in client.gradients().items()
    }
    assert nothing(client.problem(noised))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_coarse_dump_gives_nothing(client, dtype):
    coarse = {name: g.to(dtype) for name, g in client.gradients().items()}
    assert "coarse" in Spans().blocked_by(client.problem(coarse))


def test_a_pruned_dump_gives_nothing(client):
    def pruned(g):
        least = g.abs().flatten().quantile(0.9)
        return torch.where(g.abs() >= least, g, 0.0)

    dump = {name: pruned(g) for name, g in client.gradients().items()}
    assert nothing(client.problem(dump))


def test_a_batch_wider_than_the_network_is_an_honest_skip():
    client = causal_client(gpt2(width=32), texts([20, 20]))
    assert "too many tokens" in Spans().blocked_by(client.problem())


def test_a_dump_without_the_first_block_is_an_honest_skip():
    client = causal_client(gpt2(), texts([9]))
    rest = {n: g for n, g in client.gradients().items() if ".h.0." not in n}
    assert "first block" in Spans().blocked_by(client.problem(rest))


def test_a_second_block_that_cannot_check_leaves_an_encoder_without_texts():
    client = class_client(bert(num_hidden_layers=2), texts([14, 12], ends=True), [0, 1])
    recovery = found_by(client.problem(**ENDS))
    assert not recovery.sequences
    assert "second block" in " ".join(recovery.notes)


def test_texts_that_cannot_be_told_apart_are_not_claimed():
    """With these weights every token attends to all alike: the second block hardly sees which."""
    client = class_client(bert(initializer_range=0.02), texts([9, 12], ends=True), [0, 2])
    recovery = found_by(client.problem(**ENDS))
    assert all(text in client.sequences for text in sequences(recovery))


def test_without_the_heads_gradient_no_batch_is_claimed():
    client = causal_client(llama(), texts([9, 12]))
    rest = {n: g for n, g in client.gradients().items() if "lm_head" not in n}
    recovery = found_by(client.problem(rest))
    assert recovery.batch is None
    assert sequences(recovery) == sorted(row[:-1] for row in client.sequences)


# ------------------------------------------------------------------------- manners


def test_the_same_seed_gives_the_same_claim():
    client = class_client(bert(), texts([9, 12], ends=True), [0, 1])
    problem = client.problem(**ENDS)
    one, two = found_by(problem), found_by(problem)
    assert one.evaluations == two.evaluations
    assert [t.tolist() for t in one.sequences] == [t.tolist() for t in two.sequences]


def test_a_deadline_is_kept(client):
    recovery = found_by(client.problem(), watch=Watch(deadline=time.monotonic()))
    assert recovery.expired
    assert recovery.batch is None


def test_notes_name_no_token():
    client = causal_client(with_adapters(llama(), 16), texts([9]))
    recovery = found_by(client.problem(adapters_only(client.gradients())))
    assert recovery.notes
    assert not any(character.isdigit() for note in recovery.notes for character in note)


def test_more_beginnings_than_can_be_followed_are_dropped():
    """Every token as its own embedding's twin: each prefix passes in many ways."""
    module = gpt2(tie_word_embeddings=False)
    table = module.transformer.wte.weight
    with torch.no_grad():
        table.copy_(table[:4].repeat(75, 1))
    client = causal_client(module, texts([9]))
    dense = client.gradients()
    dense["transformer.wte.weight"] = torch.ones_like(table)  # no token set either
    recovery = found_by(client.problem(dense))
    assert not recovery.sequences
    assert recovery.batch is None


def test_the_search_of_an_encoder_is_bounded():
    client = class_client(bert(), texts([10] * 4, ends=True), [0, 1, 2, 0])
    problem = client.problem(**ENDS)
    recovery = found_by(problem, replace(Spans(), most_tried=200))
    one_step = 10 * len(client.batch.tokens.unique())  # it ends after the step that goes over
    assert recovery.evaluations <= 200 + one_step
    assert all(text in client.sequences for text in sequences(recovery))


def test_margins_and_chances_are_those_of_a_clear_case(client):
    recovery = found_by(client.problem(**(ENDS if client.task == "classification" else {})))
    assert len(recovery.margins) == len(recovery.chances) == len(recovery.sequences) > 0
    assert max(recovery.margins) < 1
    assert max(recovery.chances) < -20
