"""The clocks of an episode's streams: which ticks they share, what is wrong with them, and how late they are.

A fault of a clock is reported with its time, never papered over: a silence of more than `GAP_STEPS` of the stream's
own periods, a stamp twice, a step backwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vla_cli.episode import Stream, is_whole, median_rate, native_rate
from vla_cli.errors import ConfigError
from vla_cli.synchrony.dimensions import label

SAME_RATE = 0.05  # rates closer than this share are one rate and some clock error; farther, an action's meaning changes
CLEAN = 0.02  # a measured rate this close to a clean number is taken for it
ALLOWANCE = 0.02  # of a step: what rounding errors may move a time stamp
GAP_STEPS = 3.0  # a silence of more than this many of a stream's own periods is a gap
_TIMES_SHOWN = 3


@dataclass(frozen=True)
class ClockFault:
    """One fault of one stream's clock.

    Attributes:
        stream: such as "image stream 'front'".
        kind: what it is.
        start: seconds on the stream's clock of the last good stamp before it.
        seconds: to the next stamp: the length of a gap, 0 for a stamp twice, below 0 for a step backwards.
    """

    stream: str
    kind: Literal["gap", "doubled", "backwards"]
    start: float
    seconds: float


def clock_faults(stream: Stream) -> list[ClockFault]:
    """The faults of a stream's clock, in order."""
    clock = np.asarray(stream.timestamps, np.float64)
    steps, found = np.diff(clock), []
    rate = median_rate(clock[np.append(True, steps > 0)])
    for index in np.flatnonzero((steps <= 0) | (steps * rate > GAP_STEPS)):
        kind = "gap" if steps[index] > 0 else "doubled" if steps[index] == 0 else "backwards"
        found.append(ClockFault(label(stream), kind, float(clock[index]), float(steps[index])))
    return found


def fault_notes(faults: Sequence[ClockFault], origin: float) -> list[str]:
    """A sentence a stream and kind of fault, with its times in seconds since `origin`."""
    notes = []
    for stream, kind in dict.fromkeys((fault.stream, fault.kind) for fault in faults):
        one = [fault for fault in faults if (fault.stream, fault.kind) == (stream, kind)]
        times = ", ".join(f"{fault.start - origin:.2f}" for fault in one[:_TIMES_SHOWN])
        where = f"at {times} s" + (f" and {len(one) - _TIMES_SHOWN} more" if len(one) > _TIMES_SHOWN else "")
        longest = max(abs(fault.seconds) for fault in one)
        notes.append(
            {
                "gap": f"{stream} is silent {len(one)} time(s), {longest:.2f} s at most ({where})",
                "doubled": f"{stream} has the same time stamp twice {len(one)} time(s) ({where})",
                "backwards": f"the clock of {stream} runs backwards {len(one)} time(s) ({where})",
            }[kind]
        )
    return notes


def in_gaps(ticks: np.ndarray, faults: Sequence[ClockFault]) -> np.ndarray:
    """Whether each tick [T] lies in the silence of a stream, where its value is held or blended and was never seen."""
    step = float(np.median(np.diff(ticks))) if len(ticks) > 1 else 0.0
    found = np.zeros(len(ticks), bool)
    for fault in faults:
        if fault.kind == "gap":
            end = fault.start + fault.seconds
            found |= (ticks > fault.start + ALLOWANCE * step) & (ticks < end - ALLOWANCE * step)
    return found


def delayed(streams: Sequence[Stream], latency: Mapping[str, float]) -> list[Stream]:
    """The streams with stamps of when things happened: each latency is by how many seconds stamps are late.

    Args:
        streams: of an episode; unchanged.
        latency: a stream's name, or a role ("image" or "camera", "state", "action"), to seconds; a name goes before a
            role.

    Raises:
        ConfigError: one names no stream, or is not finite.
    """
    unknown = [key for key in latency if not any(key in _called(stream) for stream in streams)]
    bad = [key for key, seconds in latency.items() if not np.isfinite(seconds)]
    if unknown or bad:
        known = dict.fromkeys(name for stream in streams for name in _called(stream))
        raise ConfigError(
            f"--latency {(unknown or bad)[0]} {'names no stream' if unknown else 'is not a number of seconds'}",
            expected=f"one of: {', '.join(known)}",
            hint="--latency camera=0.05",
        )
    found = []
    for stream in streams:
        seconds = next((float(latency[name]) for name in _called(stream) if name in latency), 0.0)
        found.append(replace(stream, timestamps=stream.timestamps - seconds) if seconds else stream)
    return found


def control_ticks(recorded: list[Stream], shifted: list[Stream], action: int, rate: float) -> tuple[np.ndarray, bool]:
    """The ticks of the control clock, over the time that all streams cover.

    Args:
        recorded: the streams as the log has them.
        shifted: the same ones after `delayed`.
        action: index of the action stream, whose clock is the control loop's.
        rate: ticks a second.

    Returns:
        Tick times [T] in seconds, and whether they pair the samples otherwise than the log does. When all recorded
        streams share one clock without holes at that rate, its own steps are the ticks.
    """
    clock = recorded[action].timestamps
    shared = all(np.array_equal(stream.timestamps, clock) for stream in recorded)
    own = shared and is_whole(clock) and abs(native_rate(recorded[action]) - rate) <= SAME_RATE * rate
    clock = shifted[action].timestamps
    if own and all(np.array_equal(stream.timestamps, clock) for stream in shifted):
        return clock, False
    start = max(stream.timestamps[0] for stream in shifted)
    end = min(stream.timestamps[-1] for stream in shifted)
    if own:
        slack = ALLOWANCE / rate
        return clock[(clock >= start - slack) & (clock <= end + slack)], True
    if end < start:
        return np.empty(0), True
    # The small allowance keeps the last tick when the streams end on it but for rounding.
    count = int(np.floor((end - start) * rate + ALLOWANCE)) + 1
    return start + np.arange(count) / rate, True


def clean_rate(rate: float) -> float:
    """The clean number within 2% of a measured rate, if there is one: 9.98 -> 10, 29.97 -> 30, 12.5 stays."""
    for unit in (10.0, 5.0, 1.0):
        snapped = round(rate / unit) * unit
        if snapped > 0 and abs(snapped - rate) <= CLEAN * rate:
            return snapped
    return rate


def _called(stream: Stream) -> tuple[str, ...]:
    return (stream.name, stream.role, *(("camera",) if stream.role == "image" else ()))
