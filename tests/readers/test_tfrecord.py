import gzip
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from builders import example_bytes, field, varint, write_records
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_cli.readers import tf_example
from vla_cli.readers.tf_example import MOST_FEATURES, MOST_FIELDS, Example, parse_example
from vla_cli.readers.tfrecord import DamagedRecordError, Record, RecordFile, crc32c, mask, unmask


def test_crc32c_has_its_known_values() -> None:
    assert crc32c(b"123456789") == 0xE3069283 and crc32c(b"") == 0
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(bytes([0xFF] * 32)) == 0x62A8AB43  # RFC 3720


@given(st.integers(0, 2**32 - 1))
def test_masks_come_off_again(crc: int) -> None:
    assert unmask(mask(crc)) == crc


def damages(path: Path) -> list[str]:
    """Of each record: what the list of records or its payload says is wrong."""
    file, found = RecordFile(path), []
    for record in file.records():
        try:
            file.load(record.offset)
            found.append(record.damage)
        except DamagedRecordError as error:
            assert not record.damage or record.damage == str(error)
            found.append(str(error))
    file.close()
    return found


def payload_of(file: RecordFile, record: Record) -> bytes:
    payload = file.load(record.offset)
    return payload.read(0, payload.size)


@pytest.mark.parametrize("packed", [False, True])
def test_records_come_back_in_any_order(tmp_path, packed: bool) -> None:
    path, payloads = tmp_path / "x", [b"one", b"", b"three" * 999, bytes(3_000_000)]
    write_records(path, payloads)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    file = RecordFile(path)
    records = list(file.records())
    assert [payload_of(file, record) for record in records] == payloads
    assert [payload_of(file, record) for record in reversed(records)] == payloads[::-1]
    file.close()


def test_damage_is_told(tmp_path) -> None:
    path, payloads = tmp_path / "x", [b"one", b"", b"three" * 999]
    write_records(path, payloads)
    whole = path.read_bytes()
    path.write_bytes(whole[:13] + b"X" + whole[14:])
    assert damages(path) == ["its payload fails its checksum", "", ""]
    path.write_bytes(b"\x09" + whole[1:])
    assert len(damages(path)) == 1 and "head that fails" in damages(path)[0]
    path.write_bytes(whole[:-100])
    assert len(damages(path)) == 3 and "100 bytes before" in damages(path)[2]
    path.write_bytes(whole + b"abc")
    assert "within a record's head" in damages(path)[-1] and len(damages(path)) == 4
    path.write_bytes(b"")
    assert damages(path) == []


def test_packed_files_are_unpacked_within_bounds(tmp_path) -> None:
    path = tmp_path / "x"
    write_records(path, [bytes(40_000_000)] * 2)
    path.write_bytes(gzip.compress(path.read_bytes(), 1))  # hundreds of times smaller
    first, second = damages(path)
    assert first == "" and "more than 100 times its size" in second
    write_records(path, [bytes(range(256)) * 40, b"two"])
    short = gzip.compress(path.read_bytes())
    path.write_bytes(short[:-20])
    assert "cannot be unpacked" in damages(path)[-1]
    path.write_bytes(short[:60] + b"\xff\xff" + short[62:])
    assert damages(path)[-1]
    for packing, data in (("ZLIB", zlib.compress(short)), ("ZSTD", b"\x28\xb5\x2f\xfd" + bytes(30))):
        path.write_bytes(data)
        with pytest.raises(DamagedRecordError, match=f"packed with {packing}"):
            RecordFile(path)


def test_a_length_is_never_believed(tmp_path) -> None:
    head = (2**62).to_bytes(8, "little")
    path = tmp_path / "x"
    path.write_bytes(head + mask(crc32c(head)) + bytes(100))
    assert "claims" in damages(path)[0]
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert "claims" in damages(path)[0]


def test_pictures_are_read_from_the_file_when_they_are_asked_for(tmp_path) -> None:
    path, pictures = tmp_path / "x", [bytes([index]) * 50_000 for index in range(200)]
    write_records(path, [b"before", example_bytes({"pictures": pictures, "n": np.arange(3)})])
    file = RecordFile(path)
    tracemalloc.start()
    try:
        example = Example(file.load(list(file.records())[1].offset))
        items = example.get("pictures")
        assert items is not None and len(items) == 200 and items[17] == pictures[17] and items.length(3) == 50_000
        assert tracemalloc.get_traced_memory()[1] < 3_000_000  # the chunks of a checksum; the record has 10 million
    finally:
        tracemalloc.stop()
    assert list(items[2:4]) == pictures[2:4] and example.get("nothing") is None and "n" in example
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(DamagedRecordError, match="was cut"):
        items[30]


def test_examples_of_every_kind_are_parsed() -> None:
    features = {
        "text": [b"a", b"", b"\xff"],
        "floats": np.array([1.5, -2.0], np.float32),
        "integers": np.array([0, -1, 2**40, 127, 128, -(2**63), 2**63 - 1]),
        "nothing": np.zeros(0, np.float32),
    }
    found = parse_example(example_bytes(features))
    assert list(found["text"]) == features["text"]
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


def test_long_lists_of_integers_come_back_across_stretches(monkeypatch) -> None:
    monkeypatch.setattr(tf_example, "_CHUNK", 1 << 14)
    numbers = np.random.default_rng(0).integers(0, 2**20, 60_000)
    assert np.array_equal(parse_example(example_bytes({"n": numbers}))["n"], numbers)


@pytest.mark.parametrize("values", [b"\xff" * 3_000_000, b"\x80" * 11 + b"\x01", b"\x01\x80"])
def test_integers_without_an_end_are_refused(values: bytes) -> None:
    payload = field(1, field(1, field(1, b"n") + field(2, field(3, field(1, values)))))
    with pytest.raises(DamagedRecordError, match="without an end"):
        parse_example(payload)


def test_nothing_but_empty_fields_is_refused() -> None:
    with pytest.raises(DamagedRecordError, match="more than"):
        parse_example(field(1, b"\x0a\x00" * (MOST_FEATURES + 1)))
    items = field(1, b"\x0a\x00" * (MOST_FIELDS + 1))
    with pytest.raises(DamagedRecordError, match="more than"):
        parse_example(field(1, field(1, field(1, b"x") + field(2, items))))
