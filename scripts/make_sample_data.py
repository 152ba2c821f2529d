"""Make the raw logs of sample_data: what a lab would have on disk, in robomimic's layout.

    python scripts/make_sample_data.py

demonstrations.hdf5   20 demonstrations of one instruction under shift V, by two operators with different speed and
                      approach, with idle heads and tails and timestamps that jitter. The file holds no language, as
                      robomimic's do not: the caller states the instruction.
rehearsal.hdf5        base-domain episodes over many instructions (`ep_meta` names each), one operator, no idling.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from vla_cli.files import replacing
from vla_cli.worlds.tabletop.environment import CONTROL_RATE_HZ, Start, TabletopVectorEnv
from vla_cli.worlds.tabletop.expert import STRAIGHT, Habit
from vla_cli.worlds.tabletop.scene import Layout, Task, draw_task
from vla_cli.worlds.tabletop.shifts import DOMAINS
from vla_cli.worlds.tabletop.world import env_args

LAYOUT = Layout(
    objects=(("red", "block"), ("blue", "ball"), ("green", "wedge"), ("yellow", "ball")), cells=(1, 3, 5, 7)
)
TASK = Task("put", "red", "block", "left")
OPERATORS = {"alice": Habit(speed=1.0), "bob": Habit(speed=0.7, axis_first="x")}
JITTER = 0.012
"""Standard deviation of the camera's timestamps, seconds."""


@dataclass
class Recording:
    """One demonstration as arrays [T, ...]."""

    images: np.ndarray
    state: np.ndarray
    actions: np.ndarray
    timestamps: np.ndarray
    operator: str
    instruction: str


def record(
    start: Start, shift: str, habit: Habit, rng: np.random.Generator, *, idle: tuple[int, int], jitter: float
) -> tuple[np.ndarray, ...]:
    """Let the expert do a task once, standing still for some steps before and after."""
    env = TabletopVectorEnv([start], DOMAINS[shift], seed=int(rng.integers(2**31)))
    observation, _ = env.reset()
    rows = []
    still = np.array([[0.0, 0.0, -1.0]])
    for _ in range(idle[0]):
        rows.append((env.picture(np.array([0]))[0], observation["state"][0], still[0]))
    while not env.ended.all():
        action = np.clip(env.expert(habit), -1.0, 1.0)
        rows.append((observation["image"][0], observation["state"][0], action[0]))
        observation, *_ = env.step(action)
    assert env.success.all(), "the expert failed"
    last = np.array([0.0, 0.0, rows[-1][2][2]])
    for _ in range(idle[1]):
        rows.append((env.picture(np.array([0]))[0], observation["state"][0], last))
    clock = np.arange(len(rows)) / CONTROL_RATE_HZ + rng.normal(0, jitter, len(rows))
    images, state, actions = (np.stack(column) for column in zip(*rows, strict=True))
    return images, state.astype(np.float32), actions.astype(np.float32), np.sort(clock - clock.min())


def demonstrations(count: int, seed: int) -> list[Recording]:
    """The lab's demonstrations: one instruction, two operators taking turns, idle heads and tails, jitter."""
    rng = np.random.default_rng([seed, 1])
    found = []
    for i in range(count):
        operator = list(OPERATORS)[i % len(OPERATORS)]
        idle = (int(rng.integers(2, 8)), int(rng.integers(1, 5)))
        start = Start(LAYOUT.draw(rng), TASK)
        arrays = record(start, "V", OPERATORS[operator], rng, idle=idle, jitter=JITTER)
        found.append(Recording(*arrays, operator=operator, instruction=""))
    return found


def rehearsal(count: int, seed: int) -> list[Recording]:
    """Base-domain episodes: any objects anywhere, any task, any phrasing."""
    rng = np.random.default_rng([seed, 2])
    found = []
    for _ in range(count):
        scene = Layout().draw(rng)
        task = draw_task(scene, rng)
        arrays = record(Start(scene, task), "base", STRAIGHT, rng, idle=(0, 1), jitter=0.0)
        phrasing = task.phrasings[rng.integers(len(task.phrasings))]
        found.append(Recording(*arrays, operator="carol", instruction=phrasing))
    return found


def write(path: Path, recordings: Sequence[Recording], world: dict[str, object]) -> None:
    """Write robomimic's layout; equal recordings give equal bytes."""
    with replacing(path) as partial, h5py.File(partial, "w", track_order=True) as file:
        data = file.create_group("data", track_order=True)
        data.attrs["total"] = sum(len(r.actions) for r in recordings)
        data.attrs["env_args"] = json.dumps(world)
        for i, recording in enumerate(recordings):
            _write_demo(data.create_group(f"demo_{i}", track_order=True), recording)
        for operator in sorted({r.operator for r in recordings}):
            names = [f"demo_{i}".encode() for i, r in enumerate(recordings) if r.operator == operator]
            file.create_dataset(f"mask/operator_{operator}", data=np.array(names))


def _write_demo(demo: h5py.Group, recording: Recording) -> None:
    steps = len(recording.actions)
    demo.attrs["num_samples"] = steps
    if recording.instruction:
        demo.attrs["ep_meta"] = json.dumps({"lang": recording.instruction})
    frames = recording.images
    # one chunk a frame and channel: noisy pixels pack a third better when the channels are apart
    chunks = (1, *frames.shape[1:3], 1)
    demo.create_dataset("obs/agentview_image", data=frames, chunks=chunks, compression="gzip", compression_opts=9)
    demo.create_dataset("obs/robot0_eef_pos", data=recording.state[:, :2])
    demo.create_dataset("obs/robot0_gripper", data=recording.state[:, 2:])
    demo.create_dataset("actions", data=recording.actions)
    demo.create_dataset("timestamps", data=recording.timestamps)
    demo.create_dataset("rewards", data=np.eye(1, steps, steps - 1, dtype=np.float32)[0])
    demo.create_dataset("dones", data=np.eye(1, steps, steps - 1, dtype=np.int64)[0])


def main() -> None:
    """Parse the command line and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("sample_data"))
    parser.add_argument("--demonstrations", type=int, default=20)
    parser.add_argument("--rehearsal", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    write(
        args.out / "demonstrations.hdf5",
        demonstrations(args.demonstrations, args.seed),
        env_args("V", LAYOUT, TASK),
    )
    base_world = {"env_name": "tabletop", "env_version": "1", "type": 2}
    base_world["env_kwargs"] = {"shift": "base", "control_freq": CONTROL_RATE_HZ}  # type: ignore[assignment]
    write(args.out / "rehearsal.hdf5", rehearsal(args.rehearsal, args.seed), base_world)
    for name in ("demonstrations.hdf5", "rehearsal.hdf5"):
        print(f"{args.out / name}: {(args.out / name).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
