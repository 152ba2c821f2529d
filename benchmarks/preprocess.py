"""How fast `vla preprocess` is, and that its memory does not grow with the number of episodes.

    python benchmarks/preprocess.py                     50 episodes x 400 frames x 2 cameras at 224 pixels
    python benchmarks/preprocess.py --episodes 10 --frames 100

Episodes with JPEG pictures are made first (a moving square on a still background, so that nothing is found frozen or
idle). Each run is a process of its own, so that its peak memory is its own: one over a fifth of the episodes, one over
all. Printed: frames a second (a frame is one picture of one camera) and both peaks with their ratio.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from vla_cli.configs import PreprocessConfig
from vla_cli.episode import Episode, Stream, manifest_row, save_episode, write_manifest
from vla_cli.frames import PictureFrames
from vla_cli.stages import preprocess

RATE, SIZE = 20.0, 224


def picture(step: int, episode: int, camera: int, frames: int) -> bytes:
    """One JPEG of SIZE x SIZE pixels."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    image = np.stack([rows // 2 + 40 * camera, columns // 2 + 3 * episode, (rows + columns) // 4], axis=2) % 256
    place = 20 + (SIZE - 60) * step // frames
    image[place : place + 30, 60 + episode : 90 + episode] = (220, 40, 40)
    stream = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


def write_episodes(directory: Path, episodes: int, frames: int) -> None:
    """An `episodes/` artefact."""
    directory.mkdir(parents=True)
    rows, clock = [], np.arange(frames) / RATE
    for index in range(episodes):
        rng = np.random.default_rng(index)
        cameras = [
            Stream(
                "image",
                f"camera_{camera}",
                PictureFrames(lambda step, c=camera, e=index: picture(step, e, c, frames), frames, f"camera_{camera}"),
                clock,
            )
            for camera in range(2)
        ]
        state = np.cumsum(rng.normal(0, 0.01, (frames, 7)), axis=0)
        streams = [
            *cameras,
            Stream("state", "joints", state, clock),
            Stream("action", "action", np.roll(state, -1), clock),
        ]
        episode = Episode(f"episode_{index:05d}", streams, [f"put cup {index % 5} on the shelf"], format="synthetic")
        path = directory / f"{episode.name}.hdf5"
        save_episode(episode, path)
        rows.append(manifest_row(episode, path))
    write_manifest(directory, rows)


def measure(episodes: Path, out: Path) -> dict[str, float]:
    """Preprocess in a process of its own: seconds of work and peak memory in MiB."""
    command = [sys.executable, __file__, "--child", str(episodes), str(out)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def child(episodes: Path, out: Path) -> None:
    """What `measure` starts."""
    begun = time.perf_counter()
    preprocess.run(PreprocessConfig(episodes=episodes, out=out))
    seconds, used = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF)
    # not ru_maxrss, which begins with that of the process before `exec`
    lines = Path("/proc/self/status").read_text().split("\n")
    peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_mib": peak}))


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--frames", type=int, default=400)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return 0
    with tempfile.TemporaryDirectory() as place:
        found = {}
        for name, count in (("a fifth", max(2, args.episodes // 5)), ("all", args.episodes)):
            write_episodes(Path(place) / name / "episodes", count, args.frames)
            found[name] = measure(Path(place) / name / "episodes", Path(place) / name / "dataset")
            pictures = count * args.frames * 2
            rate = pictures / found[name]["seconds"]
            seconds, cpu, peak = (found[name][key] for key in ("seconds", "cpu_seconds", "peak_mib"))
            print(
                f"{count} episodes x {args.frames} frames x 2 cameras at {SIZE} pixels: {rate:.0f} frames/s", flush=True
            )
            print(f"    {seconds:.1f} s ({cpu:.1f} s of processor), peak memory {peak:.0f} MiB", flush=True)
        print(f"peak memory, all against a fifth: {found['all']['peak_mib'] / found['a fifth']['peak_mib']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
