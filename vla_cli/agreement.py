"""What the episodes of a dataset must have in common, decided from manifest and stream headers before any is read.

Episodes of one dataset share state and action widths, what each dimension is called and means, cameras, picture sizes
and a control rate. Where they differ the majority decides, and every other episode is skipped by name with the reason.
Dimensions of the same names in another order are put in the first episode's order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vla_cli.conventions import UNKNOWN
from vla_cli.episode import Episode, Skipped, Stream
from vla_cli.errors import ConfigError, InputError
from vla_cli.synchrony.dimensions import label, names_of, stated
from vla_cli.synchrony.synchronise import SAME_RATE, clean_rate

Row = dict[str, Any]
MEANINGS = ("mode", "gripper", "rotation", "units")
"""The conventions in which numbers of one dimension must agree to be numbers of one kind."""


@dataclass
class Agreement:
    """What was agreed on.

    Attributes:
        rows: manifest rows of the episodes that fit.
        cameras: in the policy's order.
        rate: control rate in Hz.
        order: the dimensions' names in the order that all episodes are to have, for each ("role", "stream").
        skipped: episodes that do not fit.
        warnings: sentences a person should read.
    """

    rows: list[Row]
    cameras: tuple[str, ...] = ()
    rate: float = 0.0
    order: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def keep_majority(self, what: str, kind_of: Callable[[Row], Hashable], hint: str = "") -> None:
        """Keep the episodes of the commonest kind (of equals, the first met) and skip the others by name.

        An episode whose kind is None, for nobody has stated it, is kept beside any.
        """
        kinds = Counter(kind for row in self.rows if (kind := kind_of(row)) is not None)
        if len(kinds) < 2:
            return
        winner, votes = kinds.most_common(1)[0]
        theirs = f"{votes} of {len(self.rows)} episodes have {winner}{f' ({hint})' if hint else ''}"
        others = [row for row in self.rows if kind_of(row) not in (winner, None)]
        self.skipped += [Skipped(row["name"], f"its {what}: {kind_of(row)}; {theirs}") for row in others]
        self.rows = [row for row in self.rows if row not in others]

    def in_order(self, episode: Episode) -> Episode:
        """An episode with the dimensions of its vectors in the agreed order."""
        return replace(episode, streams=[self._ordered(stream) for stream in episode.streams])

    def _ordered(self, stream: Stream) -> Stream:
        order = self.order.get((stream.role, stream.name))
        if order is None or order == (own := names_of(stream)):
            return stream
        values = stream.values[:, [own.index(name) for name in order]]
        return replace(stream, values=values, attributes={**stream.attributes, "names": order})


def agree(
    rows: list[Row],
    *,
    cameras: Sequence[str],
    rate: float | None,
    same_sizes: bool,
    headers: Callable[[Row], Sequence[Stream]],
    actions: str = "as-recorded",
    gripper: str = "as-recorded",
) -> Agreement:
    """Decide what the episodes have in common.

    Args:
        rows: manifest rows, at least one.
        cameras: the cameras wanted, or empty for those that all episodes have.
        rate: the control rate wanted in Hz, or None for the action streams' own.
        same_sizes: pictures are not resized, so their sizes must agree.
        headers: the vector streams of an episode as `episode.load_headers` gives them.
        actions, gripper: as for `SyncOptions`: what is made the same need not be the same.

    Raises:
        ConfigError: a camera is wanted that no episode has.
        InputError: no episode has a rate, and none is given.
    """
    agreed = Agreement(list(rows))
    agreed.keep_majority("state and action widths", lambda row: f"{row['state_dim']} and {row['action_dim']}")
    _same_meaning(agreed, headers, actions, gripper)
    agreed.cameras = _wanted_cameras(agreed, cameras) if cameras else _common_cameras(agreed)
    if same_sizes:
        agreed.keep_majority("picture heights and widths", lambda row: _sizes(row, agreed.cameras))
    if agreed.rows:
        agreed.rate = _rate(agreed, rate)
    return agreed


def _same_meaning(agreed: Agreement, headers: Callable[[Row], Sequence[Stream]], actions: str, gripper: str) -> None:
    """Keep episodes whose dimensions are called the same and mean the same, in the order of the first."""
    roles = ("state",) if actions == "next-state" else ("state", "action")  # then the recorded actions are not used
    vectors = {row["name"]: {(s.role, s.name): s for s in headers(row) if s.role in roles} for row in agreed.rows}
    agreed.keep_majority("dimensions", lambda row: _called(vectors[row["name"]]))
    first = vectors[agreed.rows[0]["name"]]
    agreed.order = {key: names_of(stream) for key, stream in first.items()}
    for key, stream in first.items():
        for convention in MEANINGS:
            if convention != "mode" or (key[0] == "action" and actions == "as-recorded"):
                said = {
                    name: _meaning(streams[key], convention, gripper)
                    for name, streams in vectors.items()
                    if key in streams
                }
                _same_convention(agreed, f"{convention} of {label(stream)}", said, _hint(stream, convention, said))
    _say_reordered(agreed, vectors)


def _called(streams: Mapping[tuple[str, str], Stream]) -> str:
    """What the dimensions of an episode are called, whatever their order (unless that alone tells them apart)."""
    found = []
    for (role, name), stream in sorted(streams.items()):
        names = names_of(stream)
        found.append(f"{role} '{name}' of {', '.join(sorted(names) if len({*names}) == len(names) else names)}")
    return "; ".join(found) or "none"


def _meaning(stream: Stream, convention: str, gripper: str) -> str | None:
    """What a stream states of a convention, spelt alike where it means the same; None when it is unknown."""
    said = stated(stream, convention)
    if convention == "gripper" and gripper == "normalise" and said == "open-high":
        return "open-low"
    return None if said == UNKNOWN else " ".join(said.lower().replace(",", " ").split())


def _same_convention(agreed: Agreement, what: str, said: Mapping[str, str | None], hint: str) -> None:
    agreed.keep_majority(what, lambda row: said[row["name"]], hint)
    silent = [row["name"] for row in agreed.rows if said[row["name"]] is None]
    if 0 < len(silent) < len(agreed.rows):
        known = next(said[row["name"]] for row in agreed.rows if said[row["name"]] is not None)
        agreed.warnings.append(
            f"{len(silent)} of {len(agreed.rows)} episodes ({_some(silent)}) do not state the {what}, and the others "
            f"have {known}: they are taken together."
        )


def _hint(stream: Stream, convention: str, said: Mapping[str, str | None]) -> str:
    """How to keep all episodes."""
    kinds = {*said.values()} - {None}
    if convention == "mode" and kinds <= {"absolute", "delta"}:
        return "--actions absolute or --actions delta makes them the same"
    if convention == "gripper" and kinds <= {"open-high", "open-low"}:
        return "--gripper normalise makes them the same"
    return f"if that is wrong: vla collect-ingest --set {stream.name}.{convention}=..."


def _say_reordered(agreed: Agreement, vectors: Mapping[str, Mapping[tuple[str, str], Stream]]) -> None:
    for key, order in agreed.order.items():
        other = [row["name"] for row in agreed.rows if names_of(vectors[row["name"]][key]) != order]
        if other:
            agreed.warnings.append(
                f"{len(other)} of {len(agreed.rows)} episodes ({_some(other)}) have the dimensions of "
                f"{key[0]} stream '{key[1]}' in another order: they are put in that of the first, {', '.join(order)}."
            )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _sizes(row: Row, cameras: Sequence[str]) -> str:
    return ", ".join(f"{camera} {'x'.join(map(str, row['cameras'][camera]))}" for camera in cameras)


def _wanted_cameras(agreed: Agreement, wanted: Sequence[str]) -> tuple[str, ...]:
    everywhere = sorted({camera for row in agreed.rows for camera in row["cameras"]})
    unknown = [camera for camera in wanted if camera not in everywhere]
    if unknown:
        raise ConfigError(f"--camera names {', '.join(unknown)}", expected=f"some of: {', '.join(everywhere)}")
    fits = []
    for row in agreed.rows:
        missing = [camera for camera in wanted if camera not in row["cameras"]]
        if missing:
            agreed.skipped.append(Skipped(row["name"], f"it has no camera {', '.join(missing)}"))
        else:
            fits.append(row)
    agreed.rows = fits
    return tuple(wanted)


def _common_cameras(agreed: Agreement) -> tuple[str, ...]:
    everywhere = sorted({camera for row in agreed.rows for camera in row["cameras"]})
    if not any(all(camera in row["cameras"] for row in agreed.rows) for camera in everywhere):
        agreed.keep_majority("cameras", lambda row: ", ".join(sorted(row["cameras"])))
    common = []
    for camera in everywhere:
        have = sum(camera in row["cameras"] for row in agreed.rows)
        if have == len(agreed.rows):
            common.append(camera)
        elif have:
            agreed.warnings.append(
                f"Camera '{camera}' is dropped: {have} of {len(agreed.rows)} episodes have it. "
                f"To keep it and skip the other episodes: --camera {camera}."
            )
    return tuple(common)


def _usual_rate(rates: Sequence[float]) -> float:
    """The median rate; where that lies between two rates and is none that an episode has, the lower of the two."""
    middle = float(np.median(rates))
    near = any(abs(rate - middle) <= SAME_RATE * middle for rate in rates)
    return clean_rate(middle if near else sorted(rates)[(len(rates) - 1) // 2])


def _rate(agreed: Agreement, wanted: float | None) -> float:
    rates = [float(row["rate_hz"]) for row in agreed.rows if row["rate_hz"] > 0]
    if wanted is None and not rates:
        raise InputError(
            "No episode tells its rate: most time stamps of the actions repeat the one before", hint="--rate HZ"
        )
    rate = _usual_rate(rates) if wanted is None else wanted
    other = [own for own in rates if abs(own - rate) > SAME_RATE * rate]
    if other:
        span = f"{min(other):.4g}" + (f" to {max(other):.4g}" if max(other) > min(other) else "")
        agreed.warnings.append(
            f"{len(other)} of {len(agreed.rows)} episodes are resampled from {span} Hz to {rate:g} Hz: "
            "commands are left out or repeated. Actions whose mode is known to be a change a step keep their distance; "
            "of actions whose mode is unknown nobody can say it (vla collect-ingest --set action.mode=delta)."
        )
    return rate
