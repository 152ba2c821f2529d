"""Typed, careful access to HDF5: what is asked for is there and of the right kind, or a ValueError names it.

A file from elsewhere may hold links into other files, or data kept in other files; both would let a recording read
what its sender was never given, so they are refused, and no name is looked up in a way that would follow one. It may
also claim to hold far more than it does: sizes are compared with what is stored before anything is read. Nothing here
walks down a file by itself, so that a group which contains itself is only ever one more member.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from h5py import h5l  # pyright: ignore[reportAttributeAccessIssue]

LARGEST_ARRAY = 16 * 2**30
LARGEST_TABLE = 256 * 2**20
LARGEST_CHUNK = 256 * 2**20  # a chunk is unpacked whole, however little of it is asked for
LARGEST_TEXT = 16 * 2**20
MOST_MEMORY = 640 * 2**20
MOST_ROWS = 2_000_000  # eleven hours at 50 Hz
MOST_MEMBERS = 100_000
MOST_TEXTS = 256  # in one attribute
LONGEST_NAME = 4096
MOST_LINKS = 16  # soft links to follow from one name: they may go round in circles
BOMB_SIZE, BOMB_RATIO = 256 * 2**20, 1000  # gzip makes zeros about 1030 times smaller, and pictures hardly ten times
MOST_TEXTS_OF_FILE = 5_000_000
_HEAP = re.compile(rb"GCOL\x01\0\0\0")  # twice as fast as bytes.find
_REACH = 7  # a heap's mark may begin so far before the end of a block and not be seen in it
_BLOCK = 2**18


@contextmanager
def bounded_memory(most: int = MOST_MEMORY) -> Iterator[None]:
    """Let this process take so many bytes more and no more while it looks into a file from elsewhere.

    HDF5 allocates what a file states where nobody can ask it first: a text of any length has its length in the file,
    and a damaged one claims 4 GiB. Systems without such a limit go on without.

    Raises:
        ValueError: it took more.
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = pages * os.sysconf("SC_PAGE_SIZE") + most
    least = min(limit for limit in (soft, hard, wanted) if limit != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (least, hard))
    try:
        yield
    except MemoryError:
        raise ValueError(f"it claims sizes that take more than {most // 2**20} MiB") from None
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def opened(path: Path) -> h5py.File:
    """A file open for reading: the one way in which this project opens HDF5 that may come from elsewhere.

    Raises:
        ValueError: reading its texts would not end; see `check_heaps`.
        OSError: it is not there, or no whole HDF5 file.
    """
    check_heaps(path)
    return h5py.File(path, "r")


def check_heaps(path: Path) -> None:
    """Look at the places in a file where texts of any length lie, before HDF5 does.

    HDF5 walks such a heap from object to object by the size that each states; a free one that states less than its own
    header is walked over for ever (seen in 2.0). Format: HDF5 File Format Specification 3.0, III.E "Global Heap".

    Raises:
        ValueError: a heap is damaged.
    """
    stamp = path.stat()
    if problem := _heap_problem(path, stamp.st_size, stamp.st_mtime_ns):
        raise ValueError(problem)


@lru_cache(maxsize=4096)  # more than a dataset has episodes: each pass opens all their files again
def _heap_problem(path: Path, size: int, _time: int) -> str:
    left = MOST_TEXTS_OF_FILE
    # a stream to search and one to walk; the file is not mapped, for a log may be larger than `bounded_memory` allows
    with path.open("rb", buffering=0) as stream, path.open("rb") as heaps:
        for at in _heaps(stream):
            walked = _walk(heaps, at, size, left)
            if walked is None:
                return f"the texts at byte {at} are damaged"
            if (left := left - walked) <= 0:
                return f"more than {MOST_TEXTS_OF_FILE} texts"
    return ""


def _heaps(stream: BinaryIO) -> Iterator[int]:
    """Byte of every heap, block by block; one that begins in a block's last bytes is found in the next."""
    start, kept = 0, b""
    while block := stream.read(_BLOCK):
        block = kept + block
        yield from (start + found.start() for found in _HEAP.finditer(block))
        kept = block[-_REACH:]
        start += len(block) - len(kept)


def _walk(stream: BinaryIO, at: int, size: int, most: int) -> int | None:
    """Objects of the heap at a byte, `most` at most; None where HDF5 would not get to its end."""

    def number(at: int, count: int) -> int:
        stream.seek(at)
        return int.from_bytes(stream.read(count), "little")

    end, at = min(at + number(at + 8, 8), size), at + 16
    for count in range(most):
        if at + 16 > end:
            return count
        index, stated = number(at, 2), number(at + 8, 8)
        if index == 0 and stated < 16:
            return None
        at += stated if index == 0 else 16 + (stated + 7) // 8 * 8
    return most


def names(parent: h5py.Group) -> list[str]:
    """Names of a group's members, in the file's own order.

    Raises:
        ValueError: there are absurdly many.
    """
    if len(parent) > MOST_MEMBERS:
        raise ValueError(f"{parent.name} has {len(parent)} members, more than {MOST_MEMBERS}")
    return [str(name) for name in parent]


def has(parent: h5py.Group, name: str) -> bool:
    """Whether there is a member of that name that `member` would give.

    Raises:
        OSError, KeyError, RuntimeError: the file is damaged there.
    """
    try:
        member(parent, name)
    except ValueError:
        return False
    return True


def member(parent: h5py.Group, name: str) -> Any:
    """The group or dataset called `name`, which may be a path; soft links are followed within the file.

    Raises:
        ValueError: there is none, it is a link into another file, or links go round in circles.
    """
    here: Any = parent
    parts = name.split("/")
    followed = 0
    while parts:
        part = parts.pop(0)
        if part in ("", "."):
            continue
        encoded = part.encode("utf-8", "surrogateescape")
        # Not `part in here`: that opens what an external link leads to.
        if not isinstance(here, h5py.Group) or not here.id.links.exists(encoded):
            raise ValueError(f"{here.name} has no '{part}'")
        kind = here.id.links.get_info(encoded).type
        if kind == h5l.TYPE_HARD:
            here = here[part]
        elif kind == h5l.TYPE_SOFT:
            followed += 1
            if followed > MOST_LINKS:
                raise ValueError(f"{_path(parent, name)} is a link that leads nowhere, over {MOST_LINKS} others")
            target = here.id.links.get_val(encoded).decode("utf-8", "surrogateescape")
            here = here.file["/"] if target.startswith("/") else here
            parts = [*target.split("/"), *parts]
        else:
            raise ValueError(f"{_path(here, part)} is a link into another file, which is not followed")
    return here


def group(parent: h5py.Group, name: str) -> h5py.Group:
    """The group called `name`.

    Raises:
        ValueError: there is none, or it is something else.
    """
    found = member(parent, name)
    if not isinstance(found, h5py.Group):
        raise ValueError(f"{_path(parent, name)} is not a group")
    return found


def dataset(parent: h5py.Group, name: str) -> h5py.Dataset:
    """The dataset called `name`, unread.

    Raises:
        ValueError: there is none, it is something else, its data lie in another file, it claims more than its file
            can hold, or part of it was never written.
    """
    found = member(parent, name)
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{_path(parent, name)} is not a dataset")
    if found.is_virtual or found.external:
        raise ValueError(f"{found.name} keeps its data in another file, which is not followed")
    if found.shape is None:
        raise ValueError(f"{found.name} holds nothing")
    _check_stored(found)
    return found


def kind(found: h5py.Dataset) -> str:
    """NumPy's letter for what a dataset's values are (f, i, u, b, S ...); "O" for text of any length and references."""
    try:
        return found.dtype.kind
    except TypeError:  # a type that NumPy does not have
        return "V"


def size(found: h5py.Dataset) -> int:
    """Bytes a dataset takes in memory, by what it claims. Not `found.nbytes`, which overflows for absurd shapes."""
    return math.prod(found.shape) * found.id.get_type().get_size()


def array(parent: h5py.Group, name: str) -> np.ndarray:
    """The whole of the dataset called `name`: numbers, or byte strings of one length.

    Raises:
        ValueError: as for `dataset`, it is too large to load, or it holds something else.
        OSError: its bytes are damaged.
    """
    found = dataset(parent, name)
    if kind(found) not in "fiubS":
        raise ValueError(f"{found.name} holds {_type_name(found)}, not numbers")
    if size(found) > LARGEST_ARRAY:
        raise ValueError(f"{found.name} would take {size(found) / 2**30:.0f} GiB of memory")
    return np.asarray(found[()])


def table(parent: h5py.Group, name: str) -> np.ndarray:
    """The dataset called `name` as numbers [T, D], one row a step; [T] becomes [T, 1].

    Raises:
        ValueError: as for `dataset`, or it is no such table, or is too large for one.
        OSError: its bytes are damaged.
    """
    found = dataset(parent, name)
    if kind(found) not in "fiub":
        raise ValueError(f"{found.name} holds {_type_name(found)}, not numbers")
    shape = list(found.shape)
    if len(shape) not in (1, 2) or 0 in shape:
        raise ValueError(f"{found.name} is {shape}, not [T, D]")
    if shape[0] > MOST_ROWS or size(found) > LARGEST_TABLE:
        raise ValueError(f"{found.name} is {shape}, too large for numbers of one demonstration")
    values = np.asarray(found[()])
    return values[:, None] if values.ndim == 1 else values


def words(parent: h5py.Group, name: str) -> list[str]:
    """The dataset called `name` as texts, whether they are of one length or of any.

    Raises:
        ValueError: as for `dataset`, or it holds something else, or too much.
    """
    found = dataset(parent, name)
    any_length = kind(found) == "O" and h5py.check_string_dtype(found.dtype) is not None
    if not any_length and kind(found) != "S":
        raise ValueError(f"{found.name} holds {_type_name(found)}, not text")
    if math.prod(found.shape) > MOST_MEMBERS or size(found) > LARGEST_TEXT or len(found.shape) != 1:
        raise ValueError(f"{found.name} is {list(found.shape)}, not a list of names")
    if kind(found) == "S":
        return [text.decode("utf-8", "replace") for text in found[()].tolist()]
    texts: list[str] = []
    for index in range(len(found)):  # one by one: many may stand for the same long text
        value: Any = found[index]
        texts.append(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))
        if len(texts[-1]) > LONGEST_NAME:
            raise ValueError(f"{found.name} has a name of {len(texts[-1])} letters")
    return texts


def attribute(node: h5py.Group | h5py.Dataset, key: str) -> Any:
    """The attribute `key` as plain Python: text (bytes are taken for UTF-8), a number, or a list of them.

    Raises:
        ValueError: there is none, or it is too large or of another kind.
    """
    if key not in node.attrs:
        raise ValueError(f"{node.name} has no attribute '{key}'")
    found = node.attrs.get_id(key)
    if found.shape is None:
        return ""
    label = f"the attribute '{key}' of {node.name}"
    any_length = h5py.check_string_dtype(found.dtype) is not None and found.dtype.kind == "O"
    if found.dtype.kind not in "fiubS" and not any_length:
        raise ValueError(f"{label} holds {found.dtype}, neither text nor numbers")
    count = math.prod(found.shape)
    # Texts of any length lie elsewhere in the file, all of them perhaps in one long one: their number is what counts.
    if count * found.dtype.itemsize > LARGEST_TEXT or (any_length and count > MOST_TEXTS):
        raise ValueError(f"{label} is too large")
    return _plain(node.attrs[key])


def text(node: h5py.Group | h5py.Dataset, key: str, default: str | None = None) -> str:
    """The attribute `key` as text (bytes are taken for UTF-8), or `default` when there is none.

    Raises:
        ValueError: there is none and no default, or it is absurdly long.
    """
    if key not in node.attrs and default is not None:
        return default
    found = str(attribute(node, key))
    if len(found) > LARGEST_TEXT:
        raise ValueError(f"the attribute '{key}' of {node.name} has {len(found)} letters")
    return found


def number(node: h5py.Group | h5py.Dataset, key: str, default: float) -> float:
    """The attribute `key` as a number, or `default` when there is none.

    Raises:
        ValueError: it is no number, or not a finite one.
    """
    value = attribute(node, key) if key in node.attrs else default
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(value, list) or not math.isfinite(float(value)):
        raise ValueError(f"the attribute '{key}' of {node.name} is no number")
    return float(value)


def _check_stored(found: h5py.Dataset) -> None:
    """Compare what a dataset claims with what is there; what is being written need not be there yet."""
    if found.file.mode != "r":
        return
    claimed, stored, name = size(found), found.id.get_storage_size(), found.name
    if found.chunks and math.prod(found.chunks) * found.id.get_type().get_size() > LARGEST_CHUNK:
        raise ValueError(f"{name} is packed in chunks of {list(found.chunks)}, too large to be unpacked")
    if claimed > BOMB_SIZE and claimed > BOMB_RATIO * stored:
        raise ValueError(f"{name} claims {claimed / 2**20:.0f} MiB, of which the file stores {stored} bytes")
    whole = found.file.id.get_filesize()
    if stored > whole:
        raise ValueError(f"{name} claims {stored} stored bytes in a file of {whole}")
    if claimed and not stored:
        raise ValueError(f"{name} was never written")
    if found.chunks:
        written, wanted = found.id.get_num_chunks(), math.prod(map(_ceil, found.shape, found.chunks))
        if written < wanted:
            raise ValueError(f"{name} was not written to its end: {written} of {wanted} chunks are there")


def _ceil(length: int, step: int) -> int:
    return -(-length // step)


def _plain(value: Any) -> Any:
    """A value of h5py's as plain Python."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _type_name(found: h5py.Dataset) -> str:
    try:
        return str(found.dtype)
    except TypeError:
        return "values of a type that is not known here"


def _path(parent: h5py.Group, name: str) -> str:
    return f"{str(parent.name).rstrip('/')}/{name}"
