"""One control clock for an episode whose streams each have their own.

    camera   |----#-------#-------#-------#---      the last frame at or before the tick (a camera cannot see ahead)
    state    |--x---x---x---x---x---x---x---x-      linear between its neighbours; held where it jumps
    action   |----o---o---o---o---o---o---o---      the nearest command, never a blend of two
    ticks         |   |   |   |   |   |   |         start + k / rate, over the time that all chosen streams cover

When all streams already share their timestamps, without a hole, and no other rate is asked for, those steps are the
ticks: the log's own control loop, whatever its jitter. Resampling it would pair pictures with a neighbour's command.

Then idle heads and tails go: frames before the first move and after the last one teach a policy to stand still.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from vla_cli.configs import parse_indices
from vla_cli.dataset import Demonstration
from vla_cli.episode import Episode, Skipped, Stream, is_whole, median_rate, native_rate

SAME_RATE = 0.05  # rates closer than this share are one rate and some clock error; farther, an action's meaning changes
CLEAN = 0.02  # a measured rate this close to a clean number is taken for it
ALLOWANCE = 0.02  # of a step: what rounding errors may move a time stamp
GAP_STEPS = 3.0  # a silence of more than this many of a stream's own periods is a gap
IDLE_SHARE = 1e-3  # of a state dimension's range in the episode: less is no move
IDLE_FLOOR = 1e-4  # in the log's own units: less is no move
KEEP_HEAD, KEEP_TAIL = 1, 2  # idle frames kept on either side of the motion


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
    """

    rate: float
    cameras: tuple[str, ...]
    image_size: int | None = None
    state_dims: str | None = None
    action_dims: str | None = None
    keep_idle: bool = False


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
    """

    demonstration: Demonstration
    state_names: list[str]
    action_names: list[str]
    idle_head: int = 0
    idle_tail: int = 0
    gaps: int = 0
    resampled: bool = False
    notes: list[str] = field(default_factory=list)


def synchronise(episode: Episode, options: SyncOptions) -> Synchronised | Skipped:
    """Put an episode on one control clock; `Skipped` says why it cannot be.

    The state is the concatenation of the state streams in name order, the action likewise.

    Raises:
        ConfigError: `state_dims` or `action_dims` do not fit.
    """
    streams = _chosen(episode, options.cameras)
    if isinstance(streams, Skipped):
        return streams
    images, states, actions = streams
    ticks, resampled = _ticks([*images, *states, *actions], actions[0], options.rate)
    if len(ticks) < 2:
        return Skipped(episode.name, "its streams overlap in time by less than two control steps")
    state, action = _vector(states, ticks, _interpolate), _vector(actions, ticks, _nearest)
    start, stop = (0, len(ticks)) if options.keep_idle else motion(state, action)
    if stop == start:
        return Skipped(episode.name, f"nothing moves in its {len(ticks)} frames (--keep-idle keeps it)")
    kept = slice(start, stop)
    state_pick, action_pick = (
        _pick(state, options.state_dims, "--state-dims"),
        _pick(action, options.action_dims, "--action-dims"),
    )
    demonstration = Demonstration(
        name=episode.name,
        images={s.name: _frames(s, ticks[kept], options) for s in images},
        state=state[kept, state_pick].astype(np.float32),
        actions=action[kept, action_pick].astype(np.float32),
        instructions=list(episode.instructions),
        operator=episode.operator,
    )
    gaps, gap_notes = _gaps([*images, *states, *actions])
    return Synchronised(
        demonstration,
        state_names=[_names(states)[i] for i in state_pick],
        action_names=[_names(actions)[i] for i in action_pick],
        idle_head=start,
        idle_tail=len(ticks) - stop,
        gaps=gaps,
        resampled=resampled,
        notes=[*_rate_notes(actions[0], options.rate), *gap_notes],
    )


def clean_rate(rate: float) -> float:
    """The clean number within 2% of a measured rate, if there is one: 9.98 -> 10, 29.97 -> 30, 12.5 stays."""
    for unit in (10.0, 5.0, 1.0):
        snapped = round(rate / unit) * unit
        if snapped > 0 and abs(snapped - rate) <= CLEAN * rate:
            return snapped
    return rate


def motion(state: np.ndarray, action: np.ndarray) -> tuple[int, int]:
    """First frame and end of the part of an episode in which something moves, with a few idle frames around it.

    A step is a move when a state dimension changes by more than `IDLE_SHARE` of its range in the episode (and more
    than `IDLE_FLOOR`), or an action dimension that only ever has two values (a gripper command) switches.

    Args:
        state: [T, S], S may be 0 (then nothing is taken for idle: there is nothing to judge by).
        action: [T, A].

    Returns:
        start and stop; equal when nothing moves at all.
    """
    if state.shape[1] == 0:
        return 0, len(state)
    least = np.maximum(IDLE_SHARE * np.ptp(state, axis=0), IDLE_FLOOR)
    moves = np.any(np.abs(np.diff(state, axis=0)) > least, axis=1)
    switches = np.array([len(np.unique(column)) == 2 for column in action.T], bool)
    moves |= np.any(np.diff(action[:, switches], axis=0) != 0, axis=1)
    if not moves.any():
        return 0, 0
    first, last = np.flatnonzero(moves)[[0, -1]]
    return max(0, int(first) - KEEP_HEAD), min(len(state), int(last) + 1 + KEEP_TAIL)


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


def _chosen(episode: Episode, cameras: Sequence[str]) -> tuple[list[Stream], list[Stream], list[Stream]] | Skipped:
    by_name = {s.name: s for s in episode.of_role("image")}
    missing = [camera for camera in cameras if camera not in by_name]
    if missing:
        return Skipped(episode.name, f"it has no camera {', '.join(missing)} (it has {', '.join(by_name) or 'none'})")
    return [by_name[camera] for camera in cameras], episode.of_role("state"), episode.of_role("action")


def _ticks(streams: list[Stream], action: Stream, rate: float) -> tuple[np.ndarray, bool]:
    """Tick times [T] in seconds, and whether they differ from the log's own steps."""
    clock = action.timestamps
    shared = all(np.array_equal(s.timestamps, clock) for s in streams)
    if shared and is_whole(clock) and abs(native_rate(action) - rate) <= SAME_RATE * rate:
        return clock, False
    start = max(s.timestamps[0] for s in streams)
    end = min(s.timestamps[-1] for s in streams)
    if end < start:
        return np.empty(0), True
    # The small allowance keeps the last tick when the streams end on it but for rounding.
    count = int(np.floor((end - start) * rate + ALLOWANCE)) + 1
    return start + np.arange(count) / rate, True


def _hold(stream: Stream, ticks: np.ndarray) -> np.ndarray:
    """Index [T] of the last sample at or before each tick, rounding errors aside."""
    allowance = ALLOWANCE * np.median(np.diff(ticks)) if len(ticks) > 1 else 0.0
    found = np.searchsorted(stream.timestamps, ticks + allowance, side="right") - 1
    return np.clip(found, 0, len(stream) - 1)


def _nearest(stream: Stream, ticks: np.ndarray) -> np.ndarray:
    """The sample nearest to each tick; the earlier of two equally near, rounding errors aside.

    Without that allowance a tick midway between commands would take now this one and now that: one twice, one never.
    """
    clock, rate = stream.timestamps, median_rate(stream.timestamps)
    allowance = ALLOWANCE / rate if rate else 0.0
    after = np.clip(np.searchsorted(clock, ticks), 0, len(clock) - 1)
    before = np.maximum(after - 1, 0)
    return stream.values[np.where(ticks - clock[before] <= clock[after] - ticks + allowance, before, after)]


def _interpolate(stream: Stream, ticks: np.ndarray) -> np.ndarray:
    """Linear between neighbours, per dimension.

    A dimension that jumps by more than half its range from one sample to the next (a gripper, an angle that wraps, a
    quaternion that changes sign) is held across the jump: values in between never were.
    """
    clock, values = stream.timestamps, np.asarray(stream.values, np.float64)
    before = np.clip(np.searchsorted(clock, ticks, side="right") - 1, 0, len(clock) - 1)
    after = np.minimum(before + 1, len(clock) - 1)
    span = clock[after] - clock[before]
    share = np.where(span > 0, (ticks - clock[before]) / np.where(span > 0, span, 1.0), 0.0)
    low, high = values[before], values[after]
    held = np.abs(high - low) > 0.5 * np.ptp(values, axis=0)
    return np.where(held, low, low + np.clip(share, 0.0, 1.0)[:, None] * (high - low))


def _vector(streams: list[Stream], ticks: np.ndarray, sample: Callable[[Stream, np.ndarray], np.ndarray]) -> np.ndarray:
    if not streams:
        return np.zeros((len(ticks), 0))
    return np.concatenate([np.asarray(sample(stream, ticks), np.float64) for stream in streams], axis=1)


def _frames(stream: Stream, ticks: np.ndarray, options: SyncOptions) -> np.ndarray:
    chosen = _hold(stream, ticks)
    if options.image_size is None:
        return stream.values[chosen]
    return np.stack([square(stream.values[i], options.image_size) for i in chosen])


def _pick(values: np.ndarray, dims: str | None, option: str) -> list[int]:
    width = values.shape[1]
    return list(range(width)) if dims is None else parse_indices(dims, width, option)


def _names(streams: list[Stream]) -> list[str]:
    """One name a dimension of the concatenation: the log's own (after the stream's, if several), or stream[i]."""
    found: list[str] = []
    for stream in streams:
        width, own = stream.values.shape[1], stream.attributes.get("names", [])
        prefix = f"{stream.name}." if len(streams) > 1 else ""
        named = len(own) == width and width > 0
        found.extend(f"{prefix}{name}" for name in own if named)
        found.extend(f"{stream.name}[{index}]" for index in range(width) if not named)
    return found


def _rate_notes(action: Stream, rate: float) -> list[str]:
    native = native_rate(action)
    if native <= 0 or abs(rate - native) <= SAME_RATE * rate:
        return []
    done = "left out" if rate < native else "repeated"
    return [
        f"the action stream runs at {native:.4g} Hz and the dataset at {rate:.4g} Hz: commands are {done}, so that "
        "actions which are changes a step mean another distance now"
    ]


def _gaps(streams: list[Stream]) -> tuple[int, list[str]]:
    """The most gaps in any one stream (streams on one clock share theirs), and a sentence a stream."""
    most, notes = 0, []
    for stream in streams:
        steps = np.diff(stream.timestamps)
        rate = median_rate(stream.timestamps)
        long = steps[steps * rate > GAP_STEPS] if rate else steps[:0]
        if len(long):
            most = max(most, len(long))
            notes.append(
                f"{stream.role} stream '{stream.name}' is silent {len(long)} time(s), {long.max():.2f} s at most"
            )
    return most, notes
