"""`vla inspect`: what an artefact, a log or a file holds, without changing anything.

Tables go to people through `Progress`; the result holds the same for programs:

    path, kind, because     what it is, and how that was told
    counts                  episodes, episodes read in detail, steps, ...
    skipped                 episodes that cannot be used, each with the reason
    warnings                sentences a person should read
    frames                  the contact sheet, when one was asked for
    contents                everything else; see `facts`, `overview` and `outline`
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from vla_cli import overview
from vla_cli.configs import InspectConfig
from vla_cli.contact_sheet import ContactSheet
from vla_cli.dataset import FILE_NAME as DATASET_FILE
from vla_cli.episode import MANIFEST, Episode, Skipped, UnusableError, load_episode, problems, read_manifest
from vla_cli.errors import ConfigError, InputError, VlaError
from vla_cli.facts import episode_facts, merge, ranges, safe, statistics_facts
from vla_cli.findings import Findings, few
from vla_cli.logs import in_words
from vla_cli.lookup import Table
from vla_cli.outline import (
    Node,
    is_zarr,
    outline_document,
    outline_folder,
    outline_hdf5,
    read_document,
)
from vla_cli.progress import SILENT, Progress
from vla_cli.readers import READERS, Options, Reader, detect, list_entries, opened, read_entry

STAGE = "inspect"
_MOST_LOOKED_INTO = 50


def run(config: InspectConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Look at `config.path`, and write the contact sheet when one is asked for.

    Raises:
        InputError: nothing is there, it is nothing that can be read, it is damaged, or it has no pictures for a sheet.
        ConfigError: the contact sheet stands in the way, or an option cannot be.
        MissingDependency: the format needs an optional package.
    """
    _check(config)
    found = Findings(ContactSheet() if config.frames else None)
    kind, because = _look(config, found, progress)
    if config.frames:
        _fill_sheet(config, config.frames, found)
    found.show(progress)
    document = {
        "stage": STAGE,
        "path": str(config.path),
        "kind": kind,
        "because": because,
        "counts": found.counts,
        "skipped": found.skipped,
        "warnings": found.warnings,
        "frames": str(config.frames) if config.frames else None,
        "contents": found.contents,
    }
    return safe(document)


def _check(config: InspectConfig) -> None:
    path, sheet = config.path, config.frames
    if sheet and sheet.suffix.lower() != ".png":
        raise ConfigError(f"--frames is {sheet}", expected="a PNG file", hint=f"--frames {sheet.with_suffix('.png')}")
    if sheet and not sheet.parent.is_dir():
        raise ConfigError(f"The folder of --frames {sheet} does not exist", hint=f"mkdir -p {sheet.parent}")
    if sheet and (sheet.is_dir() or (sheet.exists() and not config.overwrite)):
        raise ConfigError(f"The contact sheet {sheet} exists", hint="another --frames, or --overwrite to replace it")
    if not path.exists():
        raise InputError(
            f"{path} does not exist", expected="an artefact, a robot log, or a file", hint=f"ls {path.parent}"
        )
    if not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} is neither a file nor a directory", expected="one of them")
    if path.is_dir() and next(os.scandir(path), None) is None:
        raise InputError(f"The directory {path} is empty", expected="an artefact or a robot log")
    if path.is_file() and path.stat().st_size == 0:
        raise InputError(f"The file {path} is empty", expected="an artefact or a robot log")


def _look(config: InspectConfig, found: Findings, progress: Progress) -> tuple[str, str]:
    """Find out what the path is and what is in it; kind and reason.

    Raises:
        InputError: as for `run`; whatever a damaged file makes other code raise ends here.
    """
    kind, because = "file", ""
    try:
        if config.format == "auto" and (artefact := overview.recognise(config.path)):
            kind, because = artefact
            if kind in _DEMONSTRATIONS:
                _DEMONSTRATIONS[kind](config, found, progress)
            else:
                _POLICIES.get(kind)(config.path, found)
            return kind, because
        return _look_further(config, found, progress)
    except VlaError:
        raise
    except Exception as error:
        what = f"{kind} ({because})" if because else "anything that is known"
        raise InputError(f"{config.path} cannot be read as {what}: {in_words(error)}", expected="a whole one") from None


def _look_further(config: InspectConfig, found: Findings, progress: Progress) -> tuple[str, str]:
    """A robot's log, or the outline of whatever it is.

    Raises:
        InputError: it is neither.
    """
    try:
        name, because = detect(config.path) if config.format == "auto" else (config.format, "--format says so")
    except InputError as error:
        outline = _outline(config.path, found)
        if outline is None:
            raise
        if outline[0] in ("hdf5", "zarr"):
            found.warn(f"{error.problem}; its outline is shown")
        return outline
    _log(name, config, found, progress)
    return name, because


# --- episodes, wherever they lie ---


def _gather(items: Iterable[Episode | Skipped], found: Findings, progress: Progress) -> None:
    """Read episodes one by one: facts, faults, and pictures for the sheet."""
    details = []
    for item in items:
        if isinstance(item, Skipped):
            found.skipped.append({"name": item.name, "reason": item.reason})
        else:
            try:
                details.append(_detail(item, found))
            except Exception as error:  # an episode that nobody can make sense of must not hide the others
                found.skipped.append({"name": item.name, "reason": f"it cannot be summarised ({in_words(error)})"})
        progress.advance()
    found.counts["episodes_read"] = len(details)
    found.contents |= {"streams": merge(details), "episodes": details}
    found.tell_episodes(details)
    found.tell_streams(found.contents["streams"])
    found.tell_ranges("ranges", ranges(found.contents["streams"]))


def _detail(episode: Episode, found: Findings) -> dict[str, Any]:
    faults = problems(episode)
    if faults:
        found.skipped.append({"name": episode.name, "reason": "; ".join(faults)})
    if found.sheet is not None:
        for stream in episode.of_role("image"):
            try:
                found.sheet.add(episode.name, stream.name, stream.values, stream.timestamps)
            except Exception as error:  # decoders raise what they like
                found.warn(f"{episode.name}: pictures of {stream.name} cannot be shown ({in_words(error)})")
    return episode_facts(episode)


def _log(name: str, config: InspectConfig, found: Findings, progress: Progress) -> None:
    reader: Reader = READERS.get(name)
    with opened(reader, config.path, Options(topics=config.topics), found.warn) as log:
        entries = list_entries(log, config.path)
        chosen = entries[: config.episodes]
        progress.start(f"Reading {len(chosen)} of {len(entries)} {name} episodes", len(chosen))

        def items() -> Iterator[Episode | Skipped]:
            for entry in chosen:
                try:
                    yield read_entry(log, entry)
                except UnusableError as error:
                    yield Skipped(entry.name, str(error))

        found.counts["episodes"] = len(entries)
        found.contents |= {"format": name, "names": [entry.name for entry in entries]}
        _gather(items(), found, progress)
    _tell_read_texts(found)


def _tell_read_texts(found: Findings) -> None:
    """Instructions and operators of the episodes that were read in detail."""
    read = found.contents["episodes"]
    found.tell_texts((text for e in read for text in e["instructions"]), (e["operator"] for e in read))


def _episodes(config: InspectConfig, found: Findings, progress: Progress) -> None:
    overview.check_small(config.path / MANIFEST, overview.LARGEST_MANIFEST)
    rows = read_manifest(config.path)
    progress.start("Reading episodes", min(len(rows), config.episodes))
    found.counts |= {"episodes": len(rows), "steps": sum(int(row["steps"]) for row in rows)}
    found.contents |= {"names": [row["name"] for row in rows], "run": _record(config.path, found)}
    found.contents["seconds"] = round(sum(float(row["seconds"]) for row in rows), 3)
    _gather((_loaded(config.path / row["file"]) for row in rows[: config.episodes]), found, progress)
    found.tell_texts((text for row in rows for text in row["instructions"]), (row["operator"] for row in rows))


def _loaded(path: Path) -> Episode | Skipped:
    try:
        overview.check_vectors(path)
        return load_episode(path)
    except InputError as error:
        return Skipped(path.stem, error.problem)


def _episode(config: InspectConfig, found: Findings, progress: Progress) -> None:
    overview.check_vectors(config.path)
    progress.start("Reading an episode", 1)
    found.counts["episodes"] = 1
    _gather([load_episode(config.path)], found, progress)
    _tell_read_texts(found)


def _dataset(config: InspectConfig, found: Findings, progress: Progress) -> None:
    path = config.path / DATASET_FILE if config.path.is_dir() else config.path
    beside = overview.dataset_files(path.parent)
    with overview.opened_dataset(path) as dataset:
        rows = list(dataset.rows())
        progress.start("Reading demonstrations", min(len(rows), config.episodes))
        found.counts |= {"episodes": len(rows), "steps": sum(row["steps"] for row in rows)}
        found.contents |= {**dataset.facts, "names": [row["name"] for row in rows]}
        _gather((_demonstration(dataset, key) for key in dataset.keys[: config.episodes]), found, progress)
    splits = beside.get("splits", {})
    found.counts |= {f"{name}_episodes": len(names) for name, names in splits.items()}
    found.contents |= {"splits": splits, "run": _record(path.parent, found)}
    if "statistics" in beside:
        statistics = beside["statistics"]
        found.contents["statistics"] = {
            "state": statistics_facts(statistics.state, dataset.facts["state_names"]),
            "actions": statistics_facts(statistics.actions, dataset.facts["action_names"]),
        }
        found.tell_ranges("statistics of the training split", found.contents["statistics"].items())
    found.tell_texts((text for row in rows for text in row["instructions"]), (row["operator"] for row in rows))


def _demonstration(dataset: overview.DatasetFile, key: str) -> Episode | Skipped:
    try:
        return dataset.episode(key)
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        return Skipped(key, in_words(error))


def _record(directory: Path, found: Findings) -> dict[str, Any]:
    """`run.json`, and a warning for what its stage left out."""
    record = overview.record_facts(directory)
    left_out = record.get("skipped") or []
    if left_out:
        found.warn(f"{record.get('stage')} left out {len(left_out)}: {few([_left_out(item) for item in left_out])}")
    return record


def _left_out(item: Any) -> str:
    return f"{item.get('name')} ({item.get('reason')})" if isinstance(item, dict) else str(item)


_DEMONSTRATIONS: dict[str, Callable[[InspectConfig, Findings, Progress], None]] = {
    "episodes": _episodes,
    "episode": _episode,
    "dataset": _dataset,
}
# a table, because what knows policies brings scipy, which a look at a log need not wait for
_POLICIES = Table(
    "artefact",
    {
        "adapter": "vla_cli.policies.overview:tell_policy",
        "base": "vla_cli.policies.overview:tell_policy",
        "bundle": "vla_cli.policies.overview:tell_bundle",
        "report": "vla_cli.policies.overview:tell_report",
    },
)


# --- anything else ---


def _outline(path: Path, found: Findings) -> tuple[str, str] | None:
    """The outline of a file or folder that is no artefact and no log; None when it is nothing that can be outlined."""
    node: Node | None = None
    kind, because = "", ""
    if path.is_dir():
        if is_zarr(path):
            node, kind, because = outline_folder(path), "zarr", "it has zarr's metadata"
        elif parts := _parts(path):
            node, kind, because = outline_folder(path), "folder", f"it has {few(parts)}"
            found.contents["parts"] = parts
    elif overview.is_hdf5(path):
        node, kind, because = outline_hdf5(path), "hdf5", "it has HDF5's signature"
    elif read := read_document(path):
        node, kind, because = outline_document(path.name, read[1]), read[0], f"it can be read as {read[0]}"
    if node is None:
        return None
    found.contents["tree"] = node.document()
    found.tell("tree", ["name", "is", "what"], [list(line) for line in node.lines()])
    return kind, because


def _parts(folder: Path) -> list[str]:
    """What a folder's members are, in words, as far as they can be read."""
    parts = []
    members = sorted(itertools.islice(folder.iterdir(), 10 * _MOST_LOOKED_INTO))[:_MOST_LOOKED_INTO]
    for member in (m for m in members if not m.is_symlink()):
        if artefact := overview.recognise(member):
            parts.append(f"{member.name}: {artefact[0]}")
        elif overview.is_hdf5(member):
            parts.append(f"{member.name}: HDF5")
        elif member.is_dir() and is_zarr(member):
            parts.append(f"{member.name}: zarr")
        elif member.is_file() and member.suffix in (".json", ".jsonl", ".yaml", ".yml"):
            parts.append(f"{member.name}: {member.suffix[1:].upper()}")
    return parts


def _fill_sheet(config: InspectConfig, path: Path, found: Findings) -> None:
    """Write the contact sheet.

    Raises:
        InputError: there was no picture for it.
    """
    if not found.sheet:
        raise InputError(
            f"{config.path} has no pictures for --frames {path}"
            + (" in the episodes that were read" if found.counts.get("episodes") else ""),
            expected="a log, episodes or a dataset with pictures",
            hint="vla inspect without --frames, or with more --episodes",
        )
    if found.sheet.left_out:
        found.warn(f"the contact sheet shows {len(found.sheet)} rows; {found.sheet.left_out} more were left out")
    found.sheet.save(path)
