"""Sharpness-aware minimisation: descend where the loss is worst nearby, and land in a flat valley (arXiv 2606.23641).

    epsilon = rho * g / |g|          over all trained weights together
    gradient taken at theta + epsilon, step taken from theta

The second gradient doubles the compute of a step. Its loss is that of the same windows and the same noise, so the two
gradients differ by the weights alone. A method that changes the gradient itself (projection) works after this one,
wherever the recipe names them: what it did to the first gradient would only turn epsilon.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vla_cli.limits import limited
from vla_cli.retention import Method, Step, read_options


@dataclass(frozen=True)
class SAMOptions:
    """Options of `retention: sam:` in a recipe.

    Attributes:
        rho: length of the step uphill, in the space of the trained weights.
    """

    rho: float = limited(0.05, "a length above 0, such as 0.05", lambda rho: rho > 0)


class SAM(Method):
    """See the module's docstring.

    Args:
        options: as in the recipe.

    Raises:
        ConfigError: unknown or impossible options.
    """

    takes_gradient_anew = True

    def __init__(self, **options: Any) -> None:
        self.options = read_options("sam", SAMOptions, options)

    def numbers_kept(self, trained: int, held: int) -> int:
        """The weights to come back to."""
        return trained

    def wrap_gradient(self, step: Step, parameters: Mapping[str, nn.Parameter], closure: Callable[[], None]) -> None:
        """Take the gradient `rho` uphill instead; the weights come back bit for bit."""
        moving = [p for p in parameters.values() if p.grad is not None]
        norm = float(torch.stack([p.grad.norm() for p in moving if p.grad is not None]).norm()) if moving else 0.0
        if norm == 0:
            return
        # copies: adding and subtracting epsilon again would leave rounding errors in the weights
        kept = [p.detach().clone() for p in moving]
        try:
            with torch.no_grad():
                for parameter in moving:
                    assert parameter.grad is not None
                    parameter.add_(parameter.grad, alpha=self.options.rho / norm)
            closure()
        finally:
            with torch.no_grad():
                for parameter, value in zip(moving, kept, strict=True):
                    parameter.copy_(value)

    def facts(self) -> dict[str, Any]:
        """The step's length."""
        return {"rho": self.options.rho}
