"""The row space of gradients: against its definition, and against the Beta distribution."""

import math

import pytest
import torch
from scipy.stats import beta
from token_clients import bert, causal_client, gpt2, llama, texts

from auditor.text.layout import layout_of
from auditor.text.records import Projection
from auditor.text.span import Span, log_chance, span_of, stacked

FINE = torch.finfo(torch.float32).eps


def rows_of(rank, width, count=64, seed=0):
    """A matrix (count, width) of this rank, and vectors (rank, width) that span its rows."""
    generator = torch.Generator().manual_seed(seed)
    inside = torch.randn(rank, width, generator=generator, dtype=torch.float64)
    return torch.randn(count, rank, generator=generator, dtype=torch.float64) @ inside, inside


def test_vectors_of_the_span_have_no_distance_and_others_that_of_least_squares():
    matrix, inside = rows_of(5, 30)
    span = span_of(matrix, precision=FINE)
    assert span.rank == 5
    outside = torch.randn(7, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    nearest = inside.T @ torch.linalg.lstsq(inside.T, outside.T).solution
    expected = (outside.T - nearest).norm(dim=0) / outside.norm(dim=1)
    torch.testing.assert_close(span.distances(outside), expected, rtol=1e-5, atol=1e-6)
    assert span.distances(inside).max() < 1e-5


def test_the_cheap_bound_never_exceeds_the_distance():
    matrix, _ = rows_of(5, 60)
    span = span_of(matrix, precision=FINE)
    vectors = torch.randn(50, 60, generator=torch.Generator().manual_seed(2))
    assert (span.bounds(vectors) <= span.distances(vectors) + 1e-6).all()


def test_no_vector_is_in_no_span():
    matrix, _ = rows_of(5, 30)
    span = span_of(matrix, precision=FINE)
    assert float(span.distances(torch.zeros(30))) == 1.0
    assert float(span.bounds(torch.zeros(30))) == 1.0


def test_the_tolerance_follows_the_weakest_direction():
    strong = rows_of(3, 40)[0]
    weak = strong + 3e-5 * rows_of(4, 40, seed=3)[0]
    assert span_of(weak, precision=FINE).tolerance > 5 * span_of(strong, precision=FINE).tolerance


@pytest.mark.parametrize(
    ("matrix", "precision", "why"),
    [
        (torch.zeros(8, 16, dtype=torch.float64), FINE, "zero"),
        (rows_of(16, 16)[0], FINE, "too many tokens"),
        (rows_of(5, 30)[0], 1e-3, "too coarsely"),
        (rows_of(40, 64, count=40)[0], FINE, "too many tokens"),
    ],
)
def test_what_tells_nothing_says_so(matrix, precision, why):
    assert why in span_of(matrix, precision=precision)


def test_a_spectrum_without_a_gap_says_so():
    values = torch.logspace(0, -12, 60, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.linalg.qr(torch.randn(60, 60, generator=generator).double()).Q for _ in "12")
    assert "gap" in span_of(one @ torch.diag(values) @ two, precision=FINE)


@pytest.mark.parametrize(("rank", "width"), [(1, 40), (10, 40), (30, 60), (200, 384)])
def test_the_chance_is_never_below_that_of_the_beta_distribution(rank, width):
    span = Span(torch.zeros(width, rank), torch.zeros(width, 1), rank, width, tolerance=0.01)
    exact = beta.logcdf(0.01**2, (width - rank) / 2, rank / 2) / math.log(10)
    assert exact - 1e-9 <= log_chance(span, 1.0) <= exact + 0.01
    assert log_chance(span, 1000.0) == pytest.approx(log_chance(span, 1.0) + 3)


@pytest.mark.parametrize("made", [gpt2, llama])
def test_the_span_of_a_dump_is_that_of_the_inputs(made):
    client = causal_client(made(), texts([9, 7]))
    problem = client.problem()
    matrix = stacked(problem.gradient, problem.layout.first)
    assert span_of(matrix, precision=FINE).rank == 9 + 7 - 2  # last tokens enter nothing


def test_a_projection_that_was_not_sent_is_left_out():
    problem = causal_client(gpt2(), texts([9])).problem()
    there = problem.layout.first
    absent = Projection("nowhere", (0, 3), turned=False)
    both = stacked(problem.gradient, (*there, absent))
    torch.testing.assert_close(both, stacked(problem.gradient, there), rtol=0, atol=0)
    assert stacked(problem.gradient, (absent,)) is None


def test_encoders_have_projections_of_both_blocks():
    module = bert()
    named = dict(module.named_parameters())
    layout = layout_of(module, "classification")
    assert {p.weight for p in (*layout.first, *layout.second)} <= set(named)
    assert [p.weight.split(".")[-2] for p in layout.first] == ["query", "key", "value"]
