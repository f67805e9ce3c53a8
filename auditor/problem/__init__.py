"""What the attacker knows; THE gradient is defined in gradients.py."""

from __future__ import annotations

from auditor.problem.gradients import (
    gradient_of,
    heaviest_sample,
    is_dropped_from,
    is_estimated,
    is_one_gradient,
    is_scaled,
    loss_of,
    relative_residual,
    residuals_of,
    scale_of,
    simulated_gradient,
    statistics_apart,
    tolerance_of,
    why_not_simulated,
)
from auditor.problem.making import (
    change_of,
    make_problem,
    read_as,
)
from auditor.problem.units import (
    from_own_units,
    has_grid,
    is_in_range,
    is_on_grid,
    is_table,
    pixels_of_units,
    random_rows,
    to_model_units,
    to_own_units,
    to_pixels,
)

__all__ = [
    "change_of",
    "from_own_units",
    "gradient_of",
    "has_grid",
    "heaviest_sample",
    "is_dropped_from",
    "is_estimated",
    "is_in_range",
    "is_on_grid",
    "is_one_gradient",
    "is_scaled",
    "is_table",
    "loss_of",
    "make_problem",
    "pixels_of_units",
    "random_rows",
    "read_as",
    "relative_residual",
    "residuals_of",
    "scale_of",
    "simulated_gradient",
    "statistics_apart",
    "to_model_units",
    "to_own_units",
    "to_pixels",
    "tolerance_of",
    "why_not_simulated",
]
