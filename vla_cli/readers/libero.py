"""LIBERO HDF5: `<task>_demo.hdf5` (or a directory of them), robomimic's layout with LIBERO's own meanings.

Layout (LIBERO's scripts/create_dataset.py):

    /data               attrs: problem_info (JSON: language_instruction), macros_image_convention, bddl_file_name,
                        env_args (JSON with control_freq 20), tag "libero-v1", num_demos, total
    /data/demo_<i>
        actions         [T, 7] in [-1, 1]: change of the end effector's position and axis-angle, gripper (-1 open,
                        +1 close)
        robot_states    [T, 9] fingers 2, position 3, quaternion 4: kept as `other`
        obs/            agentview_rgb, eye_in_hand_rgb uint8 [T, H, W, 3]; joint_states [T, 7] rad; gripper_states
                        [T, 2] m; ee_states [T, 6] position in m and axis-angle; ee_pos and ee_ori, the same again

Pictures have their rows bottom-up when macros_image_convention is "opengl", and are upright when it is "opencv". The
copies without no-op steps that OpenVLA made have 256x256 pictures and no attributes: which way up they are is not
said, demos are missing among the numbers, and the instruction is in the file's name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import h5py

from vla_cli import hdf5
from vla_cli.episode import Role, Stream
from vla_cli.readers import Options, Reader, Warn
from vla_cli.readers.hdf5_log import claim
from vla_cli.readers.hdf5_parts import parse_json
from vla_cli.readers.robomimic import DemoLog

RATE = 20.0
ORIENTATIONS = {"opengl": "upside-down", "opencv": "upright"}
_STATES = ("joint_states", "gripper_states", "ee_states")
_COPIES = ("ee_pos", "ee_ori")  # of what ee_states holds
_SCENE = re.compile(r"^[A-Z][A-Z_]*_SCENE[0-9]+_")
_POSE = ["x", "y", "z", "rx", "ry", "rz"]
_MEANINGS: dict[tuple[str, int], dict[str, Any]] = {
    ("action", 7): {
        "names": [*(f"d{axis}" for axis in _POSE), "gripper"],
        "units": "normalised to [-1, 1]",
        "rotation": "axis-angle",
        "quaternion_sign": "none",
        "gripper": "open-low",
        "mode": "delta",
    },
    ("joint_states", 7): {
        "names": [f"joint_{i}" for i in range(1, 8)],
        "units": "rad",
        "frame": "none",
        "rotation": "joints",
        "quaternion_sign": "none",
        "gripper": "none",
    },
    ("gripper_states", 2): {
        "names": ["finger_1", "finger_2"],
        "units": "m",
        "frame": "none",
        "rotation": "none",
        "quaternion_sign": "none",
        "gripper": "joint",
    },
    ("ee_states", 6): {
        "names": _POSE,
        "units": "m, rad",
        "frame": "world",
        "rotation": "axis-angle",
        "quaternion_sign": "none",
        "gripper": "none",
    },
    ("ee_pos", 3): {"names": _POSE[:3], "units": "m", "frame": "world", "rotation": "none", "gripper": "none"},
    ("ee_ori", 3): {"names": _POSE[3:], "units": "rad", "frame": "world", "rotation": "axis-angle", "gripper": "none"},
    ("robot_states", 9): {"names": ["finger_1", "finger_2", "x", "y", "z", "q1", "q2", "q3", "q4"]},
}
"""Stream name and width to what LIBERO's layout says of it; another width is somebody's own layout."""


def recognise(path: Path) -> str | None:
    """Whether this is an HDF5 file with /data/demo_<i> groups and LIBERO's attributes on /data or cameras in obs.

    Of a directory, its `.hdf5` and `.h5` files are looked at.
    """
    return claim(path, "libero")


def open_log(path: Path, options: Options, warn: Warn) -> LiberoLog:
    """Open the file or the directory.

    Raises:
        InputError: there is no HDF5 file, or the only one is damaged, or of another format.
    """
    return LiberoLog(path, warn)


class LiberoLog(DemoLog):
    """An open LIBERO log; what it says differently from robomimic."""

    format = "libero"
    looks_for = "an HDF5 file with /data/demo_<i> groups that LIBERO recorded"

    def role(self, key: str, obs: h5py.Group) -> Role:
        """The three vectors LIBERO's own policies see are the state, the rest repeats them."""
        if key in _COPIES and not hdf5.has(obs, "ee_states"):
            return "state"
        return "state" if key in _STATES else "other"

    def attributes(self, stream: Stream, data: h5py.Group) -> dict[str, Any]:
        """What LIBERO's layout says of a stream of that name and width."""
        if stream.role == "image":
            orientation = ORIENTATIONS.get(hdf5.text(data, "macros_image_convention", ""))
            return {"channels": "rgb", **({"orientation": orientation} if orientation else {})}
        meanings = dict(_MEANINGS.get((stream.name, stream.values.shape[1]), {}))
        return meanings if stream.role != "other" else {k: v for k, v in meanings.items() if k in ("names", "units")}

    def assumed_rate(self, notes: list[str], where: str) -> tuple[float, dict[str, Any]]:
        """LIBERO's own rate."""
        note = f"no rate is stated (no control_freq in env_args): LIBERO's {RATE:g} Hz is taken"
        notes.append(f"{note}; in a copy without no-op steps time is missing where they were")
        self.warn(f"{where}: {note}.")
        return RATE, {"rate_hz": RATE}

    def instructions(self, demo: h5py.Group, file: Path, notes: list[str]) -> list[str]:
        """The task's sentence from problem_info, or from the file's name where the attributes were lost."""
        try:
            info = parse_json(hdf5.text(hdf5.group(demo.file, "data"), "problem_info", "{}"), "problem_info")
            said = info.get("language_instruction", "") if isinstance(info, dict) else ""
            said = "".join(said) if isinstance(said, list | str) else ""  # LIBERO's own loader joins, too
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            notes.append(f"the instruction is not in problem_info: {error}")
            said = ""
        said = said.strip().strip('"').strip()
        if not said and (said := _sentence(file)):
            notes.append("no problem_info: the instruction is from the file's name")
        return [said] if said else []

    def beside(self, demo: h5py.Group) -> list[str]:
        """The robot's own state."""
        return ["robot_states"] if hdf5.has(demo, "robot_states") else []


def _sentence(file: Path) -> str:
    """`KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5` as "turn on the stove"; other names than a task's say nothing."""
    task, demo, _ = file.stem.rpartition("_demo")
    return _SCENE.sub("", task).replace("_", " ").strip() if demo else ""


READER = Reader(LiberoLog.looks_for, recognise, open_log)
