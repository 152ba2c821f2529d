"""Guidance at test time: how the velocities under two prompts become one.

Contrastive prompt guidance (DeLock, arXiv 2604.23121), in the paper's convention:

    v = v(o, tau_minus, t) + w * (v(o, tau_plus, t) - v(o, tau_minus, t))

tau_minus is the trained instruction, tau_plus the one that is asked for; w = 1 is plain prompting with tau_plus, w = 0
is tau_minus, and swapping the prompts is w -> 1 - w. Both branches share image, state and noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from vla_cli.errors import ConfigError

Velocity = TypeVar("Velocity")


@dataclass(frozen=True)
class Contrast:
    """Contrastive prompt guidance.

    Attributes:
        negative: tau_minus, the instruction the policy was fine-tuned on.
        weight: w; 1 is plain prompting.
    """

    negative: str
    weight: float

    @property
    def plain(self) -> bool:
        """Whether this is plain prompting, for which one branch is enough."""
        return self.weight == 1.0

    def check(self, instruction: str) -> None:
        """Refuse a contrast of an instruction with itself.

        Raises:
            ConfigError: the two prompts are the same words.
        """
        if instruction.split() == self.negative.split():
            raise ConfigError(
                f"Contrastive guidance has nothing to contrast: both prompts are '{instruction}'",
                expected="an instruction other than the trained one",
                hint="--guidance-weight 1 for plain prompting",
            )


def combine(negative: Velocity, positive: Velocity, weight: float) -> Velocity:
    """v(tau_minus) + w * (v(tau_plus) - v(tau_minus)), for tensors or arrays of any one shape."""
    return negative + weight * (positive - negative)  # type: ignore[operator]
