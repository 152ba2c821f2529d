"""One bag as streams: a first pass keeps numbers, times and where each picture stands; pictures are decoded later.

The clock of a stream is its messages' header.stamp, else the log time (see `choose_clocks`).
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_cli.episode import Stream, UnusableError
from vla_cli.errors import words
from vla_cli.frames import PictureFrames
from vla_cli.logs import in_words
from vla_cli.pictures import NotColour
from vla_cli.readers.ros_bags import OpenBag, Place
from vla_cli.readers.ros_messages import COMPRESSED, IMAGE, STRING, VECTORS, Joints, Rows, decode
from vla_cli.readers.ros_pictures import CompressedCheck, ImageCheck, RawImages
from vla_cli.readers.ros_storage import Message, Topic, shown
from vla_cli.readers.ros_topics import Wanted

APART = 10 * 10**9  # ns between two streams' clocks that no delay explains: they count from different beginnings
SUSPECT = 5 * 10**8  # ns between two streams' clocks; a picture's exposure and transfer take less
_LARGEST_TIME = 2**62  # ns
_MOST_TEXTS = 100


class Texts:
    """The distinct texts of a std_msgs/String topic, in order."""

    def __init__(self) -> None:
        self.found: dict[str, None] = {}

    def add(self, message: Any) -> None:
        """Take a message.

        Raises:
            ValueError: there are too many different ones to be instructions.
        """
        if message.data.strip():
            self.found[message.data.strip()] = None
        if len(self.found) > _MOST_TEXTS:
            raise ValueError(f"is one of more than {_MOST_TEXTS} different texts, which are no instructions")


class Track:
    """What the first pass keeps of a topic.

    Args:
        topic: which one.
    """

    def __init__(self, topic: Topic) -> None:
        self.topic, self.label = topic, f"topic {shown(topic.name)}"
        self.log, self.header, self.places = array("q"), array("q"), array("q")
        self.taker: Any = _taker(topic.type)
        self.keeps_places = topic.type in (IMAGE, COMPRESSED)

    def __len__(self) -> int:
        return len(self.log)

    def add(self, message: Message, place: Place) -> None:
        """Take a message.

        Raises:
            UnusableError: it cannot be decoded, or does not go with those before.
        """
        try:
            decoded = decode(message.data, self.topic.type)
            self.taker.add(decoded)
        except UnusableError:
            raise
        except ValueError as error:
            raise UnusableError(f"message {len(self)} of {self.label} {error}") from None
        except Exception as error:  # rosbags' own, and whatever damaged bytes make of its code
            raise UnusableError(f"message {len(self)} of {self.label} cannot be decoded ({in_words(error)})") from None
        if message.log_time > _LARGEST_TIME:
            raise UnusableError(f"message {len(self)} of {self.label} has the log time {message.log_time} ns")
        self.log.append(message.log_time)
        stamp = getattr(getattr(decoded, "header", None), "stamp", None)
        self.header.append(0 if stamp is None else stamp.sec * 10**9 + stamp.nanosec)
        if self.keeps_places:
            self.places.extend(place)


def _taker(kind: str) -> Any:
    if kind == STRING:
        return Texts()
    return {IMAGE: ImageCheck, COMPRESSED: CompressedCheck, **VECTORS}[kind]()


def collect(bag: OpenBag, topics: Sequence[Topic]) -> dict[str, Track]:
    """Go through a bag once.

    Raises:
        UnusableError: it is damaged, or a message cannot be used.
    """
    tracks = {topic.name: Track(topic) for topic in topics}
    for message, place in bag.messages(tracks):
        tracks[message.topic].add(message, place)
    return tracks


class Clock:
    """The times of one track in the order in which its values are used.

    Attributes:
        order: [T] which message comes when.
        times: [T] int64 ns.
        source: "header.stamp" or "log time".
    """

    def __init__(self, track: Track, notes: list[str]) -> None:
        self.log, header = np.array(track.log, np.int64), np.array(track.header, np.int64)
        self.order = np.lexsort((header, self.log))  # the log's order, not the file's
        header, self.log = header[self.order], self.log[self.order]
        self.times, self.source = header, "header.stamp"
        zeros = int(np.sum(header == 0))
        if zeros:
            self.to_log_time()
            if zeros < len(header):
                notes.append(
                    f"{track.label} has no header.stamp in {zeros} of {len(header)} messages: log times are used"
                )
        elif back := int(np.sum(np.diff(header) < 0)):
            self.to_log_time()
            notes.append(f"{track.label} goes back in header.stamp {back} times: log times are used")

    @property
    def offset(self) -> int:
        """How far its times are from the log's, in ns (the median)."""
        return int(np.median(self.times - self.log))

    def to_log_time(self) -> None:
        """Use log times."""
        self.times, self.source = self.log, "log time"


def choose_clocks(tracks: Mapping[str, Track], notes: list[str]) -> dict[str, Clock]:
    """A clock for each track: header.stamp, unless those of two tracks count from different beginnings.

    A simulation's clock begins at 0 and a camera's may begin when it is switched on; beside a topic without header
    (whose time is the log's) either would put streams years apart.
    """
    clocks = {name: Clock(track, notes) for name, track in tracks.items() if len(track)}
    offsets = [clock.offset for clock in clocks.values()]
    if offsets and max(offsets) - min(offsets) > APART:
        notes.append(
            f"header.stamp counts from another beginning in some topics ({(max(offsets) - min(offsets)) / 1e9:.0f} s "
            "apart): log times are used for all"
        )
        for clock in clocks.values():
            clock.to_log_time()
    elif offsets and max(offsets) - min(offsets) >= SUSPECT:
        early, late = (find(clocks, key=lambda name: clocks[name].offset) for find in (min, max))
        notes.append(
            f"header.stamp against the log time differs by {(max(offsets) - min(offsets)) / 1e9:.2f} s between "
            f"{tracks[early].label} ({clocks[early].offset / 1e9:+.2f} s) and {tracks[late].label} "
            f"({clocks[late].offset / 1e9:+.2f} s): were the clocks of two computers not set alike? The stamps are "
            "used as they are (vla preprocess --latency STREAM=SECONDS shifts a stream)"
        )
    return clocks


def streams(bag: OpenBag, wanted: Sequence[Wanted], tracks: Mapping[str, Track], notes: list[str]) -> list[Stream]:
    """The streams of one bag, seconds from the earliest message of any of them.

    Raises:
        UnusableError: one has no messages, or cannot be made.
    """
    used = {one.topic: tracks[one.topic] for one in wanted}
    for track in used.values():
        if not len(track):
            raise UnusableError(f"{track.label} has no messages")
    clocks = choose_clocks(used, notes)
    start = min(int(clock.times.min()) for clock in clocks.values())
    found = []
    for one in wanted:
        track, clock = used[one.topic], clocks[one.topic]
        seconds = (clock.times - start) / 1e9
        facts = {"topic": shown(track.topic.name, 200), "type": track.topic.type, "clock": clock.source}
        try:
            if one.role == "image":
                found += _camera(bag, one, track, clock, seconds, facts, notes)
            else:
                found += _vectors(one, track, clock, seconds, facts, notes)
        except ValueError as error:
            raise UnusableError(f"{track.label}: {error}") from None
    return found


def _camera(
    bag: OpenBag,
    one: Wanted,
    track: Track,
    clock: Clock,
    seconds: np.ndarray,
    facts: dict[str, Any],
    notes: list[str],
) -> list[Stream]:
    check: ImageCheck | CompressedCheck = track.taker
    if check.refusal:
        notes.append(f"camera '{one.name}' ({track.label}) is left out: {check.refusal}")
        return []
    places = np.array(track.places, np.int64).reshape(-1, 3)[clock.order]
    kind = track.topic.type

    label = f"camera '{one.name}'"

    def message(step: int) -> Any:
        number, at, inner = (int(part) for part in places[step])
        try:
            return decode(bag.fetch((number, at, inner)), kind)
        except Exception as error:  # it was there in the first pass
            raise ValueError(f"{label} step {step} cannot be read again ({words(error)})") from None

    try:
        if isinstance(check, ImageCheck):
            frames: Any = RawImages(message, (len(track), *check.size), label)
        else:
            frames = PictureFrames(lambda step: message(step).data.tobytes(), len(track), label)
    except NotColour as error:
        notes.append(f"camera '{one.name}' ({track.label}) is left out: {error}")
        return []
    return [Stream("image", one.name, frames, seconds, {**facts, **check.facts})]


def _vectors(
    one: Wanted, track: Track, clock: Clock, seconds: np.ndarray, facts: dict[str, Any], notes: list[str]
) -> list[Stream]:
    taker: Rows | Joints = track.taker
    found = []
    for vector in taker.vectors(notes, track.label):
        role = "other" if vector.suffix else one.role
        attributes = {**facts, **vector.attributes}
        if role != "action":
            attributes.pop("mode", None)
        found.append(Stream(role, one.name + vector.suffix, vector.values[clock.order], seconds, attributes))
    return found
