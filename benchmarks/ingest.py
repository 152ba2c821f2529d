"""How fast `vla collect-ingest` is beside bare decoding of the same files, and how its memory grows with an episode.

    python benchmarks/ingest.py [--out docs] [--repeats 2]

speed    pictures a second of the stage, with one worker on one core and with two on two, over those of a loop that only
         decodes, on one core (PyAV to rgb24; h5py block by block); wall time, and processor time, which a busy machine
         changes less. Repeats are interleaved; medians. Two workers begin by starting Python twice, so they are also
         measured by what a longer log takes more than a shorter one: how two go on once they have begun.
memory   peak of a process that ingests one episode, over that for an episode a tenth as long.

`--out DIR` writes DIR/ingest.md and DIR/ingest.json. Compare ratios of one run, never seconds of two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import h5py
import numpy as np
from ingest_logs import WRITERS, lerobot, robomimic

from vla_cli import hdf5
from vla_cli.configs import IngestConfig
from vla_cli.frames import BLOCK
from vla_cli.source_files import forget_digests
from vla_cli.stages import ingest

EPISODES, FEWER, STEPS = 48, 16, 300
VIDEO, PLAIN = (480, 640), (256, 256)
LENGTH, SIZE = 300, (128, 128)  # of the shorter episode whose memory is measured, and of its pictures
ROOT = Path(__file__).resolve().parents[1]
Decode = Callable[[Path], int]


@dataclass(frozen=True)
class Speed:
    """Medians over the repeats.

    Attributes:
        log: what was ingested.
        goal: least ratio of wall times that is aimed at with one worker; None without.
        decode: pictures a second of the bare loop.
        one: of the stage with one worker.
        two: with two.
        decode_cpu: processor milliseconds a picture of the bare loop.
        one_cpu: of the stage with one worker.
        two_cpu: with two, the workers' beginning included.
        scaling: two workers over one, by the pictures that a longer log has more than a shorter one.
        start: wall seconds that two workers take before they are under way.
    """

    log: str
    goal: float | None
    decode: float
    one: float
    two: float
    decode_cpu: float
    one_cpu: float
    two_cpu: float
    scaling: float
    start: float


@dataclass(frozen=True)
class Memory:
    """Peak resident memory in MiB of ingesting one episode.

    Attributes:
        format: a key of `READERS`.
        short: an episode of `LENGTH` pictures.
        long: one of ten times as many.
    """

    format: str
    short: float
    long: float


def decode_videos(source: Path) -> int:
    """Decode every video below `source` to rgb24, and nothing else; pictures."""
    import av

    count = 0
    for path in sorted(source.rglob("*.mp4")):
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for picture in container.decode(video=0):
                picture.to_ndarray(format="rgb24")
                count += 1
    return count


def read_pictures(source: Path) -> int:
    """Read every picture of a robomimic file, block by block, and nothing else; pictures."""
    count = 0
    with h5py.File(source, "r") as file:
        demos = hdf5.group(file, "data")
        for name in hdf5.names(demos):
            pictures = hdf5.dataset(demos, f"{name}/obs/front_image")
            for begin in range(0, len(pictures), BLOCK):
                count += len(pictures[begin : begin + BLOCK])
    return count


def ingest_all(source: Path, workers: int, episodes: int) -> int:
    """The stage; pictures."""
    out = source.parent / "out"
    forget_digests()  # else only the first turn would pay for it
    summary = ingest.run(IngestConfig(source=source, out=out, workers=workers))
    shutil.rmtree(out)
    if summary["counts"]["episodes_out"] != episodes:
        raise SystemExit(f"{source} was not ingested whole: {summary}")
    return episodes * STEPS


def timed(action: Callable[[], int], cores: int) -> tuple[float, float]:
    """Wall and processor seconds a picture on so many cores: decoders would take all that there are."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:cores])
    try:
        started, before = time.perf_counter(), _cpu()
        count = action()
        return (time.perf_counter() - started) / count, (_cpu() - before) / count
    finally:
        os.sched_setaffinity(0, allowed)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def speed(log: str, goal: float | None, logs: tuple[Path, Path], decode: Decode, repeats: int) -> Speed:
    """Measure a log of `EPISODES` and one of `FEWER`, after a turn to warm up."""
    source, shorter = logs
    actions = [
        (lambda: decode(source), 1),
        (lambda: ingest_all(source, 1, EPISODES), 1),
        (lambda: ingest_all(source, 2, EPISODES), 2),
        (lambda: ingest_all(shorter, 1, FEWER), 1),
        (lambda: ingest_all(shorter, 2, FEWER), 2),
    ]
    turns = np.array([[timed(action, cores) for action, cores in actions] for _ in range(repeats + 1)])[1:]
    wall, cpu = np.median(turns[..., 0], axis=0), np.median(turns[..., 1], axis=0)
    long, short = wall[1:3] * EPISODES * STEPS, wall[3:] * FEWER * STEPS  # seconds of one worker and of two
    more = long - short
    start = long[1] - more[1] * EPISODES / (EPISODES - FEWER)
    return Speed(log, goal, *(1 / wall[:3]), *(1000 * cpu[:3]), scaling=more[0] / more[1], start=start)


def speeds(folder: Path, repeats: int) -> list[Speed]:
    """Every row, each with files of its own that are removed when it is done."""
    rows = []
    for log, goal, write, decode in (
        ("video, H.264", 0.8, lambda path, n: lerobot(path, n, STEPS, VIDEO), decode_videos),
        ("video, MPEG-4", 0.8, lambda path, n: lerobot(path, n, STEPS, VIDEO, "mpeg4"), decode_videos),
        ("HDF5, gzip", 0.7, lambda path, n: robomimic(path, n, STEPS, PLAIN), read_pictures),
        ("HDF5, not packed", None, lambda path, n: robomimic(path, n, STEPS, PLAIN, "contiguous"), read_pictures),
    ):
        logs = []
        for name, count in (("long", EPISODES), ("short", FEWER)):
            (folder / name).mkdir()
            logs.append(write(folder / name / "log", count))
        rows.append(speed(log, goal, (logs[0], logs[1]), decode, repeats))
        print(_speed_row(rows[-1]), flush=True)
        for source in logs:
            shutil.rmtree(source.parent)
    return rows


def memory(name: str, folder: Path) -> Memory:
    """Measure one format."""
    peaks = []
    for steps in (LENGTH, 10 * LENGTH):
        (folder / "memory").mkdir()
        source = WRITERS[name](folder / "memory" / "log", 1, steps, SIZE)
        command = [sys.executable, __file__, "--peak-of", str(source), "--format", name]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
        shutil.rmtree(folder / "memory")
    return Memory(name, *peaks)


def print_peak(source: Path, name: str) -> None:
    """Ingest and print the most memory that was resident, in MiB."""
    ingest.run(IngestConfig(source=source, out=source.parent / "out", format=name, workers=1))
    # not ru_maxrss, which begins with that of the process before `exec`
    lines = Path("/proc/self/status").read_text().split("\n")
    print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))


def _speed_row(row: Speed) -> str:
    goal = f"{row.goal:g}" if row.goal else "-"
    return (
        f"| {row.log} | {row.decode:.0f} | {row.one:.0f} | {row.two:.0f} | {row.one / row.decode:.2f} | {goal}"
        f" | {row.decode_cpu / row.one_cpu:.2f} | {row.two / row.one:.2f} | {row.scaling:.2f} | {row.start:.1f} |"
    )


def _memory_row(row: Memory) -> str:
    return f"| {row.format} | {row.short:.0f} | {row.long:.0f} | {row.long / row.short:.2f} |"


def page(rows: list[Speed], memories: list[Memory], repeats: int) -> str:
    """The results in Markdown."""
    height, width = VIDEO
    lines = [
        "# Ingest: speed and memory",
        "",
        f"Measured by `python benchmarks/ingest.py` on {platform.processor() or platform.machine()} with"
        f" {os.cpu_count()} cores: {EPISODES} episodes of {STEPS} pictures, {width}x{height} as video and"
        f" {PLAIN[1]}x{PLAIN[0]} in HDF5; medians of {repeats} interleaved turns. Compare ratios, not seconds.",
        "",
        "Pictures a second: a loop that only decodes and `vla collect-ingest` with one worker, each on one core, and"
        " with two workers on two cores. Then ratios: one worker over decoding by wall time (and the goal) and by"
        " processor time; two workers over one, as it is and without the seconds that two take to begin. A log that is"
        " not packed has nothing to decode: reading it is copying memory, and the stage also writes and hashes it.",
        "",
        "| log | decode | 1 worker | 2 workers | 1 / decode | goal | by CPU | 2 / 1 | under way | begin, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(_speed_row, rows),
        "",
        f"Peak memory in MiB of ingesting one episode of {LENGTH} and of {10 * LENGTH} pictures of"
        f" {SIZE[1]}x{SIZE[0]} ({10 * LENGTH * SIZE[0] * SIZE[1] * 3 / 2**20:.0f} MiB when decoded):",
        "",
        "| format | short | ten times as long | ratio |",
        "|---|---|---|---|",
        *map(_memory_row, memories),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="a folder for ingest.md and ingest.json")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=("speed", "memory"))
    parser.add_argument("--peak-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--format", default="auto", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        print_peak(args.peak_of, args.format)
        return
    rows, memories = [], []
    with tempfile.TemporaryDirectory() as folder:
        if args.only != "memory":
            rows = speeds(Path(folder), args.repeats)
        for name in WRITERS if args.only != "speed" else ():
            memories.append(memory(name, Path(folder)))
            print(_memory_row(memories[-1]), flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "ingest.md").write_text(page(rows, memories, args.repeats))
        document = {"speed": [asdict(row) for row in rows], "memory": [asdict(row) for row in memories]}
        (args.out / "ingest.json").write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
