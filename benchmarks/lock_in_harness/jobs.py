"""One job: fine-tune once, and evaluate every row that uses the adapter. It runs in a process of its own.

WORK/recipes/<label>-<digest>/<row name>.yaml    the recipe as the stage reads it
WORK/adapters/<digest>/                          what finetune wrote
WORK/adapters/<digest>.json                      its wall and CPU seconds; written last: without it, train again
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from lock_in_harness.cells import CONDITIONS, METRICS, Cell, digest_of, outcome_string
from lock_in_harness.data import REPLAY_LOG, data_document, dataset_for, replay_dataset
from lock_in_harness.rows import MethodRow, RowsFile, recipe_keys, resolve
from lock_in_harness.tasks import BenchTask
from vla_cli.configs import FinetuneConfig
from vla_cli.files import digest_file, read_json, write_json, write_text
from vla_cli.guidance import choose
from vla_cli.policies import POLICIES
from vla_cli.stages import finetune
from vla_cli.suites import SUITES
from vla_cli.worlds.tabletop.scene import PLATES, Task
from vla_cli.worlds.tabletop.world import TabletopWorld, env_args


@dataclass(frozen=True)
class Place:
    """Where a run works and what it adapts.

    Attributes:
        work: the work directory.
        base: directory or hub id of the base policy.
        digest: of the base.
        keep_adapters: whether adapters stay on disk once their cells are done.
    """

    work: Path
    base: str
    digest: str
    keep_adapters: bool = True


@dataclass(frozen=True)
class Job:
    """Cells that share one adapter (or the base itself), in the order of the rows."""

    cells: tuple[Cell, ...]
    trainer: MethodRow
    recipe: Path | None

    @property
    def name(self) -> str:
        """Shift, task, seed and the rows."""
        first = self.cells[0]
        labels = ", ".join(cell.row.label for cell in self.cells)
        return f"{first.shift} {first.task.name} seed {first.seed} {labels}"


def training_document(
    place: Place, row: MethodRow, recipe: Path, task: BenchTask, shift: str, seed: int
) -> dict[str, Any]:
    """What determines a row's adapter, as JSON values."""
    return {
        "base": place.digest,
        "recipe": resolve(recipe),
        "data": data_document(task, shift, row.demos, seed),
        "replay": _replay_digest() if row.base_data else None,
        "seed": seed,
        **({"alternatives": alternatives(task)} if row.alternatives else {}),
    }


@lru_cache
def _replay_digest() -> str:
    return digest_file(REPLAY_LOG)


def write_recipe(place: Place, row: MethodRow, steps: int | None) -> Path:
    """A row's recipe as a YAML file; the stage takes the file's name for the recipe's."""
    keys = recipe_keys(row, steps)
    path = place.work / "recipes" / f"{row.label}-{digest_of(keys)}" / f"{row.name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        write_text(path, yaml.safe_dump(keys, sort_keys=False))
    return path


def alternatives(task: BenchTask) -> list[dict[str, str]]:
    """What else could be asked in a task's scenes: other objects while the gripper is empty, other places always."""
    shown = task.task
    found = [
        {"instruction": Task("put", shown.colour, shown.shape, plate).phrasings[0], "while": "always"}
        for plate in PLATES
        if plate != shown.plate
    ]
    for colour, shape in task.layout.objects or ():
        if (colour, shape) != (shown.colour, shown.shape):
            asked = [Task("put", colour, shape, plate) for plate in PLATES]
            found += [{"instruction": other.phrasings[0], "while": "empty"} for other in asked]
    return found


def jobs_for(
    place: Place,
    rows_file: RowsFile,
    rows: list[MethodRow],
    task: BenchTask,
    shift: str,
    seed: int,
    *,
    episodes: int,
    steps: int | None = None,
) -> list[Job]:
    """The jobs of one shift, task and seed, in the order of the rows."""
    groups: dict[str, Job] = {}
    for row in rows:
        trainer = rows_file.trained_by(row)
        recipe, training = None, None
        if trainer.train:
            recipe = write_recipe(place, trainer, steps)
            training = training_document(place, trainer, recipe, task, shift, seed)
        cell = Cell(row, shift, task, seed, episodes, training, place.digest)
        key = digest_of(training)
        before = groups[key].cells if key in groups else ()
        groups[key] = Job((*before, cell), groups[key].trainer if key in groups else trainer, recipe)
    return list(groups.values())


def run_job(place: Place, job: Job, tell: Callable[[Cell], None], late: Callable[[], bool]) -> None:
    """Fill the cells of a job that are not there yet; each is written as soon as it is known.

    Args:
        place: where.
        job: what.
        tell: called after every cell.
        late: whether no new cell is to be begun.

    Raises:
        VlaError: a stage refused.
    """
    waiting = [cell for cell in job.cells if not cell.done(place.work)]
    adapter: Path | None = None
    seconds = {"train": 0.0, "train_cpu": 0.0}
    for cell in waiting:
        if late():
            break
        if job.recipe is not None and adapter is None:
            adapter, seconds = _adapter(place, job, cell)
        begun = time.perf_counter()
        conditions = evaluate(place.base, adapter, cell)
        cell.save(place.work, conditions, {**seconds, "evaluate": round(time.perf_counter() - begun, 2)})
        tell(cell)
    if adapter is not None and not place.keep_adapters and all(cell.done(place.work) for cell in job.cells):
        adapter.with_suffix(".json").unlink()
        shutil.rmtree(adapter)


def _adapter(place: Place, job: Job, cell: Cell) -> tuple[Path, dict[str, float]]:
    """The adapter of a job, trained if it is not there, and how long that took."""
    assert job.recipe is not None
    row = job.trainer
    out = place.work / "adapters" / digest_of(cell.training)
    timing = out.with_suffix(".json")
    if not timing.is_file():
        config = FinetuneConfig(
            dataset=dataset_for(place.work, cell.task, cell.shift, row.demos, cell.seed),
            base=place.base,
            recipe=str(job.recipe),
            replay=replay_dataset(place.work) if row.base_data else None,
            alternatives=_alternatives_file(place, cell.task) if row.alternatives else None,
            out=out,
            seed=cell.seed,
            overwrite=True,
            device="cpu",
            threads=1,
        )
        wall, cpu = time.perf_counter(), time.process_time()
        finetune.run(config)
        spent = {"train": time.perf_counter() - wall, "train_cpu": time.process_time() - cpu}
        write_json(timing, {key: round(value, 2) for key, value in spent.items()})
    return out, read_json(timing)


def _alternatives_file(place: Place, task: BenchTask) -> Path:
    path = place.work / "alternatives" / f"{task.name.replace(':', '-')}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, yaml.safe_dump(alternatives(task), sort_keys=False))
    return path


def evaluate(base: str, adapter: Path | None, cell: Cell) -> dict[str, dict[str, str]]:
    """Closed-loop outcomes of one policy by condition and metric (see `cells`)."""
    policy = POLICIES.get("flow")(base, adapter, device="cpu")
    wish = cell.row.guidance
    guidance = choose(
        policy.spec.guidance, policy.spec.instructions, kind=wish.get("kind", "default"), weight=wish.get("weight")
    )
    world = TabletopWorld(cell.shift, env_args(cell.shift, cell.task.layout, cell.task.task))
    findings = SUITES.get("closed-loop")(
        {cell.row.label: policy},
        world,
        episodes=cell.episodes,
        seed=cell.task.evaluation_seed(cell.seed),
        conditions=list(CONDITIONS),
        films=0,
        guidance={cell.row.label: guidance},
    )
    found: dict[str, dict[str, str]] = {}
    for condition in CONDITIONS:
        rollouts = [rollout for rollout in findings.rollouts if rollout.condition == condition]
        facts = {"success": [r.success for r in rollouts], "grounding": [r.grounded for r in rollouts]}
        facts["locked"] = [r.locked for r in rollouts]
        found[condition] = {metric: outcome_string(facts[metric]) for metric in METRICS}
    return found
