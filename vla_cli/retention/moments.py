"""Which half of a demonstration a frame is in, and the demonstrated windows under instructions that they do not show.

    gripper command   open open CLOSE close close OPEN open
    holding           no   no   no    yes   yes   yes  no      a frame is what was seen *before* its command

What closes a gripper is not known in general, so holding is told from one action dimension alone: it lasts from the
first command on the side of the threshold on which the demonstration did not start, until the command that goes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vla_cli.errors import ConfigError
from vla_cli.language.alternatives import Alternative, not_shown
from vla_cli.operators.grasps import holding_frames
from vla_cli.retention import ALTERNATIVES_HINT, lacking
from vla_cli.windows import Samples, Windows


class Counterfactuals:
    """Windows of demonstrations under other instructions that fit the moment.

    Args:
        windows: of the demonstrations.
        alternatives: what else could be asked; those that the demonstrations show themselves are left out.
        gripper_dim: action dimension of the gripper, negative ones count from the last.
        gripper_threshold: between open and closed, raw units; None takes the middle of all recorded commands.
        method: for errors.

    Raises:
        ConfigError: there are no alternatives, none fits any frame, or the action has no such dimension.
    """

    def __init__(
        self,
        windows: Windows,
        alternatives: Sequence[Alternative],
        *,
        gripper_dim: int,
        gripper_threshold: float | None,
        method: str,
    ) -> None:
        shown = [text for demo in windows.demonstrations for text in demo.instructions]
        self.alternatives = not_shown(alternatives, shown)
        if not alternatives:
            raise lacking(method, "alternatives")
        if not self.alternatives:
            raise ConfigError(
                f"The recipe's '{method}' needs other instructions than the demonstrations show, and none were given",
                expected="--alternatives with instructions about things in the scene",
                hint=ALTERNATIVES_HINT,
            )
        self.windows, self.method = windows, method
        tracks = _gripper_tracks(windows, gripper_dim, gripper_threshold, method)
        self.holding = np.concatenate(tracks)
        self.before_grasp = np.concatenate([~np.maximum.accumulate(track) for track in tracks])
        self._fitting = {held: [a.instruction for a in self.alternatives if a.fits(held)] for held in (False, True)}
        self._rows = np.flatnonzero([bool(self._fitting[bool(held)]) for held in self.holding])
        if len(self._rows) == 0:
            raise ConfigError(
                f"None of the alternatives fits any frame, so '{method}' has no use for them", hint=ALTERNATIVES_HINT
            )

    def draw(self, rng: np.random.Generator, count: int) -> Samples:
        """`count` random windows, each told a random alternative that fits; their actions stay the demonstration's."""
        rows = self._rows[rng.choice(len(self._rows), count, replace=count > len(self._rows))]
        choices = [self._fitting[bool(held)] for held in self.holding[rows]]
        told = [fitting[int(rng.integers(len(fitting)))] for fitting in choices]
        return replace(self.windows.gather(rows), instructions=told)

    def pairs_before_grasp(self, count: int) -> tuple[Samples, Samples]:
        """At most `count` evenly spaced windows before the grasp: as shown, and told the alternatives by turns.

        Raises:
            ConfigError: all alternatives are for a full gripper.
        """
        told = self._fitting[False]
        if not told:
            raise ConfigError(
                f"'{self.method}' looks at frames before the grasp, and every alternative is for later",
                expected="some with `while: empty` or `always`",
                hint=ALTERNATIVES_HINT,
            )
        rows = np.flatnonzero(self.before_grasp)
        rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]
        shown = self.windows.gather(rows)
        return shown, replace(shown, instructions=[told[i % len(told)] for i in range(len(shown))])


def _gripper_tracks(windows: Windows, dim: int, threshold: float | None, method: str) -> list[np.ndarray]:
    """Holding [T] of each demonstration."""
    width = windows.demonstrations[0].actions.shape[1]
    if not -width <= dim < width:
        raise ConfigError(
            f"{method}'s gripper_dim is {dim}, but an action has {width} dimensions",
            expected=f"{-width} .. {width - 1}",
        )
    commands = [demo.actions[:, dim] for demo in windows.demonstrations]
    if threshold is None:
        threshold = (min(float(c.min()) for c in commands) + max(float(c.max()) for c in commands)) / 2
    # a demonstration without frames has no windows either
    return [holding_frames(c, threshold) for c in commands if len(c)]
