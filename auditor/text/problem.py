"""What the attacker of a language model knows, and the one definition of its gradient.

Everything that compares a claim with the dump goes through `gradient_of`. The loss is the one that
`transformers` computes for the task: of a causal model over the next tokens, padding ignored; of a
masked model over the masked places; of a classification over the sequences. All are means.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from auditor.records import GradientDump
from auditor.text.layout import layout_of
from auditor.text.records import IGNORED, TextKnowledge, TextProblem, TokenBatch


def make_text_problem(
    module: nn.Module,
    dump: GradientDump,
    knowledge: TextKnowledge,
    *,
    device: torch.device,
    tokenizer: object | None = None,
) -> TextProblem:
    """Copy the model in evaluation mode, and the dump beside it.

    Raises InputError for a network whose parts `layout_of` does not know.
    """
    layout = layout_of(module, knowledge.task)
    ours = _audited_copy(module, knowledge, device)
    dtype = next(ours.parameters()).dtype
    order = [name for name, _ in ours.named_parameters() if name in dump.tensors]
    gradient = {name: dump.tensors[name].to(device=device, dtype=dtype) for name in order}
    return TextProblem(ours, gradient, dump.precision, knowledge, layout, tokenizer)


def _audited_copy(module: nn.Module, knowledge: TextKnowledge, device: torch.device) -> nn.Module:
    """Evaluation mode, single precision at least, attention that has a second derivative."""
    ours = copy.deepcopy(module).eval()
    if any(p.dtype in {torch.float16, torch.bfloat16} for p in ours.parameters()):
        ours = ours.float()
    ours = ours.to(device).requires_grad_(True)
    transformer = cast(Any, ours)
    transformer.set_attn_implementation("eager")
    transformer.config.return_dict = True
    if transformer.config.pad_token_id is None:
        transformer.config.pad_token_id = knowledge.padding or 0
    return ours


def longest_text(module: nn.Module) -> int:
    """How many tokens the model takes. RoBERTa counts positions from behind its padding."""
    config: Any = cast(Any, module).config
    most = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
    return most - config.pad_token_id - 1 if "roberta" in str(config.model_type) else most


def causal_labels(tokens: Tensor, attention: Tensor) -> Tensor:
    """The labels of a causal model, (N, T): the tokens themselves, IGNORED where there is padding.

    The model shifts them by one place.
    """
    return tokens.masked_fill(~attention, IGNORED)


def loss_of(problem: TextProblem, batch: TokenBatch) -> Tensor:
    """The mean loss, (), as the model's own class computes it."""
    device = next(problem.module.parameters()).device
    asked: dict[str, Any] = {
        "input_ids": batch.tokens.to(device),
        "attention_mask": batch.attention.to(device).long(),
        "labels": batch.labels.to(device),
    }
    if problem.knowledge.task == "causal":
        asked["use_cache"] = False
    return cast(Tensor, problem.module(**asked).loss)


def gradient_of(problem: TextProblem, batch: TokenBatch) -> dict[str, Tensor]:
    """The gradient that a client with this batch would have sent, by parameter name.

    Only the parameters that the dump has are in the answer.
    """
    named = dict(problem.module.named_parameters())
    wanted = [named[name] for name in problem.gradient]
    found = torch.autograd.grad(loss_of(problem, batch), wanted, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if part is None else part
        for name, parameter, part in zip(problem.gradient, wanted, found, strict=True)
    }


def residuals_of(problem: TextProblem, gradient: Mapping[str, Tensor]) -> dict[str, float]:
    """The distance to the dump of each tensor, relative to its norm.

    The norm has a floor, so that an error of the dump's precision times the whole gradient is
    within tolerance in every tensor: the bias of the keys has a gradient of pure rounding.
    """
    floor = problem.precision / tolerance_of(problem) * _norm(problem.gradient)
    return {
        name: float((gradient[name] - sent).norm()) / max(float(sent.norm()), floor)
        for name, sent in problem.gradient.items()
    }


def relative_residual(problem: TextProblem, gradient: Mapping[str, Tensor]) -> float:
    """The distance to the dump over all tensors at once, relative to the dump's norm."""
    apart = {name: gradient[name] - sent for name, sent in problem.gradient.items()}
    return _norm(apart) / _norm(problem.gradient)


def tolerance_of(problem: TextProblem) -> float:
    """The relative residual, per tensor, at which a batch counts as the dump's equal.

    Half of the digits that the dump carries, never looser than 1 %, as for pictures. Tokens are
    discrete: in trials (four small models, MiniLM with batches of four) the right batch left 4e-7
    at most, and one token replaced by the most similar other one 0.02 at least. The harness tries
    that on every claim (evidence).
    """
    return min(max(math.sqrt(problem.precision), 3.5e-4), 1e-2)


def _norm(tensors: Mapping[str, Tensor]) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors.values()]).norm())
