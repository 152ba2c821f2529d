"""MCAP record by record: whole files, files without an index, and those whose recorder was killed.

Layout (mcap.dev/spec): the magic, then records of an opcode (u8), a length (u64 LE) and a body:

    0x03 schema    id u16, name, encoding, definition     (texts and bytes: u32 length, then the bytes)
    0x04 channel   id u16, schema id u16, topic, message encoding, metadata
    0x05 message   channel id u16, sequence u32, log time u64 ns, publish time u64 ns, data
    0x06 chunk     first and last time u64, unpacked size u64, crc u32, packing, u64 length, packed 0x03 to 0x05
    0x0f data end; then a summary that repeats schemas and channels with 0x0b statistics; 0x02 footer; the magic

`rosbags` reads MCAP too, but unpacks a chunk to whatever size it grows, and does not read a file without its end.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from vla_cli.episode import UnusableError
from vla_cli.readers.ros_storage import LARGEST_MESSAGE, Budget, Message, Topic, expand, message_type, shown

MAGIC = b"\x89MCAP0\r\n"
_FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _STATISTICS, _DATA_END = 0x02, 0x03, 0x04, 0x05, 0x06, 0x0B, 0x0F
_HEAD = struct.Struct("<BQ")
_MESSAGE_HEAD = struct.Struct("<HIQQ")
_CHUNK_HEAD = struct.Struct("<QQQI")
_STATISTICS_HEAD = struct.Struct("<QHIIIIQQ")
_DIRECT = -1  # the inner position of a message that is in no chunk


class McapStorage:
    """An MCAP file.

    Args:
        path: the file.
        label: its name in messages.
    """

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label, self.notes = path, label, list[str]()
        self.size = path.stat().st_size
        self._file: BinaryIO | None = None
        self._unpacked: tuple[int, bytes | memoryview] = (-1, b"")

    def rest(self) -> None:
        """See `Storage`."""
        if self._file is not None:
            self._file.close()
        self._file, self._unpacked = None, (-1, b"")

    def topics(self) -> list[Topic]:
        """See `Storage`; from the summary where there is one, else by going through the file."""
        try:
            known = self._from_summary()
        except (UnusableError, ValueError, struct.error):
            known = None
        return (known or self._from_data()).topics()

    def messages(self, wanted: Collection[str]) -> Iterator[Message]:
        """See `Storage`."""
        known = _Known()
        for opcode, body, place in self._walk():
            if opcode == _MESSAGE:
                topic, log_time = known.head(body)
                if topic in wanted:
                    yield Message(topic, log_time, body[_MESSAGE_HEAD.size :], place)
            else:
                known.learn(opcode, bytes(body))

    def fetch(self, place: tuple[int, int]) -> bytes:
        """See `Storage`; the chunk read last stays unpacked, since messages are asked for in order."""
        at, inner = place
        length = _HEAD.unpack(self._bytes(at - _HEAD.size, _HEAD.size))[1]
        if inner == _DIRECT:
            return self._bytes(at, length)[_MESSAGE_HEAD.size :]
        raw = self._chunk(at, length)
        end = inner + _HEAD.unpack_from(raw, inner - _HEAD.size)[1]
        return bytes(raw[inner + _MESSAGE_HEAD.size : end])

    def _records(self) -> Iterator[tuple[int, int, int]]:
        """(opcode, position, length) of each body that the file holds whole, up to the end of the data."""
        at = len(MAGIC)
        while at + _HEAD.size <= self.size:
            opcode, length = _HEAD.unpack(self._bytes(at, _HEAD.size))
            at += _HEAD.size
            if opcode == 0 or at + length > self.size:  # zeros are what a crash leaves of blocks never written
                break
            yield opcode, at, length
            if opcode in (_DATA_END, _FOOTER):
                return
            at += length
        self._note_cut(at)

    def _walk(self) -> Iterator[tuple[int, memoryview, tuple[int, int]]]:
        """Every schema, channel and message, in chunks or not, with its place."""
        budget = Budget(self.size)
        for opcode, at, length in self._records():
            if opcode == _CHUNK:
                try:
                    raw = memoryview(self._chunk(at, length))
                except UnusableError:
                    if self._has_end():
                        raise
                    self._note_cut(at)
                    return
                budget.take(len(raw))
                for inner, start, end in _inner_records(raw):
                    yield inner, raw[start:end], (at, start)
            elif opcode in (_SCHEMA, _CHANNEL, _MESSAGE):
                yield opcode, memoryview(self._bytes(at, length)), (at, _DIRECT)

    def _note_cut(self, at: int) -> None:
        note = (
            f"{self.label} was cut off (its recorder was killed, or the copy is not whole): "
            f"it is read up to byte {at} of {self.size}"
        )
        if note not in self.notes:
            self.notes.append(note)

    def _has_end(self) -> bool:
        return self._bytes(self.size - len(MAGIC), len(MAGIC)) == MAGIC

    def _bytes(self, at: int, length: int) -> bytes:
        if length > LARGEST_MESSAGE + 2**16:
            raise UnusableError(f"{self.label} has a record of {length} bytes at byte {at}")
        if self._file is None:
            self._file = self.path.open("rb")
        self._file.seek(at)
        data = self._file.read(length)
        if len(data) != length:
            raise UnusableError(f"{self.label} ends at byte {at + len(data)}, within a record")
        return data

    def _chunk(self, at: int, length: int) -> bytes | memoryview:
        if self._unpacked[0] != at:
            self._unpacked = (-1, b"")  # not two at a time
            self._unpacked = (at, self._unpack(self._bytes(at, length)))
        return self._unpacked[1]

    def _unpack(self, body: bytes) -> bytes | memoryview:
        try:
            _, _, size, checksum = _CHUNK_HEAD.unpack_from(body)
            packing, at = _text(body, _CHUNK_HEAD.size)
            packed = struct.unpack_from("<Q", body, at)[0]
        except struct.error:
            raise UnusableError(f"{self.label} has a damaged chunk") from None
        if at + 8 + packed > len(body):
            raise UnusableError(f"{self.label} has a chunk that claims {packed} bytes, more than its record")
        return expand(memoryview(body)[at + 8 : at + 8 + packed], packing, size, checksum)

    def _from_summary(self) -> _Known | None:
        """What the summary says, or None where it does not say everything."""
        tail = _HEAD.size + 20 + len(MAGIC)
        end = self.size - tail
        footer = self._bytes(end, tail) if end > len(MAGIC) else b""
        if not footer.endswith(MAGIC) or _HEAD.unpack_from(footer) != (_FOOTER, 20):
            return None
        at = struct.unpack_from("<Q", footer, _HEAD.size)[0]
        known = _Known()
        while len(MAGIC) <= at < end:
            opcode, length = _HEAD.unpack(self._bytes(at, _HEAD.size))
            if opcode in (_SCHEMA, _CHANNEL, _STATISTICS):
                known.learn(opcode, self._bytes(at + _HEAD.size, length))
            at += _HEAD.size + length
        return known if known.is_complete() else None

    def _from_data(self) -> _Known:
        known = _Known()
        for opcode, body, _ in self._walk():
            known.learn(opcode, bytes(body[: _MESSAGE_HEAD.size] if opcode == _MESSAGE else body))
        return known


class _Known:
    """Schemas, channels and counts met so far."""

    def __init__(self) -> None:
        self.schemas: dict[int, tuple[str, str, str]] = {}
        self.channels: dict[int, tuple[int, str, str]] = {}
        self.counts: dict[int, int] = {}
        self.first, self.last, self.stated_channels = 2**64, 0, -1

    def learn(self, opcode: int, body: bytes) -> None:
        """Take in a record."""
        try:
            if opcode == _SCHEMA:
                self._schema(body)
            elif opcode == _CHANNEL:
                key, schema = struct.unpack_from("<HH", body)
                topic, at = _text(body, 4)
                self.channels[key] = (schema, topic, _text(body, at)[0])
            elif opcode == _MESSAGE:
                key, _, log_time, _ = _MESSAGE_HEAD.unpack_from(body)
                self.counts[key] = self.counts.get(key, 0) + 1
                self.first, self.last = min(self.first, log_time), max(self.last, log_time)
            elif opcode == _STATISTICS:
                _, _, self.stated_channels, _, _, _, self.first, self.last = _STATISTICS_HEAD.unpack_from(body)
                at = _STATISTICS_HEAD.size + 4
                self.counts = dict(struct.iter_unpack("<HQ", body[at : at + (len(body) - at) // 10 * 10]))
        except struct.error:
            raise UnusableError("it has a damaged schema or channel") from None

    def _schema(self, body: bytes) -> None:
        name, at = _text(body, 2)
        language, at = _text(body, at)
        self.schemas[struct.unpack_from("<H", body)[0]] = (name, language, _text(body, at)[0])

    def head(self, body: bytes | memoryview) -> tuple[str, int]:
        """Topic and log time of a message."""
        if len(body) < _MESSAGE_HEAD.size:
            raise UnusableError("it has a damaged message")
        key, _, log_time, _ = _MESSAGE_HEAD.unpack_from(body)
        if key not in self.channels:
            raise UnusableError(f"it has a message of channel {key}, which it does not describe")
        return self.channels[key][1], log_time

    def is_complete(self) -> bool:
        return len(self.channels) == self.stated_channels and all(
            schema in self.schemas or schema == 0 for schema, _, _ in self.channels.values()
        )

    def topics(self) -> list[Topic]:
        seconds = max(self.last - self.first, 0) / 1e9
        found = []
        for key, (schema, topic, encoding) in self.channels.items():
            name, language, definition = self.schemas.get(schema, ("", "", ""))
            count = self.counts.get(key, 0)
            found.append(Topic(topic, message_type(name), encoding, language, definition, count, seconds))
        return found


def _inner_records(raw: bytes | memoryview) -> Iterator[tuple[int, int, int]]:
    """(opcode, start, end) of each body in a chunk."""
    at = 0
    while at < len(raw):
        if at + _HEAD.size > len(raw):
            raise UnusableError("a chunk ends within a record")
        opcode, length = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        if opcode not in (_SCHEMA, _CHANNEL, _MESSAGE) or at + length > len(raw):
            raise UnusableError(f"a chunk has a damaged record (opcode {opcode}, {length} bytes)")
        yield opcode, at, at + length
        at += length


def _text(body: bytes, at: int) -> tuple[str, int]:
    """A text and the position after it."""
    length = struct.unpack_from("<I", body, at)[0]
    end = at + 4 + length
    if end > len(body):
        raise UnusableError(f"it has a text of {length} bytes in a record of {len(body)}")
    try:
        return body[at + 4 : end].decode(), end
    except UnicodeDecodeError:
        raise UnusableError(
            f"it has a text that is not UTF-8 ('{shown(body[at + 4 : end].decode('latin-1'), 20)}')"
        ) from None
