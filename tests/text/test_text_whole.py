"""The real attacks through the whole frame: what leaks is shown, what is spoilt shows no text."""

from dataclasses import replace

import pytest
import torch
from text_folders import TEXTS, bert, gpt2, llama, masked, tokenizer, write_adapter, write_folder

from auditor.facts import Flags
from auditor.inputs.gradients import match_gradients
from auditor.inputs.transformers_folder import load_folder
from auditor.options import make_options
from auditor.records import FileRef, LanguageModel, LoadedModel
from auditor.text.attacks import TEXT_ATTACKS
from auditor.text.audit import run_text_audit
from auditor.text.exhibits import text_evidence
from auditor.text.findings import bare
from auditor.text.simulate import simulated_text_case

MADE = {"gpt2": gpt2, "llama": llama, "bert": bert, "masked": masked}
TASKS = {"gpt2": "causal", "llama": "causal", "bert": "classification", "masked": "masked"}
EXACT = [attack.name for attack in TEXT_ATTACKS if attack.name != "text.matching"]
# Findings that claim a text without truth.
CLAIMED = {"GA501", "GA502"}
each_model = pytest.mark.parametrize("name", list(MADE))


def case_of(name, texts=TEXTS[:1]):
    framed = name in {"bert", "masked"}
    loaded = LoadedModel(MADE[name](), FileRef(name, "in memory", 0, ""))
    language = LanguageModel(loaded, TASKS[name], tokenizer(framed=framed))
    labels = [1] * len(texts) if name == "bert" else []
    return simulated_text_case(language, texts, labels, Flags(), seed=0)


def audited(case, *, truth=False, **more):
    case = case if truth else replace(case, truth=None)
    offered = [attack.name for attack in TEXT_ATTACKS]
    options = make_options(device="cpu", offered=offered, attacks=EXACT)
    return run_text_audit(case, options, **more)


def changed(case, change):
    generator = torch.Generator().manual_seed(0)
    tensors = {name: change(t, generator) for name, t in case.dump.tensors.items()}
    module = case.language.model.module
    dump = match_gradients(tensors, module, file=case.dump.file, form="changed")
    return replace(case, dump=dump)


@each_model
def test_one_text_is_read_exactly(name):
    case = case_of(name)
    result = audited(case, truth=True, fail_on="critical")
    assert result.audit.gate.exit_code == 1
    by_code = {finding.code: finding for finding in result.audit.findings}
    assert by_code["GA501"].certainty == "verified"
    measured = {m.name: m.value for m in by_code["GA503"].measures}
    assert measured["sequences recovered exactly (measured)"] == 1.0
    [line] = text_evidence(result.problem, result.evidence)[1]
    assert TEXTS[0] in line
    unseen = [reason.partition(":")[0] for reason in result.audit.verdict.reasons]
    assert unseen == ([] if name == "bert" else ["text.labels"])  # no classes there


def test_several_texts_of_a_decoder_are_read_exactly():
    case = case_of("llama", [*TEXTS, "noon on the fox"])
    result = audited(case)
    tokens, _ = text_evidence(result.problem, result.evidence)
    rows = zip(tokens["tokens"], tokens["lengths"], strict=True)
    found = sorted(bare(result.problem, row[: int(length)]) for row, length in rows)
    truth = case.truth.batch
    true = [t[a] for t, a in zip(truth.tokens, truth.attention, strict=True)]
    assert found == sorted(bare(result.problem, each) for each in true)
    assert result.audit.findings[0].certainty == "verified"


@pytest.mark.parametrize("made", [gpt2, llama])
def test_the_gradient_of_an_adapter_alone_gives_the_text_but_its_last_word(made, tmp_path):
    folder = write_folder(tmp_path / "model", gpt2(64) if made is gpt2 else llama())
    if made is gpt2:
        places = {f"transformer.h.{n}.attn.c_attn": (192, 64) for n in range(2)}
    else:
        places = {
            f"model.layers.{n}.self_attn.{part}_proj": (64, 64) for n in range(2) for part in "qv"
        }
    write_adapter(folder, places, rank=24)
    case = simulated_text_case(load_folder(folder), TEXTS[:1], [], Flags(), seed=0)
    assert all("lora_" in name for name in case.dump.tensors)
    result = audited(case, truth=True)
    claimed = next(f for f in result.audit.findings if f.code in CLAIMED)
    [line] = text_evidence(result.problem, result.evidence)[1]
    # The last word is a label only, and the head's gradient is not in the dump.
    assert (claimed.code, line) == ("GA502", TEXTS[0].removesuffix(" dog"))


def noised(tensor, generator):
    size = 0.01 * tensor.norm() / tensor.numel() ** 0.5
    return tensor + size * torch.randn(tensor.shape, generator=generator)


def rounded(tensor, generator):
    return tensor.bfloat16()


def pruned(tensor, generator):
    """The tenth of the entries that is largest."""
    kept = max(tensor.numel() // 10, 1)
    least = tensor.abs().flatten().kthvalue(tensor.numel() - kept + 1).values
    return torch.where(tensor.abs() >= least, tensor, 0.0)


@pytest.mark.parametrize("spoil", [noised, rounded, pruned])
@each_model
def test_a_spoilt_dump_shows_no_text(name, spoil):
    result = audited(changed(case_of(name), spoil), fail_on="critical")
    assert not {finding.code for finding in result.audit.findings} & CLAIMED
    assert not text_evidence(result.problem, result.evidence)[1]
    assert result.audit.gate.exit_code == 4
    if spoil is noised:
        assert result.audit.verdict.status == "inconclusive"


@each_model
def test_a_dump_of_another_model_shows_no_text(name):
    case = case_of(name)
    with torch.no_grad():
        for seed, parameter in enumerate(case.language.model.module.parameters()):
            generator = torch.Generator().manual_seed(seed)
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    result = audited(case, fail_on="critical")
    assert not {finding.code for finding in result.audit.findings} & CLAIMED
    assert result.audit.gate.exit_code == 4


@each_model
def test_a_text_longer_than_the_rank_allows_is_skipped_honestly(name):
    texts = [" ".join(f"word{40 * row + at}" for at in range(36)) for row in range(3)]
    result = audited(case_of(name, texts), fail_on="critical")
    assert not {finding.code for finding in result.audit.findings} & CLAIMED
    assert result.audit.gate.exit_code == 4
    [spans] = [report for report in result.audit.attacks if report.name == "text.spans"]
    assert spans.outcome in {"skipped", "failed"}
    assert spans.reason


def test_dropout_on_the_client_is_told():
    case = case_of("gpt2")
    language = case.language
    trained = simulated_text_case(language, TEXTS[:1], [], Flags(mode="train"), seed=0)
    result = audited(trained, fail_on="critical")
    assert "GA303" in {caveat.code for caveat in result.audit.caveats}
    assert result.audit.gate.exit_code == 4
