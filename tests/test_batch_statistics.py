"""Statistics of the batch in buffers that came back: what they are, and what they show."""

import copy
from dataclasses import replace

import pytest
import torch
from clients import LocalClient
from problems import FILE, WATCH, Says, batch, options_of
from torch import nn

from auditor.attacks import ImagePriors, LevenbergMarquardt, Search
from auditor.attacks.labels import label_claim
from auditor.attacks.priors import Prior, _Run
from auditor.attacks.residuals import matching_residual
from auditor.attacks.second_order import _Restarts
from auditor.audit import Case, run_audit
from auditor.batch_statistics import distances, places_of, statistics_in, statistics_sent, tapped
from auditor.evidence import examine, has_sent_statistics, is_close, is_equal, is_verified
from auditor.facts import settle
from auditor.metrics import psnr
from auditor.problem import gradient_of, residuals_of, statistics_apart, tolerance_of
from auditor.reasons import why_unfinished
from auditor.records import LoadedModel, Recovery
from auditor.solve import Status
from auditor.trials.negative import negative_control


def seeded(make, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def convolutional(bias=True):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=bias), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, bias=bias), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Flatten(), nn.Linear(48, 4),
    )  # fmt: skip


def dense(bias=True):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 20, bias=bias), nn.BatchNorm1d(20), nn.ReLU(),
        nn.Linear(20, 4),
    )  # fmt: skip


def smooth_net():
    """Small enough to be inverted within seconds; its first convolution is padded."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, 2, 2, bias=False), nn.BatchNorm2d(6), nn.Sigmoid(),
        nn.Conv2d(6, 6, 5, 1, 2, bias=False), nn.BatchNorm2d(6), nn.Sigmoid(),
        nn.Flatten(), nn.Linear(96, 4),
    )  # fmt: skip


class Shared(nn.Module):
    """Calls one batch norm twice."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.other, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        again = self.norm(self.b(self.norm(self.a(x)).relu()))
        return self.head(self.other(again).mean((2, 3)))


def norms_of(module):
    return {
        name: norm
        for name, norm in module.named_modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm)
    }


def sender(make=convolutional, count=5, *, shape=(3, 8, 8), **settings):
    """A client whose update carries its buffers; in training mode unless said."""
    settings = {"train": True, "lr": 0.1, **settings}
    return LocalClient(seeded(make).eval(), *batch(count, 4, seed=2, shape=shape), **settings)


def given_to_norms(had):
    """The definition: what a hook sees in the client's own forward pass."""
    client, seen = copy.deepcopy(had.module).train(), {}
    for name, norm in norms_of(client).items():
        norm.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].detach()}))
    client(had.inputs)
    return seen


# --------------------------------------------------------------------------- what they are


@pytest.mark.parametrize("momentum", [0.1, 0.9, 1.0, None])
@pytest.mark.parametrize("make", [convolutional, dense])
def test_buffers_hold_the_statistics_of_the_batch(make, momentum):
    model = seeded(make).double()
    for norm in norms_of(model).values():
        norm.momentum = momentum
        norm.num_batches_tracked.fill_(3)
    inputs = batch(6, 4, shape=(3, 8, 8))[0].double()
    had = LocalClient(model, inputs, torch.zeros(6, dtype=torch.long))
    client = copy.deepcopy(model).train()
    client(inputs)
    found = statistics_sent(model, dict(client.named_buffers()), places=places_of(model, inputs))
    seen = given_to_norms(had)
    assert found.keys() == seen.keys()
    for name, given in seen.items():
        axes = [axis for axis in range(given.ndim) if axis != 1]
        torch.testing.assert_close(found[name].mean, given.mean(axes))
        torch.testing.assert_close(found[name].variance, given.var(axes, unbiased=False))


@pytest.mark.parametrize("momentum", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("sent_as", [torch.float32, torch.float16])
def test_the_error_of_rounding_is_known(momentum, sent_as):
    had = sender()
    for norm in norms_of(had.module).values():
        norm.momentum = momentum
    update = {n: p.to(sent_as) if p.is_floating_point() else p for n, p in had.update().items()}
    problem = problem_of(had, update)
    for name, given in given_to_norms(had).items():
        sent, true = problem.statistics[name], given.double()
        size = 4e-6 * (true.mean((0, 2, 3)).abs() + true.std((0, 2, 3)))  # the client's own sums
        mean_off = (sent.mean - true.mean((0, 2, 3))).abs()
        variance_off = (sent.variance - true.var((0, 2, 3), unbiased=False)).abs()
        assert bool((mean_off <= sent.mean_error + size).all())
        assert bool((variance_off <= sent.variance_error + 2 * size).all())
        assert float(sent.mean_error.max()) < (0.01 if sent_as == torch.float16 else 1e-4)


def problem_of(had, update=None, **told):
    from auditor.inputs.gradients import match_gradients
    from auditor.problem import make_problem

    update = had.update() if update is None else update
    dump = match_gradients(update, had.module, file=FILE, form="test", kind="update")
    known = settle(dump, had.module, had.flags(**told))
    return make_problem(had.module, dump, known, device=torch.device("cpu"))


def test_what_did_not_come_or_says_nothing_is_left_out():
    had = sender(count=2)
    places = places_of(had.module, had.inputs)
    assert places == {"1": 2 * 36, "4": 2 * 4}
    assert statistics_sent(had.module, {}, places=places) == {}
    after = dict(had.trained().named_buffers())
    assert set(statistics_sent(had.module, after, places=places)) == {"1", "4"}
    assert statistics_sent(had.module, after, places={}) == {}
    frozen = {**after, "1.running_mean": torch.zeros(8), "1.running_var": torch.ones(8)}
    assert set(statistics_sent(had.module, frozen, places=places)) == {"4"}
    misfit = {**after, "4.running_mean": torch.zeros(3)}
    assert set(statistics_sent(had.module, misfit, places=places)) == {"1"}
    had.module[1].momentum = 0.0
    assert set(statistics_sent(had.module, after, places=places)) == {"4"}


def test_a_batch_norm_that_is_called_twice_has_no_statistics_of_its_own():
    assert set(places_of(seeded(Shared), torch.zeros(2, 3, 8, 8))) == {"other"}


# --------------------------------------------------------------------------- when they count


def test_statistics_reach_the_problem():
    had = sender()
    problem = had.problem()
    assert set(problem.statistics) == {"1", "4"}
    assert problem.statistics_unused == ""
    assert not problem.module[1]._forward_pre_hooks
    evaluating = sender(train=False).problem()
    assert evaluating.statistics == {}
    assert evaluating.statistics_unused == ""


def test_a_client_that_sends_no_buffers_has_none():
    had = sender()
    update = {n: p for n, p in had.update().items() if n in dict(had.module.named_parameters())}
    problem = problem_of(had, update)
    assert problem.statistics == {}
    assert problem.statistics_unused == ""


def without_counters(update):
    return {name: part for name, part in update.items() if not name.endswith("tracked")}


def test_steps_that_mix_batches_are_not_used():
    two = sender(steps=2)
    for problem in (two.problem(), two.problem(steps=1)):  # the counters say so, whatever was told
        assert problem.statistics == {}
        assert "count 2 steps" in problem.statistics_unused
    silent = problem_of(two, without_counters(two.update()))
    assert "took 2 steps" in silent.statistics_unused
    one = sender()
    assert problem_of(one, without_counters(one.update())).statistics
    untold = problem_of(one, without_counters(one.update()), steps=None)
    assert "number of local steps" in untold.statistics_unused


def test_a_batch_of_unknown_size_is_said():
    had = sender()
    problem = had.problem(samples=None)
    assert problem.statistics == {}
    assert problem.statistics_unused == "the batch size is unknown"


def test_variances_that_no_batch_has_are_not_used():
    """A momentum that is not the client's may show itself so."""
    had = sender()
    dump = had.dump()
    for norm in norms_of(had.module).values():
        norm.momentum = 0.01  # ten times the change: below zero
    sent = statistics_in(dump, had.module, settle(dump, had.module, had.flags()))
    assert sent.layers == {}
    assert "variances" in sent.unused
    assert "momentum" in sent.unused


def test_numbers_that_are_none_are_not_used():
    had = sender()
    dump = had.dump()
    broken = {**dump.buffers, "1.running_mean": torch.full((8,), torch.nan)}
    known = settle(dump, had.module, had.flags())
    assert "no numbers" in statistics_in(replace(dump, buffers=broken), had.module, known).unused


# --------------------------------------------------------------------------- beside a candidate


@pytest.mark.parametrize("make", [convolutional, dense])
def test_the_batch_itself_is_no_distance_apart(make):
    had = sender(make)
    problem = had.problem()
    rows = statistics_apart(problem, had.inputs.double())
    assert rows.keys() == problem.statistics.keys()
    assert max(distances(rows).values()) <= tolerance_of(problem)
    other = distances(statistics_apart(problem, 1 - had.inputs.double()))
    assert max(other.values()) > 0.1


def test_distances_in_closed_form():
    """Of x + c the first convolution's means are off by c times its weights, of a x all are."""
    had = sender()
    problem, inputs = had.problem(), had.inputs.double()
    weights = had.module[0].weight.double().sum((1, 2, 3))
    deviation = problem.statistics["1"].variance.sqrt()
    rows = statistics_apart(problem, inputs + 0.3)["1"].detach()
    expected = torch.cat([0.3 * weights / deviation, torch.zeros(8)]) / 4
    torch.testing.assert_close(rows, expected.double(), atol=1e-4, rtol=1e-4)
    wide = statistics_apart(problem, 3 * inputs)["1"].detach()[8:]
    torch.testing.assert_close(wide, torch.full((8,), 2 / 4).double(), atol=1e-4, rtol=1e-4)


def test_its_derivative_by_finite_differences():
    had = sender(count=2)
    problem = had.problem()
    start = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def value(inputs):
        return torch.stack([p.square().sum() for p in statistics_apart(problem, inputs).values()])

    assert torch.autograd.gradcheck(value, start.requires_grad_(), eps=1e-6, atol=1e-5)
    flat = torch.zeros_like(start).detach().requires_grad_()  # nothing varies: a root of zero
    (slope,) = torch.autograd.grad(value(flat).sum(), flat)
    assert bool(slope.isfinite().all())


def test_hooks_are_gone_whatever_happens():
    module = seeded(convolutional)
    with pytest.raises(RuntimeError), tapped(module, ["1"]):
        module(torch.zeros(1, 9, 8, 8))
    assert not module[1]._forward_pre_hooks


# --------------------------------------------------------------------------- what they decide


def inverted(count=1):
    return sender(smooth_net, count, shape=(1, 8, 8))


def claim(problem, *pictures, labels):
    """Two restarts with these pictures, as the harness sees them."""
    rows = torch.stack([picture.double() for picture in pictures])
    recovery = Recovery(inputs=rows, input_labels=labels.expand(len(rows), -1))
    return examine(problem, recovery, attack="images.test", seconds=0.0)


def test_the_gradient_does_not_know_the_contrast_and_the_statistics_do():
    """Batch norm divides by the spread: exact but for the constant under the root."""
    had = inverted()
    problem, inputs = had.problem(), had.inputs.double()
    less = 0.6 * inputs
    found = residuals_of(problem, gradient_of(problem, less, had.labels))
    assert max(found.values()) <= tolerance_of(problem)
    sent = problem.statistics["1"]  # mean and spread are 0.6 of what they were
    off = torch.cat([0.4 * sent.mean / sent.variance.sqrt(), torch.full((6,), 0.4).double()])
    expected = float(off.square().mean().sqrt())
    assert distances(statistics_apart(problem, less))["1"] == pytest.approx(expected, rel=1e-3)


def test_a_claim_with_other_statistics_is_no_more_than_consistent():
    had = inverted()
    problem = had.problem()
    right = claim(problem, had.inputs, had.inputs, labels=had.labels)
    assert is_verified(problem, right)
    assert has_sent_statistics(right)
    wrong = claim(problem, 0.6 * had.inputs, 0.6 * had.inputs, labels=had.labels)
    assert not is_equal(problem, wrong)
    assert not is_verified(problem, wrong)
    assert is_close(problem, wrong)
    assert "statistics of the batch" in why_unfinished(problem, wrong)


def test_of_two_claims_the_one_with_the_statistics_is_told():
    had = inverted()
    problem = had.problem()
    drawn = torch.randn(had.inputs.shape, generator=torch.Generator().manual_seed(0))
    nearly = had.inputs + 1e-3 * drawn
    both = claim(problem, 0.6 * had.inputs, nearly, labels=had.labels)
    assert (
        both.worst_residuals[0] < both.worst_residuals[1]
    )  # by the gradient it would be the other
    assert both.best == 1
    assert is_equal(problem, both)
    assert both.agreeing == 1  # the other one is not this batch


def test_without_statistics_agreement_confirms_no_contrast():
    had = inverted()
    problem = replace(had.problem(), statistics={})
    found = claim(problem, had.inputs, had.inputs, labels=had.labels)
    assert found.contrast_open
    assert is_equal(problem, found)
    assert not is_verified(problem, found)
    assert "contrast" in why_unfinished(problem, found)


def test_in_evaluation_mode_the_contrast_is_told():
    had = replace(inverted(), train=False)
    problem = had.problem()
    found = claim(problem, had.inputs, had.inputs, labels=had.labels)
    assert not found.contrast_open
    assert is_verified(problem, found)


@pytest.mark.parametrize("seed", [0, 1])
def test_statistics_are_equations_that_fix_what_the_gradient_leaves_open(seed):
    had = inverted()
    problem = had.problem()
    attack = LevenbergMarquardt(search=Search(restarts=2, at_once=1), smoothness=())
    found = attack.run(problem, seed=seed, watch=WATCH)
    evidence = examine(problem, found, attack=attack.name, seconds=0.0)
    assert is_verified(problem, evidence)
    assert float(psnr(found.inputs[evidence.best].float(), had.inputs)) > 50
    blind = attack.run(replace(problem, statistics={}), seed=seed, watch=WATCH)
    assert max(float(psnr(row.float(), had.inputs)) for row in blind.inputs) < 35


def gone_on(problem, start):
    """What becomes of a restart that ended at `start` without the statistics."""
    labels = label_claim(problem).estimate
    residual = matching_residual(problem, labels, size=len(labels))
    bare = matching_residual(replace(problem, statistics={}), labels, size=len(labels))
    attack, found = LevenbergMarquardt(search=Search(restarts=2, at_once=1)), _Restarts()
    attack._restart(bare, start.double().reshape(1, -1), 20, found, WATCH)
    assert found.status == [Status.CONVERGED]
    attack._go_on(residual, 20, found, WATCH)
    assert len(found.rows) == len(found.courses) == len(found.status) == found.arrived == 1
    return residual.images(found.rows[0][None])[0].float()


def test_what_arrived_without_statistics_goes_on_to_where_they_hold():
    had = inverted()
    assert float(psnr(gone_on(had.problem(), 0.6 * had.inputs), had.inputs)) > 50


def test_where_statistics_cannot_hold_it_stays():
    had = inverted()
    wrong = {
        name: replace(one, mean=one.mean + 3 * one.variance.sqrt())
        for name, one in had.problem().statistics.items()
    }
    less = 0.6 * had.inputs
    assert torch.equal(gone_on(replace(had.problem(), statistics=wrong), less), less)


def test_a_momentum_that_is_not_the_clients_does_not_end_the_search():
    """The equations of wrong statistics cannot hold; the next restart goes without them."""
    had = inverted()
    dump = had.dump()
    for norm in norms_of(had.module).values():
        norm.momentum = 0.2
    had.module.eval()
    problem = problem_of(had, {**dump.tensors, **changes(had, dump)})
    assert problem.statistics
    attack = LevenbergMarquardt(search=Search(restarts=4, at_once=1), smoothness=())
    found = attack.run(problem, seed=0, watch=WATCH)
    evidence = examine(problem, found, attack=attack.name, seconds=0.0)
    assert evidence.worst_residuals[evidence.best] <= tolerance_of(problem)
    assert is_close(problem, evidence)
    assert not is_verified(problem, evidence)


def changes(had, dump):
    before = dict(had.module.named_buffers())
    return {name: after - before[name] for name, after in dump.buffers.items()}


# --------------------------------------------------------------------------- an audit


def audited(had, *attacks, **options):
    dump = had.dump()
    known = settle(dump, had.module, had.flags())
    case = Case(LoadedModel(had.module, FILE), dump, known)
    return run_audit(case, options_of(attacks=attacks, **options)).audit


def test_an_update_with_buffers_from_end_to_end():
    audit = audited(inverted(), "labels.head", "images.lm", budget=60)
    found = {finding.code: finding for finding in audit.findings}
    assert found["GA201"].certainty == "verified"
    assert found["GA206"].certainty == "proved"
    assert found["GA206"].severity.score == 3.0
    assert "12 channels, in 2 batch norms" in found["GA206"].summary
    assert "FedBN" in found["GA206"].remedy
    assert any("momentum" in premise for premise in found["GA206"].premises)
    assert audit.findings[0].code == "GA201"


def test_buffers_of_several_steps_are_a_caveat():
    audit = audited(replace(inverted(2), steps=2), "labels.head")
    assert "GA206" not in {finding.code for finding in audit.findings}
    (caveat,) = [each for each in audit.caveats if each.code == "GA324"]
    assert "count 2 steps" in caveat.message
    assert not caveat.voids


def test_an_open_contrast_is_a_caveat():
    had = inverted()
    sent = {n: p for n, p in had.update().items() if n in dict(had.module.named_parameters())}
    bare = replace(had.dump(), buffers={}, tensors=sent)
    known = settle(bare, had.module, had.flags())
    options = options_of(attacks=["labels.head", "images.lm"], budget=60)
    audit = run_audit(Case(LoadedModel(had.module, FILE), bare, known), options).audit
    assert "GA325" in {caveat.code for caveat in audit.caveats}
    assert "GA201" not in {finding.code for finding in audit.findings}


def test_controls_have_no_statistics_of_the_client():
    had = inverted()
    problem = had.problem()
    evidence = claim(problem, had.inputs, had.inputs, labels=had.labels)
    asked = []

    class Looks(Says):
        def run(self, problem, *, seed, watch):
            asked.append(problem.statistics)
            return super().run(problem, seed=seed, watch=watch)

    attack = Looks(evidence.recovery, name="images.test")
    negative_control(problem, evidence, attack, seed=0, watch=WATCH)
    assert asked
    assert not any(asked)


# --------------------------------------------------------------------------- under priors


def priors_run(problem, **settings):
    attack = ImagePriors(heats=1, heat_steps=3, steps=3, finals=1, group=0, **settings)
    return attack, attack.run(problem, seed=0, watch=WATCH)


def test_priors_count_statistics_in_their_choice():
    """At another contrast the direction is the same; what was sent along tells the two apart."""
    had = inverted()
    problem = had.problem()
    attack, found = priors_run(problem)
    run = _Run(attack, problem, found.input_labels[0], 0, WATCH)
    row = run.space.of(had.inputs.double().reshape(1, -1))
    less = run.space.of(0.6 * had.inputs.double().reshape(1, -1))
    squared = [
        v**2 for v in distances(statistics_apart(problem, 0.6 * had.inputs.double())).values()
    ]
    assert run._true_distance(row) < 1e-5
    assert run._true_distance(less) == pytest.approx(sum(squared) / len(squared), abs=1e-4)
    blind = _Run(attack, replace(problem, statistics={}), found.input_labels[0], 0, WATCH)
    assert blind._true_distance(less) < 1e-4
    value = run._objective(Prior(sent=2.0, total_variation=0.0))
    assert float(value(less[0]).detach()) == pytest.approx(
        2 * sum(squared) / len(squared), abs=1e-4
    )


def test_priors_say_what_statistics_rest_on():
    problem = inverted().problem()
    assert any("momentum" in said for said in priors_run(problem)[1].assumed)
    assert not any(
        "momentum" in said for said in priors_run(replace(problem, statistics={}))[1].assumed
    )


def test_running_statistics_are_a_prior_where_the_batchs_own_did_not_come():
    had = inverted()
    assert had.problem().running == {}
    sent = {n: p for n, p in had.update().items() if n in dict(had.module.named_parameters())}
    problem = problem_of(had, sent)
    assert problem.running.keys() == norms_of(had.module).keys()
    for name, norm in norms_of(had.module).items():
        assert torch.equal(problem.running[name].mean.float(), norm.running_mean)
        assert torch.equal(problem.running[name].variance.float(), norm.running_var)
    attack, found = priors_run(problem, priors=(Prior(running=2.0, total_variation=0.0),))
    assert any("batch norm" in said for said in found.assumed)
    run = _Run(attack, problem, found.input_labels[0], 0, WATCH)
    row = run.space.of(had.inputs.double().reshape(1, -1))[0]
    asked = replace(problem, statistics=problem.running)  # the same distances, as if sent
    squared = [v**2 for v in distances(statistics_apart(asked, had.inputs.double())).values()]
    expected = 2 * sum(squared) / len(squared)
    value = run._objective(attack.priors[0])(row)
    assert float(value.detach()) == pytest.approx(expected, rel=1e-3)
    assert expected > 0.1
    evaluating = replace(had, train=False).problem()
    assert evaluating.running == {}


def test_a_heavier_weight_is_tried_only_where_statistics_were_sent():
    problem = inverted().problem()
    offered = (Prior(), Prior(sent=10.0))
    for one, count in ((problem, 2), (replace(problem, statistics={}), 1)):
        attack, found = priors_run(one, priors=offered)
        assert len(_Run(attack, one, found.input_labels[0], 0, WATCH)._priors()) == count
