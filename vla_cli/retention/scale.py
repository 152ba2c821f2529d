"""How strong a penalty on weights is to be, measured instead of guessed: against the base's own flow loss.

A penalty is `weight * raw`. With `weight: auto` it is fixed before training so that, once the weights have drifted from
the base's by a `budget` (relative, e.g. 0.02), the penalty equals the base's own flow loss on the demonstrations: from
there on it costs as much to drift further as there was to gain at the start. DeLock's weight is unpublished
(arXiv 2604.23121); this is the scale-free reading of "of the order of the flow loss".
"""

from __future__ import annotations

import torch

from vla_cli.errors import ConfigError
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


def check_strength(method: str, weight: object, budget: float) -> None:
    """Refuse a weight that is neither "auto" nor a number from 0, and a budget that is not above 0.

    Raises:
        ConfigError: see above.
    """
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool) and weight >= 0
    if weight != AUTO and not number:
        raise ConfigError(f"{method}'s weight is {weight!r}", expected="auto, or a number from 0")
    if budget <= 0:
        raise ConfigError(f"{method}'s budget is {budget}", expected="a relative drift above 0, such as 0.02")
