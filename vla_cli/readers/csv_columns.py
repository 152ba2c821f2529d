"""Which column of a CSV file is what: by the names of the plain layout (see `frames_csv`), or by the user's mapping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vla_cli.episode import UnusableError
from vla_cli.errors import ConfigError, words
from vla_cli.readers.csv_table import quoted
from vla_cli.yaml_files import parse

LARGEST_YAML = 1 << 14  # bytes; the parser takes a second for them
MOST_BRACKETS = 500
KNOWN = ("timestamp", "state", "action", "instruction", "operator", "frame")
_TIMES = ("timestamp", "time", "t")
_EXAMPLE = "timestamp: t\\nstate: [colA, colB]\\naction: [colC]"


@dataclass(frozen=True)
class Mapping:
    """What `--topics` says; what it leaves out goes by the layout's own names.

    Attributes:
        timestamp, instruction, operator: a column each.
        state, action: columns in the order of their dimensions.
        frame: camera to column.
    """

    timestamp: str | None = None
    state: tuple[str, ...] = ()
    action: tuple[str, ...] = ()
    instruction: str | None = None
    operator: str | None = None
    frame: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Columns:
    """The columns of one CSV file, as for `Mapping`; the camera "" is the only one.

    Attributes:
        left_out: those that nobody asked for.
    """

    timestamp: str | None
    state: tuple[str, ...]
    action: tuple[str, ...]
    instruction: str | None
    operator: str | None
    frame: dict[str, str]
    left_out: tuple[str, ...]

    @property
    def numbers(self) -> list[str]:
        """Every column that is read as numbers, once."""
        return list(dict.fromkeys([*filter(None, [self.timestamp]), *self.state, *self.action]))

    @property
    def texts(self) -> list[str]:
        """Every column that is read as text, once."""
        return list(dict.fromkeys(filter(None, [self.instruction, self.operator, *self.frame.values()])))

    def of(self, role: str) -> tuple[str, ...]:
        """The columns of "state" or "action"."""
        return self.state if role == "state" else self.action

    def frames_of(self, cameras: Sequence[str]) -> dict[str, str]:
        """Camera to the column that names its pictures.

        Raises:
            UnusableError: a column is of no camera that is there.
        """
        found = dict(self.frame)
        if "" in found and len(cameras) == 1:
            found.setdefault(cameras[0], found.pop(""))
        if lost := [column for camera, column in found.items() if camera not in cameras]:
            raise UnusableError(f"the column {quoted(lost)} names pictures of none of the cameras {quoted(cameras)}")
        return found


def read_mapping(path: Path | None) -> Mapping:
    """Read the YAML file of `--topics`; without one, a mapping that says nothing.

    Raises:
        ConfigError: it cannot be read, or has a key or a value that is not known.
    """
    if path is None:
        return Mapping()
    try:
        document = load_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--topics {path} cannot be read ({words(error)})", expected=f"a YAML file like: {_EXAMPLE}"
        ) from None
    if not isinstance(document, dict):
        raise ConfigError(f"--topics {path} is no mapping", expected=f"a YAML file like: {_EXAMPLE}")
    if unknown := [str(key) for key in document if key not in KNOWN]:
        raise ConfigError(f"--topics {path} has the keys {quoted(unknown)}", expected=f"keys of: {', '.join(KNOWN)}")
    wrong = [key for key, value in document.items() if not _fits(key, value)]
    if wrong:
        kinds = "a list of columns for state and action, a column (or camera: column) for frame, a column for the rest"
        raise ConfigError(f"--topics {path} has no column names under {quoted(wrong)}", expected=kinds)
    settings: dict[str, Any] = {
        key: tuple(value) if key in ("state", "action") else value for key, value in document.items()
    }
    if isinstance(settings.get("frame"), str):
        settings["frame"] = {"": settings["frame"]}
    return Mapping(**settings)


def load_yaml(path: Path) -> Any:
    """A small YAML file, without anything but plain values.

    Raises:
        ValueError: it is too large, or no YAML.
    """
    with path.open("rb") as stream:
        data = stream.read(LARGEST_YAML + 1)
    if len(data) > LARGEST_YAML:
        raise ValueError(f"{path.name} has more than {LARGEST_YAML} bytes")
    if data.count(b"[") + data.count(b"{") > MOST_BRACKETS:  # the parser's time grows with the square of their depth
        raise ValueError(f"{path.name} has more than {MOST_BRACKETS} brackets")
    try:
        return parse(data)
    except ValueError as error:
        raise ValueError(f"{path.name} is {words(error)}") from None


def _fits(key: str, value: Any) -> bool:
    if key in ("state", "action"):
        distinct = isinstance(value, list) and all(isinstance(one, str) for one in value)
        return distinct and 0 < len(set(value)) == len(value)
    if key == "frame" and isinstance(value, dict):
        return all(isinstance(text, str) for pair in value.items() for text in pair)
    return isinstance(value, str)


def choose_columns(file: Path, header: Sequence[str], mapping: Mapping) -> Columns:
    """What each column of a file is.

    Raises:
        UnusableError: there is no action, or the mapping names a column that is not there.
    """
    names = [name for name in header if name]
    frame = mapping.frame or {
        name.removeprefix("frame").removeprefix("."): name
        for name in names
        if name == "frame" or name.startswith("frame.")
    }
    mapped = (
        mapping.timestamp,
        mapping.instruction,
        mapping.operator,
        *mapping.state,
        *mapping.action,
        *frame.values(),
    )
    if absent := [name for name in mapped if name is not None and name not in names]:
        raise UnusableError(f"{file.name} has no column {quoted(absent)}; its columns are {quoted(names)}")
    chosen = Columns(
        timestamp=mapping.timestamp or next((name for name in _TIMES if name in names), None),
        state=mapping.state or tuple(name for name in names if name.startswith("state.")),
        action=mapping.action or tuple(name for name in names if name.startswith("action.")),
        instruction=mapping.instruction or ("instruction" if "instruction" in names else None),
        operator=mapping.operator or ("operator" if "operator" in names else None),
        frame=frame,
        left_out=(),
    )
    if not chosen.action:
        hint = f"{file.name} has no columns action.<name>; its columns are {quoted(names)}"
        raise UnusableError(f"{hint}: name them so, or map them by --topics")
    used = {*chosen.numbers, *chosen.texts}
    return Columns(**{**vars(chosen), "left_out": tuple(name for name in names if name not in used)})
