"""Files of a log that somebody may still be writing: whether they have changed, and whether they are finished."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from vla_cli.digests import digest_recording


def stamp(file: Path) -> tuple[int, int]:
    """Size and time of the last change; zeros when it is not there."""
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def signature(source: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of all files of the source: a cheap way to see that something was written."""
    files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
    return [(str(file), *stamp(file)) for file in files]


def is_settled(files: Sequence[Path], seconds: float) -> bool:
    """Whether nobody has written to any of the files for a while."""
    return all(time.time() - stamp(file)[1] / 1e9 >= seconds for file in files)


def let_settle(files: Sequence[Path], seconds: float) -> None:
    """Wait until nobody has written to any of some unreadable files for a while: damaged, or half written?"""
    deadline = time.monotonic() + seconds
    while not is_settled(files, seconds) and time.monotonic() < deadline:
        time.sleep(0.05)


def digest_once(file: Path) -> str:
    """A file's digest, computed once for each time that it changed; "missing" where there is none."""
    return _digest(file, stamp(file))


def forget_digests() -> None:
    """Let `digest_once` compute everything anew."""
    _digest.cache_clear()


@cache
def _digest(file: Path, stamped: tuple[int, int]) -> str:
    return digest_recording(file) if stamped != (0, 0) and file.is_file() else "missing"
