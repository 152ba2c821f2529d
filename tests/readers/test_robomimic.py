import json
import os
import tracemalloc

import h5py
import numpy as np
import pytest
from builders import motion, replace, robomimic_log
from reading import only_one, read_whole, streams_of

from vla_cli.episode import Episode, Skipped, load_episode, save_episode
from vla_cli.errors import InputError
from vla_cli.readers import Options, list_entries, opened, read_all
from vla_cli.readers.robomimic import READER


def read(path) -> tuple[list, list[str]]:
    return read_whole(READER, path)


def only(path) -> tuple[Episode, list[str]]:
    return only_one(READER, path)


def entries(path) -> list[str]:
    with opened(READER, path, Options(), lambda sentence: None) as log:
        return [entry.name for entry in list_entries(log, path)]


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
        assert streams["camera"].attributes == {"rate_hz": 10.0, "channels": "rgb"}
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
    assert entries(tmp_path) == ["a_demo_0", "b_demo_0"]
    (tmp_path / "b.hdf5").unlink()
    assert entries(tmp_path) == ["a_demo_0"]  # not another name for being alone
    robomimic_log(tmp_path / "a.h5", demos=2, steps=3)
    assert entries(tmp_path) == ["a.h5_demo_0", "a.h5_demo_1", "a_demo_0"]


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


def test_filter_keys_say_who_demonstrated_and_are_noted(tmp_path) -> None:
    path = robomimic_log(tmp_path / "log.hdf5")
    with h5py.File(path, "a") as file:
        file["mask/train"] = np.array([b"demo_0", b"demo_2"])
        file.create_dataset("mask/20_percent", data=["demo_0"], dtype=h5py.string_dtype())  # text of any length
        file["mask/operator_cy"] = np.array([b"demo_1"])
    items, said = read(path)
    assert [item.operator for item in items] == ["ada", "bo", "ada"]
    assert items[0].notes[-1] == "the log's own filter keys name it: 20_percent, train"
    assert any("demo_1 is in two operator masks" in sentence for sentence in said)


def test_absolute_actions_are_kept_beside_and_large_ones_noted(tmp_path) -> None:
    def alter(index: int, group: h5py.Group) -> None:
        group["actions_abs"] = np.full((20, 4), 0.5)
        replace(group, "actions", np.full((20, 4), -3.5))

    item, said = only(robomimic_log(tmp_path / "log.hdf5", demos=1, alter=alter))
    assert {s.name: s.role for s in item.streams}["actions_abs"] == "other" and said == []
    assert "actions reach 3.5, robomimic expects [-1, 1]" in item.notes


def test_attributes_that_make_no_sense_are_left_out_by_name(tmp_path) -> None:
    def alter(index: int, group: h5py.Group) -> None:
        position = group["obs/position"].attrs
        position["names"], position["rotation"], position["rate_hz"] = ["x", "y"], "sideways", np.nan
        position["frame"], position["gripper"] = "base", "none"

    item, _ = only(robomimic_log(tmp_path / "log.hdf5", demos=1, alter=alter))
    assert streams_of(item)["position"].attributes == {"rate_hz": 10.0, "frame": "base", "gripper": "none"}
    assert sum("of position is left out" in note for note in item.notes) == 3


@pytest.mark.parametrize("bad", ["[" * 5000, '{"env_kwargs": {"control_freq": NaN}}', "{", "x" * (5 * 2**20)])
def test_env_args_that_are_no_settings_are_said(tmp_path, bad) -> None:
    path = robomimic_log(tmp_path / "log.hdf5", demos=1)
    with h5py.File(path, "a") as file:
        file["data"].attrs.create("env_args", bad, dtype=h5py.string_dtype())
    item, said = only(path)
    assert item.world is None and any("env_args" in sentence and len(sentence) < 400 for sentence in said)


@pytest.mark.parametrize("rate", [-1, 0, 1e9, "fast", [20], None])
def test_a_rate_that_is_none_is_not_believed(tmp_path, rate) -> None:
    arguments = {"env_name": "x", "type": 1, "env_kwargs": {"control_freq": rate}}
    item, said = only(robomimic_log(tmp_path / "log.hdf5", demos=1, env_args=arguments))
    assert np.allclose(item.streams[0].timestamps, np.arange(20) / 20) and any("20 Hz is assumed" in s for s in said)


def test_one_damaged_file_among_others_is_one_entry(tmp_path) -> None:
    whole = robomimic_log(tmp_path / "a.hdf5", demos=1).read_bytes()
    (tmp_path / "b.hdf5").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "c.hdf5").write_bytes(b"")
    (tmp_path / "._a.hdf5").write_bytes(b"of a Mac")
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        file.create_group("data")
    items, _ = read(tmp_path)
    assert [item.name for item in items] == ["a_demo_0", "b", "c", "d"] == entries(tmp_path)
    assert isinstance(items[0], Episode) and "cut short" in items[1].reason and "cut short" in items[2].reason
    assert items[3].reason == "d.hdf5 has no demonstrations"
    assert "a.hdf5" in READER.recognise(tmp_path)


def test_a_link_out_of_the_directory_is_not_followed(tmp_path) -> None:
    secret = robomimic_log(tmp_path / "elsewhere" / "secret.hdf5", demos=1)
    robomimic_log(tmp_path / "log" / "a.hdf5", demos=1)
    (tmp_path / "log" / "b.hdf5").symlink_to(secret)
    (tmp_path / "log" / "c.hdf5").symlink_to("c.hdf5")
    os.mkfifo(tmp_path / "log" / "d.hdf5")
    items, _ = read(tmp_path / "log")
    assert [isinstance(item, Episode) for item in items] == [True, False, False, False]
    assert "leads out of the log" in items[1].reason and "no file" in items[3].reason


def test_pictures_are_read_block_by_block_and_copied_as_packed(tmp_path) -> None:
    def alter(index: int, group: h5py.Group) -> None:
        pictures = group["obs/camera"][()]
        del group["obs/camera"]
        group.create_dataset("obs/camera", data=pictures, chunks=(1, 12, 12, 3), compression="gzip")

    path = robomimic_log(tmp_path / "log.hdf5", demos=1, steps=40, alter=alter)
    with opened(READER, path, Options(), lambda sentence: None) as log:
        episode = log.read(log.entries()[0])
        frames = streams_of(episode)["camera"].values
        assert [len(block) for block in frames.blocks()] == [16, 16, 8] and frames.as_stored is not None
        save_episode(episode, tmp_path / "episode.hdf5")
    kept = streams_of(load_episode(tmp_path / "episode.hdf5"))["camera"].values
    assert np.array_equal(np.asarray(kept), motion(40)["camera"])


def test_memory_does_not_grow_with_the_length(tmp_path) -> None:
    peaks = []
    for steps in (40, 400):
        path = tmp_path / f"{steps}.hdf5"
        with h5py.File(path, "w") as file:
            demo = file.create_group("data/demo_0")
            demo["actions"] = np.zeros((steps, 4))
            demo.create_dataset("obs/camera", (steps, 128, 128, 3), np.uint8, chunks=(1, 128, 128, 3))
            for step in range(steps):
                demo["obs/camera"][step] = step % 256
        tracemalloc.start()
        for episode in read_all(READER, path, lambda sentence: None):
            save_episode(episode, tmp_path / "out.hdf5")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= 1.2 * peaks[0]
