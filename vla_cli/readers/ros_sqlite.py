"""rosbag2's sqlite3 storage (.db3), read without writing a byte beside it.

Tables (rosbag2_storage_sqlite3): topics(id, name, type, serialization_format, ...), messages(id, topic_id, timestamp
in ns, data), and since schema 4 message_definitions(topic_type, encoding, encoded_message_definition, ...).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from vla_cli.episode import UnusableError
from vla_cli.errors import words
from vla_cli.readers.ros_storage import LARGEST_MESSAGE, Message, Topic, message_type

MAGIC = b"SQLite format 3\0"
_STEPS = 10_000  # instructions of the database engine between two looks at what it does
_MOST_ROWS = 10_000  # topics and definitions


def is_bag(path: Path) -> bool:
    """Whether an sqlite3 file has the tables of a bag; a damaged one counts when its text still names them."""
    try:
        return not SqliteStorage(path, path.name).lacks()
    except (sqlite3.Error, UnusableError):
        with path.open("rb") as stream:
            head = stream.read(2**16)
        return b"topics" in head and b"messages" in head and b"topic_id" in head


class SqliteStorage:
    """A .db3 file.

    Args:
        path: the file.
        label: its name in messages.
    """

    def __init__(self, path: Path, label: str) -> None:
        self.path, self.label, self.notes = path, label, list[str]()
        self.size = path.stat().st_size
        self._connection: sqlite3.Connection | None = None
        self._work = 0
        for ending in ("-wal", "-journal"):
            beside = path.with_name(path.name + ending)
            if beside.is_file() and beside.stat().st_size > 32:  # more than a header
                self.notes.append(
                    f"{label}{ending} was left by a recorder that did not end; what only it holds is not read "
                    f"(`sqlite3 {path.name} .tables` where the bag may be written to moves it into the bag)"
                )

    def rest(self) -> None:
        """See `Storage`."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def lacks(self) -> list[str]:
        """The tables of a bag that it does not have."""
        try:
            query = "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name IN ('topics', 'messages')"
            rows = self._rows(query)
        finally:
            self.rest()
        # A virtual table runs code of its own.
        plain = {name for name, sql in rows if not str(sql).upper().startswith("CREATE VIRTUAL")}
        return sorted({"topics", "messages"} - plain)

    def topics(self) -> list[Topic]:
        """See `Storage`."""
        if lacking := self.lacks():
            raise UnusableError(f"{self.label} has no table {' and no table '.join(lacking)}")
        definitions = self._definitions()
        counts = {
            row[0]: row[1:]
            for row in self._rows(
                "SELECT topic_id, count(*), min(timestamp), max(timestamp) FROM messages GROUP BY topic_id"
            )
        }
        found = []
        for key, name, kind, encoding in self._rows(
            "SELECT id, name, type, serialization_format FROM topics ORDER BY id"
        ):
            if not all(isinstance(text, str) for text in (name, kind, encoding)):
                raise UnusableError(f"{self.label} has a damaged table of topics")
            count, first, last = counts.get(key, (0, 0, 0))
            seconds = (last - first) / 1e9 if isinstance(first, int) and isinstance(last, int) else 0.0
            language, definition = definitions.get(kind, ("", ""))
            found.append(Topic(name, message_type(kind), encoding, language, definition, count, seconds))
        return found

    def messages(self, wanted: Collection[str]) -> Iterator[Message]:
        """See `Storage`."""
        topics = {key: name for key, name in self._rows("SELECT id, name FROM topics") if name in wanted}
        marks = ",".join("?" * len(topics))
        query = f"SELECT rowid, topic_id, timestamp, data FROM messages WHERE topic_id IN ({marks}) ORDER BY rowid"
        read = 0
        for row, key, log_time, data in self._execute(query, *topics):
            if not isinstance(log_time, int) or not isinstance(data, bytes):
                raise UnusableError(f"{self.label} has a damaged message (row {row})")
            read += len(data)
            if read > self.size:  # made up by an expression, or one page that stands for many
                raise UnusableError(f"{self.label} holds more than its size")
            yield Message(topics[key], log_time, data, (row, 0))

    def fetch(self, place: tuple[int, int]) -> bytes:
        """See `Storage`."""
        rows = list(self._execute("SELECT data FROM messages WHERE rowid = ?", place[0]))
        if len(rows) != 1 or not isinstance(rows[0][0], bytes):
            raise UnusableError(f"{self.label} has changed while it was read")
        return rows[0][0]

    def _definitions(self) -> dict[str, tuple[str, str]]:
        try:
            rows = self._rows("SELECT topic_type, encoding, encoded_message_definition FROM message_definitions")
        except UnusableError:  # older bags have none
            return {}
        return {str(kind): (str(language), str(text)) for kind, language, text in rows}

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        rows = []
        for row in self._execute(query):
            rows.append(row)
            if len(rows) > _MOST_ROWS:
                raise UnusableError(f"{self.label} has more than {_MOST_ROWS} topics")
        return rows

    def _execute(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        self._work = 0
        try:
            yield from self._open().execute(query, values)
        except sqlite3.Error as error:
            raise UnusableError(f"{self.label} cannot be read as sqlite3 ({words(error)})") from None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            # immutable: no lock and no -shm file beside a log that may lie on read-only ground.
            uri = f"{self.path.resolve().as_uri()}?mode=ro&immutable=1"
            connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_MESSAGE)
            for pragma in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0"):
                connection.execute(f"PRAGMA {pragma}")
            connection.set_progress_handler(self._is_too_much, _STEPS)
            self._connection = connection
        return self._connection

    def _is_too_much(self) -> bool:
        """A query takes about an instruction a byte at most; more is a table made to keep the engine busy."""
        self._work += _STEPS
        return self._work > 1_000_000 + 4 * self.size
