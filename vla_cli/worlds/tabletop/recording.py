"""Recording the scripted expert on the tabletop, as a lab would record it, in robomimic's layout.

    data/demo_i/obs/agentview_image    [T, 60, 60, 3] uint8
    data/demo_i/obs/robot0_eef_pos     [T, 2] float32
    data/demo_i/obs/robot0_gripper     [T, 2] float32: closed, holding
    data/demo_i/actions                [T, 3] float32
    data/demo_i/timestamps             [T] float64 seconds, with the jitter of a real clock
    mask/operator_NAME                 the demos of each operator

A demo's attribute `ep_meta` names its instruction where it is told; robomimic's own files leave it out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vla_cli.errors import InputError
from vla_cli.files import replacing
from vla_cli.worlds.tabletop.environment import CONTROL_RATE_HZ, Start, TabletopVectorEnv
from vla_cli.worlds.tabletop.expert import Habit
from vla_cli.worlds.tabletop.scene import Layout, Task
from vla_cli.worlds.tabletop.shifts import DOMAINS

OPERATORS: dict[str, Habit] = {"alice": Habit(speed=1.0), "bob": Habit(speed=0.7, axis_first="x")}
"""Two people with different speed and approach, who take turns."""
JITTER = 0.012
"""Standard deviation of the camera's timestamps, seconds."""


@dataclass(frozen=True)
class Recording:
    """One demonstration.

    Attributes:
        images: [T, 60, 60, 3] uint8.
        state: [T, 4] float32.
        actions: [T, 3] float32.
        timestamps: [T] float64 seconds, ascending from 0.
        operator: who demonstrated.
        instruction: the words, or empty where the log does not tell them.
    """

    images: np.ndarray
    state: np.ndarray
    actions: np.ndarray
    timestamps: np.ndarray
    operator: str
    instruction: str


def record(
    start: Start,
    shift: str,
    habit: Habit,
    rng: np.random.Generator,
    *,
    idle: tuple[int, int] = (0, 0),
    jitter: float = 0.0,
    operator: str = "",
    instruction: str = "",
) -> Recording:
    """Let the expert do a task once, standing still for some steps before and after.

    Args:
        start: scene and task.
        shift: a key of `DOMAINS`.
        habit: how the operator moves.
        rng: draws the pixel noise's seed and the clock's jitter.
        idle: steps of standing still before and after.
        jitter: standard deviation of the timestamps, seconds.
        operator, instruction: as the recording names them.

    Raises:
        InputError: the expert did not succeed.
    """
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
    if not env.success.all():
        raise InputError(
            f"The scripted expert failed at '{start.task.phrasings[0]}' in domain {shift}",
            expected="an expert that succeeds: a failed demonstration teaches failing",
        )
    last = np.array([0.0, 0.0, rows[-1][2][2]])
    for _ in range(idle[1]):
        rows.append((env.picture(np.array([0]))[0], observation["state"][0], last))
    clock = np.arange(len(rows)) / CONTROL_RATE_HZ + rng.normal(0, jitter, len(rows))
    images, state, actions = (np.stack(column) for column in zip(*rows, strict=True))
    clock = np.sort(clock - clock.min())
    return Recording(images, state.astype(np.float32), actions.astype(np.float32), clock, operator, instruction)


def demonstrations(layout: Layout, tasks: Sequence[Task], shift: str, rng: np.random.Generator) -> list[Recording]:
    """A lab's demonstrations, one a task in the order given: the operators take turns, heads and tails are idle.

    Args:
        layout: how each scene is drawn.
        tasks: what is done; the same one many times for demonstrations of a single instruction.
        shift: a key of `DOMAINS`.
        rng: of scenes, idling, noise and jitter.

    Raises:
        InputError: the expert did not succeed.
    """
    found = []
    for i, task in enumerate(tasks):
        operator = list(OPERATORS)[i % len(OPERATORS)]
        idle = (int(rng.integers(2, 8)), int(rng.integers(1, 5)))
        start = Start(layout.draw(rng), task)
        habit, words = OPERATORS[operator], task.phrasings[0]
        found.append(record(start, shift, habit, rng, idle=idle, jitter=JITTER, operator=operator, instruction=words))
    return found


def write_log(path: Path, recordings: Sequence[Recording], env_args: Mapping[str, Any], *, packing: int = 9) -> None:
    """Write robomimic's layout; equal recordings give equal bytes.

    Args:
        path: an HDF5 file, replaced when it exists.
        recordings: in order, `demo_0` first.
        env_args: robomimic's description of the world (see `vla_cli.worlds.tabletop.world.env_args`).
        packing: gzip level of the images, 1 (fast) to 9 (small).
    """
    with replacing(path) as partial, h5py.File(partial, "w", track_order=True) as file:
        data = file.create_group("data", track_order=True)
        data.attrs["total"] = sum(len(r.actions) for r in recordings)
        data.attrs["env_args"] = json.dumps(env_args)
        for i, recording in enumerate(recordings):
            _write_demo(data.create_group(f"demo_{i}", track_order=True), recording, packing)
        for operator in sorted({r.operator for r in recordings}):
            names = [f"demo_{i}".encode() for i, r in enumerate(recordings) if r.operator == operator]
            file.create_dataset(f"mask/operator_{operator}", data=np.array(names))


def _write_demo(demo: h5py.Group, recording: Recording, packing: int) -> None:
    steps = len(recording.actions)
    demo.attrs["num_samples"] = steps
    if recording.instruction:
        demo.attrs["ep_meta"] = json.dumps({"lang": recording.instruction})
    frames = recording.images
    # one chunk a frame and channel: noisy pixels pack a third better when the channels are apart
    chunks = (1, *frames.shape[1:3], 1)
    demo.create_dataset("obs/agentview_image", data=frames, chunks=chunks, compression="gzip", compression_opts=packing)
    demo.create_dataset("obs/robot0_eef_pos", data=recording.state[:, :2])
    demo.create_dataset("obs/robot0_gripper", data=recording.state[:, 2:])
    demo.create_dataset("actions", data=recording.actions)
    demo.create_dataset("timestamps", data=recording.timestamps)
    demo.create_dataset("rewards", data=np.eye(1, steps, steps - 1, dtype=np.float32)[0])
    demo.create_dataset("dones", data=np.eye(1, steps, steps - 1, dtype=np.int64)[0])
