"""One control clock for an episode whose streams each have their own.

    camera   |----#-------#-------#-------#---      the last frame at or before the tick (a camera cannot see ahead)
    state    |--x---x---x---x---x---x---x---x-      linear between its neighbours; rotations spherical, grippers held
    action   |----o---o---o---o---o---o---o---      the nearest command, unless its mode is known (see `resample`)
    ticks         |   |   |   |   |   |   |         start + k / rate, over the time that all chosen streams cover

When all streams already share their timestamps, without a hole, and no other rate is asked for, those steps are the
ticks: the log's own control loop, whatever its jitter. Resampling it would pair pictures with a neighbour's command.

Then idle heads and tails go: frames before the first move and after the last one teach a policy to stand still.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from vla_cli.configs import parse_indices
from vla_cli.dataset import Demonstration
from vla_cli.episode import Episode, Skipped, Stream, UnusableError
from vla_cli.errors import ConfigError
from vla_cli.frames import ArrayFrames, Frames
from vla_cli.synchrony.actions import CHOICES, close_high, convert_actions
from vla_cli.synchrony.clocks import SAME_RATE as SAME_RATE
from vla_cli.synchrony.clocks import ClockFault, clock_faults, control_ticks, delayed, fault_notes, in_gaps
from vla_cli.synchrony.clocks import clean_rate as clean_rate
from vla_cli.synchrony.dimensions import knows_gripper, parts_of, stated
from vla_cli.synchrony.resample import continuous, hold, sample_action, sample_state
from vla_cli.synchrony.stillness import STEP_RATE

IDLE_SHARE = 1e-3  # of a state dimension's range in the episode: less is no move
IDLE_FLOOR = 1e-4  # in the log's own units: less is no move
IDLE_RATE = STEP_RATE  # Hz; changes are judged over a step of this rate, for at a high one every single step is small
KEEP_HEAD, KEEP_TAIL = 1, 2  # idle frames kept on either side of the motion
GRIPPERS = ("as-recorded", "normalise")


@dataclass(frozen=True, kw_only=True)
class SyncOptions:
    """How to synchronise.

    Attributes:
        rate: ticks a second.
        cameras: image streams to keep, in the policy's order.
        image_size: pictures become squares of this many pixels, or None to leave them.
        state_dims: which dimensions of the concatenated state to keep ("0-6,9"), or None for all.
        action_dims: likewise of the action.
        keep_idle: keep idle heads and tails.
        latency: stream or role ("camera", "state", "action") to the seconds by which its time stamps are late.
        actions: one of `actions.CHOICES`: as recorded, or made absolute, changes against the state, or the next state.
        gripper: "as-recorded", or "normalise": low when open, high when closed.
        gripper_ranges: see `actions.gripper_ranges`; for "normalise".
    """

    rate: float
    cameras: tuple[str, ...]
    image_size: int | None = None
    state_dims: str | None = None
    action_dims: str | None = None
    keep_idle: bool = False
    latency: Mapping[str, float] = field(default_factory=dict)
    actions: str = "as-recorded"
    gripper: str = "as-recorded"
    gripper_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass
class Synchronised:
    """An episode on the control clock, and what was done to it.

    Attributes:
        demonstration: the result.
        state_names: one a state dimension.
        action_names: one an action dimension.
        idle_head: frames trimmed before the motion.
        idle_tail: frames trimmed after it.
        gaps: silences longer than `GAP_STEPS` of a stream's own periods, in the stream that has most.
        resampled: False when the log's own steps are the ticks.
        notes: plain sentences a person may want to read.
        ticks: [T] float64 seconds of the kept frames, on the episode's clock.
        frame_indices: camera to [T] int64, which of its recorded pictures each kept frame is: one twice is a picture
            that came late, one left out a picture that the control rate skips.
        in_gap: [T] bool, whether a stream is silent around the kept frame, so that a value was held or blended over it.
        clock_faults: every gap and doubled stamp of every stream, with times on the episode's clock.
        action_mode: `mode` of the actions as they are now; "mixed" when their streams differ.
        rotation: first column, kind (`rotations.WIDTHS`) and whether in degrees of the hand's rotation in the state.
    """

    demonstration: Demonstration
    state_names: list[str]
    action_names: list[str]
    idle_head: int = 0
    idle_tail: int = 0
    gaps: int = 0
    resampled: bool = False
    notes: list[str] = field(default_factory=list)
    ticks: np.ndarray = field(default_factory=lambda: np.empty(0))
    frame_indices: dict[str, np.ndarray] = field(default_factory=dict)
    in_gap: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    clock_faults: list[ClockFault] = field(default_factory=list)
    action_mode: str = "unknown"
    rotation: tuple[int, str, bool] | None = None

    @property
    def ticks_in_gaps(self) -> int:
        """How many kept frames lie in a gap."""
        return int(self.in_gap.sum())


@dataclass
class _Streams:
    """The chosen streams of an episode; `images` are as recorded, vectors may be on ticks."""

    images: list[Stream]
    states: list[Stream]
    actions: list[Stream]

    @property
    def all(self) -> list[Stream]:
        return [*self.images, *self.states, *self.actions]


def synchronise(episode: Episode, options: SyncOptions) -> Synchronised | Skipped:
    """Put an episode on one control clock; `Skipped` says why it cannot be.

    The state is the concatenation of the state streams in name order, the action likewise.

    Raises:
        ConfigError: an option does not fit, or needs a convention that nobody has stated.
    """
    check_choices(options.actions, options.gripper)
    try:
        return _synchronise(episode, options)
    except UnusableError as error:
        return Skipped(episode.name, str(error))


def _synchronise(episode: Episode, options: SyncOptions) -> Synchronised:
    recorded = _chosen(episode, options.cameras)
    shifted = delayed(recorded.all, options.latency)
    faults = _faults(shifted)
    ticks, resampled = control_ticks(recorded.all, shifted, len(recorded.images) + len(recorded.states), options.rate)
    if len(ticks) < 2:
        raise UnusableError("its streams overlap in time by less than two control steps")
    sampled, notes = _sample(_split(shifted, recorded), ticks, options.rate)
    state, action = _joined(sampled.states, ticks), _joined(sampled.actions, ticks)
    start, stop = 0, len(ticks)
    if not options.keep_idle:
        start, stop = motion(state, action, rate=options.rate, grippers=_grippers(sampled.actions))
    if stop == start:
        raise UnusableError(f"nothing moves in its {len(ticks)} frames (--keep-idle keeps it)")
    sampled, made = _as_wanted(sampled, options)
    state, action = _joined(sampled.states, ticks), _joined(sampled.actions, ticks)
    kept = slice(start, stop)
    indices = {stream.name: hold(stream.timestamps, ticks[kept]) for stream in sampled.images}
    picks = _pick(state, options.state_dims, "--state-dims"), _pick(action, options.action_dims, "--action-dims")
    names = (
        [dimension_names(sampled.states)[i] for i in picks[0]],
        [dimension_names(sampled.actions)[i] for i in picks[1]],
    )
    demonstration = Demonstration(
        name=episode.name,
        images={s.name: _frames(s, indices[s.name], options.image_size) for s in sampled.images},
        state=_single("state", state[kept, picks[0]], names[0]),
        actions=_single("action", action[kept, picks[1]], names[1]),
        instructions=list(episode.instructions),
        operator=episode.operator,
    )
    gaps = Counter(fault.stream for fault in faults if fault.kind == "gap")
    modes = {stated(stream, "mode") for stream in sampled.actions}
    return Synchronised(
        demonstration,
        state_names=names[0],
        action_names=names[1],
        idle_head=start,
        idle_tail=len(ticks) - stop,
        gaps=max(gaps.values(), default=0),
        resampled=resampled,
        notes=[*notes, *made, *fault_notes(faults, _origin(shifted))],
        ticks=ticks[kept],
        frame_indices=indices,
        in_gap=in_gaps(ticks, faults)[kept],
        clock_faults=faults,
        action_mode=modes.pop() if len(modes) == 1 else "mixed",
        rotation=_rotation(sampled.states, picks[0]),
    )


def motion(
    state: np.ndarray, action: np.ndarray, *, rate: float = IDLE_RATE, grippers: Sequence[int] | None = None
) -> tuple[int, int]:
    """First frame and end of the part of an episode in which something moves, with a few idle frames around it.

    Something moves when a state dimension changes by more than `IDLE_SHARE` of its range in the episode (and more than
    `IDLE_FLOOR`) within a step of `IDLE_RATE`, however many frames that takes, or a gripper command by more than
    `IDLE_SHARE` of its range. An action dimension that only ever has two values is always taken for such a command.

    Args:
        state: [T, S], S may be 0 (then nothing is taken for idle: there is nothing to judge by).
        action: [T, A].
        rate: frames a second.
        grippers: which dimensions of the action are grippers. None: nobody has said so; without a dimension of two
            values, those that keep their value in most steps are then taken for grippers.

    Returns:
        start and stop; equal when nothing moves at all.
    """
    if state.shape[1] == 0:
        return 0, len(state)
    window = min(max(1, round(rate / IDLE_RATE)), len(state) - 1)
    commands = action[:, _commands(action, grippers)]
    moves = np.any(_changes(state, window) > np.maximum(IDLE_SHARE * np.ptp(state, axis=0), IDLE_FLOOR), axis=1)
    moves |= np.any(_changes(commands, window) > IDLE_SHARE * np.ptp(commands, axis=0), axis=1)
    if not moves.any():
        return 0, 0
    first, last = np.flatnonzero(moves)[[0, -1]]
    return max(0, int(first) - KEEP_HEAD), min(len(state), int(last) + window + KEEP_TAIL)


def _changes(values: np.ndarray, steps: int) -> np.ndarray:
    return np.abs(values[steps:] - values[:-steps])


def _commands(action: np.ndarray, grippers: Sequence[int] | None) -> np.ndarray:
    """Which dimensions of an action [T, A] are gripper commands, as bool [A]; see `motion`."""
    switches = np.array([len(np.unique(column)) == 2 for column in action.T], bool)
    if grippers is None:
        held = np.mean(np.diff(action, axis=0) == 0, axis=0) > 0.5
        return switches if switches.any() else held
    switches[list(grippers)] = True
    return switches


def _grippers(actions: Sequence[Stream]) -> list[int] | None:
    """Which dimensions of the concatenated action are grippers; None when nobody has said whether there are any."""
    found, offset = [], 0
    for stream in actions:
        found += [offset + index for index in parts_of(stream).grippers]
        offset += stream.values.shape[1]
    return found if found or all(knows_gripper(stream) for stream in actions) else None


def square(picture: np.ndarray, size: int) -> np.ndarray:
    """Pad [H, W, 3] uint8 to a centred square with black and resize it to [size, size, 3], antialiased."""
    height, width = picture.shape[:2]
    if height == width == size:
        return picture
    side = max(height, width)
    padded = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    padded[top : top + height, left : left + width] = picture
    return np.asarray(Image.fromarray(padded).resize((size, size), Image.Resampling.BILINEAR))


def check_choices(actions: str, gripper: str) -> None:
    """Refuse a way to write actions or grippers that there is none of.

    Raises:
        ConfigError: it is one.
    """
    for option, value, allowed in (("--actions", actions, CHOICES), ("--gripper", gripper, GRIPPERS)):
        if value not in allowed:
            raise ConfigError(f"{option} is '{value}'", expected=f"one of: {', '.join(allowed)}")


def _chosen(episode: Episode, cameras: Sequence[str]) -> _Streams:
    by_name = {s.name: s for s in episode.of_role("image")}
    missing = [camera for camera in cameras if camera not in by_name]
    if missing:
        raise UnusableError(f"it has no camera {', '.join(missing)} (it has {', '.join(by_name) or 'none'})")
    return _Streams([by_name[camera] for camera in cameras], episode.of_role("state"), episode.of_role("action"))


def _split(streams: list[Stream], like: _Streams) -> _Streams:
    images, states = len(like.images), len(like.images) + len(like.states)
    return _Streams(streams[:images], streams[images:states], streams[states:])


def _faults(streams: list[Stream]) -> list[ClockFault]:
    """Raises UnusableError for a clock that runs backwards: which sample came first is not known."""
    faults = [fault for stream in streams for fault in clock_faults(stream)]
    backwards = [fault for fault in faults if fault.kind == "backwards"]
    if backwards:
        raise UnusableError("; ".join(fault_notes(backwards, _origin(streams))))
    return faults


def _origin(streams: list[Stream]) -> float:
    return min(float(stream.timestamps[0]) for stream in streams)


def _sample(streams: _Streams, ticks: np.ndarray, rate: float) -> tuple[_Streams, list[str]]:
    """The vectors on the ticks, and notes; those of dimensions only where values had to be made."""
    notes: list[str] = []

    def on_ticks(stream: Stream) -> Stream:
        whole, flips = continuous(stream)
        of_action = stream.role == "action"
        values, made = sample_action(whole, ticks, rate) if of_action else sample_state(whole, ticks)
        notes.extend(note for note in [*made, *flips] if note not in notes)
        return replace(whole, values=values, timestamps=ticks)

    # Actions first: what befalls them is what a person should read first.
    actions = [on_ticks(stream) for stream in streams.actions]
    return _Streams(streams.images, [on_ticks(stream) for stream in streams.states], actions), notes


def _as_wanted(streams: _Streams, options: SyncOptions) -> tuple[_Streams, list[str]]:
    """The vectors with the actions and the gripper that the options ask for."""
    states, actions, closed = streams.states, streams.actions, []
    if options.gripper == "normalise":
        # before the conversion, so that next states are those of the dataset
        states, closed = _closed(states, options)
        if options.actions != "next-state":  # then the recorded actions are not used
            actions, more = _closed(actions, options)
            closed += more
    actions, notes = convert_actions(actions, states, options.actions)
    return _Streams(streams.images, states, actions), [*notes, *closed]


def _closed(streams: Sequence[Stream], options: SyncOptions) -> tuple[list[Stream], list[str]]:
    found = [close_high(stream, options.gripper_ranges) for stream in streams]
    return [stream for stream, _ in found], [note for _, notes in found for note in notes]


def _joined(streams: list[Stream], ticks: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((len(ticks), 0)), *(stream.values for stream in streams)], axis=1)


def _single(vector: str, values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """As float32; raises UnusableError for what that does not hold (such as the largest float64, for "no reading")."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    bad = np.argwhere(~np.isfinite(found))
    if len(bad):
        row, column = bad[0]
        raise UnusableError(
            f"its {vector} {names[column]} is {values[row, column]:.4g}, which float32 cannot hold "
            f"({len(bad)} such value(s))"
        )
    return found


def _frames(stream: Stream, indices: np.ndarray, size: int | None) -> np.ndarray:
    frames = stream.values if isinstance(stream.values, Frames) else ArrayFrames(stream.values)
    chosen = (upright(picture, stream.attributes) for picture in frames.take(indices))
    return np.stack([picture if size is None else square(picture, size) for picture in chosen])


def upright(picture: np.ndarray, conventions: Mapping[str, Any]) -> np.ndarray:
    """A picture [H, W, 3] upright and in RGB, as its stream's conventions say; what they do not say is left."""
    orientation = conventions.get("orientation")
    if orientation in ("upside-down", "rotated-180"):
        picture = picture[::-1] if orientation == "upside-down" else picture[::-1, ::-1]
    return picture[..., ::-1] if conventions.get("channels") == "bgr" else picture


def _rotation(states: list[Stream], picked: list[int]) -> tuple[int, str, bool] | None:
    """The first rotation of the concatenated state whose columns were all picked, by its place among the picked."""
    offset = 0
    for stream in states:
        parts = parts_of(stream)
        for block in parts.blocks:
            columns = list(range(offset + block.start, offset + block.stop))
            at = picked.index(columns[0]) if columns[0] in picked else len(picked)
            if picked[at : at + len(columns)] == columns:
                return at, parts.kind, parts.degrees
        offset += stream.values.shape[1]
    return None


def _pick(values: np.ndarray, dims: str | None, option: str) -> list[int]:
    width = values.shape[1]
    return list(range(width)) if dims is None else parse_indices(dims, width, option)


def dimension_names(streams: Sequence[Stream]) -> list[str]:
    """One name a dimension of the concatenation: the log's own (after the stream's, if several), or stream[i]."""
    found: list[str] = []
    for stream in streams:
        width, own = stream.values.shape[1], stream.attributes.get("names", [])
        prefix = f"{stream.name}." if len(streams) > 1 else ""
        named = len(own) == width and width > 0
        found.extend(f"{prefix}{name}" for name in own if named)
        found.extend(f"{stream.name}[{index}]" for index in range(width) if not named)
    return found
