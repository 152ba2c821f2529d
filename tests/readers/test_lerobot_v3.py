import json

import numpy as np
import pytest
from builders import lerobot_columns, motion, smooth_video, write_table, write_video
from logs.lerobot import put_episodes, row_of, v3_log
from reading import read_whole, streams_of

from vla_cli.episode import Episode, Skipped, problems
from vla_cli.errors import InputError
from vla_cli.readers import Options, opened, read_all
from vla_cli.readers import lerobot_parquet as parquet
from vla_cli.readers.lerobot import READER

LENGTHS = [15, 22, 9, 30]
DATA, LIST = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.front/chunk-000/file-000.mp4"
KEY = "observation.images.front"


def read(path):
    return read_whole(READER, path)


def relist(root, rows: list[dict]) -> None:
    put_episodes(root / LIST, rows)


@pytest.mark.parametrize("per_file", [100, 3, 1])
@pytest.mark.parametrize("grouped", [True, False])
def test_each_episode_gets_its_own_rows_and_pictures(tmp_path, per_file: int, grouped: bool) -> None:
    root = v3_log(tmp_path / "log", LENGTHS, per_file=per_file, grouped=grouped)
    items, said = read(root)
    assert said == [] and [item.name for item in items] == [f"episode_{i:06d}" for i in range(4)]
    for index, (item, steps) in enumerate(zip(items, LENGTHS, strict=True)):
        streams, columns = streams_of(item), lerobot_columns(index, steps)
        assert np.array_equal(streams["state"].values, np.array(columns["observation.state"]))
        assert np.array_equal(streams["action"].values, np.array(columns["action"]))
        assert np.array_equal(streams["action"].timestamps, np.array(columns["timestamp"]))
        assert streams["action"].attributes["names"] == ["dx", "grip"]
        error = np.abs(streams["front"].values.astype(int) - smooth_video(steps, index))
        assert streams["front"].values.shape == (steps, 32, 48, 3) and error.mean() < 4
        assert item.instructions == [["push the lever", "open the lid"][index % 2]]
        assert problems(item) == [] and item.notes == []


def test_what_is_assumed_nowhere_is_not_stated(tmp_path) -> None:
    items, _ = read(v3_log(tmp_path / "log", [15]))
    assert set(streams_of(items[0])["action"].attributes) == {"key", "rate_hz", "names"}
    assert set(streams_of(items[0])["front"].attributes) == {"key", "rate_hz", "channels"}


@pytest.mark.parametrize("grouped", [True, False])
def test_pictures_inside_the_shared_table_are_exact_and_no_path_is_followed(tmp_path, grouped: bool) -> None:
    root = v3_log(tmp_path / "log", LENGTHS, cameras=(), pictures=True, grouped=grouped)
    for index, item in enumerate(read(root)[0]):
        assert np.array_equal(streams_of(item)["wrist"].values, motion(LENGTHS[index], seed=index)["camera"])


def test_pictures_outlive_the_next_episode(tmp_path) -> None:
    root = v3_log(tmp_path / "log", LENGTHS, pictures=True, per_file=1)
    with opened(READER, root, Options(), print) as log:
        episodes = [log.read(entry) for entry in log.entries()]
        for index, episode in reversed(list(enumerate(episodes))):
            wrist = streams_of(episode)["wrist"].values
            assert np.array_equal(wrist, motion(LENGTHS[index], seed=index)["camera"])
            assert np.array_equal(np.stack([wrist.encoded(3), wrist.encoded(3)])[0], wrist.encoded(3))


@pytest.mark.parametrize("column", ["task", "__index_level_0__"])
def test_both_ways_to_write_the_tasks(tmp_path, column: str) -> None:
    root = v3_log(tmp_path / "log", LENGTHS[:2], index_column=column)
    relist(root, [{**row_of(i, LENGTHS, 0, 0, [KEY]), "tasks": []} for i in range(2)])
    assert [item.instructions for item in read(root)[0]] == [["push the lever"], ["open the lid"]]


def test_tasks_that_are_missing_or_damaged_are_those_of_the_list(tmp_path) -> None:
    root = v3_log(tmp_path / "log", LENGTHS[:2], total_tasks=0)
    (root / "meta/tasks.parquet").write_bytes(b"PAR1 broken off")
    items, said = read(root)
    assert [item.instructions for item in items] == [["push the lever"], ["open the lid"]]
    assert len(said) == 1 and "cannot be read as Parquet" in said[0]
    (root / "meta/tasks.parquet").unlink()
    items, said = read(root)
    assert items[1].instructions == ["open the lid"] and "There is no meta/tasks.parquet" in said[0]


def test_a_killed_writers_table_costs_only_its_own_episodes(tmp_path) -> None:
    root = v3_log(tmp_path / "log", LENGTHS, per_file=2)
    last = root / "data/chunk-000/file-001.parquet"
    last.write_bytes(last.read_bytes()[:-40])
    items, _ = read(root)
    assert all(isinstance(item, Episode) for item in items[:2])
    assert all("file-001.parquet cannot be read as Parquet" in item.reason for item in items[2:])


def test_a_killed_writers_list_is_an_entry_of_its_own(tmp_path) -> None:
    root = v3_log(tmp_path / "log", LENGTHS)
    relist(root, [row_of(i, LENGTHS, 0, 0, [KEY]) for i in range(3)])
    (root / "meta/episodes/chunk-000/file-001.parquet").write_bytes(b"PAR1\x15\x04")
    items, said = read(root)
    assert [type(item) for item in items] == [Episode, Episode, Episode, Skipped]
    assert items[3].name == "meta_episodes_chunk-000_file-001" and "cannot be read as Parquet" in items[3].reason
    assert any("has rows of 1 episodes that meta/episodes does not list (3)" in text for text in said)


def test_a_broken_off_or_missing_video_costs_only_its_own_episodes(tmp_path) -> None:
    root = v3_log(tmp_path / "log", LENGTHS, per_file=2)
    first = root / VIDEO
    first.write_bytes(first.read_bytes()[:400])
    items, _ = read(root)
    assert all("file-000.mp4 cannot be opened as video" in item.reason for item in items[:2])
    assert all(isinstance(item, Episode) for item in items[2:])
    first.unlink()
    assert "no video file of observation.images.front" in read(root)[0][0].reason


def test_a_video_that_ends_early_is_cut_by_one_or_refused(tmp_path) -> None:
    root = v3_log(tmp_path / "log", LENGTHS)
    frames = np.concatenate([smooth_video(steps, index) for index, steps in enumerate(LENGTHS)])
    write_video(root / VIDEO, frames[:-1])
    items, _ = read(root)
    assert {len(stream) for stream in items[3].streams} == {29} and "is cut to the common 29" in items[3].notes[0]
    assert len(items[2].streams[0]) == 9 and items[2].notes == []
    write_video(root / VIDEO, frames[:-5])
    assert "has 25 frames, its table has 30 rows" in read(root)[0][3].reason
    write_video(root / VIDEO, frames[:40])
    items, _ = read(root)
    assert isinstance(items[1], Episode) and "has 3 frames, its table has 9 rows" in items[2].reason
    assert "has no picture at 4.6 s, where it begins" in items[3].reason


def test_the_first_picture_is_the_nearest_one(tmp_path) -> None:
    root = v3_log(tmp_path / "log", LENGTHS)
    expected = [streams_of(item)["front"].values for item in read(root)[0]]
    for shift, notes in ((0.02, 0), (-0.02, 0), (0.04, 1), (-0.04, 1)):
        rows = [row_of(i, LENGTHS, 0, 0, [KEY]) for i in range(4)]
        for row in rows:
            row[f"videos/{KEY}/from_timestamp"] += shift
            row[f"videos/{KEY}/to_timestamp"] += shift
        relist(root, rows)
        for item, pictures in zip(read(root)[0], expected, strict=True):
            assert np.array_equal(streams_of(item)["front"].values, pictures) and len(item.notes) == notes


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e300, 1e300, None])
def test_times_that_are_none_are_refused(tmp_path, value) -> None:
    root = v3_log(tmp_path / "log", LENGTHS)
    rows = [row_of(i, LENGTHS, 0, 0, [KEY]) for i in range(4)]
    rows[1][f"videos/{KEY}/from_timestamp"] = value
    rows[2][f"videos/{KEY}/to_timestamp"] = value
    relist(root, rows)
    items, _ = read(root)
    assert isinstance(items[1], Skipped) and "video of observation.images.front" in items[1].reason
    # without a usable end, an episode in the middle of a file is followed by more pictures than it has rows
    assert [type(items[i]) for i in (0, 3)] == [Episode, Episode]


def test_lengths_that_lie_are_noted_and_rows_that_are_missing_refused(tmp_path) -> None:
    root = v3_log(tmp_path / "log", LENGTHS, total_frames=76, total_episodes=9, splits={"train": "0:9"})
    rows = [row_of(i, LENGTHS, 0, 0, [KEY]) for i in range(4)]
    rows[1]["length"] = 10**15
    rows.append({**row_of(3, LENGTHS, 0, 0, [KEY]), "episode_index": 7})
    relist(root, rows)
    items, said = read(root)
    assert "meta/episodes says 1000000000000000 frames, the table has 22 rows" in items[1].notes[0]
    assert "has no rows of it" in items[4].reason
    assert "total_episodes 9, but there are 5" in " ".join(said) and "0:9" in " ".join(said)


def test_rows_of_an_episode_that_lie_apart_are_refused(tmp_path) -> None:
    root = v3_log(tmp_path / "log", LENGTHS[:2])
    columns = lerobot_columns(0, 37)
    write_table(root / DATA, {**columns, "episode_index": [0] * 10 + [1] * 22 + [0] * 5})
    assert "has the rows of episode 0 apart" in read(root)[0][0].reason
    del columns["episode_index"]
    write_table(root / DATA, columns)
    assert "no column 'episode_index'" in read(root)[0][0].reason


@pytest.mark.parametrize(
    "change",
    [
        {"data_path": "../{chunk_index:03d}-{file_index}"},
        {"data_path": "/etc/{file_index}"},
        {"video_path": "videos/{video_key}/../../../x{file_index}.mp4"},
        {"data_path": "data/{file_index.__class__}"},
        {"data_path": "data/{file_index:0999999d}"},
        {"data_path": "data/{episode_index}"},
    ],
)
def test_paths_out_of_the_directory_are_refused(tmp_path, change: dict) -> None:
    with pytest.raises(InputError, match=r"outside|field"):
        read(v3_log(tmp_path / "log", [5], **change))


@pytest.mark.parametrize("place", [-1, 10**12, None])
def test_places_that_are_none_are_refused(tmp_path, place) -> None:
    root = v3_log(tmp_path / "log", [15])
    relist(root, [{**row_of(0, [15], 0, 0, [KEY]), "data/file_index": place}])
    items, _ = read(root)
    assert [type(item) for item in items] == [Skipped] and "meta/episodes" in items[0].reason


def test_links_out_of_the_log_are_not_followed_but_the_hubs_cache_is(tmp_path) -> None:
    root = v3_log(tmp_path / "hub/snapshots/abc", [15, 15], per_file=1)
    blobs = tmp_path / "hub/blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(path for path in root.rglob("*") if path.is_file())):
        file.rename(blobs / str(number))
        file.symlink_to(blobs / str(number))
    assert READER.recognise(root) and all(isinstance(item, Episode) for item in read(root)[0])
    (root / DATA).unlink()
    secret = tmp_path / "secret.parquet"
    (root / "data/chunk-000/file-001.parquet").resolve().rename(secret)
    (root / DATA).symlink_to(secret)
    items, said = read(root)
    assert all("below data/ is missing" in item.reason for item in items)
    assert any("links lead out of the log and are not followed" in text for text in said)


def test_a_list_without_episodes_is_refused(tmp_path) -> None:
    root = v3_log(tmp_path / "log", [5])
    (root / LIST).unlink()
    with pytest.raises(InputError, match="no episodes"):
        read(root)


def test_a_table_that_claims_too_much_is_refused_before_it_is_read(tmp_path, monkeypatch) -> None:
    root = v3_log(tmp_path / "log", [15])
    columns = lerobot_columns(0, 15)
    write_table(root / DATA, {**columns, "action": [[0.0] * 200_000] * 15})
    assert "claims 15 rows of" in read(root)[0][0].reason
    monkeypatch.setattr(parquet, "MOST_ROWS", 14)
    assert "file-000.parquet claims 15 rows" in read(root)[0][0].reason


def test_names_stay_when_episodes_are_added(tmp_path) -> None:
    few = v3_log(tmp_path / "few", LENGTHS[:2], per_file=1)
    many = v3_log(tmp_path / "many", LENGTHS, per_file=1)
    names = {}
    for root in (few, many):
        with opened(READER, root, Options(), print) as log:
            names[root] = [
                (entry.name, [file.relative_to(root) for file in entry.files], entry.stated) for entry in log.entries()
            ]
    assert names[many][:2] == names[few] and len(names[few][0][1]) == 2


def test_only_the_rows_of_the_episode_are_read(tmp_path) -> None:
    """Row groups of other episodes may even be damaged."""
    root = v3_log(tmp_path / "log", LENGTHS, cameras=())
    data = bytearray((root / DATA).read_bytes())
    import pyarrow.parquet as pq

    group = pq.ParquetFile(root / DATA).metadata.row_group(2)
    for i in range(group.num_columns):
        column = group.column(i)
        if column.path_in_schema.startswith("action"):
            at = column.dictionary_page_offset or column.data_page_offset
            data[at : at + column.total_compressed_size] = bytes(column.total_compressed_size)
    (root / DATA).write_bytes(data)
    items, _ = read(root)
    assert "cannot be read as Parquet" in items[2].reason
    info = json.loads((root / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and all(isinstance(items[i], Episode) for i in (0, 1, 3))


def test_memory_does_not_grow_with_the_length_of_an_episode(tmp_path) -> None:
    import tracemalloc

    peaks = []
    for steps in (30, 300):
        root = v3_log(tmp_path / str(steps), [steps], pictures=True, grouped=False)
        tracemalloc.start()
        for item in read_all(READER, root, print):
            for stream in item.of_role("image"):
                for _ in stream.values.blocks():
                    pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] + 2e5


@pytest.mark.parametrize("text", ["x" * 2_000_000, ["x"] * 120_000, ["x" * 90_000] * 100])
def test_texts_without_end_are_refused(tmp_path, text) -> None:
    root = v3_log(tmp_path / "log", [15])
    if isinstance(text, str):
        write_table(root / "meta/tasks.parquet", {"task_index": list(range(5)), "task": [text] * 5})
        assert any("holds a text of 2000000 bytes" in sentence for sentence in read(root)[1])
        return
    rows = [{**row_of(0, [15], 0, 0, [KEY]), "tasks": text, "episode_index": index} for index in range(10)]
    relist(root, rows)
    reasons = [item.reason for item in read(root)[0] if isinstance(item, Skipped)]
    assert any("holds too many texts" in reason or "claims 10 rows of" in reason for reason in reasons)


def test_a_picture_that_unpacks_to_far_too_much_is_refused(tmp_path) -> None:
    root = v3_log(tmp_path / "log", [1], cameras=(), pictures=True)
    columns = {**lerobot_columns(0, 1), "observation.images.wrist": [{"bytes": bytes(80_000_000), "path": ""}]}
    write_table(root / DATA, columns)
    assert (root / DATA).stat().st_size < 10_000_000
    assert "claims 76 MiB of 'observation.images.wrist.bytes'" in read(root)[0][0].reason


def test_instructions_that_stand_in_the_table_as_text(tmp_path) -> None:
    root = v3_log(tmp_path / "log", [9000], cameras=())
    column = "annotation.human.action.task_description"
    columns = {**lerobot_columns(0, 9000), column: ["close it"] * 5000 + ["open it"] * 4000}
    write_table(root / DATA, columns)
    assert read(root)[0][0].instructions == ["close it", "open it"]
