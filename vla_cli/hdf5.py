"""Typed, careful access to HDF5: what is asked for is there and of the right kind, or a ValueError names it.

A file from elsewhere may hold links into other files, or data kept in other files; both would let a recording read
what its sender was never given, so they are refused.
"""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np

LARGEST_ARRAY = 16 * 2**30


def names(parent: h5py.Group) -> list[str]:
    """Names of a group's members, in the file's own order."""
    return [str(name) for name in parent]


def member(parent: h5py.Group, name: str) -> Any:
    """The group or dataset called `name`.

    Raises:
        ValueError: there is none, or it is a link into another file.
    """
    if name not in parent:
        raise ValueError(f"{parent.name} has no '{name}'")
    if isinstance(parent.get(name, getlink=True), h5py.ExternalLink):
        raise ValueError(f"{parent.name}/{name} is a link into another file, which is not followed")
    return parent[name]


def group(parent: h5py.Group, name: str) -> h5py.Group:
    """The group called `name`.

    Raises:
        ValueError: there is none, or it is something else.
    """
    found = member(parent, name)
    if not isinstance(found, h5py.Group):
        raise ValueError(f"{parent.name}/{name} is not a group")
    return found


def dataset(parent: h5py.Group, name: str) -> h5py.Dataset:
    """The dataset called `name`, unread.

    Raises:
        ValueError: there is none, it is something else, its data lie in another file, or it is too large to load.
    """
    found = member(parent, name)
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{parent.name}/{name} is not a dataset")
    if found.is_virtual or found.external:
        raise ValueError(f"{found.name} keeps its data in another file, which is not followed")
    if found.nbytes > LARGEST_ARRAY:
        raise ValueError(f"{found.name} would take {found.nbytes / 2**30:.0f} GiB of memory")
    return found


def array(parent: h5py.Group, name: str) -> np.ndarray:
    """The whole of the dataset called `name`.

    Raises:
        ValueError: as for `dataset`.
        OSError: its bytes are damaged.
    """
    return np.asarray(dataset(parent, name)[()])


def text(node: h5py.Group | h5py.Dataset, key: str, default: str | None = None) -> str:
    """The attribute `key` as text (bytes are taken for UTF-8), or `default` when there is none.

    Raises:
        ValueError: there is none and no default.
    """
    if key not in node.attrs:
        if default is None:
            raise ValueError(f"{node.name} has no attribute '{key}'")
        return default
    value: Any = node.attrs[key]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def number(node: h5py.Group | h5py.Dataset, key: str, default: float) -> float:
    """The attribute `key` as a number, or `default` when there is none.

    Raises:
        ValueError: it is no number.
    """
    value: Any = node.attrs.get(key, default)
    return float(value)
