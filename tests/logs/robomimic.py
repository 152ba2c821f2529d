"""A small robomimic log: one file with `/data/demo_<i>`."""

from pathlib import Path

from builders import robomimic_log


def write(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    return robomimic_log(root / "robomimic.hdf5", demos=episodes, steps=steps)


def write_directory(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    for index in range(episodes):
        robomimic_log(root / "robomimic" / f"session_{index}.hdf5", demos=1, steps=steps)
    return root / "robomimic"
