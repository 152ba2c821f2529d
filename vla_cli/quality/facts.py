"""What the checks of `quality` are told, and what they say.

    Episode (raw streams)  --motion_of-->  Motion (one clock)  --examine-->  EpisodeFacts  --judge-->  Finding
                                                                             (kept for all episodes)

Frames of a finding are counted from 0 in the stream that it names, on that stream's own clock; those of a finding on
the motion as a whole are counted on the clock of the actions. `seconds` says the same in the episode's own time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from vla_cli.episode import Episode, Stream, native_rate
from vla_cli.synchrony.stillness import moves

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")
"""From mild to grave: worth knowing; harms training; the data contradict themselves."""
Spans = tuple[tuple[int, int], ...]
"""First and last frame of each stretch, both inside it."""
LEAST_OTHERS = 4
"""With fewer others nothing is usual."""
GRIPPER_WORDS = ("grip", "finger", "hand", "jaw", "claw")
MOVE_SHARE, MOVE_FLOOR = 1e-3, 1e-4
"""Of a state dimension's range, and in its own units: less is no move, over a step of `stillness.STEP_RATE`. As
`IDLE_SHARE` and `IDLE_FLOOR` of `synchrony.synchronise`."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that a check found.

    Attributes:
        check: the check's name.
        severity: see `SEVERITIES`.
        episode: its name, or "" for the whole set.
        message: a plain sentence with the episode, the stream, the frames and the value.
        stream: the stream it was found in, or "".
        dimensions: the stream's columns that it concerns, or none.
        frames: where, see the module.
        seconds: start and end of each stretch of `frames` in the episode's time; the end is when the next frame came.
        value: the figure that was compared with the threshold.
        also: other episodes that it concerns.
    """

    check: str
    severity: Severity
    episode: str
    message: str
    stream: str = ""
    dimensions: tuple[int, ...] = ()
    frames: Spans = ()
    seconds: tuple[tuple[float, float], ...] = ()
    value: float | None = None
    also: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        values = asdict(self) | {
            "dimensions": list(self.dimensions),
            "frames": [list(span) for span in self.frames],
            "also": list(self.also),
        }
        values["seconds"] = [[round(time, 4) for time in span] for span in self.seconds]
        return values | {"value": None if self.value is None else round(float(self.value), 6)}


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """What is a finding if the whole set does not explain it.

    Attributes:
        finding: as it would be.
        column: the dimension, as in `EpisodeFacts.usual`.
        figure: what is compared with that dimension's usual figure in all episodes.
    """

    finding: Finding
    column: str
    figure: float


@dataclass(frozen=True, kw_only=True)
class Motion:
    """An episode's numbers on one clock.

    Attributes:
        timestamps: [T] float64 seconds in the episode's own time, ascending.
        state: [T, S] float64, the log's own units; S may be 0.
        actions: [T, A] float64; actions[t] is the command given at timestamps[t].
        state_names: one a state dimension.
        action_names: one an action dimension.
        rate_hz: frames a second.
    """

    timestamps: np.ndarray
    state: np.ndarray
    actions: np.ndarray
    state_names: Sequence[str]
    action_names: Sequence[str]
    rate_hz: float

    def __len__(self) -> int:
        return len(self.timestamps)

    def moved(self) -> np.ndarray:
        """[T - 1] bool: whether anything moves on the way to the next frame (see `MOVE_SHARE`, `stillness.moves`).

        Without a state, whether a command that is no gripper's is other than 0.
        """
        return np.asarray(self.steps() > 0 if self.state.shape[1] == 0 else self._alive().any(axis=1))

    def steps(self) -> np.ndarray:
        """[T - 1] how far each step goes: the largest change of any state dimension as a share of its range.

        0 for dimensions that do not move (see `moved`). Without a state, the largest command that is no gripper's.
        """
        if self.state.shape[1] == 0:
            arm = ~gripper_columns(self.actions, self.action_names)
            return np.abs(self.actions[:-1, arm]).max(axis=1, initial=0.0)
        spread = np.ptp(self.state, axis=0)
        way = np.where(self._alive(), np.abs(np.diff(self.state, axis=0)), 0.0)
        return (way / np.where(spread > 0, spread, 1.0)).max(axis=1, initial=0.0)

    def _alive(self) -> np.ndarray:
        least = np.maximum(MOVE_SHARE * np.ptp(self.state, axis=0), MOVE_FLOOR)
        return moves(self.state, least, self.rate_hz)


def motion_of(episode: Episode) -> Motion:
    """The states and actions of an episode on the clock of its first action stream, over the time that all cover.

    States are linear between neighbours, and the nearest where a dimension has two values only; actions are the
    nearest. Doubled or backward stamps of the clock are passed over.
    """
    states, actions = episode.of_role("state"), episode.of_role("action")
    clock = actions[0].timestamps
    ticks = clock[ascending(clock)]
    start = max(float(s.timestamps.min()) for s in (*states, *actions))
    end = min(float(s.timestamps.max()) for s in (*states, *actions))
    ticks = ticks[(ticks >= start) & (ticks <= end)]
    return Motion(
        timestamps=ticks,
        state=_sampled(states, ticks, linear=True),
        actions=_sampled(actions, ticks, linear=False),
        state_names=[name for s in states for name in column_names(s, several=len(states) > 1)],
        action_names=[name for s in actions for name in column_names(s, several=len(actions) > 1)],
        rate_hz=native_rate(actions[0]) or 1.0,
    )


def _sampled(streams: Sequence[Stream], ticks: np.ndarray, *, linear: bool) -> np.ndarray:
    columns = [np.zeros((len(ticks), 0))]
    for stream in streams:
        kept = ascending(stream.timestamps)
        clock, values = stream.timestamps[kept], np.asarray(stream.values, np.float64)[kept]
        after = np.clip(np.searchsorted(clock, ticks), 0, len(clock) - 1)
        before = np.maximum(after - 1, 0)
        nearest = values[np.where(ticks - clock[before] < clock[after] - ticks, before, after)]
        smooth = [i for i, column in enumerate(values.T) if linear and not is_switch(column)]
        for i in smooth:
            nearest[:, i] = np.interp(ticks, clock, values[:, i])
        columns.append(nearest)
    return np.concatenate(columns, axis=1)


def ascending(clock: np.ndarray) -> np.ndarray:
    """[T] bool: the stamps of a clock [T] that are above all before them."""
    highest = np.maximum.accumulate(np.concatenate([[-np.inf], clock[:-1]]))
    return clock > highest


def column_names(stream: Stream, *, several: bool = False) -> list[str]:
    """One name a dimension: the log's own, after the stream's where there are several streams, or stream[i]."""
    width, own = stream.values.shape[1], stream.attributes.get("names", [])
    if len(own) == width:
        return [f"{stream.name}.{name}" if several else str(name) for name in own]
    return [f"{stream.name}[{i}]" for i in range(width)]


def is_switch(column: np.ndarray) -> bool:
    """Whether a dimension [T] has two values only."""
    return len(np.unique(column)) == 2


def gripper_columns(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """[D] bool: dimensions of [T, D] that are a gripper's or a switch's: by name, or because they have two values."""
    switches = np.array([is_switch(column) for column in values.T], bool)
    return named_grippers(names) | switches


def named_grippers(names: Sequence[str]) -> np.ndarray:
    """[D] bool: dimensions that are a gripper's by name."""
    return np.array([any(word in name.lower() for word in GRIPPER_WORDS) for name in names], bool)


def stretches(flags: np.ndarray) -> Spans:
    """First and last index of each run of True in [T] bool."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], np.asarray(flags, np.int8), [0]])))
    return tuple((int(first), int(end) - 1) for first, end in zip(edges[::2], edges[1::2], strict=True))


def length(spans: Spans) -> int:
    """Frames in all stretches."""
    return sum(last - first + 1 for first, last in spans)


def times(spans: Spans, clock: np.ndarray) -> tuple[tuple[float, float], ...]:
    """Stretches of a clock [T] in its seconds; each ends when the next frame came."""
    period = float(np.median(np.diff(clock))) if len(clock) > 1 else 0.0
    ends = np.append(clock[1:], clock[-1] + period)
    return tuple((float(clock[first]), float(ends[last])) for first, last in spans)


def listed(spans: Spans, word: str = "frames", most: int = 4) -> str:
    """In words: "frames 3-9 and 14"."""
    parts = [f"{first}-{last}" if last > first else str(first) for first, last in spans]
    if len(parts) > most:
        parts = [*parts[:most], f"{len(parts) - most} more stretches"]
    text = " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{word if length(spans) > 1 else word.removesuffix('s')} {text}"


@dataclass
class EpisodeFacts:
    """What is kept of an episode to judge it beside the others: small, and JSON values only.

    Attributes:
        name, operator, instruction: as in the episode.
        frames, seconds: of the motion, from the first move to the last.
        rate_hz: of the motion.
        rates: samples a second of each state stream, by "state/stream".
        findings: what the episode showed by itself.
        suspects: what it would be accused of by itself, to be compared with `usual` of all episodes.
        usual: top step by state dimension ("state/stream/index"), and end of the range by command ("action/...").
        switches: commands that have two values at most here.
        state_names: one a dimension of `path`.
        path: `PATH_POINTS` states over time, evenly spaced from the first move to the last.
        thumbnails: camera to small grey pictures at the same share of the episode (see `pictures`).
        sharpness: camera to the median variance of the Laplacian.
        end: how it ends (see `checks.ending`).
        lag: agreement of command and motion by lag (see `answers.lag_curve`).
        gains: how the arm answers commands within and at their limit, by action name (see `answers.gains`).
        gains_hz: the rate of the steps that `gains` are of.
        spread: commonest value and range by dimension (see `checks.spread`).
    """

    name: str
    operator: str = "unknown"
    instruction: str = ""
    frames: int = 0
    seconds: float = 0.0
    rate_hz: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    usual: dict[str, float] = field(default_factory=dict)
    switches: list[str] = field(default_factory=list)
    state_names: list[str] = field(default_factory=list)
    path: list[list[float]] = field(default_factory=list)
    thumbnails: dict[str, list[list[int]]] = field(default_factory=dict)
    sharpness: dict[str, float] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)
    lag: dict[str, Any] = field(default_factory=dict)
    gains: dict[str, Any] = field(default_factory=dict)
    gains_hz: float = 0.0
    spread: dict[str, Any] = field(default_factory=dict)
