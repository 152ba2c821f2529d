"""Which topic becomes which stream: a small YAML, or what goes without saying.

cameras: {front: /camera/color/image_raw}
state: {joints: /joint_states, ee: /ee_pose}
action: {action: /joint_command}
other: {force: /wrench}              # kept beside, no part of state or action
instruction: /instruction            # a std_msgs/String topic; or in its place
text: put the cup on the shelf
operator: alice
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vla_cli.episode import Role
from vla_cli.errors import ConfigError, InputError
from vla_cli.readers.ros_messages import COMPRESSED, IMAGE, JOINT_STATE, STRING, VECTORS
from vla_cli.readers.ros_storage import Topic, shown
from vla_cli.yaml_files import read_options

_SECTIONS: dict[str, Role] = {"cameras": "image", "state": "state", "action": "action", "other": "other"}
_TEXTS = ("instruction", "text", "operator")
_COMMAND = re.compile("command|cmd|action", re.IGNORECASE)
_INSTRUCTION = re.compile("instruction|language", re.IGNORECASE)
_LARGEST = 2**16
_HINT = "cameras: {front: /camera/image_raw}, state: {joints: /joint_states}, action: {action: /joint_command}"
_LONGEST_LISTING = 700  # characters


@dataclass(frozen=True)
class Wanted:
    """One stream that is asked for: its role, its name, and the topic that it comes from."""

    role: Role
    name: str
    topic: str


@dataclass(frozen=True)
class TopicMap:
    """What is taken from a bag.

    Attributes:
        streams: every stream.
        instruction: a topic of texts, or "".
        text: the instruction itself, or "".
        operator: who demonstrated, or "".
    """

    streams: tuple[Wanted, ...]
    instruction: str = ""
    text: str = ""
    operator: str = ""

    @property
    def topics(self) -> list[str]:
        """Every topic it names."""
        named = [wanted.topic for wanted in self.streams] + ([self.instruction] if self.instruction else [])
        return list(dict.fromkeys(named))


def load_map(path: Path) -> TopicMap:
    """Read the YAML.

    Raises:
        ConfigError: it is missing or no YAML, or has keys or values that it may not have; all of them are named.
    """
    if path.is_file() and path.stat().st_size > _LARGEST:
        raise ConfigError(
            f"{path} has {path.stat().st_size} bytes", expected="a small YAML that maps topics to streams"
        )
    document = read_options(path)
    known = (*_SECTIONS, *_TEXTS)
    found = [f"unknown key '{key}' (known: {', '.join(known)})" for key in document if key not in known]
    streams = []
    for section, role in _SECTIONS.items():
        entries = document.get(section) or {}
        if not isinstance(entries, dict):
            found.append(f"{section} is {entries!r}, not a mapping of names to topics")
            continue
        for name, topic in entries.items():
            if not isinstance(topic, str) or not isinstance(name, str) or not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
                found.append(f"{section} has '{name}: {topic}', not a plain name and a topic")
            else:
                streams.append(Wanted(role, name, topic))
    found += [
        f"{key} is {document[key]!r}, not a text" for key in _TEXTS if not isinstance(document.get(key) or "", str)
    ]
    if document.get("instruction") and document.get("text"):
        found.append("instruction (a topic) and text exclude each other")
    if not streams:
        found.append("no topic is mapped to a stream")
    if found:
        raise ConfigError(f"The topics in {path} cannot be used: {'; '.join(found)}", hint=_HINT)
    texts = {key: document.get(key) or "" for key in _TEXTS}
    return TopicMap(tuple(streams), **texts)


def check_map(topic_map: TopicMap, topics: Mapping[str, Topic]) -> list[str]:
    """What of a map a bag cannot give, one phrase each."""
    found = [f"it has no topic {shown(name)}" for name in topic_map.topics if name not in topics]
    for wanted in topic_map.streams:
        topic = topics.get(wanted.topic)
        kinds = (IMAGE, COMPRESSED) if wanted.role == "image" else tuple(VECTORS)
        if topic is not None and (topic.type not in kinds or topic.encoding != "cdr"):
            what = "a camera" if wanted.role == "image" else f"a vector of role {wanted.role}"
            found.append(f"{describe(topic)} cannot be {what}")
    text = topics.get(topic_map.instruction)
    if text is not None and text.type != STRING:
        found.append(f"{describe(text)} cannot be the instruction, which is a {STRING}")
    return found


def guess(topics: Mapping[str, Topic]) -> TopicMap | None:
    """The map that goes without saying: every picture a camera, the only JointState, the only command; or None."""
    usable = [topic for topic in topics.values() if topic.count and topic.encoding == "cdr"]
    pictures = [topic.name for topic in usable if topic.type in (IMAGE, COMPRESSED)]
    commands = [topic.name for topic in usable if topic.type in VECTORS and _COMMAND.search(topic.name)]
    joints = [topic.name for topic in usable if topic.type == JOINT_STATE and topic.name not in commands]
    texts = [topic.name for topic in usable if topic.type == STRING and _INSTRUCTION.search(topic.name)]
    if not pictures or len(joints) != 1 or len(commands) != 1 or len(texts) > 1:
        return None
    cameras = tuple(Wanted("image", stream_name(name), name) for name in pictures)
    vectors = (
        Wanted("state", stream_name(joints[0]), joints[0]),
        Wanted("action", stream_name(commands[0]), commands[0]),
    )
    return TopicMap(cameras + vectors, *texts)


def stream_name(topic: str) -> str:
    """A topic's name as a stream's: dots for slashes."""
    return shown(topic.strip("/").replace("/", "."), 200)


def told(topic_map: TopicMap) -> str:
    """A map in one line of YAML."""
    parts = []
    for section, role in _SECTIONS.items():
        entries = [f"{wanted.name}: {shown(wanted.topic)}" for wanted in topic_map.streams if wanted.role == role]
        parts += [f"{section}: {{{', '.join(entries)}}}"] if entries else []
    parts += [f"instruction: {shown(topic_map.instruction)}"] if topic_map.instruction else []
    return f"{{{', '.join(parts)}}}"


def ambiguous(label: str, topics: Mapping[str, Topic]) -> InputError:
    """The error for a bag whose topics do not say which stream they are: they are listed, with a YAML to write."""
    return InputError(
        f"{label} does not say which topic is the state and which the action. It has {listing(topics)}",
        expected=f"a YAML that maps topics to streams, such as: {_example(topics)}",
        hint="vla collect-ingest with --topics topics.yaml",
    )


def _example(topics: Mapping[str, Topic]) -> str:
    """A whole YAML in one line, with the bag's own topics where it has any that fit."""
    usable = [topic for topic in topics.values() if topic.encoding == "cdr"]
    pictures = [topic.name for topic in usable if topic.type in (IMAGE, COMPRESSED)][:3] or ["/camera/image_raw"]
    vectors = [topic for topic in usable if topic.type in VECTORS]
    states = sorted(vectors, key=lambda t: (bool(_COMMAND.search(t.name)), t.type != JOINT_STATE))
    actions = sorted(vectors, key=lambda t: (not _COMMAND.search(t.name), t.type == JOINT_STATE))
    texts = [topic.name for topic in usable if topic.type == STRING]
    cameras = ", ".join(f"{stream_name(name)}: {shown(name)}" for name in pictures)
    state = shown(states[0].name) if states else "/joint_states"
    action = shown(actions[0].name) if actions else "/joint_command"
    text = f"instruction: {shown(texts[0])}" if texts else 'text: "put the cup on the shelf"'
    return f"{{cameras: {{{cameras}}}, state: {{state: {state}}}, action: {{action: {action}}}, {text}}}"


def describe(topic: Topic) -> str:
    """A topic with its type, count and rate."""
    kind = shown(topic.type) or "no type"
    rate = f", {(topic.count - 1) / topic.seconds:.3g} Hz" if topic.count > 1 and topic.seconds > 0 else ""
    packed = "" if topic.encoding == "cdr" else f", encoded as {shown(topic.encoding, 20)}"
    return f"{shown(topic.name)} ({kind}, {topic.count} messages{rate}{packed})"


def listing(topics: Mapping[str, Topic]) -> str:
    """The topics of a bag in one sentence."""
    if not topics:
        return "no topics"
    texts: list[str] = []
    for topic in topics.values():
        texts.append(describe(topic))
        if sum(map(len, texts)) > _LONGEST_LISTING:
            break
    more = len(topics) - len(texts)
    return ", ".join(texts) + (f", and {more} more" if more else "")
