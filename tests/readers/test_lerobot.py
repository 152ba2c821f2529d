import sys

import numpy as np
import pytest
from builders import (
    lerobot_columns,
    lerobot_log,
    motion,
    png,
    real_log,
    smooth_video,
    write_lines,
    write_table,
    write_video,
)

from vla_cli.episode import Episode, Skipped, problems
from vla_cli.errors import InputError, MissingDependency
from vla_cli.files import read_json, write_json
from vla_cli.readers.lerobot import READER


def read(path) -> tuple[list, list[str]]:
    said: list[str] = []
    return list(READER.read(path, said.append)), said


def table(root, index: int):
    return root / f"data/chunk-000/episode_{index:06d}.parquet"


def video(root, index: int, key: str = "observation.images.front"):
    return root / f"videos/chunk-000/{key}/episode_{index:06d}.mp4"


def test_numbers_are_exact_and_pictures_within_the_codecs_error(tmp_path) -> None:
    items, said = read(lerobot_log(tmp_path / "log"))
    assert said == [] and [item.name for item in items] == ["episode_000000", "episode_000001", "episode_000002"]
    for index, item in enumerate(items):
        streams = {stream.name: stream for stream in item.streams}
        expected = np.array(lerobot_columns(index, 15)["observation.state"])
        assert np.array_equal(streams["state"].values, expected)
        assert np.array_equal(streams["action"].values, np.array(lerobot_columns(index, 15)["action"]))
        error = np.abs(streams["front"].values.astype(int) - smooth_video(15, index))
        assert streams["front"].values.shape == (15, 32, 48, 3) and error.mean() < 4 and np.quantile(error, 0.99) < 16
        assert streams["state"].attributes["names"] == ["x", "gripper"]
        assert streams["action"].attributes["names"] == ["dx", "grip"]
        assert streams["action"].attributes["rate_hz"] == 10.0
        assert item.instructions == ["push the lever"] and problems(item) == []


def test_a_video_shorter_than_its_table_is_skipped_with_both_numbers(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log")
    write_video(video(root, 1), smooth_video(9))
    items, _ = read(root)
    assert items[1] == Skipped(
        "episode_000001", "the video of observation.images.front has 9 frames, its table has 15 rows"
    )
    write_video(video(root, 1), smooth_video(40))
    assert "more than 16 frames" in read(root)[0][1].reason


@pytest.mark.parametrize("frames", [14, 16])
def test_one_frame_more_or_less_is_trimmed_and_noted(tmp_path, frames: int) -> None:
    root = lerobot_log(tmp_path / "log", episodes=1)
    write_video(video(root, 0), smooth_video(frames))
    (item,), _ = read(root)
    assert isinstance(item, Episode) and problems(item) == []
    assert {len(stream) for stream in item.streams} == {min(frames, 15)} and "is cut to the common" in item.notes[0]


def test_a_camera_without_any_file_is_left_out_and_said_once(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log", cameras=("front", "ghost"))
    for index in range(3):
        video(root, index, "observation.images.ghost").unlink()
    items, said = read(root)
    assert len(said) == 1 and "'observation.images.ghost'" in said[0] and "no video file" in said[0]
    assert all([s.name for s in item.of_role("image")] == ["front"] for item in items)


def test_a_camera_missing_in_some_episodes_skips_those(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log")
    video(root, 2).unlink()
    items, said = read(root)
    assert isinstance(items[2], Skipped) and "no video file of observation.images.front" in items[2].reason
    assert said == [] and isinstance(items[0], Episode)


def test_damaged_and_missing_parts_skip_one_episode(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log", episodes=6)
    table(root, 0).write_bytes(table(root, 0).read_bytes()[:200])
    video(root, 1).write_bytes(b"no video")
    table(root, 2).unlink()
    write_table(table(root, 3), {**lerobot_columns(3, 15), "action": [[1.0, 2.0]] * 14 + [[1.0]]})
    write_table(table(root, 4), {**lerobot_columns(4, 15), "action": [[1.0, None]] * 15})
    reasons = [item.reason if isinstance(item, Skipped) else "" for item in read(root)[0]]
    said = ["cannot be read as Parquet", "cannot be decoded", "no table", "unequal length", "missing", ""]
    assert all(part in reason for part, reason in zip(said, reasons, strict=True)) and not reasons[-1]


def test_what_the_metadata_get_wrong_is_said(tmp_path) -> None:
    root = lerobot_log(
        tmp_path / "log",
        splits={"train": "0:100"},
        total_chunks=0,
        data_path="data/chunk-{episode_index:03d}/episode_{episode_index:06d}.parquet",
    )
    items, said = read(root)
    text = " ".join(said)
    assert "0:100" in text and "only 3 episodes" in text and "total_chunks 0, but there are 1" in text
    assert "does not lead to 2 file(s); they were found at the standard place" in text and len(items) == 3


def test_files_are_found_by_name_as_a_last_resort(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log")
    (root / "data/chunk-000").rename(root / "data/elsewhere")
    items, said = read(root)
    assert all(isinstance(item, Episode) for item in items) and "found by name" in said[0]


@pytest.mark.parametrize(
    "change",
    [
        {"data_path": "../{episode_index:06d}.parquet"},
        {"data_path": "/etc/{episode_index}"},
        {"video_path": "videos/{video_key}/../../../x{episode_index}.mp4"},
        {"data_path": "data/{episode_index.__class__}"},
        {"data_path": "data/{episode_index:0999999d}"},
        {"data_path": "data/{secret}"},
        {"features": {"../../../../x": {"dtype": "video", "shape": [1, 1, 3]}}},
    ],
)
def test_paths_out_of_the_directory_are_refused(tmp_path, change: dict) -> None:
    with pytest.raises(InputError, match=r"outside|field"):
        read(lerobot_log(tmp_path / "log", episodes=1, **change))


@pytest.mark.parametrize("version", ["v3.0", "v1.6", None])
def test_other_versions_are_named(tmp_path, version: str | None) -> None:
    root = lerobot_log(tmp_path / "log", episodes=1, codebase_version=version)
    assert READER.recognise(root)
    with pytest.raises(InputError, match=f"codebase_version {version!r}"):
        read(root)


def test_damaged_metadata_are_named(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log", episodes=1)
    (root / "meta/episodes.jsonl").write_text('{"episode_index": 0}\n{"tasks": []}\n')
    with pytest.raises(InputError, match=r"episodes\.jsonl line 2"):
        read(root)
    (root / "meta/episodes.jsonl").write_text("")
    with pytest.raises(InputError, match="no episodes"):
        read(root)
    (root / "meta/info.json").write_text("{")
    assert READER.recognise(root)
    with pytest.raises(InputError, match="not valid JSON"):
        read(root)


def test_pictures_inside_the_table_are_exact(tmp_path) -> None:
    features = {"observation.image": {"dtype": "image"}, "action": {"dtype": "float32"}}
    root = lerobot_log(tmp_path / "log", episodes=1, cameras=(), features=features)
    pictures = motion(15)["camera"]
    rows = [{"bytes": png(picture), "path": "x.png"} for picture in pictures]
    write_table(table(root, 0), {**lerobot_columns(0, 15), "observation.image": rows})
    (item,), _ = read(root)
    assert np.array_equal(item.of_role("image")[0].values, pictures)


def test_validity_is_no_instruction_and_an_invalid_episode_is_skipped(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log", episodes=2)
    write_lines(
        root / "meta/tasks.jsonl",
        [{"task_index": i, "task": t} for i, t in enumerate(["push the lever", "valid", "invalid"])],
    )
    for index in range(2):
        columns = {**lerobot_columns(index, 15), "annotation.human.validity": [1 + index] * 15}
        write_table(table(root, index), {**columns, "annotation.human.action.task_description": [0] * 15})
    items, said = read(root)
    assert items[0].instructions == ["push the lever"] and "marks it as invalid" in items[1].reason
    assert any("'valid'" in sentence and "no instruction" in sentence for sentence in said)


@pytest.mark.parametrize("package", ["pyarrow", "av"])
def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch, package: str) -> None:
    root = lerobot_log(tmp_path / "log", episodes=1)
    for name in list(sys.modules):
        if name.partition(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert READER.recognise(root) and READER.count(root) == 1
    with pytest.raises(MissingDependency, match=rf"'{package}'.*pip install 'vla-cli\[lerobot\]'"):
        read(root)


@pytest.mark.parametrize(
    ("file", "document"),
    [
        ("modality.json", {"action": {"arm": 3}}),
        ("modality.json", {"action": {"arm": {"start": 0}}}),
        ("info.json", {"splits": ["train"]}),
        ("info.json", {"chunks_size": "many"}),
    ],
)
def test_malformed_metadata_are_refused(tmp_path, file: str, document: dict) -> None:
    root = lerobot_log(tmp_path / "log", episodes=1)
    old = read_json(root / "meta" / file) if file == "info.json" else {}
    write_json(root / "meta" / file, {**old, **document})
    with pytest.raises(InputError, match="malformed"):
        read(root)


def test_info_without_features_is_refused(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log", episodes=1)
    info = read_json(root / "meta/info.json")
    write_json(root / "meta/info.json", {**info, "features": []})
    with pytest.raises(InputError, match="no 'features'"):
        read(root)


def test_the_real_set_is_read_in_full() -> None:
    """Facts of NVIDIA's robot_sim.PickNPlace as counted by hand in its tables."""
    lengths, objects, said = [], [], []
    for item in READER.read(real_log("gr00t_lerobot_v2/robot_sim.PickNPlace"), said.append):
        assert isinstance(item, Episode) and problems(item) == []
        streams = {stream.name: stream for stream in item.streams}
        assert set(streams) == {"ego_view", "state", "action"}
        assert streams["ego_view"].values.shape == (len(streams["state"]), 256, 256, 3)
        assert streams["state"].values.shape[1] == streams["action"].values.shape[1] == 44
        assert streams["action"].attributes["names"][22] == "right_arm[0]"
        lengths.append(len(streams["action"]))
        objects.append(item.instructions[0].removeprefix("pick the ").partition(" from the counter and place it in")[0])
    assert lengths == [416, 470, 470, 412, 328] and sum(lengths) == 2096
    assert objects == ["pear", "sweet potato", "meat", "salt", "cupcake"]
    text = " ".join(said)
    for fact in ("'observation.images.egoview'", "0:100", "total_chunks 0", "'valid'", "data_path", "video_path"):
        assert fact in text
    assert len(said) == 6
