"""Small healthy ROS 2 bags, written by rosbags itself; also the pieces that the reader's own tests are made of."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from builders import motion
from PIL import Image
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

TYPES = get_typestore(Stores.ROS2_JAZZY)
START = 1_700_000_000 * 10**9  # ns
STEP = 50_000_000  # ns: 20 Hz
JOINTS = ["shoulder", "elbow", "gripper"]
Row = tuple[str, int, str, Any]  # topic, log time, type, message


def write(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    """Write a folder of MCAP bags whose topics go without saying, and give it."""
    for index in range(episodes):
        make_bag(root / f"bags/bag_{index}", rows(index, steps))
    return root / "bags"


def write_sqlite(root: Path, episodes: int = 2, steps: int = 20) -> Path:
    """The same in sqlite3."""
    for index in range(episodes):
        make_bag(root / f"bags/bag_{index}", rows(index, steps), StoragePlugin.SQLITE3)
    return root / "bags"


def make_bag(
    path: Path,
    messages: Sequence[Row],
    plugin: StoragePlugin = StoragePlugin.MCAP,
    compression: CompressionMode = CompressionMode.NONE,
) -> Path:
    """Messages as a bag, in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = Writer(path, version=9, storage_plugin=plugin)
    if compression != CompressionMode.NONE:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, log_time, kind, message in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=TYPES)
            writer.write(connections[topic], log_time, TYPES.serialize_cdr(message, kind))
    return path


def storage_file(bag: Path) -> Path:
    """A bag's one storage."""
    return next(file for file in sorted(bag.iterdir()) if file.name != "metadata.yaml")


def rows(index: int = 0, steps: int = 20) -> list[Row]:
    """One demonstration: a JPEG camera, a raw one, joints, a command, and an instruction."""
    parts = motion(steps, seed=index)
    found: list[Row] = [("/instruction", START, "std_msgs/msg/String", text("put the cup on the shelf"))]
    for step in range(steps):
        log_time = START + step * STEP + 3_000_000
        found += [
            ("/front/image_raw", log_time, "sensor_msgs/msg/Image", image(parts["camera"][step], step)),
            ("/wrist/compressed", log_time + 1, "sensor_msgs/msg/CompressedImage", jpeg(parts["camera"][step], step)),
            ("/joint_states", log_time + 2, "sensor_msgs/msg/JointState", joints(parts["position"][step], step)),
            ("/arm/command", log_time + 3, "std_msgs/msg/Float64MultiArray", numbers(parts["actions"][step])),
        ]
    return found


def new(kind: str, **values: Any) -> Any:
    """A message of a type, such as `new("std_msgs/msg/Bool", data=True)`."""
    return TYPES.types[kind](**values)


def header(nanoseconds: int | None, frame: str = "") -> Any:
    """A header; None for a stamp of zero."""
    stamp = divmod(nanoseconds or 0, 10**9)
    return new(
        "std_msgs/msg/Header", stamp=new("builtin_interfaces/msg/Time", sec=stamp[0], nanosec=stamp[1]), frame_id=frame
    )


def at(step: int) -> int:
    """When a step is stamped."""
    return START + step * STEP


def text(said: str) -> Any:
    return new("std_msgs/msg/String", data=said)


def image(picture: np.ndarray, tick: int = 0, encoding: str = "rgb8", pad: int = 0, **changes: Any) -> Any:
    """A raw picture [H, W, 3] of RGB, with `pad` bytes at the end of each row."""
    planes = {"rgb8": [0, 1, 2], "bgr8": [2, 1, 0], "rgba8": [0, 1, 2, 0], "bgra8": [2, 1, 0, 0], "mono8": [0]}[
        encoding
    ]
    pixels = picture[:, :, planes].reshape(len(picture), -1)
    padded = np.concatenate([pixels, np.full((len(picture), pad), 7, np.uint8)], axis=1)
    values = {
        "header": header(at(tick)),
        "height": picture.shape[0],
        "width": picture.shape[1],
        "encoding": encoding,
        "is_bigendian": 1,
        "step": padded.shape[1],
        "data": padded.reshape(-1),
        **changes,
    }
    return new("sensor_msgs/msg/Image", **values)


def packed(picture: np.ndarray, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, quality=95)
    return buffer.getvalue()


def jpeg(picture: np.ndarray, step: int = 0, kind: str = "JPEG", said: str = "jpeg") -> Any:
    data = np.frombuffer(packed(picture, kind), np.uint8)
    return new("sensor_msgs/msg/CompressedImage", header=header(at(step)), format=said, data=data)


def joints(position: Sequence[float] | np.ndarray, step: int = 0, names: Sequence[str] = JOINTS, **changes: Any) -> Any:
    values: dict[str, Any] = {
        "header": header(at(step)),
        "name": list(names),
        "position": np.asarray(position, np.float64),
        "velocity": np.asarray(position, np.float64) * 10,
        "effort": np.zeros(0),
        **changes,
    }
    return new("sensor_msgs/msg/JointState", **values)


def numbers(values: Sequence[float] | np.ndarray, kind: str = "Float64MultiArray", skip: int = 0) -> Any:
    layout = new("std_msgs/msg/MultiArrayLayout", dim=[], data_offset=skip)
    dtype = np.float32 if kind == "Float32MultiArray" else np.float64
    return new(f"std_msgs/msg/{kind}", layout=layout, data=np.asarray(values, dtype))


def pose(values: Sequence[float]) -> Any:
    x, y, z, *rotation = (float(value) for value in values)
    point = new("geometry_msgs/msg/Point", x=x, y=y, z=z)
    return new("geometry_msgs/msg/Pose", position=point, orientation=quaternion(rotation))


def quaternion(values: Sequence[float]) -> Any:
    return new("geometry_msgs/msg/Quaternion", **dict(zip("xyzw", map(float, values), strict=True)))


def vector3(values: Sequence[float]) -> Any:
    return new("geometry_msgs/msg/Vector3", **dict(zip("xyz", map(float, values), strict=True)))


def twist(values: Sequence[float]) -> Any:
    return new("geometry_msgs/msg/Twist", linear=vector3(values[:3]), angular=vector3(values[3:]))
