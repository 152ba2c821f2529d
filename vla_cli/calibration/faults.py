"""What makes a calibration impossible to apply: people edit `policy.json`, and would see it when the robot acts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from vla_cli.calibration.action import ActionFacts
from vla_cli.calibration.timing import FLIPS

if TYPE_CHECKING:
    from vla_cli.calibration.transforms import Calibration

LEAST_INVERTIBLE = 1e-6
"""Weakest against strongest direction of a ratio below which no command can be divided by it."""


def faults(calibration: Calibration) -> list[str]:
    """Sentences on the entries that contradict each other; empty where it can be applied."""
    return [*_of_cameras(calibration), *_of_commands(calibration), *_of_times(calibration)]


def _of_cameras(calibration: Calibration) -> Iterator[str]:
    count = len(calibration.cameras)
    for name in ("looks", "warps", "medians", "base_medians"):
        if (found := len(getattr(calibration, name))) != count:
            yield f"{name} has {found} entries for {count} camera(s)"
    if any(np.shape(colour) != (3,) for colour in [*calibration.medians, *calibration.base_medians]):
        yield "a median is no colour of three channels"
    if not set(calibration.told_by or ()) <= set(range(count)):
        yield f"told_by names {', '.join(map(str, calibration.told_by or ()))} of {count} camera(s), counted from 0"
    if calibration.bars and len(calibration.bars) != count:
        yield f"bars has {len(calibration.bars)} entries for {count} camera(s)"
        return
    height, width = calibration.image_size
    for number, (camera, look) in enumerate(zip(calibration.cameras, calibration.looks, strict=False)):
        above, below, left, right = calibration.bars[number] if calibration.bars else (0, 0, 0, 0)
        inner = (height - above - below, width - left - right)
        if min(above, below, left, right) < 0 or min(inner) < 2:
            yield f"image_size {height} x {width} and the bars of '{camera}' leave no picture"
        elif look is not None and look.backdrop is not None and look.backdrop.shape[:2] != inner:
            has = " x ".join(map(str, look.backdrop.shape[:2]))
            yield f"the picture of the table of '{camera}' has {has} pixels, not {inner[0]} x {inner[1]}"


def _of_commands(calibration: Calibration) -> Iterator[str]:
    facts, ratio, limit = calibration.actions, calibration.ratio, calibration.limit
    if facts is None:
        if calibration.parts and set(calibration.parts) & {"action", "delay", "timing"}:
            yield "actions is null, but there is a ratio, a delay or a timing"
        return
    yield from _of_ratio(facts, ratio, limit)
    if facts.gripper_command < 0 and (calibration.delay > 0 or not calibration.timing.is_identity):
        yield "there is a delay or a timing, but no gripper"


def _of_ratio(facts: ActionFacts, ratio: np.ndarray | None, limit: np.ndarray | None) -> Iterator[str]:
    count = len(facts.commands)
    if ratio is None:
        return
    if ratio.shape != (count, count):
        yield f"ratio is {' x '.join(map(str, ratio.shape))}, not {count} x {count}"
        return
    values = np.linalg.svd(ratio, compute_uv=False) if np.isfinite(ratio).all() else np.zeros(1)
    if not values[-1] > LEAST_INVERTIBLE * values[0]:
        yield "ratio cannot be divided by"
    if limit is None or limit.shape != (count,) or not (limit > 0).any():
        yield f"limit is not the largest command of each of the {count} dimensions of ratio"


def _of_times(calibration: Calibration) -> Iterator[str]:
    if calibration.delay < 0 or any(other.delay < 0 for other in calibration.other_grippers):
        yield "a delay is below 0"
    for name, limit in calibration.timing.document().items():
        # the gripper may act while the arm stands, but an arm at no speed never arrives
        is_number = isinstance(limit, int | float)
        is_speed = is_number and (limit > 0 or (limit == 0 and name in FLIPS))
        if limit is not None and not is_speed:
            yield f"timing: {name} is {limit}, not a speed above 0"
    if calibration.full is not None and not (calibration.full > 0).all():
        yield "full has a command that is not above 0"
