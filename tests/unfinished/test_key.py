"""The key of an audit: the same for the same audit, another for any other."""

from dataclasses import replace

import pytest
import torch
from problems import CPU, case_of, lenet_client, options_of
from torch import nn

from auditor.options import make_options
from auditor.records import Auxiliary, LocalTraining, Truth
from auditor.unfinished import key_of

CASE = case_of(lenet_client(), truth=True)


def key(case=CASE, options=None, gate="high"):
    known = (case.model, case.dump, case.knowledge, case.truth, case.auxiliary)
    return key_of(*known, options or options_of(), gate)


def test_it_is_the_same_for_the_same_audit():
    assert key() == key(case_of(lenet_client(), truth=True), options_of())
    assert len(key()) == 64


def test_the_command_line_and_where_evidence_goes_are_not_part_of_it():
    assert key(options=replace(options_of(), command=("-q",), evidence="embed")) == key()


@pytest.mark.parametrize(
    "options",
    [
        options_of(seed=1),
        options_of(budget=7.0),
        options_of(preset="deep"),
        options_of(attacks=["labels"]),
        replace(options_of(), device=torch.device("meta")),
        replace(options_of(), what_if=True),
        replace(options_of(), named=True),
        replace(options_of(), attacks=make_options(preset="fast", device="cpu").attacks),
    ],
)
def test_every_choice_counts(options):
    assert key(options=options) != key()


def near(module):
    """The same module with one weight next to what it was."""
    with torch.no_grad():
        weight = next(module.parameters())
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    return module


def of_case(**changes):
    return replace(CASE, **changes)


PIXEL = torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize(
    "case",
    [
        of_case(model=replace(CASE.model, module=near(lenet_client().module))),
        of_case(model=replace(CASE.model, file=replace(CASE.model.file, sha256="0"))),
        of_case(dump=replace(CASE.dump, precision=1e-3)),
        of_case(dump=replace(CASE.dump, kind="update")),
        of_case(dump=replace(CASE.dump, tensors={**CASE.dump.tensors, "more": PIXEL})),
        of_case(dump=replace(CASE.dump, buffers={"mean": PIXEL})),
        of_case(knowledge=replace(CASE.knowledge, batch_size=2)),
        of_case(knowledge=replace(CASE.knowledge, mean=(0.5,))),
        of_case(knowledge=replace(CASE.knowledge, local=LocalTraining(0.1, 1, 1))),
        of_case(truth=None),
        of_case(truth=Truth(CASE.truth.inputs, CASE.truth.labels + 1)),
        of_case(auxiliary=Auxiliary(PIXEL, torch.tensor([0]))),
    ],
)
def test_everything_that_is_known_counts(case):
    assert key(case) != key()


def test_the_gate_counts():
    assert key(gate=None) != key(gate="low")


def test_the_version_counts(monkeypatch):
    before = key()
    monkeypatch.setattr("auditor.unfinished.key.__version__", "9.9")
    assert key() != before


def network(forward):
    """Linear layers of the same weights with another forward pass."""
    kind = type("Net", (nn.Module,), {"__init__": initialise, "forward": forward})
    return kind()


def initialise(self):
    nn.Module.__init__(self)
    self.head = nn.Linear(4, 2)
    nn.init.ones_(self.head.weight)
    nn.init.ones_(self.head.bias)


def plain(self, x):
    return self.head(x)


def halved(self, x):
    return self.head(0.5 * x)


def doubled(self, x):
    return self.head(2.0 * x)


def squashed(self, x):
    return self.head(x.tanh())


def test_an_edited_forward_pass_counts_where_the_weights_are_the_same():
    keys = [
        key(of_case(model=replace(CASE.model, module=network(forward))))
        for forward in (plain, plain, halved, doubled, squashed)
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


def test_devices_are_told_apart():
    assert key(options=replace(options_of(), device=torch.device("cuda:0"))) != key(
        options=replace(options_of(), device=CPU)
    )
