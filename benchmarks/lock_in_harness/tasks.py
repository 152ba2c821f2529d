"""The tasks of the benchmark, in two lists that were fixed before its first run.

Methods, options and recipes are chosen by looking at `TUNE` only; `REPORT` is for the published figures. The lists
share no task, no arrangement of objects and no evaluation scene. `TUNE[0]` is sample_data's own task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vla_cli.errors import ConfigError
from vla_cli.worlds.tabletop.scene import Layout, Task

Purpose = Literal["tune", "report"]


@dataclass(frozen=True)
class BenchTask:
    """One demonstrated instruction and the table it is shown on.

    Attributes:
        purpose: which list it belongs to.
        index: its place in that list.
        layout: four objects in four cells.
        task: what is demonstrated.
    """

    purpose: Purpose
    index: int
    layout: Layout
    task: Task

    @property
    def name(self) -> str:
        """As in `--tasks`: "report:0"."""
        return f"{self.purpose}:{self.index}"

    def evaluation_seed(self, seed: int) -> int:
        """Seed of scenes and noise: of its own for each list, task and seed, the same for every method and shift.

        Were it shared between tasks, their base-domain episodes would be the same ones, counted several times.
        """
        return {"tune": 10_000, "report": 20_000}[self.purpose] + 100 * self.index + seed

    def data_seed(self, seed: int) -> list[int]:
        """Seed of the demonstrations."""
        return [{"tune": 1, "report": 2}[self.purpose], self.index, seed]


def _bench(purpose: Purpose, index: int, objects: str, cells: tuple[int, ...], plate: str) -> BenchTask:
    """The first of the objects ("red block, blue ball, ...") is the one demonstrated."""
    pairs = tuple((words.split()[0], words.split()[1]) for words in objects.split(","))
    return BenchTask(purpose, index, Layout(pairs, cells), Task("put", *pairs[0], plate))


TUNE: tuple[BenchTask, ...] = (
    _bench("tune", 0, "red block, blue ball, green wedge, yellow ball", (1, 3, 5, 7), "left"),
    _bench("tune", 1, "cyan ball, red wedge, purple block, green ball", (0, 5, 2, 6), "back"),
    _bench("tune", 2, "purple wedge, yellow block, blue wedge, red ball", (8, 1, 6, 3), "front"),
)

REPORT: tuple[BenchTask, ...] = (
    _bench("report", 0, "green ball, purple wedge, red ball, cyan block", (2, 0, 7, 3), "right"),
    _bench("report", 1, "yellow wedge, cyan ball, blue block, purple ball", (3, 8, 1, 5), "back"),
    _bench("report", 2, "blue block, green wedge, yellow ball, red wedge", (7, 5, 0, 2), "left"),
)

LISTS: dict[str, tuple[BenchTask, ...]] = {"tune": TUNE, "report": REPORT}


def choose_tasks(text: str) -> tuple[BenchTask, ...]:
    """Tasks by name: "report", "tune", "0,2" (of the report list) or "tune:1".

    Raises:
        ConfigError: there is no such task.
    """
    found: list[BenchTask] = []
    for part in text.split(","):
        purpose, colon, index = part.strip().partition(":")
        if purpose.isdigit() and not colon:
            purpose, colon, index = "report", ":", purpose
        tasks = LISTS.get(purpose, ())
        if not tasks or (colon and not (index.isdigit() and int(index) < len(tasks))):
            raise ConfigError(
                f"There is no task '{part}'", expected="report, tune, an index of the report list, or e.g. tune:1"
            )
        found += [tasks[int(index)]] if colon else tasks
    return tuple(dict.fromkeys(found))
