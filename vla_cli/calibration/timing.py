"""How fast the robot moves here: the path stays the base policy's, its timing becomes the demonstrations'.

A new manner of moving (carry gently, stop before letting go) is shown for one object and one place, yet holds for all.
Learnt into the weights it would come together with the one instruction that was shown. So it is kept apart from *what*
to do: the base plans a path of small displacements with a gripper command each, and only how fast that path is followed
is fitted. The fit sees commands and gripper states, no image and no words, so it cannot make a policy deaf.

    speed in a phase   "open" or "closed" fingers: the demonstrations' upper speed, against the base's own
    speed at a flip    of the gripper ("closing", "opening"): how fast the arm still moves in that very step

A planned displacement above the phase's speed is spread over several steps; at a flip that was demonstrated slower, the
arm arrives first and the gripper acts in a step of its own. Whatever else is commanded goes with the step that it was
planned for: a change (a rotation) is spread likewise, a value that is held is repeated.
Metres and radians do not compare: each command's speed is a share of a full one, the largest that the base knows.
Assumptions: commands are displacements; following a path more slowly is safe; how to move depends on the gripper's
state, not on the object, the place or the direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from vla_cli.calibration.action import ActionFacts
from vla_cli.calibration.grippers import middles
from vla_cli.calibration.held import changing
from vla_cli.calibration.robust import NotIdentified
from vla_cli.dataset import Demonstration

PHASES = ("open", "closed")
FLIPS = ("closing", "opening")
UPPER = 0.9
"""Quantile of the speeds that stands for "as fast as it goes"; the rest are reactions and noise."""
TOP = 0.98
SLOWER = 0.75
"""Speeds (as shares of the top speed) below this share of the base's count as another manner of moving."""
LEAST_DIFFERENCE = 0.2
"""And they must differ by this share of the top speed: at a flip the arm is slow anyway, and a few flips scatter."""
STANDS = 0.05
"""Share of the top speed below which an arm stands still in a phase, which says nothing of how fast it is to move."""
LEAST_STEPS = 30
LEAST_FLIPS = 5


@dataclass(frozen=True)
class Speeds:
    """Speeds of commands in the base's convention, by phase and at flips; None where not seen.

    A speed is the largest component's, as a share of a full command.

    `top` is the speed overall: an arm that answers weakly, or an operator in no hurry, is slower in everything.
    """

    top: float
    open: float | None
    closed: float | None
    closing: float | None
    opening: float | None

    def document(self) -> dict[str, float | None]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Timing:
    """Limits on the speed of planned commands, as shares of the base's full ones; None where its own speed stays.

    Attributes:
        open, closed: largest speed in a phase.
        closing, opening: largest speed in the step in which the gripper's command flips.
    """

    open: float | None = None
    closed: float | None = None
    closing: float | None = None
    opening: float | None = None

    @property
    def is_identity(self) -> bool:
        """Whether nothing changes."""
        return all(value is None for value in asdict(self).values())

    def document(self) -> dict[str, float | None]:
        """As JSON values."""
        return asdict(self)


def measure_speeds(demonstrations: Sequence[Demonstration], facts: ActionFacts) -> Speeds:
    """Speeds of demonstrations whose commands are in the base's convention.

    Raises:
        NotIdentified: no gripper is known, so that phases cannot be told.
    """
    if facts.gripper_state < 0:
        raise NotIdentified("no gripper is known", "a state that says whether the gripper is closed")
    every: list[float] = []
    phases: dict[str, list[float]] = {name: [] for name in (*PHASES, *FLIPS)}
    middle_s, middle_c = middles(demonstrations, facts.gripper_state, facts.gripper_command)
    for d in demonstrations:
        speed = (np.abs(d.actions[:, list(facts.commands)]) / np.maximum(facts.limit, 1e-9)).max(axis=1)
        closed = d.state[:, facts.gripper_state] > middle_s
        wanted = (d.actions[:, facts.gripper_command] > middle_c) == (facts.gripper_sign > 0)
        every.extend(speed.tolist())
        for t in range(len(d)):
            if wanted[t] != closed[t]:
                if t == 0 or wanted[t] != wanted[t - 1]:
                    phases["closing" if wanted[t] else "opening"].append(float(speed[t]))
            elif t + 1 < len(d):
                phases["closed" if closed[t] else "open"].append(float(speed[t]))
    return Speeds(
        top=float(np.quantile(every, TOP)),
        **{name: _upper(values, LEAST_STEPS if name in PHASES else LEAST_FLIPS) for name, values in phases.items()},
    )


def _upper(values: list[float], least: int) -> float | None:
    return float(np.quantile(values, UPPER)) if len(values) >= least else None


def fit_timing(base: Speeds, here: Speeds) -> Timing:
    """Limits where the demonstrations are clearly slower than the base is, beside what is slower in everything."""
    found = {}
    for name in (*PHASES, *FLIPS):
        own, shown = getattr(base, name), getattr(here, name)
        if own is None or shown is None:
            continue
        if name in PHASES and shown < STANDS * here.top:
            continue
        shown_share, own_share = shown / max(here.top, 1e-9), own / max(base.top, 1e-9)
        if shown_share < SLOWER * own_share and own_share - shown_share > LEAST_DIFFERENCE:
            found[name] = shown
    return Timing(**found)


def retime(
    actions: np.ndarray,
    closed: np.ndarray,
    timing: Timing,
    *,
    commands: Sequence[int],
    gripper: int,
    sign: int,
    middle: float,
    held: Sequence[int] = (),
    full: np.ndarray | None = None,
) -> np.ndarray:
    """Follow planned chunks at the demonstrated speeds.

    Args:
        actions: [B, T, A] in the base's convention.
        closed: [B] bool, whether the fingers are closed now.
        timing: the limits.
        commands: action dimensions that move the arm. gripper: the gripper's action dimension.
        sign: 1 when a higher command closes. middle: the command half-way between open and closed.
        held: action dimensions that are values to be held and no changes.
        full: [K] a full command of each that moves the arm; None for 1.

    Returns:
        [B, T, A]; what no longer fits into the chunk is planned again from where the robot is then.
    """
    found = np.array(actions, np.float32)
    changes = changing(actions.shape[-1], gripper, held)
    for b, chunk in enumerate(found.copy()):
        follower = _Follower(timing, list(commands), changes, gripper, sign, middle, full)
        found[b] = np.stack(follower.follow(chunk, bool(closed[b]))[: len(chunk)])
    return found


@dataclass(frozen=True)
class _Follower:
    """`retime` of one chunk [T, A]; `changes` are the action dimensions that are changes, `commands` among them."""

    timing: Timing
    commands: list[int]
    changes: list[int]
    gripper: int
    sign: int
    middle: float
    full: np.ndarray | None = None

    def _speed(self, steps: np.ndarray) -> np.ndarray:
        """Of planned steps [..., A], float32 [...]."""
        size = np.abs(steps[..., self.commands])
        return np.asarray((size if self.full is None else size / self.full.astype(np.float32)).max(axis=-1))

    def follow(self, chunk: np.ndarray, closed: bool) -> list[np.ndarray]:
        """At least T steps, followed at the demonstrated speeds."""
        rows: list[np.ndarray] = []
        first = 0
        while first < len(chunk) and len(rows) < len(chunk):
            wanted = (chunk[first:, self.gripper] > self.middle) == (self.sign > 0)
            flips = np.flatnonzero(wanted != closed)
            last = first + int(flips[0]) if len(flips) else len(chunk) - 1
            part = self._spread(chunk[first : last + 1], self.timing.closed if closed else self.timing.open)
            if len(flips):
                # without a step before it, the other side of the middle is all that is known
                before = chunk[last - 1, self.gripper] if last > 0 else 2 * self.middle - chunk[last, self.gripper]
                part = self._flip_last(part, before, self.timing.opening if closed else self.timing.closing)
                closed = not closed
            rows.extend(part)
            first = last + 1
        return rows

    def _flip_last(self, part: np.ndarray, before: float, limit: float | None) -> np.ndarray:
        """Steps that end in a flip of the gripper; where they are too fast for it, it acts in a step of its own."""
        flip = part[-1].copy()
        if limit is not None and self._speed(flip) > limit:
            flip[self.changes] = 0.0
            part = np.concatenate([part, flip[None]])
        else:
            part = part.copy()
        early = (part[:-1, self.gripper] > self.middle) == (flip[self.gripper] > self.middle)
        part[:-1, self.gripper][early] = before
        return part

    def _spread(self, part: np.ndarray, limit: float | None) -> np.ndarray:
        """The same path [N, A] in as many steps as it takes when none is faster than `limit`.

        A planned step takes at least one step, so that what the base does slowly is not done faster.
        """
        speed = self._speed(part)
        if limit is None or speed.max() <= limit:
            return part
        lasts = np.maximum(speed / max(limit, 1e-6), 1.0)
        clock = np.concatenate([[0.0], np.cumsum(lasts)])
        moves = part[:, self.changes]
        path = np.concatenate([np.zeros((1, moves.shape[1])), np.cumsum(moves, axis=0)])
        ticks = np.minimum(np.arange(int(np.ceil(clock[-1] - 1e-6)) + 1), clock[-1])
        places = np.stack([np.interp(ticks, clock, path[:, k]) for k in range(moves.shape[1])], axis=1)
        found = part[np.minimum(np.searchsorted(clock[1:], ticks[1:] - 1e-6), len(part) - 1)]
        found[:, self.changes] = np.diff(places, axis=0)
        return found
