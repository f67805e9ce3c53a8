"""What is known of the client's step: flags first, then the dump's metadata, then the folder."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from auditor.errors import InputError, UsageError
from auditor.facts import Flags
from auditor.facts.merge import Merge
from auditor.records import GradientDump, LanguageModel, Metadata, Task
from auditor.text.records import TextKnowledge

_LOSS: dict[Task, str] = {
    "causal": "cross-entropy over the next tokens, mean",
    "masked": "cross-entropy over the masked tokens, mean",
    "classification": "cross-entropy over the sequences, mean",
}


def settle_text(dump: GradientDump, language: LanguageModel, flags: Flags) -> TextKnowledge:
    """Merge all that is known. Raises UsageError for facts about pictures, InputError for a dump
    whose own metadata say that its loss is another one."""
    _refuse_flags(flags)
    _refuse_metadata(dump)
    merge, task = Merge(), language.task
    merge.note("task", task, "deduced")
    classes = classes_of(language.model.module, task)
    size, _ = merge.take("batch size", flags.batch_size, dump.metadata.batch_size, None)
    mode, _ = merge.take("mode", flags.mode, dump.metadata.mode, "eval")
    merge.note("loss", _LOSS[task], "assumed" if dump.metadata.loss is None else "metadata")
    start, end = _frame(language.tokenizer)
    if start is not None or end is not None:
        merge.note("special tokens", "as the tokenizer puts them around a text", "assumed")
    return TextKnowledge(
        task=task,
        batch_size=size,
        longest=None,
        classes=classes,
        padding=padding_of(language),
        start=start,
        end=end,
        mask=_number(getattr(language.tokenizer, "mask_token_id", None), language),
        assumptions=tuple(merge.assumptions),
        mode=mode,
        overrides=tuple(merge.overrides),
    )


def padding_of(language: LanguageModel) -> int | None:
    """The token that fills up shorter sequences; where there is none, the one that ends a text."""
    config = cast(Any, language.model.module).config
    said = (
        getattr(language.tokenizer, "pad_token_id", None),
        getattr(config, "pad_token_id", None),
        getattr(language.tokenizer, "eos_token_id", None),
        getattr(config, "eos_token_id", None),
    )
    fitting = (_number(each, language) for each in said)
    return next((each for each in fitting if each is not None), None)


def _number(said: object, language: LanguageModel) -> int | None:
    """A token number that the embedding has a row for."""
    rows = int(cast(Any, language.model.module).get_input_embeddings().weight.shape[0])
    return said if isinstance(said, int) and 0 <= said < rows else None


def _frame(tokenizer: Any) -> tuple[int | None, int | None]:
    """The tokens that stand around every text."""
    if tokenizer is None:
        return None, None
    around = [int(token) for token in tokenizer("")["input_ids"]]
    if len(around) == 2:
        return around[0], around[1]
    if len(around) == 1:
        ends = around[0] == tokenizer.eos_token_id and around[0] != tokenizer.bos_token_id
        return (None, around[0]) if ends else (around[0], None)
    return None, None


def classes_of(module: nn.Module, task: Task) -> int:
    """How many classes there are, 0 for other tasks. Raises InputError for another loss."""
    if task != "classification":
        return 0
    config = cast(Any, module).config
    problem = getattr(config, "problem_type", None)
    if config.num_labels < 2 or problem not in {None, "single_label_classification"}:
        raise InputError(
            expected="a classification into one of two or more classes",
            found=f"{config.num_labels} labels, problem type {problem!r}",
            todo="Regression and several labels at a time cannot be audited yet.",
        )
    return int(config.num_labels)


def _refuse_flags(flags: Flags) -> None:
    local = flags.local
    given = {
        "--input-shape": flags.input_shape,
        "--mean": flags.mean,
        "--std": flags.std,
        "--label-smoothing": flags.label_smoothing,
        "--reduction": None if flags.reduction == "mean" else flags.reduction,
        "--kind": None if local.kind == "gradient" else local.kind,
        "--lr": local.lr,
        "--local-steps": local.steps,
        "--local-batch": local.batch_size,
        "--local-epochs": local.epochs,
        "--momentum": local.momentum,
        "--weight-decay": local.weight_decay,
    }
    said = [flag for flag, value in given.items() if value is not None]
    if said:
        raise UsageError(
            expected="facts that a language model has: --batch-size and --mode",
            found=", ".join(said),
            todo="Leave it out. Updates and other losses of language models are not audited yet.",
        )
    if flags.batch_size is not None and not 1 <= flags.batch_size <= 1 << 16:
        raise UsageError(
            expected="a batch size from 1 to 65536",
            found=str(flags.batch_size),
            todo="Mend --batch-size.",
        )


def _refuse_metadata(dump: GradientDump) -> None:
    meta: Metadata = dump.metadata
    odd = {
        "kind": dump.kind == "update",
        "loss": meta.loss not in {None, "cross_entropy"},
        "reduction": meta.reduction == "sum",
        "label_smoothing": bool(meta.label_smoothing),
    }
    said = [name for name, other in odd.items() if other]
    if said:
        raise InputError(
            expected="one gradient of the loss that transformers computes for this model",
            found=f"another {' and another '.join(said)} in the dump's metadata",
            todo="gradaudit cannot audit this of a language model yet.",
        )
