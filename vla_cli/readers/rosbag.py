"""ROS 2 bags: MCAP or sqlite3, a directory with metadata.yaml, one file, or a folder of either; one bag is one episode.

Which topic becomes which stream says a YAML (see `ros_topics`), or goes without saying. Message types and what becomes
of them (sizes as the messages have them):

    sensor_msgs/Image               rgb8, bgr8, rgba8, bgra8: uint8 RGB [T, H, W, 3]; padding and alpha are left out
    sensor_msgs/CompressedImage     JPEG, PNG: the same, kept as they are
    sensor_msgs/JointState          float64 [T, joints] in the order of the first message; position, and velocity and
                                    effort as streams of their own with role "other"
    trajectory_msgs/JointTrajectory the same for trajectories of one point
    geometry_msgs/PoseStamped, Pose, TransformStamped
                                    float64 [T, 7]: x y z in metres, quaternion x y z w as recorded
    geometry_msgs/Twist, TwistStamped  float64 [T, 6]: m/s, rad/s
    std_msgs/Float32, Float64, Bool, (U)Int8/16/32, Float32MultiArray, Float64MultiArray   [T, D]
    std_msgs/String                 the instruction

Sources: docs.ros.org (common_interfaces), github.com/ros2/rosbag2, mcap.dev/spec.
"""

from __future__ import annotations

from pathlib import Path

from vla_cli.episode import Episode, UnusableError
from vla_cli.errors import InputError
from vla_cli.readers import Entry, Options, Reader, Warn
from vla_cli.readers.ros_bags import Bag, OpenBag, find_bags
from vla_cli.readers.ros_messages import check_definition, require_rosbags
from vla_cli.readers.ros_storage import Topic, shown
from vla_cli.readers.ros_streams import collect, streams
from vla_cli.readers.ros_topics import TopicMap, ambiguous, check_map, guess, listing, load_map, told

LOOKS_FOR = "a ROS 2 bag: an .mcap file, an sqlite3 file with topics and messages, or a directory with metadata.yaml"
_MOST_LOOKED_AT = 2000  # files; recognising a folder of something else is to be quick


def recognise(path: Path) -> str | None:
    """Whether there is a bag at or below a path."""
    bag = next(find_bags(path, _MOST_LOOKED_AT), None)
    if bag is None:
        return None
    if bag.path.is_dir():
        return f"{bag.path.name} holds rosbag2's metadata.yaml"
    return f"{bag.path.name} is a bag file (MCAP, or sqlite3 with topics and messages)"


def open_log(path: Path, options: Options, warn: Warn) -> RosLog:
    """Find the bags and settle which topics are read.

    Raises:
        InputError: there is no bag, none can be read, or none has the topics.
        ConfigError: the YAML of topics cannot be used.
        MissingDependency: rosbags is not installed.
    """
    require_rosbags()
    topic_map = load_map(options.topics) if options.topics else None
    bags = list(find_bags(path))
    if not bags:
        raise InputError(f"{path} holds no ROS 2 bag", expected=LOOKS_FOR, hint="--format auto")
    _warn_of_pieces(bags, warn)
    return RosLog(path, bags, _settle(path, bags, topic_map, warn), warn)


class RosLog:
    """Bags of one kind of recording.

    Args:
        path: what the user named.
        bags: in order.
        topic_map: what is read of each.
        warn: where oddities are told.
    """

    def __init__(self, path: Path, bags: list[Bag], topic_map: TopicMap, warn: Warn) -> None:
        self.path, self.topic_map, self.warn = path, topic_map, warn
        self.bags = {bag.locator: bag for bag in bags}
        self.opened: list[OpenBag] = []
        self.told: set[str] = set()

    def entries(self) -> list[Entry]:
        """See `Log`."""
        return [Entry(bag.name, bag.locator, bag.sources) for bag in self.bags.values()]

    def read(self, entry: Entry) -> Episode:
        """See `Log`."""
        for before in self.opened:
            before.rest()
        bag = OpenBag(self.bags[entry.locator])
        self.opened.append(bag)
        topics = bag.topics()
        if found := check_map(self.topic_map, topics):
            raise UnusableError(f"{'; '.join(found[:3])}; it has {listing(topics)}")
        wanted = [topics[name] for name in self.topic_map.topics]
        for topic in wanted:
            check_definition(topic)
        tracks = collect(bag, wanted)
        notes: list[str] = []
        made = streams(bag, self.topic_map.streams, tracks, notes)
        self._tell([*(f"{shown(entry.name)}: {note}" for note in bag.notes), *notes])
        notes = [*bag.notes, *notes, *self._unused(topics)]
        return Episode(
            name=entry.name,
            streams=made,
            instructions=self._instructions(tracks, notes),
            operator=self.topic_map.operator or "unknown",
            format="rosbag",
            source=entry.locator if entry.locator != "." else self.path.name,
            notes=notes,
        )

    def close(self) -> None:
        """See `Log`."""
        for bag in self.opened:
            bag.rest()

    def _instructions(self, tracks: dict, notes: list[str]) -> list[str]:
        if self.topic_map.text:
            return [self.topic_map.text]
        if not self.topic_map.instruction:
            return []
        found = list(tracks[self.topic_map.instruction].taker.found)
        if not found:
            notes.append(f"topic {shown(self.topic_map.instruction)} says no instruction")
        return found

    def _unused(self, topics: dict[str, Topic]) -> list[str]:
        rest = {name: topic for name, topic in topics.items() if name not in self.topic_map.topics and topic.count}
        return [f"not read: {listing(rest)}"] if rest else []

    def _tell(self, notes: list[str]) -> None:
        for note in notes:
            if note not in self.told:
                self.told.add(note)
                self.warn(f"{note}.")


def _settle(path: Path, bags: list[Bag], topic_map: TopicMap | None, warn: Warn) -> TopicMap:
    """The map that the first bag it fits is read with; a bag that it does not fit is an episode's problem."""
    first: InputError | None = None
    reasons = []
    for bag in bags:
        opened = OpenBag(bag)
        try:
            topics = opened.topics()
        except (UnusableError, OSError) as error:
            reasons.append(f"{bag.name}: {error}")
            continue
        finally:
            opened.rest()
        if not topics:
            reasons.append(f"{bag.name}: it has no topics")
            continue
        chosen = topic_map or guess(topics)
        if chosen is None:
            first = first or ambiguous(shown(bag.name), topics)
        elif topic_map is not None and (found := check_map(topic_map, topics)):
            first = first or _unfit(bag, found, topics)
        else:
            if topic_map is None:
                warn(f"No --topics was given; the topics of {shown(bag.name)} are read as {told(chosen)}.")
            return chosen
    raise first or InputError(f"{path} cannot be read ({'; '.join(reasons[:3])})", expected="a whole ROS 2 bag")


def _unfit(bag: Bag, found: list[str], topics: dict[str, Topic]) -> InputError:
    return InputError(
        f"{shown(bag.name)} does not fit the YAML of topics: {'; '.join(found[:5])}",
        expected=f"topics that it has: {listing(topics)}",
        hint="--topics with a YAML that names those",
    )


def _warn_of_pieces(bags: list[Bag], warn: Warn) -> None:
    """A recorder that is killed writes no metadata.yaml; the pieces of its bag then look like bags."""
    folders: dict[Path, int] = {}
    for bag in bags:
        if bag.path.is_file() and bag.path.stem.rpartition("_")[0] == bag.path.parent.name:
            folders[bag.path.parent] = folders.get(bag.path.parent, 0) + 1
    for folder, pieces in folders.items():
        if pieces > 1:
            warn(
                f"{shown(folder.name)} has no metadata.yaml: each of its {pieces} files is read as an episode "
                "(`ros2 bag reindex` makes them one bag)."
            )


READER = Reader(LOOKS_FOR, recognise, open_log, takes_topics=True)
