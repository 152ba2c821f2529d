"""Kill `vla collect-ingest` (SIGKILL) at random moments: what it finished is whole, a resumed run ends the same.

    python benchmarks/kill_ingest.py --kills 50 --seed 0

A log of several episodes is ingested once without a disturbance. Then again and again: a run is killed at a random
moment after its output was begun, every episode file in the unfinished output is read to its last picture, and a
resumed run (killed again with every second log) must end with the bytes of the undisturbed one. Exit 1 when any of it
is not so.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from vla_cli.episode import load_episode
from vla_cli.files import partial_path

VLA = (sys.executable, "-c", "from vla_cli.cli import main; main()")
SOONER = 0.7
"""Of the time in which a kill comes, once one came too late: an undisturbed run on a cold disk is slow."""
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}


@dataclass
class Tally:
    """What the kills met.

    Attributes:
        kills: processes killed while their output was unfinished.
        finished: whole episodes found in unfinished outputs.
        late: runs that were done before the kill came.
        damaged: descriptions of what was not whole or not equal.
    """

    kills: int = 0
    finished: int = 0
    late: int = 0
    damaged: list[str] = field(default_factory=list)


def write_log(path: Path, episodes: int, steps: int) -> None:
    """A robomimic log whose second episode is unusable, so that the quarantine is killed as well."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for index in range(episodes):
            demo = file.create_group(f"data/demo_{index}")
            actions = rng.normal(size=(steps, 4))
            actions[0, 0] = np.nan if index == 1 else 0.0
            demo["actions"] = actions
            demo["obs/position"] = rng.normal(size=(steps, 3))
            pictures = rng.integers(0, 256, (steps, 64, 64, 3), np.uint8)
            demo.create_dataset("obs/camera", data=pictures, chunks=(1, 64, 64, 3), compression="gzip")


def command(log: Path, out: Path, workers: int, *more: str) -> list[str]:
    """The command line of one run."""
    return [
        *VLA,
        "collect-ingest",
        str(log),
        "--out",
        str(out),
        "--workers",
        str(workers),
        "--instruction",
        "go",
        *more,
    ]


def contents(directory: Path) -> dict[str, bytes]:
    """Every file of an output."""
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


def begin(arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start a run."""
    return subprocess.Popen(arguments, env=QUIET, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for_output(process: subprocess.Popen[bytes], out: Path) -> None:
    """Until a run has begun its output, or is done."""
    while process.poll() is None and not partial_path(out).exists():
        time.sleep(0.002)


def undisturbed(arguments: list[str], out: Path) -> tuple[float, float]:
    """Run to the end; the seconds until its output was begun, and from there until it was whole.

    Raises:
        RuntimeError: it failed.
    """
    started = time.monotonic()
    process = begin(arguments)
    wait_for_output(process, out)
    begun = time.monotonic()
    while process.poll() is None and not out.exists():
        time.sleep(0.002)
    whole = time.monotonic()
    if process.wait():
        raise RuntimeError(f"The undisturbed run ended with {process.returncode}")
    return begun - started, whole - begun


def kill_once(arguments: list[str], out: Path, start: float, delay: float) -> bool:
    """Begin a run, kill it `delay` seconds after its output is begun, and say whether it was unfinished.

    What is resumed has an output from the beginning: there `start` is how long a run takes to come so far.
    """
    before = partial_path(out).exists()
    process = begin(arguments)
    wait_for_output(process, out)
    time.sleep(delay + (start if before else 0.0))
    process.send_signal(signal.SIGKILL)
    process.wait()
    return not out.exists()


def check_whole(folder: Path) -> int:
    """Read every episode of an unfinished output to its last picture; how many there are.

    Raises:
        AssertionError: one is not whole.
    """
    files = sorted(folder.glob("*.hdf5")) if folder.is_dir() else []
    for file in files:
        for stream in load_episode(file).streams:
            assert len(np.asarray(stream.values)) == len(stream.timestamps), file
    return len(files)


def run(kills: int, seed: int, episodes: int = 12, steps: int = 60, workers: int = 2) -> Tally:
    """Kill so many runs; see the module's docstring."""
    rng = random.Random(seed)
    tally = Tally()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        log = folder / "log.hdf5"
        write_log(log, episodes, steps)
        os.sync()  # what is still to be written would make the undisturbed run wait
        start, span = undisturbed(command(log, folder / "whole", workers), folder / "whole")
        whole = contents(folder / "whole")
        round_number = 0
        while tally.kills < kills:
            round_number += 1
            out = folder / f"out{round_number}"
            for attempt in range(1 + round_number % 2):
                more = ("--resume",) if attempt else ()
                if not kill_once(command(log, out, workers, *more), out, start, rng.uniform(0, span)):
                    tally.late += 1
                    span *= SOONER
                    break
                tally.kills += 1
                try:
                    tally.finished += check_whole(partial_path(out))
                except (AssertionError, OSError, ValueError) as error:
                    tally.damaged.append(f"round {round_number}: {error}")
            more = ("--resume",) if partial_path(out).exists() else ()
            subprocess.run(command(log, out, workers, *more), env=QUIET, check=True, capture_output=True)
            if contents(out) != whole:
                tally.damaged.append(f"round {round_number}: the resumed output differs")
    return tally


def main() -> int:
    """Parse, run, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    begun = time.monotonic()
    tally = run(args.kills, args.seed, workers=args.workers)
    print(
        f"{tally.kills} kills, {tally.finished} finished episodes found in unfinished outputs, {tally.late} too late,"
    )
    print(f"{len(tally.damaged)} damaged or differing ({time.monotonic() - begun:.0f} s)")
    for line in tally.damaged:
        print(line)
    return 1 if tally.damaged else 0


if __name__ == "__main__":
    sys.exit(main())
