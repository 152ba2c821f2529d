"""Conservative fine-tuning: windows that the base finds surprising pull less (arXiv 2605.08879).

    L <- stopgrad(exp(-L / tau)) * L          of each demonstrated window

A surprising window has the largest gradient and does the most damage to what the base knows. The weight rises as the
window is learned, so nothing is left out for good. `tau` is in units of the flow loss: predicting nothing costs about 2
(noise and normalised action have unit variance each). The embedded base's is 0.15 in the mean on its own domain, and on
demonstrations in another look 1.1 in the mean, 0.8 in the median, 2.3 at the ninth decile: at tau = 1 the median window
starts with weight 0.45, the ninth decile with 0.10, and one learned down to 0.06 has 0.94.
What other methods add (replayed windows, penalties) keeps its weight and so gains against the demonstrations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vla_cli.limits import limited
from vla_cli.retention import Method, read_options
from vla_cli.retention.composition import DEMONSTRATIONS


@dataclass(frozen=True)
class ConSFTOptions:
    """Options of `retention: consft:` in a recipe.

    Attributes:
        tau: flow loss at which a window's weight is 1/e; large ones switch the method off.
    """

    tau: float = limited(1.0, "a flow loss above 0, such as 1.0", lambda tau: tau > 0)


class ConSFT(Method):
    """See the module's docstring.

    Args:
        options: as in the recipe.

    Raises:
        ConfigError: unknown or impossible options.
    """

    def __init__(self, **options: Any) -> None:
        self.options = read_options("consft", ConSFTOptions, options)

    def weigh(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The demonstrations' losses, each times its weight; other groups as they are."""
        loss = losses[DEMONSTRATIONS]
        return {**losses, DEMONSTRATIONS: torch.exp(-loss.detach() / self.options.tau) * loss}

    def facts(self) -> dict[str, Any]:
        """The temperature."""
        return {"tau": self.options.tau}
