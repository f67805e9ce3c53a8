"""What a client sends under each setting, beside clients that do it with plain torch."""

from dataclasses import replace

import pytest
import torch
from clients import LocalClient
from problems import Client, batch, lenet_client, net
from torch import nn

from auditor.local_training import pseudo_gradient
from auditor.records import Channel, LocalTraining, Truth
from auditor.what_if.defended import NotApplicable, send
from auditor.what_if.reference import reference_of
from auditor.what_if.settings import NO_DEFENCE, SETTINGS, Setting

F64 = torch.float64


def dice():
    return torch.Generator().manual_seed(5)


def sent_under(setting, client, problem=None):
    return send(problem or client.problem(), client.truth(), setting, dice())


def close(ours, theirs, rtol=1e-5):
    return all(
        torch.allclose(ours[name], theirs[name].to(ours[name]), rtol=rtol, atol=1e-7)
        for name in ours
    )


def backward(client, truth):
    return replace(client, inputs=truth.inputs, labels=truth.labels).gradients()


def test_without_a_defence_it_is_what_backward_gives():
    client = lenet_client(2)
    sent = sent_under(NO_DEFENCE, client)
    assert close(sent.problem.gradient, client.gradients())
    assert sent.cosine == pytest.approx(1.0)


def test_nothing_of_the_audited_dump_is_left():
    client = lenet_client(2)
    noisy = {name: part + 1 for name, part in client.gradients().items()}
    audited = replace(client.problem(noisy), channel=Channel(sigma=1.0), precision=1e-3)
    sent = sent_under(NO_DEFENCE, client, audited)
    assert close(sent.problem.gradient, client.gradients())
    assert sent.problem.channel.is_clear
    assert sent.problem.precision == torch.finfo(torch.float32).eps


def test_a_larger_batch_holds_the_client_and_others():
    client = lenet_client(2)
    sent = sent_under(Setting("larger batch", 3.0, ""), client)
    assert len(sent.truth.labels) == sent.problem.knowledge.batch_size == 6
    assert torch.equal(sent.truth.inputs[:2], client.inputs)
    assert close(sent.problem.gradient, backward(client, sent.truth))
    assert sent.cosine is None


def test_the_sum_over_clients_is_the_mean_of_their_gradients():
    client = lenet_client(2)
    sent = sent_under(Setting("secure aggregation", 3.0, ""), client)
    parts = zip(sent.truth.inputs.split(2), sent.truth.labels.split(2), strict=True)
    each = [backward(client, Truth(*part)) for part in parts]
    mean = {name: sum(one[name] for one in each) / 3 for name in each[0]}
    assert close(sent.problem.gradient, mean)


@pytest.mark.parametrize("times", [1, 4])
def test_local_steps_are_those_of_sgd(times):
    module = net("tanh")
    inputs, labels = batch(2, 10)
    client = Client(module, inputs, labels)
    sent = sent_under(Setting("local steps", float(times), ""), client)
    local = LocalClient(module.double(), inputs.double(), labels, lr=0.01, steps=times, dtype=F64)
    told = LocalTraining(0.01, times, None)
    before = {name: p.detach() for name, p in module.named_parameters()}
    assert close(sent.problem.gradient, pseudo_gradient(local.update(), before, told), rtol=1e-4)
    assert sent.problem.knowledge.local == told


def test_an_update_has_so_many_times_its_own_steps():
    client = LocalClient(net("tanh"), *batch(2, 10), lr=0.05, steps=2, batch=1)
    sent = send(
        client.problem(),
        Truth(client.inputs, client.labels),
        Setting("local steps", 3.0, ""),
        dice(),
    )
    assert sent.problem.knowledge.local == LocalTraining(0.05, 6, 1)


def test_dp_sgd_clips_each_sample():
    client = lenet_client(3)
    sent = sent_under(Setting("dp-sgd", 1e-9, ""), client)
    total = dict.fromkeys(client.gradients(), 0.0)
    for one in range(3):
        alone = replace(
            client, inputs=client.inputs[one : one + 1], labels=client.labels[one : one + 1]
        ).gradients()
        factor = min(1.0, 1.0 / float(torch.cat([g.flatten() for g in alone.values()]).norm()))
        total = {name: total[name] + factor * alone[name] / 3 for name in total}
    assert close(sent.problem.gradient, total, rtol=1e-4)
    assert sent.problem.channel.sigma == pytest.approx(1e-9 / 3)


@pytest.mark.parametrize(
    ("kind", "strength", "gone"),
    [
        ("withheld head bias", 1.0, {"fc.bias"}),
        ("frozen layer", 1.0, {"fc.weight", "fc.bias"}),
        ("frozen layer", 2.0, {"body.0.weight", "body.0.bias"}),
    ],
)
def test_what_is_withheld_is_missing(kind, strength, gone):
    client = lenet_client()
    sent = sent_under(Setting(kind, strength, ""), client)
    assert set(client.gradients()) - set(sent.problem.gradient) == gone


@pytest.mark.parametrize(
    ("setting", "channel"),
    [
        (Setting("noise", 1e-3, ""), Channel(sigma=1e-3)),
        (Setting("clipping", 0.1, ""), Channel(scaled=True)),
        (Setting("top-k", 0.9, ""), Channel(masked=True)),
        (Setting("sign", 1.0, ""), Channel(signs=True)),
        (Setting("fp16", 16.0, ""), Channel()),
    ],
)
def test_the_attacker_knows_the_defence(setting, channel):
    assert sent_under(setting, lenet_client()).problem.channel == channel


def test_every_setting_can_be_made_of_a_plain_step():
    client = lenet_client()
    for setting in SETTINGS:
        sent = sent_under(setting, client)
        assert all(bool(part.isfinite().all()) for part in sent.problem.gradient.values())
        assert sent.cosine is None or -1 <= sent.cosine <= 1


def test_noise_costs_the_more_the_more_there_is():
    client = lenet_client()
    cosines = [sent_under(Setting("noise", s, ""), client).cosine for s in (1e-4, 1e-2, 1.0)]
    assert cosines == sorted(cosines, reverse=True)
    assert cosines[2] < 0.9


# --------------------------------------------------------------------------- what cannot be made


@pytest.mark.parametrize(
    ("client", "setting", "why"),
    [
        (Client(net(bias=False), *batch(1, 10)), "withheld head bias", "holds no such gradient"),
        (lenet_client(30), "secure aggregation", "more than are attacked"),
    ],
)
def test_what_is_not_applicable_says_so(client, setting, why):
    with pytest.raises(NotApplicable, match=why):
        sent_under(Setting(setting, 10.0, ""), client)


@pytest.mark.parametrize("kind", ["dp-sgd", "secure aggregation"])
def test_batch_norm_in_training_mode_mixes_samples(kind):
    module = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4)
    )
    client = Client(module, *batch(3, 4), mode="train")
    with pytest.raises(NotApplicable, match=r"batch norm|normalises"):
        sent_under(Setting(kind, 2.0, ""), client)


def test_an_update_without_a_learning_rate_cannot_be_made_again():
    client = LocalClient(net("tanh"), *batch(2, 10), lr=0.05, steps=2)
    with pytest.raises(NotApplicable, match="learning rate"):
        send(client.problem(lr=None), Truth(client.inputs, client.labels), NO_DEFENCE, dice())


# --------------------------------------------------------------------------- whose step it is


def test_the_truth_comes_before_everything():
    client = lenet_client(2)
    found = reference_of(client.problem(), (), client.truth(), 0)
    assert found.truth is not None
    assert torch.equal(found.truth.inputs, client.inputs)
    assert "as the truth" in found.words


def test_without_anything_stand_ins_are_said_to_be_ones():
    client = lenet_client(2)
    found = reference_of(client.problem(), (), None, 0)
    assert len(found.truth.labels) == 2
    assert "in place of the client's" in found.words
    assert not torch.equal(found.truth.inputs, client.inputs)
    again = reference_of(client.problem(), (), None, 0)
    assert torch.equal(found.truth.inputs, again.truth.inputs)
    assert not torch.equal(
        reference_of(client.problem(), (), None, 1).truth.inputs, again.truth.inputs
    )
