"""What an action is, made another: absolute targets, changes against the state, or the next state itself.

    absolute    a[t] = s[t] + d[t]      rotations: turned about the state's fixed axes (robosuite's OSC_POSE), or about
    delta       d[t] = a[t] - s[t]      its own where the action's `frame` says so (end-effector)
    next-state  a[t] = s[t + 1]         the last repeated (UMI)

Rotations are composed, never subtracted; grippers stay as they are. What is needed of the conventions and nobody has
stated is asked for and not guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.spatial.transform import Rotation

from vla_cli.conventions import KEYS, UNKNOWN
from vla_cli.episode import Stream, UnusableError
from vla_cli.errors import ConfigError
from vla_cli.synchrony.dimensions import (
    Parts,
    in_own_frame,
    knows_gripper,
    label,
    names_of,
    parts_of,
    stated,
    unit_tokens,
)
from vla_cli.synchrony.rotations import from_rotation, to_rotation

Actions = Literal["as-recorded", "absolute", "delta", "next-state"]
CHOICES: tuple[str, ...] = ("as-recorded", "absolute", "delta", "next-state")
SCALES = (1.0, 100.0, 255.0)
"""Values of a gripper that is open all the way: shares, percent, eight bits."""
SCALE_ERROR = 0.05  # of a scale: a sensor of [0, 1] may be a little below 0
_SET = "vla collect-ingest SOURCE --out EPISODES --overwrite --set"


@dataclass(frozen=True)
class Base:
    """The state that an action stream is a change of, in the order of the action's dimensions.

    Attributes:
        plain: [T, P], for `Parts.plain` of the action.
        rotations: one for each of `Parts.rotations`, T rotations each.
    """

    plain: np.ndarray
    rotations: list[Rotation]


def convert_actions(actions: Sequence[Stream], states: Sequence[Stream], wanted: str) -> tuple[list[Stream], list[str]]:
    """Actions of another mode, on the same clock.

    Args:
        actions: action streams, values [T, D] on the control clock.
        states: state streams on the same ticks.
        wanted: one of `CHOICES`.

    Returns:
        The action streams with their new conventions, and notes.

    Raises:
        ConfigError: a convention that is needed is unknown, or the action is none that can be converted.
        UnusableError: there is no state that the actions can be changes of.
    """
    if wanted == "as-recorded":
        return list(actions), []
    if wanted == "next-state":
        return _next_states(states), ["the actions are the states of the next step; the recorded actions are not used"]
    found, notes = [], []
    for action in actions:
        if not _is_movable(action) or stated(action, "mode") == wanted:
            found.append(action)
            continue
        check_actions(action, wanted)
        base = base_of(action, states)
        parts = parts_of(action)
        into = to_delta if wanted == "delta" else to_absolute
        try:
            values = into(np.asarray(action.values, np.float64), base, parts, own_frame=in_own_frame(action))
        except ValueError as error:
            raise UnusableError(f"{label(action)}: {error}, so that it is not made {wanted}") from None
        found.append(replace(action, values=values, attributes={**action.attributes, "mode": wanted}))
        notes.append(f"{label(action)}: made {wanted} from {stated(action, 'mode')}, against the state")
    return found, notes


def to_delta(absolute: np.ndarray, base: Base, parts: Parts, *, own_frame: bool = False) -> np.ndarray:
    """Absolute actions [T, D] as changes of the state [T, D]; the inverse of `to_absolute`.

    Args:
        absolute: targets.
        base: the state at the same ticks.
        parts: the dimensions of the actions.
        own_frame: express changes in the frame that the state's rotation gives and not in that which stands still.

    Raises:
        ValueError: a row means no rotation.
    """
    changes = np.array(absolute, np.float64)
    plain = list(parts.plain)
    changes[:, plain] = absolute[:, plain] - base.plain
    for block, state in zip(parts.blocks, base.rotations, strict=True):
        target = to_rotation(absolute[:, block], parts.kind, degrees=parts.degrees)
        turned = state.inv() * target if own_frame else target * state.inv()
        changes[:, block] = from_rotation(turned, parts.kind, near=_still(block, parts, changes), degrees=parts.degrees)
        before = _position_before(block, parts)
        if own_frame and before:
            changes[:, before] = state.inv().apply(changes[:, before])
    return changes


def to_absolute(changes: np.ndarray, base: Base, parts: Parts, *, own_frame: bool = False) -> np.ndarray:
    """Changes of the state [T, D] as absolute actions [T, D]; the inverse of `to_delta`.

    Args:
        changes: against the state.
        base, parts, own_frame: as for `to_delta`.

    Raises:
        ValueError: a row means no rotation.
    """
    absolute = np.array(changes, np.float64)
    for block, state in zip(parts.blocks, base.rotations, strict=True):
        turn = to_rotation(changes[:, block], parts.kind, degrees=parts.degrees)
        target = state * turn if own_frame else turn * state
        near = from_rotation(state, parts.kind, degrees=parts.degrees)
        absolute[:, block] = from_rotation(target, parts.kind, near=near, degrees=parts.degrees)
        before = _position_before(block, parts)
        if own_frame and before:
            absolute[:, before] = state.apply(changes[:, before])
    plain = list(parts.plain)
    absolute[:, plain] += base.plain
    return absolute


def base_of(action: Stream, states: Sequence[Stream]) -> Base:
    """The state that an action is a change of: the one state stream, or all of them in order, with the same dimensions.

    Of several such, the one whose name or dimension names are the action's.

    Raises:
        UnusableError: there is none, or several.
        ConfigError: its units or rotation contradict the action's, or are unknown.
    """
    parts = parts_of(action)
    shape = (len(parts.plain), len(parts.rotations))
    candidates = [[state] for state in states] + ([list(states)] if len(states) > 1 else [])
    fits = [group for group in candidates if _shape(group) == shape]
    if len(fits) > 1:
        fits = [group for group in fits if len(group) == 1] or fits
        fits = [group for group in fits if _is_named_alike(action, group)] or fits
    if not fits:
        _check_states(action, states)
    if len(fits) != 1:
        raise UnusableError(
            f"{label(action)} needs the state it is a change of, and {len(fits) or 'no'} state streams have its "
            f"{shape[0]} positions and {shape[1]} rotations"
        )
    group = fits[0]
    _check_units(action, group)
    plain = [np.asarray(state.values, np.float64)[:, list(parts_of(state).plain)] for state in group]
    rotations = []
    for state in group:
        own = parts_of(state)
        for block in own.blocks:
            try:
                rotations.append(to_rotation(state.values[:, block], own.kind, degrees=own.degrees))
            except ValueError as error:
                raise UnusableError(f"{label(state)}: {error}") from None
    return Base(np.concatenate(plain, axis=1), rotations)


def gripper_ranges(streams: Iterable[Stream]) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each gripper: by "role/stream", to be taken over all episodes (see `close_high`)."""
    found = {}
    for stream in streams:
        columns = list(parts_of(stream).grippers) if stream.role in ("state", "action") else []
        if columns and stated(stream, "gripper") == "open-high":
            found[f"{stream.role}/{stream.name}"] = _range(stream, columns)
    return found


def close_high(stream: Stream, ranges: Mapping[str, tuple[float, float]]) -> tuple[Stream, list[str]]:
    """A stream whose gripper is low when open and high when closed, as the embedded base has it, and a note.

    One that is high when open is mirrored within its range: [0, 1] becomes 1 - v, [-1, 1] becomes -v, [0, 100] becomes
    100 - v (see `SCALES`). Widths and joints are left: they are measures and not commands.

    Args:
        stream: a vector stream.
        ranges: from `gripper_ranges` over all episodes, so that an episode in which the gripper never moves is mirrored
            like the others; without an entry, the stream's own values tell.

    Raises:
        ConfigError: the stream has a gripper and nobody has stated which way it opens.
        UnusableError: other episodes show which dimension the gripper is, and this one does not.
    """
    check_gripper(stream)
    columns, key = list(parts_of(stream).grippers), f"{stream.role}/{stream.name}"
    if stated(stream, "gripper") != "open-high":
        return stream, []
    if not columns and key in ranges:
        raise UnusableError(f"{_unseen_gripper(stream)}, as in other episodes, so that it is not mirrored like theirs")
    if not columns:
        return stream, []
    total = _mirror(*ranges.get(key, _range(stream, columns)))
    values = np.array(stream.values)
    values[:, columns] = total - values[:, columns]
    how = f"{total:g} - v" if total else "-v"
    note = f"{label(stream)}: its gripper is mirrored ({how}), so that it is high when closed"
    return replace(stream, values=values, attributes={**stream.attributes, "gripper": "open-low"}), [note]


def _unseen_gripper(stream: Stream) -> str:
    return (
        f"{label(stream)} does not show which of its {stream.values.shape[1]} dimensions is the gripper: none is named "
        "so or has two values"
    )


def _range(stream: Stream, columns: list[int]) -> tuple[float, float]:
    values = stream.values[:, columns]
    return float(np.min(values)), float(np.max(values))


def _mirror(low: float, high: float) -> float:
    """What a gripper of that range is subtracted from; its own two ends change places where no scale is known."""
    scale = next((one for one in SCALES if high <= (1 + SCALE_ERROR) * one), None)
    if scale is None:
        return low + high
    if low < -SCALE_ERROR * scale:
        return 0.0
    return scale if scale == 1.0 or high > scale / 2 else low + high


def check_gripper(stream: Stream) -> None:
    """Refuse to make the gripper of a stream another while nobody has stated which way it opens.

    Args:
        stream: a vector stream, or its header (values [0, D]).

    Raises:
        ConfigError: it is not stated.
    """
    if stated(stream, "gripper") == UNKNOWN and (parts_of(stream).grippers or stream.role == "action"):
        raise ConfigError(
            f"--gripper normalise: nobody has stated whether the gripper of {label(stream)} is high or low when open",
            expected="a stated convention `gripper`",
            hint=f"{_SET} {stream.name}.gripper=open-high (or open-low, width, joint, none)",
        )


def check_actions(action: Stream, wanted: str) -> None:
    """Refuse to make an action another while what is needed of its conventions is unknown.

    Args:
        action: an action stream, or its header (values [0, D]).
        wanted: one of `CHOICES`.

    Raises:
        ConfigError: something is not stated, or the action is none that can be converted.
        UnusableError: its gripper, though stated, does not show in this episode.
    """
    if wanted in ("absolute", "delta") and _is_movable(action) and stated(action, "mode") != wanted:
        _check_stated(action, wanted)


def _next_states(states: Sequence[Stream]) -> list[Stream]:
    if not states:
        raise UnusableError("it has no state, so that its actions cannot be the next state")
    return [
        replace(
            state,
            role="action",
            values=np.concatenate([state.values[1:], state.values[-1:]]),
            attributes={**state.attributes, "mode": "absolute"},
        )
        for state in states
    ]


def _is_movable(action: Stream) -> bool:
    """Whether any dimension is something else than a gripper."""
    return len(parts_of(action).grippers) < action.values.shape[1]


def _check_stated(action: Stream, wanted: str) -> None:
    option = f"--actions {wanted}"
    if stated(action, "mode") == "velocity":
        raise ConfigError(
            f"{option}: {label(action)} is a velocity",
            expected="absolute targets or changes against the state",
            hint="--actions next-state, or --actions as-recorded",
        )
    unknown = [key for key in ("mode", "rotation", "units") if stated(action, key) == UNKNOWN]
    unknown += ["gripper"] if stated(action, "gripper") == UNKNOWN and not knows_gripper(action) else []
    if unknown:
        values = {"mode": "delta", "rotation": "axis-angle", "units": '"m, rad"', "gripper": "open-high"}
        hints = " ".join(f"--set {action.name}.{key}={values[key]}" for key in unknown)
        raise ConfigError(
            f"{option} needs to know what {label(action)} is, and its {', '.join(unknown)} "
            f"{'is' if len(unknown) == 1 else 'are'} unknown",
            expected=f"stated conventions: {'; '.join(_values(key) for key in unknown)}",
            hint=f"{_SET.removesuffix(' --set')} {hints}",
        )
    if not knows_gripper(action):
        if len(action) == 0:
            return  # a header: the steps will show it
        raise UnusableError(_unseen_gripper(action) + f", so that it is not made {wanted}")
    notes = parts_of(action).notes
    if notes:
        raise ConfigError(f"{option}: {notes[0]}", expected="an action whose rotation can be composed")


def _values(key: str) -> str:
    return f"{key} {', '.join(KEYS[key][1]) or '(any text)'}"


def _check_units(action: Stream, group: list[Stream]) -> None:
    theirs = {unit for state in group for unit in unit_tokens(state)}
    mine = unit_tokens(action)
    if not mine or not theirs or not (mine <= theirs or theirs <= mine):
        names = ", ".join(state.name for state in group)
        units = "; ".join(stated(state, "units") for state in group)
        raise ConfigError(
            f"{label(action)} is in '{stated(action, 'units')}' and its state ({names}) in '{units}': the one "
            "cannot be added to the other",
            expected="the same units",
            hint=f'{_SET} {group[0].name}.units="m, rad", if that is what they are',
        )


def _check_states(action: Stream, states: Sequence[Stream]) -> None:
    """Say which conventions of the states are unknown, without which the action's dimensions are not found in them."""
    unknown = [
        f"{state.name}.{key}" for state in states for key in ("rotation", "gripper") if stated(state, key) == UNKNOWN
    ]
    if unknown:
        raise ConfigError(
            f"{label(action)} needs the state it is a change of, and nobody has stated {', '.join(unknown)}",
            expected="a state with the positions and rotations of the action",
            hint=" ".join([_SET.removesuffix(" --set"), *(f"--set {one}=..." for one in unknown)]),
        )


def _shape(group: list[Stream]) -> tuple[int, int]:
    parts = [parts_of(state) for state in group]
    return sum(len(one.plain) for one in parts), sum(len(one.rotations) for one in parts)


def _is_named_alike(action: Stream, group: list[Stream]) -> bool:
    state = group[0]
    mine = [names_of(action)[index] for index in parts_of(action).plain]
    theirs = [names_of(state)[index] for index in parts_of(state).plain]
    bare = [name.removeprefix("delta_").removeprefix("target_") for name in mine]
    same = bare == theirs or mine == [f"d{name}" for name in theirs]
    return same or state.name.rstrip("s") == action.name.rstrip("s")


def _position_before(block: slice, parts: Parts) -> list[int]:
    """The three dimensions before a rotation, if they are its position."""
    found = [block.start + offset for offset in (-3, -2, -1)]
    return found if set(found) <= set(parts.plain) else []


def _still(block: slice, parts: Parts, like: np.ndarray) -> np.ndarray:
    """Rows of no rotation [T, width]: of what means one change, the numbers nearest to none are taken."""
    none = from_rotation(Rotation.identity(1), parts.kind, degrees=parts.degrees)
    return np.repeat(none, len(like), axis=0)
