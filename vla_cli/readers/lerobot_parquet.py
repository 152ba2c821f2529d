"""Parquet files of a LeRobot log, read in stretches of rows.

A file of v3 holds many episodes. Only the row groups that an episode touches are read, and of those its own rows are
kept; pictures inside a table are read as they are asked for. What a file claims is compared with bounds first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla_cli.episode import UnusableError
from vla_cli.errors import MissingDependency, words
from vla_cli.readers.lerobot_meta import MOST_EPISODES

if TYPE_CHECKING:
    import pyarrow as pa

MOST_ROWS, MOST_STEPS, WIDEST = 50_000_000, 2_000_000, 100_000
LARGEST_STRETCH = 512 * 2**20  # bytes of an episode's vectors
LARGEST_TEXTS, LONGEST_TEXT = 64 * 2**20, 100_000  # characters
# Neither numbers that differ nor pictures can be packed as densely as that.
_DENSEST, _HARMLESS = 15, 64 * 2**20
_BATCH, _RECORDS, _PICTURES, _BUFFER = 4096, 32, 8, 1 << 20


def require_pyarrow() -> None:
    """Raise MissingDependency unless pyarrow can be imported."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise MissingDependency("pyarrow", extra="lerobot", purpose="Reading a LeRobot log") from None


class Table:
    """An open Parquet file.

    Args:
        path: the file.

    Attributes:
        rows: how many it says it has; `columns`: their names.

    Raises:
        UnusableError: it is no whole Parquet file, or claims too much.
    """

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        try:
            facts = pq.read_metadata(path)
            columns = [facts.schema.column(i) for i in range(facts.num_columns)]
            # Each different text once: a few bytes may say the same long text a million times.
            texts = [column.path for column in columns if column.logical_type.type == "STRING"]
            self._file = pq.ParquetFile(
                path, metadata=facts, read_dictionary=texts, buffer_size=_BUFFER, pre_buffer=False
            )
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise UnusableError(f"{path.name} cannot be read as Parquet ({words(error)})") from None
        self.rows, self.columns = facts.num_rows, list(self._file.schema_arrow.names)
        sizes = [facts.row_group(i).num_rows for i in range(facts.num_row_groups)]
        if min(sizes, default=0) < 0 or not 0 <= self.rows <= MOST_ROWS or sum(sizes) != self.rows:
            raise UnusableError(f"{path.name} claims {self.rows} rows, its parts {sum(sizes)}")
        self._starts = np.concatenate([[0], np.cumsum(np.array(sizes, np.int64))])
        self._spans: dict[int, tuple[int, int]] | None = None

    def read(self, columns: Sequence[str], start: int, stop: int) -> pa.Table:
        """Rows `start` to `stop` of the columns, those of them that it has.

        Raises:
            UnusableError: they are damaged, or claim too much.
        """
        import pyarrow as pa

        present = [name for name in columns if name in self.columns]
        self.check_claims(present, start, stop)
        batches = [batch.select(present) for batch in self.batches(present, start, stop)]
        table = pa.Table.from_batches(batches, pa.schema([self._file.schema_arrow.field(name) for name in present]))
        if table.num_rows != stop - start:
            raise UnusableError(f"{self.path.name} has {table.num_rows} rows where {stop - start} are stated")
        return table.unify_dictionaries()

    def batches(self, columns: Sequence[str], start: int, stop: int, size: int = _BATCH) -> Iterator[pa.RecordBatch]:
        """Rows `start` to `stop` in small parts; a name with a dot may be a field inside a column.

        Raises:
            UnusableError: they are damaged.
        """
        import pyarrow as pa

        touched = [
            group
            for group in range(len(self._starts) - 1)
            if self._starts[group] < stop and self._starts[group + 1] > start
        ]
        if not touched or not columns:
            return
        at = int(self._starts[touched[0]])
        try:
            for batch in self._file.iter_batches(size, row_groups=touched, columns=list(columns), use_threads=False):
                low, high = max(start - at, 0), min(stop - at, batch.num_rows)
                if low < high:
                    yield batch.slice(low, high - low)
                at += batch.num_rows
                if at >= stop:
                    return
        except (pa.ArrowException, OSError, MemoryError) as error:
            raise UnusableError(f"{self.path.name} cannot be read as Parquet ({words(error)})") from None

    def records(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Its rows of a few columns, those of them that it has.

        Raises:
            UnusableError: they are damaged, or claim too much.
        """
        present = [name for name in columns if name in self.columns]
        self.check_claims(present, 0, self.rows)
        total = 0
        for batch in self.batches(present, 0, self.rows, _RECORDS):
            for name in present:
                _check_texts(batch.column(name), name)
            for record in batch.select(present).to_pylist():
                total += sum(_size(value) for value in record.values())
                if total > LARGEST_TEXTS:
                    raise UnusableError(f"{self.path.name} holds too many texts")
                yield record

    def spans(self) -> dict[int, tuple[int, int]]:
        """Where each episode's rows begin and end, by its number; looked up once.

        Raises:
            UnusableError: it does not say whose its rows are, or an episode's rows lie apart.
        """
        if self._spans is None:
            if "episode_index" not in self.columns:
                raise UnusableError(f"{self.path.name} has no column 'episode_index'")
            found: dict[int, tuple[int, int]] = {}
            at = 0
            for batch in self.batches(["episode_index"], 0, self.rows, 1 << 16):
                numbers = numbers_of(batch.column("episode_index"), "episode_index").reshape(-1)
                cuts = np.flatnonzero(np.diff(numbers)) + 1
                for low, high in zip([0, *cuts], [*cuts, len(numbers)], strict=True):
                    index = int(numbers[low])
                    begin, end = found.get(index, (at + int(low), at + int(low)))
                    if end != at + low:
                        raise UnusableError(f"{self.path.name} has the rows of episode {index} apart")
                    found[index] = (begin, at + int(high))
                if len(found) > MOST_EPISODES:
                    raise UnusableError(f"{self.path.name} claims more than {MOST_EPISODES} episodes")
                at += len(numbers)
            self._spans = found
        return self._spans

    def close(self) -> None:
        """Let go of the file."""
        self._file.close(force=True)

    def check_claims(self, columns: Sequence[str], start: int, stop: int) -> None:
        """Compare what rows `start` to `stop` of the columns are said to take with bounds.

        Raises:
            UnusableError: they claim too much.
        """
        facts, widths = self._file.metadata, dict.fromkeys(columns, 1.0)
        for group in (facts.row_group(i) for i in range(facts.num_row_groups)):
            for leaf in (group.column(i) for i in range(group.num_columns)):
                name = next((n for n in columns if f"{leaf.path_in_schema}.".startswith(f"{n}.")), None)
                if name is None:
                    continue
                packed, unpacked = leaf.total_compressed_size, leaf.total_uncompressed_size
                if unpacked > max(_HARMLESS, _DENSEST * packed):
                    raise UnusableError(f"{self.path.name} claims {unpacked >> 20} MiB of '{name}' in {packed} bytes")
                widths[name] = max(widths[name], leaf.num_values / max(1, group.num_rows))
        size = (stop - start) * sum(widths.values()) * 8
        if stop - start > MOST_STEPS or max(widths.values(), default=0) > WIDEST or size > LARGEST_STRETCH:
            raise UnusableError(f"{self.path.name} claims {stop - start} rows of {size / 2**20:.0f} MiB in all")


class PictureColumn:
    """Compressed pictures inside a table, row after row.

    Rows are asked for in order; the file is open during a pass and no longer, so that the pictures may outlive the
    table that they were found in. The path beside each picture's bytes is not looked at.
    """

    def __init__(self, path: Path, key: str, start: int, stop: int) -> None:
        self.path, self.key, self.start, self.stop = path, key, start, stop
        self._rows: Iterator[bytes] | None = None
        self._next = 0

    def __call__(self, step: int) -> bytes:
        """Step -> bytes.

        Raises:
            ValueError: there are none.
        """
        try:
            if self._rows is None or step < self._next:
                self._rows, self._next = self._read(self.start + step), step
            for data in self._rows:
                self._next += 1
                if self._next > step:
                    if self.start + step == self.stop - 1:
                        self._rows = None
                    return data
        except UnusableError as error:
            raise ValueError(f"{self.key} step {step}: {error}") from None
        raise ValueError(f"{self.key} breaks off before step {step}")

    def _read(self, start: int) -> Iterator[bytes]:
        import pyarrow as pa

        table = Table(self.path)
        try:
            kind = table._file.schema_arrow.field(self.key).type
            wanted = f"{self.key}.bytes" if pa.types.is_struct(kind) else self.key
            table.check_claims([wanted], start, self.stop)
            for batch in table.batches([wanted], start, self.stop, _PICTURES):
                column = batch.column(self.key)
                column = column.field("bytes") if pa.types.is_struct(column.type) else column
                for data in column.to_pylist():
                    if not isinstance(data, bytes) or not data:
                        raise UnusableError(f"column '{self.key}' holds no picture bytes")
                    yield data
        finally:
            table.close()


def numbers_of(column: Any, key: str) -> np.ndarray:
    """A column of numbers, or of equally long lists of them, as [T, D].

    Raises:
        UnusableError: it is of another kind, has missing values, or its rows differ in length.
    """
    import pyarrow as pa

    rows, kinds = len(column), pa.types
    while isinstance(column, pa.ExtensionArray):
        column = column.storage
    while kinds.is_list(column.type) or kinds.is_large_list(column.type) or kinds.is_fixed_size_list(column.type):
        lengths = column.value_lengths().unique().to_pylist()
        if len(lengths) != 1 or None in lengths:
            raise UnusableError(f"column '{key}' has rows of unequal length {sorted(lengths, key=str)[:4]}")
        column = column.flatten()
    if column.null_count:
        raise UnusableError(f"column '{key}' has {column.null_count} missing values")
    if not (kinds.is_floating(column.type) or kinds.is_integer(column.type) or kinds.is_boolean(column.type)):
        raise UnusableError(f"column '{key}' holds {column.type}, not numbers")
    return np.array(column.to_numpy(zero_copy_only=False)).reshape(rows, -1)


def _check_texts(column: Any, key: str) -> None:
    import pyarrow as pa
    import pyarrow.compute as pc

    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        column = column.flatten()
    if pa.types.is_dictionary(column.type) and pa.types.is_string(column.type.value_type):
        longest = pc.call_function("max", [pc.call_function("binary_length", [column.dictionary])]).as_py() or 0
        if longest > LONGEST_TEXT:
            raise UnusableError(f"column '{key}' holds a text of {longest} bytes")


def _size(value: Any) -> int:
    return sum(100 + len(str(item)) for item in value) if isinstance(value, list) else len(str(value))
