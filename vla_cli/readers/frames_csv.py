"""Frames and CSV, the plain layout for a robot that writes nothing else: a folder an episode, or a folder of such.

    demo_01/
        data.csv                 what the robot recorded, a row a step; any name, as long as it is the only CSV
        frames/000000.jpg ...    the pictures (JPEG or PNG, upright colours) of one camera, then called "frames",
        frames/<camera>/...      or of several, a folder each
        frames.csv               optional: `file,timestamp`, when each picture was taken
        episode.json             optional (or episode.yaml): what else is known

data.csv has a line that names the columns. Times are seconds, of any origin, not going back; everything else is in the
robot's own units:

    timestamp                    seconds (`time` or `t` do too); without it episode.json states `rate_hz`
    state.<name>                 the robot's state, a column a dimension, together [T, D] in the columns' order
    action.<name>                what it was told to do, likewise
    instruction, operator        optional text; what every row says, or what changes on the way
    frame, frame.<camera>        optional: the name of the row's picture; empty for none, repeated while it lasts

    timestamp,state.x,state.grip,action.dx,action.grip
    0.00,0.412,0.08,0.001,1
    0.10,0.413,0.08,0.002,1

Pictures need times. They are, in this order: those of the rows that name them; those in frames.csv (`file` is
`000000.jpg` or `<camera>/000000.jpg`); their file names, if these are all seconds with a decimal point
(`1699999999.25.jpg`) or all whole nanoseconds (16 digits or more); those of the rows, if there are as many pictures as
rows. Pictures are ordered by the numbers in their names: 2.jpg comes before 10.jpg.

episode.json:

    {"instruction": "put the cup on the plate", "operator": "ada", "rate_hz": 10,
     "conventions": {"action": {"mode": "delta", "units": "m, rad"}, "frames": {"orientation": "upright"}}}

`conventions` has the keys of `vla_cli.conventions` for each stream by its name: "state", "action" or a camera's.
A CSV with other column names is mapped by a YAML file, `--topics map.yaml`:

    timestamp: t
    state: [q1, q2, q3, grip]
    action: [v1, v2, v3, grip_cmd]
    instruction: text
    operator: who
    frame: {wrist: wrist_image, front: front_image}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vla_cli.episode import Episode, Role, Stream, UnusableError
from vla_cli.errors import InputError
from vla_cli.pictures import NotColour
from vla_cli.readers import Entry, Options, Reader, Warn
from vla_cli.readers.archive import stays_in
from vla_cli.readers.csv_columns import Columns, Mapping, choose_columns, read_mapping
from vla_cli.readers.csv_table import Table, quoted, read_header, read_table
from vla_cli.readers.episode_notes import NAMES, EpisodeNotes, read_notes
from vla_cli.readers.picture_folders import (
    FOLDER,
    TIMES,
    Camera,
    Timed,
    find_cameras,
    named_times,
    read_times,
    times_by_row,
    unused,
)

LOOKS_FOR = "a folder with pictures in frames/ and a CSV file with columns state.* and action.* (or a folder of such)"
MOST_EPISODES = 100_000
MOST_INSTRUCTIONS = 100
SLOWEST = 5.0  # seconds between two rows; more are other units: a tenth of a second is 100 ms


def recognise(path: Path) -> str | None:
    """Whether this is, or holds, a folder with frames/ and a CSV file."""
    if not path.is_dir():
        return None
    if _is_episode(path):
        return f"{path.name} has {FOLDER}/ and a CSV file"
    found = next((child for child in _folders(path)[0] if _is_episode(child)), None)
    return f"{found.name} in it has {FOLDER}/ and a CSV file" if found else None


def open_log(path: Path, options: Options, warn: Warn) -> _Log:
    """The log.

    Raises:
        InputError: it holds no such folder.
        ConfigError: the mapping is not understood.
    """
    mapping = read_mapping(options.topics)
    if not path.is_dir():
        raise InputError(f"{path} is not a folder", expected=LOOKS_FOR, hint="--format auto")
    if _is_episode(path) or _looks_like_one(path):
        return _Log(path, {path.resolve().name: path}, mapping, warn)
    children, left_out = _folders(path)
    episodes = {child.name: child for child in children if _looks_like_one(child)}
    if not episodes:
        raise InputError(f"{path} holds no episode of frames and CSV", expected=LOOKS_FOR, hint="--format auto")
    left_out += [child.name for child in children if child.name not in episodes]
    if left_out:
        warn(f"{quoted(left_out)} in {path.name} are no episodes: they have neither {FOLDER}/ nor a CSV file")
    return _Log(path, episodes, mapping, warn)


READER = Reader(LOOKS_FOR, recognise, open_log, takes_topics=True)


def _is_episode(folder: Path) -> bool:
    return (folder / FOLDER).is_dir() and (bool(_csv_files(folder)) or any((folder / name).is_file() for name in NAMES))


def _looks_like_one(folder: Path) -> bool:
    """Whether something of an episode is there; it may have lost the rest."""
    parts = (FOLDER, TIMES, *NAMES)
    return any((folder / part).exists() for part in parts) or bool(_csv_files(folder))


def _folders(path: Path) -> tuple[list[Path], list[str]]:
    """The folders in a folder, by the numbers in their names, and what leads out of it."""
    found, left_out, resolved = [], [], path.resolve()
    for count, child in enumerate(path.iterdir()):
        if count > MOST_EPISODES:
            raise InputError(f"{path} holds more than {MOST_EPISODES} files", expected=LOOKS_FOR)
        if child.name.startswith(".") or not child.is_dir():
            continue
        if stays_in(child, resolved):
            found.append(child)
        else:
            left_out.append(child.name)
    return sorted(found, key=lambda child: _by_numbers(child.name)), sorted(left_out)


def _by_numbers(name: str) -> tuple[list[int | str], str]:
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d{1,30})", name))], name


def _csv_files(folder: Path) -> list[Path]:
    """The CSV files that may be an episode's data, in the order of their names."""
    resolved = folder.resolve()
    files = (file for file in folder.glob("*.[cC][sS][vV]") if file.name != TIMES and not file.name.startswith("."))
    return sorted(file for file in files if file.is_file() and stays_in(file, resolved))


class _Log:
    """A folder of episodes by name."""

    def __init__(self, path: Path, episodes: dict[str, Path], mapping: Mapping, warn: Warn) -> None:
        self.path, self.episodes, self.mapping, self.warn = path, episodes, mapping, warn

    def entries(self) -> list[Entry]:
        """See `Log`."""
        return [Entry(name, name, tuple(_files(folder))) for name, folder in self.episodes.items()]

    def read(self, entry: Entry) -> Episode:
        """See `Log`."""
        return _Folder(self.episodes[entry.locator], self.mapping, self.warn).read(entry.name)

    def close(self) -> None:
        """See `Log`."""


def _files(folder: Path) -> Iterator[Path]:
    yield from _csv_files(folder)
    for name in (TIMES, *NAMES):
        if (folder / name).is_file() and stays_in(folder / name, folder.resolve()):
            yield folder / name
    try:
        cameras = find_cameras(folder)
    except (ValueError, OSError):  # said when the episode is read
        return
    for camera in cameras:
        yield from camera.files.values()


class _Folder:
    """One episode."""

    def __init__(self, folder: Path, mapping: Mapping, warn: Warn) -> None:
        self.folder, self.mapping, self.warn = folder, mapping, warn
        self.notes: list[str] = []
        self.left_out: list[str] = []  # cameras

    def read(self, name: str) -> Episode:
        """The episode."""
        file = self._data_file()
        known = read_notes(self.folder)
        columns = choose_columns(file, read_header(file), self.mapping)
        if columns.left_out:
            self._say(
                f"columns {quoted(columns.left_out)} of {file.name} are left out: they are neither state nor action"
            )
        table = read_table(file, columns.numbers, columns.texts)
        if len(table) == 0:
            raise UnusableError(f"{file.name} has no rows below its header")
        clock = self._clock(file, table, columns, known)
        roles: list[Role] = ["state", "action"]
        streams = [self._vector(role, table, columns, clock, known) for role in roles if columns.of(role)]
        streams += self._cameras(file, table, columns, clock)
        known.state(streams, self.left_out)
        return Episode(
            name,
            streams,
            instructions=self._instructions(table, columns, known),
            operator=self._operator(table, columns, known),
            format="frames-csv",
            source=f"{self.folder.resolve().name}/{file.name}",
            notes=self.notes,
        )

    def _say(self, note: str) -> None:
        self.notes.append(note)
        self.warn(f"{self.folder.resolve().name}: {note}.")

    def _data_file(self) -> Path:
        files = _csv_files(self.folder)
        if not files:
            raise UnusableError(f"it has no CSV file beside {FOLDER}/")
        chosen = next((file for file in files if file.name == "data.csv"), files[0])
        others = [file.name for file in files if file != chosen]
        if others and chosen.name != "data.csv":
            raise UnusableError(
                f"it has several CSV files ({quoted([file.name for file in files])}): call one data.csv"
            )
        if others:
            self._say(f"{quoted(others)} beside data.csv are left out")
        return chosen

    def _clock(self, file: Path, table: Table, columns: Columns, known: EpisodeNotes) -> np.ndarray:
        """Time stamps [T] in seconds."""
        if columns.timestamp is None:
            if not known.rate_hz:
                raise UnusableError(f"{file.name} has no column 'timestamp', and no {NAMES[0]} states rate_hz")
            return np.arange(len(table)) / known.rate_hz
        clock = table.numbers[columns.timestamp]
        steps = np.diff(clock)
        if back := np.flatnonzero(steps < 0).tolist():
            line, earlier, later = table.lines[back[0] + 1], clock[back[0]], clock[back[0] + 1]
            raise UnusableError(f"{file.name} line {line} goes back in time, from {earlier:.17g} s to {later:.17g} s")
        if len(steps) and float(np.median(steps)) > SLOWEST:
            raise UnusableError(
                f"the times in {file.name} advance by {np.median(steps):g} a row, and seconds are expected: if they "
                "are milliseconds, divide them by 1000"
            )
        return clock

    def _vector(self, role: Role, table: Table, columns: Columns, clock: np.ndarray, known: EpisodeNotes) -> Stream:
        chosen = columns.of(role)
        values = np.stack([table.numbers[column] for column in chosen], axis=1)
        facts = {"names": [column.removeprefix(f"{role}.") for column in chosen]}
        return Stream(role, role, values, clock, facts | ({"rate_hz": known.rate_hz} if known.rate_hz else {}))

    def _cameras(self, file: Path, table: Table, columns: Columns, clock: np.ndarray) -> Iterator[Stream]:
        cameras = find_cameras(self.folder)
        if not cameras:
            raise UnusableError(f"it has no pictures (JPEG or PNG) in {FOLDER}/")
        listed = read_times(self.folder, cameras)
        by_camera = columns.frames_of([camera.name for camera in cameras])
        for camera in cameras:
            paths, times, lists = self._pictures(file, camera, table, by_camera.get(camera.name), clock, listed)
            for sentence in unused(camera, paths, lists):
                self._say(sentence)
            if times[0] > clock[-1] or times[-1] < clock[0]:
                raise UnusableError(
                    f"{camera.label} was taken from {times[0]:.3f} s to {times[-1]:.3f} s, but {file.name} runs from"
                    f" {clock[0]:.3f} s to {clock[-1]:.3f} s"
                )
            try:
                frames = camera.pictures(paths)
            except NotColour as error:
                self._say(f"{camera.label} is left out: {error}")
                self.left_out.append(camera.name)
                continue
            yield Stream("image", camera.name, frames, times, {"channels": "rgb"})

    def _pictures(
        self, file: Path, camera: Camera, table: Table, column: str | None, clock: np.ndarray, listed: dict[str, Timed]
    ) -> tuple[list[Path], np.ndarray, str]:
        """A camera's pictures, when each was taken, and what lists them."""
        if not camera.files:
            raise UnusableError(f"{camera.label} has no pictures (JPEG or PNG)")
        if column is not None:
            return *times_by_row(camera, table, column, clock), file.name
        if camera.name in listed:
            return *listed[camera.name], TIMES
        if (named := named_times(camera)) is not None:
            return *named, FOLDER
        if len(camera.files) == len(clock):
            return list(camera.files.values()), clock, FOLDER
        column = "frame" if camera.name == FOLDER else f"frame.{camera.name[:60]}"
        raise UnusableError(
            f"{camera.label} has {len(camera.files)} pictures and {file.name} {len(clock)} rows, so it is not known"
            f" when each was taken: name each row's picture in a column {column}, or write {TIMES} with"
            " file,timestamp, or name the pictures by their times"
        )

    def _instructions(self, table: Table, columns: Columns, known: EpisodeNotes) -> list[str]:
        said = table.texts[columns.instruction] if columns.instruction else []
        distinct = list(dict.fromkeys(text for text in said if text))
        if len(distinct) > MOST_INSTRUCTIONS:
            raise UnusableError(f"the column '{columns.instruction}' has {len(distinct)} different instructions")
        return distinct or known.instructions

    def _operator(self, table: Table, columns: Columns, known: EpisodeNotes) -> str:
        names = list(dict.fromkeys(filter(None, table.texts[columns.operator]))) if columns.operator else []
        if len(names) > 1:
            self._say(f"several operators are named ({quoted(names)}), and the first is kept")
        return names[0] if names else known.operator or "unknown"
