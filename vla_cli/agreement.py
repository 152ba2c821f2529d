"""What the episodes of a dataset must have in common, decided from their manifest before any is opened.

Episodes of one dataset share state and action widths, cameras, picture sizes and a control rate. Where they differ
the majority decides, and every other episode is skipped by name with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_cli.episode import Skipped
from vla_cli.errors import ConfigError, InputError
from vla_cli.synchrony.synchronise import SAME_RATE, clean_rate

Row = dict[str, Any]


@dataclass
class Agreement:
    """What was agreed on.

    Attributes:
        rows: manifest rows of the episodes that fit.
        cameras: in the policy's order.
        rate: control rate in Hz.
        skipped: episodes that do not fit.
        warnings: sentences a person should read.
    """

    rows: list[Row]
    cameras: tuple[str, ...] = ()
    rate: float = 0.0
    skipped: list[Skipped] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def keep_majority(self, what: str, kind_of: Callable[[Row], Hashable]) -> None:
        """Keep the episodes of the commonest kind (of equals, the first met) and skip the others by name."""
        kinds = Counter(kind_of(row) for row in self.rows)
        if len(kinds) < 2:
            return
        winner, votes = kinds.most_common(1)[0]
        for row in self.rows:
            if kind_of(row) != winner:
                theirs = f"{votes} of {len(self.rows)} episodes have {winner}"
                self.skipped.append(Skipped(row["name"], f"its {what}: {kind_of(row)}; {theirs}"))
        self.rows = [row for row in self.rows if kind_of(row) == winner]


def agree(rows: list[Row], *, cameras: Sequence[str], rate: float | None, same_sizes: bool) -> Agreement:
    """Decide what the episodes have in common.

    Args:
        rows: manifest rows, at least one.
        cameras: the cameras wanted, or empty for those that all episodes have.
        rate: the control rate wanted in Hz, or None for the action streams' own.
        same_sizes: pictures are not resized, so their sizes must agree.

    Raises:
        ConfigError: a camera is wanted that no episode has.
        InputError: no episode has a rate, and none is given.
    """
    agreed = Agreement(list(rows))
    agreed.keep_majority("state and action widths", lambda row: f"{row['state_dim']} and {row['action_dim']}")
    agreed.cameras = _wanted_cameras(agreed, cameras) if cameras else _common_cameras(agreed)
    if same_sizes:
        agreed.keep_majority("picture heights and widths", lambda row: _sizes(row, agreed.cameras))
    if agreed.rows:
        agreed.rate = _rate(agreed, rate)
    return agreed


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


def _rate(agreed: Agreement, wanted: float | None) -> float:
    rates = [float(row["rate_hz"]) for row in agreed.rows if row["rate_hz"] > 0]
    if wanted is None and not rates:
        raise InputError("No episode has an action rate: none has two distinct time stamps", hint="--rate HZ")
    rate = clean_rate(float(np.median(rates))) if wanted is None else wanted
    other = [row["name"] for row in agreed.rows if abs(row["rate_hz"] - rate) > SAME_RATE * rate]
    if other:
        span = f"{min(rates, default=0):.4g}" + (f" to {max(rates):.4g}" if len(set(rates)) > 1 else "")
        agreed.warnings.append(
            f"{len(other)} of {len(agreed.rows)} episodes are resampled from {span} Hz to {rate:g} Hz: "
            "commands are left out or repeated. Actions whose mode is known to be a change a step keep their distance; "
            "of actions whose mode is unknown nobody can say it (vla collect-ingest --set action.mode=delta)."
        )
    return rate
