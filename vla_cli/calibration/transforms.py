"""The transforms of one deployment: what they make of pictures and commands, and how they are written down."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.calibration.action import ActionFacts, from_base, to_base
from vla_cli.calibration.bars import NO_BARS, Bars, within
from vla_cli.calibration.camera import CameraMap, warp
from vla_cli.calibration.faults import faults
from vla_cli.calibration.grippers import Wait, wait_for_grippers
from vla_cli.calibration.held import changing
from vla_cli.calibration.look import LookTransform
from vla_cli.calibration.parts import parts_on
from vla_cli.calibration.timing import Timing, retime
from vla_cli.calibration.tint import ALWAYS, BY_PICTURE, are_told_apart, is_always, log_distance
from vla_cli.dataset import Demonstration
from vla_cli.errors import InputError

FOLDER = "calibration"


@dataclass(frozen=True)
class Calibration:
    """The transforms of one deployment.

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
        told_by: the cameras whose pictures tell the domains apart; None for all. A wrist camera's median colour follows
            what it passes over.
        full: [K] the base's largest command, of which speeds are shares; None where it is 1 in each.
        other_grippers: those beside the first that need further control steps.
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
    other_grippers: list[Wait] = field(default_factory=list)
    full: np.ndarray | None = None
    told_by: tuple[int, ...] | None = None

    @property
    def parts(self) -> list[str]:
        """The parts that change something."""
        return parts_on(
            looks=self.looks,
            warps=self.warps,
            ratio=self.ratio,
            delays=[wait.delay for wait in self.waits],
            limits=self.timing.document().values(),
        )

    @property
    def waits(self) -> list[Wait]:
        """The grippers that the arm waits for."""
        facts, found = self.actions, list(self.other_grippers)
        if facts is not None and self.delay > 0:
            found.insert(
                0, Wait(facts.gripper_state, facts.gripper_command, facts.gripper_sign, self.delay, self.middle)
            )
        return [wait for wait in found if wait.delay > 0]

    @property
    def by_picture(self) -> bool:
        """Whether a picture decides if the transforms are on."""
        return not self.only_here and self.told_by != () and are_told_apart(self.base_medians, self.medians)

    def is_here(self, images: np.ndarray) -> np.ndarray:
        """[B] bool: which observations [B, C, H, W, 3] are from this deployment, not from the base's own domain."""
        if not self.by_picture:
            return np.ones(len(images), bool)
        cameras = range(len(self.cameras)) if self.told_by is None else self.told_by
        seen = {c: self.seen(images[:, c], c) for c in cameras}
        to_base = sum(log_distance(seen[c], self.base_medians[c]) for c in cameras)
        to_here = sum(log_distance(seen[c], self.medians[c]) for c in cameras)
        return np.asarray(to_here <= to_base)

    def seen(self, images: np.ndarray, camera: int) -> np.ndarray:
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
                full=self.full,
            )
        if self.ratio is not None and self.limit is not None:
            actions = from_base(actions, self.ratio, facts.commands, self.limit)
        if self.waits:
            changes = changing(actions.shape[-1], facts.gripper_command, self.held)
            actions = wait_for_grippers(actions, state, self.waits, changes)
        return actions

    def demonstration(self, found: Demonstration) -> Demonstration:
        """A demonstration as the base would have seen and commanded it."""
        images = np.stack([found.images[c] for c in self.cameras], axis=1)
        seen = self.observe(images)
        actions = found.actions
        if self.actions is not None and self.ratio is not None:
            actions = to_base(actions, self.ratio, self.actions.commands)
        for wait in self.waits:
            # the base's gripper acts in the step of its command: name the command when it takes effect
            late = np.maximum(np.arange(len(actions)) - wait.delay, 0)
            actions = actions.copy()
            actions[:, wait.command] = found.actions[late, wait.command]
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
            **({"told_by": list(self.told_by)} if self.told_by is not None else {}),
            **({"full": self.full.tolist()} if self.full is not None else {}),
            **({"other_grippers": [asdict(wait) for wait in self.other_grippers]} if self.other_grippers else {}),
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
            InputError: a number or a picture is missing or malformed, or entries contradict each other.
        """
        try:
            looks = [
                LookTransform.load(look, directory / FOLDER / f"table_{camera}.png") if look else None
                for camera, look in zip(document["cameras"], document["looks"], strict=True)
            ]
            warps = [tuple(map(CameraMap.from_document, w)) if w else None for w in document["warps"]]
            found = cls(
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
                only_here=is_always(document.get("on", BY_PICTURE)),
                told_by=_numbers(document.get("told_by")),
                full=np.array(document["full"], float) if document.get("full") is not None else None,
                other_grippers=[
                    Wait(**{**wait, "middle": tuple(wait["middle"])}) for wait in document.get("other_grippers", [])
                ],
            )
        except (AttributeError, KeyError, TypeError, ValueError, OSError, IndexError) as error:
            raise InputError(
                f"The calibration in {directory} is malformed ({error!r})", hint="vla finetune again"
            ) from None
        if wrong := faults(found):
            raise InputError(
                f"The calibration in {directory} is malformed: {'; '.join(wrong)}",
                expected=f"entries that fit together in {directory / 'policy.json'}",
                hint="undo the edit (docs/calibration.md says how a part is taken out), or vla finetune again",
            )
        return found


def _numbers(values: list[Any] | None) -> tuple[int, ...] | None:
    return None if values is None else tuple(int(value) for value in values)
