"""How an episode file keeps one camera's pictures: as the log packed them.

    attrs: packing      "plain", "pictures" or "video"; height, width, frames; start (video: the first that counts)
    values [T, H, W, 3] plain: as the log's own HDF5 had them (chunks, gzip or neither), else a chunk a picture, gzip
    bytes [N] uint8     pictures: the JPEG or PNG files one after the other; video: the file
    offsets [T + 1]     pictures: where in `bytes` each begins

Keeping a log's own bytes loses nothing and is ten to fifty times smaller than plain numbers. Every picture is decoded
once while it is written: what is kept can be read again.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vla_cli import hdf5
from vla_cli.frames import ArrayFrames, Frames, PictureFrames, VideoFrames, blocks_of
from vla_cli.video import decode_blocks, excerpt, verify

GZIP = 1  # the fast end: noise does not get smaller for more work
# What every h5py can read again.
COPIED_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
_READ = 1 << 20


def save_frames(frames: np.ndarray | Frames, group: h5py.Group) -> None:
    """Write pictures into a new group, decoding each of them.

    Raises:
        ValueError: one cannot be decoded.
    """
    height, width = frames.shape[1:3]
    group.attrs["frames"], group.attrs["height"], group.attrs["width"] = len(frames), height, width
    if isinstance(frames, VideoFrames):
        _save_video(frames, group)
    elif isinstance(frames, PictureFrames):
        _save_pictures(frames, group)
    else:
        _save_plain(frames, group)


def _save_plain(frames: np.ndarray | Frames, group: h5py.Group) -> None:
    group.attrs["packing"] = "plain"
    stored = frames.as_stored if isinstance(frames, ArrayFrames) else None
    if stored is not None and _copies(stored):
        _copy_chunks(stored, group)
        for _ in blocks_of(frames):
            pass
        return
    if stored is not None and stored.chunks is None:
        values = group.create_dataset("values", frames.shape, np.uint8)
    else:
        chunks = (1, *frames.shape[1:])
        values = group.create_dataset(
            "values", frames.shape, np.uint8, chunks=chunks, compression="gzip", compression_opts=GZIP, shuffle=True
        )
    done = 0
    for block in blocks_of(frames):
        values[done : done + len(block)] = block
        done += len(block)


def _copies(stored: h5py.Dataset) -> bool:
    """Whether its packed chunks may be taken over: they are all there, and packed as every h5py can read."""
    if stored.external or stored.is_virtual or not stored.chunks or not _filters(stored) <= COPIED_FILTERS:
        return False
    return stored.id.get_num_chunks() == math.prod(len(steps) for steps in _places(stored))


def _places(stored: h5py.Dataset) -> list[range]:
    """Where chunks begin along each axis."""
    sizes: tuple[int, ...] = stored.chunks or stored.shape
    return [range(0, size, step) for size, step in zip(stored.shape, sizes, strict=True)]


def _filters(stored: h5py.Dataset) -> set[int]:
    """Numbers of the filters that a dataset is packed with; `Dataset.compression` knows only some of them."""
    settings = stored.id.get_create_plist()
    return {settings.get_filter(i)[0] for i in range(settings.get_nfilters())}


def _copy_chunks(stored: h5py.Dataset, group: h5py.Group) -> None:
    """Move packed chunks without looking into them, before any is read: HDF5 packs anew what it has cached.

    Not by H5Ocopy, which also copies what else a header says, and on a damaged one frees memory twice.
    """
    values = group.create_dataset(
        "values",
        stored.shape,
        stored.dtype,
        chunks=stored.chunks,
        compression=stored.compression,
        compression_opts=stored.compression_opts,
        shuffle=stored.shuffle,
        fletcher32=stored.fletcher32,
    )
    for place in product(*_places(stored)):
        mask, packed = stored.id.read_direct_chunk(place)
        values.id.write_direct_chunk(place, packed, mask)


def _save_pictures(frames: PictureFrames, group: h5py.Group) -> None:
    group.attrs["packing"] = "pictures"
    stored = group.create_dataset("bytes", (0,), np.uint8, maxshape=(None,), chunks=(_READ,))
    offsets = [0]
    for data in frames.verified():
        _append(stored, data)
        offsets.append(offsets[-1] + len(data))
    group.create_dataset("offsets", data=np.array(offsets, np.int64))


def _save_video(frames: VideoFrames, group: h5py.Group) -> None:
    verify(frames.path, start=frames.start, length=len(frames), size=frames.shape[1:3])
    group.attrs["packing"] = "video"
    stored = group.create_dataset("bytes", (0,), np.uint8, maxshape=(None,), chunks=(_READ,))
    pieces, first = excerpt(frames.path, frames.start, len(frames))
    group.attrs["start"] = first
    for piece in pieces:
        _append(stored, piece)


def _append(stored: h5py.Dataset, data: bytes) -> None:
    size = stored.shape[0]
    stored.resize((size + len(data),))
    stored[size:] = np.frombuffer(data, np.uint8)


def load_frames(group: h5py.Group) -> Frames:
    """The pictures that `save_frames` wrote; the file is opened again whenever they are asked for.

    Raises:
        ValueError: the group is damaged.
    """
    packing = hdf5.text(group, "packing")
    shape = (*(int(hdf5.number(group, key, -1)) for key in ("frames", "height", "width")), 3)
    if packing not in ("plain", "pictures", "video") or min(shape) < 1:
        raise ValueError(f"{group.name} has the packing '{packing}' and the shape {list(shape)}")
    found = hdf5.dataset(group, "values" if packing == "plain" else "bytes")
    if packing == "plain" and found.shape != shape:
        raise ValueError(f"{found.name} is {list(found.shape)}, not {list(shape)}")
    return StoredFrames(Path(group.file.filename), str(group.name), packing, shape)


class StoredFrames(Frames):
    """Pictures in an episode file.

    Args:
        path: the episode file.
        name: the group's.
        packing: see above.
        shape: [T, H, W, 3].
    """

    def __init__(self, path: Path, name: str, packing: str, shape: tuple[int, ...]) -> None:
        self.path, self.name, self.packing = path, name, packing
        super().__init__(shape)

    def blocks(self) -> Iterator[np.ndarray]:
        """See `Frames`."""
        with hdf5.opened(self.path) as file:
            yield from self._packed(hdf5.group(file, self.name.lstrip("/")))

    def _packed(self, group: h5py.Group) -> Iterator[np.ndarray]:
        if self.packing == "plain":
            yield from ArrayFrames(hdf5.dataset(group, "values"), len(self)).blocks()
        elif self.packing == "pictures":
            stored, offsets = hdf5.dataset(group, "bytes"), hdf5.array(group, "offsets")
            reader = PictureFrames(lambda i: stored[offsets[i] : offsets[i + 1]].tobytes(), len(self), self.name)
            yield from reader.blocks()
        else:
            start = int(hdf5.number(group, "start", 0))
            data = io.BufferedReader(_BytesOf(hdf5.dataset(group, "bytes")), _READ)
            yield from decode_blocks(data, start=start, length=len(self), size=self.shape[1:3], block=self.block)

    def cut(self, length: int) -> StoredFrames:
        """See `Frames`."""
        return StoredFrames(self.path, self.name, self.packing, (length, *self.shape[1:]))


class _BytesOf(io.RawIOBase):
    """A dataset of bytes as a file, so that a long video need not be in memory."""

    def __init__(self, stored: h5py.Dataset) -> None:
        self.stored, self.place = stored, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: len(self.stored)}[whence]
        self.place = max(0, origin + offset)
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: Any) -> int:
        data = self.stored[self.place : self.place + len(buffer)]
        buffer[: len(data)] = data.tobytes()
        self.place += len(data)
        return len(data)
