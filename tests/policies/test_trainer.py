"""The training loop on one made-up weight: what is no number ends it, in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vla_cli.errors import InputError
from vla_cli.policies.trainer import Settings, Trainer
from vla_cli.progress import SILENT
from vla_cli.windows import Samples

SETTINGS = Settings(
    steps=1, learning_rate=0.1, noise_draws=1, warmup=0, weight_decay=0.0, clip=1.0, seed=0, checkpoint_every=10
)


def samples() -> Samples:
    return Samples(
        np.zeros((2, 1, 4, 4, 3), np.uint8), np.zeros((2, 1)), ["go"] * 2, np.zeros((2, 1, 1)), np.ones((2, 1), bool)
    )


def trained(directory: Path, loss: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """The last step's metrics of a policy of one weight, 1.0, with a loss of that weight."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    policy: Any = SimpleNamespace(
        model=model, batch=lambda samples: None, losses=lambda batch, **_: loss(model.weight[0]).expand(2)
    )
    hooks: Any = SimpleNamespace(
        draw=lambda number: {"demonstrations": samples()},
        weigh=lambda losses: losses,
        penalties=lambda *_: {},
        wrap_gradient=lambda *_: None,
        watch=lambda done: ({}, []),
    )
    return Trainer(policy, SETTINGS, directory).run(hooks, SILENT)[0]


def test_one_step_is_told(tmp_path: Path) -> None:
    assert trained(tmp_path, lambda weight: weight**2)["loss"] == 1.0


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda weight: weight * torch.nan, "The loss became nan at step 1"),
        (lambda weight: weight / 0, "The loss became inf at step 1"),
        # finite, and its slope is not: the step would put NaN into every weight, and a last one would be saved
        (lambda weight: torch.sqrt(weight * 0), "The gradient became nan at step 1"),
    ],
)
def test_what_is_no_number_ends_the_training(tmp_path: Path, loss: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(InputError, match=said):
        trained(tmp_path, loss)
