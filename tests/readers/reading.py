"""Reading a small log whole, pictures included, for tests that compare numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from vla_cli.episode import Episode, Skipped
from vla_cli.readers import Reader, read_all


def read_whole(reader: Reader, path: Path) -> tuple[list[Episode | Skipped], list[str]]:
    """Every episode with its pictures decoded, and what was said."""
    said: list[str] = []
    return [_decoded(item) for item in read_all(reader, path, said.append)], said


def _decoded(item: Episode | Skipped) -> Episode | Skipped:
    if isinstance(item, Skipped):
        return item
    return replace(item, streams=[replace(stream, values=np.asarray(stream.values)) for stream in item.streams])


def only_one(reader: Reader, path: Path) -> tuple[Episode, list[str]]:
    items, said = read_whole(reader, path)
    assert len(items) == 1 and isinstance(items[0], Episode), items
    return items[0], said


def streams_of(episode: Episode) -> dict:
    return {stream.name: stream for stream in episode.streams}
