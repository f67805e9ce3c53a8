"""One thread: small problems are faster so, and sums come out the same everywhere."""

import torch

torch.set_num_threads(1)
