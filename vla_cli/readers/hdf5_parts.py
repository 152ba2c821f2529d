"""Parts of an HDF5 file as parts of an episode: pictures, vectors, attributes and JSON, all within bounds."""

from __future__ import annotations

import json
from typing import Any

import h5py
import numpy as np

from vla_cli import hdf5
from vla_cli.conventions import KEYS
from vla_cli.episode import Stream
from vla_cli.frames import BLOCK

HIGHEST_RATE = 10_000.0
MOST_ATTRIBUTES = 1000
LONGEST_ATTRIBUTE = 2**16
LARGEST_BLOCK = 512 * 2**20
LARGEST_JSON = 4 * 2**20
DEEPEST_JSON = 32
LONGEST_NOTE = 20  # names in one sentence


class Allowance:
    """Reads the vectors of one episode, as many as fit: each may be small, and there may be many."""

    def __init__(self, limit: int = hdf5.LARGEST_TABLE) -> None:
        self.left = limit

    def table(self, parent: h5py.Group, name: str) -> np.ndarray:
        """See `hdf5.table`.

        Raises:
            ValueError: likewise, or all vectors together are too large.
        """
        self.left -= hdf5.size(hdf5.dataset(parent, name))
        if self.left < 0:
            raise ValueError(f"its vectors are too large together, from {parent.name}/{name} on")
        return hdf5.table(parent, name)


def is_pictures(found: h5py.Dataset) -> bool:
    """Whether a dataset is plain pictures, uint8 [T, H, W, 3].

    Raises:
        ValueError: it is, and one is too large.
    """
    bytes_ = hdf5.kind(found) == "u" and found.dtype.itemsize == 1
    plain = bytes_ and len(found.shape) == 4 and found.shape[-1] == 3 and 0 not in found.shape
    if plain:
        check_block(found.shape, str(found.name))
    return plain


def check_block(shape: tuple[int, ...], name: str) -> None:
    """Refuse pictures [T, H, W, 3] of which a block would not fit into memory.

    Raises:
        ValueError: they are too large.
    """
    if shape[1] * shape[2] * 3 * BLOCK > LARGEST_BLOCK:
        raise ValueError(f"{name} has pictures of {shape[2]}x{shape[1]} pixels, too large")


def described(found: h5py.Dataset) -> str:
    """A dataset's type and shape in words."""
    return f"{'compound' if hdf5.kind(found) == 'V' else found.dtype}{list(found.shape)}"


def why_no_vector(found: h5py.Dataset) -> str:
    """Why a dataset is no vector over time; empty when it is one."""
    shape = found.shape
    if len(shape) == 4 and shape[1] == 3:
        return f"it is {described(found)}, channels first; uint8 [T, H, W, 3] is expected"
    if len(shape) not in (1, 2):
        return f"it is {described(found)}, neither a uint8 [T, H, W, 3] picture nor a [T, D] vector"
    if hdf5.kind(found) not in "fiub":
        return f"it is {described(found)}, which is no number"
    return f"it is {described(found)}, which is empty" if 0 in shape else ""


def own_attributes(found: h5py.Dataset, stream: Stream, notes: list[str]) -> dict[str, Any]:
    """What a dataset's own attributes state of its stream; what makes no sense is noted and left out."""
    facts: dict[str, Any] = {}
    if len(found.attrs) > MOST_ATTRIBUTES:
        raise ValueError(f"{found.name} has {len(found.attrs)} attributes")
    for key in sorted(found.attrs):
        try:
            value = hdf5.attribute(found, key)
            if isinstance(value, str) and value.startswith("["):
                value = parse_json(value, f"the attribute '{key}' of {stream.name}")
            why_not = _why_not(key, value, stream)
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            why_not = str(error)
        if why_not:
            notes.append(f"the attribute '{key}' of {stream.name} is left out: {why_not}")
        else:
            facts[key] = value
    return facts


def _why_not(key: str, value: Any, stream: Stream) -> str:
    flat = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float) for item in flat):
        return "it is neither text nor a number nor a list of them"
    if not all(np.isfinite(item) for item in flat if isinstance(item, float)):
        return "it is not finite"
    if key == "rate_hz" and not (isinstance(value, int | float) and 0 < value <= HIGHEST_RATE):
        return f"{value!r} is no rate"
    if len(str(value)) > LONGEST_ATTRIBUTE:
        return "it is too long"
    width = stream.values.shape[-1]
    if key == "names" and not (len(flat) == width and all(isinstance(item, str) for item in flat)):
        return f"it has not {width} names"
    allowed = KEYS[key][1] if key in KEYS else ()
    return f"{value!r} is not one of: {', '.join(allowed)}" if allowed and value not in allowed else ""


def listed(names: list[str]) -> str:
    """Names for a sentence, cut after the first of very many."""
    more = len(names) - LONGEST_NOTE
    return ", ".join(names[:LONGEST_NOTE]) + (f" and {more} more" if more > 0 else "")


def parse_json(text: str, label: str) -> Any:
    """JSON from somebody else's file: no NaN, not huge, not deep.

    Raises:
        ValueError: it is none, or is more than can be of use.
    """
    if len(text) > LARGEST_JSON:
        raise ValueError(f"{label} has {len(text)} letters")
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{label} is not valid JSON ({str(error)[:200]})") from None
    level, depth = [document], 0
    while level:
        depth += 1
        inner = [value for value in level if isinstance(value, dict | list)]
        level = [item for value in inner for item in (value.values() if isinstance(value, dict) else value)]
        if depth > DEEPEST_JSON:
            raise ValueError(f"{label} is more than {DEEPEST_JSON} levels deep")
    return document


def _no_constant(name: str) -> Any:
    raise ValueError(f"it holds {name}")
