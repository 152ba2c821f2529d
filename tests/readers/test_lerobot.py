import os
import sys

import numpy as np
import pyarrow as pa
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
from reading import read_whole

from vla_cli.episode import Episode, Skipped, problems
from vla_cli.errors import InputError, MissingDependency
from vla_cli.files import read_json, write_json
from vla_cli.readers import Options, opened, read_all
from vla_cli.readers.lerobot import READER


def read(path) -> tuple[list, list[str]]:
    return read_whole(READER, path)


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
    assert "has 40 frames, its table has 15 rows" in read(root)[0][1].reason


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
    said = ["cannot be read as Parquet", "cannot be opened as video", "no table", "unequal length", "missing", ""]
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


@pytest.mark.parametrize("version", ["v4.0", "v1.6", None])
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


def test_a_grey_camera_inside_the_table_is_left_out_with_a_note(tmp_path) -> None:
    features = {"observation.image": {"dtype": "image"}, "action": {"dtype": "float32"}}
    root = lerobot_log(tmp_path / "log", episodes=1, cameras=(), features=features)
    grey = [{"bytes": png(picture[..., 0]), "path": "x.png"} for picture in motion(15)["camera"]]
    write_table(table(root, 0), {**lerobot_columns(0, 15), "observation.image": grey})
    item = next(read_all(READER, root, lambda sentence: None))
    assert isinstance(item, Episode) and item.of_role("image") == []
    assert any("left out" in note and "mode L" in note for note in item.notes)


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
    assert READER.recognise(root)
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


@pytest.mark.parametrize("fps", [0, -10, float("nan"), float("inf"), 1e300, 10**400, "10", True, None, [10]])
def test_a_rate_that_is_none_is_said_and_not_used(tmp_path, fps) -> None:
    root = lerobot_log(tmp_path / "log", episodes=1, fps=fps)
    items, said = read(root)
    assert "no usable fps" in said[0] and all("rate_hz" not in stream.attributes for stream in items[0].streams)
    columns = lerobot_columns(0, 15)
    del columns["timestamp"]
    write_table(table(root, 0), columns)
    assert "no timestamp column and meta/info.json states no fps" in read(root)[0][0].reason


def test_without_time_stamps_the_clock_runs_at_the_stated_rate(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log", episodes=1)
    columns = lerobot_columns(0, 15)
    del columns["timestamp"]
    write_table(table(root, 0), columns)
    (item,), _ = read(root)
    assert np.array_equal(item.streams[0].timestamps, np.arange(15) / 10) and "stated 10 Hz" in item.notes[0]


@pytest.mark.parametrize("size", [0, -5, 10**30, None])
def test_a_chunk_size_that_is_none_does_no_harm(tmp_path, size) -> None:
    items, _ = read(lerobot_log(tmp_path / "log", episodes=2, chunks_size=size))
    assert all(isinstance(item, Episode) for item in items)


@pytest.mark.parametrize("shape", [[10**12], [-1], [], "wide", None, [[2]]])
def test_shapes_of_the_metadata_are_not_believed(tmp_path, shape) -> None:
    root = lerobot_log(tmp_path / "log", episodes=1)
    info = read_json(root / "meta/info.json")
    for feature in info["features"].values():
        feature["shape"] = shape
    write_json(root / "meta/info.json", info)
    (item,), _ = read(root)
    assert {stream.name: stream.values.shape for stream in item.streams}["action"] == (15, 2)


def test_metadata_that_are_too_large_are_refused_unread(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log", episodes=1)
    for name, sentence in (("meta/episodes.jsonl", "at most 64 MiB"), ("meta/info.json", "takes 1024 MiB")):
        with (root / name).open("r+b") as file:
            file.truncate(2**30)
        assert READER.recognise(root)
        with pytest.raises(InputError, match=sentence):
            read(root)


def test_a_line_that_does_not_end_is_refused(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log", episodes=1)
    (root / "meta/episodes.jsonl").write_text("[" * 20_000_000)
    with pytest.raises(InputError, match=r"episodes\.jsonl line 1 is damaged"):
        read(root)


def test_too_many_features_and_names_that_are_none_are_refused(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log", episodes=1)
    info = read_json(root / "meta/info.json")
    for features in ({f"f{i}": {"dtype": "video"} for i in range(2000)}, {"a\x00b": {}}, {"": {}}, {"x" * 300: {}}):
        write_json(root / "meta/info.json", {**info, "features": features})
        with pytest.raises(InputError, match="features"):
            read(root)


@pytest.mark.parametrize("index", [-1, 10**12, "x", None, True, 1e300])
def test_episode_numbers_that_are_none_are_refused(tmp_path, index) -> None:
    root = lerobot_log(tmp_path / "log", episodes=1)
    write_lines(root / "meta/episodes.jsonl", [{"episode_index": index, "tasks": [], "length": 15}])
    with pytest.raises(InputError, match="malformed"):
        read(root)


def test_an_episode_that_is_listed_twice_is_read_once(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log", episodes=1)
    write_lines(root / "meta/episodes.jsonl", [{"episode_index": 0, "tasks": [], "length": 10**20}] * 2)
    (item,), said = read(root)
    assert "twice" in said[0] and "says 100000000000000000000 frames, the table has 15 rows" in item.notes[0]


def test_tables_that_claim_more_than_there_is(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log", episodes=3)
    write_table(table(root, 0), {**lerobot_columns(0, 15), "action": [[0.0] * 200_000] * 15})
    rows = 3_000_000  # a few bytes once packed
    columns = {"action": pa.array(np.zeros(rows)), "timestamp": pa.array(np.zeros(rows))}
    write_table(table(root, 1), columns)
    assert table(root, 1).stat().st_size < 100_000
    data = table(root, 2).read_bytes()
    table(root, 2).write_bytes(data[:4] + data[-900:])
    items, _ = read(root)
    assert "claims 15 rows of" in items[0].reason and "claims 3000000 rows of" in items[1].reason
    assert isinstance(items[2], Skipped) and "Parquet" in items[2].reason


def test_links_and_pipes_are_not_followed(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log", episodes=3)
    table(root, 0).rename(tmp_path / "outside.parquet")
    table(root, 0).symlink_to(tmp_path / "outside.parquet")
    video(root, 1).unlink()
    os.mkfifo(video(root, 1))
    items, said = read(root)
    assert "has no table" in items[0].reason and "no video file" in items[1].reason and isinstance(items[2], Episode)
    assert any("lead out of the log and are not followed" in text for text in said)
    (root / "meta/info.json").rename(tmp_path / "info.json")
    (root / "meta/info.json").symlink_to(tmp_path / "info.json")
    assert READER.recognise(root) is None
    with pytest.raises(InputError, match="leads out of the log"):
        read(root)


def test_other_columns_of_numbers_are_carried_and_other_kinds_said(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log", episodes=1)
    info = read_json(root / "meta/info.json")
    more = {"effort": {"dtype": "float32"}, "matrix": {"dtype": "float64"}, "remark": {"dtype": "string"}}
    bookkeeping = {"next.reward": {"dtype": "float32"}, "index": {"dtype": "int64"}}
    write_json(root / "meta/info.json", {**info, "features": {**info["features"], **more, **bookkeeping}})
    matrices = np.arange(15.0 * 6).reshape(15, 2, 3)
    columns = {"effort": list(range(15)), "matrix": matrices.tolist(), "remark": ["x"] * 15, "next.reward": [0.0] * 15}
    write_table(table(root, 0), {**lerobot_columns(0, 15), **columns})
    (item,), said = read(root)
    streams = {stream.name: stream for stream in item.streams}
    assert set(streams) == {"state", "action", "front", "effort", "matrix"} and streams["effort"].role == "other"
    assert np.array_equal(streams["matrix"].values, matrices.reshape(15, 6))
    assert said == ["The feature 'remark' is of dtype 'string', which is not numbers: it is left out."]


def test_the_names_that_openpis_converters_use(tmp_path) -> None:
    features = {"state": {"dtype": "float32"}, "actions": {"dtype": "float32"}, "image": {"dtype": "image"}}
    root = lerobot_log(tmp_path / "log", episodes=1, cameras=(), features=features)
    columns = lerobot_columns(0, 15)
    pictures = [{"bytes": png(picture), "path": None} for picture in motion(15)["camera"]]
    write_table(
        table(root, 0),
        {
            "state": columns["observation.state"],
            "actions": columns["action"],
            "image": pictures,
            "timestamp": columns["timestamp"],
        },
    )
    (item,), _ = read(root)
    assert {(s.role, s.name) for s in item.streams} == {("state", "state"), ("action", "actions"), ("image", "image")}
    assert problems(item) == []


@pytest.mark.parametrize("rows", [[{"bytes": None, "path": "/etc/hostname"}], [{"bytes": b"", "path": None}], ["text"]])
def test_pictures_without_bytes_are_refused_and_no_path_is_followed(tmp_path, rows: list) -> None:
    features = {"observation.image": {"dtype": "image"}, "action": {"dtype": "float32"}}
    root = lerobot_log(tmp_path / "log", episodes=1, cameras=(), features=features)
    write_table(table(root, 0), {**lerobot_columns(0, 15), "observation.image": rows * 15})
    assert "holds no picture bytes" in read(root)[0][0].reason


def test_the_real_set_is_read_in_full() -> None:
    """Facts of NVIDIA's robot_sim.PickNPlace as counted by hand in its tables."""
    lengths, objects, said = [], [], []
    for item in read_all(READER, real_log("gr00t_lerobot_v2/robot_sim.PickNPlace"), said.append):
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


def stated(root) -> dict[str, str]:
    with opened(READER, root, Options(), str) as log:
        return {entry.name: entry.stated for entry in log.entries()}


def alter_info(root, **changes) -> None:
    write_json(root / "meta/info.json", {**read_json(root / "meta/info.json"), **changes})


def test_what_is_stated_of_an_episode_changes_with_whatever_it_is_read_by(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log", episodes=2)
    seen = [stated(root)]
    features = read_json(root / "meta/info.json")["features"]
    features["action"]["names"] = {"motors": ["dy", "grip"]}
    listed = [{"episode_index": i, "tasks": ["pull"], "length": 15} for i in range(2)]
    for change in (
        lambda: alter_info(root, fps=20),
        lambda: alter_info(root, features=features),
        lambda: write_json(root / "meta/modality.json", {"action": {"arm": {"start": 0, "end": 1}}}),
        lambda: write_lines(root / "meta/tasks.jsonl", [{"task_index": 0, "task": "pull the lever"}]),
        lambda: write_lines(root / "meta/episodes.jsonl", listed),
    ):
        change()
        seen.append(stated(root))
    assert len({of["episode_000001"] for of in seen}) == len(seen)


def test_what_is_stated_of_an_episode_stays_while_a_set_grows(tmp_path) -> None:
    root = lerobot_log(tmp_path / "log", episodes=2)
    before = stated(root)
    alter_info(root, total_episodes=3, total_frames=45, total_tasks=2, splits={"train": "0:3"})
    texts = ["push the lever", "open the lid"]
    write_lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": text} for i, text in enumerate(texts)])
    listed = [{"episode_index": i, "tasks": [texts[i // 2]], "length": 15} for i in range(3)]
    write_lines(root / "meta/episodes.jsonl", listed)
    after = stated(root)
    assert {name: after[name] for name in before} == before and len(after) == 3
    assert after["episode_000002"] != after["episode_000001"]
