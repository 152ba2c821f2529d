"""Fit the transforms of a deployment to its demonstrations, against the facts about the base's own domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vla_cli.calibration.action import ActionFacts, fit_gain, invertible, to_base
from vla_cli.calibration.bars import NO_BARS, find_bars, without_bars
from vla_cli.calibration.camera import CameraMap, fit_camera
from vla_cli.calibration.domain import DomainFacts
from vla_cli.calibration.grippers import Wait, fit_delay, middles
from vla_cli.calibration.held import held_commands, switching_commands
from vla_cli.calibration.look import LookTransform, fit_look
from vla_cli.calibration.parts import PARTS
from vla_cli.calibration.robust import NotIdentified, tried
from vla_cli.calibration.timing import Timing, fit_timing, measure_speeds
from vla_cli.calibration.tint import are_told_apart, log_distance, tint_of
from vla_cli.calibration.transforms import Calibration
from vla_cli.dataset import Demonstration

GRIPPER_STATE = "a state that says whether the gripper is closed"
RELIABLE = 0.95
"""Share of the demonstrations' own pictures that a camera must know as theirs to be asked if the transforms are on."""
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
    found = replace(found, told_by=_told_by(found, demonstrations))
    if base.actions is None:
        reason = base.unknown.get("action", "the base's facts do not say how its robot answers to commands")
        skipped.update({part: reason for part in ("action", "delay", "timing") if part in wanted})
        return found
    return _with_actions(found, demonstrations, base, base.actions, wanted, skipped)


def _told_by(calibration: Calibration, demonstrations: Sequence[Demonstration]) -> tuple[int, ...] | None:
    """The cameras that say of (nearly) all these demonstrations' own pictures that they are from here; None for all."""
    if not are_told_apart(calibration.base_medians, calibration.medians):
        return None
    telling = []
    for number, camera in enumerate(calibration.cameras):
        there, here = calibration.base_medians[number], calibration.medians[number]
        seen = np.concatenate([calibration.seen(d.images[camera][::5], number) for d in demonstrations])
        is_here = log_distance(seen, here) <= log_distance(seen, there)
        if are_told_apart([there], [here]) and is_here.mean() >= RELIABLE:
            telling.append(number)
    return None if len(telling) == len(calibration.cameras) else tuple(telling)


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
        here = tried(camera, reasons, lambda c=camera, p=positions, b=own: fit_camera(demonstrations, c, p, b))
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
    waits = _waits(demonstrations, facts, skipped) if "delay" in wanted else []
    found = replace(
        calibration,
        actions=facts,
        ratio=ratio,
        limit=np.abs(commands).max(axis=0) if ratio is not None else None,
        delay=sum(wait.delay for wait in waits if wait.command == facts.gripper_command),
        middle=middles(demonstrations, facts.gripper_state, facts.gripper_command) if facts.grippers else (0.0, 0.0),
        held=held_commands(demonstrations, facts),
        full=facts.limit if (facts.limit != 1).any() else None,
        other_grippers=[wait for wait in waits if wait.command != facts.gripper_command],
    )
    skipped.update(_not_followed(demonstrations, facts, found.held, wanted))
    if "timing" not in wanted:
        return found
    if base.speeds is None:
        skipped["timing"] = base.unknown.get("timing", "the base's facts hold no speeds")
        return found
    converted = [replace(d, actions=_in_base_convention(d.actions, found)) for d in demonstrations]
    speeds = tried("timing", skipped, lambda: measure_speeds(converted, facts))
    return replace(found, timing=fit_timing(base.speeds, speeds)) if speeds is not None else found


def _waits(demonstrations: Sequence[Demonstration], facts: ActionFacts, skipped: dict[str, str]) -> list[Wait]:
    """The grippers that are later here than the base's."""
    if not facts.grippers:
        skipped["delay"] = str(NotIdentified("the base's facts name no gripper", GRIPPER_STATE))
    found = []
    for number, gripper in enumerate(facts.grippers):
        part = "delay" if number == 0 else f"delay of the gripper of action dimension {gripper.command}"
        own = tried(part, skipped, lambda g=gripper: fit_delay(demonstrations, g))
        if own is not None and own > gripper.delay:
            middle = middles(demonstrations, gripper.state, gripper.command)
            found.append(Wait(gripper.state, gripper.command, gripper.sign, own - gripper.delay, middle))
    return found


def _not_followed(
    demonstrations: Sequence[Demonstration], facts: ActionFacts, held: Sequence[int], wanted: Sequence[str]
) -> dict[str, str]:
    """What the first gripper is asked about and others are not, by the part that leaves it out."""
    others = [other.command for other in facts.others]
    switching = [i for i in switching_commands(demonstrations, held) if i not in others]
    unknown = [i for i in switching if not _is_constant(demonstrations, i)]
    found = {}
    if unknown and facts.grippers and {"delay", "timing"} & set(wanted):
        found["delay and timing of other grippers"] = (
            f"action dimension(s) {', '.join(map(str, unknown))} switch as a gripper does, but in the base's domain no "
            "state answered them: they are held, but neither waited for nor timed, as the gripper of dimension "
            f"{facts.gripper_command} is"
        )
    if others and "timing" in wanted:
        found["timing of other grippers"] = (
            f"how fast the arms move is told by the gripper of action dimension {facts.gripper_command} alone, not by "
            f"that of {', '.join(map(str, others))}"
        )
    return found


def _is_constant(demonstrations: Sequence[Demonstration], command: int) -> bool:
    return len({value for d in demonstrations for value in np.unique(d.actions[:, command]).tolist()}) < 2


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
