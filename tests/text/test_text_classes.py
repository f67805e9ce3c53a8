"""What the head's gradient proves of classes: made from probabilities, compared with counting."""

import itertools

import pytest
import torch
from text_folders import bert
from torch.nn import functional as F

from auditor.facts import Flags
from auditor.inputs.gradients import match_gradients
from auditor.records import FileRef, LanguageModel, LoadedModel
from auditor.text.classes import classes_are_proved
from auditor.text.problem import make_text_problem
from auditor.text.settle import settle_text

REF = FileRef("test", "in memory", 0, "")


def problem_of(labels, *, logits, features=None, bias=True):
    """A dump of the head alone: the gradient for given logits (N, 3) and features (N, 64)."""
    apart = (logits.softmax(1) - F.one_hot(labels, 3)) / len(labels)
    if features is None:
        features = torch.randn(len(labels), 64, generator=torch.Generator().manual_seed(1))
    sent = {"classifier.weight": apart.T @ features}
    if bias:
        sent["classifier.bias"] = apart.sum(0)
    language = LanguageModel(LoadedModel(bert(), REF), "classification", None)
    dump = match_gradients(sent, language.model.module, file=REF, form="head")
    known = settle_text(dump, language, Flags(batch_size=len(labels)))
    return make_text_problem(language.model.module, dump, known, device=torch.device("cpu"))


@pytest.mark.parametrize("label", range(3))
@pytest.mark.parametrize("bias", [True, False])
def test_the_class_of_one_text(label, bias):
    logits = torch.tensor([[0.3, -0.2, 0.5]])
    problem = problem_of(torch.tensor([label]), logits=logits, bias=bias)
    proved = [classes_are_proved(problem, torch.tensor([other])) for other in range(3)]
    assert proved == [other == label for other in range(3)]


def test_several_texts_when_the_bounds_add_up():
    """A model that is wrong and sure: bounds are tight where it expects nothing of a class."""
    labels = torch.tensor([0, 0, 1, 2])
    sharp = F.one_hot(torch.tensor([1, 2, 2, 1]), 3) * 9.0
    problem = problem_of(labels, logits=sharp)
    every = itertools.combinations_with_replacement(range(3), 4)
    proved = [claim for claim in every if classes_are_proved(problem, torch.tensor(claim))]
    # It expects no class 0, so both of its texts show; those of 1 and 2 are hidden.
    assert proved == []
    alone = problem_of(torch.tensor([0, 0]), logits=sharp[:2])
    assert classes_are_proved(alone, torch.tensor([0, 0]))
    assert not classes_are_proved(alone, torch.tensor([0, 1]))


def test_another_number_of_texts_is_not_proved():
    problem = problem_of(torch.tensor([1]), logits=torch.zeros(1, 3))
    assert not classes_are_proved(problem, torch.tensor([1, 1]))
    assert not classes_are_proved(problem, torch.tensor([], dtype=torch.long))
