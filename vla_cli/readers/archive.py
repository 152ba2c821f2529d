"""A folder or a zip archive as a flat table of members, read within bounds.

Both are listed once. A zip's directory is measured before it is parsed, its names are refused where they lead out of
it, and so is a member that is a bomb by its own account; a folder's links are followed only where they stay in it.
Nothing is ever unpacked to disk.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vla_cli.errors import words

LARGEST_DIRECTORY = 64 * 2**20  # bytes of a zip's list of members: some 600 000 of them
MOST_MEMBERS = 600_000
BOMB_RATIO, BOMB_SIZE = 1000, 256 * 2**20
_END, _END64 = b"PK\x05\x06", b"PK\x06\x06"


class Members:
    """What lies in a folder or an archive: names with "/" between their parts, and sizes in bytes.

    Attributes:
        path: the folder or the zip file.
        sizes: name to size once unpacked.
    """

    def __init__(self, path: Path, sizes: dict[str, int]) -> None:
        self.path, self.sizes = path, sizes

    def children(self, folder: str) -> list[str]:
        """Names of what lies directly in a folder ("" is the top), sorted."""
        prefix = f"{folder}/" if folder else ""
        return sorted({name[len(prefix) :].split("/")[0] for name in self.sizes if name.startswith(prefix)})

    def read(self, name: str, limit: int) -> bytes:
        """The bytes of one member.

        Raises:
            ValueError: it is larger than `limit`.
            KeyError: there is none of that name.
        """
        if self.sizes[name] > limit:
            raise ValueError(f"{name} has {self.sizes[name]} bytes, where {limit} are the most that can be meant")
        data = self._read(name, limit + 1)
        if len(data) > limit:
            raise ValueError(f"{name} has more than the {limit} bytes that can be meant")
        return data

    def files(self, names: Iterable[str]) -> tuple[Path, ...]:
        """The files on disk that hold these members."""
        return tuple(self.path / name for name in names)

    def close(self) -> None:
        """Let go of the file."""

    def _read(self, name: str, most: int) -> bytes:
        with (self.path / name).open("rb") as stream:
            return stream.read(most)


class Archive(Members):
    """The members of a zip file.

    Args:
        path: the file.

    Raises:
        ValueError: it is cut short, or hostile.
    """

    def __init__(self, path: Path) -> None:
        _check_directory(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, struct.error) as error:
            raise ValueError(f"{path.name} is a damaged zip archive ({words(error)})") from None
        try:
            infos = [info for info in self._zip.infolist() if not info.is_dir()]
            for info in infos:
                _check_member(info, path)
        except BaseException:
            self._zip.close()
            raise
        super().__init__(path, {info.filename: info.file_size for info in infos})

    def files(self, names: Iterable[str]) -> tuple[Path, ...]:
        """See `Members`."""
        return (self.path,)

    def close(self) -> None:
        """See `Members`."""
        self._zip.close()

    def _read(self, name: str, most: int) -> bytes:
        try:
            with self._zip.open(name) as stream:
                return stream.read(most)
        except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
            raise ValueError(f"{name} cannot be unpacked ({words(error)})") from None


def folder_members(path: Path) -> Members:
    """The files below a folder; a link that leads out of it is as good as not there.

    Raises:
        ValueError: there are too many.
    """
    sizes: dict[str, int] = {}
    root, resolved = str(path), path.resolve()
    for folder, _, names in os.walk(root):  # does not follow links to folders
        prefix = os.path.relpath(folder, root).replace(os.sep, "/")
        for name in names:
            file = Path(folder, name)
            if not stays_in(file, resolved):
                continue
            if file.is_file():
                sizes[name if prefix == "." else f"{prefix}/{name}"] = file.stat().st_size
        if len(sizes) > MOST_MEMBERS:
            raise ValueError(f"{path.name} holds more than {MOST_MEMBERS} files")
    return Members(path, sizes)


def stays_in(path: Path, folder: Path) -> bool:
    """Whether something in a folder is no link that leads out of it, or in a circle.

    Args:
        path: what is in the folder.
        folder: it, resolved.
    """
    if not path.is_symlink():
        return True
    try:
        return path.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):
        return False


def is_zip(path: Path) -> bool:
    """Whether a file begins as a zip archive does."""
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def first_name(path: Path) -> str:
    """Name of a zip archive's first member, which is there even when the archive is cut short; "" for none."""
    with path.open("rb") as stream:
        head = stream.read(30 + 1024)
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        return ""
    (length,) = struct.unpack_from("<H", head, 26)
    return head[30 : 30 + length].decode("utf-8", "replace")


def _check_directory(path: Path) -> None:
    """Refuse a list of members that would fill the memory, before zipfile parses it."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 65_557 - 76))
        tail = stream.read()
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + 22:
        raise ValueError(f"{path.name} is a zip archive without its end: it was cut short")
    listed = struct.unpack_from("<I", tail, at + 12)[0]
    at64 = tail.rfind(_END64)
    if listed == 0xFFFFFFFF and 0 <= at64 <= len(tail) - 56:
        listed = struct.unpack_from("<Q", tail, at64 + 40)[0]
    if min(listed, size) > LARGEST_DIRECTORY:
        raise ValueError(f"{path.name} lists its members in {listed} bytes, more than any recording needs")


def _check_member(info: zipfile.ZipInfo, path: Path) -> None:
    name = info.filename
    if name.startswith("/") or "\\" in name or ":" in name or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{path.name} has a member '{name[:80]}', whose name leads out of the archive")
    if info.file_size > BOMB_SIZE and info.file_size > BOMB_RATIO * info.compress_size:
        raise ValueError(
            f"{path.name} has a member '{name[:80]}' that unpacks {info.compress_size} bytes to "
            f"{info.file_size}: that is a bomb, not a recording"
        )
    # The other methods unpack a whole piece at once, however large it turns out.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"{path.name} has a member '{name[:80]}' packed by method {info.compress_type}; "
            "stored and deflated ones are read"
        )
