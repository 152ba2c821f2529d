"""Which cells there are, in which order they are filled, by how many processes, and until when.

Seed 0 of every task, shift and row comes before seed 1, and every shift of a task before the next task: whenever a run
is stopped, what is there compares all rows with each other.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from multiprocessing import get_context

from lock_in_harness.cells import Cell
from lock_in_harness.jobs import Job, Place, jobs_for, run_job
from lock_in_harness.rows import MethodRow, RowsFile
from lock_in_harness.tasks import BenchTask
from vla_cli.errors import ConfigError
from vla_cli.worlds.tabletop.shifts import DOMAINS


@dataclass(frozen=True)
class Plan:
    """What a run covers.

    Attributes:
        rows, shifts, tasks, seeds: every combination is a cell, but for what `only` leaves out.
        episodes: a condition.
        steps: instead of the recipes' own, or None.
        only: labels of the rows that are run on a shift, where those are not all.
    """

    rows: tuple[MethodRow, ...]
    shifts: tuple[str, ...]
    tasks: tuple[BenchTask, ...]
    seeds: tuple[int, ...]
    episodes: int
    steps: int | None = None
    only: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def rows_on(self, shift: str) -> list[MethodRow]:
        """The rows that are run on a shift, in their order."""
        return [row for row in self.rows if row.label in self.only.get(shift, [row.label])]

    def check(self) -> None:
        """Refuse a plan that cannot be.

        Raises:
            ConfigError: an unknown shift, nothing to do, or fewer than one episode.
        """
        unknown = [shift for shift in self.shifts if shift not in DOMAINS or shift == "base"]
        if unknown:
            known = ", ".join(name for name in DOMAINS if name != "base")
            raise ConfigError(f"There is no shift '{unknown[0]}'", expected=f"some of {known}")
        if not (self.rows and self.shifts and self.tasks and self.seeds and self.episodes > 0):
            raise ConfigError("The selection is empty", expected="rows, shifts, tasks, seeds and episodes")


@dataclass
class Outcome:
    """How a run ended.

    Attributes:
        finished: cells filled in this run.
        failed: job name to the error's text.
        ended: jobs that came to an end, well or not.
        left: jobs not begun because time was up.
    """

    finished: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    ended: int = 0
    left: int = 0


def jobs_of(plan: Plan, rows_file: RowsFile, place: Place) -> list[Job]:
    """Every job of a plan, most informative first."""
    return [
        job
        for seed in plan.seeds
        for task in plan.tasks
        for shift in plan.shifts
        for job in jobs_for(
            place, rows_file, plan.rows_on(shift), task, shift, seed, episodes=plan.episodes, steps=plan.steps
        )
    ]


Run = Callable[[Place, Job, Callable[[Cell], None], Callable[[], bool]], None]


def run_all(
    jobs: Sequence[Job],
    place: Place,
    *,
    workers: int,
    budget_seconds: float | None,
    say: Callable[[str], None],
    run: Run = run_job,
) -> Outcome:
    """Fill the cells that are not there yet.

    Args:
        jobs: in order.
        place: where.
        workers: processes; 1 works in this one.
        budget_seconds: after so long no new cell is begun; None for no limit.
        say: told a line after every job.
        run: does one job (tests put their own).

    Returns:
        What became of it; a job that fails is named there, and the others go on.
    """
    waiting = [job for job in jobs if not all(cell.done(place.work) for cell in job.cells)]
    skipped = len(jobs) - len(waiting)
    say(f"{sum(len(job.cells) for job in jobs)} cells, {len(waiting)} jobs to do, {skipped} finished before")
    until = None if budget_seconds is None else time.time() + budget_seconds
    outcome = Outcome()
    if workers <= 1:
        _run_here(waiting, place, until, say, run, outcome)
    else:
        _run_apart(waiting, place, workers, until, say, run, outcome)
    outcome.left = len(waiting) - outcome.ended
    return outcome


def _late(until: float | None) -> bool:
    return until is not None and time.time() >= until


def _run_here(
    waiting: Sequence[Job],
    place: Place,
    until: float | None,
    say: Callable[[str], None],
    run: Run,
    outcome: Outcome,
) -> None:
    prepare_worker()
    for job in waiting:
        if _late(until):
            return
        _note(outcome, job, _work(place, job, until, run), len(waiting), say)


def _run_apart(
    waiting: Sequence[Job],
    place: Place,
    workers: int,
    until: float | None,
    say: Callable[[str], None],
    run: Run,
    outcome: Outcome,
) -> None:
    """As many jobs in flight as workers, so that none begins after time is up."""
    queue, flying = list(waiting), dict[Future[tuple[list[str], str]], Job]()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=prepare_worker) as pool:
        while queue or flying:
            while queue and len(flying) < workers and not _late(until):
                job = queue.pop(0)
                flying[pool.submit(_work, place, job, until, run)] = job
            if not flying:
                return
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                job = flying.pop(future)
                _note(outcome, job, future.result(), len(waiting), say)


def prepare_worker() -> None:
    """One torch thread, and no deprecations of transformers and peft: they are no business of who reads figures."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Found missing adapter keys")


def _work(place: Place, job: Job, until: float | None, run: Run) -> tuple[list[str], str]:
    """Do one job: a line for each cell finished, and the error's text if it failed."""
    lines: list[str] = []
    try:
        run(place, job, lambda cell: lines.append(_line(cell, place)), lambda: _late(until))
    except Exception as error:
        # whatever one method does wrong, the others are still worth their figures
        return lines, f"{type(error).__name__}: {error}"
    return lines, ""


def _line(cell: Cell, place: Place) -> str:
    result = cell.load(place.work)
    shares = " ".join(
        f"{condition.removeprefix('novel-')} {100 * outcomes['success'].count('1') / cell.episodes:.0f}"
        for condition, outcomes in result["conditions"].items()
    )
    seconds = result["seconds"]
    times = f"train {seconds['train']:.0f} s, evaluate {seconds['evaluate']:.0f} s"
    return f"{cell.shift} {cell.task.name} seed {cell.seed} {cell.row.label}: {shares} ({times})"


def _note(outcome: Outcome, job: Job, found: tuple[list[str], str], total: int, say: Callable[[str], None]) -> None:
    lines, error = found
    outcome.finished += len(lines)
    outcome.ended += 1
    for line in lines:
        say(f"[{outcome.ended}/{total}] {line}")
    if error:
        outcome.failed[job.name] = error
        say(f"[{outcome.ended}/{total}] {job.name}: FAILED, {error}")
