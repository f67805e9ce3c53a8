"""Every foreign byte is checked here and nowhere else."""

from auditor.inputs.auxiliary import load_auxiliary
from auditor.inputs.gradients import load_gradients, match_gradients
from auditor.inputs.images import load_dataset_samples, load_images
from auditor.inputs.inspect import Description, describe
from auditor.inputs.models import load_model
from auditor.inputs.truth import load_truth
from auditor.inputs.updates import load_update

__all__ = [
    "Description",
    "describe",
    "load_auxiliary",
    "load_dataset_samples",
    "load_gradients",
    "load_images",
    "load_model",
    "load_truth",
    "load_update",
    "match_gradients",
]
