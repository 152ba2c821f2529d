"""A small ALOHA recording folder: one file an episode, with plain pictures or a padded JPEG a step."""

from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

CAMERAS = ("cam_high", "cam_left_wrist")


def write(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    for index in range(episodes):
        one_file(root / "aloha" / f"episode_{index}.hdf5", index, steps)
    return root / "aloha"


def write_compressed(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    for index in range(episodes):
        compressed(root / "aloha" / f"episode_{index}.hdf5", index, steps, lengths=bool(index % 2))
    return root / "aloha"


def one_file(path: Path, seed: int = 0, steps: int = 20, *, mobile: bool = False, alter=lambda file: None) -> Path:
    """One episode as ACT's recorder writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    vectors, pictures = parts(steps, seed)
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = False
        for camera, values in pictures.items():
            file.create_dataset(f"observations/images/{camera}", data=values, chunks=(1, *values.shape[1:]))
        for key, values in vectors.items():
            if mobile or key != "base_action":
                file[key] = values
        alter(file)
    return path


def compressed(path: Path, seed: int = 0, steps: int = 20, lengths: bool = True) -> Path:
    """One episode as Mobile ALOHA's recorder writes it: JPEGs, padded with zeros to the longest one."""
    _, pictures = parts(steps, seed)
    coded = {camera: [jpeg(picture) for picture in values] for camera, values in pictures.items()}
    longest = max(len(data) for rows in coded.values() for data in rows)

    def alter(file: h5py.File) -> None:
        file.attrs["compress"] = True
        for camera, rows in coded.items():
            del file[f"observations/images/{camera}"]
            padded = np.stack([np.frombuffer(data.ljust(longest, b"\0"), np.uint8) for data in rows])
            file.create_dataset(f"observations/images/{camera}", data=padded, chunks=(1, longest))
        if lengths:
            file["compress_len"] = np.array([[len(data) for data in rows] for rows in coded.values()], np.float64)

    return one_file(path, seed, steps, mobile=True, alter=alter)


def jpeg(picture: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def parts(steps: int, seed: int, height: int = 12, width: int = 16) -> tuple[dict, dict]:
    rng = np.random.default_rng(seed)
    joints = np.cumsum(rng.uniform(0.001, 0.01, (steps, 14)), axis=0)
    vectors = {
        "observations/qpos": joints,
        "observations/qvel": rng.normal(size=(steps, 14)),
        "observations/effort": rng.normal(size=(steps, 14)),
        "action": joints + rng.uniform(0, 0.01, (steps, 14)),
        "base_action": rng.normal(size=(steps, 2)),
    }
    return vectors, {camera: rng.integers(0, 256, (steps, height, width, 3), np.uint8) for camera in CAMERAS}
