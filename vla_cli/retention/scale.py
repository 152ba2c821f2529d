"""How strong a penalty on weights is to be, measured instead of guessed: against the base's own flow loss.

A penalty is `weight * raw`. With `weight: auto` it is fixed before training so that, once the weights have drifted from
the base's by a `budget` (relative, e.g. 0.02), the penalty equals the base's own flow loss on the demonstrations: from
there on it costs as much to drift further as there was to gain at the start. DeLock's weight is unpublished
(arXiv 2604.23121); this is the scale-free reading of "of the order of the flow loss".
"""

from __future__ import annotations

from typing import Any

import torch

from vla_cli.limits import limited, or_word
from vla_cli.retention import Learner
from vla_cli.windows import Windows

AUTO = "auto"
LOSS_WINDOWS = 64
LOSS_DRAWS = 4


@torch.no_grad()
def flow_loss(policy: Learner, windows: Windows, *, seed: int, batch_size: int, limit: int = LOSS_WINDOWS) -> float:
    """Mean flow loss of the policy as it is, on at most `limit` windows with fixed noise."""
    generator = torch.Generator().manual_seed(seed)
    was_training = policy.model.training
    policy.model.eval()
    chosen = windows.gather(windows.spread(limit))
    total = 0.0
    for part in chosen.parts(max(1, batch_size)):
        total += float(policy.losses(policy.batch(part), draws=LOSS_DRAWS, generator=generator).sum())
    policy.model.train(was_training)
    return total / len(chosen)


def strength() -> Any:
    """An option's field: "auto", or a penalty's weight."""
    return or_word(AUTO, AUTO, "a number from 0", lambda weight: weight >= 0)


def drift() -> Any:
    """An option's field: the relative drift at which an automatic weight lets the penalty equal the loss."""
    return limited(0.02, "a relative drift above 0, such as 0.02", lambda budget: budget > 0)
