"""The entries of a log as tasks to convert: file names without surprises, and digests that tell what has changed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vla_cli.conversion import Task
from vla_cli.files import encodable, text_digest
from vla_cli.logs import Entry
from vla_cli.source_files import digest_once

LONGEST_STEM = 100
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def tasks_of(entries: Sequence[Entry], request: dict[str, Any]) -> list[Task]:
    """The entries with names that can be written, safe and distinct file names, and the digests of their sources."""
    taken: set[str] = set()
    entries = [replace(entry, name=encodable(entry.name)) for entry in entries]
    return [Task(entry, _free_name(entry.name, taken), _digest(entry, request)) for entry in entries]


def _digest(entry: Entry, request: dict[str, Any]) -> str:
    """Digest of an entry's source files and of what is stated of it elsewhere; of the request for a world's episode."""
    if not entry.files:
        return text_digest(f"{entry.locator} {sorted(request.items())}")
    found = [digest_once(file) for file in entry.files]
    found += [text_digest(entry.stated)] if entry.stated else []
    return found[0] if len(found) == 1 else text_digest("".join(digest + "\n" for digest in found))


def _free_name(name: str, taken: set[str]) -> str:
    """A file name without surprises that no other episode has (also where case does not count).

    What is cut, or not ASCII and so lost, is told apart by a digest of the name and not by its place among the others:
    those come and go between runs.
    """
    safe = _UNSAFE.sub("_", name).strip(".") or "episode"
    if len(safe) > LONGEST_STEM or not name.isascii():
        safe = f"{safe[: LONGEST_STEM - 9]}-{text_digest(name)[-8:]}"
    free, number = safe, 1
    while free.lower() in taken:
        number += 1
        free = f"{safe}_{number}"
    taken.add(free.lower())
    return free
