from io import BytesIO

import h5py
import numpy as np
import pytest
from builders import replace, robomimic_log
from logs.aloha import CAMERAS, compressed, jpeg, one_file, parts, write
from PIL import Image
from reading import only_one, read_whole, streams_of

from vla_cli import conventions
from vla_cli.episode import Episode, load_episode, problems, save_episode
from vla_cli.errors import InputError
from vla_cli.frames import PictureFrames
from vla_cli.readers import Options, libero, list_entries, opened, robomimic
from vla_cli.readers.aloha import NAMES, READER


def names(path) -> list[str]:
    with opened(READER, path, Options(), lambda sentence: None) as log:
        return [entry.name for entry in list_entries(log, path)]


def test_numbers_and_pictures_come_back_bit_for_bit(tmp_path) -> None:
    items, said = read_whole(READER, write(tmp_path, episodes=2))
    assert all("50 Hz is taken" in sentence for sentence in said)
    for index, item in enumerate(items):
        (vectors, pictures), streams = parts(20, index), streams_of(item)
        assert not problems(item) and item.name == f"episode_{index}" and item.format == "aloha"
        assert {name: stream.role for name, stream in streams.items()} == {
            **dict.fromkeys(CAMERAS, "image"),
            **{"qpos": "state", "qvel": "other", "effort": "other", "action": "action"},
        }
        for name in ("qpos", "qvel", "effort"):
            assert np.array_equal(streams[name].values, vectors[f"observations/{name}"])
        assert np.array_equal(streams["action"].values, vectors["action"])
        for camera in CAMERAS:
            assert np.array_equal(streams[camera].values, pictures[camera])
            assert streams[camera].attributes == {"channels": "rgb", "rate_hz": 50.0}
        assert all(np.allclose(stream.timestamps, np.arange(20) / 50) for stream in item.streams)
        assert item.instructions == [] and item.operator == "unknown" and "the file says sim = False" in item.notes


def test_everything_the_format_says_is_stated(tmp_path) -> None:
    item, _ = only_one(READER, one_file(tmp_path / "episode_0.hdf5", mobile=True))
    streams = streams_of(item)
    assert streams["qpos"].attributes["names"] == NAMES == streams["effort"].attributes["names"]
    assert NAMES[0] == "left_waist" and NAMES[6] == "left_gripper" and NAMES[13] == "right_gripper"
    assert streams["action"].attributes["mode"] == "absolute"
    assert streams["base_action"].attributes["mode"] == "velocity" and streams["base_action"].role == "action"
    for stream in item.streams:
        assert stream.role == "image" or not conventions.unknowns(stream.role, stream.attributes)


def test_another_width_has_no_names(tmp_path) -> None:
    def alter(file: h5py.File) -> None:
        for key in ("observations/qpos", "action"):
            replace(file, key, np.zeros((20, 7)))

    item, _ = only_one(READER, one_file(tmp_path / "episode_0.hdf5", alter=alter))
    assert streams_of(item)["qpos"].attributes == {"rate_hz": 50.0}
    assert streams_of(item)["action"].attributes == {"rate_hz": 50.0, "mode": "absolute"}


@pytest.mark.parametrize("lengths", [True, False])
def test_compressed_pictures_keep_their_own_bytes(tmp_path, lengths) -> None:
    path = compressed(tmp_path / "episode_0.hdf5", lengths=lengths)
    vectors, pictures = parts(20, 0)
    with opened(READER, path, Options(), lambda sentence: None) as log:
        episode = log.read(log.entries()[0])
        streams = streams_of(episode)
        assert not problems(episode)
        assert np.array_equal(streams["base_action"].values, vectors["base_action"])
        for camera in CAMERAS:
            frames = streams[camera].values
            assert isinstance(frames, PictureFrames) and frames.shape == (20, 12, 16, 3)
            coded = [jpeg(picture) for picture in pictures[camera]]
            assert list(frames.verified()) == coded
            assert np.array_equal(np.asarray(frames), np.stack([np.asarray(Image.open(BytesIO(d))) for d in coded]))
            assert "channels" not in streams[camera].attributes
        assert any("RGB or BGR" in note for note in episode.notes)
        assert not any("compress_len" in note for note in episode.notes)
        save_episode(episode, tmp_path / "out.hdf5")
    kept = streams_of(load_episode(tmp_path / "out.hdf5"))
    assert kept["cam_high"].values.shape == (20, 12, 16, 3)


def test_a_picture_that_is_missing_is_named(tmp_path) -> None:
    path = compressed(tmp_path / "episode_0.hdf5")
    with h5py.File(path, "a") as file:
        file["observations/images/cam_high"][3] = 0
    with opened(READER, path, Options(), lambda sentence: None) as log:
        episode = log.read(log.entries()[0])
        with pytest.raises(ValueError, match="cam_high step 3 cannot be decoded"):
            save_episode(episode, tmp_path / "out.hdf5")


def test_a_simulated_recording_without_effort(tmp_path) -> None:
    def alter(file: h5py.File) -> None:
        file.attrs["sim"] = True
        file.move("observations/images/cam_high", "observations/images/top")
        del file["observations/images/cam_left_wrist"], file["observations/effort"]

    item, _ = only_one(READER, one_file(tmp_path / "episode_0.hdf5", alter=alter))
    assert {s.name for s in item.streams} == {"top", "qpos", "qvel", "action"}
    assert "the file says sim = True" in item.notes


def test_what_the_format_does_not_have_is_left_out_by_name(tmp_path) -> None:
    def alter(file: h5py.File) -> None:
        file["language_raw"] = np.array([b"fold the shirt"])
        file["observations/images_depth/cam_high"] = np.zeros((20, 4, 4))
        file["observations/images/depth"] = np.zeros((20, 4, 4), np.uint16)
        file["observations/images/more/x"] = np.zeros(3)
        file["observations/words"] = np.array([b"x"] * 20)
        file["observations/tactile"] = np.zeros((20, 3))

    item, said = only_one(READER, one_file(tmp_path / "episode_0.hdf5", alter=alter))
    for name in ("language_raw", "images_depth", "images/depth", "images/more", "words"):
        assert any(f"{name} is left out" in note for note in item.notes)
        assert any(f"{name} is left out" in sentence for sentence in said)
    assert streams_of(item)["tactile"].role == "other"


def test_episodes_are_in_the_order_of_their_numbers_and_keep_their_names(tmp_path) -> None:
    for index in (10, 9, 100, 0):
        one_file(tmp_path / f"episode_{index}.hdf5", steps=2)
    before = names(tmp_path)
    assert before == ["episode_0", "episode_9", "episode_10", "episode_100"]
    one_file(tmp_path / "episode_101.hdf5", steps=2)
    assert names(tmp_path) == [*before, "episode_101"]
    assert names(tmp_path / "episode_9.hdf5") == ["episode_9"]


def test_more_files_than_stay_open(tmp_path) -> None:
    for index in range(40):
        one_file(tmp_path / f"episode_{index}.hdf5", index, steps=2)
    items, _ = read_whole(READER, tmp_path)
    assert len(items) == 40
    for index, item in enumerate(items):
        assert np.array_equal(streams_of(item)["cam_high"].values, parts(2, index)[1]["cam_high"])


def test_damaged_files_among_others_are_entries_with_reasons(tmp_path) -> None:
    def shorter(file: h5py.File) -> None:
        replace(file, "observations/qpos", np.zeros((17, 14)))

    def unwritten(file: h5py.File) -> None:
        del file["observations/images/cam_high"]
        pictures = file.create_dataset("observations/images/cam_high", (20, 12, 16, 3), "u1", chunks=(1, 12, 16, 3))
        pictures[:8] = 1

    def empty(file: h5py.File) -> None:
        del file["action"]
        file.create_dataset("action", (0, 14), "f8")

    whole = one_file(tmp_path / "episode_0.hdf5").read_bytes()
    (tmp_path / "episode_1.hdf5").write_bytes(whole[:5000])
    for index, alter in enumerate((shorter, unwritten, empty), 2):
        one_file(tmp_path / f"episode_{index}.hdf5", alter=alter)
    robomimic_log(tmp_path / "episode_5.hdf5", demos=1)
    one_file(tmp_path / "episode_6.hdf5")
    assert "episode_0.hdf5" in READER.recognise(tmp_path)
    items, _ = read_whole(READER, tmp_path)
    reasons = [getattr(item, "reason", "") for item in items]
    assert isinstance(items[0], Episode) and isinstance(items[6], Episode)
    assert "cut short" in reasons[1] and "action 20, but qpos 17" in reasons[2]
    assert "8 of 20 chunks" in reasons[3] and "/action is [0, 14]" in reasons[4]
    assert "of format robomimic" in reasons[5]


def test_recognition_is_disjoint(tmp_path) -> None:
    folder = write(tmp_path)
    for path in (folder, folder / "episode_0.hdf5"):
        assert READER.recognise(path)
        assert not robomimic.READER.recognise(path) and not libero.READER.recognise(path)
    whole = (folder / "episode_0.hdf5").read_bytes()
    (folder / "episode_00.hdf5").write_bytes(whole[:3000])
    assert READER.recognise(folder) and not robomimic.READER.recognise(folder)
    lone = tmp_path / "lone" / "episode_0.hdf5"
    lone.parent.mkdir()
    lone.write_bytes(whole[:3000])
    assert not READER.recognise(lone.parent) and robomimic.READER.recognise(lone.parent)
    assert not READER.recognise(tmp_path / "nothing") and not READER.recognise(tmp_path)
    with pytest.raises(InputError, match="cut short"):
        read_whole(READER, lone)
    with pytest.raises(InputError, match="no HDF5 file"):
        read_whole(READER, tmp_path / "nothing")


def test_a_picture_of_absurd_size_is_refused(tmp_path) -> None:
    huge = BytesIO()
    Image.new("RGB", (6000, 6000)).save(huge, "JPEG")
    row = np.frombuffer(huge.getvalue(), np.uint8)

    def alter(file: h5py.File) -> None:
        replace(file, "observations/images/cam_high", np.tile(row, (20, 1)))

    items, _ = read_whole(READER, one_file(tmp_path / "episode_0.hdf5", alter=alter))
    assert "6000x6000 pixels, too large" in items[0].reason


def test_files_in_folders_below_are_told_with_their_count(tmp_path) -> None:
    one_file(tmp_path / "aloha/episode_0.hdf5")
    for day in ("monday", "tuesday"):
        one_file(tmp_path / "aloha" / day / "episode_0.hdf5")
    items, said = read_whole(READER, tmp_path / "aloha")
    assert len(items) == 1
    assert any("2 HDF5 file(s) in folders below" in text and "monday/" in text for text in said)
