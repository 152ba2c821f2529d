"""Damage done to a healthy log, the same for the same seed: what disks, programs and ill will do to recordings.

`damage(log, seed)` alters a log in place, one to three times, and says what it did. Beside blind damage to bytes there
is damage that a checksum would otherwise hide from the reader: the values in text, the objects of an HDF5 file, the
columns of a Parquet file, the members of a zip and the records of a TFRecord file, each written whole again.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXT_ENDINGS = {".json", ".jsonl", ".yaml", ".yml", ".csv", ".txt", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}
NUMBERS = ["nan", "NaN", "Infinity", "1e400", "-1", "0", "99999999999999999999", "4294967296", "1e18", "-1e308", "0.5"]
STRINGS = ["../../etc/passwd", "/etc/passwd", "", "a/../../b", "x" * 200_000, "nul\x00byte", "\ud7ff\u202e", "{}", "%s"]
VALUES: list[Any] = [None, [], {}, True, -1, 0, 2**63, 1e300, float("nan"), "", [[]], {"": None}, [None] * 3]
INTEGERS = [0, -1, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, -(2**63), 0x0101010101010101]
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
_STRING = re.compile(r'"[^"\n]*"')

Way = Callable[[Path, random.Random], str]


def damage(log: Path, seed: int) -> list[str]:
    """Damage the log at `log`, a file or a directory, in place; what was done, one phrase each."""
    log, rng = log.parent.resolve() / log.name, random.Random(seed)
    done = []
    for attempt in range(rng.choice((1, 1, 1, 2, 2, 3))):
        files = _files(log)
        if not files:
            break
        # metadata are few among many files, and say most
        file = rng.choices(files, [3 if is_text(p) else 1 for p in files])[0]
        way = rng.choice(_ways(file, log, first=attempt == 0))
        done.append(f"{file.relative_to(log) if file != log else file.name}: {_apply(way, file, rng)}")
    return done


def _files(log: Path) -> list[Path]:
    """What may be damaged: the log's own files that hold bytes, and never what a link leads to."""
    if log.is_symlink():
        return []
    return sorted(filter(_damageable, log.rglob("*"))) if log.is_dir() else [log] * _damageable(log)


def _damageable(file: Path) -> bool:
    return str(file.absolute()) == os.path.realpath(file) and file.is_file() and file.stat().st_size > 0


def is_text(file: Path) -> bool:
    """Whether a file holds text, by its name."""
    return file.suffix in TEXT_ENDINGS or file.name in TEXT_ENDINGS


def _apply(way: Way, file: Path, rng: random.Random) -> str:
    try:
        return way(file, rng)
    except Exception as error:  # already too damaged for that
        cut = _truncate(file, rng) if _damageable(file) else "nothing"
        return f"{cut} ({way.__name__} failed with {type(error).__name__})"


def _ways(file: Path, log: Path, *, first: bool) -> list[Way]:
    """What can be done to a file, the likelier ones more than once."""
    blind = [_flip, _overwrite, _truncate, _duplicate, _delete, _swap_blocks, _integer, _integer, _integer]
    whole = [_empty, _directory, _drop, _fifo, _link]
    if log.is_dir():
        whole += [_rename, _swap_files, _drop]
    inner: list[Way] = []
    if is_text(file):
        inner = [_text_number, _text_string, _text_line, _text_value, _text_nesting] * 3
        inner += [_json_value] * 8 if file.suffix not in (".csv", ".yaml", ".yml") else []
    elif first:
        inner = _inner_ways(file) * 10
    return blind + whole + inner


def _inner_ways(file: Path) -> list[Way]:
    """Ways that know the file's layout; only for a file that is still whole: a C library may hang on another."""
    head = file.open("rb").read(8)
    if head.startswith(b"\x89HDF"):
        return [_hdf5_object, _hdf5_object, _hdf5_attribute]
    if head.startswith(b"PAR1"):
        return [_parquet_column]
    if head.startswith(b"PK"):
        return [_zip_member]
    if ".tfrecord" in file.name:
        return [_record]
    if head.startswith(b"SQLite"):
        return [_sqlite_value]
    return []


# Bytes.


def _flip(file: Path, rng: random.Random) -> str:
    data = bytearray(file.read_bytes())
    places = [rng.randrange(len(data)) for _ in range(rng.choice((1, 2, 8, 64)))]
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    file.write_bytes(data)
    return f"flipped {len(places)} bits from byte {places[0]}"


def _overwrite(file: Path, rng: random.Random) -> str:
    data = bytearray(file.read_bytes())
    begin, end = _span(len(data), rng)
    fill = rng.choice(("zero", "ones", "random"))
    new = {"zero": b"\0", "ones": b"\xff"}.get(fill, b"") * (end - begin) or rng.randbytes(end - begin)
    data[begin:end] = new
    file.write_bytes(data)
    return f"bytes {begin} to {end} are {fill}"


def _truncate(file: Path, rng: random.Random) -> str:
    size = rng.randrange(file.stat().st_size)
    os.truncate(file, size)
    return f"cut off at {size}"


def _duplicate(file: Path, rng: random.Random) -> str:
    data = file.read_bytes()
    begin, end = _span(len(data), rng)
    file.write_bytes(data[:end] + data[begin:end] + data[end:])
    return f"bytes {begin} to {end} twice"


def _delete(file: Path, rng: random.Random) -> str:
    data = file.read_bytes()
    begin, end = _span(len(data), rng)
    file.write_bytes(data[:begin] + data[end:])
    return f"bytes {begin} to {end} left out"


def _swap_blocks(file: Path, rng: random.Random) -> str:
    data = bytearray(file.read_bytes())
    size = max(1, len(data) // rng.choice((4, 16, 64)))
    first, second = (rng.randrange(max(1, len(data) - size)) for _ in range(2))
    data[first : first + size], data[second : second + size] = data[second : second + size], data[first : first + size]
    file.write_bytes(data)
    return f"{size} bytes at {first} and {second} swapped"


def _integer(file: Path, rng: random.Random) -> str:
    """A length, an offset or a count that is absurd: where the bytes look like a small number, more often."""
    data = bytearray(file.read_bytes())
    form, size = rng.choice((("<I", 4), ("<Q", 8), (">I", 4)))
    for _ in range(200):
        place = rng.randrange(max(1, len(data) - size))
        old = struct.unpack_from(form, data, place)[0] if place + size <= len(data) else 0
        if 0 < old < 1 << 20 or rng.random() < 0.02:
            break
    value = rng.choice([*INTEGERS, old + 1, old - 1, old * 1000]) % (1 << (8 * size))
    data[place : place + size] = struct.pack(form, value)
    file.write_bytes(data)
    return f"the integer {form} at {place} is {value}, not {old}"


def _span(size: int, rng: random.Random) -> tuple[int, int]:
    begin = rng.randrange(size)
    return begin, min(size, begin + max(1, int(size ** rng.random())))


# Whole files.


def _empty(file: Path, _rng: random.Random) -> str:
    file.write_bytes(b"")
    return "emptied"


def _directory(file: Path, _rng: random.Random) -> str:
    file.unlink()
    file.mkdir()
    return "a directory instead"


def _drop(file: Path, _rng: random.Random) -> str:
    file.unlink()
    return "removed"


def _rename(file: Path, rng: random.Random) -> str:
    name = rng.choice(
        (f"{file.name}.bak", f"x{file.name}", file.stem, file.name.replace("0", "7"), ".hidden", "\u202e")
    )
    target = file.with_name(name or "x")
    if not target.exists():
        file.rename(target)
    return f"renamed to {target.name!r}"


def _swap_files(file: Path, rng: random.Random) -> str:
    other = rng.choice(sorted(p for p in _files(file.parent) if p != file) or [file])
    data = file.read_bytes()
    shutil.copyfile(other, file) if other != file else None
    other.write_bytes(data)
    return f"swapped with {other.name}"


def _fifo(file: Path, _rng: random.Random) -> str:
    """A named pipe: whoever opens it waits for ever."""
    file.unlink()
    os.mkfifo(file)
    return "a named pipe instead"


def _link(file: Path, rng: random.Random) -> str:
    target = rng.choice(("/etc/passwd", "/dev/zero", file.name, "."))
    file.unlink()
    file.symlink_to(target)
    return f"a link to {target}"


# Text.


def _read(file: Path) -> str:
    return file.read_bytes().decode("utf-8", "surrogateescape")


def _write(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogateescape"))


def _put(file: Path, found: list[re.Match[str]], new: str, rng: random.Random) -> str:
    text, match = _read(file), rng.choice(found)
    _write(file, text[: match.start()] + new + text[match.end() :])
    return f"{match.group()[:40]} at {match.start()} is {new[:40]}"


def _text_number(file: Path, rng: random.Random) -> str:
    return _put(file, list(_NUMBER.finditer(_read(file))), rng.choice(NUMBERS), rng)


def _text_string(file: Path, rng: random.Random) -> str:
    new = rng.choice(STRINGS)
    found = list(_STRING.finditer(_read(file))) or list(re.finditer(r"[A-Za-z][\w./-]*", _read(file)))
    return _put(file, found, json.dumps(new) if found and found[0].group().startswith('"') else new, rng)


def _text_value(file: Path, rng: random.Random) -> str:
    found = list(re.finditer(r'(?<=[:,] )(?:"[^"\n]*"|[^\s,}\]]+)|(?<=[,\n])[^,\n]+', _read(file)))
    return _put(
        file, found, rng.choice(("null", "[]", "{}", "true", '"text"', "", "&a [*a, *a]", "!!python/none x")), rng
    )


def _text_line(file: Path, rng: random.Random) -> str:
    lines = _read(file).splitlines(keepends=True)
    place = rng.randrange(len(lines))
    line = lines.pop(place)
    if rng.random() < 0.3:
        lines[place:place] = [line, line]
    _write(file, "".join(lines))
    return f"line {place + 1} left out or doubled"


def _text_nesting(file: Path, rng: random.Random) -> str:
    deep = rng.choice(("[", '{"a":')) * rng.choice((500, 100_000))
    return _put(file, list(_NUMBER.finditer(_read(file))) or [re.match("", "")], deep, rng)  # type: ignore[list-item]


def _json_value(file: Path, rng: random.Random) -> str:
    """Any value anywhere in a JSON document, or in one line of many."""
    text = _read(file)
    lines = text.splitlines() if file.suffix == ".jsonl" else [text]
    place = rng.randrange(len(lines))
    document = json.loads(lines[place])
    spots = list(_spots(document))
    if not spots:
        raise ValueError("no value")
    parent, key = rng.choice(spots)
    old, parent[key] = parent[key], rng.choice([*VALUES, *STRINGS])
    if rng.random() < 0.15:
        parent[key] = old
        del parent[key]
    lines[place] = json.dumps(document)
    _write(file, "\n".join(lines) + "\n")
    new = parent.get(key, "removed") if isinstance(parent, dict) else "changed or removed"
    return f"line {place + 1}: {key} = {str(old)[:60]} is {str(new)[:40]}"


def _spots(node: Any) -> list[tuple[Any, Any]]:
    inner = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [spot for key, value in inner for spot in ((node, key), *_spots(value))]


# Layouts.


def _hdf5_object(file: Path, rng: random.Random) -> str:
    """One object becomes another kind, shape or type, or a link."""
    import h5py
    import numpy as np

    with h5py.File(file, "r+") as log:
        names: list[str] = []
        log.visit(names.append)
        name = rng.choice(sorted(names))
        old = log[name]
        shape = old.shape if isinstance(old, h5py.Dataset) else (3,)
        values = old[()] if isinstance(old, h5py.Dataset) else None
        kind = rng.choice(_HDF5_KINDS)
        del log[name]
        if kind == "huge":  # no data are stored: the fill value stands for them
            log.create_dataset(name, (1 << 36, *shape[1:]), rng.choice(("u1", "f8")), chunks=(1024, *shape[1:]))
        elif kind == "wide":
            log.create_dataset(
                name, (max(1, shape[0] if shape else 1), 1 << 34), "u1", chunks=(1, 1 << 20), maxshape=None
            )
        elif kind == "group":
            log.create_group(name)
        elif kind == "text":
            log[name] = ["text"] * 3
        elif kind == "scalar":
            log[name] = 3.5
        elif kind == "nothing":
            log.create_dataset(name, (0, *shape[1:]), "f8")
        elif kind == "empty":
            log[name] = h5py.Empty("f8")
        elif kind == "transposed" and values is not None:
            log[name] = np.asarray(values).T
        elif kind == "nan":
            log[name] = np.full(shape, np.nan)
        elif kind == "complex":
            log[name] = np.zeros(shape, "c16")
        elif kind == "compound":
            log[name] = np.zeros(shape[:1], [("a", "f4"), ("b", "S3")])
        elif kind == "short" and values is not None and np.ndim(values):
            log[name] = values[: len(values) // 2]
        elif kind == "cycle":
            log[name] = h5py.SoftLink("/")
        elif kind == "hard cycle":
            log[name] = log["/"]
        elif kind == "dangling":
            log[name] = h5py.SoftLink("/nowhere")
        elif kind == "external":
            log[name] = h5py.ExternalLink("../../etc/passwd", "/")
        elif kind == "raw external":
            log.create_dataset(name, (16,), "u1", external=[("/etc/passwd", 0, 16)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape=(4, 4), dtype="u1")
            layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(4, 4))
            log.create_virtual_dataset(name, layout)
    return f"{name} is {kind}"


_HDF5_KINDS = (
    *("huge", "wide", "group", "text", "scalar", "nothing", "empty", "transposed", "nan", "complex", "compound"),
    *("short", "cycle", "hard cycle", "dangling", "external", "raw external", "virtual", "removed"),
)


def _hdf5_attribute(file: Path, rng: random.Random) -> str:
    import h5py
    import numpy as np

    with h5py.File(file, "r+") as log:
        found = [("/", key) for key in log.attrs]
        log.visititems(lambda name, node: found.extend((name, key) for key in node.attrs))
        name, key = rng.choice(sorted(found))
        texts = [b"\xff\xfe", "", "x" * 60_000, "[" * 30_000, "null", "[1]", '{"a": NaN}', "../../etc/passwd", "nan"]
        values = [np.nan, np.inf, -1, 0, 2**62, h5py.Empty("f8"), np.arange(3), np.array(["a", "b"], object)]
        value = rng.choice([*texts, *values])
        del log[name].attrs[key]
        if rng.random() < 0.9:
            log[name].attrs[key] = value
    return f"attribute {key} of {name} is {str(value)[:40]!r}"


def _parquet_column(file: Path, rng: random.Random) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    place = rng.randrange(table.num_columns)
    name, rows = table.column_names[place], table.num_rows
    old = table.column(place)
    kind = rng.choice(
        ("text", "null", "nan", "huge", "negative", "list", "bytes", "short", "removed", "twice", "reversed")
    )
    new = {
        "text": lambda: pa.array(["../../etc/passwd"] * rows),
        "null": lambda: pa.nulls(rows, old.type),
        "nan": lambda: pa.array([float("nan")] * rows),
        "huge": lambda: pa.array([2**62 + i for i in range(rows)]),
        "negative": lambda: pa.array([-1] * rows),
        "list": lambda: pa.array([[1.0] * (i % 3) for i in range(rows)]),
        "bytes": lambda: pa.array([b"\xff\xd8\xff" * 5] * rows),
        "reversed": lambda: old.take(pa.array(range(rows - 1, -1, -1))),
    }
    if kind in new:
        table = table.set_column(place, name, new[kind]())
    elif kind == "short":
        table = table.slice(0, rows // 2)
    elif kind == "removed":
        table = table.remove_column(place)
    else:
        table = table.append_column(name, old)
    pq.write_table(table, file)
    return f"column {name} is {kind}"


def _zip_member(file: Path, rng: random.Random) -> str:
    """A member damaged, renamed, packed as a bomb, twice or left out, in a zip that is whole."""
    with zipfile.ZipFile(file) as archive:
        members = [(info, archive.read(info)) for info in archive.infolist()]
    names = [info.filename for info, _ in members]
    weights = [3 if is_text(Path(name)) else 1 for name in names]
    place = rng.choices(range(len(members)), weights)[0]
    kind = rng.choice(("damaged",) * 20 + ("renamed", "renamed", "twice", "removed", "removed", "bomb"))
    inside = file.with_name(".member") / Path(names[place]).name
    if kind == "damaged" and members[place][1]:
        inside.parent.mkdir(exist_ok=True)
        inside.write_bytes(members[place][1])
        ways = [_flip, _overwrite, _truncate, _integer] + ([_json_value] * 8 + [_text_number] * 4) * is_text(inside)
        kind = _apply(rng.choice(ways), inside, rng)
        members[place] = (members[place][0], inside.read_bytes())
        shutil.rmtree(inside.parent)
    elif kind == "bomb":
        members[place] = (members[place][0], bytes(300 << 20))
    elif kind == "twice":
        members.append(members[place])
    elif kind == "removed":
        members.pop(place)
    with zipfile.ZipFile(file, "w") as archive:
        for number, (info, data) in enumerate(members):
            name = rng.choice(STRINGS[:4]) if kind == "renamed" and number == place else info.filename
            packed = zipfile.ZIP_DEFLATED if len(data) > 100 << 20 else info.compress_type
            archive.writestr(zipfile.ZipInfo(name or "x", info.date_time), data, packed)
    return f"{names[place]}: {kind}"


def _record(file: Path, rng: random.Random) -> str:
    """A record whose payload is damaged and whose checksums are right."""
    from vla_cli.readers.tfrecord import crc32c, mask

    data, records = file.read_bytes(), []
    while data:
        size = struct.unpack_from("<Q", data)[0]
        records.append(data[12 : 12 + size])
        data = data[16 + size :]
    place = rng.randrange(len(records))
    inside = file.with_name(".record")
    inside.write_bytes(records[place])
    done = _apply(rng.choice((_flip, _overwrite, _truncate, _duplicate, _delete, _integer)), inside, rng)
    records[place] = inside.read_bytes()
    inside.unlink()
    with file.open("wb") as stream:
        for record in records:
            head = struct.pack("<Q", len(record))
            stream.write(head + mask(crc32c(head)) + record + mask(crc32c(record)))
    return f"record {place}: {done}"


def _sqlite_value(file: Path, rng: random.Random) -> str:
    import sqlite3
    from contextlib import closing

    with closing(sqlite3.connect(file)) as base:
        tables = [row[0] for row in base.execute("select name from sqlite_master where type = 'table' order by name")]
        table = rng.choice(tables)
        rows = base.execute(f'select rowid, * from "{table}"')
        columns = [column[0] for column in rows.description][1:]
        column, row = rng.choice(columns), rng.choice(rows.fetchall())
        old = row[1 + columns.index(column)]
        new: Any = rng.choice([None, -1, 2**62, "../../etc/passwd", b"", "x" * 10_000, 0.5, b"\0\1\0\0" + b"\xff" * 40])
        if isinstance(old, bytes) and len(old) > 8:
            place = rng.randrange(len(old) - 4)
            new = old[:place] + struct.pack("<I", rng.choice(INTEGERS) % 2**32) + old[place + 4 :]
        base.execute(f'update "{table}" set "{column}" = ? where rowid = ?', (new, row[0]))
        base.commit()
    return f"{table}.{column} of row {row[0]} is {str(new)[:40]}"
