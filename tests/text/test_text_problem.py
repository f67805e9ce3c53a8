"""THE gradient of a text: what `backward()` leaves in the client's own model, task by task."""

import pytest
import torch
from text_folders import TEXTS, bert, gpt2, llama, masked, tokenizer
from torch.nn import functional as F

from auditor.errors import InputError, UsageError
from auditor.facts import Flags, LocalFlags
from auditor.inputs.gradients import match_gradients
from auditor.records import FileRef, LanguageModel, LoadedModel, Metadata
from auditor.text.problem import (
    gradient_of,
    make_text_problem,
    relative_residual,
    residuals_of,
    tolerance_of,
)
from auditor.text.settle import settle_text
from auditor.text.simulate import simulate_text_dump, tokenised

MADE = {"gpt2": gpt2, "llama": llama, "bert": bert, "masked": masked}
TASKS = {"gpt2": "causal", "llama": "causal", "bert": "classification", "masked": "masked"}
REF = FileRef("test", "in memory", 0, "")
each_model = pytest.mark.parametrize("name", list(MADE))


def language_of(name, model=None, **more):
    framed = name in {"bert", "masked"}
    loaded = LoadedModel(model or MADE[name](), REF)
    return LanguageModel(loaded, TASKS[name], more.get("tokenizer", tokenizer(framed=framed)))


def batch_of(language):
    labels = [0, 2] if language.task == "classification" else []
    return tokenised(language, TEXTS, labels, seed=0)


def own_loss(name, model, batch):
    """The definition, written down from the logits."""
    logits = model(input_ids=batch.tokens, attention_mask=batch.attention.long()).logits
    if name == "bert":
        return F.cross_entropy(logits, batch.labels)
    if name == "masked":
        hidden = batch.labels >= 0
        return F.cross_entropy(logits[hidden], batch.labels[hidden])
    said = batch.attention[:, 1:]
    return F.cross_entropy(logits[:, :-1][said], batch.tokens[:, 1:][said])


def problem_of(language, gradients, metadata=None):
    dump = match_gradients(
        gradients, language.model.module, file=REF, form="object", metadata=metadata
    )
    known = settle_text(dump, language, Flags())
    return make_text_problem(language.model.module, dump, known, device=torch.device("cpu"))


@each_model
def test_the_gradient_is_the_clients(name):
    language = language_of(name)
    batch, model = batch_of(language), MADE[name]()
    own_loss(name, model, batch).backward()
    problem = problem_of(language, {n: p.grad for n, p in model.named_parameters()})
    gradient = gradient_of(problem, batch)
    assert relative_residual(problem, gradient) < 1e-5
    assert max(residuals_of(problem, gradient).values()) < tolerance_of(problem)
    assert gradient.keys() == problem.gradient.keys()


@each_model
def test_the_simulated_dump_is_the_clients(name):
    language = language_of(name)
    batch, model = batch_of(language), MADE[name]()
    own_loss(name, model, batch).backward()
    dump = simulate_text_dump(language, batch)
    for key, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(dump.tensors[key], parameter.grad, rtol=1e-3, atol=1e-6), key


@pytest.mark.parametrize("width", [0, 3])
@each_model
def test_more_padding_changes_nothing(name, width):
    language = language_of(name)
    batch = batch_of(language)
    problem = problem_of(language, simulate_text_dump(language, batch).tensors)
    wider = type(batch)(
        F.pad(batch.tokens, (0, width)),
        F.pad(batch.attention, (0, width)),
        batch.labels if name == "bert" else F.pad(batch.labels, (0, width), value=-100),
    )
    assert relative_residual(problem, gradient_of(problem, wider)) < 1e-5


def test_the_relative_residual_by_hand():
    language = language_of("gpt2")
    problem = problem_of(language, simulate_text_dump(language, batch_of(language)).tensors)
    doubled = {name: 2 * tensor for name, tensor in problem.gradient.items()}
    assert relative_residual(problem, doubled) == pytest.approx(1.0)
    assert max(residuals_of(problem, doubled).values()) == pytest.approx(1.0, rel=1e-4)
    nothing = {name: 0 * tensor for name, tensor in problem.gradient.items()}
    assert relative_residual(problem, nothing) == pytest.approx(1.0)


def test_the_model_is_copied():
    language = language_of("gpt2")
    before = {n: t.clone() for n, t in language.model.module.state_dict().items()}
    tensors = simulate_text_dump(language, batch_of(language)).tensors
    gradient_of(problem_of(language, tensors), batch_of(language))
    after = language.model.module.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.grad is None for p in language.model.module.parameters())


# --------------------------------------------------------------------------- what is known


def known_of(language, **meta):
    tensors = {name: torch.ones_like(p) for name, p in language.model.module.named_parameters()}
    dump = match_gradients(
        tensors, language.model.module, file=REF, form="object", metadata=Metadata(**meta)
    )
    return settle_text(dump, language, Flags())


def test_special_tokens_come_from_the_tokenizer():
    known = known_of(language_of("bert"), loss="cross_entropy", mode="eval", batch_size=2)
    assert (known.start, known.end, known.padding, known.mask) == (1, 2, 0, 3)
    assert (known.classes, known.batch_size) == (3, 2)
    assumed = [fact.what for fact in known.assumptions if fact.origin == "assumed"]
    assert assumed == ["special tokens"]


def test_without_a_tokenizer_nothing_is_assumed_of_it():
    known = known_of(language_of("gpt2", tokenizer=None))
    assert (known.start, known.end, known.mask) == (None, None, None)
    assert known.padding == 0  # of the config
    assumed = [fact.what for fact in known.assumptions if fact.origin == "assumed"]
    assert assumed == ["mode", "loss"]


def test_numbers_outside_the_vocabulary_are_no_tokens():
    model = gpt2()
    model.config.pad_token_id, model.config.eos_token_id = 50257, 50256
    assert known_of(language_of("gpt2", model, tokenizer=None)).padding is None


@pytest.mark.parametrize(
    "flags",
    [
        Flags(input_shape=(3, 4, 4)),
        Flags(mean=(0.5,)),
        Flags(label_smoothing=0.1),
        Flags(reduction="sum"),
        Flags(batch_size=0),
        Flags(local=LocalFlags(kind="update")),
        Flags(local=LocalFlags(lr=0.1)),
    ],
)
def test_what_text_does_not_have_is_refused(flags):
    language = language_of("gpt2")
    dump = simulate_text_dump(language, batch_of(language))
    with pytest.raises(UsageError):
        settle_text(dump, language, flags)


@pytest.mark.parametrize("meta", [{"loss": "mse"}, {"reduction": "sum"}, {"label_smoothing": 0.1}])
def test_another_loss_is_refused(meta):
    with pytest.raises(InputError, match=next(iter(meta))):
        known_of(language_of("gpt2"), **meta)


def test_a_regression_is_refused():
    model = bert()
    model.config.problem_type = "regression"
    for use in (known_of, batch_of):
        with pytest.raises(InputError, match="regression"):
            use(language_of("bert", model))
