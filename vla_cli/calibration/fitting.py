"""Fit the transforms of a deployment to its demonstrations, against the facts about the base's own domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vla_cli.calibration.action import ActionFacts, fit_delay, fit_gain, held_commands, invertible, to_base
from vla_cli.calibration.bars import NO_BARS, find_bars, without_bars
from vla_cli.calibration.camera import CameraMap, fit_camera
from vla_cli.calibration.domain import DomainFacts
from vla_cli.calibration.look import LookTransform, fit_look
from vla_cli.calibration.parts import PARTS
from vla_cli.calibration.robust import tried
from vla_cli.calibration.timing import Timing, fit_timing, measure_speeds, middles
from vla_cli.calibration.tint import tint_of
from vla_cli.calibration.transforms import Calibration
from vla_cli.dataset import Demonstration

NEARLY_ONE = 0.02
"""Gains that differ by less than this from the base's are the base's. Maps have no such limit: a picture is redrawn."""


def calibrate(
    demonstrations: Sequence[Demonstration],
    cameras: Sequence[str],
    base: DomainFacts,
    parts: Sequence[str] = PARTS,
) -> Calibration:
    """Fit the transforms of a deployment.

    Args:
        demonstrations: of the deployment, raw units.
        cameras: in the policy's order.
        base: facts of the base's own domain.
        parts: which to fit; the others are left out.

    Returns:
        The calibration; what could not be identified is in `skipped` with its reason.
    """
    skipped = {part: "not asked for" for part in PARTS if part not in parts}
    wanted = [part for part in PARTS if part in parts]
    looks: list[LookTransform | None] = [None] * len(cameras)
    warps: list[tuple[CameraMap, CameraMap] | None] = [None] * len(cameras)
    if "look" in wanted:
        looks = _looks(demonstrations, cameras, base, skipped)
    if "camera" in wanted:
        warps = _warps(demonstrations, cameras, base, skipped)
    size = demonstrations[0].images[cameras[0]].shape[1:3]
    bars = [find_bars([d.images[c] for d in demonstrations]) for c in cameras]
    found = Calibration(
        cameras=list(cameras),
        image_size=(int(size[0]), int(size[1])),
        looks=looks,
        warps=warps,
        actions=None,
        ratio=None,
        limit=None,
        delay=0,
        timing=Timing(),
        middle=(0.0, 0.0),
        base_medians=base.medians,
        medians=[tint_of([d.images[c] for d in demonstrations]) for c in cameras],
        skipped=skipped,
        bars=bars if any(found != NO_BARS for found in bars) else [],
    )
    if base.actions is None:
        reason = base.unknown.get("action", "the base's facts do not say how its robot answers to commands")
        skipped.update({part: reason for part in ("action", "delay", "timing") if part in wanted})
        return found
    return _with_actions(found, demonstrations, base, base.actions, wanted, skipped)


def _looks(
    demonstrations: Sequence[Demonstration], cameras: Sequence[str], base: DomainFacts, skipped: dict[str, str]
) -> list[LookTransform | None]:
    found: list[LookTransform | None] = []
    reasons: dict[str, str] = {}
    for camera, look in zip(cameras, base.looks, strict=True):
        if look is None:
            reasons[camera] = f"{camera}: {base.unknown.get(f'look of {camera}', 'the base has no look for it')}"
            found.append(None)
            continue
        videos = without_bars([d.images[camera] for d in demonstrations])
        found.append(tried(camera, reasons, lambda v=videos, b=look: fit_look(v, b)))
    if reasons:
        skipped["look"] = "; ".join(reasons.values())
    return found


def _warps(
    demonstrations: Sequence[Demonstration], cameras: Sequence[str], base: DomainFacts, skipped: dict[str, str]
) -> list[tuple[CameraMap, CameraMap] | None]:
    found: list[tuple[CameraMap, CameraMap] | None] = []
    reasons: dict[str, str] = {}
    for camera, own in zip(cameras, base.cameras, strict=True):
        if own is None or base.actions is None:
            reasons[camera] = f"{camera}: the base's facts hold no map of it"
            found.append(None)
            continue
        positions = base.actions.positions
        here = tried(camera, reasons, lambda c=camera, p=positions: fit_camera(demonstrations, c, p))
        found.append((own, here) if here is not None else None)
    if reasons:
        skipped["camera"] = "; ".join(reasons.values())
    return found


def _with_actions(
    calibration: Calibration,
    demonstrations: Sequence[Demonstration],
    base: DomainFacts,
    facts: ActionFacts,
    wanted: Sequence[str],
    skipped: dict[str, str],
) -> Calibration:
    """Add what concerns commands. Timing is fitted to commands in the base's convention, so gain comes first."""
    commands = np.concatenate([d.actions[:, list(facts.commands)] for d in demonstrations])
    ratio = None
    if "action" in wanted:
        ratio = tried("action", skipped, lambda: _ratio(demonstrations, facts))
        if ratio is not None and np.abs(ratio - np.eye(len(ratio))).max() < NEARLY_ONE:
            ratio = None
    delay = 0
    if "delay" in wanted:
        own = tried("delay", skipped, lambda: fit_delay(demonstrations, facts))
        delay = max(0, own - facts.delay) if own is not None else 0
    middle = middles(demonstrations, facts) if facts.gripper_state >= 0 else (0.0, 0.0)
    found = replace(
        calibration,
        actions=facts,
        ratio=ratio,
        limit=np.abs(commands).max(axis=0) if ratio is not None else None,
        delay=delay,
        middle=middle,
        held=held_commands(demonstrations, facts),
    )
    if found.held and facts.gripper_command >= 0 and {"delay", "timing"} & set(wanted):
        skipped["delay and timing of other grippers"] = (
            f"action dimension(s) {', '.join(map(str, found.held))} switch as a gripper does, but only one gripper is "
            f"waited for and timed: dimension {facts.gripper_command}"
        )
    if "timing" not in wanted:
        return found
    if base.speeds is None:
        skipped["timing"] = base.unknown.get("timing", "the base's facts hold no speeds")
        return found
    converted = [replace(d, actions=_in_base_convention(d.actions, found)) for d in demonstrations]
    speeds = tried("timing", skipped, lambda: measure_speeds(converted, facts))
    return replace(found, timing=fit_timing(base.speeds, speeds)) if speeds is not None else found


def _ratio(demonstrations: Sequence[Demonstration], facts: ActionFacts) -> np.ndarray:
    """This robot's commands times this [K, K] are the base's.

    Raises:
        NotIdentified: the demonstrations do not say.
    """
    gain = fit_gain(demonstrations, facts.positions, facts.commands, facts.limit)
    return invertible(np.linalg.pinv(facts.gain) @ gain)


def _in_base_convention(actions: np.ndarray, calibration: Calibration) -> np.ndarray:
    if calibration.ratio is None or calibration.actions is None:
        return actions
    return to_base(actions, calibration.ratio, calibration.actions.commands)
