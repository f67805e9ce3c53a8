"""Updates in files: their form, their buffers, and two files of weights in place of one update."""

import copy

import hostile
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from auditor.dumping import save_gradients
from auditor.errors import InputError, UsageError
from auditor.inputs import load_gradients, load_update
from auditor.inputs.precision import coarsest_spacing, update_spacing


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)
        ).eval()


def trained(net, steps=2, lr=0.1):
    client = copy.deepcopy(net).train()
    sgd = torch.optim.SGD(client.parameters(), lr=lr)
    inputs = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(steps):
        sgd.zero_grad()
        F.cross_entropy(client(inputs), torch.tensor([0, 1, 1])).backward()
        sgd.step()
    return client.eval()


def update_of(net):
    after, before = trained(net).state_dict(), net.state_dict()
    return {name: after[name] - before[name] for name in after}


def saved(folder, value, name="u.pt"):
    torch.save(value, folder / name)
    return folder / name


FORMS = {
    "state_dict": lambda u: u,
    "under a key": lambda u: {"delta": u},
    "prefix": lambda u: {f"module.{n}": t for n, t in u.items()},
    "list in the order of the state_dict": lambda u: list(u.values()),
    "parameters only": lambda u: {n: t for n, t in u.items() if not n.startswith("1.") or "s" in n},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_update(tmp_path, form):
    net = network()
    update = update_of(net)
    dump = load_gradients(saved(tmp_path, FORMS[form](update)), net, kind="update")
    assert dump.kind == "update"
    wanted = {name: update[name] for name, _ in net.named_parameters()}
    # before batch norm a bias does not matter; float32 may leave a change of nothing at all
    wanted = {name: change for name, change in wanted.items() if bool(change.any())}
    assert set(dump.tensors) | set(dump.missing) >= set(wanted)
    assert all(torch.equal(dump.tensors[name], wanted[name]) for name in dump.tensors)


def test_buffers_are_kept_apart(tmp_path):
    net = network()
    dump = load_gradients(saved(tmp_path, update_of(net)), net, kind="update")
    after = trained(net).state_dict()
    assert set(dump.buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert not set(dump.buffers) & set(dump.tensors)
    assert dump.buffers["1.num_batches_tracked"] == 2
    assert torch.allclose(dump.buffers["1.running_mean"], after["1.running_mean"])


@pytest.mark.parametrize(
    "bad", [torch.zeros(5), torch.tensor([0.0, float("nan"), 0.0])], ids=["shape", "not finite"]
)
def test_buffers_that_do_not_fit_are_set_aside(tmp_path, bad):
    net = network()
    update = update_of(net)
    dump = load_gradients(saved(tmp_path, update | {"1.running_mean": bad}), net, kind="update")
    assert set(dump.buffers) == {"1.running_var", "1.num_batches_tracked"}
    [left_out] = dump.set_aside
    assert left_out.startswith("'1.running_mean' (")
    assert set(dump.tensors) == set(
        load_gradients(saved(tmp_path, update), net, kind="update").tensors
    )


def test_a_gradient_with_buffers_is_asked_about(tmp_path):
    net = network()
    with pytest.raises(InputError, match="--kind update"):
        load_gradients(saved(tmp_path, update_of(net)), net)


def test_an_update_under_a_gradients_key(tmp_path):
    net = network()
    with pytest.raises(InputError, match="which people use for gradients"):
        load_gradients(saved(tmp_path, {"grads": update_of(net)}), net, kind="update")


def test_weights_are_no_update(tmp_path):
    net = network()
    with pytest.raises(InputError, match="--after"):
        load_gradients(saved(tmp_path, trained(net, lr=0.01).state_dict()), net, kind="update")


def test_what_our_own_dump_says_of_itself(tmp_path):
    net = network()
    save_gradients(
        net, update_of(net), tmp_path / "u.safetensors", kind="update", batch_size=3, lr=0.1,
        local_steps=2, local_batch=3, local_epochs=1, momentum=0.0, weight_decay=0.0,
    )  # fmt: skip
    dump = load_gradients(tmp_path / "u.safetensors", net)
    assert dump.kind == "update"
    said = dump.metadata
    assert (said.lr, said.local_steps, said.local_batch, said.momentum) == (0.1, 2, 3, 0.0)
    assert load_gradients(tmp_path / "u.safetensors", net, kind="update").kind == "update"


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.0), ("lr", float("nan")), ("local_steps", 0), ("momentum", 1.0), ("kind", "delta")],
)
def test_metadata_that_makes_no_sense(tmp_path, field, value):
    net = network()
    with pytest.raises(UsageError, match=f"'{field}'"):
        save_gradients(net, update_of(net), tmp_path / "u", **{"kind": "update"} | {field: value})


# --------------------------------------------------------------------------- before and after


@pytest.mark.parametrize("whole", [False, True], ids=["state_dict", "module"])
@pytest.mark.parametrize("with_before", [False, True])
def test_two_files_of_weights(tmp_path, whole, with_before):
    net = network()
    kept = (lambda m: m) if whole else (lambda m: m.state_dict())
    before = saved(tmp_path, kept(net), "before.pt") if with_before else None
    dump = load_update(before, saved(tmp_path, kept(trained(net)), "after.pt"), net)
    assert dump.kind == "update"
    assert dump.file.name == "after.pt"
    update = update_of(net)
    for name, change in dump.tensors.items():
        assert torch.equal(change.float(), update[name])
    assert dump.buffers["1.num_batches_tracked"] == 2


def test_weights_before_that_are_not_the_models(tmp_path):
    net = network()
    before = saved(tmp_path, trained(net, 1).state_dict(), "before.pt")
    after = saved(tmp_path, trained(net).state_dict(), "after.pt")
    with pytest.raises(InputError, match=r"weights before training.*before\.pt"):
        load_update(before, after, net)


def test_weights_of_another_network(tmp_path):
    after = saved(tmp_path, hostile.lenet().state_dict(), "after.pt")
    with pytest.raises(InputError, match="weights of this model"):
        load_update(None, after, network())


def test_weights_that_did_not_change(tmp_path):
    net = network()
    with pytest.raises(InputError, match="a dump of zeros"):
        load_update(None, saved(tmp_path, net.state_dict(), "after.pt"), net)


# --------------------------------------------------------------------------- precision


def test_subtracted_weights_have_the_errors_of_their_size():
    """eps |w| beside a change of |d|: the coarsest digits of a float32 difference."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(1000, generator=generator) + 1
    for size in (1e-2, 1e-4):
        after = weights + size * torch.randn(1000, generator=generator)
        change = after - weights
        spacing = update_spacing({"w": change}, {"w": weights})
        wanted = float(weights.norm() / change.norm()) * torch.finfo(torch.float32).eps
        assert spacing == pytest.approx(wanted, rel=1e-3)
        assert coarsest_spacing([change]) < spacing / 10


def test_updates_that_were_never_added_to_weights_keep_their_digits():
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(1000, generator=generator) + 1
    change = 1e-3 * torch.randn(1000, generator=generator)
    assert update_spacing({"w": change}, {"w": weights}) == torch.finfo(torch.float32).eps


# --------------------------------------------------------------------------- not said


def test_an_update_that_nobody_called_one_is_refused(tmp_path):
    """Read as a gradient it would prove that absent classes are there."""
    net = hostile.lenet()
    update = {n: -0.01 * g for n, g in hostile.gradients(net).items()}
    named = dict(net.named_parameters())
    update = {n: (named[n].detach() + change) - named[n].detach() for n, change in update.items()}
    path = saved(tmp_path, update)
    with pytest.raises(InputError, match="--kind update"):
        load_gradients(path, net)
    assert load_gradients(path, net, kind="update").kind == "update"
    assert load_gradients(path, net, kind="gradient").kind == "gradient"


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_gradients_are_not_taken_for_updates(tmp_path, scale, dtype):
    net = hostile.lenet()
    sent = {n: (scale * g).to(dtype) for n, g in hostile.gradients(net).items()}
    assert load_gradients(saved(tmp_path, sent), net).kind == "gradient"
