"""A small log of frames and CSV: two cameras, of which one has its own clock."""

import json
from pathlib import Path

import numpy as np
from builders import motion, png
from PIL import Image

STATE = ("x", "y", "z", "grip")
ACTION = ("dx", "dy", "dz", "grip")


def write(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    """Write `<root>/demos/demo_<i>/`, and give `<root>/demos`."""
    for index in range(episodes):
        write_episode(root / f"demos/demo_{index}", index, steps)
    return root / "demos"


def write_episode(folder: Path, index: int = 0, steps: int = 20) -> Path:
    parts = motion(steps, index)
    clock = np.arange(steps) / 10
    write_rows(folder, parts, clock)
    write_pictures(folder / "frames/front", parts["camera"])
    write_pictures(folder / "frames/wrist", parts["camera"][::2], ending="jpg")
    times = [f"wrist/{step:06d}.jpg,{0.01 + step / 5!r}" for step in range(len(parts["camera"][::2]))]
    (folder / "frames.csv").write_text("\n".join(["file,timestamp", *times]) + "\n")
    facts = {"instruction": "put the red cube in the bowl", "operator": "ada", "rate_hz": 10}
    facts["conventions"] = {"action": {"mode": "delta"}, "front": {"orientation": "upright"}}
    (folder / "episode.json").write_text(json.dumps(facts))
    return folder


def write_rows(folder: Path, parts: dict[str, np.ndarray], clock: np.ndarray, **texts: list[str]) -> None:
    """data.csv, every number to its last bit; `texts` are further columns."""
    folder.mkdir(parents=True, exist_ok=True)
    state = np.concatenate([parts["position"], parts["gripper"]], axis=1)
    names = ["timestamp", *(f"state.{name}" for name in STATE), *(f"action.{name}" for name in ACTION)]
    numbers = np.concatenate([clock[:, None], state, parts["actions"]], axis=1).tolist()
    cells = [[*map(repr, row), *more] for row, *more in zip(numbers, *texts.values(), strict=True)]
    lines = [",".join(row) for row in [[*names, *texts], *cells]]
    (folder / "data.csv").write_text("\n".join(lines) + "\n")


def write_pictures(folder: Path, pictures: np.ndarray, names: list[str] | None = None, ending: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for step, picture in enumerate(pictures):
        path = folder / (names[step] if names else f"{step:06d}.{ending}")
        if path.suffix == ".png":
            path.write_bytes(png(picture))
        else:
            Image.fromarray(picture).save(path, quality=95)
