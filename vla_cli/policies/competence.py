"""Can the base, as it is calibrated, already do what was demonstrated?

Predicted chunks are compared with the demonstrated ones under the demonstrated instruction, against chance: the same
predictions for other frames.

    competence = 1 - error / error of a random pairing           1 perfect, 0 no better than chance

The error is the mean absolute difference in standard deviations of the actions. It is taken apart by phase (fingers
open, closed): a policy that reaches for the right thing but cannot carry it is not competent.

Operators differ: one goes straight, another along one axis first, a third takes her time. Where *some* of them move as
the base would, its way of doing the task is one that was shown to work. Where nobody does, there is something to learn.
So competence is measured for each demonstration, and its upper quartile counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from vla_cli.adapter import PolicySpec
from vla_cli.windows import Windows

DEMONSTRATIONS, FRAMES = 16, 20
"""How many are looked at, and frames of each."""
QUARTILE = 0.75
ENOUGH = 0.55
"""Competence, in the worst phase, above which weights are left alone."""
LEAST_FRAMES = 3
"""Frames of a phase that a demonstration must have to be counted there."""


class Acting(Protocol):
    """The part of a policy that is needed."""

    spec: PolicySpec

    def act(self, images: Any, state: Any, instructions: Any, noise: Any) -> np.ndarray:
        """Chunks [B, T, A] in raw units."""
        ...

    def noise_shape(self, batch: int) -> tuple[int, int, int]:
        """Shape of the noise that `act` starts from."""
        ...


@dataclass(frozen=True)
class Competence:
    """Competence by phase of the gripper; a phase with too few frames is None.

    Attributes:
        all, open, closed: see the module's docstring.
        frames: how many were compared.
    """

    all: float
    open: float | None
    closed: float | None
    frames: int

    @property
    def lowest(self) -> float:
        """Of the phases that were seen."""
        return min(value for value in (self.all, self.open, self.closed) if value is not None)

    @property
    def worst(self) -> str:
        """Where it is lowest, in words."""
        names = {"with open fingers": self.open, "with closed fingers": self.closed, "over all": self.all}
        return next(name for name, value in names.items() if value == self.lowest)

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def measure_competence(
    policy: Acting, windows: Windows, *, closed: Callable[[np.ndarray], np.ndarray] | None, seed: int
) -> Competence:
    """Compare a policy's chunks with the demonstrated ones.

    Args:
        policy: acts on raw observations, through its calibration.
        windows: of the demonstrations, raw.
        closed: state [B, S] to whether the fingers are closed [B]; None where no gripper is known.
        seed: of flow noise and random pairing.
    """
    chosen, owner = _frames(windows)
    samples = windows.gather(chosen)
    rng = np.random.default_rng([seed, 77])
    noise = rng.standard_normal(policy.noise_shape(len(samples)), np.float32)
    predicted = policy.act(samples.images, samples.state, samples.instructions, noise)
    scores = policy.spec.actions.normalise(predicted), policy.spec.actions.normalise(samples.actions)
    fingers = closed(samples.state) if closed is not None else np.zeros(len(samples), bool)
    parts: dict[str, float | None] = {}
    for name, rows in {"all": np.ones(len(samples), bool), "open": ~fingers, "closed": fingers}.items():
        each = [np.flatnonzero(rows & (owner == d)) for d in np.unique(owner)]
        each = [which for which in each if len(which) >= LEAST_FRAMES]
        found = [_better_than_chance(*scores, samples.real_steps, which, rng) for which in each]
        parts[name] = float(np.quantile(found, QUARTILE)) if found else None
    return Competence(parts["all"] or 0.0, parts["open"], parts["closed"], len(samples))


def _frames(windows: Windows) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of evenly spaced windows of evenly spaced demonstrations, and which demonstration each is of."""
    demonstrations = np.unique(np.linspace(0, windows.index[-1, 0], DEMONSTRATIONS).round().astype(int))
    found = []
    for d in demonstrations:
        own = np.flatnonzero(windows.index[:, 0] == d)
        found.append(own[np.unique(np.linspace(0, len(own) - 1, FRAMES).round().astype(int))])
    chosen = np.concatenate(found)
    return chosen, windows.index[chosen, 0]


def _better_than_chance(
    predicted: np.ndarray, shown: np.ndarray, real: np.ndarray, which: np.ndarray, rng: np.random.Generator
) -> float:
    def error(rows: np.ndarray) -> float:
        apart = np.abs(predicted[rows] - shown[which]).mean(-1) * real[which]
        return float(apart.sum() / max(real[which].sum(), 1))

    # other frames of all phases: within one phase a policy that ignores what it sees would look as good as any
    chance = np.mean([error(rng.permutation(len(predicted))[: len(which)]) for _ in range(8)])
    return float(1 - error(which) / max(float(chance), 1e-9))
