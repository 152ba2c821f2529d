"""A small healthy RLDS dataset as TFDS writes it."""

from pathlib import Path

from builders import rlds_example, rlds_log


def write(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    """Write `<root>/toy/1.0.0` with one shard, and give that directory."""
    return rlds_log(root / "toy" / "1.0.0", [rlds_example(steps, seed) for seed in range(episodes)])
