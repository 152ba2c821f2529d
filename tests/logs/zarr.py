"""Small replay buffers: UMI's zip (the same bytes each time), PushT's folder, and a real robot's with videos."""

import zipfile
from pathlib import Path

import numpy as np
from builders import motion, smooth_video, write_video


def arrays(episodes: int = 2, steps: int = 20) -> dict[str, np.ndarray]:
    """What each key of `data` holds."""
    parts = [motion(steps, seed) for seed in range(episodes)]
    position = np.concatenate([part["position"] for part in parts])
    return {
        "camera0_rgb": np.concatenate([part["camera"] for part in parts]),
        "robot0_eef_pos": position.astype(np.float32),
        "robot0_eef_rot_axis_angle": (0.1 * position).astype(np.float32),
        "robot0_gripper_width": (0.08 * np.concatenate([part["gripper"] for part in parts])).astype(np.float32),
        "robot0_demo_start_pose": np.repeat(position[:1], len(position), 0),
        "robot0_demo_end_pose": np.repeat(position[-1:], len(position), 0),
    }


def write(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    import zarr
    from numcodecs import Blosc

    store = zarr.storage.MemoryStore()
    group = zarr.open_group(store, mode="w", zarr_format=2)
    options = {"compressors": Blosc(), "config": {"write_empty_chunks": True}, "chunk_key_encoding": None}
    for key, values in arrays(episodes, steps).items():
        chunks = (1 if values.ndim == 4 else len(values), *values.shape[1:])
        group.create_array(f"data/{key}", data=values, chunks=chunks, **options)
    ends = steps * np.arange(1, episodes + 1)
    group.create_array("meta/episode_ends", data=ends, chunks=(episodes,), **options)
    root.mkdir(parents=True, exist_ok=True)
    path = root / "dataset.zarr.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(store._store_dict):
            archive.writestr(zipfile.ZipInfo(name), store._store_dict[name].to_bytes())  # ZipInfo's date is fixed
    return path


def store(path: Path, data: dict[str, np.ndarray], ends, zarr_format: int = 2, chunks: int = 7, **options) -> Path:
    """A store in a folder, written by zarr itself; `options` by key."""
    import zarr

    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    for key, values in data.items():
        settings = {"config": {"write_empty_chunks": True}, **options.get(key, {})}
        rows = (min(chunks, len(values)), *values.shape[1:])
        group.create_array(f"data/{key}", data=values, **{"chunks": rows, **settings})
    group.create_array("meta/episode_ends", data=np.asarray(ends, np.int64), chunks=(max(1, len(ends)),))
    return path


def pusht(steps: int = 30) -> dict[str, np.ndarray]:
    """What each key of PushT's `data` holds."""
    parts = motion(steps)
    return {
        "img": parts["camera"].astype(np.float32),
        "state": np.concatenate([parts["position"], parts["gripper"], parts["gripper"]], 1).astype(np.float32),
        "action": parts["actions"][:, :2].astype(np.float32),
        "keypoint": np.arange(steps * 18, dtype=np.float32).reshape(steps, 9, 2),
        "n_contacts": np.ones((steps, 1), np.float32),
    }


def write_pusht(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    ends = steps * np.arange(1, episodes + 1)
    return store(root / "pusht.zarr", pusht(episodes * steps), ends, zarr_format=3)


def write_real_robot(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    """The folder that diffusion_policy's `demo_real_robot.py` leaves behind."""
    count = episodes * steps
    pose = np.random.default_rng(1).normal(size=(count, 6))
    clock = 1.7e9 + np.arange(count) / 10
    data = {"timestamp": clock, "action": pose + 0.1, "robot_eef_pose": pose, "stage": np.zeros(count, np.int64)}
    store(root / "demo/replay_buffer.zarr", data, steps * np.arange(1, episodes + 1))
    for index in range(episodes):
        write_video(root / f"demo/videos/{index}/0.mp4", smooth_video(steps, index))
    return root / "demo"
