"""`episode.json` or `episode.yaml` of the plain layout: what is known of an episode beside its numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_cli.conventions import KEYS
from vla_cli.episode import Stream, UnusableError
from vla_cli.errors import words
from vla_cli.readers.archive import stays_in
from vla_cli.readers.csv_columns import load_yaml
from vla_cli.readers.csv_table import quoted

NAMES = ("episode.json", "episode.yaml", "episode.yml")
KNOWN = ("instruction", "operator", "rate_hz", "conventions")
_LARGEST = 1 << 20
_FASTEST = 1e5  # Hz
_LONGEST = 10_000  # characters


@dataclass(frozen=True)
class EpisodeNotes:
    """What such a file says.

    Attributes:
        file: its name.
        instructions: what the robot was told.
        operator: who demonstrated; may be empty.
        rate_hz: rows a second of the CSV; 0 when it is not said.
        conventions: stream to key to value, as `conventions.KEYS` has them.
    """

    file: str = NAMES[0]
    instructions: list[str] = field(default_factory=list)
    operator: str = ""
    rate_hz: float = 0.0
    conventions: dict[str, dict[str, str]] = field(default_factory=dict)

    def state(self, streams: Sequence[Stream], left_out: Sequence[str] = ()) -> None:
        """Put the conventions into the streams' attributes; those of streams that were left out go with them.

        Raises:
            UnusableError: they are of a stream that is not there, or do not apply to its role.
        """
        by_name = {stream.name: stream for stream in streams}
        if unknown := [name for name in self.conventions if name not in (*by_name, *left_out)]:
            raise UnusableError(f"{self.file} has conventions of {quoted(unknown)}; streams: {quoted(list(by_name))}")
        for name, settings in self.conventions.items():
            if name not in by_name:
                continue
            role = by_name[name].role
            if wrong := [key for key in settings if role not in KEYS[key][0]]:
                raise UnusableError(f"{self.file} states {quoted(wrong)} of '{name}', which is of the role {role}")
            by_name[name].attributes.update(settings)


def read_notes(episode: Path) -> EpisodeNotes:
    """What an episode's folder says of it; nothing when there is no such file.

    Raises:
        UnusableError: there are several, or one says what cannot be.
        ValueError: it is no JSON or YAML.
    """
    resolved = episode.resolve()
    files = [episode / name for name in NAMES if (episode / name).is_file() and stays_in(episode / name, resolved)]
    if not files:
        return EpisodeNotes()
    if len(files) > 1:
        raise UnusableError(f"it has {quoted([file.name for file in files])}, where one is enough")
    file = files[0]
    document = _load_json(file) if file.suffix == ".json" else load_yaml(file)
    if document is None:
        return EpisodeNotes(file.name)
    if not isinstance(document, dict):
        raise UnusableError(f"{file.name} is no mapping of {', '.join(KNOWN)}")
    if unknown := [str(key) for key in document if key not in KNOWN]:
        raise UnusableError(f"{file.name} has the keys {quoted(unknown)}; known ones are: {', '.join(KNOWN)}")
    return EpisodeNotes(
        file.name,
        _texts(file, document.get("instruction")),
        next(iter(_texts(file, document.get("operator"))), ""),
        _rate(file, document.get("rate_hz")),
        _conventions(file, document.get("conventions")),
    )


def _load_json(file: Path) -> Any:
    with file.open("rb") as stream:
        data = stream.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise UnusableError(f"{file.name} has more than {_LARGEST} bytes")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnusableError(f"{file.name} is not valid JSON ({words(error)})") from None


def _texts(file: Path, value: Any) -> list[str]:
    """One text or a list of them, without empty ones."""
    values = [] if value is None else value if isinstance(value, list) else [value]
    if any(not isinstance(one, str) or len(one) > _LONGEST for one in values):
        raise UnusableError(f"{file.name} has an instruction or operator that is no text")
    return list(dict.fromkeys(one.strip() for one in values if one.strip()))


def _rate(file: Path, value: Any) -> float:
    if value is None:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _FASTEST:
        raise UnusableError(f"{file.name} states rate_hz {_short(value)}, which is no number above 0")
    return float(value)


def _conventions(file: Path, value: Any) -> dict[str, dict[str, str]]:
    streams = {} if value is None else value
    if not isinstance(streams, dict) or not all(isinstance(one, dict) for one in streams.values()):
        raise UnusableError(f"{file.name} has conventions that are no mapping of stream to key to value")
    for name, settings in streams.items():
        for key, said in settings.items():
            if key not in KEYS:
                raise UnusableError(
                    f"{file.name} has the convention {quoted([str(key)])}; known ones: {', '.join(KEYS)}"
                )
            allowed = KEYS[key][1]
            if not isinstance(said, str) or (allowed and said not in allowed):
                choice = f"one of: {', '.join(allowed)}" if allowed else "text"
                raise UnusableError(f"{file.name} states {name}.{key} {_short(said)}, where {choice} is expected")
    return {str(name): dict(settings) for name, settings in streams.items()}


def _short(value: Any) -> str:
    """A value in a few words; never a nested one, which a few bytes of YAML can make endless."""
    return repr(value)[:40] if isinstance(value, str | float | bool) else f"a value of type {type(value).__name__}"
