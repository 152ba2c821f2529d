import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from builders import replace, smooth_video, write_video
from logs.droid import SERIALS, START, numbers, write, write_episode

from vla_cli.conventions import KEYS
from vla_cli.episode import Episode, Skipped, pauses, problems
from vla_cli.frames import VideoFrames
from vla_cli.readers import read_all
from vla_cli.readers.droid import READER

STAMPS = "observation/timestamp"


def read(path: Path) -> tuple[list, list[str]]:
    said: list[str] = []
    return list(read_all(READER, path, said.append)), said


def only(path: Path) -> Episode:
    (item,), _ = read(path)
    assert isinstance(item, Episode), item
    return item


def reason(path: Path) -> str:
    (item,), _ = read(path)
    assert isinstance(item, Skipped), item
    return item.reason


def streams(episode: Episode) -> dict:
    return {(stream.role, stream.name): stream for stream in episode.streams}


def alter(directory: Path, **datasets) -> Path:
    """Replace datasets of trajectory.h5 by their paths with "__" for "/"; None takes one out."""
    with h5py.File(directory / "trajectory.h5", "r+") as file:
        for key, values in datasets.items():
            del file[key.replace("__", "/")]
            if values is not None:
                file[key.replace("__", "/")] = values
    return directory


def test_every_number_comes_back_and_says_what_it_means(tmp_path) -> None:
    tree = write(tmp_path)
    items, said = read(tree)
    assert said == [] and len(items) == 2 and all(problems(item) == [] for item in items)
    assert READER.recognise(tree) and READER.recognise(next(tree.rglob("trajectory.h5")).parent)
    for index, item in enumerate(items):
        written, found = numbers(index, 20), streams(item)
        for key in ("joint_positions", "cartesian_position"):
            assert np.array_equal(found["state", key].values, written[f"observation/robot_state/{key}"])
        assert np.array_equal(found["action", "joint_position"].values, written["action/joint_position"])
        assert np.array_equal(found["action", "gripper_position"].values[:, 0], written["action/gripper_position"])
        assert {role_name for role_name in found if role_name[0] == "other"} == {
            ("other", "action.cartesian_position"),
            ("other", "action.joint_velocity"),
            ("other", "robot_state.joint_velocities"),
            ("other", "robot_state.prev_command_successful"),
        }
        assert item.instructions == ["Put the cup on the plate"] and item.operator == "Ada" and "lab: LAB" in item.notes
    arm, tool = found["action", "joint_position"].attributes, found["state", "cartesian_position"].attributes
    assert arm["mode"] == "absolute" and arm["units"] == "rad" and arm["names"][6] == "panda_joint7"
    assert tool["rotation"] == "euler-xyz" and found["action", "gripper_position"].attributes["gripper"] == "open-low"
    for stream in item.streams:
        for key, (roles, allowed) in KEYS.items():
            assert key not in stream.attributes or (
                stream.role in roles and stream.attributes[key] in (allowed or [stream.attributes[key]])
            )


def test_videos_stay_videos_with_their_own_clocks(tmp_path) -> None:
    found = streams(only(write_episode(tmp_path / "e")))
    origin = numbers(0, 20)[f"{STAMPS}/control/step_start"][0]
    for number, camera in enumerate(("wrist", "ext1", "ext2")):
        stream = found["image", camera]
        assert isinstance(stream.values, VideoFrames) and stream.values.shape == (20, 32, 48, 3)
        assert np.abs(np.asarray(stream.values).astype(int) - smooth_video(20, number)).mean() < 6
        stamps = numbers(0, 20)[f"{STAMPS}/cameras/{SERIALS[camera]}_estimated_capture"]
        assert np.allclose(stream.timestamps, (stamps - origin) / 1000, atol=1e-6)
        assert stream.attributes["extrinsics"] == [0.1, 0.2, 0.3, 0.0, 0.5, 1.0]
    robot = numbers(0, 20)[f"{STAMPS}/robot_state/read_start"]
    assert np.allclose(found["state", "joint_positions"].timestamps, (robot - origin) / 1000, atol=1e-6)
    assert found["action", "joint_position"].timestamps[0] == 0.0


@pytest.mark.parametrize("skip", [[0, 1, 2], [0, 5, 6, 19]])
def test_steps_that_were_not_sent_are_left_out_of_every_stream(tmp_path, skip: list[int]) -> None:
    flags = np.isin(np.arange(20), skip)
    episode = only(alter(write_episode(tmp_path / "e"), observation__timestamp__skip_action=flags))
    found = streams(episode)
    assert f"{len(skip)} of 20 steps have skip_action set and are left out" in episode.notes
    assert problems(episode) == [] and {len(stream) for stream in episode.streams} == {20 - len(skip)}
    assert np.array_equal(found["action", "joint_position"].values, numbers(0, 20)["action/joint_position"][~flags])
    between = [(round(15 * start), round(15 * length)) for start, length in pauses(episode)]
    assert between == ([] if len(skip) == 3 else [(3, 3)]), "what is left out between others leaves a hole"
    pictures = np.asarray(found["image", "wrist"].values)
    assert np.abs(pictures.astype(int) - smooth_video(20, 0)[~flags]).mean() < 6
    assert np.array_equal(np.asarray(found["image", "wrist"].values.cut(3)), pictures[:3])
    assert isinstance(found["image", "wrist"].values, VideoFrames) == (len(skip) == 3)
    everything = alter(write_episode(tmp_path / "f"), observation__timestamp__skip_action=np.ones(20, bool))
    assert "all its steps have skip_action" in reason(everything)


@pytest.mark.parametrize(("unit", "per_second"), [("ns", 1e9), ("us", 1e6), ("s", 1.0)])
def test_stamps_of_other_units_are_told_by_the_rate(tmp_path, unit: str, per_second: float) -> None:
    clock = START / 1000 + np.arange(20) / 15
    stamps = clock * per_second if unit == "s" else (clock * per_second).astype(np.int64)
    changes = {"observation__timestamp__robot_state__read_start": stamps}
    found = streams(only(alter(write_episode(tmp_path / "e"), **changes)))
    moved = found["state", "joint_positions"].timestamps
    assert np.allclose(moved - moved[0], np.arange(20) / 15, atol=1e-5)


def test_clocks_that_are_none_are_replaced_and_that_is_noted(tmp_path) -> None:
    backwards = numbers(0, 20)[f"{STAMPS}/robot_state/read_start"][::-1].copy()
    wrist = f"observation__timestamp__cameras__{SERIALS['wrist']}_"
    changes = {
        "observation__timestamp__robot_state__read_start": backwards,
        "observation__timestamp__control__step_start": np.arange(20) * 5000,
        **{wrist + name: None for name in ("estimated_capture", "frame_received", "read_start", "read_end")},
    }
    episode = only(alter(write_episode(tmp_path / "e"), **changes))
    notes = " ".join(episode.notes)
    assert problems(episode) == [] and "robot_state has time stamps that are not finite or go backwards: 15 Hz" in notes
    assert "actions has time stamps that do not fit 15 Hz: the robot's clock is used" in notes
    assert "wrist has no time stamps" in notes and "ext1 has time stamps that are far from the robot's" in notes
    assert all(np.allclose(stream.timestamps, np.arange(20) / 15) for stream in episode.streams)
    with h5py.File(tmp_path / "e/trajectory.h5", "r+") as file:
        del file["observation/timestamp"]
    assert problems(only(tmp_path / "e")) == []


@pytest.mark.parametrize(("frames", "length"), [(19, 19), (21, 20)])
def test_a_video_of_one_frame_more_or_less_is_trimmed(tmp_path, frames: int, length: int) -> None:
    directory = write_episode(tmp_path / "e")
    write_video(directory / f"recordings/MP4/{SERIALS['ext1']}.mp4", smooth_video(frames))
    episode = only(directory)
    assert {len(stream) for stream in episode.streams} == {length} and problems(episode) == []
    assert any("lengths differ by one" in note for note in episode.notes)
    write_video(directory / f"recordings/MP4/{SERIALS['ext1']}.mp4", smooth_video(15))
    assert "unequal lengths: 15 in the video of ext1, 20 in" in reason(directory)


def test_a_writer_stopped_between_two_datasets_loses_one_step(tmp_path) -> None:
    changes = {
        "observation__robot_state__gripper_position": np.zeros(19),
        f"observation__timestamp__cameras__{SERIALS['ext2']}_estimated_capture": np.arange(19),
    }
    episode = only(alter(write_episode(tmp_path / "e"), **changes))
    assert {len(stream) for stream in episode.streams} == {19} and problems(episode) == []


def test_a_name_of_a_video_never_leads_out(tmp_path) -> None:
    secret = tmp_path / "secret.mp4"
    write_video(secret, smooth_video(20))
    directory = write_episode(
        tmp_path / "log/e",
        wrist_mp4_path="../../../secret.mp4",
        ext1_mp4_path="/etc/passwd",
        ext2_mp4_path="a\\..\\" + SERIALS["ext2"] + ".mp4",
    )
    found = streams(only(directory))
    assert ("image", "ext2") in found and ("image", "wrist") in found and ("image", "ext1") in found  # by serial number
    assert found["image", "wrist"].values.path.parent == directory / "recordings/MP4"
    wrist = directory / f"recordings/MP4/{SERIALS['wrist']}.mp4"
    wrist.unlink()
    assert any("no video of camera wrist (secret.mp4)" in note for note in only(directory).notes)
    wrist.symlink_to(secret)
    assert "leads out of the log" in reason(directory)


def test_cameras_that_are_missing_and_stereo_are_noted(tmp_path) -> None:
    directory = write_episode(
        tmp_path / "e", ext1_cam_serial=None, ext1_mp4_path=None, wrist_mp4_path="x-stereo.mp4", success=False
    )
    write_video(directory / "recordings/MP4/x-stereo.mp4", smooth_video(20))
    episode = only(directory)
    notes = " ".join(episode.notes)
    assert [stream.name for stream in episode.of_role("image")] == ["ext2", "wrist"]
    assert "camera ext1, which has no serial number" in notes and "1 stereo videos are not read" in notes
    assert "success is false" in notes
    for video in (directory / "recordings/MP4").glob("*.mp4"):
        video.unlink()
    assert problems(only(directory)) == ["it has no images"]


def test_one_damaged_episode_is_one_entry(tmp_path) -> None:
    tree = write(tmp_path, episodes=4, steps=5)
    files = sorted(tree.rglob("trajectory.h5"))
    files[0].write_bytes(files[0].read_bytes()[:3000])
    next(files[1].parent.glob("metadata_*")).write_text("{")
    (files[2].parent / "recordings/MP4" / f"{SERIALS['wrist']}.mp4").write_bytes(b"no video")
    items, _ = read(tree)
    assert [type(item) for item in items] == [Skipped, Skipped, Skipped, Episode]
    assert "not valid JSON" in items[1].reason and "cannot be opened as video" in items[2].reason


def test_names_stay_when_episodes_are_added(tmp_path) -> None:
    write_episode(tmp_path / "b/c", 0, 3)
    (first,), _ = read(tmp_path)
    write_episode(tmp_path / "a", 1, 3)
    write_episode(tmp_path / "b-c", 2, 3)
    items, _ = read(tmp_path)
    names = [item.name for item in items]
    assert first.name in names and len(set(names)) == 3 and all(Path(name).name == name for name in names)
    assert only(tmp_path / "a").name == "a"


def test_half_episodes_are_told_and_links_not_followed(tmp_path) -> None:
    tree = write(tmp_path, episodes=1, steps=3)
    (tree / "half").mkdir()
    (tree / "half/trajectory.h5").write_bytes(b"")
    outside = write_episode(tmp_path / "outside", 1, 3)
    (tree / "linked").symlink_to(outside)
    (tree / "loop").symlink_to(tree)
    items, said = read(tree)
    assert len(items) == 1 and len(said) == 1 and "1 directories are left out" in said[0] and "half" in said[0]
    assert READER.recognise(tree / "half") is None and READER.recognise(tmp_path / "nothing") is None
    deep = write_episode(tmp_path / "deep/1/2/3/4/5/6/7", 0, 3)
    assert READER.recognise(tmp_path / "deep") is None and READER.recognise(deep)
    next(outside.glob("trajectory.h5")).rename(tmp_path / "elsewhere.h5")
    (outside / "trajectory.h5").symlink_to(tmp_path / "elsewhere.h5")
    assert "leads out of the log" in reason(outside)


@pytest.mark.parametrize("what", ["huge", "text", "external", "three", "missing", "many"])
def test_hostile_numbers_are_refused(tmp_path, what: str) -> None:
    directory = write_episode(tmp_path / "e", 0, 5)
    with h5py.File(directory / "trajectory.h5", "r+") as file:
        action, key = file["action"], "joint_position"
        if what == "huge":
            del action[key]
            action.create_dataset(key, (2**40, 7), "f8", chunks=(1024, 7), compression="gzip")
        elif what == "text":
            replace(action, key, np.array([b"one"] * 5, dtype=object))
        elif what == "external":
            del file["action"]
            file["action"] = h5py.ExternalLink("other.h5", "/action")
        elif what == "three":
            replace(action, key, np.zeros((5, 7, 2)))
        elif what == "many":
            for number in range(300):
                action[f"x{number}"] = np.zeros(5)
        else:
            del action[key]
    assert reason(directory)


def test_hostile_metadata_are_harmless(tmp_path) -> None:
    strange = {"user": ["x"], "wrist_cam_serial": {"a": 1}, "wrist_mp4_path": 7, "wrist_cam_extrinsics": [1e400] * 6}
    directory = write_episode(tmp_path / "e", 0, 5, **strange, current_task=None)
    episode = only(directory)
    assert episode.instructions == [] and problems(episode) == []
    (file,) = directory.glob("metadata_*.json")
    for text, said in (("[" * 100_000, "not valid JSON"), ("[]", "no JSON object"), (" " * 2_000_000, "2000000 bytes")):
        file.write_text(text)
        assert said in reason(directory)
    file.write_text(json.dumps({}))
    assert problems(only(directory)) == ["it has no images"]
