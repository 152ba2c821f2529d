"""TFRecord files, without TensorFlow.

A file is a row of records, nothing else:

    8 bytes   length, little-endian          4 bytes   masked CRC-32C of those 8 bytes
    length    payload                        4 bytes   masked CRC-32C of the payload

The whole file may be packed with gzip (`TFRecordOptions("GZIP")`); offsets count unpacked bytes then.

A payload is read from the file as it is asked for (that of a packed file is unpacked into memory, one at a time).

Source: tensorflow/core/lib/io/record_writer.h.
Every length is checked against what is there before it is used.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import google_crc32c

from vla_cli.errors import words

LARGEST_RECORD = 2 * 2**30  # protobuf's own limit for one message
LARGEST_UNPACKED = 256 * 2**20  # a payload of a packed file, which is held in memory
_LARGEST_RATIO, _ALWAYS_UNPACKED = 100, 64 * 2**20  # how far a packed file may unfold: pictures hardly do at all
_CHUNK = 1 << 20
_MASK_DELTA = 0xA282EAD8
_LOST = ", and nothing after it can be found"
_UNPACKING = (EOFError, zlib.error, gzip.BadGzipFile)
_GZIP = b"\x1f\x8b"
_OTHER_PACKINGS = {
    b"\x78\x01": "ZLIB",
    b"\x78\x9c": "ZLIB",
    b"\x78\xda": "ZLIB",
    b"\x28\xb5": "ZSTD",
    b"\xff\x06": "SNAPPY",
    b"BZ": "BZIP2",
    b"PK": "ZIP",
}


class DamagedRecordError(ValueError):
    """A record that cannot be used; the message says why."""


@dataclass(frozen=True)
class Record:
    """Where a record begins, or why none can be found there nor behind it."""

    offset: int
    damage: str = ""


@dataclass(frozen=True)
class Payload:
    """The bytes of a record.

    Attributes:
        size: how many.
        read: (offset, length) -> bytes; fewer only where the file was cut in the meantime.
    """

    size: int
    read: Callable[[int, int], bytes]

    @classmethod
    def of(cls, data: bytes) -> Payload:
        """Bytes in memory."""
        return cls(len(data), lambda offset, length: data[offset : offset + length])


class RecordFile:
    """One TFRecord file, plain or packed with gzip.

    Raises:
        DamagedRecordError: it is packed in another way, or no file at all.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():  # a named pipe would be waited for
            raise DamagedRecordError("it is not a file")
        self.path, self.size = path, path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(12)
        plain = len(head) == 12 and unmask(head[8:]) == crc32c(head[:8])
        if not plain and head[:2] in _OTHER_PACKINGS:
            packing = _OTHER_PACKINGS[head[:2]]
            raise DamagedRecordError(f"it is packed with {packing}; only plain and GZIP TFRecord files are read")
        self.packed = not plain and head[:2] == _GZIP
        self._unpacked: BinaryIO | None = None  # kept open: going back to a place means unpacking from the beginning

    def records(self) -> Iterator[Record]:
        """Every record in order, from the lengths alone; a length that cannot be trusted is the last."""
        offset = 0
        with self._open() as stream:
            while True:
                try:
                    length = self._length(stream, offset)
                    short = 0 if length is None else self._skip(stream, offset, length)
                except DamagedRecordError as error:
                    yield Record(offset, str(error))
                    return
                if length is None:
                    return
                yield Record(
                    offset, f"the file ends {short} bytes before the end of this record{_LOST}" if short else ""
                )
                if short:
                    return
                offset += 12 + length + 4

    def load(self, offset: int) -> Payload:
        """The payload of the record at an offset, after its checksum was compared.

        Raises:
            DamagedRecordError: it is damaged, or there is none.
        """
        if self.packed:
            self._unpacked = self._unpacked or self._open()
            return self._load(self._unpacked, offset)
        with self._open() as stream:
            return self._load(stream, offset)

    def close(self) -> None:
        """Let go of the file."""
        if self._unpacked:
            self._unpacked.close()

    def _open(self) -> BinaryIO:
        return cast("BinaryIO", gzip.open(self.path)) if self.packed else self.path.open("rb")

    def _load(self, stream: BinaryIO, offset: int) -> Payload:
        length = self._length(stream, offset)
        if length is None:
            raise DamagedRecordError("the file ends before this record")
        self._check_unpacked(offset + 12 + length + 4)
        short = 0 if self.packed else self._skip(stream, offset, length)
        if short:
            raise DamagedRecordError(f"the file ends {short} bytes before the end of this record{_LOST}")
        checksum, kept = 0, []
        try:
            for begin in range(0, length, _CHUNK):
                data = stream.read(min(_CHUNK, length - begin))
                checksum = google_crc32c.extend(checksum, data)
                kept += [data] if self.packed else []
            stored = stream.read(4)
        except _UNPACKING as error:
            raise DamagedRecordError(f"it cannot be unpacked ({words(error)})") from None
        if unmask(stored) != checksum:
            raise DamagedRecordError("its payload fails its checksum")
        return Payload.of(b"".join(kept)) if self.packed else Payload(length, _reading(self.path, offset + 12))

    def _length(self, stream: BinaryIO, offset: int) -> int | None:
        """Payload bytes of the record at an offset, and the stream at their beginning; None at the end of the file."""
        try:
            head = self._head(stream, offset)
        except _UNPACKING as error:
            raise DamagedRecordError(f"it cannot be unpacked ({words(error)}){_LOST}") from None
        if not head:
            return None
        if len(head) < 12 or unmask(head[8:]) != crc32c(head[:8]):
            why = "ends within a record's head" if len(head) < 12 else "has a record head that fails its checksum"
            raise DamagedRecordError(f"the file {why} (byte {offset}){_LOST}")
        length = int.from_bytes(head[:8], "little")
        if length > (LARGEST_UNPACKED if self.packed else LARGEST_RECORD):
            raise DamagedRecordError(f"a record claims {length / 2**20:.0f} MiB (byte {offset}){_LOST}")
        return length

    def _head(self, stream: BinaryIO, offset: int) -> bytes:
        self._check_unpacked(offset)
        return stream.read(12) if stream.seek(offset) == offset else b""

    def _skip(self, stream: BinaryIO, offset: int, length: int) -> int:
        """Go to the end of a record; how many of its bytes are not there."""
        end = offset + 12 + length + 4
        if not self.packed:
            return max(0, end - self.size)
        self._check_unpacked(end)
        try:
            return end - stream.seek(end)
        except _UNPACKING as error:
            raise DamagedRecordError(f"it cannot be unpacked ({words(error)}){_LOST}") from None

    def _check_unpacked(self, end: int) -> None:
        if self.packed and end > max(_ALWAYS_UNPACKED, _LARGEST_RATIO * self.size):
            raise DamagedRecordError(f"the file unpacks to more than {_LARGEST_RATIO} times its size{_LOST}")


def mask(crc: int) -> bytes:
    """A CRC as it is stored: rotated right by 15 and shifted by a constant."""
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF)


def unmask(stored: bytes) -> int:
    """Inverse of `mask`; -1 when the four bytes are not all there."""
    if len(stored) != 4:
        return -1
    rotated = (struct.unpack("<I", stored)[0] - _MASK_DELTA) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of some bytes."""
    return google_crc32c.value(data)


def _reading(path: Path, start: int) -> Callable[[int, int], bytes]:
    """Opens the file each time, so that nothing needs closing."""

    def read(offset: int, length: int) -> bytes:
        with path.open("rb", buffering=0) as stream:
            stream.seek(start + offset)
            return stream.read(length)

    return read
