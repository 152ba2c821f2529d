from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
import pytest
from builders import motion, png, smooth_video, write_video
from PIL import Image

from vla_cli.frames import ArrayFrames, Frames, PictureFrames, VideoFrames
from vla_cli.stored_frames import load_frames, save_frames
from vla_cli.video import excerpt


def kept(frames, path: Path) -> tuple[Frames, dict]:
    """The frames as read again from a file of their own, and the facts of that file."""
    with h5py.File(path, "w") as file:
        group = file.create_group("streams/image/camera")
        save_frames(frames, group)
        facts = {"packing": group.attrs["packing"], "size": path.stat().st_size, "first": group.attrs.get("start")}
        facts["bytes"] = group["bytes"][()].tobytes() if "bytes" in group else b""
        facts["chunks"] = group["values"].chunks if "values" in group else None
        facts["filter"] = group["values"].compression if "values" in group else None
    with h5py.File(path, "r") as file:
        return load_frames(file["streams/image/camera"]), facts


def check(read: Frames, pictures: np.ndarray) -> None:
    """The file is closed by now: pictures are decoded whenever they are asked for."""
    assert read.shape == pictures.shape and read.dtype == np.uint8
    assert np.array_equal(read, pictures) and np.array_equal(read, pictures)
    assert np.array_equal(read.cut(3), pictures[:3])
    assert np.array_equal(np.stack(list(read.take(np.array([0, 2, 2])))), pictures[[0, 2, 2]])


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return motion(21)["camera"]


def test_plain_pictures_come_back(tmp_path, pictures) -> None:
    for number, frames in enumerate((pictures, ArrayFrames(pictures))):
        read, facts = kept(frames, tmp_path / f"{number}.hdf5")
        assert facts["packing"] == "plain" and facts["chunks"] == (1, 12, 12, 3)
        check(read, pictures)
    check(kept(ArrayFrames(pictures, 5, start=4), tmp_path / "part.hdf5")[0], pictures[4:9])


@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
def test_hdf5_pictures_are_copied_as_they_are_packed(tmp_path, pictures, compression) -> None:
    with h5py.File(tmp_path / "log.hdf5", "w") as log:
        values = log.create_dataset("rgb", data=pictures, chunks=(4, 12, 12, 3), compression=compression)
        values.attrs["secret"] = "not ours"
        read, facts = kept(ArrayFrames(values), tmp_path / "whole.hdf5")
        assert facts["packing"] == "plain" and facts["chunks"] == (4, 12, 12, 3) and facts["filter"] == compression
        part, facts = kept(ArrayFrames(values, 7), tmp_path / "part.hdf5")
        assert facts["chunks"] == (1, 12, 12, 3)
    check(read, pictures)
    check(part, pictures[:7])


def test_a_filter_that_not_every_reader_has_is_not_copied(tmp_path, pictures) -> None:
    with h5py.File(tmp_path / "log.hdf5", "w") as log:
        values = log.create_dataset("rgb", data=pictures, chunks=(4, 12, 12, 3), scaleoffset=8)
        read, facts = kept(ArrayFrames(values), tmp_path / "a.hdf5")
    assert facts["chunks"] == (1, 12, 12, 3)
    check(read, pictures)


def test_unpacked_hdf5_pictures_stay_as_they_are(tmp_path, pictures) -> None:
    with h5py.File(tmp_path / "log.hdf5", "w") as log:
        read, facts = kept(ArrayFrames(log.create_dataset("rgb", data=pictures)), tmp_path / "a.hdf5")
    assert facts["filter"] is None
    check(read, pictures)


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_compressed_pictures_keep_their_bytes(tmp_path, form: str) -> None:
    pictures = smooth_video(21)
    encoded = [compressed(picture, form) for picture in pictures]
    expected = np.stack([np.asarray(Image.open(BytesIO(data))) for data in encoded])
    read, facts = kept(PictureFrames(encoded.__getitem__, 21, "front"), tmp_path / "a.hdf5")
    assert facts["packing"] == "pictures" and facts["bytes"] == b"".join(encoded)
    check(read, expected)


def compressed(picture: np.ndarray, form: str) -> bytes:
    if form == "PNG":
        return png(picture)
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, form)
    return buffer.getvalue()


def test_a_picture_that_cannot_be_decoded_is_not_kept(tmp_path, pictures) -> None:
    encoded = [png(picture) for picture in pictures]
    encoded[17] = encoded[17][:40]
    with pytest.raises(ValueError, match="front step 17 cannot be decoded"):
        kept(PictureFrames(encoded.__getitem__, 21, "front"), tmp_path / "a.hdf5")
    encoded[17] = png(pictures[17][:5])
    with pytest.raises(ValueError, match="front step 17 is"):
        kept(PictureFrames(encoded.__getitem__, 21, "front"), tmp_path / "a.hdf5")


def test_a_video_is_kept_whole(tmp_path) -> None:
    write_video(tmp_path / "a.mp4", smooth_video(40))
    source = VideoFrames(tmp_path / "a.mp4", (38, 32, 48, 3), 1)
    read, facts = kept(source, tmp_path / "a.hdf5")
    assert facts["packing"] == "video" and facts["bytes"] == (tmp_path / "a.mp4").read_bytes() and facts["first"] == 1
    (tmp_path / "a.mp4").rename(tmp_path / "gone")
    check(read, np.asarray(VideoFrames(tmp_path / "gone", (38, 32, 48, 3), 1)))


def test_a_stretch_of_a_shared_video_is_cut_out(tmp_path) -> None:
    frames = np.concatenate([smooth_video(30, seed) for seed in range(6)])
    write_video(tmp_path / "a.mp4", frames)
    for start in (0, 30, 77, 150):
        source = VideoFrames(tmp_path / "a.mp4", (30, 32, 48, 3), start)
        read, facts = kept(source, tmp_path / f"{start}.hdf5")
        assert facts["packing"] == "video" and facts["bytes"] == b"".join(excerpt(tmp_path / "a.mp4", start, 30)[0])
        check(read, np.asarray(source))
    again = kept(source, tmp_path / "again.hdf5")[1]
    assert (
        again["bytes"] == facts["bytes"]
        and (tmp_path / "again.hdf5").read_bytes() == (tmp_path / "150.hdf5").read_bytes()
    )


def test_a_video_that_breaks_off_is_not_kept(tmp_path) -> None:
    write_video(tmp_path / "a.mp4", smooth_video(20))
    with pytest.raises(ValueError, match="breaks off after frame 20 of 21"):
        kept(VideoFrames(tmp_path / "a.mp4", (21, 32, 48, 3)), tmp_path / "a.hdf5")


@pytest.mark.parametrize(
    "damage",
    [
        {"packing": "cursed"},
        {"frames": -1},
        {"frames": 2**60},
        {"height": 7},
    ],
)
def test_a_damaged_group_is_named(tmp_path, pictures, damage: dict) -> None:
    kept(pictures, tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "r+") as file:
        group = file["streams/image/camera"]
        group.attrs.update(damage)
        with pytest.raises(ValueError, match=r"/streams/image/camera"):
            load_frames(group)
