"""Distillation: under instructions other than the trained one, the policy keeps to the frozen base's predictions.

    penalty = weight * mean |v_theta(o, l', a_t, t) - v_pre(o, l', a_t, t)|^2     over real steps and dimensions
    penalty = weight * mean KL(p_pre(. | o, l', a_<k) || p_theta(. | o, l', a_<k))             of a token policy

The second is the KL to a reference policy, token by token. The first stands in for one, and is none: a flow without
noise has no such bound. Along the base's own paths the difference, integrated over t, bounds how far apart the two
flows' actions end, up to a factor that grows with the velocities' Lipschitz constant. o is a demonstrated window, l'
something else that could be asked there (`Context.alternatives`): named things are in the scene, and while something
is held only the place can still change.

Where a_t comes from, `path`:

- demonstration: a_t = t noise + (1 - t) a around the recorded action. Cheap. At large t that is where a flow under any
  instruction passes; at small t it is where the *trained* behaviour ends, which l' would not visit.
- base: a_t on the frozen base's own way from noise to its action for l', `PATH_STEPS` Euler steps without gradient.

Of a token policy, `demonstration` goes on from the recorded tokens, and `base` from those that the base writes for l'.

The difference is exactly 0 before the first step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vla_cli.limits import from_0, from_1, limited
from vla_cli.retention import Context, Method, Penalty, Step, read_options
from vla_cli.retention.moments import Counterfactuals

PATHS = ("demonstration", "base")
PATH_STEPS = 3
WATCHED = 64


@dataclass(frozen=True)
class DistillationOptions:
    """Options of `retention: distillation:` in a recipe.

    Attributes:
        weight: of the penalty.
        windows: how many a step, beside the batch.
        target: what is matched: "velocity", which of a token policy are its tokens' probabilities.
        path: "demonstration" or "base": where the noisy actions come from.
        gripper_dim: action dimension of the gripper, negative ones count from the last.
        gripper_threshold: between open and closed, raw units; null takes the middle of all recorded commands.
    """

    weight: float = from_0(1.0)
    windows: int = from_1(8)
    target: str = limited("velocity", "velocity", lambda target: target == "velocity")
    path: str = limited("demonstration", " or ".join(PATHS), lambda path: path in PATHS)
    gripper_dim: int = -1
    gripper_threshold: float | None = None


class Distillation(Method):
    """See the module's docstring.

    Args:
        options: as in the recipe.

    Raises:
        ConfigError: unknown or impossible options.
    """

    keeps_base = True

    def __init__(self, **options: Any) -> None:
        self.options = read_options("distillation", DistillationOptions, options)
        self._gap: float | None = None
        self._parts, self._windows = 1, int(self.options.windows)

    def needs(self) -> tuple[str, ...]:
        """Other instructions for the demonstrated scenes."""
        return ("alternatives",)

    def asks_the_base(self) -> bool:
        """Always: its answers are the targets."""
        return True

    def prepare(self, context: Context) -> None:
        """Find what can be asked at which frame.

        Raises:
            ConfigError: there are no alternatives that fit.
        """
        self._others = Counterfactuals(
            context.demonstrations,
            context.alternatives,
            gripper_dim=self.options.gripper_dim,
            gripper_threshold=self.options.gripper_threshold,
            method="distillation",
        )
        self._policy, self._base, self._seed = context.policy, context.frozen(), context.seed
        self._parts, self._windows = context.parts, context.of_a_part(int(self.options.windows))

    def penalty(self, step: Step) -> Penalty:
        """The difference from the base on windows of its own."""
        raw = self._difference(step.rng, step.generator, self._windows)
        return Penalty(raw, self.options.weight * raw)

    def watch(self, done: int) -> tuple[dict[str, float], list[str]]:
        """The same difference on the same windows and noise each time."""
        rng, generator = np.random.default_rng(self._seed), torch.Generator().manual_seed(self._seed)
        counts = [WATCHED // self._parts] * self._parts if self._parts <= WATCHED else [1] * WATCHED
        with torch.no_grad():
            gaps = [self._difference(rng, generator, count) for count in counts]
        self._gap = torch.stack(gaps).mean().item()
        return {"distillation_gap": self._gap}, []

    def facts(self) -> dict[str, Any]:
        """How far the policy ended from the base, and on how many instructions that was held."""
        o = self.options
        return {
            "weight": o.weight,
            "windows_a_step": self._parts * self._windows,
            "path": o.path,
            "instructions": len(self._others.alternatives),
            "windows_holding": int(self._others.holding.sum()),
            "windows": len(self._others.holding),
            "mean_penalty": self._gap,
        }

    def _difference(self, rng: np.random.Generator, generator: torch.Generator, count: int) -> Tensor:
        s = self._others.draw(rng, count)
        batch = self._policy.batch(s)
        with torch.no_grad():
            points = self._policy.points(batch, generator)
            seen = self._base.look(batch)
            if self.options.path == "base":
                points = self._base.own_points(batch, points, generator, steps=PATH_STEPS, seen=seen)
            wanted = self._base.predictions(batch, points, seen)
        apart = self._policy.gap(self._policy.predictions(batch, points), wanted, batch)
        return apart / batch.mask.sum().clamp_min(1.0)
