import io
import shutil
import sqlite3
import struct
import tracemalloc
from dataclasses import replace as changed
from pathlib import Path

import numpy as np
import pytest
from builders import contents, motion
from logs import rosbag as logs
from logs.rosbag import START, at, header, image, joints, jpeg, make_bag, new, numbers, rows, storage_file
from PIL import Image
from reading import only_one, read_whole, streams_of
from rosbags.rosbag2 import CompressionMode, StoragePlugin

from vla_cli.episode import Skipped, load_episode, problems, save_episode
from vla_cli.errors import ConfigError, InputError, VlaError
from vla_cli.frames import PictureFrames, blocks_of
from vla_cli.pictures import decode_picture
from vla_cli.readers import Options, list_entries, opened, read_all, read_entry
from vla_cli.readers.ros_mcap import MAGIC
from vla_cli.readers.rosbag import READER

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
JOINT_STATE, ARRAY, STRING = "sensor_msgs/msg/JointState", "std_msgs/msg/Float64MultiArray", "std_msgs/msg/String"
PLUGINS = [StoragePlugin.MCAP, StoragePlugin.SQLITE3]


def only(path: Path):
    return only_one(READER, path)


def streams(path: Path) -> dict:
    episode, _ = only(path)
    assert problems(episode) == []
    return streams_of(episode)


def reason(path: Path) -> str:
    """Why the only bag of a log is not used."""
    items, _ = read_whole(READER, path)
    assert len(items) == 1 and isinstance(items[0], Skipped), items
    assert "\n" not in items[0].reason and len(items[0].reason) < 1000
    return items[0].reason


def with_map(path: Path, topics: str, tmp_path: Path):
    """The first episode, read with a YAML of topics."""
    file = tmp_path / "topics.yaml"
    file.write_text(topics)
    item = next(read_all(READER, path, lambda text: None, Options(topics=file)))
    assert not isinstance(item, Skipped), item.reason
    return item


def refused(path: Path, error: type[VlaError], topics: str | None = None) -> str:
    options = Options()
    if topics is not None:
        options = Options(topics=path.parent / "topics.yaml")
        (path.parent / "topics.yaml").write_text(topics)
    with pytest.raises(error) as caught:
        list(read_all(READER, path, lambda text: None, options))
    assert caught.type is error and "\n" not in str(caught.value) and len(str(caught.value)) < 1500
    return str(caught.value)


def altered(found: list, topic: str, alter) -> list:
    """Messages with those of one topic replaced: `alter(step, row)` gives a row or None."""
    steps: dict[str, int] = {}
    result = []
    for row in found:
        step = steps[row[0]] = steps.get(row[0], -1) + 1
        row = alter(step, row) if row[0] == topic else row
        result += [row] if row else []
    return result


def extra(topic: str, kind: str, messages: list) -> list:
    """A topic of its own beside a demonstration."""
    return [*rows(), *((topic, at(step), kind, message) for step, message in enumerate(messages))]


# What is read is what was written


@pytest.mark.parametrize("plugin", PLUGINS)
def test_numbers_and_pictures_are_those_written(tmp_path: Path, plugin) -> None:
    bag = make_bag(tmp_path / "bag", rows(steps=20), plugin)
    assert "metadata.yaml" in READER.recognise(bag)
    episode, said = only(bag)
    parts, found = motion(20), streams_of(episode)
    assert problems(episode) == [] and episode.notes == []
    assert episode.name == "bag" and episode.format == "rosbag" and episode.operator == "unknown"
    assert episode.instructions == ["put the cup on the shelf"]
    np.testing.assert_array_equal(found["joint_states"].values, parts["position"])
    np.testing.assert_array_equal(found["joint_states.velocity"].values, parts["position"] * 10)
    np.testing.assert_array_equal(found["arm.command"].values, parts["actions"])
    np.testing.assert_array_equal(found["front.image_raw"].values, parts["camera"])
    jpegs = [decode_picture(logs.packed(picture), "") for picture in parts["camera"]]
    np.testing.assert_array_equal(found["wrist.compressed"].values, jpegs)
    assert [stream.role for _, stream in sorted(found.items())] == ["action", "image", "state", "other", "image"]
    assert found["joint_states"].attributes["names"] == logs.JOINTS
    assert found["joint_states"].attributes["rotation"] == "joints"
    assert "names" not in found["arm.command"].attributes
    assert len(said) == 1 and "No --topics was given" in said[0] and "arm.command: /arm/command" in said[0]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_each_stream_has_its_own_clock_from_the_earliest(tmp_path: Path, plugin) -> None:
    found = streams(make_bag(tmp_path / "bag", rows(steps=5), plugin))
    np.testing.assert_allclose(found["joint_states"].timestamps, np.arange(5) * 0.05, atol=1e-9)
    np.testing.assert_allclose(found["arm.command"].timestamps, np.arange(5) * 0.05 + 0.003000003, atol=1e-12)
    assert found["arm.command"].attributes["clock"] == "log time"
    assert found["joint_states"].attributes["clock"] == "header.stamp"


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize("mode", [CompressionMode.MESSAGE, CompressionMode.FILE])
def test_packed_messages_and_files_read_like_plain_ones(tmp_path: Path, plugin, mode) -> None:
    plain = streams(make_bag(tmp_path / "plain", rows(), plugin))
    packed = streams(make_bag(tmp_path / "packed", rows(), plugin, mode))
    for name, stream in plain.items():
        np.testing.assert_array_equal(packed[name].values, stream.values)
        np.testing.assert_array_equal(packed[name].timestamps, stream.timestamps)


def test_packed_chunks_read_like_plain_ones(tmp_path: Path) -> None:
    plain = streams(make_bag(tmp_path / "plain", rows()))
    packed = streams(make_bag(tmp_path / "packed", rows(), compression=CompressionMode.STORAGE))
    assert b"zstd" in storage_file(tmp_path / "packed").read_bytes()
    for name, stream in plain.items():
        np.testing.assert_array_equal(packed[name].values, stream.values)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_bare_file_reads_like_its_bag_whatever_it_is_called(tmp_path: Path, plugin) -> None:
    bag = make_bag(tmp_path / "bag", rows(), plugin)
    file = shutil.copy(storage_file(bag), tmp_path / "recording.bin")
    assert "bag file" in READER.recognise(file)
    found = streams(file)
    np.testing.assert_array_equal(found["arm.command"].values, motion(20)["actions"])
    assert only(file)[0].name == "recording.bin"


@pytest.mark.parametrize("packing", ["NONE", "LZ4", "ZSTD"])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_chunking": False}, {"use_statistics": False, "repeat_channels": False, "repeat_schemas": False}],
)
def test_files_of_the_mcap_package_read_to_the_last_bit(tmp_path: Path, packing: str, options: dict) -> None:
    from mcap.writer import CompressionType, Writer

    file = tmp_path / "foxglove.mcap"
    with file.open("wb") as stream:
        writer = Writer(stream, compression=CompressionType[packing], chunk_size=2000, **options)
        writer.start(profile="ros2")
        channels: dict[str, int] = {}
        for topic, log_time, kind, message in rows():
            if topic not in channels:
                definition = logs.TYPES.generate_msgdef(kind, ros_version=2)[0]
                schema = writer.register_schema(kind, "ros2msg", definition.encode())
                channels[topic] = writer.register_channel(topic, "cdr", schema)
            writer.add_message(channels[topic], log_time, bytes(logs.TYPES.serialize_cdr(message, kind)), log_time)
        writer.finish()
    found = streams(file)
    np.testing.assert_array_equal(found["arm.command"].values, motion(20)["actions"])
    np.testing.assert_array_equal(found["front.image_raw"].values, motion(20)["camera"])


def test_messages_of_mcap_ros2_support_read_to_the_last_bit(tmp_path: Path) -> None:
    from mcap_ros2.writer import Writer

    parts, file = motion(10), tmp_path / "bag.mcap"
    with file.open("wb") as stream:
        writer = Writer(stream, chunk_size=1000)
        schemas = {
            kind: writer.register_msgdef(kind.replace("/msg/", "/"), logs.TYPES.generate_msgdef(kind, ros_version=2)[0])
            for kind in (JOINT_STATE, COMPRESSED, ARRAY)
        }
        for step in range(10):
            stamp = {"stamp": {"sec": 5, "nanosec": step * 1000}, "frame_id": ""}
            row = {"header": stamp, "name": ["a", "b", "c"], "position": parts["position"][step].tolist()}
            writer.write_message(
                "/joints", schemas[JOINT_STATE], {**row, "velocity": [], "effort": []}, 5 * 10**9 + step
            )
            row = {"header": stamp, "format": "png", "data": logs.packed(parts["camera"][step], "PNG")}
            writer.write_message("/camera", schemas[COMPRESSED], row, 5 * 10**9 + step)
            row = {"layout": {"dim": [], "data_offset": 0}, "data": parts["actions"][step].tolist()}
            writer.write_message("/cmd", schemas[ARRAY], row, 5 * 10**9 + step)
        writer.finish()
    found = streams(file)
    np.testing.assert_array_equal(found["joints"].values, parts["position"])
    np.testing.assert_array_equal(found["cmd"].values, parts["actions"])
    np.testing.assert_array_equal(found["camera"].values, parts["camera"])
    np.testing.assert_allclose(found["joints"].timestamps, np.arange(10) * 1e-6, atol=1e-12)


def test_a_bag_in_several_files_is_one_episode(tmp_path: Path) -> None:
    found = rows(steps=24)
    first, second = make_bag(tmp_path / "a", found[:49]), make_bag(tmp_path / "b", found[49:])
    bag = tmp_path / "bag"
    bag.mkdir()
    for number, part in enumerate((first, second)):
        shutil.copy(storage_file(part), bag / f"bag_{number}.mcap")
    text = (first / "metadata.yaml").read_text()
    # an older recorder lists files with the directory's name
    (bag / "metadata.yaml").write_text(text.replace("- a.mcap", "- bag/bag_0.mcap\n  - bag/bag_1.mcap", 1))
    found = streams(bag)
    np.testing.assert_array_equal(found["joint_states"].values, motion(24)["position"])
    np.testing.assert_array_equal(found["front.image_raw"].values, motion(24)["camera"])
    with opened(READER, bag, Options(), lambda text: None) as log:
        (entry,) = list_entries(log, bag)
    assert [file.name for file in entry.files] == ["metadata.yaml", "bag_0.mcap", "bag_1.mcap"]


# A log of several bags


def test_a_folder_of_bags_keeps_its_names_as_it_grows(tmp_path: Path) -> None:
    folder = logs.write(tmp_path, episodes=2, steps=4)
    shutil.copy(storage_file(folder / "bag_1"), folder / "single.mcap")
    before, _ = read_whole(READER, folder)
    make_bag(folder / "bag_10", rows(3, 4))
    make_bag(folder / "later" / "bag_0", rows(4, 4), StoragePlugin.SQLITE3)
    after, _ = read_whole(READER, folder)
    assert [item.name for item in before] == ["bag_0", "bag_1", "single.mcap"]
    assert [item.name for item in after] == ["bag_0", "bag_1", "bag_10", "later__bag_0", "single.mcap"]
    assert not any(isinstance(item, Skipped) for item in after)


@pytest.mark.parametrize("names", [("a__b", "a/b"), ("a_/b", "a/_b"), ("x.mcap", "x.db3")])
def test_names_differ_whatever_bags_are_called(tmp_path: Path, names: tuple[str, str]) -> None:
    found = rows(steps=2)
    for name, plugin in zip(names, PLUGINS, strict=True):
        if "." in name:
            shutil.copy(storage_file(make_bag(tmp_path / "parts" / name, found, plugin)), tmp_path / name)
        else:
            make_bag(tmp_path / "log" / name, found)
    folder = tmp_path / ("log" if "." not in names[0] else ".")
    items, _ = read_whole(READER, folder)
    assert len({item.name for item in items}) == len(items) >= 2


def test_a_damaged_bag_among_others_is_one_entry(tmp_path: Path) -> None:
    folder = logs.write(tmp_path, episodes=3, steps=4)
    file = storage_file(folder / "bag_0")
    file.write_bytes(file.read_bytes()[:40])
    make_bag(folder / "bag_5", [row for row in rows(steps=4) if row[0] != "/joint_states"])
    items, _ = read_whole(READER, folder)
    assert [type(item).__name__ for item in items] == ["Skipped", "Episode", "Episode", "Skipped"]
    assert "it has no topic /joint_states" in items[3].reason and "/arm/command" in items[3].reason


def test_pieces_without_metadata_are_told(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "demo", rows(steps=3))
    for number in range(2):
        shutil.copy(storage_file(bag), bag / f"demo_{number}.mcap")
    storage_file(bag).unlink()
    (bag / "metadata.yaml").unlink()
    _, said = read_whole(READER, bag)
    assert any("no metadata.yaml" in text and "2 files" in text for text in said)


def test_pictures_stay_readable_while_the_log_is_open(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    for index in range(3):
        make_bag(folder / f"bag_{index}", rows(index, 4), PLUGINS[index % 2], CompressionMode.FILE)
    with opened(READER, folder, Options(), lambda text: None) as log:
        episodes = [read_entry(log, entry) for entry in list_entries(log, folder)]
        for index, episode in enumerate(episodes):
            camera = streams_of(episode)["front.image_raw"]
            np.testing.assert_array_equal(np.asarray(camera.values), motion(4, index)["camera"])


# Message types


def pose_rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(5, 7))


def stamped(kind: str, step: int, frame: str = "base", **values):
    return new(f"geometry_msgs/msg/{kind}", header=header(at(step), frame), **values)


def transform(step: int, row: np.ndarray, child: str = "tool"):
    moved = new("geometry_msgs/msg/Transform", translation=logs.vector3(row[:3]), rotation=logs.quaternion(row[3:]))
    return stamped("TransformStamped", step, child_frame_id=child, transform=moved)


@pytest.mark.parametrize("kind", ["PoseStamped", "Pose", "TransformStamped"])
def test_poses_are_as_recorded(tmp_path: Path, kind: str) -> None:
    values = pose_rows()
    values[2, 3:] *= -1
    made = {
        "PoseStamped": lambda step, row: stamped(kind, step, pose=logs.pose(row)),
        "Pose": lambda step, row: logs.pose(row),
        "TransformStamped": transform,
    }[kind]
    messages = [made(step, row) for step, row in enumerate(values)]
    bag = make_bag(tmp_path / "bag", extra("/ee_pose", f"geometry_msgs/msg/{kind}", messages))
    episode = with_map(
        bag, "{cameras: {c: /front/image_raw}, state: {ee: /ee_pose}, action: {a: /arm/command}}", tmp_path
    )
    stream = streams_of(episode)["ee"]
    np.testing.assert_array_equal(stream.values, values)
    assert stream.role == "state" and stream.attributes["names"] == ["x", "y", "z", "qx", "qy", "qz", "qw"]
    assert stream.attributes["rotation"] == "quaternion-xyzw" and stream.attributes["quaternion_sign"] == "as-recorded"
    assert stream.attributes.get("frame") == (None if kind == "Pose" else "base")


@pytest.mark.parametrize("role", ["state", "action"])
@pytest.mark.parametrize("kind", ["Twist", "TwistStamped"])
def test_twists_are_velocities(tmp_path: Path, kind: str, role: str) -> None:
    values = np.random.default_rng(0).normal(size=(5, 6))
    messages = [logs.twist(row) for row in values]
    if kind == "TwistStamped":
        messages = [stamped(kind, step, twist=twist) for step, twist in enumerate(messages)]
    bag = make_bag(tmp_path / "bag", extra("/velocity", f"geometry_msgs/msg/{kind}", messages))
    other = "action: {a: /arm/command}, " if role == "state" else ""
    topics = f"{{cameras: {{c: /front/image_raw}}, {other}{role}: {{v: /velocity}}}}"
    if role == "action":
        topics = "{cameras: {c: /front/image_raw}, action: {v: /velocity}}"
    stream = streams_of(with_map(bag, topics, tmp_path))["v"]
    np.testing.assert_array_equal(stream.values, values)
    assert stream.attributes["units"] == "m/s, rad/s"
    assert stream.attributes.get("mode") == ("velocity" if role == "action" else None)


@pytest.mark.parametrize(
    ("kind", "value", "dtype"),
    [
        ("Float32", np.float32(0.1), np.float32),
        ("Float64", 0.1, np.float64),
        ("Bool", True, np.float64),
        ("Int32", -(2**31), np.float64),
        ("UInt32", 2**32 - 1, np.float64),
        ("UInt8", 255, np.float64),
    ],
)
def test_plain_numbers(tmp_path: Path, kind: str, value, dtype) -> None:
    kind = f"std_msgs/msg/{kind}"
    bag = make_bag(tmp_path / "bag", extra("/gripper", kind, [new(kind, data=value)] * 5))
    topics = "{cameras: {c: /front/image_raw}, state: {g: /gripper}, action: {a: /arm/command}}"
    stream = streams_of(with_map(bag, topics, tmp_path))["g"]
    assert stream.values.dtype == dtype and stream.values.shape == (5, 1)
    assert (stream.values == dtype(value)).all()


def test_arrays_begin_at_their_offset(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    messages = [numbers(row, "Float32MultiArray", skip=1) for row in values]
    bag = make_bag(tmp_path / "bag", extra("/forces", "std_msgs/msg/Float32MultiArray", messages))
    topics = "{cameras: {c: /front/image_raw}, other: {f: /forces}, action: {a: /arm/command}}"
    stream = streams_of(with_map(bag, topics, tmp_path))["f"]
    assert stream.role == "other" and stream.values.dtype == np.float32
    np.testing.assert_array_equal(stream.values, values[:, 1:])


def trajectory(step: int, names: list[str], points: list[np.ndarray]):
    kind = "trajectory_msgs/msg/JointTrajectoryPoint"
    after = new("builtin_interfaces/msg/Duration", sec=0, nanosec=0)
    empty = np.zeros(0)
    made = [
        new(kind, positions=p, velocities=empty, accelerations=empty, effort=empty, time_from_start=after)
        for p in points
    ]
    return new("trajectory_msgs/msg/JointTrajectory", header=header(at(step)), joint_names=names, points=made)


def test_trajectories_of_one_point_are_joints(tmp_path: Path) -> None:
    kind, values = "trajectory_msgs/msg/JointTrajectory", pose_rows()[:, :2]
    messages = [
        trajectory(step, ["a", "b"], [row]) if step % 2 else trajectory(step, ["b", "a"], [row[::-1].copy()])
        for step, row in enumerate(values)
    ]
    found = [row for row in extra("/joint_cmd", kind, messages) if row[0] != "/arm/command"]
    stream = streams(make_bag(tmp_path / "bag", found))["joint_cmd"]
    np.testing.assert_array_equal(stream.values, values[:, ::-1])
    assert stream.attributes["names"] == ["b", "a"]
    messages[3] = trajectory(3, ["a", "b"], [values[3], values[3]])
    found = [row for row in extra("/joint_cmd", kind, messages) if row[0] != "/arm/command"]
    assert "has 2 points" in reason(make_bag(tmp_path / "two", found))


def test_both_byte_orders_are_read(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag", rows(steps=3), StoragePlugin.SQLITE3)
    with sqlite3.connect(storage_file(bag)) as database:
        key = database.execute("SELECT id FROM topics WHERE name = '/joint_states'").fetchone()[0]
        for row, data in database.execute("SELECT id, data FROM messages WHERE topic_id = ?", (key,)).fetchall():
            message = logs.TYPES.deserialize_cdr(data, JOINT_STATE)
            turned = bytes(logs.TYPES.serialize_cdr(message, JOINT_STATE, little_endian=False))
            database.execute("UPDATE messages SET data = ? WHERE id = ?", (turned, row))
    np.testing.assert_array_equal(streams(bag)["joint_states"].values, motion(3)["position"])


# Joints


def test_joints_that_change_their_order_keep_their_columns(tmp_path: Path) -> None:
    position = motion(20)["position"]

    def turn(step: int, row):
        if step % 3:
            order = [2, 0, 1]
            return (*row[:3], joints(position[step][order], step, [logs.JOINTS[i] for i in order]))
        return row

    found = streams(make_bag(tmp_path / "bag", altered(rows(), "/joint_states", turn)))
    np.testing.assert_array_equal(found["joint_states"].values, position)
    np.testing.assert_array_equal(found["joint_states.velocity"].values, position * 10)


def test_a_missing_joint_is_unusable_and_another_one_is_noted(tmp_path: Path) -> None:
    less = altered(rows(), "/joint_states", lambda s, r: r if s != 7 else (*r[:3], joints([1, 2], 7, logs.JOINTS[:2])))
    assert "message 7 of topic /joint_states has no joint gripper" in reason(make_bag(tmp_path / "less", less))
    names = [*logs.JOINTS, "torso"]
    more = altered(rows(), "/joint_states", lambda s, r: r if s != 7 else (*r[:3], joints([1, 2, 3, 4], 7, names)))
    episode, said = only(make_bag(tmp_path / "more", more))
    assert streams_of(episode)["joint_states"].values.shape == (20, 3)
    assert any("torso" in note for note in episode.notes) and any("torso" in text for text in said)


def test_a_joint_named_twice_or_without_a_value_is_unusable(tmp_path: Path) -> None:
    def change(message):
        return altered(rows(steps=3), "/joint_states", lambda s, r: r if s != 1 else (*r[:3], message))

    twice = change(joints([1, 2, 3], 1, ["elbow", "elbow", "gripper"]))
    assert "joint" in reason(make_bag(tmp_path / "twice", twice))
    without = change(joints([1, 2], 1, velocity=np.zeros(3)))
    assert "has 2 position for 3 joints" in reason(make_bag(tmp_path / "without", without))


def test_velocity_that_is_not_always_there_or_no_number_is_left_out(tmp_path: Path) -> None:
    def change(values):
        def alter(step: int, row):
            row[3].effort = np.full(3, np.nan)
            row[3].velocity = row[3].velocity if step != 4 else values
            return row

        return altered(rows(), "/joint_states", alter)

    episode, said = only(make_bag(tmp_path / "bag", change(np.zeros(0))))
    assert problems(episode) == [] and "joint_states" in streams_of(episode)
    assert not {"joint_states.velocity", "joint_states.effort"} & set(streams_of(episode))
    assert any("velocity in 19 of 20" in note for note in episode.notes)
    assert any("effort that are no numbers" in note for note in episode.notes)
    assert len(said) == 3


def test_a_velocity_command_says_so(tmp_path: Path) -> None:
    def alter(step: int, row):
        return (*row[:2], JOINT_STATE, joints([], step, velocity=np.full(3, float(step))))

    found = altered(rows(), "/arm/command", alter)
    stream = streams(make_bag(tmp_path / "bag", found))["arm.command"]
    np.testing.assert_array_equal(stream.values[:, 0], np.arange(20))
    assert stream.attributes["mode"] == "velocity" and stream.attributes["units"] == "rad/s or m/s"


# Pictures


@pytest.mark.parametrize("pad", [0, 5])
@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8", "bgra8"])
def test_every_encoding_gives_rgb(tmp_path: Path, encoding: str, pad: int) -> None:
    pictures = motion(20)["camera"]
    found = altered(rows(), "/front/image_raw", lambda s, r: (*r[:3], image(pictures[s], s, encoding, pad)))
    stream = streams(make_bag(tmp_path / "bag", found))["front.image_raw"]
    np.testing.assert_array_equal(stream.values, pictures)
    assert stream.attributes["channels"] == "rgb"


def test_png_pictures_are_read(tmp_path: Path) -> None:
    pictures = motion(20)["camera"]
    found = altered(rows(), "/wrist/compressed", lambda s, r: (*r[:3], jpeg(pictures[s], s, "PNG", "png")))
    np.testing.assert_array_equal(streams(make_bag(tmp_path / "bag", found))["wrist.compressed"].values, pictures)


@pytest.mark.parametrize(
    ("said", "channels"), [("jpeg", None), ("rgb8; jpeg compressed bgr8", "rgb"), ("rgb8; jpeg compressed rgb8", None)]
)
def test_channels_are_said_where_the_format_says_them(tmp_path: Path, said: str, channels: str | None) -> None:
    pictures = motion(3)["camera"]
    found = altered(rows(steps=3), "/wrist/compressed", lambda s, r: (*r[:3], jpeg(pictures[s], s, said=said)))
    assert streams(make_bag(tmp_path / "bag", found))["wrist.compressed"].attributes.get("channels") == channels


def test_a_grey_or_otherwise_packed_camera_is_left_out_with_a_note(tmp_path: Path) -> None:
    pictures = motion(20)["camera"]
    grey = altered(rows(), "/front/image_raw", lambda s, r: (*r[:3], image(pictures[s], s, "mono8")))
    episode, said = only(make_bag(tmp_path / "grey", grey))
    assert "front.image_raw" not in streams_of(episode) and "wrist.compressed" in streams_of(episode)
    assert any("mono8" in note for note in episode.notes) and any("mono8" in text for text in said)

    def as_grey(step: int, row):
        buffer = io.BytesIO()
        Image.fromarray(pictures[0, ..., 0]).save(buffer, "JPEG")
        row[3].data = np.frombuffer(buffer.getvalue(), np.uint8)
        return row

    episode, said = only(make_bag(tmp_path / "mono", altered(rows(), "/wrist/compressed", as_grey)))
    assert [stream.name for stream in episode.of_role("image")] == ["front.image_raw"]
    assert any("wrist.compressed" in text and "mode L" in text for text in said)

    def as_webp(step: int, row):
        row[3].data, row[3].format = np.frombuffer(b"RIFF....WEBPVP8 ", np.uint8), "webp"
        return row

    episode, _ = only(make_bag(tmp_path / "webp", altered(rows(), "/wrist/compressed", as_webp)))
    assert any("'webp'" in note for note in episode.notes) and "wrist.compressed" not in streams_of(episode)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 2**32 - 1, "height": 2**32 - 1},
        {"height": 13},
        {"step": 2**32 - 1},
        {"step": 0, "height": 0},
        {"width": 0},
        {"step": 10},
    ],
)
def test_a_picture_that_claims_another_size_is_refused(tmp_path: Path, changes: dict) -> None:
    picture = motion(3)["camera"][0]
    found = altered(rows(steps=3), "/front/image_raw", lambda s, r: (*r[:3], image(picture, s, **changes)))
    assert "message 0 of topic /front/image_raw claims" in reason(make_bag(tmp_path / "bag", found))


def test_a_camera_that_changes_its_size_is_refused(tmp_path: Path) -> None:
    pictures = motion(5)["camera"]
    found = altered(rows(steps=5), "/front/image_raw", lambda s, r: (*r[:3], image(pictures[s][: 12 - s // 4], s)))
    assert "message 4 of topic /front/image_raw is rgb8 11x12, the first one rgb8 12x12" in reason(
        make_bag(tmp_path / "bag", found)
    )


@pytest.mark.parametrize("plugin", PLUGINS)
def test_an_episode_is_saved_and_loaded_again(tmp_path: Path, plugin) -> None:
    bag = make_bag(tmp_path / "bag", rows(), plugin)
    for episode in read_all(READER, bag, lambda text: None):
        assert not isinstance(episode, Skipped)
        assert isinstance(streams_of(episode)["wrist.compressed"].values, PictureFrames)
        save_episode(episode, tmp_path / "episode.h5")
    loaded = streams_of(load_episode(tmp_path / "episode.h5"))
    np.testing.assert_array_equal(np.asarray(loaded["front.image_raw"].values), motion(20)["camera"])
    assert np.asarray(loaded["wrist.compressed"].values).shape == (20, 12, 12, 3)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_memory_does_not_grow_with_the_episode(tmp_path: Path, plugin) -> None:
    peaks = []
    first = altered(
        rows(steps=1), "/front/image_raw", lambda s, r: (*r[:3], image(np.zeros((90, 160, 3), np.uint8), s))
    )
    for steps in (30, 300):
        found = [(topic, START + step, kind, message) for step in range(steps) for topic, _, kind, message in first]
        if plugin is StoragePlugin.MCAP:
            bag = chunked(tmp_path / f"{steps}.mcap", found, 200_000)  # much less than either episode
        else:
            bag = make_bag(tmp_path / f"{steps}", found, plugin)
        read_pictures(bag)  # what is imported and cached once
        tracemalloc.start()
        read_pictures(bag)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0], peaks


def read_pictures(bag: Path) -> None:
    for episode in read_all(READER, bag, lambda text: None):
        assert not isinstance(episode, Skipped)
        for stream in episode.of_role("image"):
            assert sum(len(block) for block in blocks_of(stream.values)) == len(stream)


# Clocks


def shifted(topic: str, when) -> list:
    """A demonstration in which one topic has other header stamps: `when(step)` in ns, or None for zero."""

    def alter(step: int, row):
        row[3].header = header(when(step))
        return row

    return altered(rows(), topic, alter)


def test_a_stamp_of_zero_means_log_time(tmp_path: Path) -> None:
    episode, _ = only(make_bag(tmp_path / "bag", shifted("/joint_states", lambda step: None)))
    stream = streams_of(episode)["joint_states"]
    np.testing.assert_allclose(stream.timestamps, np.arange(20) * 0.05 + 0.003000002, atol=1e-12)
    assert stream.attributes["clock"] == "log time" and episode.notes == []
    episode, _ = only(make_bag(tmp_path / "some", shifted("/joint_states", lambda s: None if s == 3 else at(s))))
    assert any("no header.stamp in 1 of 20" in note for note in episode.notes)


@pytest.mark.parametrize("plugin", PLUGINS)
def test_messages_stored_out_of_order_are_sorted_by_log_time(tmp_path: Path, plugin) -> None:
    found = rows()
    found[9:13], found[13:17] = found[13:17], found[9:13]
    episode, _ = only(make_bag(tmp_path / "bag", found, plugin))
    assert problems(episode) == [] and episode.notes == []
    streams = streams_of(episode)
    np.testing.assert_array_equal(streams["joint_states"].values, motion(20)["position"])
    np.testing.assert_array_equal(streams["front.image_raw"].values, motion(20)["camera"])


def test_stamps_that_go_back_are_noted_and_log_time_is_used(tmp_path: Path) -> None:
    episode, _ = only(make_bag(tmp_path / "bag", shifted("/joint_states", lambda s: at(s if s != 9 else 5))))
    stream = streams_of(episode)["joint_states"]
    assert problems(episode) == [] and stream.attributes["clock"] == "log time"
    assert any("goes back in header.stamp 1 times" in note for note in episode.notes)
    np.testing.assert_array_equal(stream.values, motion(20)["position"])


def test_clocks_with_other_beginnings_fall_back_to_log_time(tmp_path: Path) -> None:
    episode, _ = only(make_bag(tmp_path / "bag", shifted("/front/image_raw", lambda s: 10**9 + s * logs.STEP)))
    assert all(stream.timestamps.max() < 2 for stream in episode.streams)
    assert {stream.attributes["clock"] for stream in episode.streams} == {"log time"}
    assert any("another beginning" in note for note in episode.notes)


def test_clocks_of_computers_that_are_not_set_alike_are_told(tmp_path: Path) -> None:
    late = shifted("/front/image_raw", lambda step: at(step) - 4 * 10**9)
    episode, said = only(make_bag(tmp_path / "bag", late))
    notes = [note for note in episode.notes if "differs by 4.0" in note]
    assert len(notes) == 1 and "/front/image_raw" in notes[0] and any(notes[0] in text for text in said)


# Which topic is which stream


MAP = """
cameras: {front: /front/image_raw}
state: {joints: /joint_states}
action: {action: /arm/command}
text: "wipe the table"
operator: alice
"""


def test_a_yaml_names_the_streams(tmp_path: Path) -> None:
    episode = with_map(make_bag(tmp_path / "bag", rows()), MAP, tmp_path)
    assert {(s.role, s.name) for s in episode.streams} == {
        ("image", "front"),
        ("state", "joints"),
        ("other", "joints.velocity"),
        ("action", "action"),
    }
    assert episode.instructions == ["wipe the table"] and episode.operator == "alice"
    assert any("not read: " in note and "/wrist/compressed" in note for note in episode.notes)


def test_one_topic_may_be_state_and_action(tmp_path: Path) -> None:
    topics = "{cameras: {front: /front/image_raw}, state: {a: /arm/command}, action: {a: /arm/command}}"
    episode = with_map(make_bag(tmp_path / "bag", rows()), topics, tmp_path)
    assert [s.role for s in episode.streams if s.name == "a"] == ["state", "action"]


@pytest.mark.parametrize(
    ("topics", "fragments"),
    [
        ("{camera: {front: /x}}", ["unknown key 'camera'", "cameras, state, action", "instruction"]),
        ("{cameras: /x}", ["cameras is '/x', not a mapping"]),
        ("{cameras: {a/b: /x}}", ["a/b"]),
        ("{cameras: {front: [1]}}", ["front: [1]"]),
        ("{state: {s: /s}, text: 5}", ["text is 5"]),
        ("{state: {s: /s}, text: a, instruction: /b}", ["exclude"]),
        ("{text: a}", ["no topic"]),
        ("[1]", ["list"]),
        ("{a: [", ["not valid YAML"]),
    ],
)
def test_a_yaml_that_cannot_be_used_is_refused(tmp_path: Path, topics: str, fragments: list[str]) -> None:
    message = refused(make_bag(tmp_path / "bag", rows(steps=2)), ConfigError, topics)
    assert all(fragment in message for fragment in fragments), message


def test_a_yaml_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        list(read_all(READER, make_bag(tmp_path / "bag", rows(steps=2)), print, Options(topics=tmp_path / "none.yaml")))


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_topic_that_is_not_there_lists_those_that_are(tmp_path: Path, plugin) -> None:
    bag = make_bag(tmp_path / "bag", rows(), plugin)
    message = refused(bag, InputError, MAP.replace("/joint_states", "/joints"))
    assert "no topic /joints;" in message.replace(".", ";")
    assert "/joint_states (sensor_msgs/msg/JointState, 20 messages, " in message


def test_a_topic_of_another_type_is_refused(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag", rows())
    message = refused(bag, InputError, MAP.replace("{front: /front/image_raw}", "{front: /instruction}"))
    assert "/instruction (std_msgs/msg/String" in message and "cannot be a camera" in message
    message = refused(bag, InputError, MAP.replace('text: "wipe the table"', "instruction: /joint_states"))
    assert "cannot be the instruction" in message


def test_an_ambiguous_bag_asks_for_a_yaml_with_its_own_topics(tmp_path: Path) -> None:
    found = [*rows(), *(("/other/joint_states", at(s), JOINT_STATE, joints([1, 2, 3], s)) for s in range(3))]
    bag = make_bag(tmp_path / "bag", found)
    message = refused(bag, InputError)
    assert "/other/joint_states (sensor_msgs/msg/JointState, 3 messages" in message
    example = message.split("such as: ", 1)[1].split(". Try:", 1)[0]
    episode = with_map(bag, example, tmp_path)  # what is shown can be used as it stands
    assert problems(episode) == [] and episode.instructions


def test_a_bag_without_a_command_asks_for_a_yaml(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag", [row for row in rows() if row[0] != "/arm/command"])
    assert "such as: {cameras: {front.image_raw: /front/image_raw" in refused(bag, InputError)


def test_instructions_are_distinct_and_in_order(tmp_path: Path) -> None:
    said = ["take the cup", "take the cup", " ", "put it down"]
    found = [row for row in rows() if row[0] != "/instruction"]
    found += [("/instruction", START + n, STRING, logs.text(text)) for n, text in enumerate(said)]
    assert only(make_bag(tmp_path / "bag", found))[0].instructions == ["take the cup", "put it down"]


def test_a_mapped_topic_without_messages_is_unusable(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag", rows(), StoragePlugin.SQLITE3)
    with sqlite3.connect(storage_file(bag)) as database:
        database.execute("DELETE FROM messages WHERE topic_id = (SELECT id FROM topics WHERE name = '/arm/command')")
    (tmp_path / "topics.yaml").write_text(MAP)
    (item,) = read_all(READER, bag, lambda text: None, Options(topics=tmp_path / "topics.yaml"))
    assert isinstance(item, Skipped) and "topic /arm/command has no messages" in item.reason


# Recorders that did not end


def chunked(path: Path, found: list, size: int = 2000) -> Path:
    """Messages as an MCAP file of many small chunks."""
    from mcap.writer import Writer

    buffer = io.BytesIO()
    writer = Writer(buffer, chunk_size=size)
    writer.start(profile="ros2")
    channels: dict[str, int] = {}
    for topic, log_time, kind, message in found:
        if topic not in channels:
            schema = writer.register_schema(
                kind, "ros2msg", logs.TYPES.generate_msgdef(kind, ros_version=2)[0].encode()
            )
            channels[topic] = writer.register_channel(topic, "cdr", schema)
        writer.add_message(channels[topic], log_time, bytes(logs.TYPES.serialize_cdr(message, kind)), log_time)
    writer.finish()
    path.write_bytes(buffer.getvalue())
    return path


@pytest.mark.parametrize("zeros", [0, 4096])
def test_an_unfinished_mcap_is_read_as_far_as_it_goes(tmp_path: Path, zeros: int) -> None:
    file = chunked(tmp_path / "bag.mcap", rows(steps=40))
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 6 // 10] + bytes(zeros))
    episode, said = only(file)
    assert problems(episode) == [] and any("cut off" in note for note in episode.notes)
    assert any("cut off" in text for text in said)
    found, parts = streams_of(episode), motion(40)
    count = len(found["joint_states"])
    assert 10 < count < 40
    np.testing.assert_array_equal(found["joint_states"].values, parts["position"][:count])
    np.testing.assert_array_equal(found["front.image_raw"].values, parts["camera"][: len(found["front.image_raw"])])


def test_a_bag_cut_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    whole = chunked(tmp_path / "whole.mcap", rows(steps=6)).read_bytes()
    outcomes = set()
    for length in range(8, len(whole), max(1, len(whole) // 60)):
        (tmp_path / "cut.mcap").write_bytes(whole[:length])
        assert READER.recognise(tmp_path / "cut.mcap")
        try:
            (item,), _ = read_whole(READER, tmp_path / "cut.mcap")
            outcomes.add(type(item).__name__)
        except VlaError as error:
            outcomes.add(type(error).__name__)
    assert outcomes == {"InputError", "Episode"} or outcomes == {"InputError", "Episode", "Skipped"}


def test_what_an_sqlite_recorder_left_beside_its_bag_is_told_and_untouched(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag", rows(), StoragePlugin.SQLITE3)
    file = storage_file(bag)
    database = sqlite3.connect(file)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("INSERT INTO messages (topic_id, timestamp, data) SELECT topic_id, timestamp, data FROM messages")
    database.commit()
    for part in [file, file.with_name(file.name + "-wal")]:
        shutil.copy(part, tmp_path / part.name)  # as if the recorder were killed now
    database.close()
    killed = tmp_path / file.name
    log = tmp_path / "log"
    log.mkdir()
    for name in (killed.name, killed.name + "-wal"):
        shutil.move(tmp_path / name, log / name)
    before = contents(log)
    episode, said = only(log)
    assert any("-wal was left by a recorder" in note for note in episode.notes)
    assert any("-wal was left by a recorder" in text for text in said)
    assert contents(log) == before
    assert len(streams_of(episode)["joint_states"]) == 20


def test_a_bag_is_read_from_where_nothing_can_be_written(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag", rows(), StoragePlugin.SQLITE3).rename(tmp_path / "a?b#c%20")
    before = contents(bag)
    assert len(streams(bag)["joint_states"]) == 20
    assert contents(bag) == before


# What is damaged or means harm


def test_metadata_cannot_lead_out_of_the_bag(tmp_path: Path) -> None:
    outside = storage_file(make_bag(tmp_path / "outside", rows()))
    bag = make_bag(tmp_path / "bag", rows())
    text = (bag / "metadata.yaml").read_text()
    for path in ("../outside/outside.mcap", str(outside), "..\\\\outside\\\\outside.mcap", "..", "/etc/passwd"):
        (bag / "metadata.yaml").write_text(text.replace("- bag.mcap", f"- {path}"))
        assert "which is not there" in refused(bag, InputError)
    (bag / "metadata.yaml").write_text(text)
    storage_file(bag).unlink()
    (bag / "bag.mcap").symlink_to(outside)
    assert "link that leads out of the log" in refused(bag, InputError)


def test_links_out_of_a_folder_are_not_followed(tmp_path: Path) -> None:
    folder = logs.write(tmp_path, episodes=1, steps=3)
    other = make_bag(tmp_path / "other", rows(steps=3))
    (folder / "linked").symlink_to(other)
    (folder / "linked.mcap").symlink_to(storage_file(other))
    (folder / "loop").symlink_to(folder)
    items, _ = read_whole(READER, folder)
    assert [item.name for item in items if item.name == "bag_0"] and len({i.name for i in items}) == len(items)
    assert not any("linked" in item.name for item in items)


@pytest.mark.parametrize("damage", ["[" * 200_000, "a: " * 5, "\x00", "&a [*a, *a]", "relative_file_paths: {}"])
def test_damaged_metadata_is_noted_and_the_files_beside_it_are_read(tmp_path: Path, damage: str) -> None:
    bag = make_bag(tmp_path / "bag", rows())
    (bag / "metadata.yaml").write_text(f"rosbag2_bagfile_information: x\n{damage}")
    episode, _ = only(bag)
    assert any("metadata.yaml cannot be read" in note for note in episode.notes)


def test_a_file_that_metadata_does_not_list_is_told(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag", rows())
    shutil.copy(storage_file(bag), bag / "bag_1.mcap")
    episode, said = only(bag)
    assert any("does not list bag_1.mcap" in note for note in episode.notes)
    assert any("does not list bag_1.mcap" in text for text in said)
    text = (bag / "metadata.yaml").read_text()
    (bag / "metadata.yaml").write_text(text.replace("- bag.mcap", "- bag.mcap\n  - bag_7.mcap", 1))
    assert "lists 'bag_7.mcap', which is not there" in refused(bag, InputError)


def chunk(raw: bytes, packing: str, packed: bytes, size: int | None = None) -> bytes:
    """An MCAP file of one chunk."""
    body = struct.pack("<QQQI", 0, 0, len(raw) if size is None else size, 0)
    body += struct.pack("<I", len(packing)) + packing.encode() + struct.pack("<Q", len(packed)) + packed
    return MAGIC + record(1, struct.pack("<II", 0, 0)) + record(6, body)


def record(opcode: int, body: bytes, length: int | None = None) -> bytes:
    return struct.pack("<BQ", opcode, len(body) if length is None else length) + body


def bombs() -> dict[str, bytes]:
    import lz4.frame
    from backports import zstd

    zeros = bytes(200 * 2**20)
    return {
        "zstd": chunk(zeros, "zstd", zstd.compress(zeros)),
        "zstd that understates": chunk(b"", "zstd", zstd.compress(zeros), 1000),
        "lz4": chunk(zeros, "lz4", lz4.frame.compress(zeros)),
        "lz4 that understates": chunk(b"", "lz4", lz4.frame.compress(zeros), 1000),
        "zstd within the limit": chunk(b"", "zstd", zstd.compress(zeros[: 100 * 2**20]), 100 * 2**20),
        "huge chunk": chunk(b"", "", b"", 2**63),
        "huge record": MAGIC + record(6, b"", 2**62),
        "huge text": MAGIC + record(3, struct.pack("<HI", 1, 2**31)),
        "unknown packing": chunk(b"abc", "rar", b"abc"),
        "record across the chunk": chunk(b"\x05" + struct.pack("<Q", 2**60), "", b"\x05" + struct.pack("<Q", 2**60)),
        "message of no channel": MAGIC + record(5, bytes(30)),
        "many nothings": MAGIC + record(7, b"") * 20_000,
    }


BOMBS = bombs()


@pytest.mark.parametrize("name", BOMBS)
def test_mcap_bombs_are_refused_within_bounds(tmp_path: Path, name: str) -> None:
    file = tmp_path / "bomb.mcap"
    file.write_bytes(BOMBS[name])
    tracemalloc.start()
    refused(file, InputError)
    assert tracemalloc.get_traced_memory()[1] < 400 * 2**20
    tracemalloc.stop()


def test_a_packed_file_that_grows_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backports import zstd

    monkeypatch.setattr("vla_cli.readers.ros_storage._FLOOR", 2**20)
    bag = make_bag(tmp_path / "bag", rows(steps=3), compression=CompressionMode.FILE)
    storage_file(bag).write_bytes(zstd.compress(bytes(64 * 2**20)))
    assert "more than 1000 times its size" in refused(bag, InputError)


def test_a_packed_message_that_grows_without_end_is_refused(tmp_path: Path) -> None:
    from backports import zstd

    bag = make_bag(tmp_path / "bag", rows(steps=3), StoragePlugin.SQLITE3)
    with sqlite3.connect(storage_file(bag)) as database:
        database.execute("UPDATE messages SET data = ? WHERE id = 3", (zstd.compress(bytes(130 * 2**20)),))
    assert "unpacks to more than" in reason(bag)


@pytest.mark.parametrize(
    "statements",
    [
        ["DROP TABLE messages", "CREATE VIEW messages AS SELECT 1 AS id, 1 AS topic_id, 1 AS timestamp, x'00' AS data"],
        ["DROP TABLE messages", "CREATE VIRTUAL TABLE messages USING fts5(id, topic_id, timestamp, data)"],
        ["UPDATE messages SET data = 'text'"],
        ["UPDATE messages SET timestamp = 'noon'"],
        ["UPDATE messages SET timestamp = 9223372036854775807 WHERE id = 3"],
        ["UPDATE messages SET data = x'0001'"],
        ["UPDATE messages SET data = zeroblob(5000)"],
        ["UPDATE topics SET name = 5, type = x'00'"],
        ["DROP TABLE topics"],
    ],
)
def test_hostile_tables_are_refused(tmp_path: Path, statements: list[str]) -> None:
    bag = make_bag(tmp_path / "bag", rows(steps=3), StoragePlugin.SQLITE3)
    with sqlite3.connect(storage_file(bag)) as database:
        for statement in statements:
            database.execute(statement)
    try:
        items, _ = read_whole(READER, bag)
        assert isinstance(items[0], Skipped)
    except InputError:
        pass


def test_a_table_made_to_keep_the_engine_busy_is_given_up(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag", rows(steps=3), StoragePlugin.SQLITE3)
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n"
    with sqlite3.connect(storage_file(bag)) as database:
        database.execute("ALTER TABLE messages RENAME TO kept")
        database.execute(
            f"CREATE VIEW messages AS SELECT i AS id, 1 AS topic_id, i AS timestamp, x'00' AS data FROM ({endless})"
        )
    refused(bag, InputError)


def test_a_damaged_database_is_claimed_and_refused(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag", rows(), StoragePlugin.SQLITE3)
    file = shutil.copy(storage_file(bag), tmp_path / "damaged")
    data = bytearray(file.read_bytes())
    data[4096 * 8 :] = b"\xff" * (len(data) - 4096 * 8)
    file.write_bytes(data)
    assert READER.recognise(file)
    refused_or_skipped(file)
    file.write_bytes(data[:5000])
    assert READER.recognise(file)
    refused_or_skipped(file)


def refused_or_skipped(path: Path) -> None:
    try:
        items, _ = read_whole(READER, path)
        assert all(isinstance(item, Skipped) for item in items)
    except InputError:
        pass


@pytest.mark.parametrize(
    "definition",
    [
        "float64[] position\nstring[] name\n",
        "std_msgs/Header header\nsensor_msgs/JointState[] nested\n",
        'string X="""\nimport os\nos.abort()\n"""\n',
        "float64[99999999999] position\n",
        "string " + "a" * 70_000,
    ],
)
def test_a_bag_with_definitions_of_its_own_is_refused_and_they_are_never_run(tmp_path: Path, definition: str) -> None:
    from mcap.writer import Writer

    file = tmp_path / "bag.mcap"
    with file.open("wb") as stream:
        writer = Writer(stream)
        writer.start(profile="ros2")
        channels: dict[str, int] = {}
        for topic, log_time, kind, message in rows(steps=3):
            if topic not in channels:
                text = definition if kind == JOINT_STATE else ""
                channels[topic] = writer.register_channel(
                    topic, "cdr", writer.register_schema(kind, "ros2msg", text.encode())
                )
            writer.add_message(channels[topic], log_time, bytes(logs.TYPES.serialize_cdr(message, kind)), log_time)
        writer.finish()
    assert "sensor_msgs/msg/JointState" in reason(file)


def test_other_encodings_are_not_taken_for_cdr(tmp_path: Path) -> None:
    from mcap.writer import Writer

    file = tmp_path / "bag.mcap"
    with file.open("wb") as stream:
        writer = Writer(stream)
        writer.start()
        channel = writer.register_channel("/joint_states", "json", writer.register_schema("x", "jsonschema", b"{}"))
        writer.add_message(channel, 1, b"{}", 1)
        writer.finish()
    assert "encoded as json" in refused(file, InputError)
    assert "encoded as json" in refused(file, InputError, "{state: {s: /joint_states}}")


def test_arrays_whose_length_changes_are_unusable(tmp_path: Path) -> None:
    found = altered(rows(), "/arm/command", lambda s, r: (*r[:3], numbers(np.zeros(4 if s < 5 else 3))))
    assert "message 5 of topic /arm/command has 3 numbers, the first one has 4" in reason(
        make_bag(tmp_path / "b", found)
    )


def test_poses_in_two_frames_are_unusable(tmp_path: Path) -> None:
    messages = [stamped("PoseStamped", s, frame, pose=logs.pose(range(7))) for s, frame in enumerate(["base", "cup"])]
    found = [row for row in extra("/pose_cmd", "geometry_msgs/msg/PoseStamped", messages) if row[0] != "/arm/command"]
    assert "another frame" in reason(make_bag(tmp_path / "bag", found))


def test_what_is_no_bag_is_not_claimed(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / "photos.db3")
    database.execute("CREATE TABLE photos(id)")
    database.commit()
    (tmp_path / "bag.mcap").write_text("no magic")
    (tmp_path / "metadata.yaml").write_text("a: b")
    assert READER.recognise(tmp_path) is None
    assert READER.recognise(tmp_path / "photos.db3") is None
    assert "holds no ROS 2 bag" in refused(tmp_path, InputError)


def test_the_same_bag_gives_the_same_episode(tmp_path: Path) -> None:
    bag = make_bag(tmp_path / "bag", rows())
    for number in range(2):
        for episode in read_all(READER, bag, lambda text: None):
            assert not isinstance(episode, Skipped)
            save_episode(changed(episode, source_digest=""), tmp_path / f"{number}.h5")
    assert (tmp_path / "0.h5").read_bytes() == (tmp_path / "1.h5").read_bytes()
