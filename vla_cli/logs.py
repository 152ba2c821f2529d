"""A robot's log as the stages see it, whatever its format: entries, each of which can be read as an episode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vla_cli.episode import Episode, UnusableError
from vla_cli.errors import InputError, VlaError, words

Warn = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What a user can state of a log beside its path.

    Attributes:
        topics: a YAML file that maps topics or columns to streams (ROS bags, frames and CSV).
    """

    topics: Path | None = None


@dataclass(frozen=True)
class Entry:
    """One episode of a log, before it is read.

    Attributes:
        name: unique within the log; the same whatever else the log holds.
        locator: how `Log.read` finds it again.
        files: every file it is read from; their digests tell whether it has changed.
        stated: what else decides how it is read, where a log keeps that in files about all episodes; equal text, equal
            episode. Those files' digests would not do: they change with every episode that is recorded.
    """

    name: str
    locator: str
    files: tuple[Path, ...]
    stated: str = ""


class Log(Protocol):
    """An open log."""

    def entries(self) -> list[Entry]:
        """Its episodes, cheaply."""
        ...

    def read(self, entry: Entry) -> Episode:
        """One of them; `source_digest` and the conventions that nobody stated are filled in by the caller.

        Raises:
            UnusableError: it cannot be used.
        """
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


def list_entries(log: Log, where: Path) -> list[Entry]:
    """The episodes of a log.

    Raises:
        InputError: the log cannot be listed, or has none.
    """
    try:
        entries = log.entries()
    except VlaError:
        raise
    except Exception as error:
        raise InputError(f"{where} cannot be listed ({in_words(error)})", expected="a whole log") from None
    if not entries:
        raise InputError(
            f"{where} has no episodes", expected="at least one", hint="vla collect-ingest with the log that holds them"
        )
    return entries


def read_entry(log: Log, entry: Entry) -> Episode:
    """One episode of a log.

    Raises:
        UnusableError: it cannot be used.
        MissingDependency: it needs an optional package.
    """
    try:
        return log.read(entry)
    except (VlaError, UnusableError):
        raise
    except Exception as error:
        raise UnusableError(f"it cannot be read ({in_words(error)})") from None


def in_words(error: Exception) -> str:
    """An exception of somebody else's code in words: its text where that says something, else also its class."""
    text, kind = words(error), type(error).__name__
    return text if text == kind or (isinstance(error, ValueError | OSError) and len(text) > 8) else f"{kind}: {text}"
