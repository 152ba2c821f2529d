import io
import struct
import time
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
from builders import smooth_video

from vla_cli import video
from vla_cli.frames import VideoFrames
from vla_cli.video import SPARE, decode_blocks, excerpt, probe, verify

SIZE = (32, 48)
KINDS = {
    "b-frames": ("libx264", {"g": "12", "bf": "3", "crf": "10"}, "mp4", 10),
    "open-gop": ("libx264", {"g": "12", "bf": "3", "x264-params": "open-gop=1", "crf": "10"}, "mp4", 30),
    "no-b-frames": ("libx264", {"g": "2", "bf": "0", "crf": "10"}, "mp4", "30000/1001"),
    "av1": ("libsvtav1", {"g": "10", "preset": "12", "crf": "20"}, "mp4", 30),
    "mpeg4": ("mpeg4", {"g": "8", "bf": "2", "qscale": "2"}, "mp4", 25),
    "fragmented": ("libx264", {"g": "10", "movflags": "frag_keyframe+empty_moov"}, "mp4", 30),
    "webm": ("libvpx", {"g": "10", "deadline": "realtime"}, "webm", 30),
    "mjpeg": ("mjpeg", {}, "avi", 20),
}


def record(path: Path, frames: np.ndarray, kind: str = "b-frames", stamps: list[int] | None = None) -> Path:
    """Write a video; `stamps` are presentation times in hundredths of a second."""
    from fractions import Fraction

    codec, options, _, rate = KINDS[kind]
    muxer = {"movflags": options["movflags"]} if "movflags" in options else {}
    with av.open(str(path), "w", options=muxer) as container:
        stream = container.add_stream(codec, rate=Fraction(str(rate)), options=options)
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if stamps is not None:
                stream.codec_context.time_base = Fraction(1, 100)
                picture.pts, picture.time_base = stamps[number], Fraction(1, 100)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def plainly(path: Path) -> np.ndarray:
    """Every picture by PyAV's own loop."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def decoded(source, start: int, length: int) -> np.ndarray:
    return np.concatenate(list(decode_blocks(source, start=start, length=length, size=SIZE, block=16)))


def moving(steps: int) -> np.ndarray:
    """Pictures of which no two are alike: a bar that moves."""
    frames = smooth_video(steps)
    for step in range(steps):
        frames[step, :, step % 48] = 255
    return frames


@pytest.fixture(scope="module", params=KINDS)
def recorded(request, tmp_path_factory) -> tuple[Path, np.ndarray]:
    path = tmp_path_factory.mktemp("video") / f"{request.param}.{KINDS[request.param][2]}"
    try:
        record(path, moving(50), request.param)
    except (ValueError, av.error.FFmpegError) as error:
        pytest.skip(f"this PyAV does not write {request.param} ({error})")
    return path, plainly(path)


def test_probe_promises_what_decoding_gives(recorded) -> None:
    path, pictures = recorded
    times, shape = probe(path)
    assert shape == (50, 32, 48, 3) == pictures.shape and np.all(np.diff(times) > 0)
    with av.open(str(path)) as container:
        assert np.allclose(times, [frame.time for frame in container.decode(video=0)], atol=1e-9)


@pytest.mark.parametrize(("start", "length"), [(0, 50), (0, 7), (1, 1), (11, 3), (12, 1), (13, 24), (29, 21), (49, 1)])
def test_any_stretch_is_bitwise_that_of_a_plain_loop(recorded, start: int, length: int) -> None:
    path, pictures = recorded
    assert np.array_equal(decoded(path, start, length), pictures[start : start + length])


@pytest.mark.parametrize(("start", "length"), [(0, 50), (2, 48 - SPARE + 3), (0, 7), (13, 10), (24, 1), (37, 13)])
def test_an_excerpt_holds_the_same_pictures_in_fewer_bytes(recorded, start: int, length: int) -> None:
    path, pictures = recorded
    pieces, first = excerpt(path, start, length)
    data = b"".join(pieces)
    assert np.array_equal(decoded(io.BytesIO(data), first, length), pictures[start : start + length])
    if 50 - length <= SPARE:
        assert data == path.read_bytes() and first == start
    else:  # in MPEG-4 with B-frames every key frame has pictures before it, so that only the first is a clean start
        assert first <= 24 or path.stem == "mpeg4"
        assert len(data) < path.stat().st_size and b"".join(excerpt(path, start, length)[0]) == data


def test_an_excerpt_is_small_and_a_file_of_its_own(tmp_path) -> None:
    path = record(tmp_path / "shared.mp4", np.concatenate([smooth_video(60, seed) for seed in range(6)]))
    data = b"".join(excerpt(path, 180, 60)[0])
    assert len(data) < path.stat().st_size / 3
    (tmp_path / "cut.mp4").write_bytes(data)
    times, shape = probe(tmp_path / "cut.mp4")
    assert 60 <= shape[0] <= 64 and np.allclose(np.diff(times), 0.1)


def test_odd_and_late_time_stamps(tmp_path) -> None:
    stamps = (np.cumsum([7, 3, 4, 11, 2] * 8) + 500).tolist()
    path = record(tmp_path / "odd.mp4", moving(40), "b-frames", stamps)
    pictures = plainly(path)
    assert np.allclose(np.diff(probe(path)[0]), np.diff(stamps) / 100, atol=1e-3)
    for start in (0, 5, 13, 30):
        assert np.array_equal(decoded(path, start, 5), pictures[start : start + 5])
        pieces, first = excerpt(path, start, 5)
        assert np.array_equal(decoded(io.BytesIO(b"".join(pieces)), first, 5), pictures[start : start + 5])


def test_the_end_of_a_long_file_costs_no_more_than_its_beginning(tmp_path) -> None:
    path = record(tmp_path / "long.mp4", smooth_video(1500))
    probe(path)

    def seconds(start: int) -> float:
        begin = time.thread_time()
        decoded(path, start, 10)
        return time.thread_time() - begin

    assert min(seconds(1480) for _ in range(3)) < 5 * min(seconds(0) for _ in range(3)) + 0.01


@pytest.mark.parametrize(
    "content", [b"", b"no video", b"#EXTM3U\n/etc/passwd\n", b"ffconcat version 1.0\nfile a.mp4\n"]
)
def test_what_is_no_video_is_named(tmp_path, content: bytes) -> None:
    (tmp_path / "x.mp4").write_bytes(content)
    for call in (lambda path: probe(path), lambda path: decoded(path, 0, 1), lambda path: excerpt(path, 0, 1)):
        with pytest.raises(ValueError, match=r"x\.mp4 cannot be opened as video"):
            call(tmp_path / "x.mp4")


def test_a_file_that_is_not_there_or_has_only_sound(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"gone\.mp4 is not a file"):
        probe(tmp_path / "gone.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match="cannot be opened as video"):
        probe(tmp_path / "sound.mp4")


def test_a_playlist_does_not_lead_to_other_files(tmp_path) -> None:
    record(tmp_path / "secret.mp4", smooth_video(5))
    (tmp_path / "x.mp4").write_text("ffconcat version 1.0\nfile secret.mp4\n")
    with pytest.raises(ValueError, match="cannot be opened"):
        probe(tmp_path / "x.mp4")


def test_a_broken_off_file_gives_a_reason(tmp_path) -> None:
    whole = record(tmp_path / "whole.mp4", smooth_video(40)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its table, at the end, is gone
    with pytest.raises(ValueError, match=r"cut\.mp4 cannot be opened as video"):
        probe(tmp_path / "cut.mp4")
    webm = record(tmp_path / "whole.webm", moving(40), "webm").read_bytes()
    (tmp_path / "cut.webm").write_bytes(webm[: len(webm) // 2])
    times, shape = probe(tmp_path / "cut.webm")
    assert 1 <= len(times) == shape[0] < 40
    with pytest.raises(ValueError, match=r"cut\.webm (breaks off|cannot be decoded) after frame \d+"):
        decoded(tmp_path / "cut.webm", 0, 40)
    with pytest.raises(ValueError, match=r"cut\.webm (breaks off|cannot be decoded) after frame \d+"):
        verify(tmp_path / "cut.webm", start=0, length=40, size=shape[1:3])


def test_pictures_of_another_size_or_too_few_are_named(tmp_path) -> None:
    path = record(tmp_path / "a.mp4", smooth_video(20))
    with pytest.raises(ValueError, match="changes its size at frame 0"):
        list(decode_blocks(path, start=0, length=2, size=(33, 48), block=4))
    with pytest.raises(ValueError, match="breaks off after frame 20 of 21"):
        decoded(path, 5, 16)
    verify(path, start=5, length=15, size=SIZE)
    with pytest.raises(ValueError, match="changes its size at frame 5"):
        verify(path, start=5, length=15, size=(33, 48))
    with pytest.raises(ValueError, match="breaks off after frame 20 of 21"):
        verify(path, start=5, length=16, size=SIZE)
    with pytest.raises(ValueError, match="20 frames, not 5 to 25"):
        excerpt(path, 5, 20)


def test_damaged_pictures_in_the_middle_do_not_pass_for_others(tmp_path) -> None:
    path = record(tmp_path / "a.mp4", moving(40), "no-b-frames")
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + 1500
    data[at : at + 4000] = bytes(4000)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.mp4 (cannot be decoded|breaks off)"):
        decoded(path, 0, 40)
    with pytest.raises(ValueError, match=r"a\.mp4 (cannot be decoded|breaks off)"):
        verify(path, start=0, length=40, size=SIZE)


def box(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload) + 8) + kind + payload


def nested(*kinds: bytes, inner: bytes) -> bytes:
    for kind in reversed(kinds):
        inner = box(kind, inner)
    return inner


@pytest.mark.parametrize(
    "tables",
    [
        nested(b"moov", b"trak", b"mdia", b"minf", b"stbl", inner=box(b"stsz", struct.pack(">III", 0, 1, 170_000_000))),
        nested(b"moof", b"traf", inner=box(b"trun", struct.pack(">II", 0, 4_000_000_000))),
        nested(b"moov", inner=box(b"cmov", b"x" * 40)),
        b"".join(nested(b"moof", b"traf", inner=box(b"trun", struct.pack(">II", 0, 100))) for _ in range(100)),
    ],
)
def test_tables_that_claim_more_than_there_is_are_refused(tmp_path, tables: bytes) -> None:
    (tmp_path / "bomb.mp4").write_bytes(box(b"ftyp", b"isom\0\0\2\0isom") + tables)
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bomb\.mp4 (claims \d+ samples|has a compressed table)"):
        probe(tmp_path / "bomb.mp4")
    assert tracemalloc.get_traced_memory()[1] < 2e6
    tracemalloc.stop()


def test_a_camera_is_read_again_and_again_and_shorter(tmp_path) -> None:
    path = record(tmp_path / "a.mp4", moving(40))
    pictures = plainly(path)
    frames = VideoFrames(path, (20, 32, 48, 3), 15)
    assert np.array_equal(frames, pictures[15:35]) and np.array_equal(frames.cut(3), pictures[15:18])
    assert [len(block) for block in frames.blocks()] == [16, 4]
    assert np.array_equal(np.stack(list(frames.take(np.array([2, 2, 17])))), pictures[[17, 17, 32]])


def test_a_file_that_changes_is_looked_at_again(tmp_path) -> None:
    path = record(tmp_path / "a.mp4", smooth_video(20))
    assert probe(path)[1][0] == 20
    record(path, smooth_video(30))
    assert probe(path)[1][0] == 30 and video._cached_index.cache_info().maxsize
