"""Damaged logs read in processes of their own, and what came out of each.

    variants()            the healthy logs, one or more a format, from `tests/logs`
    Fuzzer(workers)       reads damaged copies of them; a worker that dies, hangs or swells is ended and begun anew

A log is read as `vla collect-ingest` does it: recognised, opened, listed, and every entry converted to an episode file
(which decodes every picture). The promise: whatever the bytes, only our errors come out, each one clear paragraph,
within `SECONDS` and `MEMORY`, and nothing outside the log is opened.

Run as a program this module is such a worker: a job a line on stdin, an answer a line on stdout.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import queue
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
SECONDS = (
    5.0  # of processor time for one log; of wall time, which other work takes its share of, `_PATIENCE` times that
)
MEMORY = 1 << 30  # growth of the resident set while one log is read
CEILING = 4 << 30  # of address space on top of what a worker begins with: the machine is not to suffer
LONGEST_MESSAGE = 2000  # characters
MADE = b"made\n"  # what a worker says when the damage is done
_PATIENCE = 6


@dataclass(frozen=True)
class Variant:
    """A healthy log.

    Attributes:
        name: "rlds", or "lerobot:v3" where a format has several.
        format: a key of `READERS`.
        write: writes it: (root, episodes, steps) -> path.
    """

    name: str
    format: str
    write: Callable[..., Path]


@dataclass(frozen=True)
class Job:
    """One damaged log: the healthy one, and the seed of the damage; None leaves it healthy."""

    variant: str
    format: str
    healthy: str
    seed: int | None


@dataclass
class Verdict:
    """What came of a job.

    Attributes:
        job: it.
        outcome: "read" (at least one episode), "refused" (by one of our errors), or "violation".
        error: the class of our error, or what kind of violation.
        message: in words.
        damage: what was done to the log.
        skipped: entries that were quarantined.
        seconds: wall time.
        grown: bytes of memory, at the peak.
    """

    job: Job
    outcome: str
    error: str = ""
    message: str = ""
    damage: tuple[str, ...] = ()
    skipped: int = 0
    seconds: float = 0.0
    grown: int = 0

    def __str__(self) -> str:
        damage = "; ".join(self.damage)
        return (
            f"{self.job.variant} seed {self.job.seed}: {self.error}: {self.message}\n    damage: {damage}\n"
            f"    again: python benchmarks/fuzz_readers.py --formats {self.job.variant} --per-format 1"
            f" --seed {self.job.seed}"
        )


def variants(formats: Iterable[str] = ()) -> list[Variant]:
    """The healthy logs of `tests/logs`: `write` of each module, and each other `write_<variant>`.

    Args:
        formats: keys of `READERS`, or names of variants; empty for all.
    """
    from vla_cli.readers import READERS

    found = []
    for name in READERS:
        module = importlib.import_module(f"logs.{name.replace('-', '_')}")
        found += [
            Variant(name if key == "write" else f"{name}:{key.removeprefix('write_')}", name, value)
            for key, value in vars(module).items()
            if callable(value) and key.startswith("write") and _is_writer(value, module.__name__)
        ]
    wanted = set(formats)
    return [v for v in found if not wanted or v.name in wanted or v.format in wanted]


def _is_writer(function: Callable[..., Any], module: str) -> bool:
    wanted = ["root", "episodes", "steps"]
    return function.__module__ == module and list(inspect.signature(function).parameters)[:3] == wanted


class Fuzzer:
    """Workers that read damaged logs.

    Args:
        folder: for their files.
        workers: how many at a time.
    """

    def __init__(self, folder: Path, workers: int = 2) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._workers = [_Worker(folder / f"worker_{number}") for number in range(workers)]
        for worker in self._workers:
            self._idle.put(worker)
        self._pool = ThreadPoolExecutor(workers)

    def __enter__(self) -> Fuzzer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        for worker in self._workers:
            worker.end()

    def run(self, jobs: Iterable[Job]) -> Iterator[Verdict]:
        """Do jobs, side by side; the verdicts in the jobs' order."""
        return self._pool.map(self._judge, jobs)

    def _judge(self, job: Job) -> Verdict:
        worker = self._idle.get()
        try:
            return worker.judge(job)
        finally:
            self._idle.put(worker)


class _Worker:
    """A process that reads logs, seen from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.resting = 0

    def judge(self, job: Job) -> Verdict:
        process = self._running()
        started = time.monotonic()
        try:
            process.stdin.write(json.dumps({**asdict(job), "folder": str(self.folder)}).encode() + b"\n")
            process.stdin.flush()
            reply = self._await(process)
        except BrokenPipeError:
            reply = {"outcome": "violation", "error": "crash", "message": "the process died before it was asked"}
        if reply.get("error") in ("crash", "hang", "memory") and "damage" not in reply:
            self.end()
            reply["damage"] = self._damage()
        reply.setdefault("seconds", time.monotonic() - started)
        return Verdict(job, **reply)

    def _running(self) -> subprocess.Popen[bytes]:
        if self.process is None or self.process.poll() is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}:{TESTS.parent}"}
            with self._errors().open("w") as errors:
                self.process = subprocess.Popen(
                    [sys.executable, "-X", "faulthandler", __file__],
                    **{"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors},
                    env=environment,
                    bufsize=0,  # what `select` sees is all there is
                )
            self.process.stdout.readline()  # it says when it is ready
            self.resting = _resident(self.process.pid)
        return self.process

    def _await(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        """The answer; a process that is silent too long, or swells, is ended."""
        began, spent, received, pipe = None, 0.0, b"", process.stdout.fileno()
        while True:
            if select.select([pipe], [], [], 0.02)[0]:
                piece = os.read(pipe, 1 << 16)
                received += piece
                if not piece:
                    process.wait()
                    words = self._errors().read_text(errors="replace").strip().split("\n")[:3]
                    return {"outcome": "violation", "error": "crash", "message": f"exit {process.returncode}: {words}"}
            if began is None and received.startswith(MADE):  # from here on it is the reader's time
                began, received = time.monotonic(), received.removeprefix(MADE)
                spent = _processor(process.pid)
            if began is not None and received.endswith(b"\n"):
                return json.loads(received)
            grown = _resident(process.pid) - self.resting
            if began is not None and grown > 2 * MEMORY:
                return {"outcome": "violation", "error": "memory", "message": f"{grown >> 20} MiB", "grown": grown}
            if began is not None and (busy := _processor(process.pid) - spent) > SECONDS:
                return {"outcome": "violation", "error": "hang", "message": f"{busy:.1f} s of processor time"}
            if began is not None and time.monotonic() - began > _PATIENCE * SECONDS:
                return {"outcome": "violation", "error": "hang", "message": "it waits, or does not get on"}

    def _errors(self) -> Path:
        return self.folder / "stderr"

    def _damage(self) -> list[str]:
        try:
            return json.loads((self.folder / "damage.json").read_text())
        except (OSError, ValueError):
            return []

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                pipe.close()
            self.process = None


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _processor(pid: int) -> float:
    """Processor seconds of a process so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def make(healthy: Path, folder: Path, seed: int | None) -> tuple[Path, list[str]]:
    """A damaged copy of a log below `folder`, which is emptied, and what was done to it."""
    from corruption import damage

    remove(folder)
    folder.mkdir(parents=True)
    log = folder / healthy.name
    _ = shutil.copytree(healthy, log) if healthy.is_dir() else shutil.copyfile(healthy, log)
    return log, damage(log, seed) if seed is not None else []


def remove(folder: Path) -> None:
    """Remove a folder, whatever is in it."""
    if folder.exists():
        shutil.rmtree(folder)


# Inside a worker.


class _Promise(Exception):
    """A promise that was not kept: its kind and what happened."""


def serve() -> None:
    """Read jobs until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    outside: list[str] = []
    _load()
    sys.addaudithook(lambda event, args: _watch(event, args, outside))
    _limit()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        folder = Path(job.pop("folder"))
        log, done = make(Path(job["healthy"]), folder / "log", job["seed"])
        (folder / "damage.json").write_text(json.dumps(done))
        remove(folder / "out")
        (folder / "out").mkdir()
        outside.clear()
        written = os.fstat(2).st_size
        print(MADE.decode(), end="", file=answers, flush=True)
        reply = _judged(job["format"], log, folder / "out", outside)
        if reply["outcome"] != "violation" and _traceback(folder / "stderr", written):
            reply |= {"outcome": "violation", "error": "traceback", "message": "it printed a traceback"}
        print(json.dumps({**reply, "damage": done}), file=answers, flush=True)


def _load() -> None:
    """Whatever a reader may load later: a module is no memory of a log's."""
    from vla_cli.readers import READERS

    for name in READERS:
        READERS.get(name)
    for package in ("av", "pyarrow.parquet", "zarr", "imagecodecs", "rosbags.highlevel", "mcap", "PIL.Image"):
        with suppress(ImportError):
            importlib.import_module(package)


def _limit() -> None:
    import resource

    size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + CEILING, size + CEILING))


def _watch(event: str, args: tuple[Any, ...], outside: list[str]) -> None:
    if event == "open" and isinstance(args[0], str) and ("passwd" in args[0] or args[0] == "/dev/zero"):
        outside.append(args[0])


def _judged(name: str, log: Path, out: Path, outside: list[str]) -> dict[str, Any]:
    import resource

    from vla_cli.errors import VlaError

    before, clock = _peak(), time.perf_counter()
    cpu = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    try:
        reply = _ingest(name, log, out)
    except VlaError as error:
        reply = {"outcome": "refused", "error": type(error).__name__, "message": str(error)}
    except _Promise as broken:
        reply = {"outcome": "violation", "error": broken.args[0], "message": broken.args[1]}
    except BaseException as error:
        reply = {"outcome": "violation", "error": type(error).__name__, "message": f"{_place(error)}: {error}"[:500]}
    reply["seconds"] = time.perf_counter() - clock
    cpu = sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - cpu
    reply["grown"] = max(0, _peak(reset=False) - before)
    for kind, broken in {
        "message": _unclear(reply["message"]) if reply["outcome"] == "refused" else "",
        "memory": f"{reply['grown'] >> 20} MiB" if reply["grown"] > MEMORY else "",
        "hang": f"{cpu:.1f} s of processor time" if cpu > SECONDS else "",
        "outside": f"it opens {outside[0]}" if outside else "",
    }.items():
        if broken and reply["outcome"] != "violation":
            reply |= {"outcome": "violation", "error": kind, "message": broken}
    return reply


def _ingest(name: str, path: Path, out: Path) -> dict[str, Any]:
    """As `vla collect-ingest` does it."""
    from vla_cli.conversion import Task, Terms, convert
    from vla_cli.digests import digest_recording
    from vla_cli.errors import InputError
    from vla_cli.logs import list_entries
    from vla_cli.readers import LogSource, detect

    with suppress(InputError):
        detect(path)
    said: list[str] = []
    (out / ".results").mkdir()
    reasons = []
    with LogSource(name, path).opened(said.append) as log:
        entries = list_entries(log, path)
        if len({entry.name for entry in entries}) < len(entries):
            raise _Promise("names", "two entries have one name")
        messages = list(said)
        for number, entry in enumerate(entries):
            for file in entry.files:
                _inside(file, path)
                _ = file.is_file() and digest_recording(file)
            result = convert(log, Task(entry, f"entry_{number}", ""), Terms(name), out, said)
            reasons += [result.reason] * (result.row is None)
            messages += [*said, result.reason]
    for message in messages:
        if unclear := _unclear(message):
            raise _Promise("message", unclear)
    if len(reasons) == len(entries):
        return {"outcome": "refused", "error": "Skipped", "message": reasons[0], "skipped": len(reasons)}
    return {"outcome": "read", "message": "; ".join(reasons), "skipped": len(reasons)}


def _inside(file: Path, log: Path) -> None:
    """An entry's files are read whole for their digests: they are the log's, and not somebody else's."""
    root = log if log.is_dir() else log.parent
    if not Path(os.path.realpath(file)).is_relative_to(root.resolve()):
        raise _Promise("outside", f"an entry has the file {file}, which is not in the log")


def _unclear(message: str) -> str:
    if "\n" in message or len(message) > LONGEST_MESSAGE:
        return f"a message of {len(message)} characters or several lines: {message[:300]!r}"
    # not FFmpeg's "Cannot allocate memory", which it says of any table whose size it does not believe
    if "MemoryError" in message or "Unable to allocate" in message:
        return f"it asked for all of the memory: {message[:300]}"
    return ""


def _place(error: BaseException) -> str:
    """Where in our code an exception came from."""
    trace, place = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        if "vla_cli" in code.co_filename:
            place = f"{Path(code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def _peak(*, reset: bool = True) -> int:
    """The most memory that was resident since the last reset, in bytes."""
    if reset:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().split("\n")
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def _traceback(errors: Path, since: int) -> bool:
    with errors.open("rb") as stream:
        stream.seek(since)
        return b"Traceback (most recent" in stream.read()


if __name__ == "__main__":
    serve()
