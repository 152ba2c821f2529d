"""Faults put into clean recorded episodes, at random places and strengths.

Every fault has a range of strengths, from about the weakest that its check promises to find to far beyond; the ranges
stand in `FAULTS`. What is weaker is not a fault that the check speaks of (a jump of a centimetre, a picture a little
soft), and is not measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageFilter

from vla_cli.episode import Episode, Role, Stream

NOISE = 0.01 * 255
"""Pixel noise of the tabletop's camera (`shifts.Domain.noise`), in grey levels."""
Span = tuple[int, int]


@dataclass(frozen=True)
class Injected:
    """An episode with a fault.

    Attributes:
        episode: the spoilt copy.
        where: first and last frame of the fault on the clock of the stream it is in, or None for the whole episode.
        strength: in the fault's own measure.
    """

    episode: Episode
    where: Span | None
    strength: float


Inject = Callable[[Episode, np.random.Generator], Injected]


def stream(episode: Episode, role: Role, name: str | None = None) -> Stream:
    """The first stream of a role, or the one of that name."""
    return next(s for s in episode.of_role(role) if name in (None, s.name))


def put(episode: Episode, *changed: Stream) -> Episode:
    """A copy with some streams replaced."""
    by_key = {(s.role, s.name): s for s in changed}
    return replace(episode, streams=[by_key.get((s.role, s.name), s) for s in episode.streams])


def noisy(pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures with new sensor noise."""
    values = pictures.astype(np.float32) + NOISE * rng.standard_normal(pictures.shape, np.float32)
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def moving(episode: Episode) -> np.ndarray:
    """Frames on the way to which the arm moved."""
    position = stream(episode, "state", "robot0_eef_pos").values
    return np.flatnonzero(np.abs(np.diff(position, axis=0)).max(axis=1) > 0.02) + 1


def place(episode: Episode, length: int, rng: np.random.Generator) -> Span:
    """A random stretch of frames within the moving part."""
    frames = moving(episode)
    first = int(rng.integers(frames[0] + 1, max(frames[-1] - length, frames[0] + 1) + 1))
    return first, min(first + length - 1, frames[-1] - 1)


def doubled_stamps(episode: Episode, rng: np.random.Generator) -> Injected:
    """Some samples of one stream, or of all, have the stamp of the one before."""
    count, every = int(rng.integers(1, 4)), bool(rng.random() < 0.5)
    first, last = place(episode, count, rng)
    chosen = episode.streams if every else [episode.streams[int(rng.integers(len(episode.streams)))]]
    return Injected(put(episode, *(_stamped(s, first, last) for s in chosen)), (first, last), last - first + 1)


def _stamped(changed: Stream, first: int, last: int) -> Stream:
    clock = changed.timestamps.copy()
    clock[first : last + 1] = clock[first - 1]
    return replace(changed, timestamps=clock)


def backward_stamps(episode: Episode, rng: np.random.Generator) -> Injected:
    """The clock of one stream is set back for a while."""
    (first, last), back = place(episode, int(rng.integers(1, 6)), rng), float(rng.uniform(0.15, 2.0))
    chosen = episode.streams[int(rng.integers(len(episode.streams)))]
    clock = chosen.timestamps.copy()
    clock[first : last + 1] -= back
    return Injected(put(episode, replace(chosen, timestamps=clock)), (first, last), back)


def lost_pictures(episode: Episode, rng: np.random.Generator) -> Injected:
    """Pictures that never came, and left a hole in the camera's clock."""
    first, last = place(episode, int(rng.integers(2, 7)), rng)
    camera = stream(episode, "image")
    kept = np.setdiff1d(np.arange(len(camera)), np.arange(first, last + 1))
    spoilt = replace(camera, values=camera.values[kept], timestamps=camera.timestamps[kept])
    return Injected(put(episode, spoilt), (first - 1, first), last - first + 1)


def black_pictures(episode: Episode, rng: np.random.Generator) -> Injected:
    """Pictures that are black but for sensor noise, or of one colour."""
    first, last = place(episode, int(rng.integers(1, 6)), rng)
    camera = stream(episode, "image")
    pictures = camera.values.copy()
    black = np.zeros_like(pictures[first : last + 1])
    blank = np.broadcast_to(rng.integers(0, 256, 3).astype(np.uint8), black.shape)
    pictures[first : last + 1] = noisy(black, rng) if rng.random() < 0.5 else blank
    return Injected(put(episode, replace(camera, values=pictures)), (first, last), last - first + 1)


def frozen_pictures(episode: Episode, rng: np.random.Generator) -> Injected:
    """The same picture again and again while the arm moves."""
    runs = [(t, t + n) for n in (2, 3, 4, 5) for t in moving(episode) if set(range(t, t + n)) <= set(moving(episode))]
    first, end = runs[int(rng.integers(len(runs)))]
    camera = stream(episode, "image")
    pictures = camera.values.copy()
    pictures[first:end] = pictures[first - 1]
    return Injected(put(episode, replace(camera, values=pictures)), (int(first), int(end) - 1), float(end - first))


def blurred_pictures(episode: Episode, rng: np.random.Generator) -> Injected:
    """Some pictures out of focus; the sensor's noise stays."""
    (first, last), sigma = place(episode, int(rng.integers(1, 6)), rng), float(rng.uniform(1.5, 4.0))
    return Injected(_blurred(episode, range(first, last + 1), sigma, rng), (first, last), sigma)


def out_of_focus(episode: Episode, rng: np.random.Generator) -> Injected:
    """All pictures out of focus."""
    sigma = float(rng.uniform(1.5, 4.0))
    return Injected(_blurred(episode, range(len(stream(episode, "image"))), sigma, rng), None, sigma)


def _blurred(episode: Episode, frames: Sequence[int], sigma: float, rng: np.random.Generator) -> Episode:
    camera = stream(episode, "image")
    pictures = camera.values.copy()
    for t in frames:
        soft = Image.fromarray(pictures[t]).filter(ImageFilter.GaussianBlur(sigma))
        pictures[t] = noisy(np.asarray(soft), rng)
    return put(episode, replace(camera, values=pictures))


def paused(episode: Episode, rng: np.random.Generator) -> Injected:
    """The robot stands still in the middle for a while."""
    pause = int(rng.integers(7, 25))
    first = place(episode, 1, rng)[0]
    return Injected(still(episode, first, pause, rng), (first, first + pause - 1), pause)


def does_nothing(episode: Episode, rng: np.random.Generator) -> Injected:
    """Some commands in the middle are none."""
    pause = int(rng.integers(1, 7))
    first = place(episode, 1, rng)[0]
    return Injected(still(episode, first, pause, rng), (first, first + pause - 1), pause)


def still(episode: Episode, first: int, count: int, rng: np.random.Generator) -> Episode:
    """The episode with `count` frames put in before frame `first`, in which nothing is commanded and nothing moves."""
    found = []
    for s in episode.streams:
        more = np.repeat(s.values[first : first + 1], count, axis=0)
        if s.role == "image":
            more = noisy(more, rng)
        if s.role == "action":
            more[:, :2] = 0.0
            more[:, 2] = s.values[first - 1, 2]
        period = float(np.median(np.diff(s.timestamps)))
        late = s.timestamps[first:] + count * period
        extra = s.timestamps[first] + np.arange(count) * period
        found.append(
            replace(
                s,
                values=np.concatenate([s.values[:first], more, s.values[first:]]),
                timestamps=np.concatenate([s.timestamps[:first], extra, late]),
            )
        )
    return replace(episode, streams=found)


def glitch(episode: Episode, rng: np.random.Generator) -> Injected:
    """One position is far off for one frame, or for several frames one by one."""
    position = stream(episode, "state", "robot0_eef_pos")
    values, size = position.values.copy(), float(rng.uniform(0.3, 1.0))
    first = place(episode, 1, rng)[0]
    axis = int(rng.integers(2))
    for t in range(first, min(first + 3 * int(rng.integers(1, 4)), len(values) - 1), 3):
        values[t, axis] += size * float(rng.choice([-1, 1]))
    return Injected(put(episode, replace(position, values=values)), (first, first), size)


def shake(episode: Episode, rng: np.random.Generator) -> Injected:
    """One position swings to and fro at every frame."""
    position = stream(episode, "state", "robot0_eef_pos")
    values, size = position.values.copy(), float(rng.uniform(0.08, 0.2))
    first, last = place(episode, int(rng.integers(7, 13)), rng)
    if last - first < 6:
        first = max(0, last - 6)
    signs = size * np.where(np.arange(last - first + 1) % 2, 1.0, -1.0)
    values[first : last + 1, int(rng.integers(2))] += signs.astype(values.dtype)
    return Injected(put(episode, replace(position, values=values)), (first, last), size)


def flutter(episode: Episode, rng: np.random.Generator) -> Injected:
    """The gripper's command flips and undoes it, once or several times, away from where it was meant to flip."""
    action = stream(episode, "action")
    values, count = action.values.copy(), int(rng.integers(1, 3))
    gripper, around = values[:, 2], 3
    free = [t for t in range(around, len(values) - count - around) if _steady(gripper[t - around : t + count + around])]
    if not free:  # a short episode flips before and after any place
        count, around = 1, 2
        free = [t for t in range(2, len(values) - 2) if _steady(gripper[t - around : t + count + around])]
    first = int(rng.choice(free))
    values[first : first + count, 2] *= -1
    return Injected(put(episode, replace(action, values=values)), (first, first + count - 1), count)


def _steady(values: np.ndarray) -> bool:
    return bool(np.ptp(values) == 0)


def pinned(episode: Episode, rng: np.random.Generator) -> Injected:
    """A command sits at the end of its range most of the time."""
    action = stream(episode, "action")
    values, share = action.values.copy(), float(rng.uniform(0.6, 0.95))
    count = int(np.ceil(share * len(values)))
    first = int(rng.integers(len(values) - count + 1))
    values[first : first + count, int(rng.integers(2))] = float(rng.choice([-1.0, 1.0]))
    return Injected(put(episode, replace(action, values=values)), (first, first + count - 1), share)


def cut_off(episode: Episode, rng: np.random.Generator) -> Injected:
    """Commands are cut off at a part of their largest when they are recorded; the arm had them whole."""
    action = stream(episode, "action")
    values, share = action.values.copy(), float(rng.uniform(0.2, 0.65))
    limit = share * float(np.abs(values[:, :2]).max())
    values[:, :2] = np.clip(values[:, :2], -limit, limit)
    return Injected(put(episode, replace(action, values=values)), None, share)


def shifted(episode: Episode, rng: np.random.Generator) -> Injected:
    """Commands are recorded some frames early or late."""
    action, frames = stream(episode, "action"), int(rng.choice([-4, -3, -2, 2, 3, 4]))
    index = np.clip(np.arange(len(action)) - frames, 0, len(action) - 1)
    return Injected(put(episode, replace(action, values=action.values[index])), None, frames)


def cut_short(episode: Episode, rng: np.random.Generator) -> Injected:
    """The recording ends in the middle of a move."""
    frames = moving(episode)
    # in the middle of it: the arm goes on in the next frame
    inside = np.array([t for t in frames[1:-1] if t + 1 in frames and t - 1 in frames])
    late = inside[inside > frames[0] + 0.3 * (frames[-1] - frames[0])]
    end = int(rng.choice(late if len(late) else inside)) + 1
    return Injected(shortened(episode, 0, end), None, end / len(stream(episode, "action")))


def shortened(episode: Episode, first: int, end: int) -> Episode:
    """Frames `first` up to `end` of every stream."""
    return replace(
        episode,
        streams=[replace(s, values=s.values[first:end], timestamps=s.timestamps[first:end]) for s in episode.streams],
    )


def dawdled(episode: Episode, rng: np.random.Generator) -> Injected:
    """The whole episode several times slower than anyone works."""
    factor = int(rng.integers(5, 9))
    found = []
    for s in episode.streams:
        at = np.arange(factor * (len(s) - 1) + 1) / factor
        low = np.floor(at).astype(int)
        values = s.values[low]
        if s.role == "image":
            values = noisy(values, rng)
        elif s.name == "robot0_eef_pos":
            columns = [np.interp(at, np.arange(len(s)), column) for column in s.values.T]
            values = np.stack(columns, axis=1).astype(s.values.dtype)
        elif s.role == "action":
            values = values * np.array([1 / factor, 1 / factor, 1.0], values.dtype)
        clock = s.timestamps[0] + np.arange(len(at)) * float(np.median(np.diff(s.timestamps)))
        found.append(replace(s, values=values, timestamps=clock))
    return Injected(replace(episode, streams=found), None, factor)


def twice(episode: Episode, rng: np.random.Generator) -> Injected:
    """The same episode under another name: as it is, recorded from the screen, or cut by some idle frames."""
    way = int(rng.integers(3))
    copy = episode
    if way == 1:
        camera, position = stream(episode, "image"), stream(episode, "state", "robot0_eef_pos")
        off = rng.normal(0, 1e-3, position.values.shape).astype(position.values.dtype)
        copy = put(
            episode,
            replace(camera, values=noisy(camera.values, rng)),
            replace(position, values=position.values + off),
        )
    if way == 2:
        first = int(rng.integers(1, max(int(moving(episode)[0]), 2)))
        copy = shortened(episode, first, len(stream(episode, "action")))
    return Injected(replace(copy, name=f"{episode.name}_copy"), None, way)


@dataclass(frozen=True)
class Fault:
    """A kind of fault, the check that must find it, and its strengths in words."""

    name: str
    check: str
    strengths: str
    inject: Inject


FAULTS: tuple[Fault, ...] = (
    Fault("doubled stamps", "timestamps", "1 to 3 samples of one stream or all", doubled_stamps),
    Fault("backward stamps", "timestamps", "set back by 0.15 to 2 s for 1 to 5 samples", backward_stamps),
    Fault("lost pictures", "dropped", "2 to 6 in a row", lost_pictures),
    Fault("black pictures", "black", "1 to 5, black with noise or of one colour", black_pictures),
    Fault("frozen pictures", "frozen", "2 to 5 in a row while the arm moves", frozen_pictures),
    Fault("blurred pictures", "blur", "1 to 5, by a Gaussian of 1.5 to 4 pixels of 60", blurred_pictures),
    Fault("out of focus", "focus", "all, by a Gaussian of 1.5 to 4 pixels of 60", out_of_focus),
    Fault("pause", "idle", "7 to 24 frames at 10 Hz", paused),
    Fault("empty commands", "noop", "1 to 6 frames", does_nothing),
    Fault("glitches", "spikes", "1 to 3 single positions off by 0.3 to 1 m (4 to 14 top steps)", glitch),
    Fault("shaking", "jerk", "0.08 to 0.2 m to and fro for 7 to 12 frames", shake),
    Fault("gripper flutter", "chatter", "flips undone after 1 or 2 frames", flutter),
    Fault("pinned command", "saturation", "60 to 95% of the frames", pinned),
    Fault("commands cut off", "clipping", "at 20 to 65% of their largest", cut_off),
    Fault("shifted commands", "offset", "2 to 4 frames early or late", shifted),
    Fault("cut short", "early_cut", "in the middle of a move, after 30% of the motion", cut_short),
    Fault("dawdled", "length", "5 to 8 times slower", dawdled),
    Fault("recorded twice", "duplicates", "exact, with new noise, or trimmed", twice),
)
