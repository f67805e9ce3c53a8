"""Solvers that know nothing of models: they see rows (R, D) that do not influence each other."""

from auditor.solve.lbfgs import minimize
from auditor.solve.rows import Solution, Status, ValueAndGradient, by_row

__all__ = ["Solution", "Status", "ValueAndGradient", "by_row", "minimize"]
