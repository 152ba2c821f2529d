"""Zarr replay buffers of UMI and diffusion_policy: a `.zarr` folder or a `.zarr.zip`, or a folder that holds such.

Layout (diffusion_policy `common/replay_buffer.py`; zarr v2 as they write it, or v3):

    data/<key>          [N, ...] every episode's steps, one after the other
    meta/episode_ends   [E] int64: the row after each episode's last

- pictures: uint8 [N, H, W, 3]. UMI packs `camera<i>_rgb` as JPEG XL. PushT keeps `img` as float32: anything that holds
  nothing but whole numbers from 0 to 255 is read as uint8, [N, 3, H, W] too; the rest (depth, pictures scaled to 0..1)
  is left out by name.
- videos: a real robot's `replay_buffer.zarr` has `videos/<episode>/<camera>.mp4` beside it. They begin with the
  episode's first step, which is how diffusion_policy's `real_data_conversion` takes them, and keep their own clock.
- `action` [N, A]: absolute targets. UMI has none: the action of a step is then the pose and gripper width of the next
  step (the last is repeated), as UMI's own sampler derives it.
- `timestamp` [N] seconds. Without it PushT runs at 10 Hz, UMI at 59.94 Hz (its GoPro's), anything else at 10 Hz; the
  last two are assumed and said.
- other floating keys [N, ...] are state streams, flattened to [N, D]; what describes the task or the start, and whole
  numbers, are `other` streams. Neither instruction nor operator is in the format.

A chunk that is not there reads as the fill value, since zarr 3 leaves out chunks that hold nothing else; it is noted,
and refused among pictures. UMI's `dataset_plan.pkl` is a pickle and is never opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vla_cli.episode import Episode, Stream, UnusableError
from vla_cli.errors import InputError, MissingDependency, VlaError, words
from vla_cli.frames import VideoFrames
from vla_cli.readers import Entry, Options, Reader, Warn
from vla_cli.readers.archive import stays_in
from vla_cli.readers.zarr_facts import derived_action, role_of, stream_facts
from vla_cli.readers.zarr_find import ENDS, MARKS, find_stores, listed, open_members, plain_name
from vla_cli.readers.zarr_frames import NotPicturesError, ZarrFrames, is_channels_first
from vla_cli.readers.zarr_meta import ArrayFacts, is_array, read_facts
from vla_cli.video import probe, require_av

LOOKS_FOR = "a zarr store (folder or zip) with data/<key> and meta/episode_ends"
PUSHT_RATE, UMI_RATE, ASSUMED_RATE = 10.0, 60000 / 1001, 10.0
LARGEST_VECTOR = 256 * 2**20  # bytes of one stream in one episode
MOST_EPISODES = 1_000_000


def recognise(path: Path) -> str | None:
    """Whether this is, or holds, a store with meta/episode_ends (or one too damaged to tell)."""
    found = find_stores(path)
    if not found:
        return None
    store = found[0][1]
    return f"{store.name or path} is a zarr {'archive' if store.is_file() else 'folder'} with a replay buffer"


def open_log(path: Path, options: Options, warn: Warn) -> _Log:
    """The log.

    Raises:
        InputError: it holds no replay buffer, or its only one is damaged.
        MissingDependency: zarr is not installed, or what a codec needs.
    """
    stores = find_stores(path)
    if not stores:
        raise InputError(f"{path} holds no zarr replay buffer", expected=LOOKS_FOR, hint="--format auto")
    try:
        import zarr  # noqa: F401
    except ImportError:
        raise MissingDependency("zarr", extra="zarr", purpose="Reading a zarr replay buffer") from None
    return _Log(path, stores, warn)


READER = Reader(LOOKS_FOR, recognise, open_log)


class _Log:
    """The stores of a path; each is opened once and stays open, since its pictures are read later."""

    def __init__(self, path: Path, stores: list[tuple[str, Path]], warn: Warn) -> None:
        self.buffers: dict[str, _Buffer | ValueError] = {}
        self.sources = dict(stores)
        for prefix, store in stores:
            try:
                self.buffers[prefix] = _Buffer(store, prefix, warn)
            except VlaError:
                raise
            except Exception as error:  # whatever a damaged one makes zarr raise, the others go on
                reason = words(error)
                if len(stores) == 1:
                    raise InputError(f"{store} cannot be read: {reason}", expected=LOOKS_FOR) from None
                self.buffers[prefix] = ValueError(reason)

    def entries(self) -> list[Entry]:
        """See `Log`."""
        found = []
        for prefix, buffer in self.buffers.items():
            if isinstance(buffer, _Buffer):
                found += buffer.entries()
            else:
                files = (self.sources[prefix],) if self.sources[prefix].is_file() else ()
                found.append(Entry(prefix.rstrip("_") or "buffer", f"{prefix}/", files))
        return found

    def read(self, entry: Entry) -> Episode:
        """See `Log`."""
        prefix, _, index = entry.locator.rpartition("/")
        buffer = self.buffers[prefix]
        if not isinstance(buffer, _Buffer):
            raise UnusableError(f"the replay buffer cannot be read: {buffer}")
        return buffer.read(entry.name, int(index))

    def close(self) -> None:
        """See `Log`."""
        for buffer in self.buffers.values():
            if isinstance(buffer, _Buffer):
                buffer.members.close()


class _Buffer:
    """One store, and what it says of all its episodes."""

    def __init__(self, path: Path, prefix: str, warn: Warn) -> None:
        self.path, self.prefix = path, prefix
        said: set[str] = set()

        def warn_once(sentence: str) -> None:
            if sentence not in said:
                said.add(sentence)
                warn(sentence)

        self.warn = warn_once
        self.members = open_members(path)
        try:
            self._read_meta()
        except BaseException:
            self.members.close()
            raise

    def _read_meta(self) -> None:
        from vla_cli.readers.zarr_store import MembersStore

        self.facts: dict[str, ArrayFacts] = {}
        self.left_out: list[str] = []
        for key in self.members.children("data"):
            if key not in MARKS:
                self._judge(f"data/{key}")
        ends = read_facts(self.members, ENDS)
        self._require_codecs({facts.codec for facts in (ends, *self.facts.values())})
        self.store = MembersStore(self.members, {**self.facts, ENDS: ends})
        self.ends = self._episode_ends(ends)
        self.videos = self._videos()
        longest = max((facts.shape[0] for facts in self.facts.values()), default=0)
        if len(self.ends) and longest > self.ends[-1] >= 0:
            self.warn(f"{self.path.name}: {longest - self.ends[-1]} rows after the last episode's end are left out.")

    def _judge(self, name: str) -> None:
        """Take an array up, or say why it is left out."""
        try:
            if not is_array(self.members, name):
                raise ValueError(f"{name} is no array")
            self.facts[name] = read_facts(self.members, name)
        except ValueError as error:
            self._leave_out(name, str(error))

    def _leave_out(self, name: str, why: str) -> None:
        sentence = f"{name} is left out: {why}"
        if sentence not in self.left_out:
            self.left_out.append(sentence)
            self.warn(f"{self.path.name}: {sentence}.")

    def _require_codecs(self, codecs: set[str]) -> None:
        wanted = {codec for codec in codecs if codec.startswith("imagecodecs_")}
        if not wanted:
            return
        try:
            from imagecodecs.numcodecs import register_codecs
        except ImportError:
            purpose = f"Reading pictures packed by {', '.join(sorted(wanted))}"
            raise MissingDependency("imagecodecs", extra="zarr", purpose=purpose) from None
        register_codecs(wanted, verbose=False)

    def _episode_ends(self, facts: ArrayFacts) -> np.ndarray:
        if len(facts.shape) != 1 or facts.dtype.kind not in "iu" or facts.shape[0] > MOST_EPISODES:
            raise ValueError(f"{ENDS} is {facts.dtype}{list(facts.shape)}, not a list of whole numbers")
        if lost := [key for _, key in facts.chunk_keys(0, facts.shape[0]) if key not in self.members.sizes]:
            raise ValueError(f"{lost[0]} is not there")
        ends = np.asarray(self.store.open_array(ENDS)[:]).astype(np.int64)
        if np.any(ends < 0) or np.any(np.diff(ends) < 0):
            raise ValueError(f"{ENDS} does not ascend")
        return ends

    def _videos(self) -> Path | None:
        folder = self.path.parent / "videos"
        return folder if self.path.name == "replay_buffer.zarr" and self.path.is_dir() and folder.is_dir() else None

    def _cameras(self, index: int) -> list[Path]:
        folder = self.videos / str(index) if self.videos else None
        if folder is None or not folder.is_dir() or not stays_in(folder, self.path.parent.resolve()):
            return []
        return [file for file in listed(folder) if file.suffix.lower() == ".mp4" and file.is_file()]

    def entries(self) -> list[Entry]:
        """Each episode, whether it is whole or not."""
        found = []
        for index, (start, end) in enumerate(zip(np.r_[0, self.ends[:-1]], self.ends, strict=True)):
            files = (*self.members.files(self._names(int(start), int(end))), *self._cameras(index))
            found.append(Entry(f"{self.prefix}episode_{index}", f"{self.prefix}/{index}", files))
        return found

    def _names(self, start: int, end: int) -> Iterator[str]:
        """The members an episode is read from."""
        for facts in (self.store.facts[ENDS], *self.facts.values()):
            yield facts.meta_file
            rows = (0, facts.shape[0]) if facts.name == ENDS else (start, min(end, facts.shape[0]))
            try:
                yield from (key for _, key in facts.chunk_keys(*rows) if key in self.members.sizes)
            except ValueError:  # said when the episode is read
                continue

    def read(self, name: str, index: int) -> Episode:
        """One episode."""
        start, end = int(self.ends[index - 1]) if index else 0, int(self.ends[index])
        if end == start:
            raise UnusableError(f"it is empty: {ENDS} puts its end where it begins, at row {start}")
        for facts in self.facts.values():
            if facts.shape[0] < end:
                raise UnusableError(f"{facts.name} has {facts.shape[0]} rows, but the episode ends at row {end}")
        notes: list[str] = []
        clock, rate = self._clock(start, end, notes)
        streams = [s for facts in self.facts.values() for s in self._streams(facts, start, clock, rate, notes)]
        streams += self._recorded_videos(index, float(clock[0]), notes)
        if not any(stream.role == "action" for stream in streams) and (action := derived_action(streams, clock)):
            streams.append(action)
            notes.append("the log has no actions: the action is the next step's pose, and the last one is repeated")
        notes[:0] = self.left_out
        for role in ("image", "action"):
            if self.left_out and not any(stream.role == role for stream in streams):
                raise UnusableError(f"it has no {role}s ({'; '.join(self.left_out)[:400]})")
        source = f"{self.path.name}:/{ENDS}[{index}]"
        return Episode(name, streams, instructions=[], format="zarr", source=source, notes=notes)

    def _clock(self, start: int, end: int, notes: list[str]) -> tuple[np.ndarray, float]:
        """Time stamps [T] in seconds, and the rate that the format knows (0 for none)."""
        if (facts := self.facts.get("data/timestamp")) and facts.dtype.kind == "f" and facts.row_bytes <= 8:
            return self._vector(facts, start, end, notes).astype(np.float64)[:, 0], 0.0
        keys = {name.removeprefix("data/") for name in self.facts}
        if {"keypoint", "n_contacts"} <= keys:
            notes.append(f"PushT has no time stamps: its rate of {PUSHT_RATE:g} Hz is taken")
            return np.arange(end - start) / PUSHT_RATE, PUSHT_RATE
        rate, whose = (UMI_RATE, "UMI's GoPro") if "camera0_rgb" in keys else (ASSUMED_RATE, "diffusion_policy")
        message = f"no rate is stated (no data/timestamp): {rate:.2f} Hz, as of {whose}, is assumed"
        notes.append(message)
        self.warn(f"{self.path.name}: {message}.")
        return np.arange(end - start) / rate, 0.0

    def _streams(
        self, facts: ArrayFacts, start: int, clock: np.ndarray, rate: float, notes: list[str]
    ) -> Iterator[Stream]:
        key = facts.name.removeprefix("data/")
        stated = {"rate_hz": rate} if rate else {}
        if len(facts.shape) == 4 and (facts.shape[3] == 3 or is_channels_first(facts)):
            if (frames := self._pictures(facts, start, len(clock), notes)) is not None:
                yield Stream("image", key, frames, clock, stated | stream_facts("image", key, self.facts))
        elif len(facts.shape) > 3 or (len(facts.shape) == 3 and min(facts.shape[1:]) > 16):
            self._leave_out(facts.name, f"it is {facts.dtype}{list(facts.shape)}, neither pictures nor vectors")
        elif key != "timestamp":
            values = self._vector(facts, start, start + len(clock), notes)
            role = role_of(key, facts)
            if role == "action":
                values = values.astype(np.result_type(values.dtype, np.float32))
            yield Stream(role, key, values, clock, stated | stream_facts(role, key, self.facts))

    def _pictures(self, facts: ArrayFacts, start: int, length: int, notes: list[str]) -> ZarrFrames | None:
        if lost := self._lost(facts, start, start + length):
            raise UnusableError(f"{facts.name} has lost {len(lost)} chunks of pictures, the first at row {lost[0]}")
        frames = ZarrFrames(self.store.open_array(facts.name), facts, start, length)
        if frames.channels_first:
            notes.append(f"{facts.name} is turned from [3, H, W] to [H, W, 3]")
        if facts.dtype != np.uint8:
            try:
                for _ in frames.blocks():
                    pass
            except NotPicturesError as error:
                self._leave_out(facts.name, str(error))
                return None
            notes.append(f"{facts.name} is {facts.dtype} with whole numbers from 0 to 255, read as uint8")
        return frames

    def _vector(self, facts: ArrayFacts, start: int, end: int, notes: list[str]) -> np.ndarray:
        """Rows of an array as [T, D]."""
        if (end - start) * facts.row_bytes > LARGEST_VECTOR:
            raise UnusableError(f"{facts.name} claims {facts.row_bytes} bytes for each of {end - start} steps")
        if lost := self._lost(facts, start, end):
            note = f"{facts.name} lacks {len(lost)} chunks from row {lost[0]} on, which read as its fill value"
            notes.append(note)
            self.warn(f"{self.path.name}: {note}.")
        rows = np.asarray(self.store.open_array(facts.name)[start:end])
        return rows.reshape(len(rows), -1)

    def _lost(self, facts: ArrayFacts, start: int, end: int) -> list[int]:
        return [row for row, key in facts.chunk_keys(start, end) if key not in self.members.sizes]

    def _recorded_videos(self, index: int, begin: float, notes: list[str]) -> Iterator[Stream]:
        cameras = self._cameras(index)
        if self.videos and not cameras:
            notes.append(f"videos/{index} has no videos")
        if cameras:
            require_av()
        for file in cameras:
            times, shape = probe(file)
            name = f"camera_{file.stem}" if file.stem.isdigit() else plain_name(file.stem)
            yield Stream("image", name, VideoFrames(file, shape), begin + times - times[0], {"channels": "rgb"})
