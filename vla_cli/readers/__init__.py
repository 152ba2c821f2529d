"""Robot-log formats: one file each, and one line in `READERS`.

A reader module offers `READER`, a `Reader` whose functions keep these promises:

- `recognise(path)` judges by content, never by name, and says in a sentence why the log is of its format, or None. It
  needs no optional package, and it claims a damaged log of its format too, so that reading can say what is wrong.
- `open(path, options, warn)` reads what concerns the whole log and gives a `Log`. What the log says of itself and does
  not keep (a camera it lists has no files, a rate it does not state) goes to `warn` as one sentence. A log that is
  damaged as a whole raises InputError; a missing optional package raises MissingDependency.
- `Log.entries()` lists the episodes cheaply, in an order that stays when episodes are added at the end. One damaged
  file among others is an entry like the rest.
- `Log.read(entry)` gives one `Episode`, or raises UnusableError with the reason. Pictures come as `Frames`, decoded as
  they are asked for and valid until the log is closed: however long an episode is, it never stands in memory.
- Images are uint8 RGB [T, H, W, 3], vectors [T, D] in the log's own units, both exactly as recorded: nothing is
  resampled, scaled, turned or guessed here. Stream attributes say what the format says (see `conventions`); what is
  assumed beside that (a control rate) is said in the episode's notes and to `warn`.
- The same log gives the same episodes in the same order.

Logs come from elsewhere. Whatever a damaged or hostile one makes a reader's own code raise becomes a VlaError here, in
`opened` and `read_entry`, in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from vla_cli.episode import Episode, Skipped, UnusableError
from vla_cli.errors import ConfigError, InputError, VlaError
from vla_cli.logs import Entry, Log, Options, Warn, in_words, list_entries, read_entry
from vla_cli.lookup import Table

__all__ = [
    "READERS",
    "Entry",
    "Log",
    "LogSource",
    "Options",
    "Reader",
    "Warn",
    "detect",
    "list_entries",
    "opened",
    "read_all",
    "read_entry",
]


@dataclass(frozen=True)
class Reader:
    """One log format.

    Attributes:
        looks_for: what `recognise` looks for, as a noun phrase.
        recognise: a sentence saying why a path is of this format, or None.
        open: the log.
        takes_topics: whether `Options.topics` means anything for it.
    """

    looks_for: str
    recognise: Callable[[Path], str | None]
    open: Callable[[Path, Options, Warn], Log]
    takes_topics: bool = False


READERS = Table(
    "log format",
    {
        "robomimic": "vla_cli.readers.robomimic:READER",
        "libero": "vla_cli.readers.libero:READER",
        "aloha": "vla_cli.readers.aloha:READER",
        "lerobot": "vla_cli.readers.lerobot:READER",
        "droid": "vla_cli.readers.droid:READER",
        "rlds": "vla_cli.readers.rlds:READER",
        "zarr": "vla_cli.readers.zarr_buffer:READER",
        "rosbag": "vla_cli.readers.rosbag:READER",
        "frames-csv": "vla_cli.readers.frames_csv:READER",
    },
)


def detect(path: Path) -> tuple[str, str]:
    """The one format that claims a log, and why it does.

    Raises:
        InputError: no format claims it, or several do.
    """
    readers: dict[str, Reader] = {name: READERS.get(name) for name in READERS}
    claims = {name: reason for name, reader in readers.items() if (reason := _claim(reader, path))}
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


def _claim(reader: Reader, path: Path) -> str | None:
    try:
        return reader.recognise(path)
    except Exception:  # what cannot even be looked at is no log of this format
        return None


@contextmanager
def opened(reader: Reader, path: Path, options: Options, warn: Warn) -> Iterator[Log]:
    """Open a log, and close it at the end.

    Raises:
        ConfigError: an option is given that means nothing for this format.
        InputError: it is damaged as a whole, or lists no episode.
        MissingDependency: the format needs an optional package.
    """
    if options.topics is not None and not reader.takes_topics:
        raise ConfigError(
            f"--topics is given, and {path} is read as {reader.looks_for}, which has nothing to map",
            expected="a ROS bag, or frames and CSV",
            hint="without --topics",
        )
    try:
        log = reader.open(path, options, warn)
    except VlaError:
        raise
    except Exception as error:
        raise InputError(f"{path} cannot be read ({in_words(error)})", expected=reader.looks_for) from None
    try:
        yield log
    finally:
        log.close()


def read_all(reader: Reader, path: Path, warn: Warn, options: Options | None = None) -> Iterator[Episode | Skipped]:
    """Every episode of a log in order, each valid until the next one is asked for.

    Raises:
        InputError, MissingDependency: as for `opened` and `list_entries`.
    """
    with opened(reader, path, options or Options(), warn) as log:
        for entry in list_entries(log, path):
            try:
                yield read_entry(log, entry)
            except UnusableError as error:
                yield Skipped(entry.name, str(error))


@dataclass(frozen=True)
class LogSource:
    """A recorded log as the ingest stage takes it: what to open, in whichever process.

    Attributes:
        format: a key of `READERS`.
        path: the log.
        options: what the user states of it.
    """

    format: str
    path: Path
    options: Options = field(default_factory=Options)

    def opened(self, warn: Warn) -> AbstractContextManager[Log]:
        """The open log; see `opened`."""
        return opened(READERS.get(self.format), self.path, self.options, warn)
