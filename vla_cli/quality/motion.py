"""Checks on the numbers of one episode, and the figures of it that `checks` compares with other episodes'.

    timestamps  clocks that go backwards or stand still
    silent      holes in the clocks of states and actions
    idle        standing still for long, within the episode
    noop        commands that do nothing
    saturation  commands at the end of their range
    chatter     a gripper command that undoes itself

Each function is one check; its thresholds stand above it, with where they come from.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vla_cli.episode import Episode, Stream, median_rate
from vla_cli.quality.facts import (
    Finding,
    Motion,
    Spans,
    Suspect,
    ascending,
    column_names,
    gripper_columns,
    length,
    listed,
    named_grippers,
    stretches,
    times,
)

IDLE_FRAMES, IDLE_SECONDS = 7, 0.45
"""Standing still that long is idle: 7 frames is DROID's rule (openpi examples/droid/compute_droid_nonidle_ranges.py,
min_idle_len; 0.47 s at its 15 Hz). The time keeps the rule's meaning at faster clocks, where 7 frames are a blink."""
SAME_COMMAND = 1e-3
"""Change of the command, as a share of its range, that is none: DROID's |delta joint velocity| < 1e-3 of a velocity
normalised to [-1, 1]."""
IDLE_SHARE = 0.05
"""Of the episode's frames: less idle time than this in all is a pause for thought, and worth knowing only."""
NOOP = 1e-4
"""Norm of a command, its gripper left out, that is none: OpenVLA's regenerate_libero_dataset.py, `is_noop`."""
AT_LIMIT, SATURATED = 1e-3, 0.5
"""Of the limit: so near is at it; share of the frames there that is worth knowing: most of them."""
SILENT_STEPS, SILENT_SECONDS = 3.0, 0.2
"""A vector is silent when nothing comes for more than so many of its own periods (as `synchrony.clocks.GAP_STEPS`) and
so many seconds: two steps at 10 Hz. Less is bridged without harm: an arm does not turn round in it."""
CHATTER_SECONDS = 0.25
"""A gripper command undone within that time was not meant: a person's choice reaction takes at least as long (Welford,
Reaction Times, 1980: 0.25 to 0.4 s)."""


def timestamps(episode: Episode) -> Iterator[Finding]:
    """Clocks that go backwards (error) or have one time twice (warning); streams on one clock are named together."""
    groups: dict[bytes, list[Stream]] = {}
    for stream in episode.streams:
        groups.setdefault(np.asarray(stream.timestamps, np.float64).tobytes(), []).append(stream)
    for streams in groups.values():
        clock = streams[0].timestamps
        wrong = ~ascending(clock)
        if not wrong.any():
            continue
        backwards = int((np.diff(clock) < 0).sum())
        names, spans = ", ".join(s.name for s in streams), stretches(wrong)
        what = f"goes backwards {backwards} time(s)" if backwards else "has the same time twice"
        yield Finding(
            check="timestamps",
            severity="error" if backwards else "warning",
            episode=episode.name,
            stream=streams[0].name,
            frames=spans,
            value=length(spans) / len(clock),
            message=f"{episode.name}: the clock of {names} {what}, in {listed(spans)}.",
        )


def silent(episode: Episode) -> Iterator[Finding]:
    """Holes in the clocks of states and actions (`SILENT_STEPS`, `SILENT_SECONDS`): what is there was not measured.

    Not of one that is on a camera's clock, whose holes `pictures.dropped` tells. A command may be sent only when it
    changes, so that of actions it is worth knowing only.
    """
    cameras = {np.asarray(s.timestamps, np.float64).tobytes() for s in episode.of_role("image")}
    groups: dict[tuple[str, bytes], list[Stream]] = {}
    for stream in (*episode.of_role("state"), *episode.of_role("action")):
        clock = np.asarray(stream.timestamps, np.float64).tobytes()
        if clock not in cameras:
            groups.setdefault((stream.role, clock), []).append(stream)
    for (role, _), streams in groups.items():
        clock = streams[0].timestamps
        steps = np.diff(clock)
        holes = np.flatnonzero(steps > max(SILENT_SECONDS, SILENT_STEPS / (median_rate(clock) or np.inf)))
        if not len(holes):
            continue
        names, total = ", ".join(s.name for s in streams), float(steps[holes].sum())
        longest = float(steps[holes].max())
        yield Finding(
            check="dropped",
            severity="warning" if role == "state" else "info",
            episode=episode.name,
            stream=streams[0].name,
            frames=tuple((int(t), int(t) + 1) for t in holes),
            seconds=tuple((float(clock[t]), float(clock[t + 1])) for t in holes),
            value=total / max(float(clock[-1] - clock[0]), 1e-9),
            message=f"{episode.name}: {role} {names} is silent {len(holes)} time(s), {longest:.2f} s at most "
            f"and {total:.2f} s in all: what the dataset has there is held or blended, and was never measured.",
        )


def idle_runs(motion: Motion) -> tuple[tuple[int, int], ...]:
    """Stretches of standing still (see `IDLE_FRAMES`) between the first move and the last."""
    still = np.append(_still(motion), False)  # on the way to the next frame
    moving = np.flatnonzero(~still[:-1])
    if not len(moving):
        return ()
    least = max(IDLE_FRAMES, round(IDLE_SECONDS * motion.rate_hz))
    # n steps of standing still join n + 1 frames that are one
    runs = [(a, b + 1) for a, b in stretches(still)]
    return tuple((a, b) for a, b in runs if b - a + 1 >= least and moving[0] < a and b <= moving[-1])


def _still(motion: Motion) -> np.ndarray:
    """[T - 1] bool: neither the state nor the command changes on the way to the next frame."""
    spread = np.ptp(motion.actions, axis=0)
    steady = np.all(np.abs(np.diff(motion.actions, axis=0)) <= SAME_COMMAND * spread, axis=1)
    return steady & (~motion.moved() if motion.state.shape[1] else True)


def idle(name: str, motion: Motion) -> Iterator[Finding]:
    """Standing still within the episode: a policy that learns it may never move on. See `IDLE_FRAMES`, `IDLE_SHARE`."""
    spans = idle_runs(motion)
    if not spans:
        return
    share = length(spans) / len(motion)
    yield Finding(
        check="idle",
        severity="warning" if share >= IDLE_SHARE else "info",
        episode=name,
        frames=spans,
        seconds=times(spans, motion.timestamps),
        value=share,
        message=f"{name}: the robot stands still in {listed(spans)} ({share:.0%} of the episode).",
    )


def noop_frames(motion: Motion) -> np.ndarray:
    """[T] bool: frames between the first move and the last whose command is none, and after which nothing moves.

    A command is none by OpenVLA's rule (`NOOP`): the arm's part is zero and the gripper's is that of the frame before.
    """
    gripper = gripper_columns(motion.actions, motion.action_names)
    arm = motion.actions[:, ~gripper]
    if len(motion) < 3 or arm.shape[1] == 0:
        return np.zeros(len(motion), bool)
    kept = np.concatenate([[True], np.all(np.diff(motion.actions[:, gripper], axis=0) == 0, axis=1)])
    still = np.append(~motion.moved(), True)
    none = (np.linalg.norm(arm, axis=1) < NOOP) & kept & still
    moving = np.flatnonzero(~none)
    if len(moving):
        none[: moving[0]] = none[moving[-1] :] = False
    return none


def noop(name: str, motion: Motion) -> Iterator[Finding]:
    """Commands that do nothing, within the episode. Waiting for slow fingers looks the same, so it is no warning."""
    flags = noop_frames(motion)
    spans = stretches(flags)
    if spans:
        yield Finding(
            check="noop",
            severity="info",
            episode=name,
            frames=spans,
            seconds=times(spans, motion.timestamps),
            value=length(spans) / len(motion),
            message=f"{name}: the command does nothing in {listed(spans)} ({length(spans)} of {len(motion)}).",
        )


def limit_of(column: np.ndarray) -> float:
    """The end of a command's range [T]: 1 for one that keeps to [-1, 1] and reaches it, else its largest size."""
    return float(np.abs(column).max(initial=0.0))


def saturation(episode: Episode) -> Iterator[Suspect]:
    """Commands at an end of their range in most frames (`SATURATED`), dimension by dimension.

    The range is that of all episodes (see `checks.at_limit`). A person who pushes the stick to its end does
    that all the time, so it is no warning; what was *cut* there is: see `answers.clipping`.
    """
    for stream in episode.of_role("action"):
        columns, names = np.asarray(stream.values, np.float64), column_names(stream)
        for i in np.flatnonzero(~named_grippers(names) & (np.ptp(columns, axis=0) > 0)):
            limit = limit_of(columns[:, i])
            flags = np.abs(columns[:, i]) >= (1 - AT_LIMIT) * limit
            if flags.mean() < SATURATED:
                continue
            finding = Finding(
                check="saturation",
                severity="info",
                episode=episode.name,
                stream=stream.name,
                frames=stretches(flags),
                seconds=times(stretches(flags), stream.timestamps),
                dimensions=(int(i),),
                value=float(flags.mean()),
                message=f"{episode.name}: command {names[i]} is at an end of its range (±{limit:.4g}) in "
                f"{flags.mean():.0%} of the frames ({listed(stretches(flags))}).",
            )
            yield Suspect(finding=finding, column=f"action/{stream.name}/{i}", figure=limit)


def limits(episode: Episode) -> dict[str, float]:
    """Largest size of each command, "action/stream/index"."""
    return {
        f"action/{s.name}/{i}": limit_of(column)
        for s in episode.of_role("action")
        for i, column in enumerate(np.asarray(s.values, np.float64).T)
    }


def switches(episode: Episode) -> list[str]:
    """Commands, "action/stream/index", that have two values at most."""
    actions = episode.of_role("action")
    return [f"action/{s.name}/{i}" for s in actions for i, c in enumerate(s.values.T) if len(np.unique(c)) <= 2]


def pulses(column: np.ndarray, rate_hz: float) -> np.ndarray:
    """[T] bool: where a gripper command [T] is what a median filter (window 2k + 1, to its root) takes out.

    k is `CHATTER_SECONDS`, at least 1 frame. A command that is not two-valued is cut half-way between its extremes.
    """
    low, high = float(column.min()), float(column.max())
    if high - low <= 0.2 * max(abs(low), abs(high)):
        return np.zeros(len(column), bool)
    closed = column > (low + high) / 2
    k = max(1, int(CHATTER_SECONDS * rate_hz))
    kept = closed
    for _ in range(len(column)):
        padded = np.pad(kept, k, mode="edge")
        filtered = np.lib.stride_tricks.sliding_window_view(padded, 2 * k + 1).sum(axis=1) > k
        if np.array_equal(filtered, kept):
            break
        kept = filtered
    return kept != closed


def chatter(episode: Episode, rate_hz: float) -> Iterator[Finding]:
    """A gripper command that undoes itself sooner than it can have been meant (`CHATTER_SECONDS`)."""
    for stream in episode.of_role("action"):
        columns, names = np.asarray(stream.values, np.float64), column_names(stream)
        found: dict[Spans, list[int]] = {}
        for i in np.flatnonzero(gripper_columns(columns, names)):
            found.setdefault(stretches(pulses(columns[:, i], rate_hz)), []).append(int(i))
        # the fingers of a hand flip together
        for spans, which in found.items():
            if spans:
                yield Finding(
                    check="chatter",
                    severity="warning",
                    episode=episode.name,
                    stream=stream.name,
                    frames=spans,
                    seconds=times(spans, stream.timestamps),
                    dimensions=tuple(which),
                    value=float(len(spans)),
                    message=f"{episode.name}: gripper command {', '.join(names[i] for i in which)} flips and "
                    f"undoes it at once in {listed(spans)} ({len(spans)} time{'s' if len(spans) > 1 else ''}).",
                )
