"""What numbers and pictures mean: orientation, channel order, units, frame, rotation, gripper, and what an action is.

Each stream of an episode says each of these that applies to its role. What a log does not say is "unknown": a guess
that turns out wrong (an upside-down camera, a gripper that opens where it should close) is found by nobody until the
robot moves. `vla collect-ingest --set` states what the user knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vla_cli.errors import ConfigError

UNKNOWN = "unknown"

KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "orientation": (("image",), ("upright", "upside-down", "rotated-180")),
    "channels": (("image",), ("rgb", "bgr")),
    "units": (("state", "action"), ()),
    "frame": (("state", "action"), ()),
    "rotation": (
        ("state", "action"),
        ("none", "axis-angle", "euler-xyz", "quaternion-xyzw", "quaternion-wxyz", "rotation-6d", "joints"),
    ),
    "quaternion_sign": (("state", "action"), ("none", "continuous", "w-positive", "as-recorded")),
    "gripper": (("state", "action"), ("none", "open-high", "open-low", "width", "joint")),
    "mode": (("action",), ("absolute", "delta", "velocity")),
}
"""Key to the roles it applies to and the values it may have (none listed: any text, such as "m, rad" or "base").

orientation: upside-down has its rows bottom-up (OpenGL's order), rotated-180 both. gripper: whether its number is high
or low when it is open, or is a width in metres. mode: what an action is, against the state."""


def complete(role: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A stream's attributes with "unknown" for every convention of its role that the log does not state."""
    return {**attributes, **{key: attributes.get(key) or UNKNOWN for key in keys_of(role)}}


def keys_of(role: str) -> list[str]:
    """The conventions that apply to a role."""
    return [key for key, (roles, _) in KEYS.items() if role in roles]


def unknowns(role: str, attributes: Mapping[str, Any]) -> list[str]:
    """The conventions of a role that nobody has stated."""
    return [key for key in keys_of(role) if attributes.get(key, UNKNOWN) == UNKNOWN]


def parse_settings(settings: Sequence[str]) -> list[tuple[str, str, str]]:
    """`--set` as (stream, key, value): "KEY=VALUE" for every stream to which it applies, or "STREAM.KEY=VALUE".

    Raises:
        ConfigError: one is of another form, or its key or value does not exist.
    """
    found = []
    for text in settings:
        left, equals, value = text.partition("=")
        stream, _, key = left.rpartition(".")
        if not equals or key not in KEYS or not value:
            raise ConfigError(
                f"--set '{text}' is not understood",
                expected=f"KEY=VALUE or STREAM.KEY=VALUE with a key of: {', '.join(KEYS)}",
                hint="--set front.orientation=upside-down",
            )
        allowed = KEYS[key][1]
        if allowed and value not in allowed:
            raise ConfigError(f"--set '{text}' has the value '{value}'", expected=f"one of: {', '.join(allowed)}")
        found.append((stream, key, value))
    return found


def stated(role: str, name: str, settings: Sequence[tuple[str, str, str]]) -> dict[str, str]:
    """What settings state of one stream; the later one wins."""
    return {key: value for stream, key, value in settings if stream in ("", name) and role in KEYS[key][0]}
