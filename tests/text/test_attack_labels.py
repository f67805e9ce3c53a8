"""Class labels of texts: right, or none at all."""

import pytest
import torch
from token_clients import (
    bert,
    causal_client,
    class_client,
    distilbert,
    gpt2,
    gpt2_classifier,
    texts,
)

from auditor.attacks.base import Watch
from auditor.text.attacks import Labels


def claim_of(problem):
    attack = Labels()
    assert attack.blocked_by(problem) is None
    return attack.run(problem, seed=0, watch=Watch())


@pytest.mark.parametrize("made", [bert, distilbert, gpt2_classifier])
@pytest.mark.parametrize("label", [0, 1, 2])
def test_the_label_of_one_text(made, label):
    client = class_client(made(), texts([9], ends=True), [label])
    assert claim_of(client.problem()).labels.tolist() == [label]


@pytest.mark.parametrize("labels", [[0, 0], [1, 2], [2, 2, 2], [0, 1, 1, 2]])
def test_a_batch_is_right_or_open(labels):
    client = class_client(bert(), texts([9] * len(labels), ends=True), labels)
    recovery = claim_of(client.problem())
    assert recovery.labels is None or recovery.labels.tolist() == sorted(labels)
    assert (recovery.labels is None) == bool(recovery.notes)


def test_a_batch_of_one_label_that_the_model_does_not_expect_is_settled():
    module = bert()
    with torch.no_grad():
        module.classifier.bias.copy_(torch.tensor([9.0, 0.0, 0.0]))
    client = class_client(module, texts([9, 9, 9], ends=True), [1, 2, 1])
    assert claim_of(client.problem()).labels.tolist() == [1, 1, 2]


def test_skips_are_honest():
    text = texts([9], ends=True)
    client = class_client(bert(), text, [1])
    rest = {n: g for n, g in client.gradients().items() if "classifier" not in n}
    noised = {n: g + g.std(correction=0) for n, g in client.gradients().items()}
    why = Labels().blocked_by
    assert "not classify" in why(causal_client(gpt2(), text).problem())
    assert "--batch-size" in why(client.problem(batch_size=None))
    assert "no gradient of the head" in why(client.problem(rest))
    assert "softmax" in why(client.problem(noised))
