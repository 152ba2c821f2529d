"""Calibrate before you fine-tune: bring the deployment to the base policy, instead of the weights to the deployment.

A camera that hangs elsewhere, another light, another table, an arm that answers more weakly or later, a task that must
be done more gently: weights can learn all that from demonstrations of one instruction, and go deaf while they do. A few
explicit transforms do it without touching a weight:

    look      table, lighting and colours          calibration.look
    camera    where the robot appears              calibration.camera
    action    displacement per command             calibration.action
    delay     how late the gripper follows         calibration.action
    timing    how fast a planned path is followed  calibration.timing

Each is fitted to demonstrations against a few facts about the base's own domain (`domain.json` beside the base, or
measured from base-domain data), applied at the policy's inputs and outputs, written to `policy.json` in numbers that a
person can read, and left out, with its reason, where the demonstrations do not determine it. Nothing here knows a
simulator.

The transforms hold for the deployment they were fitted in. A picture whose median colour is nearer to the base's own
domain is left alone, so that the same policy still serves there; where the two cannot be told apart, or the user says
that the policy serves nowhere else, they stay on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.calibration.action import (
    ActionFacts,
    fit_delay,
    fit_gain,
    from_base,
    held_commands,
    invertible,
    measure_actions,
    to_base,
    wait_for_gripper,
)
from vla_cli.calibration.bars import NO_BARS, Bars, find_bars, within
from vla_cli.calibration.camera import CameraMap, fit_camera, warp
from vla_cli.calibration.look import Look, LookTransform, fit_look, measure_look, median_colour
from vla_cli.calibration.robust import NotIdentified
from vla_cli.calibration.timing import Speeds, Timing, fit_timing, measure_speeds, middles, retime
from vla_cli.dataset import Demonstration
from vla_cli.errors import InputError
from vla_cli.files import read_json, write_json

FILE_NAME = "domain.json"
FOLDER = "calibration"
PARTS = ("look", "camera", "action", "delay", "timing")
TOLD_APART = 0.08
"""Log distance of the domains' median colours below which they cannot be told apart by a picture."""
ALWAYS, BY_PICTURE = "always", "pictures nearer to this deployment's median colour"
"""When the transforms are on, as `policy.json` says it."""
NEARLY_ONE = 0.02
"""Gains that differ by less than this from the base's are the base's. Maps have no such limit: a picture is redrawn."""


@dataclass(frozen=True)
class DomainFacts:
    """What calibration needs to know about the base's own domain: a few numbers, shipped beside the base.

    Attributes:
        looks: one a camera, in the policy's order; None where it could not be measured.
        cameras: maps, likewise.
        medians: [3] median colour of each camera's pictures.
        actions: how the robot answers to commands, or None.
        speeds: how fast it moves, or None.
        unknown: what could not be measured, and why.
    """

    looks: list[Look | None]
    cameras: list[CameraMap | None]
    medians: list[np.ndarray]
    actions: ActionFacts | None
    speeds: Speeds | None
    unknown: dict[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "looks": [look.document() if look else None for look in self.looks],
            "cameras": [camera.document() if camera else None for camera in self.cameras],
            "medians": [median.round(2).tolist() for median in self.medians],
            "actions": self.actions.document() if self.actions else None,
            "speeds": self.speeds.document() if self.speeds else None,
            "unknown": self.unknown,
        }

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> DomainFacts:
        """Inverse of `document`."""
        return cls(
            looks=[Look.from_document(d) if d else None for d in document["looks"]],
            cameras=[CameraMap.from_document(d) if d else None for d in document["cameras"]],
            medians=[np.array(m, float) for m in document["medians"]],
            actions=ActionFacts.from_document(document["actions"]) if document["actions"] else None,
            speeds=Speeds(**document["speeds"]) if document["speeds"] else None,
            unknown=document["unknown"],
        )


def measure_domain(demonstrations: Sequence[Demonstration], cameras: Sequence[str]) -> DomainFacts:
    """Measure the facts of a base's own domain from base-domain episodes over many tasks.

    Args:
        demonstrations: episodes of the base's own domain.
        cameras: in the policy's order.
    """
    unknown: dict[str, str] = {}
    actions = _tried("action", unknown, lambda: measure_actions(demonstrations))
    looks: list[Look | None] = []
    maps: list[CameraMap | None] = []
    for camera in cameras:
        videos = _within_bars(demonstrations, camera)
        looks.append(_tried(f"look of {camera}", unknown, lambda videos=videos: measure_look(videos)))
        maps.append(
            _tried(f"camera {camera}", unknown, lambda c=camera: fit_camera(demonstrations, c, actions.positions))
            if actions
            else None
        )
    medians = [_median(demonstrations, c) for c in cameras]
    speeds = _tried("timing", unknown, lambda: measure_speeds(demonstrations, actions)) if actions else None
    return DomainFacts(looks, maps, medians, actions, speeds, unknown)


def _median(demonstrations: Sequence[Demonstration], camera: str) -> np.ndarray:
    """Median colour [3] of a camera's pictures, of the saturated pixels too where hardly any other is left."""
    pictures = np.concatenate([d.images[camera][::5] for d in demonstrations])
    try:
        return median_colour(pictures)
    except NotIdentified:
        return np.median(pictures.reshape(-1, 3), axis=0).astype(np.float64)


def _within_bars(demonstrations: Sequence[Demonstration], camera: str) -> list[np.ndarray]:
    """A camera's videos [T, H, W, 3] without bars."""
    videos = [d.images[camera] for d in demonstrations]
    bars = find_bars(videos)
    return [within(video, bars) for video in videos]


def save_domain(facts: DomainFacts, directory: Path) -> None:
    """Write `domain.json` into a base's directory."""
    write_json(directory / FILE_NAME, facts.document())


def load_domain(directory: Path) -> DomainFacts | None:
    """Read a base's `domain.json`; None where there is none.

    Raises:
        InputError: it is malformed.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        return None
    try:
        return DomainFacts.from_document(read_json(path))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is malformed ({error!r})", hint="measure it again from base-domain data") from None


def _tried(what: str, reasons: dict[str, str], measure: Callable[[], Any]) -> Any:
    """What `measure` returns, or None with its reason noted."""
    try:
        return measure()
    except NotIdentified as refused:
        reasons[what] = str(refused)
        return None


@dataclass(frozen=True)
class Calibration:
    """The transforms of one deployment; see the module's docstring.

    Attributes:
        cameras: names, in the policy's order.
        image_size: (height, width) of the pictures it was fitted to.
        looks: a transform a camera, None where the look is left alone.
        warps: (base's map, this deployment's map) a camera, None where the picture is not redrawn.
        actions: the base's answers to commands; None when no command is changed.
        ratio: [K, K] this robot's commands times this are the base's; None where commands are left alone.
        limit: [K] largest command seen here.
        delay: further control steps that the gripper needs.
        timing: speeds at which planned paths are followed.
        middle: half-way value of the gripper's state and of its command.
        base_medians, medians: [3] a camera, by which the domains are told apart.
        skipped: part to the reason why it was left out.
        bars: black bars around each camera's pictures; empty where no picture has any.
        held: action dimensions beside the gripper's that are values to be held, and no changes.
        only_here: the policy serves in this deployment alone: the transforms are on, whatever the picture looks like.
    """

    cameras: list[str]
    image_size: tuple[int, int]
    looks: list[LookTransform | None]
    warps: list[tuple[CameraMap, CameraMap] | None]
    actions: ActionFacts | None
    ratio: np.ndarray | None
    limit: np.ndarray | None
    delay: int
    timing: Timing
    middle: tuple[float, float]
    base_medians: list[np.ndarray]
    medians: list[np.ndarray]
    skipped: dict[str, str] = field(default_factory=dict)
    bars: list[Bars] = field(default_factory=list)
    held: tuple[int, ...] = ()
    only_here: bool = False

    @property
    def parts(self) -> list[str]:
        """The parts that change something."""
        on = {
            "look": any(look is not None for look in self.looks),
            "camera": any(w is not None for w in self.warps),
            "action": self.ratio is not None,
            "delay": self.delay > 0,
            "timing": not self.timing.is_identity,
        }
        return [part for part in PARTS if on[part]]

    @property
    def by_picture(self) -> bool:
        """Whether a picture decides if the transforms are on."""
        return not self.only_here and are_told_apart(self.base_medians, self.medians)

    def is_here(self, images: np.ndarray) -> np.ndarray:
        """[B] bool: which observations [B, C, H, W, 3] are from this deployment, not from the base's own domain."""
        if not self.by_picture:
            return np.ones(len(images), bool)
        seen = np.stack([self._seen(images[:, c], c) for c in range(len(self.cameras))], axis=1)
        to_base = sum(_log_distance(seen[:, c], m) for c, m in enumerate(self.base_medians))
        to_here = sum(_log_distance(seen[:, c], m) for c, m in enumerate(self.medians))
        return np.asarray(to_here <= to_base)

    def _seen(self, images: np.ndarray, camera: int) -> np.ndarray:
        """Median colour [B, 3] of one camera's images [B, H, W, 3], within bars."""
        inner = within(images, self._bars_of(camera))
        return np.asarray(np.median(inner.reshape(len(images), -1, 3), axis=1))

    def _bars_of(self, camera: int) -> Bars:
        return self.bars[camera] if self.bars else NO_BARS

    def closed(self, state: np.ndarray) -> np.ndarray:
        """[B] bool: whether the gripper's state [B, S] says that it is closed; False where no gripper is known."""
        if self.actions is None or self.actions.gripper_state < 0:
            return np.zeros(len(state), bool)
        return np.asarray(state[:, self.actions.gripper_state] > self.middle[0])

    def observe(self, images: np.ndarray) -> np.ndarray:
        """Images of this deployment [B, C, H, W, 3] uint8, as the base would see them; uint8 of the same shape."""
        found = np.empty_like(images)
        for c, (look, maps) in enumerate(zip(self.looks, self.warps, strict=True)):
            pixels, bars = images[:, c].astype(np.float32), self._bars_of(c)
            if look is not None:
                within(pixels, bars)[:] = look.apply(within(images[:, c], bars))
            if maps is not None:
                pixels = warp(pixels, *maps, bars)
            found[:, c] = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
        return found

    def command(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The base's chunks [B, T, A] as commands for this robot.

        Args:
            actions: raw units, in the base's convention.
            state: [B, S] raw units, now.
        """
        facts = self.actions
        if facts is None:
            return actions
        closed = self.closed(state)
        if not self.timing.is_identity:
            actions = retime(
                actions,
                closed,
                self.timing,
                commands=facts.commands,
                gripper=facts.gripper_command,
                sign=facts.gripper_sign,
                middle=self.middle[1],
                held=self.held,
            )
        if self.ratio is not None and self.limit is not None:
            actions = from_base(actions, self.ratio, facts.commands, self.limit)
        if self.delay > 0:
            above = closed if facts.gripper_sign > 0 else ~closed
            actions = wait_for_gripper(actions, above, self.delay, facts.gripper_command, self.middle[1], self.held)
        return actions

    def demonstration(self, found: Demonstration) -> Demonstration:
        """A demonstration as the base would have seen and commanded it."""
        images = np.stack([found.images[c] for c in self.cameras], axis=1)
        seen = self.observe(images)
        actions = found.actions
        if self.actions is not None and self.ratio is not None:
            actions = to_base(actions, self.ratio, self.actions.commands)
        if self.actions is not None and self.delay > 0:
            # the base's gripper acts in the step of its command: name the command when it takes effect
            late = np.maximum(np.arange(len(actions)) - self.delay, 0)
            actions = actions.copy()
            actions[:, self.actions.gripper_command] = found.actions[late, self.actions.gripper_command]
        return replace(found, images={c: seen[:, i] for i, c in enumerate(self.cameras)}, actions=actions)

    def document(self) -> dict[str, Any]:
        """What `policy.json` says: every number but the pictures of the table, which lie beside it."""
        facts = self.actions
        return {
            "parts": self.parts,
            "skipped": self.skipped,
            "cameras": self.cameras,
            "image_size": list(self.image_size),
            "looks": [look.document() if look else None for look in self.looks],
            "warps": [[m.document() for m in maps] if maps else None for maps in self.warps],
            "actions": facts.document() if facts else None,
            "ratio": self.ratio.round(6).tolist() if self.ratio is not None else None,
            "limit": self.limit.astype(float).round(6).tolist() if self.limit is not None else None,
            "delay": self.delay,
            "timing": self.timing.document(),
            "gripper_middle": list(self.middle),
            "base_medians": [m.round(2).tolist() for m in self.base_medians],
            "medians": [m.round(2).tolist() for m in self.medians],
            "on": BY_PICTURE if self.by_picture else ALWAYS,
            **({"bars": [list(bars) for bars in self.bars]} if self.bars else {}),
            **({"held": list(self.held)} if self.held else {}),
        }

    def save(self, directory: Path) -> None:
        """Write the pictures of the bare tables as `calibration/table_<camera>.png` (clear where never seen)."""
        for camera, look in zip(self.cameras, self.looks, strict=True):
            if look is not None and look.backdrop is not None:
                folder = directory / FOLDER
                folder.mkdir(exist_ok=True)
                look.save_backdrop(folder / f"table_{camera}.png")

    @classmethod
    def load(cls, document: dict[str, Any], directory: Path) -> Calibration:
        """Inverse of `document` and `save`.

        Raises:
            InputError: a number or a picture is missing or malformed.
        """
        try:
            looks = [
                LookTransform.load(look, directory / FOLDER / f"table_{camera}.png") if look else None
                for camera, look in zip(document["cameras"], document["looks"], strict=True)
            ]
            warps = [tuple(map(CameraMap.from_document, w)) if w else None for w in document["warps"]]
            return cls(
                cameras=document["cameras"],
                image_size=(int(document["image_size"][0]), int(document["image_size"][1])),
                looks=looks,
                warps=warps,  # type: ignore[arg-type]  # pairs, by construction
                actions=ActionFacts.from_document(document["actions"]) if document["actions"] else None,
                ratio=np.array(document["ratio"], float) if document["ratio"] is not None else None,
                limit=np.array(document["limit"], float) if document["limit"] is not None else None,
                delay=int(document["delay"]),
                timing=Timing(**document["timing"]),
                middle=(float(document["gripper_middle"][0]), float(document["gripper_middle"][1])),
                base_medians=[np.array(m, float) for m in document["base_medians"]],
                medians=[np.array(m, float) for m in document["medians"]],
                skipped=document["skipped"],
                bars=[(int(a), int(b), int(c), int(d)) for a, b, c, d in document.get("bars", [])],
                held=tuple(int(i) for i in document.get("held", [])),
                only_here=_is_always(document.get("on", BY_PICTURE)),
            )
        except (AttributeError, KeyError, TypeError, ValueError, OSError, IndexError) as error:
            raise InputError(
                f"The calibration in {directory} is malformed ({error!r})", hint="vla finetune again"
            ) from None


def are_told_apart(base_medians: Sequence[Any], medians: Sequence[Any]) -> bool:
    """Whether the median colours [3] of two domains, one a camera, say which of them a picture is from."""
    pairs = zip(np.array(base_medians, float), np.array(medians, float), strict=True)
    return bool(max(_log_distance(a, b) for a, b in pairs) > TOLD_APART)


def _is_always(when: Any) -> bool:
    if when not in (ALWAYS, BY_PICTURE):
        raise ValueError(f"on is {when}, neither {ALWAYS} nor {BY_PICTURE}")
    return bool(when == ALWAYS)


def _log_distance(a: np.ndarray, b: np.ndarray) -> Any:
    return np.abs(np.log(a + 4.0) - np.log(b + 4.0)).max(-1)


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
        medians=[_median(demonstrations, c) for c in cameras],
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
        videos = _within_bars(demonstrations, camera)
        found.append(_tried(camera, reasons, lambda v=videos, b=look: fit_look(v, b)))
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
        here = _tried(camera, reasons, lambda c=camera, p=positions: fit_camera(demonstrations, c, p))
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
        ratio = _tried("action", skipped, lambda: _ratio(demonstrations, facts))
        if ratio is not None and np.abs(ratio - np.eye(len(ratio))).max() < NEARLY_ONE:
            ratio = None
    delay = 0
    if "delay" in wanted:
        own = _tried("delay", skipped, lambda: fit_delay(demonstrations, facts))
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
    speeds = _tried("timing", skipped, lambda: measure_speeds(converted, facts))
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
