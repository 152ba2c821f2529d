"""L2 to the base's weights: L + lambda * |theta - theta_pre|^2 over the chosen modalities.

Vision alone is DeLock's regulariser (arXiv 2604.23121, with the vision tower trained outright); all three modalities
are L2-SP (arXiv 1802.01483). Under LoRA the product alpha / r B A takes the place of theta - theta_pre. Bottlenecks
move no weight: there is nothing to hold.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vla_cli.errors import ConfigError
from vla_cli.limits import limited
from vla_cli.recipe import BOTTLENECK
from vla_cli.retention import Context, Learner, Method, Penalty, Step, read_options
from vla_cli.retention.scale import drift, flow_loss, strength

MODALITIES = ("vision", "language", "action")


def _are_modalities(names: tuple[str, ...]) -> bool:
    return bool(names) and not set(names) - set(MODALITIES)


@dataclass(frozen=True)
class L2Options:
    """Options of `retention: l2:` in a recipe.

    Attributes:
        modalities: whose weights are held.
        weight: lambda, or "auto": the penalty equals the base's own flow loss at a relative drift of `budget`.
        budget: relative drift |theta - theta_pre| / |theta_pre| over the chosen modalities together.
        lora_product: hold LoRA's products too; without it, a modality that trains any LoRA is refused.
    """

    modalities: tuple[str, ...] = limited(("vision",), f"a list from {', '.join(MODALITIES)}", _are_modalities)
    weight: float | str = strength()
    budget: float = drift()
    lora_product: bool = False


class L2(Method):
    """See the module's docstring.

    Args:
        options: as in the recipe.

    Raises:
        ConfigError: unknown or impossible options.
    """

    remembers_base = True

    def __init__(self, **options: Any) -> None:
        self.options = read_options("l2", L2Options, options)
        self.weight = 0.0
        self.base_loss = 0.0
        self._policy: Learner | None = None
        self._names: frozenset[str] = frozenset()
        self._norms: dict[str, float] = {}

    def prepare(self, context: Context) -> None:
        """Remember the base and fix lambda.

        Raises:
            ConfigError: the penalty would be vacuous: a chosen modality is frozen, or trains by LoRA or bottlenecks in
                whole or part.
        """
        self._policy = policy = context.policy
        policy.remember_base()
        ways = policy.trained_ways()
        for modality in self.options.modalities:
            self._refuse_vacuous(modality, {way for name, way in ways.items() if policy.modality(name) == modality})
        self._names = frozenset(
            name
            for name, way in ways.items()
            if policy.modality(name) in self.options.modalities and (way == "full" or self.options.lora_product)
        )
        self._norms = policy.base_norms()
        self.base_loss = flow_loss(policy, context.demonstrations, seed=context.seed, batch_size=context.batch_size)
        self.weight = self._weight()

    def penalty(self, step: Step) -> Penalty:
        """Raw: sum of |delta|^2. Scaled: lambda times it."""
        raw = self._raw()
        return Penalty(raw, self.weight * raw)

    @torch.no_grad()
    def watch(self, done: int) -> tuple[dict[str, float], list[str]]:
        """Relative drift of each modality that is held."""
        assert self._policy is not None
        drift = relative_drift(self._policy, self._policy.deltas(self._names), self._norms)
        return {f"l2_drift_{modality}": value for modality, value in drift.items()}, []

    @torch.no_grad()
    def facts(self) -> dict[str, Any]:
        """Lambda and what it is made of, the final penalty, and the relative drift of every trained modality."""
        assert self._policy is not None
        raw = float(self._raw())
        return {
            "lambda": self.weight,
            "base_loss": self.base_loss,
            "raw": raw,
            "scaled": self.weight * raw,
            "relative_drift": relative_drift(self._policy, self._policy.deltas(), self._norms),
        }

    def _raw(self) -> Tensor:
        assert self._policy is not None
        return torch.stack([delta.square().sum() for delta in self._policy.deltas(self._names).values()]).sum()

    def _weight(self) -> float:
        if isinstance(self.options.weight, (int, float)):
            return float(self.options.weight)
        # a set has another order in every process, and the sum another last bit
        squared = sum(self._norms[name] ** 2 for name in sorted(self._names))
        return self.base_loss / (self.options.budget**2 * squared) if squared else 0.0

    def _refuse_vacuous(self, modality: str, ways: Collection[str]) -> None:
        if not ways:
            raise ConfigError(
                f"l2 is to hold {modality}, but no parameter of {modality} is trained: the penalty would always be 0",
                expected="a modality that is trained",
                hint=f"--{modality} full, or leave {modality} out of l2's modalities",
            )
        if BOTTLENECK in ways:
            what = (
                "only the state and action projections are trained outright there and the rest by bottlenecks, which "
                "no penalty on weights sees"
                if "full" in ways
                else "only bottlenecks are trained there and the weights themselves never move: the penalty would "
                "always be 0"
            )
            raise ConfigError(
                f"l2 is to hold {modality}'s weights, but {what}",
                expected=f"{modality} trained in full, and no modality by bottlenecks",
                hint="a recipe that holds what the policy does instead: distillation, anchor or rehearsal",
            )
        if "lora" in ways and not self.options.lora_product:
            what = (
                "only the state and action projections are trained outright there and the rest by LoRA: the rest would "
                "move as it likes"
                if "full" in ways
                else "only LoRA is trained there and the weights themselves never move: the penalty would always be 0"
            )
            raise ConfigError(
                f"l2 is to hold {modality}'s weights, but {what}",
                expected=f"{modality} trained in full",
                hint=f"--{modality} full, or lora_product: true, which holds LoRA's products too",
            )


def relative_drift(policy: Learner, deltas: Mapping[str, Tensor], norms: Mapping[str, float]) -> dict[str, float]:
    """|theta - theta_pre| / |theta_pre| of each modality, over the weights that `deltas` names."""
    moved: dict[str, float] = {}
    stood: dict[str, float] = {}
    for name, delta in deltas.items():
        modality = policy.modality(name)
        moved[modality] = moved.get(modality, 0.0) + float(delta.square().sum())
        stood[modality] = stood.get(modality, 0.0) + norms[name] ** 2
    return {m: math.sqrt(moved[m] / stood[m]) if stood[m] else 0.0 for m in MODALITIES if m in moved}
