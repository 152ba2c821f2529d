"""What an environment shows in one step, taken apart: pictures, the robot's numbers, and what is neither."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vla_cli.episode import Role, UnusableError
from vla_cli.errors import ConfigError


def flatten(observation: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries and tuples by dotted names; an observation that is neither is called "observation".

    Raises:
        ConfigError: two parts would have one name.
    """
    if isinstance(observation, tuple):
        observation = {str(index): part for index, part in enumerate(observation)}
    if not isinstance(observation, Mapping):
        return {prefix or "observation": observation}
    found: dict[str, Any] = {}
    for key, part in observation.items():
        own = str(key).replace("/", ".")
        parts = flatten(part, f"{prefix}.{own}" if prefix else own)
        if twice := found.keys() & parts.keys():
            raise ConfigError(f"The observation has two parts that would be called '{min(twice)}'")
        found |= parts
    return found


def roles_of(
    flat: Mapping[str, Any], cameras: Sequence[str] | None = None, state: Sequence[str] | None = None
) -> dict[str, Role]:
    """What each part of an observation is; parts that are neither pictures nor numbers are left out.

    Raises:
        ConfigError: a key that was asked for is not there or is of another kind.
    """
    _check_keys(flat, cameras or (), is_picture, "a uint8 [H, W, 3] picture")
    _check_keys(flat, state or (), is_vector, "a number or a vector")
    found: dict[str, Role] = {}
    for key, value in flat.items():
        if key in (cameras or ()) or (cameras is None and is_picture(value)):
            found[key] = "image"
        elif is_vector(value):
            floating = np.asarray(value).dtype.kind == "f"
            found[key] = "state" if key in (state or ()) or (state is None and floating) else "other"
    return found


def _check_keys(flat: Mapping[str, Any], keys: Sequence[str], fits: Callable[[Any], bool], wanted: str) -> None:
    for key in keys:
        if key not in flat:
            raise ConfigError(f"The observation has no '{key}'", expected=f"one of: {', '.join(flat)}")
        if not fits(flat[key]):
            raise ConfigError(f"The observation's '{key}' is {kind_of(flat[key])}", expected=wanted)


def is_picture(value: Any) -> bool:
    """Whether a value is one uint8 RGB picture [H, W, 3]."""
    return isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3 and value.shape[2] == 3


def is_vector(value: Any) -> bool:
    """Whether a value is a number or a vector of numbers."""
    if not isinstance(value, np.ndarray | np.generic | int | float | list):
        return False
    array = np.asarray(value)
    return array.dtype.kind in "fiub" and array.ndim <= 1 and array.size > 0


def kind_of(value: Any) -> str:
    """An array's dtype and shape, or the type of something else."""
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def vector(value: Any, label: str) -> np.ndarray:
    """A copy of numbers as [D]: float16 and float32 as float32, all others as float64.

    Raises:
        UnusableError: it is neither a number nor a vector.
    """
    if not is_vector(value):
        raise UnusableError(f"{label} is {kind_of(value)}, neither a number nor a vector")
    array = np.asarray(value).reshape(-1)
    return array.astype(np.float32 if array.dtype in (np.float16, np.float32) else np.float64)
