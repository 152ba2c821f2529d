"""What else could be asked in the demonstrated scenes: the alternatives that keep a policy listening.

A YAML list, one entry an instruction:

    - put the blue ball on the left plate                                  another object
    - {instruction: put the red block on the right plate, while: holding}  only while something is in the gripper
    - {instruction: pick up the green wedge, while: empty}

`while` says in which half of an episode the alternative makes sense: with the gripper still "empty", while it is
"holding" (then only the place can still be changed), or "always" (the default). Alternatives must name things that are
in the scene: an instruction about something absent teaches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla_cli.errors import ConfigError
from vla_cli.yaml_files import kind, read_yaml

FILE_NAME = "alternatives.yaml"
"""What preprocess proposes, in a dataset's directory."""
MOMENTS = ("always", "empty", "holding")
_EXPECTED = f"a YAML list of instructions, as preprocess writes one into its dataset ({FILE_NAME})"


@dataclass(frozen=True)
class Alternative:
    """One alternative instruction.

    Attributes:
        instruction: the words.
        moment: "always", "empty" or "holding".
    """

    instruction: str
    moment: str = "always"

    def fits(self, holding: bool) -> bool:
        """Whether it makes sense at a frame."""
        return self.moment == "always" or (self.moment == "holding") == holding


def load_alternatives(path: Path) -> list[Alternative]:
    """Read alternatives from YAML.

    Raises:
        ConfigError: the file is missing, not YAML, or an entry is malformed; all problems at once.
    """
    return alternatives_of(read_yaml(path, expected=_EXPECTED), path)


def alternatives_of(entries: Any, path: Path) -> list[Alternative]:
    """Alternatives from YAML or JSON values, as `document` gives them or as people write them.

    Args:
        entries: at least one.
        path: the file they are from, for errors.

    Raises:
        ConfigError: an entry is malformed; all problems at once.
    """
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{path} holds {kind(entries or None)}", expected=_EXPECTED)
    problems = [f"entry {i + 1}: {p}" for i, entry in enumerate(entries) if (p := _problem(entry))]
    if problems:
        raise ConfigError(f"{path} cannot be used: {'; '.join(problems)}", expected="text, or {instruction, while}")
    return [
        Alternative(entry)
        if isinstance(entry, str)
        else Alternative(entry["instruction"], entry.get("while", "always"))
        for entry in entries
    ]


def _problem(entry: Any) -> str:
    if isinstance(entry, str):
        return "" if entry.strip() else "it is empty"
    if not isinstance(entry, dict) or not isinstance(entry.get("instruction"), str) or not entry["instruction"].strip():
        return f"{entry!r} has no instruction"
    unknown = sorted(set(entry) - {"instruction", "while"})
    if unknown:
        return f"unknown key {unknown[0]!r}"
    moment = entry.get("while", "always")
    return "" if moment in MOMENTS else f"while is {moment!r}, not one of {', '.join(MOMENTS)}"


def not_shown(alternatives: Iterable[Alternative], shown: Iterable[str]) -> list[Alternative]:
    """Those that are none of the demonstrated instructions, whatever the case, spaces and full stop."""
    known = {plain(text) for text in shown}
    return [a for a in alternatives if plain(a.instruction) not in known]


def plain(instruction: str) -> str:
    """An instruction as it is compared with others, whatever the case, spaces and full stop."""
    return " ".join(instruction.casefold().split()).rstrip(".")


def document(alternatives: list[Alternative]) -> list[dict[str, str]]:
    """As YAML or JSON values."""
    return [{"instruction": a.instruction, "while": a.moment} for a in alternatives]
