import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import motion
from logs.frames_csv import write, write_episode, write_pictures, write_rows
from PIL import Image
from reading import only_one, read_whole, streams_of

from vla_cli.episode import Episode, Skipped, problems
from vla_cli.errors import ConfigError, InputError
from vla_cli.readers import Options, list_entries, opened, read_all
from vla_cli.readers.frames_csv import READER

CLOCK = np.arange(20) / 10


def plain(folder: Path, steps: int = 20, **texts: list[str]) -> Path:
    """One camera, a picture a row."""
    parts = motion(steps)
    write_rows(folder, parts, np.arange(steps) / 10, **texts)
    write_pictures(folder / "frames", parts["camera"])
    return folder


def reason(folder: Path) -> str:
    items, _ = read_whole(READER, folder)
    assert len(items) == 1 and isinstance(items[0], Skipped), items
    return items[0].reason


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def mapped(path: Path, topics: Path) -> list:
    return list(read_all(READER, path, lambda sentence: None, Options(topics)))


# ---- healthy


def test_numbers_and_pictures_come_back_bit_for_bit(tmp_path) -> None:
    items, said = read_whole(READER, write(tmp_path, episodes=3))
    assert said == [] and [item.name for item in items] == ["demo_0", "demo_1", "demo_2"]
    for index, item in enumerate(items):
        assert isinstance(item, Episode) and problems(item) == [] and item.notes == []
        parts, streams = motion(20, index), streams_of(item)
        assert {(s.role, s.name) for s in item.streams} == {
            *(("image", name) for name in ("front", "wrist")),
            ("state", "state"),
            ("action", "action"),
        }
        assert np.array_equal(streams["state"].values, np.concatenate([parts["position"], parts["gripper"]], axis=1))
        assert np.array_equal(streams["action"].values, parts["actions"])
        assert np.array_equal(streams["action"].timestamps, CLOCK)
        assert np.array_equal(streams["front"].values, parts["camera"])
        assert np.array_equal(streams["front"].timestamps, CLOCK)
        assert np.array_equal(streams["wrist"].timestamps, 0.01 + np.arange(10) / 5)
        with Image.open(tmp_path / f"demos/demo_{index}/frames/wrist/000003.jpg") as picture:
            assert np.array_equal(streams["wrist"].values[3], np.asarray(picture))
        assert streams["action"].attributes == {"names": ["dx", "dy", "dz", "grip"], "rate_hz": 10.0, "mode": "delta"}
        assert streams["front"].attributes == {"channels": "rgb", "orientation": "upright"}
        assert item.instructions == ["put the red cube in the bowl"] and item.operator == "ada"


def test_one_episode_named_by_its_folder_and_its_files(tmp_path) -> None:
    folder = write_episode(tmp_path / "demo_7")
    assert only_one(READER, folder)[0].name == "demo_7"
    with opened(READER, folder, Options(), lambda sentence: None) as log:
        (entry,) = list_entries(log, folder)
    expected = {file for file in folder.rglob("*") if file.is_file()}
    assert set(entry.files) == expected


def test_episodes_come_by_number_and_keep_their_names(tmp_path) -> None:
    for number in (10, 2, 1):
        plain(tmp_path / f"demo_{number}", 3)
    assert [item.name for item in read_whole(READER, tmp_path)[0]] == ["demo_1", "demo_2", "demo_10"]


def test_pictures_come_by_the_numbers_in_their_names(tmp_path) -> None:
    parts = motion(12)
    write_rows(tmp_path / "a", parts, np.arange(12) / 10)
    write_pictures(tmp_path / "a/frames", parts["camera"], [f"img_{step}.png" for step in range(12)])
    assert np.array_equal(streams_of(only_one(READER, tmp_path / "a")[0])["frames"].values, parts["camera"])


@pytest.mark.parametrize(
    ("names", "times"),
    [
        ([f"{1.7e9 + step / 4:.2f}.png" for step in range(8)], 1.7e9 + np.arange(8) / 4),
        ([f"{1_700_000_000_250_000_000 + step * 10**8}.png" for step in range(8)], 1.7e9 + 0.25 + np.arange(8) / 10),
    ],
)
def test_names_that_are_times(tmp_path, names, times) -> None:
    parts = motion(20)
    write_rows(tmp_path / "a", parts, 1.7e9 + CLOCK)
    write_pictures(tmp_path / "a/frames/cam", parts["camera"][:8], names)
    camera = streams_of(only_one(READER, tmp_path / "a")[0])["cam"]
    assert np.allclose(camera.timestamps, times, atol=1e-6, rtol=0)
    assert np.array_equal(camera.values, parts["camera"][:8])


def test_short_names_with_decimals_are_sorted_as_numbers(tmp_path) -> None:
    parts = motion(3)
    write_rows(tmp_path / "a", parts, np.arange(3) / 10)
    write_pictures(tmp_path / "a/frames", parts["camera"], ["0.02.png", "0.10.png", "0.3.png"])
    camera = streams_of(only_one(READER, tmp_path / "a")[0])["frames"]
    assert np.array_equal(camera.timestamps, [0.02, 0.10, 0.3]) and np.array_equal(camera.values, parts["camera"])


def test_rows_that_name_their_pictures(tmp_path) -> None:
    parts = motion(6)
    front = ["0.png", "0.png", "", "1.png", "frames/front/3.png", "front/3.png"]
    texts = {"frame.front": front, "frame.wrist": [f"wrist/{step}.png" for step in range(6)]}
    write_rows(tmp_path / "a", parts, np.arange(6) / 10, **texts)
    for camera in ("front", "wrist"):
        names = [f"{step}.png" for step in range(6)]
        write_pictures(tmp_path / "a/frames" / camera, parts["camera"], names)
    item, said = only_one(READER, tmp_path / "a")
    streams = streams_of(item)
    assert np.array_equal(streams["front"].values, parts["camera"][[0, 1, 3, 3]])
    assert np.allclose(streams["front"].timestamps, [0, 0.3, 0.4, 0.5])
    assert np.array_equal(streams["wrist"].values, parts["camera"])
    assert any("3 pictures of frames/front are left out: data.csv does not name them" in one for one in said)


def test_the_only_camera_takes_the_column_frame_and_bare_names_in_frames_csv(tmp_path) -> None:
    parts = motion(4)
    write_rows(tmp_path / "a", parts, np.arange(4) / 10, frame=["b.png", "a.png", "d.png", "c.png"])
    write_rows(tmp_path / "b", parts, np.arange(4) / 10)
    for folder in ("a", "b"):
        write_pictures(tmp_path / folder / "frames/cam", parts["camera"], [f"{letter}.png" for letter in "abcd"])
    (tmp_path / "b/frames.csv").write_text("file,timestamp\nb.png,0.1\nc.png,0.3\n")
    items, said = read_whole(READER, tmp_path)
    assert np.array_equal(streams_of(items[0])["cam"].values, parts["camera"][[1, 0, 3, 2]])  # pyright: ignore[reportArgumentType]
    assert np.array_equal(streams_of(items[1])["cam"].timestamps, [0.1, 0.3])  # pyright: ignore[reportArgumentType]
    assert any("2 pictures of frames/cam are left out: frames.csv" in one for one in said)


def test_instruction_and_operator_of_the_rows_win(tmp_path) -> None:
    said_by_rows = {"instruction": ['"take, it"'] * 10 + ["put it down"] * 10, "operator": ["ada"] * 19 + ["bo"]}
    folder = plain(tmp_path / "a", **said_by_rows)
    (folder / "episode.yaml").write_text("instruction: something else\noperator: cy\n")
    item, said = only_one(READER, folder)
    assert item.instructions == ["take, it", "put it down"] and item.operator == "ada"
    assert any("several operators" in one for one in said)


def test_yaml_facts_and_a_rate_in_place_of_times(tmp_path) -> None:
    folder = plain(tmp_path / "a")
    edit(folder / "data.csv", "timestamp", "row")
    assert "no column 'timestamp'" in reason(folder)
    (folder / "episode.yml").write_text("rate_hz: 5\ninstruction: [lift it, ' ']\n")
    item, said = only_one(READER, folder)
    assert np.allclose(streams_of(item)["action"].timestamps, np.arange(20) / 5)
    assert item.instructions == ["lift it"] and item.operator == "unknown"
    assert any("columns 'row' of data.csv are left out" in one for one in said)


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("name", ["timestamp", "time", "t"])
def test_other_delimiters_a_byte_order_mark_and_windows_line_ends(tmp_path, delimiter, name) -> None:
    folder = plain(tmp_path / "a")
    text = (folder / "data.csv").read_text().replace("timestamp", name).replace(",", delimiter)
    (folder / "data.csv").unlink()
    (folder / "Log 1.CSV").write_bytes(b"\xef\xbb\xbf\r\n" + text.replace("\n", "\r\n").encode() + b"\r\n")
    item, _ = only_one(READER, folder)
    assert np.array_equal(streams_of(item)["action"].values, motion(20)["actions"])


def test_columns_are_mapped_by_topics(tmp_path) -> None:
    folder = plain(tmp_path / "a", text=["go"] * 20, who=["ada"] * 20, picture=[f"{i:06d}.png" for i in range(20)])
    header = "t,q1,q2,q3,g,v1,v2,v3,gc,text,who,picture"
    lines = (folder / "data.csv").read_text().split("\n")
    (folder / "data.csv").write_text("\n".join([header, *lines[1:]]))
    topics = tmp_path / "map.yaml"
    topics.write_text(
        "timestamp: t\nstate: [q1, q3]\naction: [v3, gc]\ninstruction: text\noperator: who\nframe: picture\n"
    )
    (item,) = mapped(tmp_path, topics)
    streams = streams_of(item)
    assert np.array_equal(streams["state"].values, motion(20)["position"][:, [0, 2]])
    assert np.array_equal(streams["action"].values, motion(20)["actions"][:, [2, 3]])
    assert streams["state"].attributes["names"] == ["q1", "q3"]
    assert item.instructions == ["go"] and item.operator == "ada"
    topics.write_text("action: [nothing]")
    (skipped,) = mapped(tmp_path, topics)
    assert "no column 'nothing'" in skipped.reason and "'q1'" in skipped.reason


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("stat: [a]", "'stat'"),
        ("[a]", "is no mapping"),
        ("state: a", "no column names under 'state'"),
        ("state: [a, a]", "no column names under 'state'"),
        ("timestamp: 3", "no column names under 'timestamp'"),
        ("a: [", "cannot be read"),
        ("a: !!python/object/apply:os.system [ls]", "cannot be read"),
        ("a: " + "[" * 16_000, "cannot be read"),
        ("x" * 100_000, "cannot be read"),
        ("timestamp: !!bool maybe", "cannot be read"),
    ],
)
def test_a_mapping_that_is_not_understood_names_the_known_keys(tmp_path, text: str, fragment: str) -> None:
    plain(tmp_path / "a")
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(ConfigError, match=re.escape(fragment)) as caught:
        mapped(tmp_path, tmp_path / "map.yaml")
    assert (
        "column" in str(caught.value) or "timestamp, state, action" in str(caught.value) or "YAML" in str(caught.value)
    )


def test_recognise(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.csv").write_text("timestamp,action.x\n")
    assert all(READER.recognise(path) is None for path in (tmp_path, tmp_path / "empty", tmp_path / "file.csv"))
    folder = plain(tmp_path / "a")
    assert READER.recognise(tmp_path) and READER.recognise(folder)
    (folder / "data.csv").write_bytes(b"\0\0")
    assert READER.recognise(folder)


# ---- damaged


@pytest.mark.parametrize(
    ("old", "new", "fragments"),
    [
        ("\n0.3,", "\nx,", ["data.csv line 5", "'timestamp'", "'x' is no finite number"]),
        ("\n0.3,", "\nnan,", ["line 5", "'nan' is no finite number"]),
        ("\n0.3,", "\n,", ["line 5", "'timestamp'", "the cell is empty"]),
        ("\n0.3,", "\n1_0,", ["line 5", "'1_0'"]),
        ("\n0.3,", "\n0.1,", ["line 5 goes back in time, from 0.2"]),
        ("\n0.3,", "\n", ["line 5 has 8 cells, the header has 9"]),
        ("\n0.3,", "\n\x00,", ["line 5"]),
        ("state.x", "state.y", ["two columns 'state.y'"]),
        ("action.", "act.", ["action.dy"]),
        ("timestamp", "stamp", ["no column 'timestamp'"]),
    ],
)
def test_what_is_wrong_with_a_table_is_named_by_line_and_column(tmp_path, old, new, fragments) -> None:
    folder = plain(tmp_path / "a")
    edit(folder / "data.csv", old, new)
    if old == "action.":
        edit(folder / "data.csv", "action.dy", "act.dy")
        edit(folder / "data.csv", "action.dz", "act.dz")
        edit(folder / "data.csv", "action.grip", "act.grip")
        fragments = ["no columns action.<name>", "--topics"]
    found = reason(folder)
    assert all(fragment in found for fragment in fragments), found


def test_a_depth_camera_is_left_out_by_name(tmp_path) -> None:
    folder = write_episode(tmp_path / "a")
    for file in (folder / "frames/front").iterdir():
        Image.fromarray(np.full((12, 12), 1200, np.uint16)).save(file)
    episode, said = only_one(READER, folder)
    assert [stream.name for stream in episode.of_role("image")] == ["wrist"] and problems(episode) == []
    assert any("front" in text and "left out" in text for text in said) and len(episode.notes) == 1


def test_times_in_milliseconds_are_not_taken_for_seconds(tmp_path) -> None:
    folder, parts = plain(tmp_path / "a"), motion(20)
    write_rows(folder, parts, 1.7e12 + np.arange(20) * 100.0)
    assert "advance by 100 a row" in reason(folder) and "divide them by 1000" in reason(folder)


def test_times_in_nanoseconds_are_not_taken_for_seconds(tmp_path) -> None:
    parts = motion(5)
    write_rows(tmp_path / "a", parts, 1e8 * np.arange(5))
    write_pictures(tmp_path / "a/frames", parts["camera"])
    assert "seconds are expected" in reason(tmp_path / "a")


def test_pictures_without_times_are_refused_with_what_is_missing(tmp_path) -> None:
    folder = plain(tmp_path / "a")
    (folder / "frames/000003.png").unlink()
    found = reason(folder)
    for fragment in ("19 pictures", "20 rows", "column frame", "frames.csv", "file,timestamp", "by their times"):
        assert fragment in found


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("file,timestamp\n000000.png,x\n", "'x' is no finite number"),
        ("file,timestamp\n000000.png,1\n000001.png,0\n", "line 3 goes back in time"),
        ("file,timestamp\n../../../etc/passwd,1\n", "no picture in frames/"),
        ("file,timestamp\nother/000000.png,1\n", "no picture in frames/"),
        ("name,time\n000000.png,1\n", "'file' and 'timestamp' are needed"),
        ("", "is empty"),
        ("file,timestamp\n000000.png,77\n", "was taken from 77.000 s"),
    ],
)
def test_what_is_wrong_with_frames_csv(tmp_path, text: str, fragment: str) -> None:
    folder = plain(tmp_path / "a")
    (folder / "frames.csv").write_text(text)
    assert fragment in reason(folder)


def test_rows_that_name_what_is_not_there(tmp_path) -> None:
    folder = plain(tmp_path / "a", frame=["../../x.png"] * 20)
    assert "line 2 names the picture '../../x.png'" in reason(folder)
    edit(folder / "data.csv", ",frame", ",frame.wrist")
    assert "names pictures of none of the cameras 'frames'" in reason(folder)


@pytest.mark.parametrize(
    ("document", "fragment"),
    [
        ({"instructions": "x"}, "known ones are: instruction, operator, rate_hz, conventions"),
        ({"rate_hz": -1}, "no number above 0"),
        ({"rate_hz": float("nan")}, "no number above 0"),
        ({"rate_hz": True}, "no number above 0"),
        ({"rate_hz": 1e300}, "no number above 0"),
        ({"instruction": 3}, "is no text"),
        ({"conventions": {"elbow": {"units": "m"}}}, "streams: 'state', 'action', 'frames'"),
        ({"conventions": {"action": {"colour": "m"}}}, "known ones: orientation"),
        ({"conventions": {"action": {"mode": "sideways"}}}, "absolute, delta, velocity"),
        ({"conventions": {"action": {"orientation": "upright"}}}, "of the role action"),
        ({"conventions": []}, "no mapping of stream"),
        ([], "is no mapping"),
        ("text", "is no mapping"),
    ],
)
def test_what_is_wrong_with_episode_json(tmp_path, document, fragment: str) -> None:
    folder = plain(tmp_path / "a")
    (folder / "episode.json").write_text(json.dumps(document))
    assert fragment in reason(folder)


def test_damaged_facts(tmp_path) -> None:
    folder = plain(tmp_path / "a")
    for text in ("{", "[" * 100_000, '"' + "x" * 2_000_000 + '"'):
        (folder / "episode.json").write_text(text)
        assert "episode.json" in reason(folder)
    (folder / "episode.json").write_text("{}")
    (folder / "episode.yaml").write_text("{}")
    assert "one is enough" in reason(folder)
    (folder / "episode.json").unlink()
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))]
    for key in ("rate_hz", "instruction", "conventions", "operator"):
        (folder / "episode.yaml").write_text("\n".join([*lines, f"{key}: *a59"]))
        assert "keys" in reason(folder)
        bomb = "[&b0 [x, x]" + "".join(f", &b{i} [*b{i - 1}, *b{i - 1}]" for i in range(1, 60)) + "]"
        (folder / "episode.yaml").write_text(f"{key}: {bomb}")
        assert "episode.yaml" in reason(folder)
    for value in ("!!bool maybe", "!!int ''", "!!timestamp now", "2026-13-45"):
        (folder / "episode.yaml").write_text(f"operator: {value}")
        assert "not what it is written as" in reason(folder)
    (folder / "episode.yaml").write_text(f"conventions: {{action: {{mode: {bomb}}}}}")
    assert "a value of type list" in reason(folder)


def test_what_an_episode_lacks_is_said_and_the_others_go_on(tmp_path) -> None:
    for name in ("a", "b", "c", "d", "e"):
        plain(tmp_path / name, 3)
    (tmp_path / "a/data.csv").unlink()
    (tmp_path / "b/data.csv").write_text("timestamp,action.x\n")
    for file in (tmp_path / "c/frames").iterdir():
        file.unlink()
    (tmp_path / "d/frames/000001.png").write_bytes(b"no picture")
    (tmp_path / "d/frames/Thumbs.db").write_bytes(b"x")
    (tmp_path / "notes").mkdir()
    said: list[str] = []
    reasons = {}
    for item in read_all(READER, tmp_path, said.append):
        reasons[item.name] = item.reason if isinstance(item, Skipped) else ""
        if item.name == "d":
            assert isinstance(item, Episode)
            with pytest.raises(ValueError, match="frames step 1 cannot be decoded"):
                np.asarray(streams_of(item)["frames"].values)
    assert "no CSV file" in reasons["a"] and "no rows" in reasons["b"] and "no pictures" in reasons["c"]
    assert reasons["d"] == reasons["e"] == ""
    assert any("'notes'" in one and "no episodes" in one for one in said)
    assert any("1 things in frames are no pictures" in one for one in said)


def test_an_empty_camera_folder_is_no_camera_that_can_be_passed_over(tmp_path) -> None:
    folder = plain(tmp_path / "a")
    (folder / "frames/wrist").mkdir()
    assert "frames/wrist has no pictures" in reason(folder)


def test_several_csv_files(tmp_path) -> None:
    folder = plain(tmp_path / "a")
    (folder / "more.csv").write_text("x\n")
    _, said = only_one(READER, folder)
    assert any("'more.csv' beside data.csv are left out" in one for one in said)
    (folder / "data.csv").rename(folder / "log.csv")
    assert "several CSV files ('log.csv', 'more.csv')" in reason(folder)


def test_pictures_of_different_sizes(tmp_path) -> None:
    folder = plain(tmp_path / "a", 3)
    write_pictures(folder / "frames", np.zeros((1, 6, 6, 3), np.uint8), ["000002.png"])
    for item in read_all(READER, folder, lambda sentence: None):
        assert isinstance(item, Episode)
        with pytest.raises(ValueError, match=r"frames step 2 is \[6, 6, 3\], step 0 is \[12, 12, 3\]"):
            np.asarray(streams_of(item)["frames"].values)


# ---- hostile


def test_links_out_of_the_log_are_not_followed(tmp_path) -> None:
    outside = plain(tmp_path / "outside")
    (tmp_path / "log").mkdir()
    (tmp_path / "log/linked").symlink_to(outside)
    folder = plain(tmp_path / "log/a", 3)
    (folder / "frames/000002.png").unlink()
    (folder / "frames/000002.png").symlink_to(outside / "frames/000000.png")
    (folder / "frames/loop").symlink_to(folder / "frames/loop")
    items, said = read_whole(READER, tmp_path / "log")
    assert [type(item) for item in items] == [Skipped] and any("'linked'" in one for one in said)
    assert "2 pictures" in items[0].reason  # pyright: ignore[reportAttributeAccessIssue]


def test_pipes_and_devices_are_not_opened(tmp_path) -> None:
    folder = plain(tmp_path / "a", 3)
    for name in ("data.csv", "frames/000001.png", "frames.csv", "episode.json"):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    assert "no CSV file" in reason(folder)


def test_lines_and_tables_without_end_are_refused(tmp_path, monkeypatch) -> None:
    folder = plain(tmp_path / "a", 3)
    whole = (folder / "data.csv").read_text()
    (folder / "data.csv").write_text(whole + "0" * 5_000_000)
    assert "a line of more than" in reason(folder)
    (folder / "data.csv").write_text(whole + '"' + "0,\n" * 500_000)
    assert "line" in reason(folder)
    (folder / "data.csv").write_text(",".join(f"c{i}" for i in range(20_000)) + "\n")
    assert "20000 columns" in reason(folder)
    (folder / "data.csv").write_bytes(b"\xff\xfe" + whole.encode("utf-16-le"))
    assert "utf-8" in reason(folder)


def test_a_picture_that_claims_to_be_huge_is_refused(tmp_path) -> None:
    folder = plain(tmp_path / "a", 3)
    data = bytearray((folder / "frames/000000.png").read_bytes())
    data[16:24] = (200_000).to_bytes(4, "big") * 2
    (folder / "frames/000000.png").write_bytes(data)
    assert "claims 200000x200000 pixels" in reason(folder) or "cannot be decoded" in reason(folder)


def test_what_is_no_log(tmp_path) -> None:
    with pytest.raises(InputError, match="holds no episode"):
        read_whole(READER, tmp_path)
    (tmp_path / "x").write_text("x")
    with pytest.raises(InputError, match="is not a folder"):
        read_whole(READER, tmp_path / "x")


# ---- promises


_MEASURE = """
import resource, sys
from pathlib import Path
from vla_cli.readers import read_all
from vla_cli.readers.frames_csv import READER
for episode in read_all(READER, Path(sys.argv[1]), print):
    for camera in episode.of_role("image"):
        assert sum(len(block) for block in camera.values.blocks()) == len(camera)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_ten_times_longer_takes_no_more_memory(tmp_path) -> None:
    peaks = []
    for steps in (40, 400):
        folder = tmp_path / f"{steps}"
        write_rows(folder, motion(steps, size=1), np.arange(steps) / 10)
        picture = np.add.outer(np.arange(120), np.arange(160)).astype(np.uint8)
        write_pictures(
            folder / "frames", np.broadcast_to(picture[None, :, :, None], (steps, 120, 160, 3)), ending="jpg"
        )
        done = subprocess.run([sys.executable, "-c", _MEASURE, str(folder)], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.2 * peaks[0], peaks
