"""How two operators differ, figure by figure, and whether chance alone would make them differ as much.

Tested by permutation of the operators' names within each instruction (`SHUFFLES` times, with a fixed seed), so that a
difference of tasks is not taken for one of hands, and corrected together by Holm's method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy.spatial.transform import Rotation

from vla_cli.comparison import holm
from vla_cli.operators.habits import Habits

SHUFFLES = 1999
ALPHA = 0.05
LARGEST_EFFECT = 99.0

Feature = Callable[[Habits], "np.ndarray | None"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How two operators differ in one figure, over the instructions that both demonstrated.

    Attributes:
        figure: "speed", "pace" (the shape of the speed profile), "idle", "path", "approach" or "grasp".
        a, b: the operators.
        episodes: how many of each.
        effect: mean of `b` less mean of `a` in pooled standard deviations (Cohen's d); of a vector its length.
        p: by permutation.
        corrected: after Holm's correction over all differences of the set.
    """

    figure: str
    a: str
    b: str
    episodes: tuple[int, int]
    effect: float
    p: float
    corrected: float

    @property
    def is_resolved(self) -> bool:
        """Whether the two differ beyond chance."""
        return self.corrected < ALPHA


def differences(operators: Sequence[tuple[str, list[Habits]]]) -> list[Difference]:
    """Each pair of operators in each figure that both show, tested and corrected as one family.

    Args:
        operators: name and demonstrations of each.
    """
    middle = _middle([one for _, habits in operators for one in habits])
    features: dict[str, Feature] = {
        "speed": lambda one: np.array([one.speed]),
        "pace": lambda one: one.profile / one.speed if one.speed > 0 else None,
        "idle": lambda one: np.array([one.idle]),
        "path": lambda one: one.path.reshape(-1),
        "approach": lambda one: one.approach,
        "grasp": lambda one: None if middle is None or one.grasp is None else (middle.inv() * one.grasp).as_rotvec(),
    }
    found = [
        one
        for (a, theirs), (b, others) in combinations(operators, 2)
        for figure, feature in features.items()
        if (one := _difference(figure, feature, (a, theirs), (b, others))) is not None
    ]
    corrected = holm([one.p for one in found])
    return [replace(one, corrected=p) for one, p in zip(found, corrected, strict=True)]


def _difference(
    figure: str, feature: Feature, first: tuple[str, list[Habits]], second: tuple[str, list[Habits]]
) -> Difference | None:
    """One difference, not yet corrected; None where the two share no instruction with enough of both."""
    strata: list[tuple[np.ndarray, np.ndarray]] = []
    for text in sorted({one.instruction for one in first[1]} & {one.instruction for one in second[1]}):
        a, b = (
            [v for o in side[1] if o.instruction == text and (v := feature(o)) is not None] for side in (first, second)
        )
        if a and b:
            strata.append((np.stack([*a, *b]), np.arange(len(a) + len(b)) >= len(a)))
    counts = sum(int((~second_one).sum()) for _, second_one in strata), sum(int(s.sum()) for _, s in strata)
    if min(counts) < 2 or not strata[0][0].size:
        return None
    mean, within = _standardised(strata)
    size = float(np.linalg.norm(mean))
    signed = math.copysign(size, mean[0]) if len(mean) == 1 else size
    effect = signed / within if within > 0 else math.copysign(LARGEST_EFFECT, signed) if size > 0 else 0.0
    shuffled = np.linalg.norm(_shuffled(strata), axis=1)
    larger = int(np.sum(shuffled >= size * (1 - 1e-9)))
    return Difference(
        figure=figure,
        a=first[0],
        b=second[0],
        episodes=counts,
        effect=max(-LARGEST_EFFECT, min(LARGEST_EFFECT, effect)),
        p=(1 + larger) / (1 + SHUFFLES),
        corrected=1.0,
    )


def _contrast(strata: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """[K] mean of the second less mean of the first, over instructions weighted by what they can tell."""
    parts = [(values[second].mean(axis=0) - values[~second].mean(axis=0)) for values, second in strata]
    weights = [second.sum() * (~second).sum() / len(second) for _, second in strata]
    return np.average(parts, axis=0, weights=weights)


def _shuffled(strata: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """[SHUFFLES, K] the contrast with the operators' names shuffled within each instruction."""
    chance = np.random.default_rng(0)
    total, weight = np.zeros((SHUFFLES, strata[0][0].shape[1])), 0.0
    for values, second in strata:
        names = chance.permuted(np.tile(second, (SHUFFLES, 1)), axis=1)
        share = second.sum() * (~second).sum() / len(second)
        total += share * (np.where(names, 1 / second.sum(), -1 / (~second).sum()) @ values)
        weight += share
    return total / weight


def _standardised(strata: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, float]:
    """The contrast, and the pooled standard deviation within operator and instruction."""
    sides = [values[side] for values, second in strata for side in (second, ~second)]
    squares = sum(float(np.sum((side - side.mean(axis=0)) ** 2)) for side in sides)
    free = sum(len(side) - 1 for side in sides)
    return _contrast(strata), math.sqrt(squares / free) if free else 0.0


def _middle(habits: Sequence[Habits]) -> Rotation | None:
    grasps = [one.grasp for one in habits if one.grasp is not None]
    return Rotation.concatenate(grasps).mean() if grasps else None
