"""What a new user meets: each gets a word that says what is the matter, and attacks still run."""

import copy

import numpy as np
import pytest
import torch
from problems import client
from runs import CLASSES, LABEL, gradaudit, pictures, small_net
from torch import nn
from torch.nn import functional as F

from auditor import InputError, scan
from auditor.defences.loss_scale import loss_scale, without_loss_scale
from auditor.inputs.precision import dump_spacing
from auditor.records import Truth
from auditor.report.audit_json import from_json

ONE = {"batch_size": 1, "mode": "eval"}


def gradient(net, inputs=None, labels=(LABEL,)):
    net.zero_grad()
    inputs = pictures(len(labels)) if inputs is None else inputs
    F.cross_entropy(net(inputs), torch.tensor(labels)).backward()
    return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}


def update(net, labels=(LABEL,), lr=0.1, steps=3):
    after = copy.deepcopy(net)
    sgd = torch.optim.SGD(after.parameters(), lr)
    for _ in range(steps):
        sgd.zero_grad()
        F.cross_entropy(after(pictures(len(labels))), torch.tensor(labels)).backward()
        sgd.step()
    before = net.state_dict()
    return {name: value - before[name] for name, value in after.state_dict().items()}


def codes(audit):
    return {caveat.code for caveat in audit.caveats}


def outcome(audit, name):
    return next(attack for attack in audit.attacks if attack.name == name)


def shown(audit):
    return {finding.code for finding in audit.findings}


# --------------------------------------------------------------------------- updates


def test_an_update_that_says_nothing_is_estimated_on_the_command_line(tmp_path):
    net = small_net()
    torch.save(net, tmp_path / "m.pt")
    torch.save(update(net), tmp_path / "u.pt")
    run = gradaudit("scan", "m.pt", "u.pt", "--kind", "update", "--batch-size", 1, cwd=tmp_path)
    assert run.code == 0, run.err
    audit = from_json((tmp_path / "gradaudit-report" / "audit.json").read_text())
    [found] = [finding for finding in audit.findings if finding.code == "GA201"]
    assert found.certainty == "verified"
    assert any("as estimated from the dump" in premise for premise in found.premises)
    told = {a.what: (a.value, a.origin) for a in audit.assumptions}
    assert told["local steps"] == ("3 (estimated)", "deduced")
    assert told["learning rate"][0].startswith("0.1")


def normed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sigmoid(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(72, CLASSES)).train()


MISFITS = {
    "another shape": ({"1.running_mean": torch.zeros(5)}, "5 instead of 2"),
    "not finite": ({"1.running_var": torch.full((2,), torch.nan)}, "not finite"),
    "of another network": ({"7.running_mean": torch.zeros(2)}, "not in the model"),
}


@pytest.mark.parametrize(("other", "words"), MISFITS.values(), ids=MISFITS)
def test_buffers_that_do_not_fit_are_set_aside(other, words):
    net = normed()
    sent = {**update(net, labels=(0, 3)), **other}
    audit = scan(net, sent, kind="update", lr=0.1, local_steps=3, batch_size=2, attacks=["labels"])
    [caveat] = [c for c in audit.caveats if c.code == "GA318"]
    assert words in caveat.message
    assert not caveat.voids
    assert shown(audit) & {"GA101", "GA102"}


def test_buffers_in_weights_after_training_that_do_not_fit(tmp_path):
    net = normed()
    before = net.state_dict()
    after = {n: before[n] + change for n, change in update(net, labels=(0, 3)).items()}
    torch.save(net, tmp_path / "m.pt")
    torch.save({**after, "1.running_mean": torch.zeros(5)}, tmp_path / "after.pt")
    run = gradaudit(
        "scan", "m.pt", "--after", "after.pt", "--batch-size", 2, "--attacks", "labels",
        "--input-shape", "1x8x8", cwd=tmp_path,
    )  # fmt: skip
    assert run.code == 0, run.err
    audit = from_json((tmp_path / "gradaudit-report" / "audit.json").read_text())
    assert "GA318" in codes(audit)


def test_entries_that_are_no_buffers_still_are_of_another_model():
    net = normed()
    with pytest.raises(InputError, match=r"7\.weight"):
        scan(net, {**update(net), "7.weight": torch.zeros(2)}, kind="update", batch_size=1)


# --------------------------------------------------------------------------- batch size, pictures


def test_more_samples_than_were_said():
    net = small_net()
    audit = scan(net, gradient(net, labels=(0, 2, 3)), attacks=["labels"], **ONE)
    assert {"GA308", "GA316"} <= codes(audit)
    assert audit.verdict.status == "inconclusive"


def test_fewer_samples_than_were_said():
    net = small_net()
    dump = gradient(net)
    audit = scan(net, dump, batch_size=3, mode="eval", attacks=["labels"])
    [caveat] = [c for c in audit.caveats if c.code == "GA321"]
    assert "said to hold 3" in caveat.message
    assert not caveat.voids
    assert "GA321" not in codes(scan(net, dump, attacks=["labels"], **ONE))
    three = gradient(net, labels=(0, 2, 3))
    assert "GA321" not in codes(scan(net, three, batch_size=3, mode="eval", attacks=["labels"]))


@pytest.mark.parametrize("labels", [(0, 1, 3), (2,)])
def test_auxiliary_pictures_of_few_classes(tmp_path, labels):
    net = small_net()
    np.savez(tmp_path / "aux.npz", images=pictures(len(labels)).numpy(), labels=np.array(labels))
    dump = gradient(net, labels=(0, 0, 3))
    given = {"auxiliary": tmp_path / "aux.npz", "mode": "eval"}
    audit = scan(net, dump, batch_size=3, attacks=["labels"], **given)
    [caveat] = [c for c in audit.caveats if c.code == "GA319"]
    assert f"show {len(labels)} of the model's {CLASSES} classes" in caveat.message
    assert outcome(audit, "labels.head").outcome == "leak"


# --------------------------------------------------------------------------- dropout


def dropping():
    net = small_net()
    return nn.Sequential(*net[:3], nn.Dropout(0.3), net[3]).train()


@pytest.mark.parametrize(
    ("mode", "words"), [(None, "nobody said"), ("train", "in training mode"), ("eval", None)]
)
def test_dropout(mode, words):
    net = dropping()
    audit = scan(net, gradient(net), batch_size=1, mode=mode, attacks=["labels"])
    said = [c.message for c in audit.caveats if c.code == "GA303"]
    assert len(said) == (words is not None)
    assert all(words in message for message in said)
    assert shown(audit) == {"GA101"}


def behind_dropout(*layers):
    """Audit of one sample in training mode; the mask is drawn as the client's is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), *(make() for make in layers)).train()
        picture = torch.rand(1, 1, 8, 8)
        loss = F.cross_entropy(net(picture), torch.tensor([2]))
        parts = torch.autograd.grad(loss, list(net.parameters()))
    sent = dict(zip((name for name, _ in net.named_parameters()), parts, strict=True))
    told = {"batch_size": 1, "mode": "train", "input_shape": (1, 8, 8), "reduction": "mean"}
    read = ["labels", "images.layers", "images.first_layer"]
    return scan(net, sent, **told, truth=Truth(picture, torch.tensor([2])), attacks=read)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh])
def test_a_first_linear_layer_shows_its_input_whatever_is_dropped_above(activation):
    audit = behind_dropout(
        lambda: nn.Linear(64, 40), activation, lambda: nn.Dropout(0.5), lambda: nn.Linear(40, 5)
    )
    [finding] = [f for f in audit.findings if f.code == "GA204"]
    assert (finding.certainty, finding.attack) == ("verified", "images.first_layer")
    assert finding.severity.score > 9
    near = next(m.value for m in finding.measures if "PSNR" in m.name and "measured" in m.name)
    assert near > 100


def test_a_picture_that_was_dropped_from_is_never_certain():
    """The mask is in what is read: the gradient without any equals the dump."""
    audit = behind_dropout(
        lambda: nn.Dropout(0.3), lambda: nn.Linear(64, 40), nn.Tanh, lambda: nn.Linear(40, 5)
    )
    assert not {"GA201", "GA204"} & shown(audit)
    reasons = {attack.name: attack.reason for attack in audit.attacks}
    assert "mask" in reasons["images.layers"]


# --------------------------------------------------------------------------- mixed precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_some_tensors_in_sixteen_bits(dtype):
    net = small_net()
    sent = {n: g.to(dtype) if n.endswith("weight") else g for n, g in gradient(net).items()}
    audit = scan(net, sent, **ONE)
    assert {"GA101", "GA201"} <= shown(audit)
    assert not codes(audit) & {"GA301", "GA316"}


def test_the_spacing_of_a_dump_is_that_of_its_coarsest_tensor():
    fine = torch.randn(500, generator=torch.Generator().manual_seed(0))
    eps = {kind: torch.finfo(kind).eps for kind in (torch.float16, torch.bfloat16, torch.float32)}
    assert dump_spacing([fine, fine]) == eps[torch.float32]
    assert dump_spacing([fine, fine.half()]) == eps[torch.float16]
    assert dump_spacing([fine, fine.bfloat16().float()]) == eps[torch.bfloat16]
    # As an optimizer sees half-precision gradients once the loss scale is out: below half's range.
    assert dump_spacing([fine / 2**30, fine.half().float() / 2**30]) == eps[torch.float16]
    # One of a few sizes says nothing: it may be made of them.
    # What sums to zero leaves errors of single precision, on a grid of their own.
    assert dump_spacing([fine, fine.half().float() / 2**30]) == eps[torch.float32]
    assert dump_spacing([fine, torch.tensor([1.0, -0.5, -0.5])]) == eps[torch.float32]
    assert dump_spacing([fine, fine.sign()]) == eps[torch.float32]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("power", [10, 16])
def test_a_loss_scale_is_taken_out(count, power):
    had = client("relu", count, 10)
    plain = had.gradients()
    scaled = {n: g * 2.0**power for n, g in plain.items()}
    problem = had.problem(scaled)
    found, scale = without_loss_scale(problem)
    if count == 1 or power == 16:
        assert scale == 2.0**power
        assert all(torch.allclose(found.gradient[n].float(), g) for n, g in plain.items())
    assert scale is not None
    assert not found.knowledge.reduction_declared
    note = next(a for a in found.knowledge.assumptions if a.what == "loss scale")
    assert note.origin == "deduced"


@pytest.mark.parametrize(
    ("factor", "told"),
    [
        (1.0, {}),
        (40.0, {}),  # a sum over steps or samples
        (65536.0, {"reduction": "sum"}),
        (70000.0, {}),  # no power of two
    ],
    ids=str,
)
def test_what_is_no_loss_scale(factor, told):
    had = client("relu", 1, 10)
    problem = had.problem({n: g * factor for n, g in had.gradients().items()}, **told)
    assert loss_scale(problem) is None
    assert without_loss_scale(problem) == (problem, None)


@pytest.mark.parametrize("count", [1, 2])
def test_a_scaled_dump_is_attacked(count):
    net = small_net()
    sent = gradient(net, labels=(3, 1)[:count])
    audit = scan(net, {n: 65536 * g for n, g in sent.items()}, batch_size=count, mode="eval")
    assert "GA322" in codes(audit)
    assert {"GA101", "GA201"} <= shown(audit)
    assert "GA306" not in codes(audit)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_overflow_is_named(value):
    net = small_net()
    sent = gradient(net)
    sent["1.weight"][0, 0] = value
    with pytest.raises(InputError, match="overflow"):
        scan(net, sent, **ONE)


# --------------------------------------------------------------------------- what depends on data

BRANCHES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.bright, self.dark, self.head = nn.Linear(64, 12), nn.Linear(64, 12), nn.Linear(12, 5)

    def forward(self, x):
        x = x.flatten(1)
        scale = x.std().item() if self.by_value else 1.0
        layer = self.bright if x.mean() > 0.5 else self.dark
        return self.head(torch.sigmoid(scale * layer(x)))

def branch():
    torch.manual_seed(0)
    net = Net()
    net.by_value = False
    return net

def item():
    net = branch()
    net.by_value = True
    return net
"""


@pytest.fixture
def branches(tmp_path):
    (tmp_path / "net.py").write_text(BRANCHES)
    space = {"__name__": "net"}
    exec(compile(BRANCHES, "net.py", "exec"), space)
    return tmp_path, space


@pytest.mark.parametrize("name", ["branch", "item"])
def test_a_forward_pass_that_depends_on_values(branches, name):
    folder, space = branches
    with torch.random.fork_rng(devices=[]):
        net = space[name]().eval()
    torch.save(net.state_dict(), folder / "weights.pt")
    torch.save(gradient(net), folder / "g.pt")
    run = gradaudit(
        "scan", "weights.pt", "g.pt", "--arch", f"net.py:{name}", "--batch-size", 1,
        "--input-shape", "1x8x8", "--preset", "fast", cwd=folder,
    )  # fmt: skip
    assert run.code == 0, run.err
    audit = from_json((folder / "gradaudit-report" / "audit.json").read_text())
    assert "GA101" in shown(audit)
    assert shown(audit) & {"GA201", "GA202"}
    assert not [attack for attack in audit.attacks if "internal" in attack.reason]


def test_a_whole_model_of_ones_own_class_says_how_to_save_it(branches):
    folder, space = branches
    net = space["branch"]()
    import sys
    import types

    module = types.ModuleType("net")
    module.Net = space["Net"]
    sys.modules["net"] = module
    try:
        torch.save(net, folder / "m.pt")
    finally:
        del sys.modules["net"]
    torch.save(gradient(net), folder / "g.pt")
    run = gradaudit("scan", "m.pt", "g.pt", cwd=folder)
    assert run.code == 3
    assert "--arch" in run.err
