"""What stands on the table and what may be asked: objects, plates, layouts, tasks and their phrasings.

Arrays carry a leading batch axis B; positions are table coordinates in [0, 1], x to the right, y away from the viewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "green": (0.10, 0.60, 0.18),
    "blue": (0.12, 0.25, 0.85),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.55, 0.15, 0.65),
    "cyan": (0.10, 0.75, 0.80),
}
SHAPES = ("block", "ball", "wedge")
PLATES: dict[str, tuple[float, float]] = {
    "left": (0.10, 0.50),
    "right": (0.90, 0.50),
    "front": (0.50, 0.10),
    "back": (0.50, 0.90),
}
OBJECTS_PER_SCENE = 4
CELLS = np.array([(x, y) for y in (0.30, 0.50, 0.70) for x in (0.30, 0.50, 0.70)])
"""[9, 2] centres of the grid on which objects stand."""
JITTER = 0.035
"""Half-width in metres of the uniform jitter of objects and plates."""

PUT_PHRASINGS = (
    "put the {colour} {shape} on the {plate} plate",
    "place the {colour} {shape} on the {plate} plate",
    "move the {colour} {shape} to the {plate} plate",
    "set the {colour} {shape} down on the {plate} plate",
    "bring the {colour} {shape} over to the {plate} plate",
    "take the {colour} {shape} and leave it on the {plate} plate",
)
PICK_PHRASINGS = (
    "pick up the {colour} {shape}",
    "grab the {colour} {shape}",
    "lift the {colour} {shape}",
    "hold the {colour} {shape} up",
)

Verb = Literal["put", "pick"]


@dataclass(frozen=True)
class Task:
    """One thing to do: which object, and for "put" onto which plate.

    Attributes:
        verb: "put" (onto a plate) or "pick" (and hold).
        colour: a key of `COLOURS`.
        shape: one of `SHAPES`.
        plate: a key of `PLATES`; empty for "pick".
    """

    verb: Verb
    colour: str
    shape: str
    plate: str = ""

    @property
    def phrasings(self) -> tuple[str, ...]:
        """All ways of saying it; the first is the one demonstrations use."""
        templates = PUT_PHRASINGS if self.verb == "put" else PICK_PHRASINGS
        return tuple(t.format(colour=self.colour, shape=self.shape, plate=self.plate) for t in templates)

    @property
    def plate_index(self) -> int:
        """Index of the named plate, or -1."""
        return list(PLATES).index(self.plate) if self.plate else -1

    def document(self) -> dict[str, str]:
        """As JSON values."""
        return {"verb": self.verb, "colour": self.colour, "shape": self.shape, "plate": self.plate}


ALL_PHRASINGS = tuple(
    phrase
    for colour in COLOURS
    for shape in SHAPES
    for task in (*(Task("put", colour, shape, plate) for plate in PLATES), Task("pick", colour, shape))
    for phrase in task.phrasings
)


@dataclass(frozen=True)
class Scene:
    """One episode's start.

    Attributes:
        objects: (colour, shape) of each object, four of them, all different.
        object_xy: [4, 2] float64 positions.
        plate_xy: [4, 2] float64 positions, in the order of `PLATES`.
        gripper_xy: [2] float64 start of the gripper, which is open.
    """

    objects: tuple[tuple[str, str], ...]
    object_xy: np.ndarray
    plate_xy: np.ndarray
    gripper_xy: np.ndarray

    def index_of(self, task: Task) -> int:
        """Index of the object a task names."""
        return self.objects.index((task.colour, task.shape))


@dataclass(frozen=True)
class Layout:
    """How scenes are drawn: narrow (the same objects in the same cells, as a lab records) or random (None).

    Attributes:
        objects: fixed objects, or None for four different ones drawn at random.
        cells: the cell index of each fixed object.
    """

    objects: tuple[tuple[str, str], ...] | None = None
    cells: tuple[int, ...] = ()

    @property
    def narrow(self) -> bool:
        """Whether objects and cells are fixed."""
        return self.objects is not None

    def draw(self, rng: np.random.Generator) -> Scene:
        """Draw one scene."""
        if self.objects is None:
            pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES]
            picked = rng.choice(len(pairs), OBJECTS_PER_SCENE, replace=False)
            objects = tuple(pairs[i] for i in picked)
            cells = rng.choice(len(CELLS), OBJECTS_PER_SCENE, replace=False)
            gripper = rng.uniform(0.2, 0.8, 2)
        else:
            objects, cells = self.objects, np.array(self.cells)
            gripper = rng.uniform(0.44, 0.56, 2)
        return Scene(
            objects=objects,
            object_xy=CELLS[cells] + rng.uniform(-JITTER, JITTER, (OBJECTS_PER_SCENE, 2)),
            plate_xy=np.array(list(PLATES.values())) + rng.uniform(-JITTER, JITTER, (len(PLATES), 2)),
            gripper_xy=gripper,
        )

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {"objects": [list(o) for o in self.objects or ()], "cells": list(self.cells)}


def layout_from(document: dict[str, Any]) -> Layout:
    """The inverse of `Layout.document`."""
    objects = tuple((str(c), str(s)) for c, s in document.get("objects", ()))
    return Layout(objects=objects or None, cells=tuple(int(c) for c in document.get("cells", ())))


def draw_task(scene: Scene, rng: np.random.Generator, pick_share: float = 0.25) -> Task:
    """Draw a task about an object of the scene."""
    colour, shape = scene.objects[rng.integers(len(scene.objects))]
    if rng.random() < pick_share:
        return Task("pick", colour, shape)
    return Task("put", colour, shape, list(PLATES)[rng.integers(len(PLATES))])
