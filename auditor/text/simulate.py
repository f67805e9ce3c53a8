"""The gradient that a client would have sent for given texts, and its truth."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from auditor.dumping import save_gradients
from auditor.errors import UsageError
from auditor.facts import Flags
from auditor.inputs.gradients import load_gradients
from auditor.inputs.transformers_folder import silenced
from auditor.records import GradientDump, LanguageModel, Mode
from auditor.text.audit import TextCase
from auditor.text.problem import causal_labels, longest_text
from auditor.text.records import IGNORED, TextTruth, TokenBatch
from auditor.text.settle import classes_of, padding_of, settle_text

_MASKED = 0.15  # of the tokens, as BERT was trained; at least one of each text


def simulated_text_case(
    language: LanguageModel,
    texts: Sequence[str],
    labels: Sequence[int],
    flags: Flags,
    *,
    seed: int,
    keep: Path | None = None,
) -> TextCase:
    """What is audited when a client with these texts sent its gradient. Raises UsageError."""
    batch = tokenised(language, texts, labels, seed=seed)
    dump = simulate_text_dump(language, batch, mode=flags.mode or "eval", seed=seed, keep=keep)
    flags = replace(flags, mode=None)  # the dump says it itself
    return TextCase(
        language, dump, settle_text(dump, language, flags), TextTruth(batch, tuple(texts))
    )


def truth_of(language: LanguageModel, texts: Sequence[str]) -> TextTruth:
    """What the client wrote, for a dump that is there already: labels are not known.

    Raises UsageError for texts that do not fit the model.
    """
    tokens, attention = _padded(language, _token_rows(language, texts))
    labels = torch.full_like(tokens, IGNORED)
    if language.task == "classification":
        labels = torch.zeros(0, dtype=torch.long)
    return TextTruth(TokenBatch(tokens, attention, labels), tuple(texts))


def tokenised(
    language: LanguageModel, texts: Sequence[str], labels: Sequence[int], *, seed: int
) -> TokenBatch:
    """The batch that the client's tokenizer makes of its texts, padded on the right.

    Of a masked model, the places that it has to guess are drawn by `seed`. Raises UsageError for
    texts or labels that do not fit the model.
    """
    rows = _token_rows(language, texts)
    tokens, attention = _padded(language, rows)
    if language.task == "classification":
        return TokenBatch(tokens, attention, _classes(language, texts, labels))
    if labels:
        raise UsageError(
            expected="no --label: this model guesses tokens, not classes",
            found=f"{len(labels)} labels",
            todo="Leave --label out.",
        )
    if language.task == "causal":
        return TokenBatch(tokens, attention, causal_labels(tokens, attention))
    return _masked(language, rows, tokens, attention, seed)


def _padded(language: LanguageModel, rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Tokens and attention, (N, T)."""
    width, padding = max(len(row) for row in rows), padding_of(language) or 0
    tokens = torch.tensor([row + [padding] * (width - len(row)) for row in rows])
    return tokens, torch.tensor([[at < len(row) for at in range(width)] for row in rows])


def _token_rows(language: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
    tokenizer: Any = language.tokenizer
    if tokenizer is None or not texts:
        raise UsageError(
            expected="texts, and the files of a tokenizer in the model's folder",
            found="no --text" if tokenizer is not None else "no tokenizer",
            todo='For example --text "the text of one client"; tokenizer.save_pretrained(DIR).',
        )
    longest = longest_text(language.model.module)
    rows: list[list[int]] = [list(tokenizer(text)["input_ids"]) for text in texts]
    least = 2 if language.task == "causal" else 1  # a causal loss needs a next token
    if not all(least <= len(row) <= longest for row in rows):
        raise UsageError(
            expected=f"texts of {least} to {longest} tokens",
            found=f"one of {next(len(r) for r in rows if not least <= len(r) <= longest)}",
            todo="Mend --text.",
        )
    return rows


def _classes(language: LanguageModel, texts: Sequence[str], labels: Sequence[int]) -> Tensor:
    count = classes_of(language.model.module, language.task)
    if len(labels) != len(texts) or not all(0 <= label < count for label in labels):
        raise UsageError(
            expected=f"one --label from 0 to {count - 1} for each --text",
            found=f"{len(texts)} texts and {len(labels)} labels",
            todo="Repeat --text TEXT --label K for each text.",
        )
    return torch.tensor(list(labels))


def _masked(
    language: LanguageModel, rows: list[list[int]], tokens: Tensor, attention: Tensor, seed: int
) -> TokenBatch:
    """Hide some tokens, but none that the tokenizer put around the text."""
    tokenizer: Any = language.tokenizer
    special = set(tokenizer.all_special_ids)
    if tokenizer.mask_token_id is None or any(set(row) <= special for row in rows):
        raise UsageError(
            expected="a tokenizer with a mask token, and texts with a token to hide",
            found="one of them without",
            todo="Mend --text, or give the tokenizer that the model was trained with.",
        )
    plain = torch.tensor([[token not in special for token in row] for row in tokens.tolist()])
    plain &= attention
    draw = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(seed))
    draw = draw.masked_fill(~plain, 2.0)
    hidden = (draw < _MASKED) | (draw == draw.min(dim=1, keepdim=True).values)
    labels = tokens.masked_fill(~hidden, IGNORED)
    return TokenBatch(tokens.masked_fill(hidden, tokenizer.mask_token_id), attention, labels)


def simulate_text_dump(
    language: LanguageModel,
    batch: TokenBatch,
    *,
    mode: Mode = "eval",
    seed: int = 0,
    keep: Path | None = None,
) -> GradientDump:
    """One training step's gradient for the batch, as `auditor.capture` writes it.

    `keep` is where the dump is left; otherwise it lives in a temporary directory only. Raises
    UsageError when that file is there already.
    """
    if keep is not None and keep.exists():
        raise UsageError(
            expected="a new file for the dump", found=f"{keep.name!r}", todo="Name another one."
        )
    module = language.model.module
    gradients = _gradients(language, batch, mode, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = keep or Path(folder) / "simulated.safetensors"
        save_gradients(module, gradients, path, batch_size=len(batch.tokens), mode=mode)
        return load_gradients(path, module)


def _gradients(
    language: LanguageModel, batch: TokenBatch, mode: Mode, seed: int
) -> dict[str, Tensor]:
    """What `loss.backward()` leaves in the parameters that are trained."""
    client: Any = copy.deepcopy(language.model.module)
    client.train(mode == "train")
    client.config.return_dict = True
    if client.config.pad_token_id is None:
        client.config.pad_token_id = padding_of(language) or 0
    trained = {name: p for name, p in client.named_parameters() if _is_trained(client, name)}
    with torch.random.fork_rng(devices=[]), silenced():
        torch.manual_seed(seed)
        loss = client(
            input_ids=batch.tokens, attention_mask=batch.attention.long(), labels=batch.labels
        ).loss
    parts = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {name: part for name, part in zip(trained, parts, strict=True) if part is not None}


def _is_trained(client: Any, name: str) -> bool:
    """With adapters, these alone are trained."""
    adapted = any("lora_" in other for other, _ in client.named_parameters())
    return not adapted or "lora_" in name
