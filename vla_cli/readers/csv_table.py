"""CSV files read within bounds: a line, a file and a row of them are only so long, and what is no number is named.

The first line that is not empty names the columns; commas, semicolons or tabs stand between cells, whichever the header
has most of. UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import csv
import math
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

LONGEST_LINE = 1 << 18  # characters
MOST_CELLS = 20_000_000  # that are read: an hour at 100 Hz of 50 columns
MOST_COLUMNS = 10_000
LARGEST_TEXT = 64 * 2**20  # characters in columns of text


@dataclass(frozen=True)
class Table:
    """The columns that were asked for.

    Attributes:
        numbers: name to [T] float64, finite.
        texts: name to T cells, without the blanks around them.
        lines: [T] line of each row in the file, counted from 1.
    """

    numbers: dict[str, np.ndarray]
    texts: dict[str, list[str]]
    lines: np.ndarray

    def __len__(self) -> int:
        return len(self.lines)


def read_header(path: Path) -> list[str]:
    """The names of the columns; "" for one without a name.

    Raises:
        ValueError: there is no header, or two columns share a name.
    """
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return _header(path, stream)[0]


def read_table(path: Path, numbers: Sequence[str], texts: Sequence[str]) -> Table:
    """Read some of the columns.

    Args:
        path: the file.
        numbers: names of columns that hold numbers.
        texts: names of columns that hold text.

    Raises:
        ValueError: a column is not there, a cell is no finite number, a line has too many or too few cells, or the file
            is too large.
    """
    with path.open(encoding="utf-8-sig", newline="") as stream:
        names, delimiter, before = _header(path, stream)
        if absent := [name for name in (*numbers, *texts) if name not in names]:
            raise ValueError(f"{path.name} has no column {quoted(absent)}; its columns are {quoted(names)}")
        reader = csv.reader(_lines(path, stream), delimiter=delimiter)
        try:
            return _read_rows(path, reader, names, before, (list(numbers), list(texts)))
        except csv.Error as error:
            raise ValueError(f"{path.name} line {before + reader.line_num}: {error}") from None


def quoted(names: Sequence[str]) -> str:
    """Some names in words, the first dozen of them."""
    shown = ", ".join(f"'{name[:60]}'" for name in names[:12])
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown


def _header(path: Path, stream: TextIO) -> tuple[list[str], str, int]:
    """Names, delimiter, and the number of lines that are read."""
    number, line = 0, ""
    for line in _lines(path, stream):
        number += 1
        if line.strip():
            break
    if not line.strip():
        raise ValueError(f"{path.name} is empty: it needs a line that names the columns")
    delimiter = max(",;\t", key=line.count)
    try:
        names = [name.strip() for name in next(csv.reader([line], delimiter=delimiter))]
    except csv.Error as error:
        raise ValueError(f"{path.name} line {number}: {error}") from None
    if len(names) > MOST_COLUMNS:
        raise ValueError(f"{path.name} has {len(names)} columns, more than {MOST_COLUMNS}")
    taken = set()
    for name in filter(None, names):
        if name in taken:
            raise ValueError(f"{path.name} has two columns {quoted([name])}")
        taken.add(name)
    return names, delimiter, number


def _lines(path: Path, stream: TextIO) -> Iterator[str]:
    while line := stream.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise ValueError(f"{path.name} has a line of more than {LONGEST_LINE} characters")
        yield line


def _read_rows(
    path: Path, reader: Iterator[list[str]], names: list[str], before: int, wanted: tuple[list[str], list[str]]
) -> Table:
    numbers, texts = wanted
    places = [(names.index(name), name) for name in numbers]
    text_places = [names.index(name) for name in texts]
    values, lines, cells = array("d"), array("q"), [[] for _ in texts]
    size = read = 0
    for row in reader:
        if not row:
            continue
        line = before + reader.line_num  # pyright: ignore[reportAttributeAccessIssue]
        if len(row) != len(names):
            raise ValueError(f"{path.name} line {line} has {len(row)} cells, the header has {len(names)}")
        read += len(row)
        if read > MOST_CELLS:
            raise ValueError(f"{path.name} has more than {MOST_CELLS} cells: split the recording")
        lines.append(line)
        values.extend([_number(path, line, name, row[place]) for place, name in places])
        for column, place in zip(cells, text_places, strict=True):
            text = row[place].strip()
            size += len(text)
            column.append(sys.intern(text))
        if size > LARGEST_TEXT:
            raise ValueError(f"{path.name} has more than {LARGEST_TEXT} characters of text")
    table = np.frombuffer(values, np.float64).reshape(len(lines), len(numbers)) if numbers else np.empty((0, 0))
    by_name = {name: table[:, index].copy() for index, name in enumerate(numbers)}
    return Table(by_name, dict(zip(texts, cells, strict=True)), np.array(lines, np.int64))


def _number(path: Path, line: int, name: str, cell: str) -> float:
    try:
        value = math.nan if "_" in cell else float(cell)  # Python would take 1_000 for a number
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        what = f"'{' '.join(cell[:40].split())}' is no finite number" if cell.strip() else "the cell is empty"
        raise ValueError(f"{path.name} line {line}, column {quoted([name])}: {what}")
    return value
