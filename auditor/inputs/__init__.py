"""Every foreign byte is checked here and nowhere else."""

from auditor.inputs.gradients import load_gradients, match_gradients
from auditor.inputs.images import load_dataset_samples, load_images
from auditor.inputs.inspect import Description, describe
from auditor.inputs.models import load_model
from auditor.inputs.truth import load_truth

__all__ = [
    "Description",
    "describe",
    "load_dataset_samples",
    "load_gradients",
    "load_images",
    "load_model",
    "load_truth",
    "match_gradients",
]
