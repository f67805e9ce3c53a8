"""Pictures of vision transformers, from dumps as clients write them: what is read, and why not."""

import copy
import time
from dataclasses import replace

import pytest
import torch
from problems import CPU, FILE, Client, batch, case_of, knowledge, noised, options_of, rounded
from torch import nn
from torch.nn import functional as F
from vits import (
    ATTACK,
    READABLE,
    TOKENS,
    WIDTH,
    Tokens,
    by_convolution,
    client_of,
    convolution,
    decibels,
    learnt,
    made,
    proves,
    read,
    small_vit,
)

from auditor.attacks.base import Watch
from auditor.audit import run_audit
from auditor.evidence import is_verified
from auditor.inputs.gradients import match_gradients
from auditor.problem import make_problem
from auditor.records import Failed, LocalTraining
from auditor.zoo import build

PICTURE = (1, 8, 8)


def assert_right(client, problem=None, *, least=60.0, seed=0):
    """Read, proved, and right."""
    problem = client.problem() if problem is None else problem
    recovery, evidence = read(problem, seed)
    assert all(link.solved for link in recovery.links), recovery.links
    assert proves(problem, evidence), (evidence.worst_residuals, evidence.agreement)
    assert decibels(client, problem, recovery) > least


def assert_no_false_claim(client, problem):
    """Not proved; and if it is called verified, it is right."""
    if ATTACK.blocked_by(problem) is not None:
        return
    recovery, evidence = read(problem)
    assert not proves(problem, evidence)
    if not isinstance(evidence, Failed) and is_verified(problem, evidence):
        assert decibels(client, problem, recovery) > 30


# --------------------------------------------------------------------------- what can be read


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize("seed", range(2))
def test_ways_to_make_tokens(name, seed):
    assert_right(client_of(READABLE[name], seed=seed), seed=seed)


def test_the_vit_of_the_zoo():
    client = client_of(lambda: build("vit"), shape=(3, 32, 32))
    problem = client.problem()
    assert next(problem.module.parameters()).dtype == torch.float32  # large: single precision
    assert_right(client, problem)


@pytest.mark.parametrize(
    "more", [{"smoothing": 0.1}, {"reduction": "sum"}, {"mode": "train"}]
)  # fmt: skip
def test_other_losses_and_modes(more):
    assert_right(client_of(small_vit, **more))


def test_torchvisions_vit():
    """The real class at a small size: its own names, its fused attention, 16 patches."""
    from torchvision.models import VisionTransformer

    def make():
        model = VisionTransformer(
            image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=24, mlp_dim=48,
            num_classes=5,
        )  # fmt: skip
        nn.init.normal_(model.heads.head.weight, std=0.02)
        return model

    assert_right(client_of(make, shape=(3, 16, 16)))


def test_torchvisions_untrained_head_lets_nothing_through():
    """It starts at zero, and with it every gradient below it."""
    from torchvision.models import VisionTransformer

    client = client_of(
        lambda: VisionTransformer(
            image_size=16, patch_size=4, num_layers=1, num_heads=2, hidden_dim=24, mlp_dim=48,
            num_classes=5,
        ),
        shape=(3, 16, 16),
    )  # fmt: skip
    reason = ATTACK.blocked_by(client.problem())
    assert "'encoder.pos_embedding' is zero" in reason


def test_mean_and_std_outside_the_model():
    client = client_of(small_vit)
    client = replace(client, inputs=(client.inputs - 0.4) / 0.2)
    assert_right(client, client.problem(mean=(0.4,), std=(0.2,)))


def test_only_two_tensors_and_a_label_are_needed():
    client = client_of(small_vit)
    kept = {"embed.weight", "positions", "head.weight", "head.bias"}
    gradients = {name: g for name, g in client.gradients().items() if name in kept}
    assert_right(client, client.problem(gradients))


def test_dark_and_bright_pictures():
    client = client_of(small_vit)
    for inputs in (torch.ones_like(client.inputs), (client.inputs > 0.5).float()):
        assert_right(replace(client, inputs=inputs))


def test_a_black_picture_proves_nothing_wrong():
    client = client_of(small_vit)
    client = replace(client, inputs=torch.zeros_like(client.inputs))
    problem = client.problem()
    assert "zero" in ATTACK.blocked_by(problem)  # the patch embedding's gradient is G'0


def test_the_same_seed_gives_the_same_claim_and_touches_nothing():
    problem = client_of(small_vit).problem()
    before = {name: value.clone() for name, value in problem.gradient.items()}
    state = copy.deepcopy(problem.module.state_dict())
    first, again, other = (ATTACK.run(problem, seed=s, watch=Watch()) for s in (0, 0, 1))
    assert torch.equal(first.inputs, again.inputs)
    assert torch.equal(first.inputs[0], other.inputs[0])  # the dump's own reading
    assert not torch.equal(first.inputs[1], other.inputs[1])
    assert all(torch.equal(value, before[name]) for name, value in problem.gradient.items())
    assert all(torch.equal(v, state[name]) for name, v in problem.module.state_dict().items())


def test_an_audit_ends_with_it():
    client = client_of(small_vit)
    audit = run_audit(case_of(client), options_of()).audit
    assert [(f.code, f.certainty, f.attack) for f in audit.findings] == [
        ("GA201", "proved", "images.attention"),
        ("GA101", "proved", "labels.head"),
    ]


# --------------------------------------------------------------------------- updates


def trained(client, local, dtype):
    """Weights after local training on the client's samples, less those before; plain torch."""
    module = copy.deepcopy(client.module).to(dtype)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.SGD(
        module.parameters(), local.lr, local.momentum, weight_decay=local.weight_decay
    )
    for _ in range(local.steps):
        optimizer.zero_grad()
        F.cross_entropy(module(client.inputs.to(dtype)), client.labels).backward()
        optimizer.step()
    return {name: p.detach() - before[name] for name, p in module.named_parameters()}


def updated(client, update, local):
    """The problem of an attacker who is told that the dump is an update."""
    dump = match_gradients(update, client.module, file=FILE, form="test", kind="update")
    known = knowledge(tuple(client.inputs.shape[1:]), local=local)
    return make_problem(client.module, dump, known, device=CPU)


@pytest.mark.parametrize(
    "local",
    [
        LocalTraining(0.01, 1, 1),
        LocalTraining(0.05, 5, 1),
        LocalTraining(0.05, 5, 1, momentum=0.9, weight_decay=1e-3),
    ],
)
def test_local_steps_on_one_sample(local):
    """Weighted sums over the steps stand on both sides of the equations, with the same weights."""
    client = client_of(small_vit)
    update = trained(client, local, torch.float64)
    assert_right(client, updated(client, update, local), least=150)


def test_updates_in_single_precision_prove_nothing_wrong():
    """They are small differences of large numbers: their digits are fewer than those they show."""
    client = client_of(small_vit)
    for lr in (0.1, 1e-2, 1e-3, 1e-4):
        local = LocalTraining(lr, 5, 1)
        problem = updated(client, trained(client, local, torch.float32), local)
        recovery, evidence = read(problem)
        if proves(problem, evidence):
            assert decibels(client, problem, recovery) > 59
        if is_verified(problem, evidence):
            assert decibels(client, problem, recovery) > 30
        if lr == 0.1:
            assert is_verified(problem, evidence)
            assert decibels(client, problem, recovery) > 60
        assert lr > 1e-4 or not proves(problem, evidence)


def test_updates_that_cannot_be_redone():
    client = client_of(small_vit)
    local = LocalTraining(0.1, 2, 1)
    update = trained(client, local, torch.float64)
    for unknown, word in (({"lr": None}, "--lr"), ({"steps": None}, "--local-steps")):
        reason = ATTACK.blocked_by(updated(client, update, replace(local, **unknown)))
        assert word in reason


# --------------------------------------------------------------------------- what is left open


def test_layer_norm_costs_one_dimension():
    """Behind it no gradient of a token has a mean: as many patches as numbers are one too many."""
    client = client_of(lambda: small_vit(TOKENS))
    problem = client.problem()
    recovery, evidence = read(problem)
    link = recovery.links[-1]
    assert (link.solved, link.undetermined) == (False, 4)  # one patch's worth
    assert len(recovery.inputs) == 1
    assert not proves(problem, evidence)
    assert_right(client_of(lambda: small_vit(TOKENS + 4)))


def test_pixels_that_no_patch_sees():
    def make():
        return Tokens(
            lambda m, x: by_convolution(x, m.embed) + m.positions, mean=True,
            embed=nn.Conv2d(1, WIDTH, 3, stride=3), positions=learnt(1, 4, WIDTH),
        )  # fmt: skip

    client = client_of(make)
    problem = client.problem()
    recovery, evidence = read(problem)
    assert recovery.links[-1].undetermined == 64 - 36
    assert not proves(problem, evidence)
    assert not is_verified(problem, evidence)
    seen = recovery.inputs[0, 0, :, :6, :6].double()
    assert float((seen - client.inputs[0, :, :6, :6]).abs().max()) < 1e-4


def test_tokens_that_reach_nothing():
    """A head on the class token and no attention: patches have no gradient."""

    def make():
        model = small_vit()
        model.blocks = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        return model

    assert "is zero" in ATTACK.blocked_by(client_of(make).problem())


# --------------------------------------------------------------------------- no false claims


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coarse_dumps_prove_nothing(dtype):
    client = client_of(READABLE["positions from a table"])
    assert_no_false_claim(client, client.problem(rounded(client.gradients(), dtype)))


@pytest.mark.parametrize("sigma", [1e-4, 1e-3, 1e-2, 1e-1])
def test_noise_proves_nothing(sigma):
    client = client_of(READABLE["positions from a table"])
    assert_no_false_claim(client, client.problem(noised(client.gradients(), sigma)))


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("name", ["class token, positions on all", "reshaping and a linear layer"])
def test_two_samples_said_to_be_one(name, same):
    inputs, labels = batch(2, 5, shape=PICTURE)
    labels = labels * 0 + torch.tensor([2, 2 if same else 3])
    client = Client(made(READABLE[name]), inputs, labels)
    problem = client.problem(size=1)
    recovery, evidence = read(problem)
    assert not proves(problem, evidence)
    assert not is_verified(problem, evidence)
    assert not recovery.links[0].solved  # the head's gradient is of rank two


def test_the_weights_of_another_model():
    """What is read does not depend on the weights; what is shown does."""
    client = client_of(small_vit)
    problem = replace(client, module=made(small_vit, 9)).problem(client.gradients())
    recovery, evidence = read(problem)
    assert decibels(client, problem, recovery) > 60
    assert not is_verified(problem, evidence)


def test_a_wrong_reduction_shows_nothing():
    client = client_of(small_vit, smoothing=0.1)
    _, evidence = read(problem := client.problem(label_smoothing=0.0))
    assert not is_verified(problem, evidence)


# --------------------------------------------------------------------------- reasons and budgets


def test_blocked_with_a_reason():
    client = client_of(small_vit)
    two = Client(client.module, *batch(2, 5, shape=PICTURE))
    without_head = {n: g for n, g in client.gradients().items() if "head" not in n}
    cases = {
        "batch size": client.problem(size=None),
        "one sample": two.problem(),
        "no label": client.problem(without_head),
        "more than a token has numbers (12)": client_of(lambda: small_vit(12)).problem(),
    }
    for word, problem in cases.items():
        assert word in ATTACK.blocked_by(problem)


@pytest.mark.parametrize("name", ["positions", "embed.weight"])
def test_frozen_parameters_are_named(name):
    client = client_of(small_vit)
    gradients = client.gradients()
    gradients.pop(name)
    reason = ATTACK.blocked_by(client.problem(gradients))
    assert "the dump holds no gradient of" in reason
    assert repr(name) in reason


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_scripted_models_are_blocked_with_a_reason():
    client = client_of(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 5)))
    scripted = replace(client, module=torch.jit.script(client.module))
    assert "TorchScript" in ATTACK.blocked_by(scripted.problem(client.gradients()))


def test_programs_that_depend_on_the_picture():
    def tokens(m, x):
        positions = m.positions if x.std() < 0.1 else 2 * m.positions
        return by_convolution(x, m.embed) + positions

    client = client_of(
        lambda: Tokens(tokens, embed=convolution(), positions=learnt(1, TOKENS, WIDTH))
    )
    reason = ATTACK.blocked_by(client.problem())
    assert "numbers" in reason or "depends on the values" in reason


def test_an_expired_budget_ends_at_once():
    problem = client_of(lambda: build("vit"), shape=(3, 32, 32)).problem()
    begun = time.monotonic()
    recovery, evidence = read(problem, watch=Watch(deadline=0.0))
    assert time.monotonic() - begun < 3
    assert recovery.expired
    assert recovery.inputs is None
    assert isinstance(evidence, Failed)


# --------------------------------------------------------------------------- the identity itself


def test_the_weight_gradient_is_linear_in_the_patches():
    """From autograd alone, without our code: dL/dW = G' X, through any layers above."""
    client = client_of(small_vit)
    gradients = {name: g.double() for name, g in client.gradients().items()}
    patches = F.unfold(client.inputs, 2, stride=2)[0].T.double()  # (T, P)
    above = gradients["positions"][0, 1:].T @ patches
    sent = gradients["embed.weight"].flatten(1)
    assert float((above - sent).norm() / sent.norm()) < 1e-6
