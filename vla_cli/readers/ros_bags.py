"""Where bags are, and one bag as its files: a directory with metadata.yaml, or one .mcap or .db3 file.

A bag is recognised by content: MCAP's magic, sqlite3 with the tables of a bag, or a metadata.yaml of rosbag2.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import yaml

from vla_cli.episode import UnusableError
from vla_cli.errors import words
from vla_cli.readers import ros_mcap, ros_sqlite
from vla_cli.readers.ros_storage import ZSTD_MAGIC, Message, Storage, Topic, shown, unpack_file

METADATA = "metadata.yaml"
_INFORMATION = "rosbag2_bagfile_information"
_DEPTH = 3  # folders below the log in which bags are looked for
_LARGEST_METADATA = 2**20
_MOST_BRACKETS = 5000  # the YAML parser's time grows with the square of how deep they are nested
Place = tuple[int, int, int]


@dataclass(frozen=True)
class Bag:
    """One recording.

    Attributes:
        name: unique in the log.
        locator: its path relative to the log; "." for the log itself.
        path: a directory or a file.
        files: its storages in order, all of them there.
        notes: oddities of its directory.
        problem: why it cannot be read; "" when nothing is known against it.
    """

    name: str
    locator: str
    path: Path
    files: tuple[Path, ...]
    notes: tuple[str, ...] = ()
    problem: str = ""

    @property
    def sources(self) -> tuple[Path, ...]:
        """Every file it is read from."""
        metadata = self.path / METADATA
        return (*((metadata,) if self.path.is_dir() and metadata.is_file() else ()), *self.files)


def find_bags(path: Path, most: int | None = None) -> Iterator[Bag]:
    """The bags at or below a path, in the order of their names (2 before 10).

    Args:
        path: the log.
        most: files and folders to look at; None for all.
    """
    looked = 0
    waiting = [(path, 0)]
    while waiting:
        at, depth = waiting.pop()
        looked += 1
        if most is not None and looked > most:
            return
        if at.is_symlink() and depth and not _is_inside(at, path):
            continue
        if at.is_dir():
            if _is_rosbag2(at / METADATA):
                yield _bag(at, path)
            elif depth < _DEPTH:
                children = sorted((c for c in at.iterdir() if not c.name.startswith(".")), key=_natural, reverse=True)
                waiting += [(child, depth + 1) for child in children]
        elif kind_of(at) in ("mcap", "sqlite3"):
            yield Bag(_name(at, path), _relative(at, path), at, (at,))


def kind_of(file: Path) -> str:
    """ "mcap", "sqlite3" (with the tables of a bag), "zstd", or "" for anything else."""
    if not file.is_file():  # not a pipe, which would never answer
        return ""
    with file.open("rb") as stream:
        head = stream.read(16)
    if head.startswith(ros_mcap.MAGIC):
        return "mcap"
    if head == ros_sqlite.MAGIC:
        return "sqlite3" if ros_sqlite.is_bag(file) else ""
    return "zstd" if head.startswith(ZSTD_MAGIC) else ""


@dataclass
class OpenBag:
    """A bag that is read. Its storages open their files when they are asked, and again after `rest`.

    Args:
        bag: which one.
    """

    bag: Bag
    notes: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.notes = list(self.bag.notes)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._storages: list[Storage] | None = None

    def topics(self) -> dict[str, Topic]:
        """Its topics by name, counted over all files.

        Raises:
            UnusableError: they cannot be read, or one topic has two types.
        """
        found: dict[str, Topic] = {}
        for topic in (topic for storage in self._opened() for topic in storage.topics()):
            known = found.get(topic.name, topic)
            if (known.type, known.encoding) != (topic.type, topic.encoding):
                raise UnusableError(f"topic {shown(topic.name)} has the types {known.type} and {topic.type}")
            if known is not topic:
                count, seconds = known.count + topic.count, max(known.seconds, topic.seconds)
                topic = replace(known, count=count, seconds=seconds)
            found[topic.name] = topic
        self._gather()
        return found

    def messages(self, wanted: Collection[str]) -> Iterator[tuple[Message, Place]]:
        """The messages of these topics in the order of the files, each with what `fetch` takes.

        Raises:
            UnusableError: the bag is damaged.
        """
        for number, storage in enumerate(self._opened()):
            for message in storage.messages(wanted):
                yield message, (number, *message.place)
            self._gather()

    def fetch(self, place: Place) -> bytes:
        """The CDR bytes of one message."""
        return self._opened()[place[0]].fetch((place[1], place[2]))

    def rest(self) -> None:
        """Let go of files until the next call."""
        for storage in self._storages or []:
            storage.rest()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = self._storages = None

    def _opened(self) -> list[Storage]:
        if self._storages is None:
            if self.bag.problem:
                raise UnusableError(self.bag.problem)
            self._storages = [self._open(number, file) for number, file in enumerate(self.bag.files)]
            self._gather()
        return self._storages

    def _open(self, number: int, file: Path) -> Storage:
        label, kind = shown(file.name), kind_of(file)
        if kind == "zstd":
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="vla-bag-")
            plain = Path(self._folder.name) / str(number)
            unpack_file(file, plain)
            file, kind = plain, kind_of(plain)
        if kind == "mcap":
            return ros_mcap.McapStorage(file, label)
        if kind == "sqlite3":
            return ros_sqlite.SqliteStorage(file, label)
        raise UnusableError(f"{label} is neither MCAP nor the sqlite3 file of a bag")

    def _gather(self) -> None:
        for storage in self._storages or []:
            self.notes += [note for note in storage.notes if note not in self.notes]


def _bag(directory: Path, root: Path) -> Bag:
    """A directory with metadata.yaml; what it lists of files is looked for in it and nowhere else."""
    notes, problem, files = [], "", list[Path]()
    there = sorted((c for c in directory.iterdir() if not c.name.startswith(".") and kind_of(c)), key=_natural)
    try:
        listed = _listed_files(directory / METADATA)
    except ValueError as error:
        notes.append(f"{METADATA} cannot be read ({words(error)}), so every storage beside it is taken")
        files = there
    else:
        for text in listed:
            found = _listed(directory, text)
            problem = problem or ("" if found else f"{METADATA} lists '{shown(text)}', which is not there")
            files += [found] if found and found not in files else []
        if more := [file.name for file in there if file not in files]:
            notes.append(f"{METADATA} does not list {', '.join(map(shown, more[:5]))}, which is not read")
    if outside := [file for file in files if not _is_inside(file, root)]:
        files = [file for file in files if file not in outside]
        problem = f"{shown(outside[0].name)} is a link that leads out of the log"
    if not files:
        problem = problem or "it has no storage file"
    return Bag(_name(directory, root), _relative(directory, root), directory, tuple(files), tuple(notes), problem)


def _listed(directory: Path, text: str) -> Path | None:
    """Older bags list their files with the directory's name or a whole path: the last part counts, as in ROS itself."""
    name = text.replace("\\", "/").rsplit("/", 1)[-1]
    if name in ("", ".", "..") or "\0" in name:
        return None
    return next((f for f in (directory / name, directory / f"{name}.zstd") if f.is_file()), None)


def _listed_files(metadata: Path) -> list[str]:
    """`relative_file_paths`, found in the parser's events: nothing of the document is built, however it is nested.

    Raises:
        ValueError: it cannot be parsed or has no such list.
    """
    with metadata.open("rb") as stream:
        data = stream.read(_LARGEST_METADATA + 1)
    if len(data) > _LARGEST_METADATA or data.count(b"[") + data.count(b"{") > _MOST_BRACKETS:
        raise ValueError("it is too large")
    listed: list[str] | None = None
    key = ""
    try:
        for event in yaml.parse(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.SequenceStartEvent):
                listed = [] if key == "relative_file_paths" else listed
            elif isinstance(event, yaml.SequenceEndEvent) and listed is not None:
                return listed
            elif isinstance(event, yaml.ScalarEvent):
                key = event.value
                if listed is not None:
                    listed.append(event.value)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        raise ValueError("it is no YAML") from None
    raise ValueError("it lists no files")


def _is_rosbag2(metadata: Path) -> bool:
    if not metadata.is_file():
        return False
    with metadata.open("rb") as stream:
        return _INFORMATION.encode() in stream.read(_LARGEST_METADATA)


def _is_inside(file: Path, root: Path) -> bool:
    return file.resolve().is_relative_to(root.resolve())


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _name(path: Path, root: Path) -> str:
    """Unique among bags: the path in the log; parts that hold the joint themselves get a digest."""
    parts = path.relative_to(root).parts or (root.resolve().name,)
    name = "__".join(parts)
    is_clear = "___" not in name and name.count("__") == len(parts) - 1
    return name if is_clear else f"{name}-{sha256('/'.join(parts).encode()).hexdigest()[:8]}"


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Sort key in which numbers count as numbers."""
    parts = re.split(r"(\d{1,18})", path.name)
    return [(1, int(part), "") if part.isdecimal() and part.isascii() else (0, 0, part) for part in parts]
