"""Small healthy LeRobot logs: v2.1 with a video each, and v3.0 with shared files, in its several ways."""

import json
from pathlib import Path

import numpy as np
from builders import lerobot_columns, lerobot_log, motion, png, smooth_video, write_table, write_video

FEATURES = {
    "observation.state": {"dtype": "float32", "shape": [2], "names": ["x", "gripper"]},
    "action": {"dtype": "float32", "shape": [2], "names": {"motors": ["dx", "grip"]}},
}
PLACES = ("chunk_index", "file_index")


def write(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    return lerobot_log(root / "lerobot", episodes=episodes, steps=steps)


def write_v3(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    return v3_log(root / "lerobot3", [steps] * episodes)


def write_v3_pictures(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    return v3_log(root / "lerobot3", [steps] * episodes, cameras=(), pictures=True)


def v3_log(
    root: Path,
    lengths: list[int],
    cameras: tuple[str, ...] = ("front",),
    pictures: bool = False,
    per_file: int = 100,
    grouped: bool = True,
    index_column: str = "__index_level_0__",
    **info,
) -> Path:
    """Write a v3.0 directory.

    Args:
        lengths: steps of each episode.
        cameras: those with videos.
        pictures: whether `observation.images.wrist` is PNG pictures inside the tables.
        per_file: episodes in a table, and in a video.
        grouped: whether each episode is a row group of its own; else a table has one.
        index_column: how meta/tasks.parquet calls the texts.
        info: changes of meta/info.json.
    """
    keys = [f"observation.images.{camera}" for camera in cameras]
    features = {**FEATURES, **{key: {"dtype": "video", "shape": [32, 48, 3]} for key in keys}}
    if pictures:
        features["observation.images.wrist"] = {"dtype": "image", "shape": [12, 12, 3]}
    document = {
        "codebase_version": "v3.0",
        "fps": 10,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": 2,
        "chunks_size": 1000,
        "splits": {"train": f"0:{len(lengths)}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": features,
        **info,
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(document))
    write_table(root / "meta/tasks.parquet", {"task_index": [0, 1], index_column: ["push the lever", "open the lid"]})
    listed = []
    for file, first in enumerate(range(0, len(lengths), per_file)):
        numbers = list(range(first, min(first + per_file, len(lengths))))
        parts = [columns_of(index, lengths[index], pictures) for index in numbers]
        put_parts(root / f"data/chunk-000/file-{file:03d}.parquet", parts, grouped)
        for key in keys:
            frames = np.concatenate([smooth_video(lengths[index], index) for index in numbers])
            write_video(root / f"videos/{key}/chunk-000/file-{file:03d}.mp4", frames)
        listed += [row_of(index, lengths, first, file, keys) for index in numbers]
    put_episodes(root / "meta/episodes/chunk-000/file-000.parquet", listed)
    return root


def columns_of(index: int, steps: int, pictures: bool = False) -> dict[str, list]:
    columns = {**lerobot_columns(index, steps), "frame_index": list(range(steps)), "task_index": [index % 2] * steps}
    if pictures:
        encoded = [png(picture) for picture in motion(steps, seed=index)["camera"]]
        columns["observation.images.wrist"] = [{"bytes": data, "path": "/etc/passwd"} for data in encoded]
    return columns


def put_parts(path: Path, parts: list[dict[str, list]], grouped: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    tables = [pa.table(part) for part in parts]
    if not grouped:
        pq.write_table(pa.concat_tables(tables), path)
        return
    with pq.ParquetWriter(path, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)


def row_of(index: int, lengths: list[int], first: int, file: int, keys: list[str]) -> dict:
    """The row of meta/episodes; pictures come ten a second."""
    begins = sum(lengths[first:index]) / 10
    row = {
        "episode_index": index,
        "tasks": [["push the lever", "open the lid"][index % 2]],
        "length": lengths[index],
        "dataset_from_index": sum(lengths[:index]),
        "dataset_to_index": sum(lengths[: index + 1]),
        "data/chunk_index": 0,
        "data/file_index": file,
        "stats/action/min": [0.0, 0.0],
    }
    for key in keys:
        row |= {f"videos/{key}/{part}": value for part, value in zip(PLACES, (0, file), strict=True)}
        row |= {f"videos/{key}/from_timestamp": begins, f"videos/{key}/to_timestamp": begins + lengths[index] / 10}
    return row


def put_episodes(path: Path, rows: list[dict]) -> None:
    write_table(path, {key: [row[key] for row in rows] for key in rows[0]})
