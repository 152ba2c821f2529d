"""Where the files of a LeRobot directory really are, and its JSON, read within bounds.

Path templates and links come from elsewhere: neither leads out of the directory.
"""

from __future__ import annotations

import json
import os
import re
import string
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from vla_cli.errors import InputError, words
from vla_cli.files import read_json

LARGEST_JSON = 16 * 2**20  # of one document: parsed, JSON can take thirty times its size
LARGEST_LINES = 64 * 2**20
MOST_FILES = 1_000_000
_LONGEST_LINE = 2**20
_SPEC = re.compile(r"0?\d?d?")


class Files:
    """The files below a directory, listed once.

    Args:
        root: the directory.

    Attributes:
        outside: links that lead out of it and are not followed.

    Raises:
        InputError: there are too many.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.outside = root, set[str]()
        self._listed: set[str] = set()
        for folder, inner, names in os.walk(root):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            within = Path(folder).relative_to(root).as_posix()
            self._listed.update(name if within == "." else f"{within}/{name}" for name in names)
            if len(self._listed) > MOST_FILES:
                raise InputError(f"{root} holds more than {MOST_FILES} files", expected="the directory of one log")
        self._named: dict[tuple[str, str], list[str]] | None = None

    def get(self, relative: str) -> Path | None:
        """A file, or None where there is none, or only a link that leads out.

        Raises:
            InputError: the path itself leads out.
        """
        plain = os.path.normpath(relative)
        if plain.startswith(("..", "/")):
            raise InputError(
                f"meta/info.json leads to '{relative[:200]}', which is outside {self.root}",
                expected="paths inside the directory",
            )
        if plain not in self._listed:
            return None
        path = self.root / plain
        if not is_own(self.root, path):
            self.outside.add(plain)
            return None
        return path

    def below(self, folder: str, ending: str) -> list[Path]:
        """The files below a folder whose names end so, in order."""
        found = sorted(name for name in self._listed if name.startswith(f"{folder}/") and name.endswith(ending))
        return [path for name in found if (path := self.get(name))]

    def named(self, folder: str, name: str) -> list[Path]:
        """The files below a folder that are called so, in order."""
        if self._named is None:
            self._named = {}
            for path in sorted(self._listed):
                parts = path.split("/")
                self._named.setdefault((parts[0], parts[-1]), []).append(path)
        return [path for found in self._named.get((folder, name), []) if (path := self.get(found))]


def is_own(root: Path, path: Path) -> bool:
    """Whether a path is a file of the log's own: no pipe, no device, and no link out of the directory.

    A snapshot in the hub's cache is made of links to `blobs` beside it, which is its own too.
    """
    if not path.is_file():
        return False
    if not path.is_symlink():
        return True
    target, home = path.resolve(), root.resolve()
    blobs = home.parent.parent / "blobs"
    return target.is_relative_to(home) or (home.parent.name == "snapshots" and target.is_relative_to(blobs))


def read_document(root: Path, relative: str) -> Any:
    """Read a JSON file of the log.

    Raises:
        InputError: it is missing, too large, no JSON, or a link out of the log.
    """
    path = root / relative
    if path.exists() and not is_own(root, path):
        raise InputError(f"{path} leads out of the log", expected="a file of its own")
    if path.exists() and path.stat().st_size > LARGEST_JSON:
        raise InputError(
            f"{path} takes {path.stat().st_size / 2**20:.0f} MiB", expected=f"at most {LARGEST_JSON >> 20} MiB"
        )
    return read_json(path)


def read_rows(root: Path, relative: str, *keys: str) -> Iterator[dict[str, Any]]:
    """Lines of a JSONL file, each an object with `keys`; none when there is no such file.

    Raises:
        InputError: a line is damaged, the file is too large, or a link out of the log.
    """
    path = root / relative
    if not path.exists():
        return
    if not is_own(root, path) or path.stat().st_size > LARGEST_LINES:
        raise InputError(
            f"{path} cannot be read", expected=f"a file of the log's own of at most {LARGEST_LINES >> 20} MiB"
        )
    with path.open("rb") as file:
        number = 0
        while line := file.readline(_LONGEST_LINE):
            number += 1
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                yield {**row, **{key: row[key] for key in keys}}
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(
                    f"{path} line {number} is damaged ({repr(error)[:200]})", expected=f"an object with {keys}"
                ) from None


def fill(template: str, values: dict[str, Any]) -> str:
    """Fill a path template: only the known fields, with a plain width; nothing else of Python's format language.

    Raises:
        InputError: it has other fields, or is malformed.
    """
    return "".join(
        text if name is None else text + format(values[name], spec) for text, name, spec in _parsed(template, *values)
    )


@lru_cache(maxsize=8)
def _parsed(template: str, *known: str) -> list[tuple[str, str | None, str]]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(
            f"The path template '{template[:200]}' in meta/info.json is malformed ({words(error)})"
        ) from None
    for _, name, spec, conversion in parts:
        if name is not None and (name not in known or conversion or not _SPEC.fullmatch(spec or "")):
            asked = f"{name}:{spec}"[:100]
            raise InputError(
                f"The path template '{template[:200]}' in meta/info.json has the field '{asked}'",
                expected=f"only {', '.join(known)}",
            )
    return [(text, name, spec or "") for text, name, spec, _ in parts]
