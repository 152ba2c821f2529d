"""Anchor-Align (arXiv 2607.13429): what the vision-language model makes of a scene stays what the base made of it.

    penalty = weight * mean over layers and real tokens of |h_theta - h_pre|^2 / D

h are the hidden states of image and word tokens (the non-action tokens) that the action expert reads, on this step's
demonstrations. Published with weight 0.1: position swap 2.3 -> 22.6. Exactly 0 before the first step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from vla_cli.errors import ConfigError
from vla_cli.limits import from_0, from_1
from vla_cli.retention import Context, Method, Penalty, Step, read_options


@dataclass(frozen=True)
class AnchorOptions:
    """Options of `retention: anchor:` in a recipe.

    Attributes:
        weight: of the penalty.
        windows: how many of a step's demonstrations are looked at.
    """

    weight: float = from_0(0.1)
    windows: int = from_1(8)


class Anchor(Method):
    """See the module's docstring.

    Args:
        options: as in the recipe.

    Raises:
        ConfigError: unknown or impossible options.
    """

    keeps_base = True

    def __init__(self, **options: Any) -> None:
        self.options = read_options("anchor", AnchorOptions, options)
        self._trained: set[str] = set()
        self._parts, self._windows = 1, int(self.options.windows)

    def prepare(self, context: Context) -> None:
        """Load the frozen base.

        Raises:
            ConfigError: neither vision nor language trains, so that the hidden states cannot change.
        """
        named = context.policy.model.named_parameters()
        self._trained = {context.policy.modality(name) for name, p in named if p.requires_grad} - {"action"}
        if not self._trained:
            raise ConfigError(
                "The recipe's 'anchor' holds the vision-language model to the base, but no part of it is trained",
                expected="vision or language to be full, lora or bottleneck",
                hint="leave 'anchor' out of the recipe's retention",
            )
        self._policy, self._base = context.policy, context.frozen()
        self._parts, self._windows = context.parts, context.of_a_part(int(self.options.windows))

    def penalty(self, step: Step) -> Penalty:
        """Distance of the hidden states on the first windows of the batch."""
        s, n = step.demonstrations, self._windows
        batch = self._policy.collate(s.images[:n], s.state[:n], s.instructions[:n])
        with torch.no_grad():
            wanted, _ = self._base.hidden_states(batch)
        states, real = self._policy.hidden_states(batch)
        pairs = zip(states, wanted, strict=True)
        raw = torch.stack([(h[real] - w[real]).float().square().mean() for h, w in pairs]).mean()
        return Penalty(raw, self.options.weight * raw)

    def facts(self) -> dict[str, Any]:
        """What was held."""
        return {
            "weight": self.options.weight,
            "windows_a_step": self._parts * self._windows,
            "modalities": sorted(self._trained),
        }
