import json

import h5py
import numpy as np
import pytest
from builders import motion, replace, robomimic_log

from vla_cli.episode import Episode, Skipped
from vla_cli.errors import InputError
from vla_cli.readers.robomimic import READER


def read(path) -> tuple[list, list[str]]:
    said: list[str] = []
    return list(READER.read(path, said.append)), said


def only(path) -> tuple[Episode, list[str]]:
    items, said = read(path)
    assert len(items) == 1 and isinstance(items[0], Episode), items
    return items[0], said


def test_numbers_and_pictures_come_back_bit_for_bit(tmp_path) -> None:
    items, said = read(robomimic_log(tmp_path / "log.hdf5", demos=3))
    assert said == []
    for index, item in enumerate(items):
        parts = motion(20, seed=index)
        streams = {stream.name: stream for stream in item.streams}
        assert {(s.role, s.name) for s in item.streams} == {
            ("image", "camera"),
            ("state", "gripper"),
            ("state", "position"),
            ("action", "action"),
        }
        assert np.array_equal(streams["action"].values, parts["actions"])
        for key in ("camera", "gripper", "position"):
            assert np.array_equal(streams[key].values, parts[key])
        assert np.allclose(streams["camera"].timestamps, np.arange(20) / 10)
        assert streams["action"].attributes == {"rate_hz": 10.0}
        assert item.instructions == ["put the red cube in the bowl"]
        assert item.operator == ("ada", "bo")[index % 2]
        assert item.world is not None and item.world["env_kwargs"]["shift"] == "V"


def test_demos_are_sorted_by_number(tmp_path) -> None:
    items, _ = read(robomimic_log(tmp_path / "log.hdf5", demos=12, steps=3))
    assert [item.name for item in items] == [f"demo_{i}" for i in range(12)]


def test_jittered_time_stamps_are_kept(tmp_path) -> None:
    clock = np.arange(20) / 10 + np.random.default_rng(0).uniform(-0.01, 0.01, 20)
    path = robomimic_log(tmp_path / "log.hdf5", demos=1, alter=lambda i, g: g.create_dataset("timestamps", data=clock))
    item, _ = only(path)
    assert all(np.array_equal(stream.timestamps, clock) for stream in item.streams)


def test_without_a_rate_20_hz_is_assumed_and_said(tmp_path) -> None:
    item, said = only(robomimic_log(tmp_path / "log.hdf5", demos=1, env_args=None))
    assert item.streams[0].timestamps[1] == pytest.approx(0.05) and "rate_hz" not in item.streams[0].attributes
    assert any("20 Hz is assumed" in note for note in item.notes) and any("20 Hz is assumed" in s for s in said)
    assert item.world is None


def test_unequal_lengths_are_skipped_with_the_numbers(tmp_path) -> None:
    def alter(index: int, group: h5py.Group) -> None:
        if index == 1:
            replace(group, "obs/position", np.zeros((17, 3)))

    items, _ = read(robomimic_log(tmp_path / "log.hdf5", alter=alter))
    assert items[1] == Skipped("demo_1", "unequal lengths: actions 20, but position 17")
    assert isinstance(items[0], Episode) and isinstance(items[2], Episode)


def test_odd_observations_are_left_out_by_name(tmp_path) -> None:
    def alter(index: int, group: h5py.Group) -> None:
        group["obs/float_picture"] = np.zeros((20, 4, 4, 3), np.float32)
        group["obs/chw"] = np.zeros((20, 3, 4, 4), np.uint8)
        group["obs/depth"] = np.zeros((20, 4, 4, 1), np.float32)
        group["obs/words"] = np.array([b"x"] * 20)
        group["obs/object"] = np.zeros((20, 7))
        group["obs/flat"] = np.zeros(20)

    item, said = only(robomimic_log(tmp_path / "log.hdf5", demos=1, alter=alter))
    for name in ("float_picture", "chw", "depth", "words"):
        assert any(f"obs/{name} is left out" in note for note in item.notes)
        assert any(f"obs/{name} is left out" in sentence for sentence in said)
    roles = {stream.name: (stream.role, stream.values.shape) for stream in item.streams}
    assert roles["flat"] == ("state", (20, 1)) and roles["object"] == ("other", (20, 7))


def test_attributes_and_other_ways_to_name_the_instruction(tmp_path) -> None:
    def alter(index: int, group: h5py.Group) -> None:
        group["obs/position"].attrs["names"] = json.dumps(["x", "y", "z"])
        group["obs/position"].attrs["units"] = "m"
        del group.attrs["ep_meta"]
        group.attrs["language_instruction"] = np.bytes_("lift it ")
        group.attrs["num_samples"] = 99

    item, _ = only(robomimic_log(tmp_path / "log.hdf5", demos=1, alter=alter))
    position = next(stream for stream in item.streams if stream.name == "position")
    assert position.attributes["names"] == ["x", "y", "z"] and position.attributes["units"] == "m"
    assert item.instructions == ["lift it"] and any("num_samples says 99" in note for note in item.notes)


def test_a_demo_that_cannot_be_read_is_skipped(tmp_path) -> None:
    def alter(index: int, group: h5py.Group) -> None:
        if index == 0:
            del group["actions"]
        if index == 1:
            del group["obs/position"]
            group["obs/position"] = h5py.ExternalLink("/etc/passwd", "/x")

    items, _ = read(robomimic_log(tmp_path / "log.hdf5", alter=alter))
    assert "has no 'actions'" in items[0].reason and "link into another file" in items[1].reason
    assert isinstance(items[2], Episode)


def test_a_directory_of_files_names_episodes_after_both(tmp_path) -> None:
    for name in ("a", "b"):
        robomimic_log(tmp_path / f"{name}.hdf5", demos=1, steps=3)
    assert [item.name for item in read(tmp_path)[0]] == ["a_demo_0", "b_demo_0"]
    assert READER.count(tmp_path) == 2


def test_damaged_and_empty_files_are_refused(tmp_path) -> None:
    whole = robomimic_log(tmp_path / "log.hdf5").read_bytes()
    (tmp_path / "log.hdf5").write_bytes(whole[: len(whole) * 2 // 3])
    assert READER.recognise(tmp_path / "log.hdf5")
    with pytest.raises(InputError, match="cut short"):
        read(tmp_path / "log.hdf5")
    with h5py.File(tmp_path / "empty.hdf5", "w") as file:
        file.create_group("data")
    with pytest.raises(InputError, match="no demonstrations"):
        read(tmp_path / "empty.hdf5")
    (tmp_path / "text").write_text("x")
    with pytest.raises(InputError, match="no HDF5 file"):
        read(tmp_path / "text")
