"""What logs of HDF5 files have in common: finding the files, telling the formats apart, opening them one by one.

A log is one file, whatever its name, or a directory with `.hdf5` or `.h5` files directly in it. Each file is of one
format at most:

    robomimic   /data/demo_<i>
    libero      the same, with LIBERO's attributes on /data or LIBERO's cameras in obs
    aloha       /observations/qpos and /action
"""

from __future__ import annotations

import re
from pathlib import Path

import h5py

from vla_cli import hdf5
from vla_cli.episode import UnusableError
from vla_cli.errors import InputError, words
from vla_cli.readers import Entry, Warn

SIGNATURE = b"\x89HDF\r\n\x1a\n"
ENDINGS = (".hdf5", ".h5")
MOST_OPEN = 32
_LOOKED_AT = 50  # files of a directory that are opened to tell its format
_DEMOS_LOOKED_AT = 5
_DEMO = re.compile(r"demo_[0-9]{1,18}")
_LIBERO_ATTRIBUTES = ("problem_info", "bddl_file_name", "bddl_file_content")
_DAMAGED = "robomimic"  # the reader that says so, when nothing tells the format any more
_OTHERS = ("trajectory.h5",)  # a DROID recording's, damaged or not


def files_of(path: Path) -> list[Path]:
    """The file itself, or the HDF5 files of a directory by their endings, numbers in their names in numerical order."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    found = [p for p in path.iterdir() if p.suffix.lower() in ENDINGS and not p.name.startswith(".") and not p.is_dir()]
    return sorted(found, key=_in_order)


def _in_order(path: Path) -> tuple[list[tuple[str, int]], str]:
    parts = re.findall(r"([^0-9]*)([0-9]{0,18})", path.stem)
    return [(text, int(digits or -1)) for text, digits in parts], path.name


def label(file: Path) -> str:
    """A file's name for those of its episodes: without its ending, unless another file could have the same one."""
    return file.stem if file.suffix == ".hdf5" else file.name


def claim(path: Path, format: str) -> str | None:
    """Why a log is of a format, or None; a damaged file is robomimic's to report where nothing tells the format."""
    formats, damaged = _look(path)
    if format in formats:
        return f"{formats[format]} is an HDF5 file {_MARKS[format]}"
    if damaged and not formats and format == _DAMAGED:
        return f"{damaged} has the signature of an HDF5 file"
    return None


def _look(path: Path) -> tuple[dict[str, str], str]:
    """The formats of a log's first files, each with one file's name, and the name of a damaged file."""
    formats: dict[str, str] = {}
    damaged = ""
    for file in files_of(path)[:_LOOKED_AT]:
        try:
            if leaves(file, path) or not _has_signature(file):
                continue
            with hdf5.bounded_memory(), hdf5.opened(file) as opened:
                formats.setdefault(format_of(opened), file.name)
        except (OSError, RuntimeError, ValueError, KeyError):
            damaged = damaged or (file.name if file.name not in _OTHERS else "")
    return formats, damaged


_MARKS = {
    "robomimic": "with /data/demo_<i> groups",
    "libero": "with /data/demo_<i> groups that LIBERO recorded",
    "aloha": "with /observations/qpos and /action",
}


def _has_signature(file: Path) -> bool:
    if not file.is_file():  # a pipe would be waited for
        return False
    with file.open("rb") as stream:
        return stream.read(len(SIGNATURE)) == SIGNATURE


def leaves(file: Path, log: Path) -> bool:
    """Whether a file of a directory is a link that leads out of it, or nowhere."""
    try:
        return log.is_dir() and not file.resolve().is_relative_to(log.resolve())
    except (RuntimeError, OSError):  # a link to itself
        return True


def format_of(opened: h5py.File) -> str:
    """The format of one file by its content; "" when it is of none of these.

    Raises:
        OSError, RuntimeError, ValueError, KeyError: it is damaged.
    """
    demos = demo_names(opened)
    if demos:
        return "libero" if _is_libero(hdf5.group(opened, "data"), demos) else "robomimic"
    if hdf5.has(opened, "observations/qpos") and hdf5.has(opened, "action"):
        return "aloha"
    present = set(hdf5.names(opened))
    return "robomimic" if "data" in present and not present - {"data", "mask"} else ""


def _is_libero(data: h5py.Group, demos: list[str]) -> bool:
    if any(key in data.attrs for key in _LIBERO_ATTRIBUTES) or "libero" in _tag(data):
        return True
    return any(_has_libero_cameras(data, demo) for demo in demos[:_DEMOS_LOOKED_AT])


def _has_libero_cameras(data: h5py.Group, demo: str) -> bool:
    try:
        return hdf5.has(data, f"{demo}/obs/agentview_rgb") and (
            hdf5.has(data, f"{demo}/obs/eye_in_hand_rgb") or hdf5.has(data, f"{demo}/obs/ee_states")
        )
    except (OSError, KeyError, RuntimeError):  # one damaged demo says nothing of the others
        return False


def _tag(data: h5py.Group) -> str:
    try:
        return hdf5.text(data, "tag", "").lower()
    except (ValueError, TypeError):
        return ""


def demo_names(opened: h5py.File) -> list[str]:
    """Names of the groups /data/demo_<i>, by their numbers.

    Raises:
        ValueError: /data has absurdly many members.
    """
    if "data" not in hdf5.names(opened) or not isinstance(hdf5.member(opened, "data"), h5py.Group):
        return []
    found = [name for name in hdf5.names(hdf5.group(opened, "data")) if _DEMO.fullmatch(name)]
    return sorted(found, key=lambda name: (int(name[5:]), name))


def entry_of(file: Path, log: Path, name: str, part: str = "") -> Entry:
    """An episode in a file, or in a part of it; `OpenFiles.get` finds the file again.

    What is no file of the log's own is not among the entry's files: they are read whole for their digests.
    """
    own = file.is_file() and not leaves(file, log)
    return Entry(name, f"{file.name}/{part}", (file,) if own else ())


class OpenFiles:
    """The files of a log, each opened when it is asked for.

    At most `MOST_OPEN` stay open, the longest unused is closed: a recording folder has more files than a process may
    open. Pictures of an episode are valid until that many other files were read.

    Args:
        log: the file or directory that the user named.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self._open: dict[Path, h5py.File] = {}

    def find(self, entry: Entry) -> tuple[Path, str]:
        """The file of an entry, and the part of it."""
        name, _, part = entry.locator.partition("/")
        return (self.log / name if self.log.is_dir() else self.log), part

    def get(self, file: Path) -> h5py.File:
        """One of them, open.

        Raises:
            UnusableError: it leads out of the log, or cannot be opened.
        """
        if file in self._open:
            self._open[file] = self._open.pop(file)
            return self._open[file]
        if leaves(file, self.log):
            raise UnusableError(f"{file.name} is a link that leads out of the log, which is not followed")
        if not file.is_file():
            raise UnusableError(f"{file.name} is no file")
        while len(self._open) >= MOST_OPEN:
            self._open.pop(next(iter(self._open))).close()
        try:
            self._open[file] = hdf5.opened(file)
        except (OSError, ValueError) as error:
            why = words(error)
            raise UnusableError(
                f"{file.name} cannot be opened as HDF5 ({why}): it was probably cut short, so copy it again"
            ) from None
        return self._open[file]

    def close(self) -> None:
        """Close them all."""
        for file in self._open.values():
            file.close()
        self._open.clear()


def check_log(path: Path, opened: OpenFiles, format: str, looks_for: str, warn: Warn) -> list[Path]:
    """The files of a log; a single one must be of the format. Those in folders below it are told and not read.

    Raises:
        InputError: there is none, or the only one is damaged or of another format.
    """
    files = files_of(path)
    if not files or (path.is_file() and not _has_signature(path)):
        raise InputError(
            f"{path} is no HDF5 file and holds none",
            expected=looks_for,
            hint="vla collect-ingest with --format auto",
        )
    if path.is_file():
        try:
            check_format(opened.get(path), format)
        except UnusableError as error:
            raise InputError(str(error), expected=looks_for) from None
    if below := _below(path):
        folder = below[0].parent.relative_to(path).as_posix()
        warn(
            f"{len(below)} HDF5 file(s) in folders below {path.name} are not read, the first in {folder}/: put them "
            "beside the others, or ingest each folder by itself."
        )
    return files


def _below(path: Path) -> list[Path]:
    """HDF5 files in the folders of a directory, by their endings."""
    found = (file for file in path.rglob("*") if file.suffix.lower() in ENDINGS and file.parent != path)
    shown = (file for file in found if not any(p.startswith(".") for p in file.relative_to(path).parts))
    return sorted(file for file in shown if file.is_file())


def check_format(file: h5py.File, format: str) -> None:
    """Refuse a file of another format.

    Raises:
        UnusableError: it is none of this format.
    """
    found = format_of(file)
    if found != format:
        name = Path(file.filename).name
        raise UnusableError(f"{name} is not a file {_MARKS[format]}" + (f", but of format {found}" if found else ""))
