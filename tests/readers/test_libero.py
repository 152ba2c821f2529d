import json

import h5py
import numpy as np
import pytest
from builders import replace, robomimic_log
from logs.libero import CAMERAS, INSTRUCTION, TASK, described, one_file, parts, write
from reading import only_one, read_whole, streams_of

from vla_cli import conventions
from vla_cli.episode import Episode, problems
from vla_cli.errors import InputError
from vla_cli.readers import robomimic
from vla_cli.readers.libero import READER


def test_numbers_and_pictures_come_back_bit_for_bit(tmp_path) -> None:
    items, said = read_whole(READER, write(tmp_path, episodes=2))
    assert said == []
    for index, item in enumerate(items):
        expected, streams = parts(20, index), streams_of(item)
        assert not problems(item) and item.format == "libero"
        assert {name: stream.role for name, stream in streams.items()} == {
            **dict.fromkeys(CAMERAS, "image"),
            **dict.fromkeys(("joint_states", "gripper_states", "ee_states"), "state"),
            **dict.fromkeys(("ee_pos", "ee_ori", "robot_states"), "other"),
            "action": "action",
        }
        for name, stream in streams.items():
            key = {"action": "actions", "robot_states": "robot_states"}.get(name, f"obs/{name}")
            assert np.array_equal(stream.values, expected[key]) and stream.values.dtype == expected[key].dtype
            assert np.allclose(stream.timestamps, np.arange(20) / 20) and stream.attributes["rate_hz"] == 20
        assert item.instructions == [INSTRUCTION]
        assert item.world is not None and item.world["env_name"].startswith("Libero_")
        assert item.name == f"{TASK}_demo_demo_{index}"


def test_everything_the_format_says_is_stated(tmp_path) -> None:
    item, _ = only_one(READER, write(tmp_path, episodes=1))
    streams = streams_of(item)
    action = streams["action"].attributes
    assert (action["gripper"], action["rotation"], action["mode"]) == ("open-low", "axis-angle", "delta")
    assert streams["ee_states"].attributes["rotation"] == "axis-angle"
    assert streams["joint_states"].attributes["rotation"] == "joints"
    for stream in item.streams:
        for key, value in stream.attributes.items():
            allowed = conventions.KEYS[key][1] if key in conventions.KEYS else ()
            assert not allowed or value in allowed
        if names := stream.attributes.get("names"):
            assert len(names) == stream.values.shape[1]
        missing = conventions.unknowns(stream.role, stream.attributes)
        assert missing == (["frame"] if stream.role == "action" else [])


@pytest.mark.parametrize(("convention", "says"), [("opengl", "upside-down"), ("opencv", "upright"), (None, None)])
def test_which_way_up_pictures_are_is_taken_from_the_attribute(tmp_path, convention, says) -> None:
    path = one_file(tmp_path / "x_demo.hdf5", [0], 5, macros_image_convention=convention)
    item, _ = only_one(READER, path)
    for camera in CAMERAS:
        stream = streams_of(item)[camera]
        assert stream.attributes.get("orientation") == says and stream.attributes["channels"] == "rgb"
        assert np.array_equal(stream.values, parts(5, 0)[f"obs/{camera}"])  # never turned here


def test_the_copy_without_attributes_is_told_by_its_cameras(tmp_path) -> None:
    path = one_file(tmp_path / f"{TASK}_demo.hdf5", [0, 3, 11], 8, attributes=False, size=16)
    assert READER.recognise(path) and not robomimic.READER.recognise(path)
    items, said = read_whole(READER, path)
    assert [item.name for item in items] == ["demo_0", "demo_3", "demo_11"]
    for item in items:
        assert item.instructions == [INSTRUCTION] and item.world is None
        assert any("from the file's name" in note for note in item.notes)
        assert any("no-op steps" in note for note in item.notes)
        assert "orientation" not in streams_of(item)["agentview_rgb"].attributes
        assert np.allclose(item.streams[0].timestamps, np.arange(8) / 20)
    assert any("20 Hz is taken" in sentence for sentence in said)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("LIVING_ROOM_SCENE5_put_the_white_mug_on_the_left_plate_demo", "put the white mug on the left plate"),
        ("STUDY_SCENE1_pick_up_the_book_demo", "pick up the book"),
        ("pick_up_the_alphabet_soup_and_place_it_in_the_basket_demo", "pick up the alphabet soup and place it in the "
         "basket"),
        ("recording", None),
    ],
)  # fmt: skip
def test_instructions_in_file_names(tmp_path, name, sentence) -> None:
    item, _ = only_one(READER, one_file(tmp_path / f"{name}.hdf5", [0], 4, attributes=False))
    assert item.instructions == ([sentence] if sentence else [])


@pytest.mark.parametrize(
    ("info", "instructions"),
    [
        ({"language_instruction": '"open the drawer"'}, ["open the drawer"]),
        ({"language_instruction": ["open ", "the drawer"]}, ["open the drawer"]),
        ({"language_instruction": ""}, [INSTRUCTION]),
        ({"language_instruction": 7}, [INSTRUCTION]),
        ([], [INSTRUCTION]),
        ("{", [INSTRUCTION]),
    ],
)
def test_problem_info_in_every_shape(tmp_path, info, instructions) -> None:
    text = info if isinstance(info, str) else json.dumps(info)
    item, _ = only_one(READER, one_file(tmp_path / f"{TASK}_demo.hdf5", [0], 4, problem_info=text))
    assert item.instructions == instructions


def test_depth_is_left_out_by_name_and_positions_are_the_state_where_poses_are_missing(tmp_path) -> None:
    def alter(index: int, group: h5py.Group) -> None:
        group["obs/agentview_depth"] = np.zeros((6, 12, 12, 1), np.float32)
        del group["obs/ee_states"]

    item, said = only_one(READER, one_file(tmp_path / "x_demo.hdf5", [0], 6, alter=alter))
    assert any("obs/agentview_depth is left out" in sentence for sentence in said)
    assert {s.name for s in item.of_role("state")} == {"joint_states", "gripper_states", "ee_pos", "ee_ori"}


def test_one_file_is_of_one_format(tmp_path) -> None:
    libero = one_file(tmp_path / "libero.bin", [0], 4)
    only_tag = one_file(tmp_path / "tag.bin", [0], 4, problem_info=None, bddl_file_name=None)
    other = robomimic_log(tmp_path / "robomimic.bin")
    for path, is_libero in ((libero, True), (only_tag, True), (other, False)):
        assert bool(READER.recognise(path)) == is_libero != bool(robomimic.READER.recognise(path))
    with pytest.raises(InputError, match=r"not a file .* LIBERO recorded, but of format robomimic"):
        read_whole(READER, other)
    with pytest.raises(InputError, match="but of format libero"):
        read_whole(robomimic.READER, libero)


def test_damaged_demos_and_files_leave_the_others(tmp_path) -> None:
    def alter(index: int, group: h5py.Group) -> None:
        if index == 0:
            del group["obs"]
        if index == 1:
            replace(group, "obs/joint_states", np.zeros((3, 7)))

    folder = tmp_path / "log"
    whole = one_file(folder / "a_demo.hdf5", [0, 1, 2], 4, alter=alter).read_bytes()
    (folder / "b_demo.hdf5").write_bytes(whole[: len(whole) // 2])
    robomimic_log(folder / "c.hdf5", demos=1)
    assert READER.recognise(folder)
    items, _ = read_whole(READER, folder)
    reasons = [getattr(item, "reason", "") for item in items]
    assert "has no 'obs'" in reasons[0] and "joint_states 3" in reasons[1] and isinstance(items[2], Episode)
    assert "cut short" in reasons[3] and "of format robomimic" in reasons[4]
    assert described()["tag"] == "libero-v1"


def test_a_damaged_file_alone_is_not_liberos(tmp_path) -> None:
    path = one_file(tmp_path / "a_demo.hdf5", [0], 4)
    path.write_bytes(path.read_bytes()[:3000])
    assert not READER.recognise(path) and robomimic.READER.recognise(path)
    with pytest.raises(InputError, match="cut short"):
        read_whole(READER, path)
