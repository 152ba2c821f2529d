"""Gradient projection (A-GEM, arXiv 1812.00420): no step that, to first order, unlearns the base's own domain.

    g <- g - min(0, <g, g_ref>) / |g_ref|^2 * g_ref

g_ref is the gradient of the flow loss on a few base-domain windows at the present weights. Those windows are never
trained on: they only veto. The promise is about the gradient; AdamW rescales each weight's share of it afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vla_cli.limits import from_1
from vla_cli.retention import Context, Learner, Method, Step, read_options
from vla_cli.windows import Windows


@dataclass(frozen=True)
class ProjectionOptions:
    """Options of `retention: projection:` in a recipe.

    Attributes:
        share_windows: base-domain windows behind each reference gradient; they come on top of the batch.
        noise_draws: flow-matching noise draws a window; they share one prefix pass.
    """

    share_windows: int = from_1(8)
    noise_draws: int = from_1(2)


class Projection(Method):
    """See the module's docstring.

    Args:
        options: as in the recipe.

    Raises:
        ConfigError: unknown or impossible options.
    """

    def __init__(self, **options: Any) -> None:
        self.options = read_options("projection", ProjectionOptions, options)
        self._policy: Learner | None = None
        self._replay: Windows | None = None
        # counted from checkpoint to checkpoint: a run that is resumed at one counts as if it had never stopped
        self._asked = self._projected = 0
        self._last: dict[str, float] = {}

    def needs(self) -> tuple[str, ...]:
        """Base-domain data."""
        return ("replay",)

    def asks_the_base(self) -> bool:
        """Always: the veto is of its domain."""
        return True

    def numbers_kept(self, trained: int, held: int) -> int:
        """The reference gradient."""
        return trained

    def prepare(self, context: Context) -> None:
        """Take the base-domain windows.

        Raises:
            ConfigError: there are none.
        """
        self._policy, self._replay = context.policy, context.need_replay("projection")

    def wrap_gradient(self, step: Step, parameters: Mapping[str, nn.Parameter], closure: Callable[[], None]) -> None:
        """Take out of the gradient what would raise the loss on base-domain windows."""
        reference = self.reference(step, parameters)
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None and name in reference}
        self._asked += 1
        self._projected += project(gradients, reference)

    def reference(self, step: Step, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """g_ref by parameter; the gradients that the parameters hold stay as they are."""
        assert self._policy is not None and self._replay is not None
        batch = self._policy.batch(self._replay.draw(step.rng, self.options.share_windows))
        loss = self._policy.losses(batch, draws=self.options.noise_draws, generator=step.generator).mean()
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return {name: g for name, g in zip(parameters, found, strict=True) if g is not None}

    def watch(self, done: int) -> tuple[dict[str, float], list[str]]:
        """Share of the steps since the last checkpoint whose gradient was in conflict and was projected.

        Asked again without a step in between, it says the same.
        """
        if self._asked or not self._last:
            self._last = {"projection_share": self._projected / max(1, self._asked)}
        self._asked = self._projected = 0
        return self._last, []

    def facts(self) -> dict[str, Any]:
        """How many windows had a veto, and how often they used it since the last checkpoint but the end."""
        windows = len(self._replay) if self._replay is not None else 0
        return {"replay_windows": windows, "share_windows": self.options.share_windows, **self._last}


@torch.no_grad()
def project(gradients: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> bool:
    """Project gradients in place onto the half-space <g, g_ref> >= 0; both as one long vector.

    Args:
        gradients: by parameter name.
        reference: g_ref by parameter name; it has every name of `gradients`.

    Returns:
        Whether they were in conflict.
    """
    agreement = _dot(reference, gradients)
    if agreement >= 0:
        return False
    length = _dot(reference, {name: reference[name] for name in gradients})
    for name, gradient in gradients.items():
        gradient.sub_(reference[name], alpha=agreement / length)
    return True


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    parts = [(a[name].double() * other.double()).sum() for name, other in b.items()]
    return float(torch.stack(parts).sum()) if parts else 0.0
