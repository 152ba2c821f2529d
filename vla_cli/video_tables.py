"""A look at an MP4 file's own tables before a decoder allocates by them.

A few bytes of a damaged or hostile file may claim hundreds of millions of samples, for each of which the decoder would
keep an entry. Only the boxes that count samples are looked at (ISO/IEC 14496-12: `stsz` and `trun`); files of other
kinds pass.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import IO

MOST_SAMPLES = 2_000_000  # 18 hours of 30 pictures a second
_CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"}
_MOST_BOXES = 200_000


def check_tables(source: Path | IO[bytes], label: str) -> None:
    """Refuse a file that claims more samples than it can hold.

    Raises:
        ValueError: it does; `label` names it.
        OSError: it cannot be read.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            check_tables(file, label)
        return
    end = source.seek(0, io.SEEK_END)
    source.seek(4)
    if source.read(4) in (b"ftyp", b"moov", b"styp", b"free", b"skip", b"wide", b"mdat"):
        total = 0
        for kind, payload, size in _boxes(source, end):
            if kind == b"cmov":
                raise ValueError(f"{label} has a compressed table, which is not read")
            total += _samples(source, kind, payload, size)
            if total > min(MOST_SAMPLES, end):
                raise ValueError(f"{label} claims {total} samples in {end} bytes")
    source.seek(0)


def _samples(file: IO[bytes], kind: bytes, payload: int, size: int) -> int:
    """How many samples a box counts; a table that lists each one is as long as it is."""
    at = {b"stsz": 8, b"trun": 4}.get(kind)
    if at is None or size < at + 4:
        return 0
    file.seek(payload + at)
    return int.from_bytes(file.read(4), "big")


def _boxes(file: IO[bytes], end: int) -> Iterator[tuple[bytes, int, int]]:
    """Every box that may matter: its kind, where its payload begins, and how long that is."""
    spans, seen = [(0, end)], 0
    while spans:
        at, stop = spans.pop()
        while at + 8 <= stop and seen < _MOST_BOXES:
            seen += 1
            file.seek(at)
            head = file.read(16)
            size, kind, header = int.from_bytes(head[:4], "big"), head[4:8], 8
            if size == 1:
                size, header = int.from_bytes(head[8:16], "big"), 16
            size = stop - at if size == 0 else size
            if size < header:
                break
            yield kind, at + header, min(size, stop - at) - header
            if kind in _CONTAINERS:
                spans.append((at + header, min(at + size, stop)))
            at += size
    # A fragmented recording of a day has fewer boxes than this.
    if seen >= _MOST_BOXES:
        raise ValueError(f"a video has more than {_MOST_BOXES} boxes")
