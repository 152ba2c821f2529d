"""`tf.Example` messages, the payloads of TFRecord files, without TensorFlow or protobuf.

An `Example` has features (field 1), a map (field 1) from a name (1) to a Feature (2), which is one of bytes_list (1),
float_list (2, packed or not), int64_list (3, packed or not), each with its values in field 1. Nothing of a payload is
held that is not asked for: a list of pictures is a list of places in the file.

Sources: tensorflow/core/example/feature.proto, protobuf's encoding guide. Every length is checked against what is
there before it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast, overload

import numpy as np

from vla_cli.readers.tfrecord import DamagedRecordError, Payload

LARGEST_NUMBERS = 64 * 2**20  # packed bytes of one list of numbers
MOST_FIELDS, MOST_FEATURES = (
    500_000,
    10_000,
)  # of one message, all levels together: a hostile one is made of nothing but empty fields
_CHUNK = 1 << 20


class Items(Sequence[bytes]):
    """A list of byte strings, read from the payload as they are asked for.

    Args:
        payload: the record.
        spans: where each begins and ends.
    """

    def __init__(self, payload: Payload, spans: list[tuple[int, int]]) -> None:
        self.payload, self.spans = payload, spans

    def __len__(self) -> int:
        return len(self.spans)

    def length(self, index: int) -> int:
        """Bytes of one, without reading them."""
        return self.spans[index][1] - self.spans[index][0]

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Items: ...
    def __getitem__(self, index: int | slice) -> bytes | Items:
        if isinstance(index, slice):
            return Items(self.payload, self.spans[index])
        start, end = self.spans[index]
        data = self.payload.read(start, end - start)
        if len(data) != end - start:
            raise DamagedRecordError("the file was cut while it was read")
        return data


Feature = Items | np.ndarray


class Example:
    """A serialised `tf.Example`: what its features are called, and each of them when it is asked for.

    Raises:
        DamagedRecordError: it is no such message.
    """

    def __init__(self, payload: Payload) -> None:
        self._message = _Message(payload)
        self._places: dict[str, tuple[int, int]] = {}
        entries = 0
        for start, end in self._message.parts(0, payload.size, 1):
            for entry in self._message.parts(start, end, 1):
                # Of a field that comes twice, the last counts.
                found = {number: (a, b) for number, wire, a, b in self._message.fields(*entry) if wire == 2}
                name = self._message.read(*found.get(1, (0, 0)), limit=4096).decode("utf-8", "replace")
                self._places[name] = found.get(2, (0, 0))
                entries += 1
                if entries > MOST_FEATURES:
                    raise DamagedRecordError(f"it has more than {MOST_FEATURES} features")

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def get(self, name: str) -> Feature | None:
        """A feature: a list of byte strings, float32 [N] or int64 [N]; None when there is none.

        An empty feature is an empty list of byte strings when it does not say of what it is empty.

        Raises:
            DamagedRecordError: it is malformed.
        """
        if name not in self._places:
            return None
        for number, wire, start, end in self._message.fields(*self._places[name]):
            if wire == 2 and number == 1:
                return Items(self._message.payload, list(self._message.parts(start, end, 1)))
            if wire == 2 and number in (2, 3):
                return self._message.floats(start, end) if number == 2 else self._message.integers(start, end)
        return Items(self._message.payload, [])


class _Message:
    """Protobuf's wire format over a payload, read through a small window."""

    def __init__(self, payload: Payload) -> None:
        self.payload, self._left = payload, MOST_FIELDS
        self._window, self._begin = b"", 0

    def read(self, start: int, end: int, limit: int = LARGEST_NUMBERS) -> bytes:
        """Some bytes, at most `limit`."""
        if end - start > limit:
            raise DamagedRecordError(f"a value has {end - start} bytes, more than {limit}")
        return self.payload.read(start, end - start)

    def parts(self, start: int, end: int, field: int) -> Iterator[tuple[int, int]]:
        """Where the values of one length-delimited field begin and end."""
        return ((a, b) for number, wire, a, b in self.fields(start, end) if number == field and wire == 2)

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """Field number, wire type, and where the value begins and ends."""
        position = start
        while position < end:
            self._left -= 1
            if self._left < 0:
                raise DamagedRecordError(f"it has more than {MOST_FIELDS} fields")
            key, position = self._varint(position, end)
            wire, begin = key & 7, position
            if wire == 0:
                _, position = self._varint(position, end)
            elif wire == 2:
                length, begin = self._varint(position, end)
                position = begin + length
            elif wire in (1, 5):
                position += 8 if wire == 1 else 4
            if position > end or wire not in (0, 1, 2, 5):
                raise DamagedRecordError(f"it is no tf.Example: field {key >> 3} of wire type {wire} at byte {begin}")
            yield key >> 3, wire, begin, position

    def floats(self, start: int, end: int) -> np.ndarray:
        """A FloatList as float32 [N]."""
        packed = self._values(start, end)
        if len(packed) % 4:
            raise DamagedRecordError(f"a list of floats has {len(packed)} bytes")
        return np.frombuffer(packed, "<f4").astype(np.float32)

    def integers(self, start: int, end: int) -> np.ndarray:
        """An Int64List as int64 [N]."""
        packed = np.frombuffer(self._values(start, end), np.uint8)
        if len(packed) and packed[-1] >= 0x80:
            raise DamagedRecordError("it is no tf.Example: a number without an end")
        numbers = np.empty(int(np.count_nonzero(packed < 0x80)), np.uint64)
        done = begin = 0
        while begin < len(packed):  # in stretches: shifting takes 30 bytes of memory for each byte
            stretch = packed[begin : begin + _CHUNK]
            stretch = stretch[: int(np.flatnonzero(stretch < 0x80)[-1]) + 1] if np.any(stretch < 0x80) else stretch
            decoded = _varints(stretch)
            numbers[done : done + len(decoded)] = decoded
            done, begin = done + len(decoded), begin + len(stretch)
        return numbers.view(np.int64)

    def _values(self, start: int, end: int) -> bytes:
        """Field 1 of a list of numbers, packed or not, as if it were packed."""
        spans = [(a, b) for number, _, a, b in self.fields(start, end) if number == 1]
        if sum(b - a for a, b in spans) > LARGEST_NUMBERS:
            raise DamagedRecordError(f"a list of numbers has more than {LARGEST_NUMBERS >> 20} MiB")
        packed = spans[0] if len(spans) == 1 else (start, end)
        data = self.read(*packed)
        return b"".join(data[a - packed[0] : b - packed[0]] for a, b in spans)

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        if not self._begin <= position <= self._begin + len(self._window) - 10:
            self._begin, self._window = position, self.payload.read(position, min(4096, self.payload.size - position))
        value, place = 0, position - self._begin
        for shift in range(0, 70, 7):
            if position >= end or place >= len(self._window):
                break
            byte = self._window[place]
            position, place = position + 1, place + 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFFFFFFFFFFFFFF, position
        raise DamagedRecordError("it is no tf.Example: a number without an end")


def _varints(packed: np.ndarray) -> np.ndarray:
    """Numbers uint64 [N] of whole varints uint8 [B]."""
    last = packed < 0x80
    if bool(last.all()):
        return packed.astype(np.uint64)
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if len(lengths) == 0 or lengths.max() > 10:
        raise DamagedRecordError("it is no tf.Example: a number without an end")
    places = np.arange(len(packed)) - np.repeat(starts, lengths)
    return np.bitwise_or.reduceat((packed & 0x7F).astype(np.uint64) << (7 * places).astype(np.uint64), starts)


def parse_example(payload: bytes) -> dict[str, Feature]:
    """Every feature of a serialised `tf.Example` in memory.

    Raises:
        DamagedRecordError: it is no such message.
    """
    example = Example(Payload.of(payload))
    return {name: cast("Feature", example.get(name)) for name in example}
