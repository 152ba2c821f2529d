"""The lock-in benchmark: what fine-tuning on demonstrations of one instruction leaves of all the others.

    python benchmarks/lock_in.py --small                        under 15 minutes on two cores
    python benchmarks/lock_in.py                                the whole, into docs/lock_in.{json,md,svg}
    python benchmarks/lock_in.py --rows sft,lora --shifts V --tasks tune --seeds 0 --episodes 40
    python benchmarks/lock_in.py --continue docs/lock_in.json   the whole, but for the cells that are published there
    python benchmarks/lock_in.py --render                       docs/lock_in.{md,svg} again from docs/lock_in.json

Rows are methods (lock_in_rows.yaml), columns the kinds of instruction, and a cell is one row on one shift, task and
seed. Every finished cell is a file in the work directory: a run that was stopped, or ran out of --budget-minutes, goes
on where it was when it is called again. While choosing methods, look at --tasks tune only.

A run of a selection writes lock_in.{json,md,svg} into the work directory, the whole into docs; --out says otherwise.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lock_in_harness.cells import machine
from lock_in_harness.jobs import Place
from lock_in_harness.published import take_over
from lock_in_harness.render import markdown, svg
from lock_in_harness.results import Results, collect, load_results, save_results
from lock_in_harness.rows import ROWS_FILE, RowsFile, load_rows
from lock_in_harness.schedule import Plan, jobs_of, run_all
from lock_in_harness.tasks import choose_tasks

from vla_cli.errors import VlaError
from vla_cli.files import write_text
from vla_cli.policies.checkpoint import locate_base

DOCS = Path(__file__).resolve().parents[1] / "docs"
SESSIONS = "sessions.jsonl"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the small plan instead of the whole")
    parser.add_argument("--rows", help="labels, comma-separated; 'all' for every row")
    parser.add_argument("--rows-file", type=Path, default=ROWS_FILE, help="[benchmarks/lock_in_rows.yaml]")
    parser.add_argument("--shifts", help="comma-separated, e.g. V,W")
    parser.add_argument("--tasks", help="report, tune, indices of the report list (0,2), or e.g. tune:1")
    parser.add_argument("--seeds", help="comma-separated")
    parser.add_argument("--episodes", type=int, help="a condition")
    parser.add_argument("--steps", type=int, help="instead of every recipe's own, for a quick look")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each [2]")
    parser.add_argument("--budget-minutes", type=float, help="begin no cell after so long; 0 only writes what is there")
    parser.add_argument("--base", default=str(DOCS.parent / "sample_data" / "base"))
    parser.add_argument("--work", type=Path, default=Path("lock_in_out"), help="[lock_in_out]")
    parser.add_argument("--out", type=Path, help="folder of lock_in.{json,md,svg}")
    parser.add_argument(
        "--continue", dest="published", type=Path, metavar="DOCUMENT", help="a lock_in.json whose cells are finished"
    )
    parser.add_argument("--discard-adapters", action="store_true", help="delete adapters once their cells are done")
    parser.add_argument("--list", action="store_true", help="only list the cells that are still to be filled")
    parser.add_argument("--render", action="store_true", help="only write lock_in.{md,svg} from lock_in.json in --out")
    return parser.parse_args(arguments)


def plan_of(args: argparse.Namespace, rows_file: RowsFile) -> Plan:
    """The plan: a size from the rows' file, changed by the selectors."""
    size = rows_file.sizes["small" if args.small else "whole"]
    wanted = size.rows if args.rows is None else () if args.rows == "all" else tuple(args.rows.split(","))
    plan = Plan(
        rows=tuple(rows_file.choose(wanted)),
        shifts=tuple(args.shifts.split(",")) if args.shifts else size.shifts,
        tasks=choose_tasks(args.tasks or size.tasks),
        seeds=tuple(int(seed) for seed in args.seeds.split(",")) if args.seeds else size.seeds,
        episodes=args.episodes or size.episodes,
        steps=args.steps,
        only=size.only if args.rows is None else {},  # rows asked for by name are run wherever they are asked for
    )
    plan.check()
    return plan


def is_whole(args: argparse.Namespace) -> bool:
    """Whether nothing is selected, so that the result is the published one."""
    chosen = (args.rows, args.shifts, args.tasks, args.seeds, args.episodes, args.steps)
    return not args.small and all(value is None for value in chosen)


def write(results: Results, out: Path) -> None:
    """All three files."""
    save_results(results, out / "lock_in.json")
    render(out)


def render(out: Path) -> None:
    """Page and picture from the document beside them."""
    results = load_results(out / "lock_in.json")
    write_text(out / "lock_in.md", markdown(results))
    write_text(out / "lock_in.svg", svg(results))


def sessions(work: Path) -> list[dict[str, Any]]:
    """What was run in this work directory so far."""
    path = work / SESSIONS
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def keep_sessions(work: Path, earlier: Sequence[Mapping[str, Any]]) -> None:
    """Put the sessions of a document whose cells are taken over before those of this work directory."""
    own = [session for session in sessions(work) if session not in earlier]
    write_text(work / SESSIONS, "".join(json.dumps(session) + "\n" for session in [*earlier, *own]))


def note_session(work: Path, command: str, seconds: float, filled: int) -> None:
    """Add this run to the sessions, unless it filled nothing."""
    if filled:
        entry = {"command": command, "wall_seconds": round(seconds), "cells": filled, "machine": machine()}
        with (work / SESSIONS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")


def say(line: str) -> None:
    """A line at once, whoever reads."""
    print(line, flush=True)


def run(args: argparse.Namespace) -> int:
    """Fill cells and write what is there; 1 when a job failed."""
    begun = time.monotonic()
    rows_file = load_rows(args.rows_file)
    plan = plan_of(args, rows_file)
    args.work.mkdir(parents=True, exist_ok=True)
    place = Place(args.work, args.base, locate_base(args.base).reference.digest, not args.discard_adapters)
    jobs = jobs_of(plan, rows_file, place)
    cells = [cell for job in jobs for cell in job.cells]
    if args.list:
        say("\n".join(str(cell.path(args.work)) for cell in cells if not cell.done(args.work)) or "nothing is left")
        return 0
    budget = None if args.budget_minutes is None else 60 * args.budget_minutes
    if args.published is not None:
        published = load_results(args.published)
        say(take_over(published, cells, args.work).words(args.published))
        keep_sessions(args.work, published.document["made_by"]["sessions"])
    command = shlex.join(["python", "benchmarks/lock_in.py", *sys.argv[1:]])
    before = sum(cell.done(args.work) for cell in cells)
    try:
        outcome = run_all(jobs, place, workers=args.workers, budget_seconds=budget, say=say)
    finally:
        # also of a run that was interrupted: its cells are there, and its time was spent
        filled = sum(cell.done(args.work) for cell in cells) - before
        note_session(args.work, command, time.monotonic() - begun, filled)
    results = collect(
        cells,
        args.work,
        rows=plan.rows,
        tasks=plan.tasks,
        command=command,
        base=Path(args.base).name,
        sessions=sessions(args.work),
        failed=outcome.failed,
    )
    out = args.out or (DOCS if is_whole(args) else args.work)
    write(results, out)
    done = results.document["plan"]["cells_done"]
    left = f", {outcome.left} jobs left for another run" if outcome.left else ""
    say(f"{done} of {len(cells)} cells in {out / 'lock_in.md'}{left} ({time.monotonic() - begun:.0f} s)")
    return 1 if outcome.failed else 0


def main(arguments: list[str] | None = None) -> int:
    """Run or render."""
    args = parse(arguments)
    try:
        if args.render:
            render(args.out or DOCS)
            return 0
        return run(args)
    except VlaError as error:
        print(f"lock_in: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("lock_in: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
