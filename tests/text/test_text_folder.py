"""Folders of language models: what is read, what is refused, and that nothing is fetched."""

import importlib
import json
import pickle
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file
from text_folders import (
    TEXTS,
    WORDS,
    bert,
    gpt2,
    llama,
    masked,
    tokenizer,
    write_adapter,
    write_folder,
)
from transformers import BertModel

from auditor.errors import InputError, UnsafeFileError, UsageError
from auditor.inputs.transformers_folder import is_folder, is_transformer, load_folder

TASKS = {"gpt2": "causal", "llama": "causal", "bert": "classification", "masked": "masked"}
MADE = {"gpt2": gpt2, "llama": llama, "bert": bert, "masked": masked}


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields))


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **more):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def test_the_block_of_the_network_works(no_network):
    with pytest.raises(AssertionError):
        socket.create_connection(("localhost", 9))


@pytest.mark.parametrize("name", list(MADE))
def test_a_folder_is_read_as_it_was_written(name, tmp_path, no_network):
    model = MADE[name]()
    folder = write_folder(tmp_path / name, model)
    assert is_folder(folder)
    read = load_folder(folder)
    assert (read.task, type(read.model.module)) == (TASKS[name], type(model))
    ours, theirs = read.model.module.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    text = read.tokenizer(TEXTS[1])["input_ids"]
    assert text == tokenizer()(TEXTS[1])["input_ids"]
    assert not read.model.module.training
    assert is_transformer(read.model.module)
    assert (read.model.file.name, read.model.file.format) == (name, "transformers folder")


def test_faster_attention_is_not_needed(tmp_path):
    folder = write_folder(tmp_path / "model", gpt2())
    edit(folder / "config.json", _attn_implementation="flash_attention_2")
    assert load_folder(folder).model.module.config._attn_implementation == "eager"


def test_the_digest_is_of_config_and_weights(tmp_path):
    folder = write_folder(tmp_path / "model", gpt2())
    before = load_folder(folder).model.file.sha256
    edit(folder / "tokenizer_config.json", remark="another")
    assert load_folder(folder).model.file.sha256 == before
    edit(folder / "config.json", remark="another")
    assert load_folder(folder).model.file.sha256 != before


def test_shards_are_read(tmp_path):
    model = gpt2()
    folder = write_folder(tmp_path / "model", model)
    model.save_pretrained(folder, max_shard_size="100KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    assert len(list(folder.glob("*.safetensors"))) > 1
    ours = load_folder(folder).model.module.state_dict()
    assert all(torch.equal(ours[key], value) for key, value in model.state_dict().items())


def test_half_precision_is_widened_and_told(tmp_path):
    read = load_folder(write_folder(tmp_path / "model", gpt2().half()))
    assert next(read.model.module.parameters()).dtype == torch.float32
    assert any("half precision" in note for note in read.model.notes)


def test_no_tokenizer_is_no_obstacle(tmp_path):
    folder = write_folder(tmp_path / "model", gpt2())
    for file in folder.glob("token*"):
        file.unlink()
    read = load_folder(folder)
    assert read.tokenizer is None
    assert any("token numbers" in note for note in read.model.notes)


def test_the_settings_of_transformers_stay_as_they_are(tmp_path):
    constants = importlib.import_module("huggingface_hub.constants")
    logging = importlib.import_module("transformers.utils.logging")
    folder = write_folder(tmp_path / "model", gpt2())
    before = (constants.HF_HUB_OFFLINE, logging.get_verbosity(), logging.is_progress_bar_enabled())
    load_folder(folder)
    edit(folder / "config.json", n_layer=7)
    with pytest.raises(InputError):
        load_folder(folder)
    after = (constants.HF_HUB_OFFLINE, logging.get_verbosity(), logging.is_progress_bar_enabled())
    assert after == before


# --------------------------------------------------------------------------- refused


def own_code(folder):
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('ran')")


def hub_kernel(folder):
    edit(folder / "config.json", _attn_implementation="somebody/kernel")


def inner_hub_kernel(folder):
    edit(folder / "config.json", text_config={"attn_implementation": "somebody/kernel"})


def any_kernels(folder):
    edit(folder / "config.json", use_kernels=True)


def tokenizer_code(folder):
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    (folder / "evil.py").write_text("raise SystemExit('ran')")


def pickled(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))


def bare(folder):
    (folder / "model.safetensors").unlink()


def quantised(folder):
    edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"})


def cut_off(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def another_size(folder):
    edit(folder / "config.json", n_embd=128)


def absurd_size(folder):
    edit(folder / "config.json", n_layer=2, n_embd=65536, n_head=64)


def more_layers(folder):
    edit(folder / "config.json", n_layer=3)


def absurd_layers(folder):
    edit(folder / "config.json", n_layer=10**9)


def no_heads(folder):
    edit(folder / "config.json", n_head=0)


def a_word_for_a_number(folder):
    edit(folder / "config.json", n_layer="many")


def no_vocabulary(folder):
    edit(folder / "config.json", vocab_size=-1)


def unknown_architecture(folder):
    edit(folder / "config.json", architectures=["NoSuchForCausalLM"])


def not_a_class_of_models(folder):
    edit(folder / "config.json", architectures=["pipelineForCausalLM"])


def no_architecture(folder):
    edit(folder / "config.json", architectures=None)


def no_json(folder):
    (folder / "config.json").write_text("{")


def nested_json(folder):
    (folder / "config.json").write_text("[" * 100_000)


def a_list(folder):
    (folder / "config.json").write_text("[]")


def broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"model": 3}')


def large_tokenizer(folder):
    tokenizer(words=[*WORDS, "one", "more"]).save_pretrained(folder)


def shard_elsewhere(folder):
    (folder / "model.safetensors").rename(folder.parent / "weights.safetensors")
    table = {"weight_map": {"transformer.wte.weight": "../weights.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))


def adapter_alone(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")


def other_adapter(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))


def adapter_without_weights(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))


UNSAFE = [own_code, tokenizer_code, hub_kernel, inner_hub_kernel, any_kernels, pickled]
REFUSED = {
    own_code: "code of its own",
    tokenizer_code: "code of its own",
    hub_kernel: "_attn_implementation",
    inner_hub_kernel: "attn_implementation",
    any_kernels: "use_kernels",
    pickled: "pickled weights alone",
    bare: "no 'model.safetensors'",
    quantised: "quantised",
    cut_off: "model.safetensors",
    another_size: "missing or of another shape",
    absurd_size: "parameters that config.json describes",
    more_layers: "missing or of another shape",
    absurd_layers: "1000000000 layers",
    no_heads: "read the model from",
    a_word_for_a_number: "read the model from",
    no_vocabulary: "read the model from",
    unknown_architecture: "NoSuchForCausalLM",
    not_a_class_of_models: "pipelineForCausalLM",
    no_architecture: "one class under 'architectures'",
    no_json: "it is no JSON",
    nested_json: "it is no JSON",
    a_list: "no JSON object",
    broken_tokenizer: "read the tokenizer from",
    large_tokenizer: "token numbers up to 301",
    shard_elsewhere: "does not name files of its folder",
    adapter_alone: "An adapter alone is not enough",
    other_adapter: "plain LoRA",
    adapter_without_weights: "adapter_model.safetensors",
}


@pytest.mark.parametrize("harm", list(REFUSED), ids=lambda harm: harm.__name__)
def test_what_is_wrong_is_refused_in_words(harm, tmp_path, no_network):
    folder = write_folder(tmp_path / "model", gpt2())
    harm(folder)
    with pytest.raises(InputError, match=REFUSED[harm]) as caught:
        load_folder(folder)
    assert isinstance(caught.value, UnsafeFileError) == (harm in UNSAFE)
    assert "\n" not in str(caught.value)


def test_a_body_without_a_head_has_no_loss(tmp_path):
    model = BertModel(bert().config)
    with pytest.raises(InputError, match="BertModel"):
        load_folder(write_folder(tmp_path / "model", model))


def test_a_folder_of_something_else_is_none(tmp_path):
    assert not is_folder(tmp_path)
    assert not is_folder(tmp_path / "nowhere")


def test_without_transformers_the_install_line_is_told(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "model", gpt2())
    wanted = importlib.import_module

    def missing(name, *more):
        if name == "transformers":
            raise ImportError(name)
        return wanted(name, *more)

    monkeypatch.setattr("auditor.inputs.transformers_folder.importlib.import_module", missing)
    with pytest.raises(UsageError, match=r'pip install "gradaudit\[text\]"'):
        load_folder(folder)


# --------------------------------------------------------------------------- adapters

FUSED = {"transformer.h.0.attn.c_attn": (192, 64), "transformer.h.1.attn.c_attn": (192, 64)}
QUERIES = {"model.layers.0.self_attn.q_proj": (64, 64)}


@pytest.mark.parametrize(
    ("made", "names", "turned"), [(gpt2, FUSED, True), (llama, QUERIES, False)]
)
def test_an_adapter_adds_its_product_to_the_weight(made, names, turned, tmp_path):
    """The oracle: the plain model with W + (alpha / r) B A in place of W."""
    model = made()
    folder = write_folder(tmp_path / "model", model)
    tensors = write_adapter(folder, names)
    read = load_folder(folder)
    with torch.no_grad():
        for name in names:
            low, high = (tensors[f"base_model.model.{name}.lora_{s}.weight"] for s in "AB")
            change = 2.0 * high @ low
            weight = model.get_submodule(name).weight
            weight += change.T if turned else change
    tokens = torch.tensor([[5, 6, 7, 8]])
    ours, theirs = (m(input_ids=tokens).logits for m in (read.model.module, model))
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert any("LoRA adapter" in note for note in read.model.notes)
    trained = [n for n, _ in read.model.module.named_parameters() if "lora_" in n]
    assert f"{next(iter(names))}.lora_A.default.weight" in trained


def test_a_saved_classifier_takes_its_place(tmp_path):
    folder = write_folder(tmp_path / "model", bert())
    name = "bert.encoder.layer.0.attention.self.query"
    weight = torch.full((3, 64), 0.5)
    write_adapter(folder, {name: (64, 64)}, more={"base_model.model.classifier.weight": weight})
    assert torch.equal(load_folder(folder).model.module.classifier.weight, weight)


@pytest.mark.parametrize(
    ("names", "config", "words"),
    [
        ({"transformer.h.9.attn.c_attn": (192, 64)}, {}, "does not have"),
        ({"transformer.h.0.attn.c_attn": (99, 64)}, {}, "another shape"),
        (FUSED, {"use_dora": True}, "use_dora"),
        (FUSED, {"alpha_pattern": {"c_attn": 3}}, "alpha_pattern"),
        (FUSED, {"bias": "all"}, "bias"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(names, config, words, tmp_path):
    folder = write_folder(tmp_path / "model", gpt2())
    write_adapter(folder, names, **config)
    with pytest.raises(InputError, match=words):
        load_folder(folder)


def test_half_an_adapter_is_refused(tmp_path):
    folder = write_folder(tmp_path / "model", gpt2())
    write_adapter(folder, FUSED)
    path = folder / "adapter_model.safetensors"
    save_file({n: t for n, t in load_file(path).items() if "h.1.attn.c_attn.lora_B" not in n}, path)
    with pytest.raises(InputError, match="another form"):
        load_folder(folder)
