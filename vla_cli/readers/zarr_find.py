"""Where zarr replay buffers lie: which folders and archives are one, and their members."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from vla_cli.errors import InputError
from vla_cli.readers.archive import Archive, Members, first_name, folder_members, is_zip, stays_in

ENDS = "meta/episode_ends"
MARKS = (".zgroup", ".zattrs", ".zmetadata", "zarr.json")
_MOST_STORES = 10_000


def find_stores(path: Path) -> list[tuple[str, Path]]:
    """Prefix of the episodes' names, and path, of each store: the path itself, or those it holds.

    Beside others, what is only called a store is one too, a damaged one: it is not to vanish without a word.

    Raises:
        InputError: two stores would give their episodes the same names.
    """
    if _is_store(path):
        return [("", path)]
    if not path.is_dir():
        return []
    found, so_called = [], []
    for child in listed(path):
        prefix = "" if child.name == "replay_buffer.zarr" else f"{plain_name(child.name)}_"
        if _is_inner_store(child):
            found.append((prefix, child))
        elif child.name.endswith((".zarr", ".zarr.zip")):
            so_called.append((prefix, child))
        elif child.is_dir():
            inner = [grandchild for grandchild in listed(child) if _is_inner_store(grandchild)]
            names = [child.name if one.name == "replay_buffer.zarr" else f"{child.name}.{one.name}" for one in inner]
            found += [(f"{plain_name(name)}_", one) for name, one in zip(names, inner, strict=True)]
    found += so_called if found else []
    prefixes = [prefix for prefix, _ in found]
    if len(set(prefixes)) < len(prefixes):
        raise InputError(f"{path} holds replay buffers of the same name", hint="rename them, or ingest them one by one")
    return sorted(found, key=lambda one: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", one[0])])


def listed(folder: Path) -> list[Path]:
    """What a folder holds, without hidden names and links that lead out of it.

    Raises:
        InputError: there is too much.
    """
    found, resolved = [], folder.resolve()
    for count, child in enumerate(folder.iterdir()):
        if count > _MOST_STORES:
            raise InputError(f"{folder} holds more than {_MOST_STORES} files", expected="a folder of replay buffers")
        if not child.name.startswith(".") and stays_in(child, resolved):
            found.append(child)
    return sorted(found)


def plain_name(name: str) -> str:
    """A name with nothing in it that a file name may not have."""
    return re.sub(r"[^\w.-]", "_", name)


def _is_inner_store(path: Path) -> bool:
    """Whether something in a folder is a store; of the files there, only those are opened that are called zip."""
    return _is_store(path) if path.is_dir() or path.suffix == ".zip" else False


def _is_store(path: Path) -> bool:
    if path.is_dir():
        has_ends = any((path / ENDS / name).is_file() for name in (".zarray", "zarr.json"))
        return has_ends or (any((path / name).is_file() for name in MARKS) and (path / "data").is_dir())
    if not path.is_file() or not is_zip(path):
        return False
    first = first_name(path)
    if first in MARKS or first.startswith(("data/", "meta/")):  # as zarr writes it, even when it is cut short
        return "/chunk-" not in first
    try:
        archive = Archive(path)
    except ValueError:
        return False
    with_ends = bool(_roots(archive))
    archive.close()
    return with_ends


def _roots(members: Members) -> list[str]:
    """Where in an archive stores lie: "" or "folder/"."""
    pattern = re.compile(rf"((?:.+/)?){ENDS}/(?:\.zarray|zarr\.json)")
    return sorted({match[1] for name in members.sizes if (match := pattern.fullmatch(name))})


class _Rooted(Members):
    """The members below one folder of an archive."""

    def __init__(self, whole: Members, root: str) -> None:
        self.whole, self.root = whole, root
        names = {name[len(root) :]: size for name, size in whole.sizes.items() if name.startswith(root)}
        super().__init__(whole.path, names)

    def files(self, names: Iterable[str]) -> tuple[Path, ...]:
        return self.whole.files(self.root + name for name in names)

    def close(self) -> None:
        self.whole.close()

    def _read(self, name: str, most: int) -> bytes:
        return self.whole._read(self.root + name, most)


def open_members(path: Path) -> Members:
    """The members of a store, from its own top.

    Raises:
        ValueError: it is damaged, hostile, or holds several stores.
    """
    if path.is_dir():
        return folder_members(path)
    archive = Archive(path)
    roots = _roots(archive)
    if len(roots) == 1 and roots[0]:
        return _Rooted(archive, roots[0])
    if len(roots) > 1:
        archive.close()
        raise ValueError(f"{path.name} holds {len(roots)} replay buffers: unpack it and ingest the folder")
    return archive
