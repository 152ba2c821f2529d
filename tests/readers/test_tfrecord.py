from contextlib import suppress

import numpy as np
import pytest
from builders import example_bytes, field, varint, write_records
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_cli.readers.tfrecord import DamagedRecordError, crc32c, mask, parse_example, read_records, unmask


def test_crc32c_has_its_known_values() -> None:
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(b"") == 0
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(bytes([0xFF] * 32)) == 0x62A8AB43  # RFC 3720


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=0, max_size=6000))
def test_long_and_short_ways_agree(data: bytes) -> None:
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    assert crc32c(data) == crc ^ 0xFFFFFFFF
    assert unmask(mask(crc)) == crc


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


def test_records_come_back_and_damage_is_told(tmp_path) -> None:
    path, payloads = tmp_path / "x", [b"one", b"", b"three" * 999]
    write_records(path, payloads)
    assert [record.payload for record in read_records(path)] == payloads
    whole = path.read_bytes()
    path.write_bytes(whole[:13] + b"X" + whole[14:])
    records = list(read_records(path))
    assert "payload fails" in records[0].damage and [r.payload for r in records[1:]] == payloads[1:]
    path.write_bytes(b"\x09" + whole[1:])
    records = list(read_records(path))
    assert len(records) == 1 and records[0].last and "head that fails" in records[0].damage
    path.write_bytes(whole[:-100])
    records = list(read_records(path))
    assert len(records) == 3 and records[2].last and "100 bytes before" in records[2].damage
    path.write_bytes(whole + b"abc")
    assert "within a record's head" in list(read_records(path))[-1].damage


def test_examples_of_every_kind_are_parsed() -> None:
    features = {
        "text": [b"a", b"", b"\xff"],
        "floats": np.array([1.5, -2.0], np.float32),
        "integers": np.array([0, -1, 2**40]),
        "nothing": np.zeros(0, np.float32),
    }
    found = parse_example(example_bytes(features))
    assert found["text"] == features["text"]
    for key in ("floats", "integers", "nothing"):
        assert np.array_equal(found[key], features[key])


def test_unpacked_lists_are_parsed_too() -> None:
    floats = b"".join(varint(1 << 3 | 5) + np.float32(v).tobytes() for v in (1.0, 2.0))
    integers = b"".join(varint(1 << 3) + varint(v) for v in (7, 8))
    payload = field(1, field(1, field(1, b"f") + field(2, field(2, floats)))) + field(
        1, field(1, field(1, b"i") + field(2, field(3, integers)))
    )
    found = parse_example(payload)
    assert list(found["f"]) == [1.0, 2.0] and list(found["i"]) == [7, 8]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_hostile_bytes_are_refused_and_nothing_else(data) -> None:
    good = bytearray(example_bytes({"a": [b"xyz"], "b": np.arange(5.0, dtype=np.float32), "c": np.arange(9)}))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with suppress(DamagedRecordError):
        parse_example(bytes(good))


@pytest.mark.parametrize("payload", [b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x0a\x05ab", b"\x0b", b"\xff" * 20])
def test_lengths_beyond_the_message_are_refused(payload: bytes) -> None:
    with pytest.raises(DamagedRecordError):
        parse_example(payload)
