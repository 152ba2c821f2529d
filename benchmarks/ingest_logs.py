"""Logs for `ingest.py`: of any length and picture size, one writer a format, by the formats' own libraries."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))


DISTINCT = 8
"""Episodes with pictures of their own; later ones have those of an earlier one, for making pictures takes long."""


def scene(steps: int, height: int, width: int, seed: int) -> Iterator[np.ndarray]:
    """Pictures [H, W, 3] uint8 as a camera gives them: a still table, a thing that moves, and sensor noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    table = np.stack([90 + 60 * x / width, 80 + 50 * y / height, 70 + 20 * np.sin(x / 17) * np.sin(y / 23)], axis=-1)
    grains = rng.normal(0, 2, (height + 64, width, 3))
    for step in range(steps):
        row = int((0.5 + 0.4 * np.sin(step / 40)) * (height - height // 4))
        column = int((0.5 + 0.4 * np.cos(step / 29)) * (width - width // 5))
        picture = table + grains[step % 64 :][:height]
        picture[row : row + height // 4, column : column + width // 5] += (60, -30, 10)
        yield np.clip(picture, 0, 255).astype(np.uint8)


def vectors(steps: int, seed: int, size: int = 7) -> np.ndarray:
    """A motion [T, D] float64 that goes on in every step."""
    return np.cumsum(np.random.default_rng(seed).uniform(0.001, 0.01, (steps, size)), axis=0)


def robomimic(path: Path, episodes: int, steps: int, size: tuple[int, int], packing: str = "gzip") -> Path:
    """One HDF5 file; `packing` is "gzip" (a chunk a picture) or "contiguous" (robomimic's own way)."""
    import h5py

    chunks = None if packing == "contiguous" else (1, *size, 3)
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = json.dumps({"env_name": "x", "env_kwargs": {"control_freq": 20}})
        for index in range(episodes):
            demo = file.create_group(f"data/demo_{index}")
            demo.attrs["num_samples"] = steps
            demo["actions"], demo["obs/eef_pos"] = vectors(steps, index), vectors(steps, index, 3)
            if index >= DISTINCT:
                file.copy(f"data/demo_{index % DISTINCT}/obs/front_image", demo["obs"])
                continue
            shape, compression = (steps, *size, 3), "gzip" if packing == "gzip" else None
            pictures = demo.create_dataset("obs/front_image", shape, "u1", chunks=chunks, compression=compression)
            for step, picture in enumerate(scene(steps, *size, index)):
                pictures[step] = picture
    return path


def aloha(path: Path, episodes: int, steps: int, size: tuple[int, int]) -> Path:
    """A folder of files with plain pictures."""
    import h5py

    path.mkdir()
    for index in range(episodes):
        with h5py.File(path / f"episode_{index}.hdf5", "w") as file:
            file.attrs["sim"] = False
            for key in ("observations/qpos", "observations/qvel", "action"):
                file[key] = vectors(steps, index, 14)
            pictures = file.create_dataset(
                "observations/images/cam_high", (steps, *size, 3), "u1", chunks=(1, *size, 3)
            )
            for step, picture in enumerate(scene(steps, *size, index)):
                pictures[step] = picture
    return path


def lerobot(path: Path, episodes: int, steps: int, size: tuple[int, int], codec: str = "libx264") -> Path:
    """A LeRobot v2.1 directory with one video an episode."""
    from builders import lerobot_columns, write_lines, write_table  # pyright: ignore[reportMissingImports]

    key = "observation.images.front"
    features = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "gripper"]},
        "action": {"dtype": "float32", "shape": [2], "names": ["dx", "grip"]},
        key: {"dtype": "video", "shape": [*size, 3], "names": ["height", "width", "channel"]},
    }
    info = {
        "codebase_version": "v2.1",
        "fps": 10,
        "total_episodes": episodes,
        "chunks_size": 1000,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    (path / "meta").mkdir(parents=True)
    (path / "meta/info.json").write_text(json.dumps(info))
    write_lines(path / "meta/tasks.jsonl", [{"task_index": 0, "task": "push the lever"}])
    rows = [{"episode_index": i, "tasks": ["push the lever"], "length": steps} for i in range(episodes)]
    write_lines(path / "meta/episodes.jsonl", rows)
    for index in range(episodes):
        write_table(path / f"data/chunk-000/episode_{index:06d}.parquet", lerobot_columns(index, steps))
        video = path / f"videos/chunk-000/{key}/episode_{index:06d}.mp4"
        if index < DISTINCT:
            _write_video(video, scene(steps, *size, index), size, codec)
        else:
            shutil.copyfile(video.with_name(f"episode_{index % DISTINCT:06d}.mp4"), video)
    return path


def _write_video(path: Path, pictures: Iterator[np.ndarray], size: tuple[int, int], codec: str) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10, options={"preset": "veryfast", "g": "30"})
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def rlds(path: Path, episodes: int, steps: int, size: tuple[int, int]) -> Path:
    """A TFDS version directory with JPEG pictures."""
    from builders import rlds_example, rlds_log  # pyright: ignore[reportMissingImports]

    examples = []
    for index in range(episodes):
        pictures = [_jpeg(picture) for picture in scene(steps, *size, index)]
        examples.append(rlds_example(steps, index, **{"steps/observation/image_0": pictures}))
    rlds_log(path, examples)
    features = path / "features.json"
    said = features.read_text().replace('["12", "12", "3"]', f'["{size[0]}", "{size[1]}", "3"]')
    features.write_text(said)
    return path


def _jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def zarr(path: Path, episodes: int, steps: int, size: tuple[int, int]) -> Path:
    """A replay buffer in a folder, a chunk a picture."""
    import zarr as library

    total = episodes * steps
    group = library.open_group(path, mode="w", zarr_format=2)
    pictures = group.create_array("data/camera_0", shape=(total, *size, 3), chunks=(1, *size, 3), dtype="u1")
    for step, picture in enumerate(scene(total, *size, 0)):
        pictures[step] = picture
    for key, width in (("action", 7), ("robot_eef_pose", 6)):
        group.create_array(f"data/{key}", data=vectors(total, 0, width), chunks=(256, width))
    group.create_array("meta/episode_ends", data=steps * np.arange(1, episodes + 1), chunks=(episodes,))
    return path


def rosbag(path: Path, episodes: int, steps: int, size: tuple[int, int]) -> Path:
    """A folder of MCAP bags with a camera of plain pictures."""
    from logs import rosbag as bags  # pyright: ignore[reportMissingImports]
    from rosbags.rosbag2 import StoragePlugin, Writer

    path.mkdir()
    for index in range(episodes):
        motion, connections = vectors(steps, index, 3), {}
        with Writer(path / f"bag_{index}", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            for step, picture in enumerate(scene(steps, *size, index)):
                for topic, kind, message in (
                    ("/front/image_raw", "sensor_msgs/msg/Image", bags.image(picture, step)),
                    ("/joint_states", "sensor_msgs/msg/JointState", bags.joints(motion[step], step)),
                    ("/arm/command", "std_msgs/msg/Float64MultiArray", bags.numbers(motion[step])),
                ):
                    if topic not in connections:
                        connections[topic] = writer.add_connection(topic, kind, typestore=bags.TYPES)
                    writer.write(connections[topic], bags.at(step), bags.TYPES.serialize_cdr(message, kind))
    return path


WRITERS: dict[str, Callable[[Path, int, int, tuple[int, int]], Path]] = {
    "robomimic": robomimic,
    "lerobot": lerobot,
    "rlds": rlds,
    "zarr": zarr,
    "rosbag": rosbag,
    "aloha": aloha,
}
