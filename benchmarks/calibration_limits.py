"""What calibration does where its assumptions fail, in closed loop on the frozen base.

    python benchmarks/calibration_limits.py                 prints the table (under 5 minutes on one core)
    python benchmarks/calibration_limits.py --update        ... and puts it into docs/calibration.md

One deployment (shift W, tune task 0), spoilt in one way a row: in the demonstrations, in the deployment after they were
recorded, or by leaving parts of the calibration out. Every row is fitted anew and evaluated on the same scenes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from lock_in_harness.tasks import TUNE

from vla_cli.calibration import PARTS, Calibration, DomainFacts, calibrate, load_domain
from vla_cli.dataset import Demonstration
from vla_cli.files import write_text
from vla_cli.intervals import wilson
from vla_cli.policies.flow import FlowPolicy, load
from vla_cli.suites import SUITES
from vla_cli.worlds.tabletop.environment import Start
from vla_cli.worlds.tabletop.recording import OPERATORS, record
from vla_cli.worlds.tabletop.scene import Scene
from vla_cli.worlds.tabletop.shifts import DOMAINS, Domain
from vla_cli.worlds.tabletop.world import TabletopWorld, env_args

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "calibration.md"
BEGIN, END = "<!-- limits: written by benchmarks/calibration_limits.py -->", "<!-- end of limits -->"
SHIFT, CAMERA, TASK = "W", "agentview_image", TUNE[0]
COUNT, EPISODES, SEED = 20, 50, 0
CONDITIONS: tuple[str, ...] = ("trained", "novel-both", "base-domain")
OFFSETS = ((0.0, 0.0), (2.0, 0.0), (-2.0, 0.0), (0.0, 2.0), (0.0, -2.0))
"""Pixels (right, down) by which a camera shakes from episode to episode."""


@dataclass(frozen=True)
class Row:
    """One way in which things are not as calibration assumes.

    Attributes:
        name: in words.
        count: demonstrations.
        recorded: the domains of the demonstrations, by turns.
        met: the domains in which the policy acts, episodes divided among them.
        spoil: changes a demonstration, given random numbers.
        same_scene: nothing is moved between demonstrations.
        parts: which parts are fitted.
        only_here: the calibration is on whatever the picture looks like (`vla finetune --deployment-only`).
    """

    name: str
    count: int = COUNT
    recorded: tuple[Domain, ...] = (DOMAINS[SHIFT],)
    met: tuple[Domain, ...] = (DOMAINS[SHIFT],)
    spoil: Callable[[Demonstration, np.random.Generator], Demonstration] | None = None
    same_scene: bool = False
    parts: tuple[str, ...] = PARTS
    only_here: bool = False


def moved(right: float, down: float) -> Domain:
    """The deployment with its camera moved by pixels."""
    x, y = DOMAINS[SHIFT].offset
    return replace(DOMAINS[SHIFT], offset=(x + right, y + down))


def lit(*factors: float) -> Domain:
    """The deployment under another light, by channel."""
    red, green, blue = (a * b for a, b in zip(DOMAINS[SHIFT].light, factors, strict=True))
    return replace(DOMAINS[SHIFT], light=(red, green, blue))


def noisy(deviation: float) -> Callable[[Demonstration, np.random.Generator], Demonstration]:
    """Positions measured with an error of `deviation` metres."""

    def spoil(found: Demonstration, rng: np.random.Generator) -> Demonstration:
        state = found.state.copy()
        state[:, :2] += rng.normal(0, deviation, (len(state), 2))
        return replace(found, state=state)

    return spoil


SHAKY = tuple(moved(*offset) for offset in OFFSETS)
ROWS = (
    Row("nothing calibrated", parts=()),
    Row("as it should be: 20 demonstrations"),
    *(Row(f"{n} demonstration{'s' if n > 1 else ''}", count=n) for n in (10, 5, 3, 1)),
    *(Row(f"positions measured with {mm} mm of noise", spoil=noisy(mm / 1000)) for mm in (2, 5, 10, 20)),
    Row("nothing moved between the demonstrations", same_scene=True),
    Row("camera shakes by 2 px from episode to episode", recorded=SHAKY, met=SHAKY),
    *(Row(f"camera knocked by {px} px afterwards", met=(moved(px, 0),)) for px in (1.5, 3.0, 6.0)),
    *(Row(f"light dimmed by {p}% afterwards", met=(lit(*[1 - p / 100] * 3),)) for p in (10, 20, 40, 60)),
    Row("light 20% brighter afterwards", met=(lit(1.2, 1.2, 1.2),)),
    *(
        Row(f"light {p}% brighter afterwards{how}", met=(lit(*[1 + p / 100] * 3),), only_here=bool(how))
        for p in (60, 100)
        for how in ("", ", --deployment-only")
    ),
    Row("light 20% bluer afterwards", met=(lit(0.9, 1.0, 1.1),)),
    *(Row(f"{part} only", parts=(part,)) for part in ("look", "camera", "action")),
    *(Row(f"without {part}", parts=tuple(p for p in PARTS if p != part)) for part in ("look", "camera", "action")),
)


def demonstrations(row: Row) -> list[Demonstration]:
    """The row's demonstrations of the one instruction."""
    rng, found = np.random.default_rng([*TASK.data_seed(SEED), 1]), []
    spoiling = np.random.default_rng([*TASK.data_seed(SEED), 2])
    scene: Scene | None = None
    for i in range(row.count):
        scene = scene if scene is not None and row.same_scene else TASK.layout.draw(rng)
        DOMAINS["recorded"] = row.recorded[i % len(row.recorded)]
        habit = OPERATORS[list(OPERATORS)[i % len(OPERATORS)]]
        idle = (int(rng.integers(2, 8)), int(rng.integers(1, 5)))
        shown = record(Start(scene, TASK.task), "recorded", habit, rng, idle=idle)
        words = [TASK.task.phrasings[0]]
        made = Demonstration(f"episode_{i}", {CAMERA: shown.images}, shown.state, shown.actions, words)
        found.append(row.spoil(made, spoiling) if row.spoil else made)
    return found


def successes(policy: FlowPolicy, row: Row, episodes: int) -> dict[str, int]:
    """Successful episodes by condition."""
    found = dict.fromkeys(CONDITIONS, 0)
    shares = [len(part) for part in np.array_split(np.arange(episodes), len(row.met))]
    for i, (domain, share) in enumerate(zip(row.met, shares, strict=True)):
        DOMAINS["met"] = domain
        findings = SUITES.get("closed-loop")(
            {"policy": policy},
            TabletopWorld("met", env_args(SHIFT, TASK.layout, TASK.task)),
            episodes=share,
            seed=TASK.evaluation_seed(SEED) + 1000 * i,
            conditions=list(CONDITIONS),
            films=0,
        )
        for rollout in findings.rollouts:
            found[rollout.condition] += rollout.success
    return found


def line(row: Row, calibration: Calibration, found: dict[str, int], episodes: int) -> str:
    """A row of the table."""
    refused = [part for part in calibration.skipped if part in row.parts]
    figures = []
    for condition in CONDITIONS:
        low, high = wilson(found[condition], episodes)
        figures.append(f"{100 * found[condition] / episodes:.0f} [{100 * low:.0f}, {100 * high:.0f}]")
    on, off = ", ".join(calibration.parts) or "-", ", ".join(refused) or "-"
    return f"| {row.name} | {on} | {off} | {' | '.join(figures)} |"


def table(rows: Sequence[Row], base: Path, episodes: int) -> str:
    """The whole table in Markdown; printed line by line as it comes."""
    facts: DomainFacts | None = load_domain(base)
    assert facts is not None, f"{base} has no domain.json"
    policy = load(str(base), device="cpu")
    lines = [
        f"| what is not as assumed | fitted | refused | {' | '.join(CONDITIONS)} |",
        "|---|---|---|" + "---:|" * len(CONDITIONS),
    ]
    print("\n".join(lines), flush=True)
    reasons: dict[str, str] = {}
    for row in rows:
        calibration = replace(calibrate(demonstrations(row), [CAMERA], facts, row.parts), only_here=row.only_here)
        policy.calibrate(calibration)
        lines.append(line(row, calibration, successes(policy, row, episodes), episodes))
        print(lines[-1], flush=True)
        reasons.update({f"{row.name}: {part}": why for part, why in calibration.skipped.items() if part in row.parts})
    if reasons:
        lines += ["", "What was refused, in the tool's words:", "", *(f"- {k}: {why}" for k, why in reasons.items())]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, default=ROOT / "sample_data" / "base")
    parser.add_argument("--episodes", type=int, default=EPISODES, help=f"a cell [{EPISODES}]")
    parser.add_argument("--rows", default="", help="only rows whose names hold this text")
    parser.add_argument("--update", action="store_true", help=f"write the table into {PAGE.relative_to(ROOT)}")
    args = parser.parse_args(arguments)
    begun = time.perf_counter()
    chosen = [row for row in ROWS if args.rows in row.name]
    found = table(chosen, args.base, args.episodes)
    took = (
        f"{len(chosen)} rows, {args.episodes} episodes a cell, {time.perf_counter() - begun:.0f} seconds of wall time."
    )
    print(f"\n{took}")
    if args.update:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        after = rest.split(END)[1]
        command = "`python benchmarks/calibration_limits.py --update`"
        note = f"Success in percent with 95% Wilson intervals. {command}: {took}"
        write_text(PAGE, f"{before}{BEGIN}\n{note}\n\n{found}\n{END}{after}")


if __name__ == "__main__":
    main()
