"""The outline of any HDF5 file, JSON or YAML document, zarr store or folder, within bounds whatever it holds.

An outline is a tree of `Node`: at most `MOST_NODES` of them, `DEEPEST` levels, `WIDEST` members of one parent; what is
left out is counted. Only names, shapes, sizes and short attributes are read, never the data. Links, whether HDF5's own
or the file system's, are named and not followed, and a group that contains itself is shown once.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vla_cli import hdf5
from vla_cli.errors import InputError, words
from vla_cli.yaml_files import parse

MOST_NODES = 400
DEEPEST = 8
WIDEST = 40
LONGEST_TEXT = 200
LARGEST_JSON = 16 * 2**20
LARGEST_YAML = 32 * 2**10  # the safe loader takes seconds for more, and the fast one crashes on deep nesting
_DEEPEST_YAML = 100
_LONGEST_LINE = 2**20
_LARGEST_ATTRIBUTE = 64 * 2**10
_MOST_ATTRIBUTES = 20
_MOST_LISTED = 10_000
ZARR_MARKS = ("zarr.json", ".zgroup", ".zarray")


@dataclass
class Node:
    """One thing and what lies in it.

    Attributes:
        name: in its parent.
        kind: group, dataset, folder, file, link, array, mapping, list, text, number, ...
        detail: dtype and shape, the text, the number: on one line.
        bytes: what it takes on disk, when that is known.
        attributes: short attributes, by name.
        members: what lies in it.
        left_out: members that are not shown.
    """

    name: str
    kind: str
    detail: str = ""
    bytes: int | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    members: list[Node] = field(default_factory=list)
    left_out: int = 0

    def document(self) -> dict[str, Any]:
        """As JSON values, empty ones left out."""
        plain = {"name": self.name, "kind": self.kind, "detail": self.detail, "bytes": self.bytes}
        plain |= {"attributes": self.attributes, "left_out": self.left_out}
        shown = {
            key: value
            for key, value in plain.items()
            if value not in ("", None, {}) and (key, value) != ("left_out", 0)
        }
        return {**shown, "members": [m.document() for m in self.members]} if self.members else shown

    def lines(self, depth: int = 0) -> Iterator[tuple[str, str, str]]:
        """Indented name, kind and detail of each node, in order."""
        size = f", {in_bytes(self.bytes)}" if self.bytes is not None else ""
        yield "  " * depth + self.name, self.kind, (self.detail + size).removeprefix(", ")
        for key, value in self.attributes.items():
            yield "  " * (depth + 1) + "@" + key, "attribute", value
        for member in self.members:
            yield from member.lines(depth + 1)
        if self.left_out:
            yield "  " * (depth + 1) + "...", "", f"{self.left_out} more"


class _Budget:
    """How many more nodes may be shown."""

    def __init__(self) -> None:
        self.left = MOST_NODES

    def shown(self, depth: int, count: int) -> int:
        """How many of so many members a parent at that depth may show."""
        allowed = max(0, min(count, WIDEST, self.left)) if depth < DEEPEST else 0
        self.left -= allowed
        return allowed


def printable(text: object, limit: int = LONGEST_TEXT) -> str:
    """Text for one line of a terminal: what would steer it is written as an escape, and what is too long is cut."""
    text = str(text)
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


def in_bytes(count: int) -> str:
    """A size for people: "812 B", "3.4 MiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def outline_hdf5(path: Path) -> Node:
    """The tree of an HDF5 file.

    Raises:
        InputError: it is damaged.
    """
    try:
        with hdf5.opened(path) as file:
            node = Node("/", "group", bytes=path.stat().st_size, attributes=_attributes(file))
            _fill_group(node, file, 0, _Budget(), {file["/"]})
            return node
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as HDF5 ({words(error)})", expected="a whole HDF5 file") from None


def _fill_group(node: Node, group: h5py.Group, depth: int, budget: _Budget, seen: set[Any]) -> None:
    count = len(group)
    allowed = budget.shown(depth, count)
    node.left_out = count - allowed
    for name in itertools.islice(group, allowed):
        node.members.append(_hdf5_node(str(name), group, depth + 1, budget, seen))


def _hdf5_node(name: str, parent: h5py.Group, depth: int, budget: _Budget, seen: set[Any]) -> Node:
    shown = printable(name)
    try:
        link = parent.get(name, getlink=True)
    except (TypeError, OSError, RuntimeError, KeyError) as error:  # a kind of link that h5py does not know
        return Node(shown, "link", f"not followed ({printable(error)})")
    if isinstance(link, h5py.ExternalLink):
        return Node(shown, "link", f"into another file ({printable(link.filename)}), not followed")
    if isinstance(link, h5py.SoftLink):
        return Node(shown, "link", f"to {printable(link.path)}, not followed")
    try:
        found = parent[name]
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        return Node(shown, "unreadable", printable(error))
    if isinstance(found, h5py.Dataset):
        return _dataset_node(shown, found)
    if not isinstance(found, h5py.Group):
        return Node(shown, "named type")
    if found in seen:
        return Node(shown, "group", "the same as one above")
    seen.add(found)
    node = Node(shown, "group", attributes=_attributes(found))
    _fill_group(node, found, depth, budget, seen)
    return node


def _dataset_node(name: str, dataset: h5py.Dataset) -> Node:
    shape = "" if dataset.shape is None else list(dataset.shape)
    detail = printable(f"{_type_name(dataset)}{shape}") + (f", {dataset.compression}" if dataset.compression else "")
    if dataset.is_virtual or dataset.external:
        return Node(name, "dataset", detail + ", its data lie in other files, not followed")
    return Node(name, "dataset", detail, dataset.id.get_storage_size(), _attributes(dataset))


def _type_name(dataset: h5py.Dataset) -> str:
    try:
        return str(dataset.dtype)
    except TypeError:
        return "values of a type that NumPy does not have"


def _attributes(node: h5py.Group | h5py.Dataset) -> dict[str, str]:
    """A node's short attributes as text; long ones are named with their size."""
    found = {}
    for name in itertools.islice(node.attrs, _MOST_ATTRIBUTES):
        try:
            found[printable(name)] = _attribute(node, str(name))
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            found[printable(name)] = f"unreadable ({printable(error)})"
    if len(node.attrs) > len(found):
        found["..."] = f"{len(node.attrs) - len(found)} more"
    return found


def _attribute(node: h5py.Group | h5py.Dataset, name: str) -> str:
    stored = node.attrs.get_id(name)
    if stored.get_storage_size() > _LARGEST_ATTRIBUTE:
        return f"{stored.dtype}{list(stored.shape)}, not shown"
    value: Any = node.attrs[name]
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return printable(value.decode("utf-8", "replace") if isinstance(value, bytes) else value)


def outline_document(name: str, value: Any) -> Node:
    """The tree of a JSON or YAML document."""
    return _value_node(name, value, 0, _Budget())


def _value_node(name: str, value: Any, depth: int, budget: _Budget) -> Node:
    name = printable(name)
    if isinstance(value, Mapping | list):
        node = Node(name, "mapping" if isinstance(value, Mapping) else "list", f"{len(value)} items")
        allowed = budget.shown(depth, len(value))
        node.left_out = len(value) - allowed
        items: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, Mapping) else enumerate(value)
        node.members = [_value_node(str(k), v, depth + 1, budget) for k, v in itertools.islice(items, allowed)]
        return node
    kind = "truth" if isinstance(value, bool) else "number" if isinstance(value, int | float) else "text"
    return Node(name, "null" if value is None else kind, "" if value is None else printable(value))


def read_document(path: Path) -> tuple[str, Any] | None:
    """What a file holds as ("json" | "json lines" | "yaml", value), or None when it is none of them.

    Of JSON lines the value is the list of the first `WIDEST` ones. YAML counts only as a mapping or a list: any text
    is YAML of the plainest kind.

    Raises:
        InputError: it begins as JSON, and is damaged or too large to read.
    """
    with path.open("rb") as stream:
        head = stream.read(4096)
    if b"\0" in head or not head.strip():
        return None
    if head.lstrip()[:1] not in (b"{", b"["):
        return _read_yaml(path)
    size = path.stat().st_size
    if size > LARGEST_JSON:
        if found := _read_lines(path):
            return found
        raise InputError(f"{path} is JSON of {in_bytes(size)}", expected=f"at most {in_bytes(LARGEST_JSON)}")
    try:
        return "json", json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        found = _read_lines(path) or _read_yaml(path)
        if found:
            return found
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else printable(error)
        raise InputError(f"{path} begins as JSON and cannot be read ({problem})", expected="a whole file") from None


def _read_lines(path: Path) -> tuple[str, Any] | None:
    """The first objects of a file of JSON lines, or None when it is none."""
    found = []
    with path.open("rb") as stream:
        while len(found) < WIDEST and (line := stream.readline(_LONGEST_LINE)):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):
                return None
            if not isinstance(value, dict):
                return None
            found.append(value)
    return ("json lines", found) if found else None


def _read_yaml(path: Path) -> tuple[str, Any] | None:
    if path.stat().st_size > LARGEST_YAML:
        return None
    try:
        text = path.read_text(encoding="utf-8")
        if _deepest(text) > _DEEPEST_YAML:  # seconds, before the parser gives up
            return None
        value = parse(text)
    except ValueError:
        return None
    return ("yaml", value) if isinstance(value, dict | list) and value else None


def _deepest(text: str) -> int:
    """How deep brackets nest, as far as counting them tells."""
    steps = ({"[": 1, "{": 1, "]": -1, "}": -1}.get(c, 0) for c in text)
    return max(itertools.accumulate(steps), default=0)


def outline_folder(path: Path) -> Node:
    """The tree of a folder's files; of a zarr store, its groups and arrays."""
    return _folder_node(path, path.name or str(path), 0, _Budget())


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr store (format 2 or 3)."""
    return any((path / mark).is_file() for mark in ZARR_MARKS)


def _folder_node(path: Path, name: str, depth: int, budget: _Budget) -> Node:
    name = printable(name)
    try:
        if is_zarr(path) and (array := _zarr_array(path)):
            return Node(name, "array", array)
        with os.scandir(path) as listing:
            entries = sorted(itertools.islice(listing, _MOST_LISTED), key=lambda entry: entry.name)
    except OSError as error:
        return Node(name, "unreadable", printable(error.strerror))
    node = Node(name, "zarr group" if is_zarr(path) else "folder")
    entries = [entry for entry in entries if node.kind == "folder" or entry.name not in (*ZARR_MARKS, ".zattrs")]
    allowed = budget.shown(depth, len(entries))
    node.left_out = len(entries) - allowed
    node.members = [_entry_node(entry, depth + 1, budget) for entry in entries[:allowed]]
    if len(entries) >= _MOST_LISTED - len(ZARR_MARKS):
        node.detail = f"{_MOST_LISTED} members or more"
    return node


def _entry_node(entry: os.DirEntry[str], depth: int, budget: _Budget) -> Node:
    if entry.is_symlink():
        return Node(printable(entry.name), "link", "not followed")
    if entry.is_dir(follow_symlinks=False):
        return _folder_node(Path(entry.path), entry.name, depth, budget)
    if entry.is_file(follow_symlinks=False):
        return Node(printable(entry.name), "file", bytes=entry.stat(follow_symlinks=False).st_size)
    return Node(printable(entry.name), "special file", "not opened")


def _zarr_array(path: Path) -> str | None:
    """Type and shape of a zarr array, or None when this is a group."""
    for mark, kind in (("zarr.json", "data_type"), (".zarray", "dtype")):
        file = path / mark
        if not file.is_file() or file.is_symlink() or file.stat().st_size > _LONGEST_LINE:
            continue
        try:
            document = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            return f"{mark} cannot be read"
        if isinstance(document, dict) and "shape" in document:
            return printable(f"{document.get(kind)}{document['shape']}")
    return None
