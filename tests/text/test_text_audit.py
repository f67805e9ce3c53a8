"""The frame of a text audit, with attacks that claim what they are told: right and wrong things."""

from dataclasses import replace

import pytest
import torch
from text_folders import TEXTS, Oracle, bert, gpt2, llama, masked, tokenizer

from auditor.facts import Flags
from auditor.inputs.gradients import match_gradients
from auditor.options import make_options
from auditor.records import FileRef, LanguageModel, LoadedModel
from auditor.text import audit as text_audit
from auditor.text.records import TextRecovery, TokenBatch, TokenSet
from auditor.text.simulate import simulated_text_case

MADE = {"gpt2": gpt2, "llama": llama, "bert": bert, "masked": masked}
TASKS = {"gpt2": "causal", "llama": "causal", "bert": "classification", "masked": "masked"}
each_model = pytest.mark.parametrize("name", list(MADE))


def language_of(name):
    model, framed = MADE[name](), name in {"bert", "masked"}
    loaded = LoadedModel(model, FileRef(name, "in memory", 0, ""))
    return LanguageModel(loaded, TASKS[name], tokenizer(framed=framed))


def case_of(name, texts=TEXTS):
    language = language_of(name)
    labels = [n % 3 for n in range(len(texts))] if name == "bert" else []
    return simulated_text_case(language, texts, labels, Flags(), seed=0)


def audited(case, recovery, monkeypatch, *, truth=False, **more):
    """The audit when the only attack claims `recovery`."""
    attack = Oracle(recovery)
    monkeypatch.setattr(text_audit, "TEXT_ATTACKS", (attack,))
    case = case if truth else replace(case, truth=None)
    options = make_options(
        device="cpu", offered=[attack.name], evidence=more.pop("evidence", "none")
    )
    return text_audit.run_text_audit(case, options, **more)


@each_model
def test_the_right_batch_is_verified(name, monkeypatch):
    case = case_of(name)
    result = audited(case, TextRecovery(batch=case.truth.batch), monkeypatch, fail_on="high")
    assert (result.audit.verdict.status, result.audit.gate.exit_code) == ("leak", 1)
    [finding] = result.audit.findings
    assert (finding.code, finding.certainty, finding.severity.score) == ("GA501", "verified", 10.0)
    assert result.audit.verdict.reasons == ()


@each_model
def test_one_wrong_token_is_not_verified(name, monkeypatch):
    case = case_of(name)
    batch = case.truth.batch
    tokens, labels = batch.tokens.clone(), batch.labels.clone()
    tokens[1, 2] = 200
    if labels.shape == tokens.shape and labels[1, 2] >= 0:
        labels[1, 2] = 200
    wrong = TokenBatch(tokens, batch.attention, labels)
    result = audited(case, TextRecovery(batch=wrong), monkeypatch, fail_on="high")
    assert (result.audit.verdict.status, result.audit.gate.exit_code) == ("inconclusive", 4)
    assert result.audit.findings == ()


@each_model
def test_two_tokens_exchanged_are_not_verified(name, monkeypatch):
    case = case_of(name)
    batch = case.truth.batch
    tokens, labels = batch.tokens.clone(), batch.labels.clone()
    for table in (tokens, labels) if labels.shape == tokens.shape else (tokens,):
        table[0, [2, 4]] = table[0, [4, 2]]
    wrong = TokenBatch(tokens, batch.attention, labels)
    result = audited(case, TextRecovery(batch=wrong), monkeypatch)
    assert result.audit.findings == ()


def test_a_wrong_class_is_not_verified(monkeypatch):
    case = case_of("bert")
    wrong = replace(case.truth.batch, labels=case.truth.batch.labels.flip(0))
    assert audited(case, TextRecovery(batch=wrong), monkeypatch).audit.findings == ()


@each_model
def test_the_order_in_the_batch_means_nothing(name, monkeypatch):
    case = case_of(name)
    batch = case.truth.batch
    turned = TokenBatch(batch.tokens.flip(0), batch.attention.flip(0), batch.labels.flip(0))
    result = audited(case, TextRecovery(batch=turned), monkeypatch, truth=True)
    measured = {m.name: m.value for f in result.audit.findings for m in f.measures}
    assert measured["sequences recovered exactly (measured)"] == 2.0
    assert measured["ROUGE-2, mean (measured)"] == 1.0


def test_another_size_of_the_batch_is_no_claim(monkeypatch):
    """The same text twice has the same mean gradient."""
    case = case_of("gpt2", TEXTS[:1])
    batch = case.truth.batch
    twice = TokenBatch(*(torch.cat([part, part]) for part in vars(batch).values()))
    assert audited(case, TextRecovery(batch=twice), monkeypatch).audit.findings == ()


def test_a_text_longer_than_the_model_takes_is_no_claim(monkeypatch):
    case = case_of("gpt2", TEXTS[:1])
    tokens = case.truth.batch.tokens.repeat(1, 5)
    long = TokenBatch(tokens, torch.ones_like(tokens, dtype=torch.bool), tokens)
    claim = TextRecovery(batch=long, sequences=(tokens[0],))
    assert audited(case, claim, monkeypatch).audit.findings == ()


def dump_with(case, change):
    tensors = {name: change(name, tensor) for name, tensor in case.dump.tensors.items()}
    module = case.language.model.module
    dump = match_gradients(tensors, module, file=case.dump.file, form="changed")
    return replace(case, dump=dump)


@each_model
def test_noise_verifies_nothing(name, monkeypatch):
    generator = torch.Generator().manual_seed(0)

    def noised(_, tensor):
        return tensor + 0.05 * tensor.norm() / tensor.numel() ** 0.5 * torch.randn(
            tensor.shape, generator=generator
        )

    case = dump_with(case_of(name), noised)
    result = audited(case, TextRecovery(batch=case.truth.batch), monkeypatch, fail_on="low")
    assert (result.audit.verdict.status, result.audit.gate.exit_code) == ("inconclusive", 4)


@each_model
def test_a_dump_of_another_model_verifies_nothing(name, monkeypatch):
    case = case_of(name)
    with torch.no_grad():
        for parameter in case.language.model.module.parameters():
            parameter.mul_(1.02)
    result = audited(case, TextRecovery(batch=case.truth.batch), monkeypatch, fail_on="low")
    assert result.audit.gate.exit_code == 4


@each_model
def test_a_gradient_that_is_only_close_is_consistent(name, monkeypatch):
    """Three in a thousand off: within one per cent, but not within half of the digits."""
    case = dump_with(case_of(name), lambda _, tensor: 1.003 * tensor)
    result = audited(case, TextRecovery(batch=case.truth.batch), monkeypatch)
    assert [(f.code, f.certainty) for f in result.audit.findings] == [("GA502", "consistent")]


@pytest.mark.parametrize("kept", ["classifier.bias", "bert.embeddings.LayerNorm.bias"])
def test_few_numbers_verify_nothing(kept, monkeypatch):
    """Three numbers fit many texts; 64 are fewer than four a token."""
    case = case_of("bert")
    only = {kept: case.dump.tensors[kept]}
    dump = match_gradients(only, case.language.model.module, file=case.dump.file, form="part")
    result = audited(replace(case, dump=dump), TextRecovery(batch=case.truth.batch), monkeypatch)
    assert {f.certainty for f in result.audit.findings} == {"consistent"}


def test_a_token_with_a_twin_is_not_verified(monkeypatch):
    """Two rows of the embedding are equal, and the dump does not hold its gradient."""
    language = language_of("bert")
    module = language.model.module
    with torch.no_grad():
        table = module.get_input_embeddings().weight
        table[250] = table[language.tokenizer("fox")["input_ids"][1]]
    case = simulated_text_case(language, TEXTS, [0, 1], Flags(), seed=0)
    held = {n: t for n, t in case.dump.tensors.items() if "embeddings" not in n}
    dump = match_gradients(held, module, file=case.dump.file, form="part")
    result = audited(replace(case, dump=dump), TextRecovery(batch=case.truth.batch), monkeypatch)
    [finding] = result.audit.findings
    assert (finding.code, finding.certainty) == ("GA502", "consistent")


# --------------------------------------------------------------------------- sequences, tokens


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_single_sequences_are_consistent_when_right(name, monkeypatch):
    case = case_of(name)
    batch = case.truth.batch
    right = batch.tokens[0][batch.attention[0]]
    wrong = right.clone()
    wrong[3] = 222
    result = audited(case, TextRecovery(sequences=(right, wrong)), monkeypatch)
    [evidence] = result.evidence
    assert evidence.sequences == ("consistent", None)
    [finding] = result.audit.findings
    assert (finding.code, finding.certainty) == ("GA502", "consistent")
    assert result.audit.verdict.reasons != ()  # more may have leaked


def occurring(case):
    return torch.unique(case.truth.batch.tokens[case.truth.batch.attention])


def token_claim(present, *, complete=True):
    return TextRecovery(tokens=TokenSet(present, complete, "untied embedding", ("no noise",)))


def test_the_rows_of_an_untied_embedding_prove_the_tokens(monkeypatch):
    case = case_of("llama")
    result = audited(case, token_claim(rows_of(case)), monkeypatch)
    [finding] = result.audit.findings
    assert (finding.code, finding.certainty, finding.severity.score) == ("GA504", "proved", 7.0)
    assert finding.premises == ("no noise",)


def rows_of(case):
    """Tokens whose row of the embedding has a gradient."""
    module = case.language.model.module
    table = module.get_input_embeddings().weight
    name = next(name for name, p in module.named_parameters() if p is table)
    return (case.dump.tensors[name].abs().amax(1) > 0).nonzero().flatten()


@pytest.mark.parametrize("present", [[7, 250], [5]])
def test_other_tokens_are_not_proved(present, monkeypatch):
    """One that does not occur; a part that is said to be all."""
    case = case_of("llama")
    result = audited(case, token_claim(torch.tensor(present)), monkeypatch)
    assert [f.certainty for f in result.audit.findings] == ["estimated"]


def test_a_head_with_noise_proves_no_token(monkeypatch):
    """The rows of the embedding are as they were; the dump as a whole was tampered with."""
    case = dump_with(case_of("llama"), lambda n, t: t + 0.01 if n == "lm_head.weight" else t)
    result = audited(case, token_claim(rows_of(case)), monkeypatch)
    assert [f.certainty for f in result.audit.findings] == ["estimated"]


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_pruned_embedding_proves_no_whole_set(name, monkeypatch):
    """A row that was pruned away is not a token that does not occur."""

    def pruned(key, tensor):
        least = tensor.abs().flatten().kthvalue(tensor.numel() - tensor.numel() // 100).values
        return torch.where(tensor.abs() >= least, tensor, 0.0) if "embe" in key else tensor

    case = dump_with(case_of(name), pruned)
    assert 0 < len(rows_of(case)) < len(occurring(case))
    result = audited(case, token_claim(rows_of(case)), monkeypatch)
    assert [f.certainty for f in result.audit.findings] == ["estimated"]
    result = audited(case, token_claim(rows_of(case), complete=False), monkeypatch)
    assert [f.certainty for f in result.audit.findings] == ["proved"]


def test_labels_of_a_masked_model_are_proved_by_the_bias(monkeypatch):
    case = case_of("masked")
    labels = torch.unique(case.truth.batch.labels[case.truth.batch.labels >= 0])
    result = audited(case, token_claim(labels, complete=False), monkeypatch)
    assert [(f.code, f.certainty) for f in result.audit.findings] == [("GA504", "proved")]
    for wrong in (token_claim(labels), token_claim(labels + 1, complete=False)):
        result = audited(case, wrong, monkeypatch)
        assert [f.certainty for f in result.audit.findings] == ["estimated"]


def test_a_tied_embedding_proves_nothing(monkeypatch):
    case = case_of("gpt2")
    result = audited(case, token_claim(occurring(case)), monkeypatch)
    assert [f.certainty for f in result.audit.findings] == ["estimated"]


def test_dense_noise_leaves_no_token_set(monkeypatch):
    case = dump_with(case_of("llama"), lambda _, tensor: tensor + 1e-5)
    result = audited(case, token_claim(torch.arange(300)), monkeypatch)
    assert result.audit.findings == ()


def test_one_class_is_proved_by_the_bias(monkeypatch):
    case = case_of("bert", TEXTS[:1])
    result = audited(case, TextRecovery(labels=torch.tensor([0])), monkeypatch)
    assert [(f.code, f.certainty) for f in result.audit.findings] == [("GA101", "proved")]
    result = audited(case, TextRecovery(labels=torch.tensor([1])), monkeypatch)
    assert [(f.code, f.certainty) for f in result.audit.findings] == [("GA103", "estimated")]


def test_a_bias_with_noise_proves_no_class(monkeypatch):
    def shifted(name, tensor):
        return tensor + 0.01 if name == "classifier.bias" else tensor

    case = dump_with(case_of("bert", TEXTS[:1]), shifted)
    result = audited(case, TextRecovery(labels=torch.tensor([0])), monkeypatch)
    assert [f.certainty for f in result.audit.findings] == ["estimated"]
    assert result.audit.verdict.status == "inconclusive"
    assert [caveat.code for caveat in result.audit.caveats if caveat.voids] == ["GA301"]


def test_nothing_is_no_evidence(monkeypatch):
    case = case_of("gpt2")
    result = audited(case, TextRecovery(notes=("the rank is full",)), monkeypatch, fail_on="low")
    [report] = result.audit.attacks
    assert (report.outcome, report.reason) == ("failed", "the rank is full")
    assert result.audit.gate.exit_code == 4
