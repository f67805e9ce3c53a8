"""`gradaudit scan` and `simulate` on the folder of a language model; what they leave behind."""

import json
import socket
import stat
from importlib import resources

import jsonschema
import pytest
import torch
from runs import contents, gradaudit
from safetensors.torch import load_file
from text_folders import (
    HOSTILE,
    RIGHT_TO_LEFT,
    SECRETS,
    STACKED,
    TEXTS,
    TURNED,
    Oracle,
    bert,
    gpt2,
    masked,
    tokenizer,
    write_adapter,
    write_folder,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import auditor
from auditor import capture
from auditor.errors import UsageError
from auditor.inputs.transformers_folder import load_folder
from auditor.report.audit_json import from_json, to_json
from auditor.text import audit as text_audit
from auditor.text.records import TextRecovery, TokenBatch, TokenSet
from auditor.text.simulate import simulate_text_dump, tokenised

SCHEMA = json.loads(
    (resources.files("auditor") / "schema" / "audit.schema.json").read_text(encoding="utf-8")
)
SAID = [part for text in TEXTS for part in ("--text", text)]
FORMATS = tuple(
    part for form in ("json", "sarif", "junit", "markdown") for part in (f"--{form}", f"x.{form}")
)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder `model` with GPT-2, and no way to the network."""

    def refuse(*arguments, **more):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    write_folder(tmp_path / "model", gpt2())
    return tmp_path


def knows(monkeypatch, home, texts=TEXTS, labels=(), model="model"):
    """Let the only attack claim the right batch."""
    batch = tokenised(load_folder(home / model), texts, labels, seed=0)
    present = torch.unique(batch.tokens[batch.attention])
    claim = TextRecovery(batch=batch, tokens=TokenSet(present, True, "oracle", ()))
    monkeypatch.setattr(text_audit, "TEXT_ATTACKS", (Oracle(claim),))
    return batch


def left_by(home):
    return {str(name): data for name, data in contents(home / "report").items()}


def test_simulate_shows_the_leak(home, monkeypatch):
    batch = knows(monkeypatch, home)
    run = gradaudit("simulate", "model", *SAID, "--out", "report", "--fail-on", "high", cwd=home)
    assert run.code == 1, run.err
    assert "LEAK, CRITICAL" in run.err
    assert "input text" in run.err
    evidence = home / "report" / "evidence"
    tensors = load_file(evidence / "evidence.safetensors")
    assert tensors["tokens"].dtype == torch.int64
    assert torch.equal(tensors["tokens"], batch.tokens)
    assert tensors["lengths"].tolist() == [9, 6]
    assert (evidence / "text.txt").read_text(encoding="utf-8").splitlines() == list(TEXTS)
    for path in (evidence, *evidence.iterdir()):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize("evidence", ["none", "separate"])
def test_nothing_that_was_recovered_is_in_the_report(home, monkeypatch, evidence):
    knows(monkeypatch, home)
    flags = ("--out", "report", "--evidence", evidence, "--save-dump", "dump.safetensors")
    run = gradaudit("simulate", "model", *SAID, *flags, *FORMATS, cwd=home)
    assert run.code == 0, run.err
    left = {n: data for n, data in left_by(home).items() if not n.startswith("evidence")}
    assert ("evidence" in {n.split("/")[0] for n in left_by(home)}) == (evidence == "separate")
    left |= {name: (home / name).read_bytes() for name in FORMATS[1::2]}
    left |= {"stdout": run.out.encode(), "stderr": run.err.encode()}
    numbers = [str(n) for n in load_folder(home / "model").tokenizer(TEXTS[0])["input_ids"][:4]]
    for name, data in left.items():
        assert not any(secret.encode() in data for secret in SECRETS), name
        assert ", ".join(numbers).encode() not in data, name
    dump = (home / "dump.safetensors").read_bytes()
    assert not any(secret.encode() in dump for secret in SECRETS)


def test_the_attacks_themselves_tell_nothing(home):
    """No claim is planted here: notes, premises and reasons come from the real attacks."""
    flags = ("--out", "report", "--evidence", "separate", "--attacks", "text.tokens,text.spans")
    run = gradaudit("simulate", "model", *SAID, *flags, *FORMATS, cwd=home)
    assert run.code == 0, run.err
    left = left_by(home) | {name: (home / name).read_bytes() for name in FORMATS[1::2]}
    assert all(text.encode() in left["evidence/text.txt"] for text in TEXTS)
    shown = {n: data for n, data in left.items() if not n.startswith("evidence")}
    for name, data in {**shown, "stderr": run.err.encode(), "stdout": run.out.encode()}.items():
        assert not any(word.encode() in data for word in SECRETS), name


def test_a_report_is_verified_beside_the_folder_of_its_model(home):
    flags = ("--out", "report", "--attacks", "text.tokens", "--evidence", "none")
    assert gradaudit("simulate", "model", *SAID, *flags, cwd=home).code == 0
    check = ("verify", "report/report.html", "--model", "model")
    run = gradaudit(*check, cwd=home)
    assert run.code == 0, run.err
    with (home / "model" / "config.json").open("a") as stream:
        stream.write("\n")
    assert gradaudit(*check, cwd=home).code == 3


def test_a_limit_on_pictures_is_refused_for_texts(home):
    run = gradaudit("simulate", "model", *SAID, "--max-psnr", "20", cwd=home)
    assert run.code == 2
    assert "--max-psnr" in run.err


@pytest.mark.parametrize("joined", [False, True])
def test_texts_and_labels_are_not_in_the_command(tmp_path, monkeypatch, joined):
    write_folder(tmp_path / "model", bert(), framed=True)
    knows(monkeypatch, tmp_path, TEXTS[:1], [2])
    said = (f"--text={TEXTS[0]}", "--label=2") if joined else ("--text", TEXTS[0], "--label", "2")
    run = gradaudit("simulate", "model", *said, "--out", "report", cwd=tmp_path)
    assert run.code == 0, run.err
    audit = from_json((tmp_path / "report" / "audit.json").read_text(encoding="utf-8"))
    shown = " ".join(audit.provenance.command)
    assert "[removed]" in shown
    assert "fox" not in shown
    assert "2" not in shown.split()


def test_embedded_text_is_there_escaped_and_tamed(home, monkeypatch):
    text = f"{HOSTILE} {RIGHT_TO_LEFT} {STACKED} {TURNED} fox"
    knows(monkeypatch, home, [text])
    flags = ("--out", "report", "--evidence", "embed")
    run = gradaudit("simulate", "model", "--text", text, *flags, cwd=home)
    assert run.code == 0, run.err
    page = (home / "report" / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert RIGHT_TO_LEFT in page
    assert STACKED in page
    assert "\u202e" not in page
    assert "\\u202e" in page
    assert page.count("<bdi>") == 2  # the claim and the truth
    audit = from_json((home / "report" / "audit.json").read_text(encoding="utf-8"))
    jsonschema.validate(json.loads(to_json(audit)), SCHEMA)
    [exhibit] = audit.exhibits
    assert exhibit.text == exhibit.true_text == text
    raw = (home / "report" / "audit.json").read_bytes()
    assert "\u202e".encode() not in raw
    assert not (home / "report" / "evidence").exists()


def test_scan_of_a_captured_dump(home, monkeypatch):
    """`auditor.capture` around the client's own training step."""
    knows(monkeypatch, home, TEXTS[:1])
    model, batch = gpt2(), tokenised(load_folder(home / "model"), TEXTS[:1], [], seed=0)
    with capture(model, home / "grads.safetensors"):
        model(input_ids=batch.tokens, labels=batch.tokens).loss.backward()
    scan = ("scan", "model", "grads.safetensors", "--out", "report")
    run = gradaudit(*scan, "--fail-on", "low", cwd=home)
    assert run.code == 1, run.err
    audit = json.loads((home / "report" / "audit.json").read_text(encoding="utf-8"))
    assert audit["dump"]["batch_size"] == 1
    assert {(a["what"], a["origin"]) for a in audit["assumptions"]} >= {
        ("batch size", "metadata"),
        ("mode", "metadata"),
        ("loss", "metadata"),
    }
    assert audit["caveats"] == []


def test_scan_with_the_true_texts(home, monkeypatch):
    batch = knows(monkeypatch, home)
    model = gpt2()
    with capture(model, home / "grads.safetensors"):
        labels = batch.labels
        model(
            input_ids=batch.tokens, attention_mask=batch.attention.long(), labels=labels
        ).loss.backward()
    (home / "truth.txt").write_text(f"{TEXTS[1]}\n\n{TEXTS[0]}\n", encoding="utf-8")
    scan = ("scan", "model", "grads.safetensors", "--truth", "truth.txt", "--out", "report")
    run = gradaudit(*scan, cwd=home)
    assert run.code == 0, run.err
    text = (home / "report" / "audit.json").read_text(encoding="utf-8")
    measured = {m.name: m.value for f in from_json(text).findings for m in f.measures}
    assert measured["sequences recovered exactly (measured)"] == 2.0
    assert not any(secret in text for secret in SECRETS)
    (home / "truth.txt").write_text(TEXTS[0], encoding="utf-8")
    run = gradaudit(*scan, "--overwrite", cwd=home)
    assert run.code == 2
    assert "a truth of 2 sequences" in run.err


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe"])
def test_a_truth_without_texts_is_refused(home, content):
    torch.save({"x": torch.ones(1)}, home / "grads.pt")
    (home / "truth.txt").write_bytes(content)
    run = gradaudit("scan", "model", "grads.pt", "--truth", "truth.txt", cwd=home)
    assert run.code == 3
    assert "content" in run.err or "one a line" in run.err


def test_scan_from_python(home, monkeypatch):
    knows(monkeypatch, home, TEXTS[:1])
    model, batch = gpt2(), tokenised(load_folder(home / "model"), TEXTS[:1], [], seed=0)
    loss = model(input_ids=batch.tokens, labels=batch.tokens).loss
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    for given in (model, home / "model"):
        audit = auditor.scan(given, gradients, batch_size=1)
        assert audit.verdict.severity.score == 10.0
    for truth in (TEXTS[0], [TEXTS[0]]):
        audit = auditor.scan(
            model, gradients, batch_size=1, truth=truth, tokenizer=tokenizer(), mode="eval"
        )
        assert {finding.code for finding in audit.findings} >= {"GA501", "GA503"}
    with pytest.raises(UsageError):
        auditor.scan(torch.nn.Linear(3, 2), [torch.ones(2, 3), torch.ones(2)], truth=TEXTS[:1])
    assert model.config._attn_implementation != "eager"  # ours is a copy


def test_a_masked_model_gives_its_hidden_tokens(tmp_path, monkeypatch):
    write_folder(tmp_path / "model", masked(), framed=True)
    knows(monkeypatch, tmp_path)
    run = gradaudit("simulate", "model", *SAID, "--out", "report", cwd=tmp_path)
    assert run.code == 0, run.err
    lines = (tmp_path / "report" / "evidence" / "text.txt").read_text(encoding="utf-8")
    assert all(text in lines for text in TEXTS)
    assert "[MASK]" not in lines


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("simulate", "model"), 2, "no --text"),
        (("simulate", "model", "--text", "fox"), 2, "texts of 2 to 40 tokens"),
        (("simulate", "model", "--text", "fox " * 41), 2, "texts of 2 to 40 tokens"),
        (("simulate", "model", "--text", "the fox", "--label", "1"), 2, "Leave --label out"),
        (("simulate", "model", "--text", "the fox", "--lr", "1", "--local-steps", "1"), 2, "--lr"),
        (("simulate", "model", "--text", "the fox", "--input", "fox.png"), 2, "Leave them out"),
        (("simulate", "model", "--text", "the fox", "--index", "0"), 2, "Leave them out"),
        (("simulate", "model", "--text", "the fox", "--attacks", "images.dlg"), 2, "images.dlg"),
        (("scan", "model", "model/config.json"), 3, "gradients"),
        (("scan", "model", "model/model.safetensors"), 3, "the model's own weights"),
        (("scan", "model"), 2, "neither"),
        (("scan", "model", "x", "--arch", "lenet"), 2, "Leave them out"),
        (("scan", "model", "--after", "x"), 2, "Leave them out"),
        (("scan", "empty", "x"), 3, "a directory"),
        (("scan", "none", "x"), 3, "no such file"),
    ],
)
def test_mistakes_are_told(home, arguments, code, words):
    (home / "empty").mkdir()
    run = gradaudit(*arguments, cwd=home)
    assert run.code == code, run.err
    assert words in " ".join(run.err.split())
    assert not (home / "gradaudit-report").exists()


def test_text_is_for_language_models_only(home):
    torch.save(torch.nn.Linear(3, 2), home / "net.pt")
    run = gradaudit("simulate", "net.pt", "--text", "the fox", cwd=home)
    assert run.code == 2
    assert "--text only with the folder of a language model" in run.err


def test_names_of_peft_find_their_place(home):
    """As `named_parameters()` of a PeftModel has them."""
    write_adapter(home / "model", {"transformer.h.0.attn.c_attn": (192, 64)})
    language = load_folder(home / "model")
    dump = simulate_text_dump(language, tokenised(language, TEXTS[:1], [], seed=0))
    assert len(dump.tensors) == 2
    torch.save({f"base_model.model.{n}": t for n, t in dump.tensors.items()}, home / "grads.pt")
    scan = ("scan", "model", "grads.pt", "--out", "report", "--attacks", "text.tokens")
    run = gradaudit(*scan, cwd=home)
    assert run.code == 4, run.err
    audit = json.loads((home / "report" / "audit.json").read_text(encoding="utf-8"))
    assert audit["dump"]["tensors"] == 2
    assert "'base_model.model.' removed" in audit["dump"]["recognised"]
    assert any("LoRA adapter in 1 layer" in note for note in audit["model"]["notes"])


def test_an_adapter_dump_without_its_adapter_is_refused(home):
    name = "base_model.model.transformer.h.0.attn.c_attn.lora_A.default.weight"
    torch.save({name: torch.ones(4, 64)}, home / "grads.pt")
    run = gradaudit("scan", "model", "grads.pt", cwd=home)
    assert run.code == 3
    assert "adapter_config.json" in run.err


def test_bytes_that_are_no_character_are_shown_as_such(home, monkeypatch):
    """A byte-level tokenizer can cut a character in two."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: n for n, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=made).save_pretrained(home / "model")
    half = made.encode("ab\u00e4").ids[:-1]
    batch = TokenBatch(*(torch.tensor([row]) for row in (half, [True] * 3, half)))
    monkeypatch.setattr(text_audit, "TEXT_ATTACKS", (Oracle(TextRecovery(batch=batch)),))
    model = gpt2()
    with capture(model, home / "grads.safetensors"):
        model(input_ids=batch.tokens, labels=batch.tokens).loss.backward()
    flags = ("--out", "report", "--evidence", "embed")
    run = gradaudit("scan", "model", "grads.safetensors", *flags, cwd=home)
    assert run.code == 0, run.err
    page = (home / "report" / "report.html").read_text(encoding="utf-8")
    assert "<bdi>ab\ufffd</bdi>" in page
