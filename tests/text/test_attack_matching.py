"""Gradient matching: the objective by its definition, and what the search makes of small nets."""

import time
from dataclasses import replace

import pytest
import torch
from token_clients import (
    END,
    START,
    bert,
    causal_client,
    class_client,
    gpt2,
    llama,
    masked_bert,
    masked_client,
    texts,
)

from auditor.attacks.base import Watch
from auditor.text.attacks import Matching
from auditor.text.attacks.continuous import continuous_of, distance
from auditor.text.problem import gradient_of, relative_residual

WATCH = Watch()
ENDS = {"start": START, "end": END}


def classifier():
    return class_client(bert(), texts([7], ends=True), [1])


def row_of(search, client):
    """The row that stands for what the client had, as sure of its labels as numbers can be."""
    tokens = client.batch.tokens
    table = search.problem.module.get_input_embeddings().weight.detach()
    wanted = tokens[:, 1:] if client.task == "causal" else client.batch.labels[:, None]
    places = (search.labels[None, None] == wanted[:, :, None]).float()
    return torch.cat([table[tokens].flatten(), 60 * places.flatten()])


@pytest.mark.parametrize("absolute", [0.0, 0.01])
@pytest.mark.parametrize(
    "client",
    [classifier(), causal_client(llama(), [[*texts([7])[0], 5, 5]])],
    ids=["bert", "llama"],
)
def test_the_truth_has_no_distance_and_anything_else_has(client, absolute):
    problem = client.problem()
    search = continuous_of(problem, client.batch.tokens.shape[1])
    row = row_of(search, client)
    noise = torch.randn(row.shape, generator=torch.Generator().manual_seed(0))
    assert distance(search, row, absolute=absolute).item() < 1e-6
    assert distance(search, row + 0.1 * noise, absolute=absolute).item() > 1e-3


def test_the_distance_is_the_mean_over_tensors():
    client = classifier()
    problem = client.problem(**ENDS)
    search = continuous_of(problem, 7)
    row = search.start(torch.Generator().manual_seed(0))
    names = [n for n in problem.gradient if n != problem.layout.embedding]
    parameters = dict(problem.module.named_parameters())
    wanted = [parameters[n] for n in names]
    loss = search.loss(row)
    found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    sent = [problem.gradient[n] for n in names]
    whole = torch.cat([s.flatten() for s in problem.gradient.values()]).norm()
    kept = [
        (float((f - s).square().sum() / s.square().sum()))
        for f, s in zip(found, sent, strict=True)
        if s.norm() > 16 * problem.precision * whole
    ]
    value = distance(search, row, absolute=0.0).item()
    assert value == pytest.approx(sum(kept) / len(kept), rel=1e-4)


@pytest.mark.parametrize(
    "attack",
    [Matching(steps=300), Matching(steps=80, optimizer="lbfgs", absolute=0.0)],
    ids=["tag", "dlg"],
)
def test_most_tokens_and_the_label_of_one_text(attack):
    client = classifier()
    problem = client.problem(**ENDS)
    recovery = attack.run(problem, seed=0, watch=WATCH)
    right = (recovery.batch.tokens == client.batch.tokens).sum()
    assert right >= 5
    assert recovery.batch.labels.tolist() == [1]


def test_exchanges_never_raise_the_residual():
    client = classifier()
    problem = client.problem(**ENDS)
    short = Matching(steps=5)
    before, after = (
        replace(short, exchanges=tries).run(problem, seed=0, watch=WATCH).batch for tries in (0, 60)
    )
    residuals = [relative_residual(problem, gradient_of(problem, b)) for b in (before, after)]
    assert residuals[1] < residuals[0]


def test_the_same_seed_gives_the_same_claim():
    problem = classifier().problem(**ENDS)
    attack = Matching(steps=10, exchanges=10)
    one, two = (attack.run(problem, seed=3, watch=WATCH) for _ in range(2))
    assert torch.equal(one.batch.tokens, two.batch.tokens)


def test_a_deadline_is_kept():
    problem = classifier().problem(**ENDS)
    recovery = Matching().run(problem, seed=0, watch=Watch(deadline=time.monotonic()))
    assert recovery.expired
    assert recovery.batch is None


def test_skips_are_honest():
    why = Matching().blocked_by
    client = classifier()
    assert "--batch-size" in why(client.problem(batch_size=None))
    assert "longest" in why(causal_client(llama(), texts([9])).problem(longest=None))
    masked = masked_client(masked_bert(), texts([9], ends=True), [(0, 3)])
    assert "masked" in why(masked.problem())
    assert "tokens" in why(client.problem(longest=600))
    only = {n: g for n, g in client.gradients().items() if "word_embeddings" in n}
    assert "beside" in why(client.problem(only))
    assert why(causal_client(gpt2(), texts([9])).problem()) is None
