"""A small LIBERO log: a directory with one task's file, attributes and all, or the copy that lost them."""

import json
from pathlib import Path

import h5py
import numpy as np

TASK = "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it"
INSTRUCTION = "turn on the stove and put the moka pot on it"
CAMERAS = ("agentview_rgb", "eye_in_hand_rgb")


def write(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    return one_file(root / "libero" / f"{TASK}_demo.hdf5", list(range(episodes)), steps).parent


def write_no_noops(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    return one_file(root / f"{TASK}_demo.hdf5", list(range(episodes)), steps, attributes=False)


def one_file(path: Path, demos: list[int], steps: int, attributes: bool = True, size: int = 12, **changes) -> Path:
    """One task's file; `alter(index, group)` may change a demo, other `changes` the attributes of /data."""
    path.parent.mkdir(parents=True, exist_ok=True)
    alter = changes.pop("alter", lambda index, group: None)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        stated = {**described(), "num_demos": len(demos), "total": len(demos) * steps, **changes} if attributes else {}
        for key, value in stated.items():
            if value is not None:
                data.attrs[key] = value
        for index in demos:
            group = data.create_group(f"demo_{index}")
            for key, values in parts(steps, index, size).items():
                chunks = (1, *values.shape[1:]) if values.ndim == 4 else None
                group.create_dataset(key, data=values, chunks=chunks, compression="gzip" if chunks else None)
            alter(index, group)
    return path


def described() -> dict:
    """What LIBERO's own recorder writes beside the demos."""
    arguments = {"env_name": "Libero_Kitchen_Tabletop_Manipulation", "type": 1, "env_kwargs": {"control_freq": 20}}
    return {
        "env_name": "Libero_Kitchen_Tabletop_Manipulation",
        "env_args": json.dumps(arguments),
        "problem_info": json.dumps({"problem_name": "kitchen", "language_instruction": INSTRUCTION}),
        "macros_image_convention": "opengl",
        "bddl_file_name": f"libero_10/{TASK}.bddl",
        "tag": "libero-v1",
    }


def parts(steps: int, seed: int, size: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    pose = np.cumsum(rng.uniform(0.001, 0.01, (steps, 6)), axis=0)
    gripper = np.where(np.arange(steps) > steps // 2, 1.0, -1.0)[:, None]
    fingers = 0.02 - 0.01 * gripper * np.array([1.0, -1.0])
    return {
        "actions": np.concatenate([rng.uniform(-1, 1, (steps, 6)), gripper], axis=1),
        "states": rng.normal(size=(steps, 5)),
        "robot_states": np.concatenate([fingers, pose[:, :3], rng.normal(size=(steps, 4))], axis=1),
        "rewards": np.zeros(steps, np.uint8),
        "dones": np.eye(1, steps, steps - 1, dtype=np.uint8)[0],
        **{f"obs/{camera}": rng.integers(0, 256, (steps, size, size, 3), np.uint8) for camera in CAMERAS},
        "obs/gripper_states": fingers,
        "obs/joint_states": np.cumsum(rng.uniform(0.001, 0.01, (steps, 7)), axis=0),
        "obs/ee_states": pose,
        "obs/ee_pos": pose[:, :3],
        "obs/ee_ori": pose[:, 3:],
    }
