"""What a block or the head of a network reads, for tokens of ours.

The network runs up to the module that is asked for and no further, so that the first block's input
costs an embedding and a layer norm only, whatever the family.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from auditor.text.records import Projection, TextProblem


class _Reached(Exception):
    """Ends a forward pass where its answer is known."""


def input_of(
    problem: TextProblem, reader: str, tokens: Tensor, attention: Tensor | None = None
) -> Tensor:
    """What the module `reader` reads, (N, T, d) or (N, d), for `tokens` (N, T).

    `attention` (N, T) bool, True throughout when it is left out. No gradient is recorded.
    """
    seen: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        del module
        seen.append(args[0] if args else next(iter(kwargs.values())))
        raise _Reached

    module = problem.module
    handle = module.get_submodule(reader).register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad():
            module(**asked(problem, tokens, attention))
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0]


def asked(problem: TextProblem, tokens: Tensor, attention: Tensor | None) -> dict[str, Any]:
    """The arguments of a forward pass, on the problem's device."""
    device = next(problem.module.parameters()).device
    mask = torch.ones_like(tokens, dtype=torch.bool) if attention is None else attention
    told: dict[str, Any] = {
        "input_ids": tokens.to(device),
        "attention_mask": mask.to(device).long(),
    }
    if problem.layout.causal:
        told["use_cache"] = False
    return told


def reader_of(projections: tuple[Projection, ...]) -> str:
    """The module that reads what the gradients of these projections span.

    Of an adapter it is the module that carries it.
    """
    name: str = projections[0].weight
    for ending in (".lora_A.default.weight", ".lora_A.weight", ".base_layer.weight", ".weight"):
        if name.endswith(ending):
            return name.removesuffix(ending)
    return name


def head_reader(problem: TextProblem) -> str:
    """The module that makes the logits."""
    layout = problem.layout
    if problem.knowledge.task == "classification":
        assert layout.head is not None, "layout_of gives every classification a head"
        return str(layout.head).removesuffix(".weight")
    decoder = cast(Any, problem.module).get_output_embeddings()
    names = [name for name, part in problem.module.named_modules() if part is decoder]
    return str(names[0])
