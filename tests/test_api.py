"""`auditor.scan` and the other public names: the same audit from Python, and nothing is changed."""

import copy
import importlib

import pytest
import torch
from runs import CLASSES, LABEL, gradaudit, pictures, small_net, write_case
from torch import nn
from torch.nn import functional as F

import auditor
from auditor import Truth, UsageError, scan
from auditor.report.audit_json import from_json
from auditor.zoo import LeNet


@pytest.fixture
def net():
    return small_net()


def gradients(net, labels=(LABEL,)):
    loss = F.cross_entropy(net(pictures(len(labels))), torch.tensor(labels))
    return torch.autograd.grad(loss, list(net.parameters()))


def codes(audit):
    return [finding.code for finding in audit.findings]


def test_every_public_name_is_there():
    assert sorted(auditor.__all__) == auditor.__all__
    assert len({id(getattr(auditor, name)) for name in auditor.__all__}) == len(auditor.__all__)
    with pytest.raises(AttributeError, match="frobnicate"):
        auditor.frobnicate  # noqa: B018


def test_no_public_name_is_hidden_by_a_module():
    """`from auditor import capture` gives the function, whatever was imported before."""
    for name in auditor.__all__:
        assert importlib.util.find_spec(f"auditor.{name}") is None, name
    assert callable(auditor.capture)
    importlib.import_module("auditor.api")
    assert auditor.scan is scan


def test_scan_of_objects(net):
    audit = scan(net, gradients(net), batch_size=1)
    assert (audit.verdict.status, audit.verdict.severity.band) == ("leak", "critical")
    assert codes(audit) == ["GA201", "GA101"]
    assert (audit.evidence, audit.exhibits) == ("none", ())
    assert audit.gate.outcome == "no gate"
    assert audit.model.architecture == "Sequential"
    assert audit.model.input_shape == (1, 8, 8)  # the only one that fits


@pytest.mark.parametrize(
    "form",
    [
        lambda net, g: list(g),
        lambda net, g: dict(zip(dict(net.named_parameters()), g, strict=True)),
        lambda net, g: dict(reversed(list(zip(dict(net.named_parameters()), g, strict=True)))),
    ],
    ids=["in order", "by name", "by name, shuffled"],
)
def test_forms_of_gradients(net, form):
    audit = scan(net, form(net, gradients(net)), attacks=["labels"])
    assert codes(audit) == ["GA101"]


def test_files_give_what_the_command_line_gives(tmp_path):
    write_case(tmp_path)
    audit = scan(tmp_path / "model.pt", str(tmp_path / "grads.safetensors"))
    assert gradaudit("scan", "model.pt", "grads.safetensors", cwd=tmp_path).code == 0
    page = (tmp_path / "gradaudit-report" / "audit.json").read_text(encoding="utf-8")
    told = from_json(page)
    assert (audit.verdict, audit.findings) == (told.verdict, told.findings)
    assert (audit.caveats, audit.assumptions) == (told.caveats, told.assumptions)


def test_a_state_dict_needs_its_architecture(tmp_path):
    write_case(tmp_path, LeNet(1, 8, CLASSES).eval())
    net = auditor.load_model(tmp_path / "model.pt").module
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    files = (tmp_path / "weights.pt", tmp_path / "grads.safetensors")
    with pytest.raises(UsageError, match="--arch"):
        scan(*files)
    assert codes(scan(*files, arch="lenet:1x8x5", attacks=["labels"])) == ["GA101"]


def test_nothing_of_the_callers_is_changed(net):
    """Also not the random state: an audit inside a training loop must not steer the training."""
    net.train()
    net[1].weight.requires_grad_(False)
    net[3].bias.grad = torch.ones(CLASSES)
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    loss = F.cross_entropy(net(pictures()), torch.tensor([1]))
    named = dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))
    state, given = copy.deepcopy(net.state_dict()), copy.deepcopy(named)
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    scan(net, named, batch_size=1, preset="fast", budget=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(net.state_dict()[name], state[name]) for name in state)
    assert all(torch.equal(named[name], given[name]) for name in given)
    assert all(module.training for module in net.modules())
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert torch.equal(net[3].bias.grad, torch.ones(CLASSES))
    assert all(p.grad is None for p in net.parameters() if p is not net[3].bias)
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, dtype)
    assert not torch.is_inference_mode_enabled()


def test_a_model_without_gradients_of_its_own_is_audited_like_any_other(net):
    sent = gradients(net)
    audit = scan(net.requires_grad_(False), sent, batch_size=1)
    assert codes(audit) == ["GA201", "GA101"]
    assert not any(p.requires_grad for p in net.parameters())


def test_the_same_seed_gives_the_same_audit_whatever_was_drawn_before(net):
    sent = gradients(net)
    one = scan(net, sent, batch_size=1, seed=3)
    torch.rand(100)
    two = scan(net, sent, batch_size=1, seed=3)
    other = scan(net, sent, batch_size=1, seed=4)
    assert one.findings == two.findings
    assert one.findings != other.findings  # other starts, other rounding


def test_the_gate_is_in_the_audit(net):
    sent = gradients(net)
    for fail_on, code in (("high", 0), ("medium", 1)):
        gate = scan(net, sent, attacks=["labels"], fail_on=fail_on).gate
        assert gate.exit_code == code
    late = scan(net, sent, batch_size=1, budget=1e-3, attacks=["images.layers"])
    assert late.gate.exit_code == 4


def test_truth_is_measured_and_changes_nothing_else(net):
    sent = gradients(net)
    truth = Truth(pictures(), torch.tensor([LABEL]))
    with_truth = scan(net, sent, batch_size=1, truth=truth)
    without = scan(net, sent, batch_size=1)
    assert set(codes(with_truth)) == {"GA203", "GA201", "GA101"}
    assert [r.curves for r in with_truth.attacks] == [r.curves for r in without.attacks]


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"input_shape": (8, 8)},
        {"std": (0.0,)},
        {"preset": "thorough"},
        {"attacks": ["magic"]},
        {"budget": -1.0},
        {"device": "abacus"},
        {"fail_on": "purple"},
        {"seed": 2**64},
        {"mean": (0.1, 0.2)},
        {"truth": Truth(pictures(2), torch.tensor([1, 2]))},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_makes_no_sense_is_a_usage_error(net, wrong):
    with pytest.raises(UsageError):
        scan(net, gradients(net), **({"batch_size": 1} | wrong))


def test_gradients_of_another_model_are_refused(net):
    with pytest.raises(auditor.InputError):
        scan(net, (*gradients(net)[:-1], torch.ones(7)))
    with pytest.raises(auditor.InputError):
        scan(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), gradients(net))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_captured_facts_reach_the_audit(tmp_path, net, reduction, smoothing):
    with auditor.capture(
        net, tmp_path / "g.safetensors", reduction=reduction, label_smoothing=smoothing
    ):
        F.cross_entropy(
            net(pictures(2)), torch.tensor([1, 4]), reduction=reduction, label_smoothing=smoothing
        ).backward()
    net.zero_grad()
    audit = scan(net, tmp_path / "g.safetensors", attacks=["labels"])
    facts = {fact.what: (fact.value, fact.origin) for fact in audit.assumptions}
    assert facts["reduction"] == (reduction, "metadata")
    assert facts["label smoothing"] == (str(smoothing), "metadata")
    assert facts["batch size"] == ("2", "metadata")
    assert facts["mode"] == ("eval", "metadata")
    assert codes(audit)[:1] in (["GA101"], ["GA102"])
