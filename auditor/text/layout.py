"""Where a network keeps what the attacks need, read off its parameters' names.

Known are the families GPT-2, Llama (and its relatives with the same names), BERT, RoBERTa and
DistilBERT, each with or without LoRA adapters (Hu et al. 2021, arXiv:2106.09685). A projection with
an adapter reads the same input twice: rows of the gradient of `lora_A` span it as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from auditor.errors import InputError
from auditor.records import Task
from auditor.text.records import Layout, Projection


@dataclass(frozen=True)
class _Family:
    """The names of one family, below the prefix of its body."""

    embedding: str
    positions: str | None
    types: str | None
    projections: tuple[str, ...]  # of block {}
    causal: bool
    fused: bool  # query, key, value are one matrix, stored (in, out)
    norms: tuple[str, ...]  # of the layer norm in front of the vocabulary head, full names


_FAMILIES = (
    _Family(
        embedding="wte.weight",
        positions="wpe.weight",
        types=None,
        projections=("h.{}.attn.c_attn",),
        causal=True,
        fused=True,
        norms=("transformer.ln_f",),
    ),
    _Family(
        embedding="embed_tokens.weight",
        positions=None,
        types=None,
        projections=tuple(f"layers.{{}}.self_attn.{part}_proj" for part in "qkv"),
        causal=True,
        fused=False,
        norms=("model.norm",),
    ),
    _Family(
        embedding="embeddings.word_embeddings.weight",
        positions="embeddings.position_embeddings.weight",
        types="embeddings.token_type_embeddings.weight",
        projections=tuple(
            f"encoder.layer.{{}}.attention.self.{part}" for part in ("query", "key", "value")
        ),
        causal=False,
        fused=False,
        norms=("cls.predictions.transform.LayerNorm", "lm_head.layer_norm"),
    ),
    _Family(
        embedding="embeddings.word_embeddings.weight",
        positions="embeddings.position_embeddings.weight",
        types=None,
        projections=tuple(f"transformer.layer.{{}}.attention.{part}_lin" for part in "qkv"),
        causal=False,
        fused=False,
        norms=("vocab_layer_norm",),
    ),
)
_CLASSIFIERS = ("score", "classifier", "classifier.out_proj")
_ADAPTERS = ("lora_A.weight", "lora_A.default.weight")


def layout_of(module: nn.Module, task: Task) -> Layout:
    """The layout of a `transformers` model for `task`.

    Raises InputError for a network of no known family, or without a head for the task.
    """
    named = dict(module.named_parameters())
    family, prefix = _family_of(module, named)
    table = named[prefix + family.embedding]
    head, bias = _head(module, named, task)
    return Layout(
        embedding=prefix + family.embedding,
        positions=_present(named, prefix, family.positions),
        types=_present(named, prefix, family.types),
        head=head,
        head_bias=bias,
        tied=head == prefix + family.embedding,
        causal=family.causal and not getattr(_config(module), "is_encoder_decoder", False),
        first=_projections(named, prefix, family, 0),
        second=_projections(named, prefix, family, 1),
        vocabulary=len(table),
        width=int(table.shape[1]),
        norm=_norm(module, family) if task != "classification" else None,
    )


def _family_of(module: nn.Module, named: Mapping[str, Tensor]) -> tuple[_Family, str]:
    for family in _FAMILIES:
        for name in named:
            prefix = name.removesuffix(family.embedding)
            if prefix != name and _projections(named, prefix, family, 0):
                return family, prefix
    raise InputError(
        expected="a network of the GPT-2, Llama, BERT, RoBERTa or DistilBERT family",
        found=f"{type(module).__name__}, whose attention has other names",
        todo="Audits of text know these families only.",
    )


def _config(module: nn.Module) -> Any:
    return cast(Any, module).config


def _present(named: Mapping[str, Tensor], prefix: str, name: str | None) -> str | None:
    return prefix + name if name is not None and prefix + name in named else None


def _projections(
    named: Mapping[str, Tensor], prefix: str, family: _Family, block: int
) -> tuple[Projection, ...]:
    """Every matrix that reads the input of block number `block`; none when there is no block."""
    found = []
    for part in family.projections:
        stem = prefix + part.format(block)
        for name in (f"{stem}.weight", f"{stem}.base_layer.weight"):
            if name in named:
                found += _parts(name, named[name], fused=family.fused)
        for name in (f"{stem}.{adapter}" for adapter in _ADAPTERS):
            if name in named:
                found.append(Projection(name, (0, len(named[name])), turned=False))
    return tuple(found)


def _parts(name: str, weight: Tensor, *, fused: bool) -> list[Projection]:
    if not fused:
        return [Projection(name, (0, len(weight)), turned=False)]
    third = weight.shape[1] // 3
    return [Projection(name, (i * third, (i + 1) * third), turned=True) for i in range(3)]


def _head(
    module: nn.Module, named: Mapping[str, Tensor], task: Task
) -> tuple[str | None, str | None]:
    """The names of the weight and the bias of what makes the logits."""
    if task == "classification":
        head = next((h for h in _CLASSIFIERS if f"{h}.weight" in named), None)
        if head is None:
            raise InputError(
                expected="a linear head for the classification",
                found=f"none in {type(module).__name__}",
                todo="Give the model with its head, as AutoModelForSequenceClassification has it.",
            )
        return f"{head}.weight", f"{head}.bias" if f"{head}.bias" in named else None
    decoder = cast(Any, module).get_output_embeddings()
    if decoder is None:
        raise InputError(
            expected="a head over the vocabulary",
            found=f"none in {type(module).__name__}",
            todo="Give the model with its head, as AutoModelForCausalLM has it.",
        )
    return _name_of(named, decoder.weight), _name_of(named, decoder.bias)


def _name_of(named: Mapping[str, Tensor], wanted: Tensor | None) -> str | None:
    return next((name for name, parameter in named.items() if parameter is wanted), None)


def _norm(module: nn.Module, family: _Family) -> str | None:
    """The module's name; an adapter's wrapper may stand in front of it."""
    names = [name for name, _ in module.named_modules()]
    return next(
        (n for n in names if any(n == e or n.endswith("." + e) for e in family.norms)), None
    )
