"""One run of `breaching`, Inverting Gradients as shipped, in an environment of its own.

    python benchmarks/peers_breaching.py IN.pt OUT.pt

Started by peers.py with another Python: it needs `breaching` and torch. IN holds the state of
a ResNet-20 for CIFAR, the gradients in the order of its parameters, the label, mean and std, and
the seconds of processor time that it may use. OUT gets the picture in model units, (1, 3, 32, 32),
the seconds that it took and the number of iterations. Its schedule is fitted to the time: a few
iterations are timed first, for free.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
_TRIAL = 20  # iterations


def attack(task: dict[str, Any], iterations: int) -> tuple[torch.Tensor, float]:
    """The picture, and seconds of processor time, after that many iterations."""
    import breaching

    from auditor.zoo import CifarResNet

    model = CifarResNet(3)
    model.load_state_dict(task["state"])
    model.eval()
    settings = breaching.get_attack_config("invertinggradients")
    settings.optim.max_iterations = iterations
    setup = {"device": torch.device("cpu"), "dtype": torch.float}
    attacker = breaching.attacks.prepare_attack(model, torch.nn.CrossEntropyLoss(), settings, setup)
    facts = SimpleNamespace(
        shape=(3, 32, 32), mean=task["mean"], std=task["std"], modality="vision", classes=10
    )
    server = {
        "parameters": [parameter.detach() for parameter in model.parameters()],
        "buffers": list(model.buffers()),
        "metadata": facts,
    }
    shared = {
        "gradients": task["gradients"],
        "buffers": None,
        "metadata": {"num_data_points": 1, "labels": task["label"], "local_hyperparams": None},
    }
    begun = time.process_time()
    found, _ = attacker.reconstruct([server], [shared], {})
    return found["data"].detach(), time.process_time() - begun


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    task = torch.load(sys.argv[1], weights_only=True)
    torch.manual_seed(task["seed"])
    attack(task, 2)
    _, took = attack(task, _TRIAL)
    iterations = max(1, round(task["seconds"] * _TRIAL / took))
    torch.manual_seed(task["seed"])
    picture, seconds = attack(task, iterations)
    answer = {"picture": picture, "seconds": seconds, "iterations": iterations}
    torch.save(answer, sys.argv[2])


if __name__ == "__main__":
    main()
