"""TFRecord files and the `tf.Example` messages in them, without TensorFlow.

A file is a row of records, nothing else:

    8 bytes   length, little-endian          4 bytes   masked CRC-32C of those 8 bytes
    length    payload                        4 bytes   masked CRC-32C of the payload

A payload is a protobuf `Example`: features (field 1), a map (field 1) from a name (1) to a Feature (2), which is one
of bytes_list (1), float_list (2, packed or not), int64_list (3, packed or not), each with its values in field 1.

Sources: tensorflow/core/lib/io/record_writer.h, tensorflow/core/example/feature.proto, protobuf's encoding guide.
Every length is checked against what is there before it is used.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

LARGEST_RECORD = 2 * 2**30  # protobuf's own limit for one message
_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected
_MASK_DELTA = 0xA282EAD8


class DamagedRecordError(Exception):
    """A record that cannot be used; the message says why."""


@dataclass(frozen=True)
class Record:
    """One record: its payload, or why there is none. `last` is set when nothing after it can be found either."""

    payload: bytes = b""
    damage: str = ""
    last: bool = False


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file in order.

    A payload that fails its checksum is one damaged record: its length was checked on its own, so the next record is
    found. A length that fails its checksum loses the place of all that follow.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        while head := stream.read(12):
            if len(head) < 12 or unmask(head[8:]) != crc32c(head[:8]):
                why = "ends within a record's head" if len(head) < 12 else "has a record head that fails its checksum"
                yield Record(damage=f"the file {why} (byte {stream.tell() - len(head)})", last=True)
                return
            length = int.from_bytes(head[:8], "little")
            if length > LARGEST_RECORD or stream.tell() + length + 4 > size:
                short = stream.tell() + length + 4 - size
                yield Record(damage=f"the file ends {short} bytes before the end of this record", last=True)
                return
            payload, check = stream.read(length), stream.read(4)
            intact = unmask(check) == crc32c(payload)
            yield Record(payload) if intact else Record(damage="its payload fails its checksum")


def mask(crc: int) -> bytes:
    """A CRC as it is stored: rotated right by 15 and shifted by a constant."""
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF)


def unmask(stored: bytes) -> int:
    """Inverse of `mask`."""
    rotated = (struct.unpack("<I", stored)[0] - _MASK_DELTA) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) of some bytes.

    Long data are cut into rows of equal length that NumPy walks side by side, a byte of each row a step; a register is
    linear over GF(2), so the rows' results are then joined by moving one past the length of the next.
    """
    table = _byte_table()
    crc = 0xFFFFFFFF
    width = 1 << len(data).bit_length() // 2  # near the root; a power of two, so that there are few shift tables
    rows = len(data) // width if len(data) > 1024 else 0
    if rows:
        crc = _join(_walk(np.frombuffer(data, np.uint8, rows * width).reshape(rows, width)), crc, width)
    for byte in data[rows * width :]:
        crc = int(table[(crc ^ byte) & 0xFF]) ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _walk(block: np.ndarray) -> list[int]:
    """The register after each row of [N, W] bytes, begun at 0."""
    table = _byte_table()
    registers = np.zeros(len(block), np.uint32)
    for column in np.ascontiguousarray(block.T):
        registers = table[(registers ^ column) & 0xFF] ^ (registers >> 8)
    return registers.tolist()


def _join(registers: list[int], crc: int, width: int) -> int:
    """One register from those of consecutive rows of `width` bytes."""
    moved = _shift_table(width)
    for register in registers:
        crc = moved[0][crc & 0xFF] ^ moved[1][crc >> 8 & 0xFF] ^ moved[2][crc >> 16 & 0xFF] ^ moved[3][crc >> 24]
        crc ^= register
    return crc


@cache
def _byte_table() -> np.ndarray:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(_POLYNOMIAL), values >> 1)
    return values


@cache
def _shift_table(width: int) -> list[list[int]]:
    """What each byte of a register (4 x 256) becomes after `width` zero bytes."""
    table = _byte_table()
    registers = np.stack([np.arange(256, dtype=np.uint32) << (8 * place) for place in range(4)])
    for _ in range(width):
        registers = table[registers & 0xFF] ^ (registers >> 8)
    return registers.tolist()


Feature = list[bytes] | np.ndarray


def parse_example(payload: bytes) -> dict[str, Feature]:
    """The features of a serialised `tf.Example`: lists of bytes, float32 arrays, or int64 arrays, flat.

    Raises:
        DamagedRecordError: it is no such message.
    """
    found: dict[str, Feature] = {}
    for features in _submessages(payload, 1):
        for entry in _submessages(features, 1):
            names, values = list(_submessages(entry, 1)), list(_submessages(entry, 2))
            if names:
                name = bytes(names[-1]).decode("utf-8", "replace")
                found[name] = _feature(values[-1]) if values else []
    return found


def _feature(message: memoryview) -> Feature:
    for number, _, value in _fields(message):
        if isinstance(value, memoryview):
            if number == 1:
                return [bytes(item) for item in _submessages(value, 1)]
            if number == 2:
                return _floats(value)
            if number == 3:
                return _integers(value)
    return []


def _floats(message: memoryview) -> np.ndarray:
    packed = b"".join(bytes(v) for n, _, v in _fields(message) if n == 1 and isinstance(v, memoryview))
    if len(packed) % 4:
        raise DamagedRecordError(f"a list of floats has {len(packed)} bytes")
    return np.frombuffer(packed, "<f4").astype(np.float32)


def _integers(message: memoryview) -> np.ndarray:
    values: list[int] = []
    for number, wire, value in _fields(message):
        if number != 1:
            continue
        if isinstance(value, int):
            values.append(value)
        elif wire == 2:
            position = 0
            while position < len(value):
                item, position = _varint(value, position)
                values.append(item)
    return np.array(values, np.uint64).astype(np.int64)


def _submessages(message: bytes | memoryview, field: int) -> Iterator[memoryview]:
    for number, wire, value in _fields(message):
        if number == field and wire == 2 and isinstance(value, memoryview):
            yield value


def _fields(message: bytes | memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Field number, wire type, and value (an int for varints, the bytes otherwise) of a protobuf message."""
    view, position = memoryview(message), 0
    while position < len(view):
        key, position = _varint(view, position)
        wire = key & 7
        if wire == 0:
            value, position = _varint(view, position)
            yield key >> 3, wire, value
            continue
        length = {1: 8, 5: 4}.get(wire)
        if wire == 2:
            length, position = _varint(view, position)
        if length is None or position + length > len(view):
            raise DamagedRecordError(f"it is no tf.Example: field {key >> 3} of wire type {wire} at byte {position}")
        yield key >> 3, wire, view[position : position + length]
        position += length


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(view):
            break
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position
    raise DamagedRecordError("it is no tf.Example: a number without an end")
