import json
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from builders import motion, smooth_video, write_video

pytest.importorskip("zarr")

from logs.zarr import arrays, pusht, store, write

from vla_cli.episode import Episode, Skipped, Stream, problems
from vla_cli.errors import InputError, MissingDependency
from vla_cli.readers import list_entries, opened, read_all
from vla_cli.readers.chunk_bounds import check, jpegxl_header
from vla_cli.readers.zarr_buffer import READER, UMI_RATE


def read(path: Path) -> tuple[list[Episode | Skipped], list[str]]:
    said: list[str] = []
    items = []
    for item in read_all(READER, path, said.append):
        for camera in item.of_role("image") if isinstance(item, Episode) else []:
            camera.values = np.asarray(camera.values)  # what is in a zip can be decoded while the log is open
        items.append(item)
    return items, said


def whole(path: Path) -> tuple[list[Episode], list[str]]:
    items, said = read(path)
    assert all(isinstance(item, Episode) for item in items), items
    for item in items:
        assert problems(item) == []
    return items, said  # pyright: ignore[reportReturnType]


def stream(episode: Episode, name: str) -> Stream:
    return next(one for one in episode.streams if one.name == name)


def plain(steps: int = 20) -> dict[str, np.ndarray]:
    parts = motion(steps)
    return {"img": parts["camera"], "state": parts["position"], "action": parts["actions"]}


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# ---- the three layouts


def test_umi_comes_back_bit_for_bit_and_its_action_is_the_next_pose(tmp_path) -> None:
    (tmp_path / "dataset_plan.pkl").write_bytes(pickle.dumps(object))
    items, said = whole(write(tmp_path, episodes=3))
    assert [item.name for item in items] == ["episode_0", "episode_1", "episode_2"]
    for index, item in enumerate(items):
        rows = slice(20 * index, 20 * (index + 1))
        for key, values in arrays(3).items():
            assert np.array_equal(np.asarray(stream(item, key).values), values[rows])
        keys = ("robot0_eef_pos", "robot0_eef_rot_axis_angle", "robot0_gripper_width")
        pose = np.concatenate([arrays(3)[key][rows] for key in keys], axis=1)
        action = stream(item, "action")
        assert np.array_equal(action.values, np.concatenate([pose[1:], pose[-1:]]))
        assert action.attributes["mode"] == "absolute" and action.attributes["gripper"] == "width"
        assert action.attributes["names"][-1] == "robot0_gripper_width"
        assert stream(item, "camera0_rgb").attributes == {"channels": "rgb"}
        assert stream(item, "robot0_eef_rot_axis_angle").attributes["rotation"] == "axis-angle"
        assert stream(item, "robot0_demo_start_pose").role == "other"
        assert np.allclose(action.timestamps, np.arange(20) / UMI_RATE)
        assert any("59.94 Hz" in note for note in item.notes) and any("no actions" in note for note in item.notes)
    assert sum("59.94 Hz" in sentence for sentence in said) == 1


def test_umi_pictures_as_jpeg_xl(tmp_path) -> None:
    codecs = pytest.importorskip("imagecodecs.numcodecs")
    codecs.register_codecs({"imagecodecs_jpegxl"}, verbose=False)
    data = {**arrays(1), "camera0_rgb": np.repeat(smooth_video(20), 2, axis=1)}
    packed = {"compressors": codecs.Jpegxl(level=99, numthreads=1), "chunks": (1, 64, 48, 3)}
    items, _ = whole(store(tmp_path / "a.zarr", data, [12, 20], camera0_rgb=packed))
    pictures = np.concatenate([np.asarray(stream(item, "camera0_rgb").values) for item in items])
    assert np.array_equal(pictures, data["camera0_rgb"])
    packed["chunks"] = (4, 64, 48, 3)  # several in a chunk are an animation to the codec
    items, _ = whole(store(tmp_path / "b.zarr", data, [12, 20], camera0_rgb=packed))
    assert np.array_equal(np.asarray(stream(items[1], "camera0_rgb").values), data["camera0_rgb"][12:])


@pytest.mark.parametrize("name", ["Jpeg", "Png", "Jpeg2k", "Webp"])
def test_other_picture_codecs(tmp_path, name: str) -> None:
    codecs = pytest.importorskip("imagecodecs.numcodecs")
    codec = getattr(codecs, name)
    codecs.register_codecs({codec.codec_id}, verbose=False)
    data = {**plain(), "img": smooth_video(20)}
    packed = {"compressors": codec(level=95) if name in ("Jpeg", "Webp") else codec(), "chunks": (1, 32, 48, 3)}
    items, _ = whole(store(tmp_path / "a.zarr", data, [20], img=packed))
    error = np.abs(np.asarray(stream(items[0], "img").values).astype(int) - data["img"]).mean()
    assert error < (4 if name in ("Jpeg", "Webp") else 1e-9)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_pusht(tmp_path, zarr_format: int) -> None:
    data = pusht()
    items, said = whole(store(tmp_path / "pusht.zarr", data, [11, 30], zarr_format))
    assert said == []
    for item, rows in zip(items, (slice(0, 11), slice(11, 30)), strict=True):
        assert np.array_equal(np.asarray(stream(item, "img").values), data["img"][rows])
        assert np.array_equal(stream(item, "keypoint").values, data["keypoint"][rows].reshape(-1, 18))
        assert np.array_equal(stream(item, "action").values, data["action"][rows])
        roles = {one.name: one.role for one in item.streams}
        assert roles["keypoint"] == roles["n_contacts"] == "other" and roles["state"] == "state"
        assert stream(item, "action").attributes["rate_hz"] == 10 and stream(item, "action").timestamps[1] == 0.1
        assert any("read as uint8" in note for note in item.notes)


def test_a_real_robot_with_videos_beside(tmp_path) -> None:
    clock = 1.7e9 + np.arange(30) / 10 + np.random.default_rng(0).uniform(0, 0.01, 30)
    pose = np.random.default_rng(1).normal(size=(30, 6))
    data = {"timestamp": clock, "action": pose + 0.1, "robot_eef_pose": pose, "stage": np.zeros(30, np.int64)}
    store(tmp_path / "replay_buffer.zarr", data, [10, 20, 30])
    for index, cameras in enumerate(((0, 1), (0,), ())):
        for camera in cameras:
            write_video(tmp_path / f"videos/{index}/{camera}.mp4", smooth_video(31, camera))
    (tmp_path / "outside.mp4").write_bytes(b"x")
    (tmp_path / "videos/1/9.mp4").symlink_to(tmp_path / "outside.mp4")
    for path in (tmp_path, tmp_path / "replay_buffer.zarr"):
        items, _ = read(path)
        first, second, third = items
        assert isinstance(first, Episode) and isinstance(second, Episode) and isinstance(third, Episode)
        assert problems(first) == problems(second) == [] and problems(third) == ["it has no images"]
        assert [one.name for one in first.of_role("image")] == ["camera_0", "camera_1"]
        assert [one.name for one in second.of_role("image")] == ["camera_0"]
        assert np.array_equal(stream(second, "action").values, data["action"][10:20])
        assert np.array_equal(stream(second, "action").timestamps, clock[10:20])
        video = stream(second, "camera_0")
        assert np.allclose(video.timestamps, clock[10] + np.arange(31) / 10)
        assert np.abs(np.asarray(video.values).astype(int) - smooth_video(31, 0)).mean() < 4
        assert stream(first, "robot_eef_pose").attributes["rotation"] == "axis-angle"
        assert stream(first, "action").attributes["mode"] == "absolute"
        assert any("videos/2 has no videos" in note for note in third.notes)


def test_entries_name_every_file_an_episode_is_from(tmp_path) -> None:
    path = store(tmp_path / "replay_buffer.zarr", plain(), [7, 20])
    write_video(tmp_path / "videos/1/0.mp4", smooth_video(13))
    with opened(READER, tmp_path, _options(), lambda sentence: None) as log:
        first, second = list_entries(log, tmp_path)
    of_first = {file.relative_to(tmp_path).as_posix() for file in first.files}
    assert "replay_buffer.zarr/data/img/0.0.0.0" in of_first and "replay_buffer.zarr/data/img/1.0.0.0" not in of_first
    assert "replay_buffer.zarr/meta/episode_ends/0" in of_first
    assert tmp_path / "videos/1/0.mp4" in second.files and path / "data/action/2.0" in second.files
    assert all(file.is_file() for file in (*first.files, *second.files))


def _options():
    from vla_cli.readers import Options

    return Options()


# ---- variants


def test_a_folder_of_stores_and_stable_names(tmp_path) -> None:
    write(tmp_path / "b", episodes=1)
    store(tmp_path / "a 1.zarr", plain(), [20])
    before = [item.name for item in whole(tmp_path)[0]]
    assert before == ["a_1.zarr_episode_0", "b.dataset.zarr.zip_episode_0"]
    store(tmp_path / "session/replay_buffer.zarr", plain(), [10, 20])
    store(tmp_path / "replay_buffer.zarr", plain(), [20])
    assert {*before, "session_episode_1", "episode_0"} <= {item.name for item in whole(tmp_path)[0]}


def test_a_zipped_folder_is_read_as_it_is(tmp_path) -> None:
    path = store(tmp_path / "x/pusht.zarr", pusht(), [30])
    shutil.make_archive(str(tmp_path / "download"), "zip", tmp_path / "x")  # deflated, below pusht.zarr/
    items, _ = whole(tmp_path / "download.zip")
    assert np.array_equal(stream(items[0], "state").values, pusht()["state"])
    shutil.copytree(path, tmp_path / "x/again.zarr")
    shutil.make_archive(str(tmp_path / "two"), "zip", tmp_path / "x")
    with pytest.raises(InputError, match="holds 2 replay buffers"):
        read(tmp_path / "two.zip")


@pytest.mark.parametrize("codec", ["Zlib", "GZip", "BZ2", "LZMA", "LZ4", "Zstd", "Blosc", None])
def test_every_compressor_and_a_filter(tmp_path, codec: str | None) -> None:
    import numcodecs

    packed = {"compressors": getattr(numcodecs, codec)() if codec else None}
    filtered = {**packed, "filters": [numcodecs.Delta("<i4")]}
    data = {**plain(), "count": np.arange(20, dtype=np.int32)}
    items, _ = whole(store(tmp_path / "a.zarr", data, [20], img=packed, action=packed, count=filtered))
    for key, values in data.items():
        assert np.array_equal(np.asarray(stream(items[0], key).values).reshape(values.shape), values)


def test_odd_arrays_are_left_out_by_name_and_channels_first_is_turned(tmp_path) -> None:
    data = {
        **plain(),
        "chw": plain()["img"].transpose(0, 3, 1, 2),
        "depth": np.zeros((20, 12, 12, 1), np.float32),
        "scaled": plain()["img"].astype(np.float32) / 255,
        "words": np.array(["x"] * 20),
        "flag": np.arange(20) > 10,
    }
    path = store(tmp_path / "a.zarr", data, [20])
    (path / "data/note.txt").write_text("hello")
    items, said = whole(path)
    assert np.array_equal(np.asarray(stream(items[0], "chw").values), data["img"])
    for name in ("depth", "scaled", "words", "note.txt"):
        assert any(f"data/{name} is left out" in sentence for sentence in said)
        assert name not in {one.name for one in items[0].streams}
    assert any("data/words is left out" in note for note in items[0].notes)
    assert stream(items[0], "flag").role == "other"
    assert any("10.00 Hz" in sentence for sentence in said)


def test_a_tail_without_an_end_is_said(tmp_path) -> None:
    items, said = whole(store(tmp_path / "a.zarr", plain(), [8, 15]))
    assert len(items) == 2 and any("5 rows after the last episode's end are left out" in one for one in said)


def test_time_stamps_that_go_backwards_are_passed_on_for_the_caller_to_refuse(tmp_path) -> None:
    clock = np.arange(20.0)
    clock[5] = 1
    items, _ = read(store(tmp_path / "a.zarr", {**plain(), "timestamp": clock}, [20]))
    assert isinstance(items[0], Episode) and any("go backwards" in one for one in problems(items[0]))


# ---- damage


def test_an_episode_past_the_end_or_without_steps_is_left_out_and_the_rest_goes_on(tmp_path) -> None:
    items, _ = read(store(tmp_path / "a.zarr", plain(), [8, 8, 15, 23]))
    assert [type(item) for item in items] == [Episode, Skipped, Episode, Skipped]
    assert "it is empty" in items[1].reason and "has 20 rows, but the episode ends at row 23" in items[3].reason  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("ends", [[8, 5, 20], [-3, 20]])
def test_ends_that_do_not_ascend_are_refused(tmp_path, ends) -> None:
    with pytest.raises(InputError, match="does not ascend"):
        read(store(tmp_path / "a.zarr", plain(), ends))


def test_no_episodes_and_no_store(tmp_path) -> None:
    path = store(tmp_path / "a.zarr", plain(), [20])
    shutil.rmtree(path / "meta/episode_ends")
    assert READER.recognise(path)
    with pytest.raises(InputError, match="no array meta/episode_ends"):
        read(path)
    (tmp_path / "text").write_text("x")
    assert READER.recognise(tmp_path / "text") is None
    with pytest.raises(InputError, match="holds no zarr replay buffer"):
        read(tmp_path / "text")


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_zip_cut_short_is_refused_and_still_claimed(tmp_path, part: float) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    assert READER.recognise(path)
    with pytest.raises(InputError, match=r"cut short|damaged"):
        read(path)


def test_one_damaged_store_among_others_is_one_entry(tmp_path) -> None:
    write(tmp_path / "x")
    for name, content in (("b.zarr.zip", b"PK\x03\x04nothing"), ("c.zarr.zip", b"")):
        (tmp_path / name).write_bytes(content)
    store(tmp_path / "a.zarr", plain(), [20])
    items, _ = read(tmp_path)
    damaged = [item for item in items if isinstance(item, Skipped)]
    assert [item.name for item in damaged] == ["b.zarr.zip", "c.zarr.zip"] and len(items) == 5
    assert all("cannot be read" in item.reason for item in damaged)


def test_lost_and_damaged_chunks(tmp_path) -> None:
    path = store(tmp_path / "a.zarr", plain(), [7, 14, 20])
    (path / "data/img/1.0.0.0").unlink()
    (path / "data/state/1.0").unlink()
    chunk = path / "data/action/2.0"
    chunk.write_bytes(chunk.read_bytes()[:-20])  # numcodecs would read what lies behind it in memory
    (path / "data/action/0.0").unlink()
    items, said = read(path)
    assert isinstance(items[0], Episode) and np.all(stream(items[0], "action").values == 0)
    assert any("data/action lacks 1 chunks from row 0" in note for note in items[0].notes)
    assert any("data/action lacks 1 chunks" in sentence for sentence in said)
    assert isinstance(items[1], Skipped) and "data/img has lost 1 chunks of pictures" in items[1].reason
    assert isinstance(items[2], Skipped) and "cut short" in items[2].reason


def test_a_damaged_picture_is_found_when_it_is_decoded(tmp_path) -> None:
    path = store(tmp_path / "a.zarr", plain(), [20])
    (path / "data/img/1.0.0.0").write_bytes(b"no picture")
    for item in read_all(READER, path, lambda sentence: None):
        assert isinstance(item, Episode)
        with pytest.raises(ValueError, match="data/img cannot be decoded between rows 0 and 14"):
            np.asarray(stream(item, "img").values)


# ---- hostile


def test_pickles_and_unknown_codecs_are_refused_by_name(tmp_path) -> None:
    path = store(tmp_path / "a.zarr", plain(), [20])
    shutil.copytree(path / "data/state", path / "data/evil")
    shutil.copytree(path / "data/state", path / "data/odd")
    edit(path / "data/evil/.zarray", dtype="|O", filters=[{"id": "pickle", "protocol": 5}])
    (path / "data/evil/0.0").write_bytes(pickle.dumps(_Evil(tmp_path)))
    edit(path / "data/odd/.zarray", compressor={"id": "my_codec"})
    items, said = whole(path)
    assert not (tmp_path / "ran").exists()
    assert any("data/evil is left out: data/evil holds Python objects" in sentence for sentence in said)
    assert any("data/odd uses the codec 'my_codec'" in sentence for sentence in said)
    edit(path / "data/action/.zarray", filters=[{"id": "pickle"}])
    items, _ = read(path)
    assert isinstance(items[0], Skipped) and "no actions" in items[0].reason and "'pickle'" in items[0].reason


class _Evil:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return (Path.touch, (self.folder / "ran",))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [10**15, 4]},
        {"shape": [20, 10**12], "chunks": [1, 1]},
        {"chunks": [10**9, 4]},
        {"chunks": [0, 4]},
        {"shape": [20.5, 4]},
        {"shape": [float("nan"), 4]},
        {"shape": -1},
        {"dtype": [["a", "<f4"]]},
        {"compressor": {"id": ["x"]}},
        {"compressor": 3},
        {"compressor": {"id": "blosc", "configuration": 3}},
        {"filters": [{"id": "delta", "dtype": "|O"}]},
        {"filters": {"id": "delta"}},
        {"dimension_separator": "../"},
        {"zarr_format": 77},
        {"fill_value": "x" * 1000},
    ],
)
def test_absurd_metadata_never_fill_the_memory(tmp_path, changes) -> None:
    path = store(tmp_path / "a.zarr", plain(), [20])
    edit(path / "data/action/.zarray", **changes)
    items, _ = read(path)
    for item in items:
        reason = item.reason if isinstance(item, Skipped) else "; ".join(problems(item) or item.notes)
        assert reason and len(reason) < 1000


def test_v3_shards_and_odd_grids_are_refused_by_name(tmp_path) -> None:
    path = store(tmp_path / "a.zarr", plain(), [20], 3, state={"shards": (14, 3), "chunks": (7, 3)})
    _, said = whole(path)
    assert any("'sharding_indexed'" in sentence for sentence in said)
    edit(path / "data/action/zarr.json", chunk_key_encoding={"name": "odd"})
    assert "chunks by the encoding 'odd'" in read(path)[0][0].reason  # pyright: ignore[reportAttributeAccessIssue]


def test_an_end_at_an_absurd_row_with_arrays_that_claim_it(tmp_path) -> None:
    path = store(tmp_path / "a.zarr", plain(), [20, 10**12])
    for key, size in (("img", [12, 12, 3]), ("state", [3]), ("action", [4])):
        edit(path / f"data/{key}/.zarray", shape=[10**12, *size])
    items, _ = read(path)
    assert isinstance(items[0], Episode) and isinstance(items[1], Skipped)


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil", "C:evil"])
def test_members_that_lead_out_of_the_zip_are_refused(tmp_path, name: str) -> None:
    path = write(tmp_path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name.replace("\\", "/"), b"x")
    if "\\" in name:
        path.write_bytes(path.read_bytes().replace(b"a/../evil", b"a\\..\\evil"))
    with pytest.raises(InputError, match="leads out of the archive"):
        read(path)


def test_zip_bombs_are_refused(tmp_path) -> None:
    path = write(tmp_path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/bomb/0", bytes(2**18))
        archive.getinfo("data/bomb/0").file_size = 2**29
    with pytest.raises(InputError, match="that is a bomb"):
        read(path)


def test_a_chunk_far_larger_than_its_shape_is_refused_before_it_is_unpacked(tmp_path) -> None:
    path = write(tmp_path)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data/robot0_eef_pos/0.0", bytes(2**21))
    items, _ = read(path)
    assert isinstance(items[0], Skipped) and "are the most that can be meant" in items[0].reason


def test_a_list_of_members_without_end_is_refused(tmp_path) -> None:
    path = write(tmp_path)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, len(data) - 22 + 12, 2**31)
    path.write_bytes(bytes(data) + b"")
    with pytest.raises(InputError, match=r"damaged zip|lists its members"):
        read(path)


@pytest.mark.parametrize("codec", ["Zlib", "GZip", "BZ2", "LZMA", "LZ4", "Zstd", "Blosc"])
def test_compression_bombs_are_refused(tmp_path, codec: str) -> None:
    import numcodecs

    packer = getattr(numcodecs, codec)()
    path = store(tmp_path / "a.zarr", plain(), [20], action={"compressors": packer, "chunks": (20, 4)})
    (path / "data/action/0.0").write_bytes(bytes(packer.encode(bytes(2**23))))
    items, _ = read(path)
    reason = items[0].reason  # pyright: ignore[reportAttributeAccessIssue]
    assert "unpack to" in reason or "are the most that can be meant" in reason


def test_picture_headers_are_judged_before_they_are_decoded() -> None:
    codecs = pytest.importorskip("imagecodecs")
    for shape in ((16, 24, 3), (13, 600, 3), (224, 224, 3), (300, 17, 3), (180, 320, 3)):
        data = codecs.jpegxl_encode(np.zeros(shape, np.uint8), lossless=True, effort=1)
        assert jpegxl_header(data) == (shape[1], shape[0], False)
        boxed = codecs.jpegxl_encode(np.zeros(shape, np.uint8), lossless=True, effort=1, usecontainer=True)
        assert jpegxl_header(boxed) == (shape[1], shape[0], False)
        with pytest.raises(ValueError, match="claims to unpack"):
            check("imagecodecs_jpegxl", data, 100, 1)
    moving = codecs.jpegxl_encode(np.zeros((5, 16, 24, 3), np.uint8), lossless=True, effort=1)
    assert jpegxl_header(moving) == (24, 16, True)
    with pytest.raises(ValueError, match="animation"):
        check("imagecodecs_jpegxl", moving, 10**9, 1)
    huge = codecs.png_encode(np.zeros((500, 500, 3), np.uint8))
    with pytest.raises(ValueError, match="claims to unpack"):
        check("imagecodecs_png", huge, 12 * 12 * 3, 1)


def test_links_out_of_the_folder_are_not_followed(tmp_path) -> None:
    path = store(tmp_path / "in/a.zarr", plain(), [20])
    (path / "data/action/0.0").rename(tmp_path / "secret")
    (path / "data/action/0.0").symlink_to(tmp_path / "secret")
    items, _ = read(path)
    assert isinstance(items[0], Episode) and any("data/action lacks 1 chunks" in note for note in items[0].notes)


# ---- promises


def test_a_missing_package_is_named(tmp_path, monkeypatch) -> None:
    path = write(tmp_path)
    monkeypatch.setitem(sys.modules, "zarr", None)
    assert READER.recognise(path)
    with pytest.raises(MissingDependency, match="vla-cli\\[zarr\\]"):
        read(path)


def test_missing_imagecodecs_is_named_only_where_it_is_needed(tmp_path, monkeypatch) -> None:
    path = store(tmp_path / "a.zarr", plain(), [20])
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    monkeypatch.setitem(sys.modules, "imagecodecs.numcodecs", None)
    whole(path)
    edit(path / "data/img/.zarray", compressor={"id": "imagecodecs_jpegxl"})
    with pytest.raises(MissingDependency, match="imagecodecs"):
        read(path)


_MEASURE = """
import resource, sys, warnings
from pathlib import Path
from vla_cli.readers import read_all
from vla_cli.readers.zarr_buffer import READER
for episode in read_all(READER, Path(sys.argv[1]), lambda sentence: None):
    for camera in episode.of_role("image"):
        assert sum(len(block) for block in camera.values.blocks()) == len(camera)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_ten_times_longer_takes_no_more_memory(tmp_path) -> None:
    peaks = []
    for steps in (40, 400):
        picture = np.arange(96 * 96 * 3, dtype=np.uint32).reshape(96, 96, 3).astype(np.uint8)
        data = {"img": np.broadcast_to(picture, (steps, 96, 96, 3)), "action": np.ones((steps, 2))}
        path = store(tmp_path / f"{steps}.zarr", data, [steps], chunks=32)
        done = subprocess.run([sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.2 * peaks[0], peaks
