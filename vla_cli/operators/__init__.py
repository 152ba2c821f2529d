"""Who demonstrated, and how their hands differ: what a policy will copy of a person beside the task.

    Record, Record, ...  --examine-->  Operators: a Profile an operator, Differences of each pair, plain sentences

Spreads and differences are taken within each instruction: two operators at two tasks differ for the tasks' sake.

Diversity is reported and not rewarded: several operators take a policy beyond one person's habits, but two speeds in
one situation are two answers to one question, which can hurt (velocity multimodality, arXiv 2507.06219).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from vla_cli.operators.comparison import Difference, differences
from vla_cli.operators.habits import Habits, habits_of, space_of
from vla_cli.operators.habits import Record as Record

UNKNOWN = "unknown"
VARIED = 0.25
"""Spread of the speed from one demonstration to the next above which there are several speeds for one situation. A
choice of ours."""
MOSTLY = 0.8
"""Share of the demonstrations from which one operator's habit is the set's."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One operator. Spreads are within each instruction, None where no instruction has two of their demonstrations.

    Attributes:
        operator: the name, or "unknown".
        episodes, frames, seconds: how much.
        instructions: how many different ones.
        speed: mean, 1 for the median episode of the set.
        speed_spread: standard deviation of the episodes' speeds over their mean.
        speed_profile, speed_profile_spread: [BINS] mean and standard deviation over progress, in units of `speed`.
        idle: share of the steps in which nothing moves.
        path_spread: root mean square distance from the mean path, as a share of the range of the set.
        grasps: demonstrations with a grasp.
        approach: [P] mean direction to the grasp, or None.
        approach_spread: degrees, mean angle to the mean direction of the instruction.
        grasp_spread: degrees, likewise of the hand's rotation at the grasp.
    """

    operator: str
    episodes: int
    frames: int
    seconds: float
    instructions: int
    speed: float
    speed_spread: float | None
    speed_profile: list[float]
    speed_profile_spread: list[float]
    idle: float
    path_spread: float | None
    grasps: int
    approach: list[float] | None
    approach_spread: float | None
    grasp_spread: float | None


@dataclass(frozen=True)
class Operators:
    """What `examine` found.

    Attributes:
        profiles: most episodes first.
        differences: of each pair and figure that could be tested.
        sentences: for people.
    """

    profiles: list[Profile]
    differences: list[Difference]
    sentences: list[str]

    def document(self) -> dict[str, Any]:
        """As JSON values, numbers to six digits."""
        plain = {
            "profiles": [asdict(profile) for profile in self.profiles],
            "differences": [asdict(one) | {"is_resolved": one.is_resolved} for one in self.differences],
            "sentences": self.sentences,
        }
        return _rounded(plain)


def examine(
    records: Sequence[Record],
    *,
    position: Sequence[int] | None = None,
    rotation: tuple[int, str] | None = None,
    degrees: bool = False,
) -> Operators:
    """Describe the operators of a set of demonstrations.

    Args:
        records: one an episode.
        position, rotation, degrees: where the hand's pose is in the state, as for `habits.space_of`.

    Raises:
        ConfigError: a column that is named does not exist.
    """
    if not records:
        return Operators([], [], [])
    space = space_of(records, position=position, rotation=rotation, degrees=degrees)
    habits = [habits_of(record, space) for record in records]
    usual = float(np.median([one.speed for one in habits])) or 1.0
    by_operator: dict[str, list[Habits]] = {}
    for one in habits:
        by_operator.setdefault(one.operator, []).append(one)
    ordered = sorted(by_operator.items(), key=lambda item: (-len(item[1]), item[0]))
    profiles = [_profile(operator, theirs, usual) for operator, theirs in ordered]
    found = differences([(operator, theirs) for operator, theirs in ordered if operator != UNKNOWN])
    return Operators(profiles, found, _sentences(profiles, found, by_operator))


def _profile(operator: str, habits: list[Habits], usual: float) -> Profile:
    speeds = np.array([one.speed for one in habits]) / usual
    profiles = np.stack([one.profile for one in habits]) / usual
    spread = _spread(habits, lambda one: np.array([one.speed / usual]))
    approaches = [one.approach for one in habits if one.approach is not None]
    path = _spread(habits, lambda one: one.path.reshape(-1))
    return Profile(
        operator=operator,
        episodes=len(habits),
        frames=sum(one.frames for one in habits),
        seconds=sum(one.seconds for one in habits),
        instructions=len({one.instruction for one in habits}),
        speed=float(speeds.mean()),
        speed_spread=None if spread is None else spread / (float(speeds.mean()) or 1.0),
        speed_profile=profiles.mean(axis=0).tolist(),
        speed_profile_spread=profiles.std(axis=0).tolist(),
        idle=float(np.average([one.idle for one in habits], weights=[one.frames for one in habits])),
        path_spread=None if path is None else path / math.sqrt(len(habits[0].path)),
        grasps=len(approaches),
        approach=_direction(approaches).tolist() if approaches else None,
        approach_spread=_angle(habits, lambda one: one.approach, _angles_to_mean),
        grasp_spread=_angle(habits, lambda one: one.grasp, _turns_to_mean),
    )


def _groups(habits: Sequence[Habits]) -> list[list[Habits]]:
    found: dict[str, list[Habits]] = {}
    for one in habits:
        found.setdefault(one.instruction, []).append(one)
    return list(found.values())


def _spread(habits: Sequence[Habits], figure: Callable[[Habits], np.ndarray]) -> float | None:
    """Pooled standard deviation within the instructions, of a vector that of its distance to the mean."""
    squares, free = 0.0, 0
    for group in _groups(habits):
        values = np.stack([figure(one) for one in group])
        squares += float(np.sum((values - values.mean(axis=0)) ** 2))
        free += len(group) - 1
    return math.sqrt(squares / free) if free else None


def _angle(
    habits: Sequence[Habits], figure: Callable[[Habits], Any], to_mean: Callable[..., list[float]]
) -> float | None:
    """Mean angle in degrees to the mean of the instruction."""
    angles: list[float] = []
    for group in _groups(habits):
        values = [figure(one) for one in group if figure(one) is not None]
        angles += to_mean(values) if len(values) > 1 else []
    return float(np.mean(angles)) if angles else None


def _direction(vectors: Sequence[np.ndarray]) -> np.ndarray:
    mean = np.mean(vectors, axis=0)
    return mean / (float(np.linalg.norm(mean)) or 1.0)


def _angles_to_mean(vectors: list[np.ndarray]) -> list[float]:
    cosines = np.clip(np.stack(vectors) @ _direction(vectors), -1, 1)
    return np.degrees(np.arccos(cosines)).tolist()


def _turns_to_mean(rotations: list[Rotation]) -> list[float]:
    together = Rotation.concatenate(rotations)
    return np.degrees((together.mean().inv() * together).magnitude()).tolist()


def _sentences(profiles: list[Profile], found: list[Difference], by_operator: dict[str, list[Habits]]) -> list[str]:
    total = sum(profile.episodes for profile in profiles)
    if len(profiles) == 1:
        return [_alone(profiles[0], total)]
    listed = ", ".join(f"'{one.operator}' {one.episodes}" for one in profiles)
    said = [f"{total} demonstrations by {len(profiles)} operators: {listed}."]
    if UNKNOWN in by_operator:
        said.append(
            f"For {len(by_operator[UNKNOWN])} demonstrations nobody has said who made them: these are not compared."
        )
    if profiles[0].episodes >= MOSTLY * total:
        said.append(
            f"'{profiles[0].operator}' made {profiles[0].episodes} of {total}: theirs is the habit to be copied."
        )
    told = [{one.instruction for one in habits} for habits in by_operator.values()]
    if sum(map(len, told)) == len(set().union(*told)):
        return [
            *said,
            "No instruction was demonstrated by two operators: their habits cannot be told from their tasks.",
        ]
    resolved = [one for one in found if one.is_resolved]
    by_name = {profile.operator: profile for profile in profiles}
    said += [_differs(one, by_name[one.a], by_name[one.b]) for one in resolved]
    if any(one.figure in ("speed", "pace") for one in resolved):
        said.append(
            "Two speeds in one situation are two answers to one question: a policy may hesitate between them "
            "or average (arXiv 2507.06219). If it does, train on one operator's, or ask for one pace."
        )
    if not resolved:
        said.append(f"No difference between the operators is beyond chance ({len(found)} were tested).")
    return said


def _alone(profile: Profile, total: int) -> str:
    """What one operator's habit is, and what comes of it."""
    spreads = [
        (profile.speed_spread, lambda value: f"the speed varies by {value:.0%}"),
        (profile.approach_spread, lambda value: f"the approach to the grasp by {value:.0f} degrees"),
        (profile.grasp_spread, lambda value: f"the hand's rotation at the grasp by {value:.0f} degrees"),
        (profile.path_spread, lambda value: f"the path by {value:.0%} of the range"),
    ]
    measured = ", ".join(words(value) for value, words in spreads if value is not None)
    if profile.operator == UNKNOWN:
        varies = f" From one to the next {measured}." if measured else ""
        return (
            f"None of the {total} demonstrations says who made it.{varies} Their habits will be copied: to see whose, "
            "or to hold an operator out, name them (vla collect-ingest --operator)."
        )
    start = f"All {total} demonstrations are by one operator, '{profile.operator}'"
    if profile.speed_spread is None:
        return f"{start}: a policy will copy this person's habits."
    habit = f"{start}: from one to the next {measured}. "
    if profile.speed_spread > VARIED:
        return habit + (
            "These are several speeds for one situation: a policy may hesitate between them or average (arXiv "
            "2507.06219); an even pace is easier to learn."
        )
    return habit + (
        "A policy will copy this habit, its speed and its side of approach. That makes learning easy and is no fault; "
        "what it does from elsewhere, or beside another person's demonstrations, these data cannot say."
    )


def _differs(one: Difference, a: Profile, b: Profile) -> str:
    evidence = f"(standardised difference {one.effect:.1f}, p = {one.corrected:.2g} after Holm's correction)"
    if one.figure == "speed":
        what = f"moves at {b.speed / a.speed:.2g} times the speed of" if a.speed > 0 else "moves faster than"
        return f"'{b.operator}' {what} '{a.operator}' {evidence}."
    if one.figure == "idle":
        return f"'{b.operator}' stands still for {b.idle:.0%} of the time, '{a.operator}' for {a.idle:.0%} {evidence}."
    apart = ""
    if one.figure == "approach" and a.approach is not None and b.approach is not None:
        angle = np.degrees(np.arccos(np.clip(np.dot(a.approach, b.approach), -1, 1)))
        apart = f", on average {angle:.0f} degrees apart,"
    words = {
        "pace": "are fast and slow in different parts of the task",
        "path": "take different paths",
        "approach": f"reach for the grasp from different sides{apart}",
        "grasp": "turn the hand differently at the grasp",
    }
    return f"'{a.operator}' and '{b.operator}' {words[one.figure]} {evidence}."


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
