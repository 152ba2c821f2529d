"""What calibration needs to know about a base's own domain: `domain.json` beside the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.calibration.action import ActionFacts, measure_actions
from vla_cli.calibration.bars import without_bars
from vla_cli.calibration.camera import CameraMap, fit_camera
from vla_cli.calibration.look import Look, measure_look
from vla_cli.calibration.robust import tried
from vla_cli.calibration.timing import Speeds, measure_speeds
from vla_cli.calibration.tint import tint_of
from vla_cli.dataset import Demonstration
from vla_cli.errors import InputError
from vla_cli.files import read_json, write_json

FILE_NAME = "domain.json"


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
    actions = tried("action", unknown, lambda: measure_actions(demonstrations))
    looks: list[Look | None] = []
    maps: list[CameraMap | None] = []
    for camera in cameras:
        videos = without_bars([d.images[camera] for d in demonstrations])
        looks.append(tried(f"look of {camera}", unknown, lambda videos=videos: measure_look(videos)))
        maps.append(
            tried(f"camera {camera}", unknown, lambda c=camera: fit_camera(demonstrations, c, actions.positions))
            if actions
            else None
        )
    medians = [tint_of([d.images[c] for d in demonstrations]) for c in cameras]
    speeds = tried("timing", unknown, lambda: measure_speeds(demonstrations, actions)) if actions else None
    return DomainFacts(looks, maps, medians, actions, speeds, unknown)


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
