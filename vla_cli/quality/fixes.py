"""What `--fix` does about findings: a repaired copy of an episode, and how many frames each fix changed.

    timestamps      samples that are not later than all before them are left out of their stream
    spikes          single states far off become the line between their neighbours (jumps stay: which side is right?)
    chatter         a gripper command that undoes itself keeps the value it had before
    black, frozen   those moments are cut out of all streams
    idle            each pause is cut down to its first `KEEP_IDLE` frames
    noop            frames whose command does nothing are cut out, as OpenVLA did with LIBERO

A cut takes the same time out of every stream and closes the clocks behind it, so no stream loses its partner. What lies
on either side of it becomes neighbours: with black or frozen pictures, of a moving arm. A repaired episode examined
anew has the finding no more, and repairing it again changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

import numpy as np

from vla_cli.episode import Episode, Stream, UnusableError
from vla_cli.errors import ConfigError
from vla_cli.frames import ArrayFrames, Frames
from vla_cli.quality.facts import Finding, Spans, ascending
from vla_cli.quality.pictures import REPEATS
from vla_cli.quality.spikes import glitches, mended

FIXES = ("timestamps", "spikes", "chatter", "black", "frozen", "idle", "noop")
"""Every fix, by the name of the check whose findings it removes, in the order in which they are applied."""
CUTS = ("black", "frozen", "idle", "noop")
"""Those that take time out of an episode."""
KEEP_IDLE = 3
"""Frames of a pause that stay: enough to see that the robot stood, far fewer than DROID's rule of 7."""
LEAST_LEFT = 2

Interval = tuple[float, float]


class PickedFrames(Frames):
    """Some pictures of a camera, in order.

    Args:
        frames: all of them.
        indices: [T] which, ascending.
    """

    def __init__(self, frames: Frames, indices: np.ndarray) -> None:
        self.frames, self.indices = frames, np.asarray(indices, np.int64)
        super().__init__((len(self.indices), *frames.shape[1:]))

    def blocks(self) -> Iterator[np.ndarray]:
        """See `Frames`."""
        waiting: list[np.ndarray] = []
        for picture in self.frames.take(self.indices):
            waiting.append(picture)
            if len(waiting) == self.block:
                yield np.stack(waiting)
                waiting = []
        if waiting:
            yield np.stack(waiting)

    def cut(self, length: int) -> PickedFrames:
        """See `Frames`."""
        return PickedFrames(self.frames, self.indices[:length])


def parse_fixes(text: str) -> tuple[str, ...]:
    """`--fix idle,chatter` in the order in which fixes are applied.

    Raises:
        ConfigError: there is no such fix.
    """
    asked = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in asked if name not in FIXES]
    if unknown:
        raise ConfigError(
            f"--fix '{unknown[0]}' is not known",
            expected=f"names of: {', '.join(FIXES)}",
            hint="--exclude CHECK leaves out episodes that cannot be fixed",
        )
    return tuple(name for name in FIXES if name in asked)


def repair(episode: Episode, findings: Sequence[Finding], fixes: Collection[str]) -> tuple[Episode, dict[str, int]]:
    """A repaired copy of an episode; the given one stays as it is, and pictures are not decoded.

    Args:
        episode: as it was examined.
        findings: from `judge`; those of other episodes are passed over.
        fixes: names of `FIXES`.

    Returns:
        the episode, and the frames that each fix changed or took out, where it did.

    Raises:
        UnusableError: hardly anything would be left.
    """
    own = {name: [f for f in findings if f.episode == episode.name and f.check == name] for name in FIXES}
    counts: dict[str, int] = {}
    streams, cuts = list(episode.streams), []
    for name in (name for name in FIXES if name in fixes and own[name]):
        if name == "timestamps":
            streams, counts[name] = _in_order(streams)
        elif name == "spikes":
            streams, counts[name] = _smoothed(streams, own[name])
        elif name == "chatter":
            streams, counts[name] = _held(streams, own[name])
        else:
            found, counts[name] = _cuts(episode, name, own[name])
            cuts += found
    repaired = replace(episode, streams=_cut(episode.name, streams, _merged(cuts)))
    return repaired, {name: count for name, count in counts.items() if count}


def settled(episode: Episode, findings: Sequence[Finding], fixes: Collection[str]) -> list[Finding]:
    """Those findings on an episode that `repair` with these fixes does away with, each by itself.

    Not every finding of a check that has a fix is: of spikes, jumps stay.
    """
    mine = [f for f in findings if f.episode == episode.name and f.check in fixes]
    return [f for f in mine if repair(episode, [f], (f.check,))[1]]


def _in_order(streams: Sequence[Stream]) -> tuple[list[Stream], int]:
    kept = [ascending(s.timestamps) for s in streams]
    lost = max(int((~k).sum()) for k in kept)
    return [_picked(s, k) for s, k in zip(streams, kept, strict=True)], lost


def _smoothed(streams: Sequence[Stream], findings: Sequence[Finding]) -> tuple[list[Stream], int]:
    changed: set[tuple[str, int]] = set()
    found = []
    for stream in streams:
        mine = [f for f in findings if f.stream == stream.name and stream.role == "state"]
        values = np.array(stream.values) if mine else stream.values
        for finding in mine:
            for i in finding.dimensions:
                frames = set(glitches(np.asarray(values[:, i], np.float64))) & _frames(finding.frames)
                values[:, i] = mended(np.asarray(values[:, i], np.float64), frames)
                changed |= {(stream.name, t) for t in frames}
        found.append(replace(stream, values=values))
    return found, len(changed)


def _held(streams: Sequence[Stream], findings: Sequence[Finding]) -> tuple[list[Stream], int]:
    changed: set[tuple[str, int]] = set()
    found = []
    for stream in streams:
        mine = [f for f in findings if f.stream == stream.name and stream.role == "action"]
        values = np.array(stream.values) if mine else stream.values
        for finding in mine:
            for first, last in finding.frames:
                # a median filter never takes out the first frame
                values[first : last + 1, list(finding.dimensions)] = values[first - 1, list(finding.dimensions)]
                changed |= {(stream.name, t) for t in range(first, last + 1)}
        found.append(replace(stream, values=values))
    return found, len(changed)


def _frames(spans: Spans) -> set[int]:
    return {t for first, last in spans for t in range(first, last + 1)}


def _cuts(episode: Episode, check: str, findings: Sequence[Finding]) -> tuple[list[Interval], int]:
    """What to take out of the episode's time, and how many frames that is on the clock of the finding."""
    clock = episode.of_role("action")[0].timestamps
    found, count = [], 0
    for finding in findings:
        for (first, last), (start, end) in zip(finding.frames, finding.seconds, strict=True):
            frames = last - first + 1
            if check == "frozen" and frames < REPEATS:
                continue
            if check == "idle":
                start += (end - start) * min(KEEP_IDLE / frames, 1.0)
                start = float(clock[np.abs(clock - start).argmin()])
                frames -= KEEP_IDLE
            if frames > 0 and end > start:
                found.append((start, end))
                count += frames
    return found, count


def _merged(intervals: Sequence[Interval]) -> list[Interval]:
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def _cut(name: str, streams: Sequence[Stream], intervals: Sequence[Interval]) -> list[Stream]:
    """Take intervals [start, end) out of all streams and move what is later forward."""
    if not intervals:
        return list(streams)
    found = []
    for stream in streams:
        clock = np.asarray(stream.timestamps, np.float64)
        kept, shift = np.ones(len(clock), bool), np.zeros(len(clock))
        for start, end in intervals:
            kept &= (clock < start) | (clock >= end)
            shift[clock >= end] += end - start
        if kept.sum() < LEAST_LEFT and len(clock) >= LEAST_LEFT:
            raise UnusableError(f"of {stream.role} stream '{stream.name}' hardly anything is left after --fix")
        found.append(_picked(replace(stream, timestamps=clock - shift), kept))
    return found


def _picked(stream: Stream, kept: np.ndarray) -> Stream:
    if kept.all():
        return stream
    values = stream.values
    if stream.role == "image":
        frames = values if isinstance(values, Frames) else ArrayFrames(values)
        return replace(stream, values=PickedFrames(frames, np.flatnonzero(kept)), timestamps=stream.timestamps[kept])
    return replace(stream, values=values[kept], timestamps=stream.timestamps[kept])
