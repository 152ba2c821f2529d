"""The numbers of one DROID episode: `trajectory.h5` as streams, each on its own clock (see `droid` for the layout)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from vla_cli import hdf5
from vla_cli.episode import Role, Stream, UnusableError

RATE = 15.0
JOINTS = [f"panda_joint{number}" for number in range(1, 8)]
POSE = ["x", "y", "z", "roll", "pitch", "yaw"]
LARGEST_VECTOR = 64 * 2**20  # bytes of one dataset: 13 days of a joint vector
_MOST_MEMBERS = 200
_UNITS = (1.0, 1e-3, 1e-6, 1e-9)  # seconds to nanoseconds
_APART = 1.0  # seconds between the starts of two clocks that can still be one computer's

_NO_ROTATION = {"rotation": "none", "quaternion_sign": "none"}
_ARM = {"units": "rad", "rotation": "joints", "quaternion_sign": "none", "gripper": "none", "names": JOINTS}
_GRIPPER = {"units": "0 open to 1 closed", **_NO_ROTATION, "gripper": "open-low", "names": ["gripper"]}
_TOOL = {
    **{"units": "m, rad", "frame": "base", "rotation": "euler-xyz", "quaternion_sign": "none", "gripper": "none"},
    "names": POSE,
}
_STATES: dict[str, dict[str, Any]] = {
    "joint_positions": _ARM,
    "gripper_position": _GRIPPER,
    "cartesian_position": _TOOL,
}
_ACTIONS: dict[str, dict[str, Any]] = {
    "joint_position": {**_ARM, "mode": "absolute"},
    "gripper_position": {**_GRIPPER, "mode": "absolute"},
}


class Trajectory:
    """The numbers of an episode, in memory.

    Args:
        file: trajectory.h5.
        notes: takes what is odd.

    Raises:
        UnusableError: what every episode has is missing, or not numbers.
        ValueError, OSError: the file is damaged.
    """

    def __init__(self, file: h5py.File, notes: list[str]) -> None:
        self.notes = notes
        self.task = hdf5.text(file, "current_task", "")[:10_000]
        states = _vectors(hdf5.group(file, "observation/robot_state"), notes)
        actions = _vectors(hdf5.group(file, "action"), notes)
        for key, found, where in (("joint_positions", states, "robot_state"), ("joint_position", actions, "action")):
            if key not in found:
                raise UnusableError(f"its {where} has no '{key}'")
        self._vectors = [("state" if key in _STATES else "other", "robot_state.", key, states[key]) for key in states]
        self._vectors += [("action" if key in _ACTIONS else "other", "action.", key, actions[key]) for key in actions]
        self.lengths = {f"{group}{key}": len(values) for _, group, key, values in self._vectors}
        self._stamps = _stamps(file)
        count = len(actions["joint_position"])
        skipped = self._stamps.pop("skip_action", np.zeros(count))
        self.skipped = skipped.astype(bool)
        self._robot = self._clock("robot_state", ["robot_state/read_start", "robot_state/read_end"], None, count - 1)
        self._control = self._clock("actions", ["control/step_start", "control/control_start"], self._robot, count - 1)
        self.lengths |= {"skip_action": len(skipped), "time stamps": min(len(self._robot), len(self._control))}

    def streams(self, kept: np.ndarray) -> Iterator[Stream]:
        """States, actions and the rest, at the steps that are kept."""
        for role, group, key, values in self._vectors:
            known = {"state": _STATES, "action": _ACTIONS}.get(role, {})
            clock = self._control if group == "action." else self._robot
            name = key if key in known else group + key
            attributes = {"key": f"{group.replace('.', '/')}{key}", "rate_hz": RATE}
            stated = known.get(key, {})
            attributes |= stated if len(stated.get("names", ())) == values.shape[1] else {}
            yield Stream(_role(role), name, values[kept], clock[kept], attributes)

    def camera_clock(self, camera: str, serial: str, steps: int) -> np.ndarray:
        """Seconds at which a camera's first pictures were taken."""
        ends = ("estimated_capture", "frame_received", "read_end", "read_start")
        return self._clock(camera, [f"cameras/{serial}_{end}" for end in ends], self._robot, steps)

    def _clock(self, what: str, keys: list[str], other: np.ndarray | None, least: int) -> np.ndarray:
        """The first of some clocks that is sound; else another stream's, else one counted from 15 Hz."""
        reason = "has no time stamps"
        for key in keys:
            if key not in self._stamps:
                continue
            clock, reason = _seconds(self._stamps[key], least)
            if clock is not None and (other is None or abs(clock[0] - other[0]) <= _APART):
                return clock
            reason = reason or "has time stamps that are far from the robot's"
        instead = "15 Hz" if other is None else "the robot's clock"
        self.notes.append(f"{what} {reason}: {instead} is used")
        return np.arange(least + 1) / RATE if other is None else other


def _role(role: str) -> Role:
    return "state" if role == "state" else "action" if role == "action" else "other"


def _vectors(group: h5py.Group, notes: list[str]) -> dict[str, np.ndarray]:
    """The vectors [T, D] directly below a group; what is no vector is noted."""
    names = hdf5.names(group)
    if len(names) > _MOST_MEMBERS:
        raise UnusableError(f"{group.name} has {len(names)} members")
    found = {}
    for name in names:
        if isinstance(hdf5.member(group, name), h5py.Group):  # `action/robot_state` repeats the observation
            continue
        dataset = hdf5.dataset(group, name)
        if hdf5.kind(dataset) not in "fiub" or len(dataset.shape) not in (1, 2):
            notes.append(f"{group.name}/{name} is left out: it is no vector")
            continue
        _check_size(dataset)
        values = hdf5.table(group, name)
        found[name] = values.astype(np.uint8) if values.dtype == bool else values
    return found


def _check_size(dataset: h5py.Dataset) -> None:
    if hdf5.size(dataset) > LARGEST_VECTOR:
        raise UnusableError(f"{dataset.name} has the shape {list(dataset.shape)}, far more than an episode's numbers")


def _stamps(file: h5py.File) -> dict[str, np.ndarray]:
    """Every clock [T] below `observation/timestamp`, by its path; none where there are none."""
    if not hdf5.has(file, "observation/timestamp"):
        return {}
    whole, found = hdf5.group(file, "observation/timestamp"), {}
    inner = [name for name in ("robot_state", "control", "cameras") if hdf5.has(whole, name)]
    for prefix, group in [("", whole), *((f"{name}/", hdf5.member(whole, name)) for name in inner)]:
        for name in hdf5.names(group)[:_MOST_MEMBERS] if isinstance(group, h5py.Group) else []:
            dataset = hdf5.member(group, name)
            if isinstance(dataset, h5py.Dataset) and hdf5.kind(dataset) in "fiub" and len(dataset.shape) == 1:
                _check_size(dataset)
                found[prefix + name] = hdf5.table(group, name)[:, 0]
    return found


def _seconds(stamps: np.ndarray, least: int) -> tuple[np.ndarray | None, str]:
    """A clock [T] in seconds, whatever unit fits 15 Hz; None and why, when it is no clock."""
    if not max(1, least) <= len(stamps) <= least + 2:
        return None, f"has {len(stamps)} time stamps for {least} steps"
    if not np.all(np.isfinite(stamps)) or np.any(np.diff(stamps.astype(np.float64)) < 0):
        return None, "has time stamps that are not finite or go backwards"
    middle = float(np.median(np.diff(stamps.astype(np.float64)))) if len(stamps) > 1 else 0.0
    for unit in _UNITS:
        if RATE / 3 < 1 / max(middle * unit, 1e-12) < RATE * 3:
            return stamps.astype(np.float64) * unit, ""
    return None, "has time stamps that do not fit 15 Hz"
