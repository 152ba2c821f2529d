"""ROS 2 messages as rows of numbers.

Messages are read by the definitions that come with `rosbags`, never by those in the bag: `rosbags` would make Python
code of them and run it. A bag that defines one of these types otherwise is refused.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from vla_cli.episode import UnusableError
from vla_cli.readers.ros_storage import Topic, missing, shown, unpacked

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
JOINT_STATE, STRING = "sensor_msgs/msg/JointState", "std_msgs/msg/String"
_TRAJECTORY = "trajectory_msgs/msg/JointTrajectory"
_LARGEST_DEFINITION = 2**16

_POSE_NAMES = ("x", "y", "z", "qx", "qy", "qz", "qw")
_POSE = {"units": "m", "rotation": "quaternion-xyzw", "quaternion_sign": "as-recorded", "gripper": "none"}
_TWIST_NAMES = ("vx", "vy", "vz", "wx", "wy", "wz")
_TWIST = {"units": "m/s, rad/s", "gripper": "none", "mode": "velocity"}


def decode(data: bytes | memoryview, kind: str) -> Any:
    """A message from its CDR bytes, whose arrays are views of them.

    Raises:
        Exception: of `rosbags`' own, where the bytes do not fit the type.
    """
    return _typestore().deserialize_cdr(memoryview(unpacked(data)), kind)


@cache
def _typestore() -> Any:
    try:
        from rosbags.typesys import Stores, get_typestore
    except ImportError:
        raise missing("rosbags") from None
    return get_typestore(Stores.ROS2_JAZZY)


def require_rosbags() -> None:
    """Raise MissingDependency where `rosbags` is not installed."""
    _typestore()


def check_definition(topic: Topic) -> None:
    """Compare a bag's definition of a type with ROS's own.

    Raises:
        UnusableError: they have other fields.
    """
    if not topic.definition.strip() or topic.language != "ros2msg":
        return
    if len(topic.definition) > _LARGEST_DEFINITION:
        raise UnusableError(f"its definition of {topic.type} has {len(topic.definition)} characters")
    for name in _defined(topic.definition, topic.type):
        raise UnusableError(f"it defines {shown(name)} otherwise than ROS 2 does, so {topic.type} cannot be read")


@cache
def _defined(definition: str, kind: str) -> tuple[str, ...]:
    """The types that a definition text gives other fields than ROS does."""
    from rosbags.typesys import get_types_from_msg

    own = _typestore().fielddefs
    try:
        found = get_types_from_msg(definition, kind)
    except Exception:  # a parser's own; what it cannot read is not what ROS has
        return (kind,)
    return tuple(name for name, (_, fields) in found.items() if name in own and list(own[name][1]) != list(fields))


@dataclass
class Vector:
    """A finished row of numbers over time.

    Attributes:
        suffix: what it adds to the stream's name; "" for the main one.
        values: [T, D].
        attributes: conventions that the type states, and names.
    """

    suffix: str
    values: np.ndarray
    attributes: dict[str, Any] = field(default_factory=dict)


class Rows:
    """One row a message.

    Args:
        row: message -> numbers.
        names: of the columns; empty when the type has none.
        dtype: of the values; each number of the type fits in it exactly.
        facts: conventions that the type states.
        framed: whether positions are given in the header's frame.
    """

    def __init__(
        self,
        row: Callable[[Any], Sequence[float]],
        names: Sequence[str] = (),
        dtype: str = "f8",
        facts: dict[str, Any] | None = None,
        framed: bool = False,
    ) -> None:
        self.row, self.names, self.dtype, self.facts, self.framed = row, list(names), dtype, facts or {}, framed
        self.numbers, self.width, self.frames = array("d"), -1, set[tuple[str, str]]()

    def add(self, message: Any) -> None:
        """Take a message.

        Raises:
            ValueError: it does not go with the ones before.
        """
        row = self.row(message)
        if self.width < 0:
            self.width = len(row)
        if len(row) != self.width or not len(row):
            raise ValueError(f"has {len(row)} numbers, the first one has {self.width}")
        if self.framed:
            self.frames.add((message.header.frame_id, getattr(message, "child_frame_id", "")))
            if len(self.frames) > 1:
                parts = " and ".join(sorted(shown("/".join(frame)) for frame in self.frames))
                raise ValueError(f"is in another frame than those before ({parts})")
        self.numbers.extend(map(float, row))

    def vectors(self, notes: list[str], label: str) -> list[Vector]:
        """What was taken."""
        values = np.frombuffer(self.numbers, np.float64).reshape(-1, self.width).astype(self.dtype)
        frame = next(iter(self.frames), ("", ""))[0]
        attributes = {**({"names": self.names} if self.names else {}), **self.facts}
        return [Vector("", values, {**attributes, **({"frame": shown(frame)} if frame else {})})]


class Joints:
    """JointState (and one-point JointTrajectory) messages, each joint in its own column, whatever order they come in.

    Args:
        names: message -> joint names.
        source: message -> what has `position`, `velocity` and `effort` (or their plurals).
        fields: those three.
    """

    MEANING = ("position", "velocity", "effort")
    UNITS = ("rad or m", "rad/s or m/s", "N m or N")

    def __init__(self, names: str, source: Callable[[Any], Any], fields: Sequence[str]) -> None:
        self.names_field, self.source, self.fields = names, source, fields
        self.names: list[str] | None = None
        self.columns = [array("d") for _ in fields]
        self.present = [0] * len(fields)
        self.taken, self.width, self.extra = 0, 0, dict[str, None]()

    def add(self, message: Any) -> None:
        """Take a message.

        Raises:
            ValueError: joints are missing, named twice, or have no value.
        """
        names, source = list(getattr(message, self.names_field)), self.source(message)
        if self.names is None:
            self._begin(names, source)
        order = None if names == self.names else self._order(names)
        for which, column in enumerate(self.columns):
            values = getattr(source, self.fields[which])
            if len(values) == 0:
                continue
            if len(values) != (len(names) or self.width):
                raise ValueError(f"has {len(values)} {self.fields[which]} for {len(names) or self.width} joints")
            column.extend((values if order is None else values[order]).tolist())
            self.present[which] += 1
        self.taken += 1

    def _begin(self, names: list[str], source: Any) -> None:
        if len(set(names)) != len(names):
            raise ValueError("names a joint twice")
        self.names = names
        self.width = len(names) or max(len(getattr(source, one)) for one in self.fields)

    def _order(self, names: list[str]) -> list[int]:
        where = {name: index for index, name in enumerate(names)}
        if lacking := [name for name in self.names or [] if name not in where]:
            raise ValueError(f"has no joint {', '.join(map(shown, lacking[:5]))}, which the first one has")
        if not self.names or len(where) != len(names):
            raise ValueError("names joints otherwise than the first one")
        self.extra.update(dict.fromkeys(name for name in names if name not in self.names))
        return [where[name] for name in self.names]

    def vectors(self, notes: list[str], label: str) -> list[Vector]:
        """Position, or what there is in its place, and the others under their own names.

        Raises:
            ValueError: no quantity is in every message.
        """
        if self.extra:
            more = ", ".join(map(shown, list(self.extra)[:5]))
            notes.append(f"{label} has joints in some messages only, which are left out: {more}")
        whole = [which for which, times in enumerate(self.present) if times == self.taken]
        for which, times in enumerate(self.present):
            if 0 < times < self.taken:
                notes.append(f"{label} has {self.fields[which]} in {times} of {self.taken} messages: it is left out")
        if not whole or not self.width:
            raise ValueError("have no position, velocity or effort throughout")
        return [v for n, which in enumerate(whole) if (v := self._vector(which, not n, notes, label)) is not None]

    def _vector(self, which: int, is_main: bool, notes: list[str], label: str) -> Vector | None:
        values = np.frombuffer(self.columns[which], np.float64).reshape(-1, self.width).copy()
        bad = int(np.sum(~np.isfinite(values).all(axis=1)))
        if bad and not is_main:  # what a driver writes that does not measure it
            notes.append(f"{label} has {self.fields[which]} that are no numbers in {bad} messages: it is left out")
            return None
        facts: dict[str, Any] = {"names": [shown(name, 200) for name in self.names]} if self.names else {}
        facts |= {"units": self.UNITS[which], "rotation": "joints", **({"mode": "velocity"} if which == 1 else {})}
        return Vector("" if is_main else f".{self.MEANING[which]}", values, facts)


def _one_point(message: Any) -> Any:
    if len(message.points) != 1:
        raise ValueError(f"has {len(message.points)} points; only trajectories of one can be read")
    return message.points[0]


def _pose(position: Any, rotation: Any) -> tuple[float, ...]:
    return (position.x, position.y, position.z, rotation.x, rotation.y, rotation.z, rotation.w)


def _twist(twist: Any) -> tuple[float, ...]:
    a, b = twist.linear, twist.angular
    return (a.x, a.y, a.z, b.x, b.y, b.z)


def _plain(message: Any) -> tuple[float, ...]:
    return (message.data,)


def _list(message: Any) -> Any:
    return message.data[message.layout.data_offset :]


VECTORS: dict[str, Callable[[], Rows | Joints]] = {
    JOINT_STATE: lambda: Joints("name", lambda m: m, ("position", "velocity", "effort")),
    _TRAJECTORY: lambda: Joints("joint_names", _one_point, ("positions", "velocities", "effort")),
    "geometry_msgs/msg/PoseStamped": lambda: Rows(
        lambda m: _pose(m.pose.position, m.pose.orientation), _POSE_NAMES, facts=_POSE, framed=True
    ),
    "geometry_msgs/msg/Pose": lambda: Rows(lambda m: _pose(m.position, m.orientation), _POSE_NAMES, facts=_POSE),
    "geometry_msgs/msg/TransformStamped": lambda: Rows(
        lambda m: _pose(m.transform.translation, m.transform.rotation), _POSE_NAMES, facts=_POSE, framed=True
    ),
    "geometry_msgs/msg/Twist": lambda: Rows(_twist, _TWIST_NAMES, facts=_TWIST),
    "geometry_msgs/msg/TwistStamped": lambda: Rows(lambda m: _twist(m.twist), _TWIST_NAMES, facts=_TWIST, framed=True),
    "std_msgs/msg/Float32": lambda: Rows(_plain, dtype="f4"),
    "std_msgs/msg/Float32MultiArray": lambda: Rows(_list, dtype="f4"),
    "std_msgs/msg/Float64MultiArray": lambda: Rows(_list),
    **{f"std_msgs/msg/{kind}": lambda: Rows(_plain) for kind in ("Float64", "Bool", "Int8", "Int16", "Int32")},
    **{f"std_msgs/msg/{kind}": lambda: Rows(_plain) for kind in ("UInt8", "UInt16", "UInt32")},
}
"""Type to what collects its messages. 64-bit integers are not here: a float64 does not hold them all."""
