"""What UMI's, PushT's and diffusion_policy's replay buffers mean by their keys.

Sources: diffusion_policy `real_world/real_env.py` (a UR5's poses are position and rotation vector, actions are target
poses), `env/pusht/pusht_env.py` (pixels of a 512x512 table, actions are target positions), UMI
`scripts_slam_pipeline/07_generate_replay_buffer.py` (metres, rotation vectors, gripper width in metres).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vla_cli.episode import Role, Stream
from vla_cli.readers.zarr_meta import ArrayFacts

_UMI = re.compile(r"robot(\d+)_(eef_pos|eef_rot_axis_angle|gripper_width)")
_UMI_PARTS = ("eef_pos", "eef_rot_axis_angle", "gripper_width")
_NO_STATE = re.compile(r"keypoint|n_contacts|stage|rewards?|dones?|success|.*_demo_(start|end)_pose|actions?_.+")
_NOTHING = {"rotation": "none", "quaternion_sign": "none", "gripper": "none"}
_ROTATION = {"rotation": "axis-angle", "quaternion_sign": "none"}
_BY_KEY: dict[str, dict[str, str]] = {
    "eef_pos": {**_NOTHING, "units": "m"},
    "eef_rot_axis_angle": {**_NOTHING, **_ROTATION, "units": "rad"},
    "gripper_width": {**_NOTHING, "units": "m", "gripper": "width"},
    "robot_eef_pose": {**_NOTHING, **_ROTATION, "units": "m, rad", "frame": "base"},
    "robot_joint": {**_NOTHING, "rotation": "joints", "units": "rad"},
}


def role_of(key: str, facts: ArrayFacts) -> Role:
    """What a vector is: the action, the robot's state, or something beside."""
    if key in ("action", "actions"):
        return "action"
    return "state" if facts.dtype.kind == "f" and not _NO_STATE.fullmatch(key) else "other"


def stream_facts(role: Role, key: str, arrays: Mapping[str, ArrayFacts]) -> dict[str, Any]:
    """The conventions that the format states of a stream.

    Args:
        role: the stream's.
        key: its name.
        arrays: every array of the store by its path, which tell whose format it is.
    """
    pusht = {"data/keypoint", "data/n_contacts"} <= arrays.keys()
    if role == "image":
        return {"channels": "rgb"} if pusht or re.fullmatch(r"camera\d+_rgb", key) else {}
    if role == "action":
        return action_facts(arrays, pusht)
    if role != "state":
        return {}
    if pusht and key == "state":
        return {"units": "px, rad", "gripper": "none", "quaternion_sign": "none"}
    umi = _UMI.fullmatch(key)
    return dict(_BY_KEY.get(umi[2] if umi else key, {}))


def action_facts(arrays: Collection[str], pusht: bool) -> dict[str, Any]:
    """The conventions of a recorded `action`."""
    if pusht:
        return {**_NOTHING, "units": "px", "mode": "absolute"}
    if "data/robot_eef_pose" in arrays:
        return {**_BY_KEY["robot_eef_pose"], "mode": "absolute"}
    return {}


def derived_action(streams: list[Stream], clock: np.ndarray) -> Stream | None:
    """UMI's action [T, 7 a robot]: position, rotation vector and gripper width of the next step, the last repeated.

    None where the log has no such poses.
    """
    parts = {stream.name: stream for stream in streams if _UMI.fullmatch(stream.name)}
    robots = sorted({int(_UMI.fullmatch(name)[1]) for name in parts})  # pyright: ignore[reportOptionalSubscript]
    names = [f"robot{robot}_{part}" for robot in robots for part in _UMI_PARTS if f"robot{robot}_{part}" in parts]
    if not any(name.endswith("_eef_pos") for name in names):
        return None
    pose = np.concatenate([parts[name].values for name in names], axis=1)
    labels = [
        f"{name}.{i}" if parts[name].values.shape[1] > 1 else name
        for name in names
        for i in range(parts[name].values.shape[1])
    ]
    facts = {**_NOTHING, "mode": "absolute", "units": "m, rad"}
    facts |= _ROTATION if any(name.endswith("axis_angle") for name in names) else {}
    facts |= {"gripper": "width"} if any(name.endswith("width") for name in names) else {}
    return Stream("action", "action", np.concatenate([pose[1:], pose[-1:]]), clock, {**facts, "names": labels})
