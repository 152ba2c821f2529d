"""Methods that keep old abilities while a policy learns a new task. A new one is a file here and a line in the table.

A method is built from its options in the recipe. It derives from `Method` and overrides the calls of the training loop
that it needs; every other call does nothing:

    needs()                       "replay" or "alternatives", where it cannot work without
    asks_the_base()               whether what the base does, or its own domain, is what is held to
    numbers_kept(trained, held)   how much it holds in memory, beside `keeps_base` and `remembers_base`
    caveats(batch_size)           what differs from the recipe's wish, in words, before training
    share(batch_size)             how many windows of each batch it fills itself, on average
    prepare(context)              once, before training; raises ConfigError when something it needs is missing
    draw(rng, count)              those windows
    rephrase(samples, rng)        other words for the demonstrations of a batch
    weigh(losses)                 another weight for each window's loss
    penalty(step)                 a term added to the loss, raw and scaled
    wrap_gradient(step, closure)  change the gradient in place; `closure` computes it again
    watch(done)                   metrics and warnings at checkpoints and at the end
    after_training()              change the weights one last time, and say whether it did
    facts()                       what it did, for run.json
    pictures()                    and as SVG files beside the adapter

Nothing random is carried from step to step, so that a resumed run ends with the same bytes: what a method draws comes
from the generators of `Step`, which are seeded by (seed, step, method).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vla_cli.errors import ConfigError
from vla_cli.field_types import ill_typed
from vla_cli.language.alternatives import FILE_NAME, Alternative
from vla_cli.limits import beyond
from vla_cli.lookup import Table
from vla_cli.windows import Samples, Windows

RETENTION = Table(
    "retention method",
    {
        "rehearsal": "vla_cli.retention.rehearsal:Rehearsal",
        "l2": "vla_cli.retention.l2:L2",
        "ewc": "vla_cli.retention.ewc:EWC",
        "distillation": "vla_cli.retention.distillation:Distillation",
        "anchor": "vla_cli.retention.anchor:Anchor",
        "sam": "vla_cli.retention.sam:SAM",
        "consft": "vla_cli.retention.consft:ConSFT",
        "paraphrase": "vla_cli.retention.paraphrase:Paraphrase",
        "projection": "vla_cli.retention.projection:Projection",
        "merge": "vla_cli.retention.merge:Merge",
    },
)


class Learner(Protocol):
    """The part of a policy that retention methods use; every `policies.policy.Policy` is one, whatever its family."""

    model: nn.Module

    def collate(
        self,
        images: np.ndarray,
        state: np.ndarray,
        instructions: Sequence[str],
        actions: np.ndarray | None = None,
        real_steps: np.ndarray | None = None,
    ) -> Any:
        """Raw observations (and actions) to a batch on the device."""
        ...

    def batch(self, samples: Samples) -> Any:
        """`collate` for windows with their actions."""
        ...

    def losses(self, batch: Any, *, draws: int, generator: torch.Generator) -> Tensor:
        """Loss of each window [B], differentiable."""
        ...

    def look(self, batch: Any) -> Any:
        """What can be computed of a batch's pictures and words once, for several `predictions` of it."""
        ...

    def points(self, batch: Any, generator: torch.Generator) -> Any:
        """Where two policies' predictions can be compared, around the recorded actions of a batch.

        Of a flow policy a random time t and a_t; of one that writes tokens, the recorded ones, one behind the other.
        """
        ...

    def own_points(self, batch: Any, points: Any, generator: torch.Generator, *, steps: int, seen: Any = None) -> Any:
        """The same on this policy's own way to an action: a flow's in Euler steps, or the tokens that it writes."""
        ...

    def predictions(self, batch: Any, points: Any, seen: Any = None) -> Tensor:
        """What the policy predicts there, differentiable: velocities [B, T, A_max], or log-probabilities of tokens.

        `seen` is what `look` made of the batch at the present weights; without it that is done here.
        """
        ...

    def gap(self, predicted: Tensor, wanted: Tensor, batch: Any) -> Tensor:
        """How far predictions are from wanted ones, over the batch's real entries: the sum of squares, or of KL."""
        ...

    def hidden_states(self, batch: Any) -> tuple[list[Tensor], Tensor]:
        """States of each VLM layer [B, L, D], and which tokens are real [B, L] bool."""
        ...

    def remember_base(self) -> None:
        """To be called in `prepare` by methods that use the deltas: the base's weights are kept (or LoRA's are 0)."""
        ...

    def deltas(self, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """Trained minus base weights by the base's parameter name, differentiable; LoRA's are its products.

        Bottlenecks (`policies.bottleneck`) move no weight, and have none.
        """
        ...

    def trained_ways(self) -> dict[str, str]:
        """Name of each delta to how it trains, "lora" or "full"; and of each layer with a "bottleneck" behind it."""
        ...

    def base_norms(self) -> dict[str, float]:
        """Name of each delta to the norm of the base's own weight."""
        ...

    def scale_deltas(self, factors: Mapping[str, float]) -> None:
        """Multiply the deltas of each modality by a factor, in place."""
        ...

    def modality(self, parameter: str) -> str:
        """ "vision", "language" or "action"."""
        ...


ALTERNATIVES_HINT = (
    f"--alternatives FILE: preprocess proposes one in its dataset ({FILE_NAME}), to be read and cut; it is a YAML list "
    "that you can write as well (vla_cli/language/alternatives.py says how)"
)


FED_OTHERWISE = (
    "the demonstrations have other units or dimensions than the base was trained with, so that it is fed with their "
    "statistics instead of its own"
)


@dataclass
class Context:
    """What a retention method may look at.

    Attributes:
        policy: what is trained; its weights are still the base's in `prepare`.
        frozen: returns the untouched base, fed like `policy`; loaded once, no gradients.
        demonstrations: windows of the new task, as the policy is trained on them (calibrated when the recipe does so).
        held_out: windows of demonstrations that are not trained on; None when none were held out.
        replay: windows of base-domain data, when given.
        alternatives: what else could be asked in the demonstrated scenes; may be empty.
        seed: of the run.
        steps: optimiser steps of the run.
        batch_size: windows that are computed at once: a step's batch, or a micro-batch of it.
        parts: micro-batches a step.
        cache: directory for what costs time and depends on base and replay alone; None keeps nothing.
    """

    policy: Learner
    frozen: Callable[[], Learner]
    demonstrations: Windows
    held_out: Windows | None
    replay: Windows | None
    alternatives: list[Alternative] = field(default_factory=list)
    seed: int = 0
    steps: int = 1
    batch_size: int = 1
    parts: int = 1
    cache: Path | None = None

    def of_a_part(self, windows: int) -> int:
        """How many of so many windows a step fall to each of its micro-batches; at least one."""
        return max(1, round(windows / self.parts))

    def need_replay(self, method: str) -> Windows:
        """The base-domain windows.

        Raises:
            ConfigError: none were given.
        """
        if self.replay is None:
            raise lacking(method, "replay")
        return self.replay


def lacking(method: str, need: str) -> ConfigError:
    """The error for a method that cannot work without "replay" or "alternatives", and was given none."""
    if need == "replay":
        return ConfigError(
            f"The recipe's '{method}' needs base-domain data, and none was given",
            expected="--replay with episodes or a dataset of the base's own domain",
            hint="--replay, or --recipe steerable (which works without)",
        )
    return ConfigError(
        f"The recipe's '{method}' needs other instructions for the demonstrated scenes, and none were given",
        expected="--alternatives with instructions about things in the scene",
        hint=ALTERNATIVES_HINT,
    )


def fed_otherwise(method: str) -> ConfigError:
    """The error for a method that asks the base, where the base is fed in another way than it was trained with."""
    return ConfigError(
        f"The recipe's '{method}' holds the policy to what the base does, but {FED_OTHERWISE}: what it would teach "
        "means nothing",
        expected=f"demonstrations in the base's own units and dimensions, or a recipe without '{method}'",
        hint="--recipe steerable, which leaves out by name what the base cannot teach here",
    )


@dataclass
class Step:
    """One training step, as a method sees it.

    Attributes:
        number: from 0.
        rng, generator: seeded by (seed, step, method).
        demonstrations: this batch's windows of the new task.
        loss: mean loss of the batch, detached; 0 before it is known.
    """

    number: int
    rng: np.random.Generator
    generator: torch.Generator
    demonstrations: Samples
    loss: float = 0.0


@dataclass
class Penalty:
    """A term of the loss.

    Attributes:
        raw: before its weight, for the log.
        scaled: what is added to the loss.
    """

    raw: Tensor
    scaled: Tensor


class Method:
    """A retention method that does nothing; see the module's docstring for the calls.

    Attributes:
        keeps_base: whether it asks for `Context.frozen`, a second model in memory.
        remembers_base: whether it calls `Learner.remember_base`, which copies what trains outright, once for all.
        differentiates_base: whether it takes gradients of the base's own weights, which one in 4 bits does not have.
        takes_gradient_anew: its `wrap_gradient` puts another gradient in the place of what it finds, so that it comes
            before those of all other methods.
    """

    keeps_base = False
    remembers_base = False
    differentiates_base = False
    takes_gradient_anew = False

    def needs(self) -> tuple[str, ...]:
        """What it cannot work without: "replay", "alternatives"."""
        return ()

    def asks_the_base(self) -> bool:
        """Whether it holds to what the base does or to its own domain: only a base that is fed its own way tells."""
        return False

    def share(self, batch_size: int) -> float:
        """How many windows of each batch this method fills; of a broken number, the mean over many batches."""
        return 0

    def numbers_kept(self, trained: int, held: int) -> int:
        """How many numbers it holds in memory while a step is done, beside models and what `remembers_base` says.

        Args:
            trained: parameters that train.
            held: weights of the base that are moved, outright or by LoRA.
        """
        return 0

    def caveats(self, batch_size: int) -> list[str]:
        """Sentences about what differs from the recipe's wish, known before training."""
        return []

    def prepare(self, context: Context) -> None:
        """Look at policy and data once, before training."""

    def draw(self, rng: np.random.Generator, count: int) -> Samples:
        """The method's own windows, `count` of them; called only when that is above 0."""
        raise NotImplementedError

    def rephrase(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """The demonstrations of a batch in other words."""
        return samples

    def weigh(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss of each window [B] by group ("demonstrations", or the name of the method that drew it)."""
        return losses

    def penalty(self, step: Step) -> Penalty | None:
        """A differentiable term of the loss."""
        return None

    def wrap_gradient(self, step: Step, parameters: Mapping[str, nn.Parameter], closure: Callable[[], None]) -> None:
        """Change `parameters`' gradients in place; `closure` computes them again at the present weights."""

    def watch(self, done: int) -> tuple[dict[str, float], list[str]]:
        """Metrics and warnings after `done` steps."""
        return {}, []

    def after_training(self) -> bool:
        """Change the trained weights one last time; whether they are others now."""
        return False

    def facts(self) -> dict[str, Any]:
        """What was done, as JSON values."""
        return {}

    def pictures(self) -> dict[str, str]:
        """File name to SVG: what is better seen than read; written beside the adapter."""
        return {}


Options = TypeVar("Options")


def read_options(method: str, kind: type[Options], given: Mapping[str, Any]) -> Options:
    """A method's options, from its part of the recipe.

    Args:
        method: its name, for the error.
        kind: a dataclass whose defaults are the method's.
        given: the recipe's mapping.

    Raises:
        ConfigError: an option is unknown, of another type, or beyond its limits.
    """
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"{method} has no option {unknown[0]!r}", expected=f"one of {', '.join(known) or 'none'}")
    for key, expected in ill_typed(kind, given).items():
        raise ConfigError(f"{method}'s {key} is {given[key]!r}", expected=expected)
    options = kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})
    for key, expected in beyond(options).items():
        raise ConfigError(f"{method}'s {key} is {given[key]!r}", expected=expected)
    return options
