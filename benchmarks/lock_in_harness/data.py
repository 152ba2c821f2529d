"""The demonstrations of a cell, recorded by the scripted expert and put through the ingest and preprocess stages.

    WORK/data/V-report-0-seed-0-single-<digest>/dataset/     shared by all rows
    WORK/data/base-domain-<digest>/dataset/                  sample_data/rehearsal.hdf5

`single` is 20 demonstrations of the one instruction. `oracle` is 32 with the same four objects in the same cells, two
of each of the 16 instructions (object x plate) in random order, all of them for training: what the lab would have
recorded had it known every instruction that will be asked.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lock_in_harness.cells import digest_of, domain_document
from lock_in_harness.tasks import BenchTask
from vla_cli.configs import IngestConfig, PreprocessConfig
from vla_cli.files import digest_file
from vla_cli.stages import ingest, preprocess
from vla_cli.worlds.tabletop.recording import demonstrations, write_log
from vla_cli.worlds.tabletop.scene import PLATES, Task
from vla_cli.worlds.tabletop.world import env_args

SINGLE, ORACLE_REPEATS = 20, 2
REPLAY_LOG = Path(__file__).resolve().parents[2] / "sample_data" / "rehearsal.hdf5"


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock beside `path`, so that two workers do not make it at once; a crash lets go of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def shown_tasks(task: BenchTask, demos: str, seed: int) -> list[Task]:
    """What is demonstrated, in order."""
    if demos == "single":
        return [task.task] * SINGLE
    pairs = [
        Task("put", colour, shape, plate)
        for colour, shape in task.layout.objects or ()
        for plate in PLATES
        for _ in range(ORACLE_REPEATS)
    ]
    order = np.random.default_rng([*task.data_seed(seed), 2]).permutation(len(pairs))
    return [pairs[i] for i in order]


def data_document(task: BenchTask, shift: str, demos: str, seed: int) -> dict[str, Any]:
    """What determines the demonstrations, as JSON values."""
    return {
        "shift": shift,
        "domain": domain_document(shift),
        "layout": task.layout.document(),
        "task": task.task.document(),
        "demos": demos,
        "count": len(shown_tasks(task, demos, seed)),
        "seed": task.data_seed(seed),
    }


def dataset_for(work: Path, task: BenchTask, shift: str, demos: str, seed: int) -> Path:
    """The dataset of a cell, made if it is not there.

    Raises:
        InputError: the expert failed, or a stage refused the log.
    """
    name = f"{shift}-{task.name.replace(':', '-')}-seed-{seed}-{demos}"
    folder = work / "data" / f"{name}-{digest_of(data_document(task, shift, demos, seed))}"
    with alone(folder):
        if not (folder / "dataset").is_dir():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            rng = np.random.default_rng([*task.data_seed(seed), 1])
            recordings = demonstrations(task.layout, shown_tasks(task, demos, seed), shift, rng)
            write_log(folder / "log.hdf5", recordings, env_args(shift, task.layout, task.task), packing=1)
            _stages(folder / "log.hdf5", folder, held_out=0.1 if demos == "single" else 0.0)
            (folder / "log.hdf5").unlink()
    return folder / "dataset"


def replay_dataset(work: Path, log: Path = REPLAY_LOG) -> Path:
    """The base-domain log as a dataset, made if it is not there."""
    folder = work / "data" / f"base-domain-{digest_file(log)[7:19]}"
    with alone(folder):
        if not (folder / "dataset").is_dir():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            _stages(log, folder, held_out=0.0)
    return folder / "dataset"


def _stages(log: Path, folder: Path, *, held_out: float) -> None:
    """The first two stages, as a lab would run them; the episodes are not needed afterwards."""
    ingest.run(IngestConfig(source=log, out=folder / "episodes"))
    preprocess.run(PreprocessConfig(episodes=folder / "episodes", out=folder / "dataset", val_fraction=held_out))
    shutil.rmtree(folder / "episodes")
