"""Robot-log formats: one file each, and one line in `READERS`.

A reader module offers `READER`, a `Reader` whose functions keep these promises:

- `recognise(path)` judges by content, never by name, and says in a sentence why the log is of its format, or None. It
  needs no optional package, and it claims a damaged log of its format too, so that `read` can say what is wrong.
- `read(path, warn)` yields one `Episode` or `Skipped` at a time and holds no more than one in memory. What can be read
  is read; each episode that cannot is a `Skipped` with its name and the reason; what concerns the log as a whole (a
  camera it lists has no files, a rate it does not state) goes to `warn` as one sentence. A log that is damaged as a
  whole raises InputError; a missing optional package raises MissingDependency.
- Images come as uint8 RGB [T, H, W, 3], vectors as [T, D] in the log's own units, both exactly as recorded: nothing is
  resampled, scaled or guessed here. What is assumed is said in the episode's notes and to `warn`.
- The same log gives the same episodes in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vla_cli.episode import Episode, Skipped
from vla_cli.errors import InputError
from vla_cli.lookup import Table

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Reader:
    """One log format.

    Attributes:
        looks_for: what `recognise` looks for, as a noun phrase.
        recognise: a sentence saying why a path is of this format, or None.
        count: how many episodes the log says it has, cheaply; None when it does not say.
        read: the episodes.
    """

    looks_for: str
    recognise: Callable[[Path], str | None]
    count: Callable[[Path], int | None]
    read: Callable[[Path, Warn], Iterator[Episode | Skipped]]


READERS = Table(
    "log format",
    {
        "robomimic": "vla_cli.readers.robomimic:READER",
        "lerobot": "vla_cli.readers.lerobot:READER",
        "rlds": "vla_cli.readers.rlds:READER",
    },
)


def detect(path: Path) -> tuple[str, str]:
    """The one format that claims a log, and why it does.

    Raises:
        InputError: no format claims it, or several do.
    """
    readers: dict[str, Reader] = {name: READERS.get(name) for name in READERS}
    claims = {name: reason for name, reader in readers.items() if (reason := reader.recognise(path))}
    if len(claims) == 1:
        return next(iter(claims.items()))
    if claims:
        raise InputError(
            f"{path} could be of several formats: " + "; ".join(f"{name} ({why})" for name, why in claims.items()),
            hint=f"--format {next(iter(claims))}",
        )
    raise InputError(
        f"{path} is of no log format that can be read",
        expected="; or ".join(f"{reader.looks_for} ({name})" for name, reader in readers.items()),
        hint=f"--format {next(iter(readers))} to be told what is missing for that format",
    )
