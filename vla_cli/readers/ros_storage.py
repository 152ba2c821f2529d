"""What the storages of a ROS 2 bag have in common: topics, messages, and bytes that are unpacked within bounds."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from vla_cli.episode import UnusableError
from vla_cli.errors import MissingDependency, words

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
LARGEST_MESSAGE = 128 * 2**20  # bytes of a message or a chunk; an uncompressed 8K picture has 100 MB
GROWTH = 1000  # how many times larger than itself a file may unpack, beyond the first GiB
_FLOOR = 2**30
_PIECE = 2**20


@dataclass(frozen=True)
class Topic:
    """A topic of one storage.

    Attributes:
        name: such as /joint_states.
        type: such as sensor_msgs/msg/JointState.
        encoding: how messages are serialised; only "cdr" can be read.
        language: of `definition`: "ros2msg", "ros2idl", or "" without one.
        definition: the type's definition as the bag has it.
        count: messages.
        seconds: how long the storage lasts, by its log times.
    """

    name: str
    type: str
    encoding: str
    language: str = ""
    definition: str = ""
    count: int = 0
    seconds: float = 0.0


class Message(NamedTuple):
    """A message as stored: its topic, log time in ns, CDR bytes (valid until the next one), and where it stands."""

    topic: str
    log_time: int
    data: bytes | memoryview
    place: tuple[int, int]


class Storage(Protocol):
    """A file of messages. `notes` grows while it is read."""

    notes: list[str]

    def topics(self) -> list[Topic]:
        """Its topics."""
        ...

    def messages(self, wanted: Collection[str]) -> Iterator[Message]:
        """The messages of these topics, in the order of the file."""
        ...

    def fetch(self, place: tuple[int, int]) -> bytes:
        """The CDR bytes of one message again."""
        ...

    def rest(self) -> None:
        """Let go of the file until the next call."""
        ...


class Budget:
    """How far a file may unpack in one pass: a small file of zeros would fill memory and days."""

    def __init__(self, size: int) -> None:
        self.left = _FLOOR + GROWTH * size

    def take(self, size: int) -> None:
        """Spend `size` bytes.

        Raises:
            UnusableError: there are none left.
        """
        self.left -= size
        if self.left < 0:
            raise UnusableError(f"it unpacks to more than {GROWTH} times its size")


def shown(text: str, length: int = 80) -> str:
    """A name from a bag as it may stand in a message."""
    clean = "".join(c if c.isprintable() else "?" for c in text[: length + 1])
    return clean if len(clean) <= length else clean[: length - 3] + "..."


def message_type(name: str) -> str:
    """A type's name with the "msg" that older bags leave out."""
    package, _, last = name.partition("/")
    return f"{package}/msg/{last}" if last and "/" not in last else name


def expand(data: bytes | memoryview, packing: str, size: int, checksum: int = 0) -> bytes | memoryview:
    """Unpack a chunk that states its size.

    Raises:
        UnusableError: it is of another size, too large, damaged, or packed in an unknown way.
    """
    if size > LARGEST_MESSAGE:
        raise UnusableError(f"a chunk claims {size} bytes, more than {LARGEST_MESSAGE}")
    if packing == "":
        raw: bytes | memoryview = data
    elif packing in ("zstd", "lz4"):
        raw = _unpack(_zstd() if packing == "zstd" else _lz4(), data, size)
    else:
        raise UnusableError(f"a chunk is packed with '{shown(packing)}', not zstd or lz4")
    if len(raw) != size:
        raise UnusableError(f"a chunk claims {size} bytes and has {'more' if len(raw) > size else len(raw)}")
    if checksum and zlib.crc32(raw) != checksum:
        raise UnusableError("a chunk is damaged (its checksum does not agree)")
    return raw


def unpacked(data: bytes | memoryview) -> bytes | memoryview:
    """A message that may be packed by itself (rosbag2's compression_mode "message").

    Raises:
        UnusableError: it is too large or damaged.
    """
    if bytes(data[:4]) != ZSTD_MAGIC:  # CDR begins with 00 00 or 00 01
        return data
    raw = _unpack(_zstd(), data, LARGEST_MESSAGE)
    if len(raw) > LARGEST_MESSAGE:
        raise UnusableError(f"a message unpacks to more than {LARGEST_MESSAGE} bytes")
    return raw


def unpack_file(source: Path, target: Path) -> None:
    """Unpack a whole file (rosbag2's compression_mode "file").

    Raises:
        UnusableError: it is damaged or grows too much.
    """
    decompressor, budget = _zstd(), Budget(source.stat().st_size)
    with source.open("rb") as packed, target.open("wb") as plain:
        while not decompressor.eof:
            data = packed.read(_PIECE) if decompressor.needs_input else b""
            if not data and decompressor.needs_input:
                raise UnusableError(f"{source.name} is cut short")
            try:
                raw = decompressor.decompress(data, _PIECE)
            except Exception as error:
                raise UnusableError(f"{source.name} cannot be unpacked ({words(error)})") from None
            budget.take(len(raw))
            plain.write(raw)


def _unpack(decompressor: Any, data: bytes | memoryview, size: int) -> bytes:
    """At most one byte more than `size`."""
    try:
        raw = decompressor.decompress(data, max_length=size + 1)
    except Exception as error:  # each library has its own
        raise UnusableError(f"packed data are damaged ({type(error).__name__}: {words(error)})") from None
    if len(raw) < size and not decompressor.eof and size != LARGEST_MESSAGE:
        raise UnusableError("packed data are cut short")
    return raw


def _zstd() -> Any:
    try:
        from compression import zstd  # pyright: ignore[reportMissingImports]  # Python 3.14
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            raise missing("backports.zstd") from None
    return zstd.ZstdDecompressor()


def _lz4() -> Any:
    try:
        from lz4.frame import LZ4FrameDecompressor
    except ImportError:
        raise missing("lz4") from None
    return LZ4FrameDecompressor()


def missing(package: str) -> MissingDependency:
    """The error for a package that comes with rosbags."""
    return MissingDependency(package, extra="ros", purpose="Reading a ROS 2 bag")
