"""Make the raw logs of sample_data: what a lab would have on disk, in robomimic's layout.

    python scripts/make_sample_data.py

demonstrations.hdf5   20 demonstrations of one instruction under shift V, by two operators with different speed and
                      approach, with idle heads and tails and timestamps that jitter. The file holds no language, as
                      robomimic's do not: the caller states the instruction.
rehearsal.hdf5        base-domain episodes over many instructions (`ep_meta` names each), one operator, no idling.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from vla_cli.worlds.tabletop.environment import CONTROL_RATE_HZ, Start
from vla_cli.worlds.tabletop.expert import STRAIGHT
from vla_cli.worlds.tabletop.recording import Recording, demonstrations, record, write_log
from vla_cli.worlds.tabletop.scene import Layout, Task, draw_task
from vla_cli.worlds.tabletop.world import env_args

LAYOUT = Layout(
    objects=(("red", "block"), ("blue", "ball"), ("green", "wedge"), ("yellow", "ball")), cells=(1, 3, 5, 7)
)
TASK = Task("put", "red", "block", "left")


def sample_demonstrations(count: int, seed: int) -> list[Recording]:
    """The lab's demonstrations of one instruction, in a log that holds no language."""
    recordings = demonstrations(LAYOUT, [TASK] * count, "V", np.random.default_rng([seed, 1]))
    return [replace(recording, instruction="") for recording in recordings]


def rehearsal(count: int, seed: int) -> list[Recording]:
    """Base-domain episodes: any objects anywhere, any task, any phrasing."""
    rng = np.random.default_rng([seed, 2])
    found = []
    for _ in range(count):
        scene = Layout().draw(rng)
        task = draw_task(scene, rng)
        recording = record(Start(scene, task), "base", STRAIGHT, rng, idle=(0, 1), operator="carol")
        phrasing = task.phrasings[rng.integers(len(task.phrasings))]
        found.append(replace(recording, instruction=phrasing))
    return found


def main() -> None:
    """Parse the command line and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("sample_data"))
    parser.add_argument("--demonstrations", type=int, default=20)
    parser.add_argument("--rehearsal", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    write_log(
        args.out / "demonstrations.hdf5",
        sample_demonstrations(args.demonstrations, args.seed),
        env_args("V", LAYOUT, TASK),
    )
    base_world = {"env_name": "tabletop", "env_version": "1", "type": 2}
    base_world["env_kwargs"] = {"shift": "base", "control_freq": CONTROL_RATE_HZ}  # type: ignore[assignment]
    write_log(args.out / "rehearsal.hdf5", rehearsal(args.rehearsal, args.seed), base_world)
    for name in ("demonstrations.hdf5", "rehearsal.hdf5"):
        print(f"{args.out / name}: {(args.out / name).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
