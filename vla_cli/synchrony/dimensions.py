"""Which dimensions of a vector are a gripper, which a rotation, and which plain numbers (positions, joints).

A gripper is what the stream's conventions say it has, or a dimension whose name says so. A rotation stands where its
names say so, or where the width leaves one choice: 7 = 3 of position and 4 of quaternion, 6 = 3 and 3 angles. Two poses
of 3 and 3, each with a gripper behind it, are told by their width and the grippers' values: two at most. What cannot be
told is plain numbers, with a note.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from vla_cli.conventions import UNKNOWN
from vla_cli.episode import Stream
from vla_cli.synchrony.rotations import ANGLES, WIDTHS

_ROTATES = re.compile(
    r"(?<![a-z])d?(r[xyz]|q[xyzw1-4]|roll|pitch|yaw)(?![a-z])|quat|euler|axis_?angle|orient|(?<![a-z])(rot|ori)(?![a-z])"
)
_UNITS = re.compile(r"(?<![\w/])(m|cm|mm|px|rad|deg)(?:et(?:re|er)s?|ians|rees)?(?![\w/])|(normali[sz]ed)")
_OWN_FRAME = re.compile(r"(?<![a-z])(ee|eef|tcp|tool|hand|gripper|body|own|end[-_ ]?effector)(?![a-z])")


@dataclass(frozen=True)
class Parts:
    """The dimensions of one vector stream.

    Attributes:
        plain: indices of positions, joints and whatever else numbers can be subtracted from.
        grippers: indices that are held, never blended or differenced.
        rotations: the first index of each rotation; it has `WIDTHS[kind]` columns.
        kind: of the rotations, a key of `rotations.WIDTHS`; "" when there are none.
        degrees: angles are in degrees.
        notes: what could not be told, plain sentences.
    """

    plain: tuple[int, ...]
    grippers: tuple[int, ...] = ()
    rotations: tuple[int, ...] = ()
    kind: str = ""
    degrees: bool = False
    notes: tuple[str, ...] = ()

    @property
    def blocks(self) -> list[slice]:
        """The columns of each rotation."""
        return [slice(start, start + WIDTHS[self.kind]) for start in self.rotations]


def stated(stream: Stream, key: str) -> str:
    """What a stream states of a convention, or "unknown"."""
    return str(stream.attributes.get(key) or UNKNOWN)


def label(stream: Stream) -> str:
    """A stream as sentences name it."""
    return f"{stream.role} stream '{stream.name}'"


def names_of(stream: Stream) -> list[str]:
    """One name a dimension: the log's own, or stream[i]."""
    width, own = stream.values.shape[1], stream.attributes.get("names") or []
    return [str(name) for name in own] if len(own) == width else [f"{stream.name}[{index}]" for index in range(width)]


def unit_tokens(stream: Stream) -> set[str]:
    """The units of length and angle that a stream states: "m", "rad", "deg", "normalised"..."""
    found = _UNITS.findall(stated(stream, "units").lower())
    return {unit or "normalised" for unit, _ in found}


def in_own_frame(stream: Stream) -> bool:
    """Whether its numbers are in the frame of the moving hand and not in one that stands still."""
    return bool(_OWN_FRAME.search(stated(stream, "frame").lower()))


def parts_of(stream: Stream) -> Parts:
    """Tell the dimensions of a vector stream [T, D] apart."""
    grippers, notes = _grippers(stream)
    rest = [index for index in range(stream.values.shape[1]) if index not in grippers]
    kind = stated(stream, "rotation")
    if kind not in WIDTHS:
        return Parts(tuple(rest), grippers, notes=tuple(notes))
    units = unit_tokens(stream)
    if kind in ANGLES and not units & {"rad", "deg"}:
        hint = f'vla collect-ingest SOURCE --out EPISODES --set {stream.name}.units="m, rad" if it is in radians'
        notes.append(
            f"{label(stream)}: its rotation ({kind}) is taken as plain numbers, for its units are "
            f"'{stated(stream, 'units')}' and not radians or degrees ({hint})"
        )
        return Parts(tuple(rest), grippers, notes=tuple(notes))
    starts = _rotations(names_of(stream), grippers, WIDTHS[kind])
    if not starts:
        notes.append(
            f"{label(stream)}: its rotation ({kind}) cannot be found among {stream.values.shape[1]} dimensions, "
            "so that they are all taken as plain numbers"
        )
        return Parts(tuple(rest), grippers, notes=tuple(notes))
    rotated = {start + column for start in starts for column in range(WIDTHS[kind])}
    plain = tuple(index for index in rest if index not in rotated)
    return Parts(plain, grippers, tuple(starts), kind, "deg" in units, tuple(notes))


def knows_gripper(stream: Stream) -> bool:
    """Whether it is known which dimensions are a gripper, be it none."""
    return stated(stream, "gripper") == "none" or bool(parts_of(stream).grippers)


def _grippers(stream: Stream) -> tuple[tuple[int, ...], list[str]]:
    convention, width = stated(stream, "gripper"), stream.values.shape[1]
    if convention == "none":
        return (), []
    own = len(stream.attributes.get("names") or []) == width
    named = tuple(index for index, name in enumerate(names_of(stream)) if "gripper" in name.lower())
    turns = stated(stream, "rotation") in WIDTHS
    # A stream such as "gripper_pose" is where the gripper is, not how far it is open.
    if named and (own or not turns):
        return named, []
    if convention == UNKNOWN:
        return (), []
    if width <= 2:
        return tuple(range(width)), []
    if turns and width - 1 in (WIDTHS[stated(stream, "rotation")], 3 + WIDTHS[stated(stream, "rotation")]):
        return (width - 1,), []
    kinds = [len(np.unique(column)) for column in np.asarray(stream.values).T]
    if hands := _of_two_hands(kinds, WIDTHS[stated(stream, "rotation")]) if turns else ():
        return hands, []
    two = tuple(index for index, count in enumerate(kinds) if count == 2)
    if two:
        return two, []
    return (), [f"{label(stream)}: no dimension is named a gripper, though its gripper is {convention}"]


def _of_two_hands(kinds: list[int], columns: int) -> tuple[int, ...]:
    """The grippers of two poses of position and rotation: each behind its pose, one of which may stay still.

    Args:
        kinds: how many values each dimension has.
        columns: of a rotation.

    Returns:
        None of them where the width is another, or the values leave open which dimensions they are.
    """
    hand = 3 + columns + 1
    if len(kinds) != 2 * hand:
        return ()
    layouts = ((hand - 1, 2 * hand - 1), (2 * hand - 2, 2 * hand - 1))
    fit = [layout for layout in layouts if all(0 < kinds[index] <= 2 for index in layout)]
    switches = {index for index, count in enumerate(kinds) if count == 2}
    return layouts[0] if fit == [layouts[0]] and switches <= set(layouts[0]) else ()


def _rotations(names: list[str], grippers: tuple[int, ...], columns: int) -> list[int]:
    """The first index of each rotation: by the names, or by the widths between the grippers."""
    named = [index for index, name in enumerate(names) if index not in grippers and _ROTATES.search(name.lower())]
    runs = _runs(named)
    if named and len(named) < len(names) - len(grippers) and all(len(run) % columns == 0 for run in runs):
        return [start for run in runs for start in range(run[0], run[-1] + 1, columns)]
    runs = _runs([index for index in range(len(names)) if index not in grippers])
    if all(len(run) == columns for run in runs):
        return [run[0] for run in runs]
    return [run[3] for run in runs] if all(len(run) == 3 + columns for run in runs) else []


def _runs(indices: list[int]) -> list[list[int]]:
    """Indices in order, apart wherever one is left out."""
    found: list[list[int]] = []
    for index in indices:
        if found and index == found[-1][-1] + 1:
            found[-1].append(index)
        else:
            found.append([index])
    return found
