"""A small healthy tree of DROID episodes."""

import json
from pathlib import Path

import h5py
import numpy as np
from builders import motion, smooth_video, write_video

SERIALS = {"wrist": "16787047", "ext1": "22008760", "ext2": "24400334"}
START = 1_689_000_000_000  # milliseconds


def write(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    """Write `<root>/droid/<lab>/success/<date>/<time>/`, and give the tree."""
    for index in range(episodes):
        write_episode(
            root / f"droid/LAB/success/2023-07-0{index % 9 + 1}/Mon_Jul_{index:02d}_09:42:23_2023", index, steps
        )
    return root / "droid"


def write_episode(directory: Path, index: int = 0, steps: int = 20, **metadata) -> Path:
    """One episode; `metadata` replaces entries of its JSON file (None takes them out)."""
    directory.mkdir(parents=True)
    document = {
        "uuid": f"LAB+84bd5053+2023-07-0{index % 9 + 1}",
        "lab": "LAB",
        "user": "Ada",
        "current_task": "Put the cup on the plate",
        "success": True,
        "trajectory_length": steps,
        **{f"{camera}_cam_serial": serial for camera, serial in SERIALS.items()},
        **{f"{camera}_mp4_path": f"success/x/recordings/MP4/{serial}.mp4" for camera, serial in SERIALS.items()},
        **{f"{camera}_cam_extrinsics": [0.1, 0.2, 0.3, 0.0, 0.5, 1.0] for camera in SERIALS},
        **metadata,
    }
    document = {key: value for key, value in document.items() if value is not None}
    (directory / f"metadata_{index}.json").write_text(json.dumps(document))
    with h5py.File(directory / "trajectory.h5", "w") as file:
        for key, values in numbers(index, steps).items():
            file.create_dataset(key, data=values, maxshape=(None, *values.shape[1:]))  # as DROID's writer: it grows
    for number, serial in enumerate(SERIALS.values()):
        write_video(directory / f"recordings/MP4/{serial}.mp4", smooth_video(steps, index + number))
    return directory


def numbers(index: int, steps: int) -> dict[str, np.ndarray]:
    """Every dataset of an episode by its path."""
    parts, rng = motion(steps, index), np.random.default_rng(index)
    joints = np.cumsum(rng.uniform(0.01, 0.03, (steps, 7)), axis=0)
    clock = START + np.round(np.arange(steps) * 1000 / 15).astype(np.int64) + rng.integers(0, 3, steps)
    pose = np.concatenate([parts["position"], parts["position"][:, ::-1]], axis=1)
    cameras = {
        f"observation/timestamp/cameras/{serial}_{name}": clock + offset
        for serial in SERIALS.values()
        for name, offset in (("estimated_capture", 4), ("frame_received", 9), ("read_start", 1), ("read_end", 12))
    }
    return {
        "action/joint_position": joints + 0.01,
        "action/joint_velocity": np.full((steps, 7), 0.15),
        "action/gripper_position": parts["gripper"][:, 0],
        "action/cartesian_position": pose + 0.01,
        "action/robot_state/joint_positions": joints,
        "observation/robot_state/joint_positions": joints,
        "observation/robot_state/joint_velocities": np.gradient(joints, axis=0),
        "observation/robot_state/gripper_position": parts["gripper"][:, 0] * 0.9,
        "observation/robot_state/cartesian_position": pose,
        "observation/robot_state/prev_command_successful": np.ones(steps, bool),
        "observation/timestamp/robot_state/read_start": clock,
        "observation/timestamp/robot_state/robot_timestamp_nanos": np.arange(steps),
        "observation/timestamp/control/step_start": clock - 2,
        "observation/timestamp/skip_action": np.zeros(steps, bool),
        **cameras,
    }
