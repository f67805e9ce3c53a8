"""Solvers that know nothing of models: they see rows (R, D) that do not influence each other."""

from auditor.solve.lbfgs import minimize
from auditor.solve.least_squares import LinearMap, LinearSolution, jacobian_products, least_squares
from auditor.solve.levenberg import Linearise, Residual, levenberg_marquardt
from auditor.solve.rows import Solution, Status, ValueAndGradient, by_row

__all__ = [
    "LinearMap",
    "LinearSolution",
    "Linearise",
    "Residual",
    "Solution",
    "Status",
    "ValueAndGradient",
    "by_row",
    "jacobian_products",
    "least_squares",
    "levenberg_marquardt",
    "minimize",
]
