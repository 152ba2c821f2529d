"""Video files, decoded and cut by PyAV (the extra `lerobot`).

Pictures are counted in the order of presentation. Packets stand in the order of decoding, which differs from it where
there are B-frames; so every picture is known by its presentation time stamp, and `_Index` maps the one to the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from vla_cli.errors import MissingDependency, words
from vla_cli.pictures import LARGEST_PICTURE
from vla_cli.video_tables import check_tables

EXTRA = "lerobot"
SPARE = 8  # pictures that a file may hold beyond a stretch and still be kept whole
# No playlist: one can name files outside the log, and addresses in the net.
_OPTIONS = {"format_whitelist": "mov,matroska,avi,mpegts", "protocol_whitelist": "file"}
_PIECE = 1 << 20

Source = Path | IO[bytes]
_threads = 0  # of a decoder; 0 lets FFmpeg take every core


def limit_threads(count: int) -> None:
    """Let each decoder of this process have so many threads: beside others, more would only be in their way."""
    global _threads
    _threads = count


def require_av() -> None:
    """Raise MissingDependency unless PyAV can be imported."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise MissingDependency("av", extra=EXTRA, purpose="Reading a log with video files") from None


def probe(path: Path) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Presentation times [T] float64 in seconds, ascending, and shape [T, H, W, 3], without decoding a picture.

    Raises:
        ValueError: it cannot be opened, or has no pictures.
    """
    index = _index_of(path)
    return index.seconds.copy(), (len(index.seconds), *index.size, 3)


def decode_blocks(path: Source, *, start: int, length: int, size: Sequence[int], block: int) -> Iterator[np.ndarray]:
    """Decode pictures `start` to `start + length` of a video, in order of presentation.

    In a file, decoding begins at the last key frame before `start`, so that an episode far into a shared file costs no
    more than the first; each picture's time stamp tells whether it is the right one.

    Args:
        path: a file, or an open one in binary.
        start: index of the first picture.
        length: how many.
        size: height and width that are expected.
        block: most pictures at a time.

    Yields:
        [t, H, W, 3] uint8 RGB, t at most `block`.

    Raises:
        ValueError: it cannot be decoded, breaks off early, lacks a picture in between, or changes its size.
    """
    require_av()
    from av.video.reformatter import VideoReformatter

    converter, rest = VideoReformatter(), length
    with _readable(path, start, length, size) as pictures:
        while rest:
            buffer = np.empty((min(block, rest), *size, 3), np.uint8)
            for place in range(len(buffer)):
                _convert(converter, next(pictures), buffer[place])
            rest -= len(buffer)
            yield buffer


def verify(path: Path, *, start: int, length: int, size: Sequence[int]) -> None:
    """Decode pictures `start` to `start + length` of a file and keep none; only the first is turned into RGB.

    Raises:
        ValueError: as for `decode_blocks`.
    """
    require_av()
    from av.video.reformatter import VideoReformatter

    with _readable(path, start, length, size) as pictures:
        for number, picture in enumerate(pictures):
            if number == 0:
                _convert(VideoReformatter(), picture, np.empty((*size, 3), np.uint8))


@contextmanager
def _readable(path: Source, start: int, length: int, size: Sequence[int]) -> Iterator[Iterator[Any]]:
    """Decoded pictures `start` to `start + length`, neither more nor less; what FFmpeg raises becomes a ValueError."""
    from av.error import FFmpegError

    label, end, at = path.name if isinstance(path, Path) else "the video", start + length, start

    def counted() -> Iterator[Any]:
        nonlocal at
        index = _index_of(path) if isinstance(path, Path) else None
        for picture in islice(_pictures(path, index, start), length):
            if (picture.height, picture.width) != tuple(size):
                raise ValueError(f"{label} changes its size at frame {at}")
            yield picture
            at += 1
        if at < end:
            raise ValueError(f"{label} breaks off after frame {at} of {end}")

    try:
        yield counted()
    except (FFmpegError, OSError, IndexError) as error:
        raise ValueError(f"{label} cannot be decoded after frame {at} ({words(error)})") from None


def excerpt(path: Path, start: int, length: int) -> tuple[Iterator[bytes], int]:
    """The bytes of a video with pictures `start` to `start + length` of a file, and which of its pictures is the first.

    The whole file where it holds hardly more than that, else its packets from the last key frame before: nothing is
    encoded again. Equal files give equal bytes.

    Raises:
        ValueError: the file cannot be opened as video, or has no such pictures.
    """
    require_av()
    from av.error import FFmpegError

    index = _index_of(path)
    if not 0 <= start < start + length <= len(index.seconds):
        raise ValueError(f"{path.name} has {len(index.seconds)} frames, not {start} to {start + length}")
    if len(index.seconds) - length <= SPARE or not index.ordered:
        return _pieces(path.open("rb")), start
    cut = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `_pieces`
    first, last = index.packets_of(start, length)
    kept = np.sort(index.stamps[first : last + 1])
    for container in ("mp4", "matroska"):  # not every codec goes into MP4
        try:
            _remux(path, index, (first, last), cut, container)
            if len(_indexed(cut, path.name).seconds) == len(kept):
                return _pieces(cut), int(np.searchsorted(kept, index.shown[start]))
        except (FFmpegError, OSError, ValueError):
            pass
        cut.seek(0)
        cut.truncate()
    cut.close()
    return _pieces(path.open("rb")), start


@dataclass(frozen=True)
class _Index:
    """Where the pictures of a video stand.

    Attributes:
        stamps: [P] int64 presentation time stamp of each packet, in the order of decoding.
        decoded: [P] int64 decoding time stamp of each.
        clean: [P] whether decoding may begin with it: a key frame after which nothing is shown that precedes it.
        shown: [T] int64 stamps of the pictures that are shown, ascending; an edit list may hide packets.
        seconds: [T] float64, the same in seconds.
        size: height and width.
        ordered: whether every packet has stamps of its own; without, pictures can only be counted.
    """

    stamps: np.ndarray
    decoded: np.ndarray
    clean: np.ndarray
    shown: np.ndarray
    seconds: np.ndarray
    size: tuple[int, int]
    ordered: bool

    def packets_of(self, start: int, length: int) -> tuple[int, int]:
        """The first packet and the last one that decoding pictures `start` to `start + length` takes."""
        begins = np.flatnonzero(self.clean & (self.stamps <= self.shown[start]))
        needed = np.flatnonzero(self.stamps <= self.shown[start + length - 1])
        return (int(begins[-1]) if len(begins) else 0), int(needed[-1])


def _index_of(path: Path) -> _Index:
    status = path.stat() if path.is_file() else None
    if status is None:
        raise ValueError(f"{path.name} is not a file")
    return _cached_index(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _cached_index(path: Path, _size: int, _time: int) -> _Index:
    return _indexed(path, path.name)


def _indexed(source: Source, label: str) -> _Index:
    """Read every packet's stamps, decoding nothing."""
    require_av()
    from av.error import FFmpegError

    rows: list[tuple[int, int, bool, bool]] = []
    ordered = True
    try:
        with _opened(source, label) as (container, stream):
            base, size = float(stream.time_base), (int(stream.height), int(stream.width))
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                ordered &= packet.pts is not None and packet.dts is not None
                shown = packet.dts if packet.pts is None else packet.pts
                shown = len(rows) if shown is None else shown
                decoded = shown if packet.dts is None else packet.dts
                rows.append((shown, decoded, packet.is_keyframe, not packet.is_discard))
    except (FFmpegError, OSError, IndexError, TypeError) as error:
        raise ValueError(f"{label} cannot be opened as video ({words(error)})") from None
    if not any(row[3] for row in rows):
        raise ValueError(f"{label} has no frames")
    stamps, decoded, key, visible = (np.array(column) for column in zip(*rows, strict=True))
    shown = np.sort(stamps[visible])
    ordered = ordered and bool(np.all(np.diff(shown) > 0) and np.all(np.diff(decoded) > 0))
    clean = key & (np.minimum.accumulate(stamps[::-1])[::-1] >= stamps)
    return _Index(stamps, decoded, clean, shown, shown * base, size, ordered)


def _convert(converter: Any, picture: Any, target: np.ndarray) -> None:
    """A picture as RGB, straight into its place [H, W, 3]; one converter for all of them saves setting it up anew."""
    plane = converter.reformat(picture, format="rgb24", threads=1).planes[0]
    height, width = target.shape[:2]
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    target[:] = rows[:height, : 3 * width].reshape(height, width, 3)


def _pictures(source: Source, index: _Index | None, start: int) -> Iterator[Any]:
    """Decoded pictures from `start` on.

    Raises:
        ValueError: one is missing between two others.
    """
    label = source.name if isinstance(source, Path) else "the video"
    stamps = index.shown if index and index.ordered and start < len(index.shown) else None
    if index and stamps is not None and (first := index.packets_of(start, 1)[0]):
        with _opened(source, label) as (container, stream):
            container.seek(int(index.decoded[first]), stream=stream)
            decoded = (p for p in container.decode(stream) if p.pts is None or p.pts >= stamps[start])
            picture = next(decoded, None)
            if picture is not None and picture.pts == stamps[start]:
                yield from _checked(chain([picture], decoded), stamps[start:], start, label)
                return
    # From the beginning, because there is no index, or because it led astray.
    with _opened(source, label) as (container, stream):
        decoded = islice(container.decode(stream), start, None)
        picture = next(decoded, None)
        if picture is None:
            return
        trusted = stamps is not None and picture.pts == stamps[start]
        rest = chain([picture], decoded)
        yield from _checked(rest, stamps[start:], start, label) if trusted and stamps is not None else rest


def _checked(pictures: Iterable[Any], stamps: np.ndarray, start: int, label: str) -> Iterator[Any]:
    """Pictures, as long as each has the stamp that is expected of it."""
    for number, picture in enumerate(pictures):
        if number < len(stamps) and picture.pts != stamps[number]:
            raise ValueError(f"{label} cannot be decoded at frame {start + number}, which is damaged")
        yield picture


@contextmanager
def _opened(source: Source, label: str) -> Iterator[tuple[Any, Any]]:
    """An open container and its video stream.

    Raises:
        ValueError: its pictures are too large, or its tables claim more than it holds.
    """
    import av

    check_tables(source, label)
    name = str(source.absolute()) if isinstance(source, Path) else source
    with av.open(name, options=_OPTIONS, metadata_errors="ignore") as container:
        stream = container.streams.video[0]
        if stream.width * stream.height > LARGEST_PICTURE:
            raise ValueError(f"{label} claims {stream.width}x{stream.height} pixels")
        stream.thread_type, stream.codec_context.thread_count = "AUTO", _threads
        yield container, stream


def _remux(path: Path, index: _Index, span: tuple[int, int], out: IO[bytes], form: str) -> None:
    """Copy packets `span` into a file of their own, with clocks that begin at 0."""
    import av

    first, last = span
    with (
        _opened(path, path.name) as (container, stream),
        av.open(out, "w", format=form, options={"fflags": "+bitexact"}) as made,
    ):
        copy = made.add_stream_from_template(stream, opaque=True)  # no encoder is looked for
        origin = int(index.decoded[first])
        container.seek(origin, stream=stream)
        for packet in container.demux(stream):
            if not packet.size or packet.dts is None or packet.dts < index.decoded[first]:
                continue
            if packet.dts > index.decoded[last]:
                break
            packet.dts, packet.pts = packet.dts - origin, packet.pts - origin
            packet.stream = copy
            made.mux(packet)


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while piece := file.read(_PIECE):
            yield piece
