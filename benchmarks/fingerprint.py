"""How often `vla preprocess --compare` cries wolf, and how often it sees a camera or a light that has moved.

    python benchmarks/fingerprint.py                            prints the tables
    python benchmarks/fingerprint.py --out docs/fingerprint.md  ... and writes the page

For each domain of the tabletop and each way of laying things out, a fingerprint of 20 demonstrations; then trials,
each of newly recorded scenes with five pictures in a row of each: things lie elsewhere, the arm is elsewhere, pixels
have noise. Only the camera (re-rendered) or the picture (light, cast, blur) differs where something is to be seen.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from vla_cli.files import write_text
from vla_cli.fingerprint import Accumulator, Fingerprint
from vla_cli.fingerprint.glimpses import GLIMPSE
from vla_cli.fingerprint.verdict import compare
from vla_cli.intervals import percent, wilson
from vla_cli.worlds.tabletop.environment import Start
from vla_cli.worlds.tabletop.recording import OPERATORS, record
from vla_cli.worlds.tabletop.scene import Layout, draw_task
from vla_cli.worlds.tabletop.shifts import DOMAINS, Domain
from vla_cli.worlds.tabletop.world import DEFAULT_LAYOUT, DEFAULT_TASK

LAYOUTS = {"same objects": DEFAULT_LAYOUT, "any objects": Layout()}
CAMERA, PIXELS, DEGREES = "agentview_image", 3.0, 5.0
Picture = Callable[[np.ndarray], np.ndarray]
Move = Callable[[Domain, np.random.Generator], Domain]


@dataclass(frozen=True)
class Condition:
    """What is different in a deployment.

    Attributes:
        name: in words.
        expected: quantities of which one must be found; none where nothing is different.
        move: changes the camera. picture: changes the pictures [T, 60, 60, 3] float32 in 0..255.
        scenes: numbers of scenes that are tried.
    """

    name: str
    expected: tuple[str, ...] = ()
    move: Move = lambda domain, _: domain
    picture: Picture = lambda pictures: pictures
    scenes: tuple[int, ...] = (3,)


def shifted(domain: Domain, rng: np.random.Generator) -> Domain:
    """The camera moved by `PIXELS` in any direction."""
    angle = rng.uniform(0, 2 * np.pi)
    right, down = domain.offset
    return replace(domain, offset=(right + PIXELS * np.cos(angle), down + PIXELS * np.sin(angle)))


def turned(domain: Domain, rng: np.random.Generator) -> Domain:
    """The camera turned by `DEGREES` either way."""
    return replace(domain, rotation=domain.rotation + DEGREES * rng.choice([-1.0, 1.0]))


def lit(*factors: float) -> Picture:
    """Another light, by channel."""
    return lambda pictures: pictures * np.array(factors, np.float32)


def blurred(pictures: np.ndarray) -> np.ndarray:
    """Out of focus by one pixel."""
    return ndimage.gaussian_filter(pictures, (0, 1.0, 1.0, 0))


CONDITIONS = (
    Condition("nothing (false alarms)", scenes=(1, 3)),
    Condition(f"camera moved by {PIXELS:.0f} px", ("right", "down"), move=shifted, scenes=(1, 3)),
    Condition(f"camera turned by {DEGREES:.0f} degrees", ("turn",), move=turned, scenes=(1, 3)),
    Condition("light 10% darker", ("brightness",), picture=lit(0.9, 0.9, 0.9), scenes=(1,)),
    Condition("light 10% brighter", ("brightness",), picture=lit(1.1, 1.1, 1.1), scenes=(1,)),
    Condition("light warmer (red +5%, blue -5%)", ("warmth",), picture=lit(1.05, 1.0, 0.95), scenes=(1,)),
    Condition("out of focus (sigma 1 px)", ("sharpness",), picture=blurred, scenes=(1, 3)),
)


def episodes(domain: Domain, layout: Layout, count: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Demonstrations [T, 60, 60, 3] of newly drawn scenes."""
    DOMAINS["fingerprint"] = domain
    for i in range(count):
        scene = layout.draw(rng)
        task = DEFAULT_TASK if layout.narrow else draw_task(scene, rng)
        idle = (int(rng.integers(2, 8)), int(rng.integers(1, 5)))
        yield record(Start(scene, task), "fingerprint", list(OPERATORS.values())[i % 2], rng, idle=idle).images


def glimpse(pictures: np.ndarray, change: Picture, rng: np.random.Generator) -> np.ndarray:
    """Five pictures in a row from anywhere in an episode, as a condition shows them."""
    first = int(rng.integers(len(pictures) - GLIMPSE + 1))
    seen = change(pictures[first : first + GLIMPSE].astype(np.float32))
    return np.clip(seen + 0.5, 0, 255).astype(np.uint8)


@dataclass
class Tally:
    """Trials of one condition with one number of scenes: how many, how many said moved (rightly), and otherwise."""

    trials: int = 0
    moved: int = 0
    found: int = 0
    undecided: int = 0


def trials(
    fingerprint: Fingerprint, domain: Domain, layout: Layout, count: int, seed: list[int]
) -> dict[tuple[str, int], Tally]:
    """All conditions against one fingerprint."""
    tallies = {(c.name, m): Tally() for c in CONDITIONS for m in c.scenes}
    for number, condition in enumerate(CONDITIONS):
        for trial in range(count):
            rng = np.random.default_rng([*seed, number, trial])
            moved = condition.move(domain, rng)
            scenes = [glimpse(v, condition.picture, rng) for v in episodes(moved, layout, max(condition.scenes), rng)]
            for m in condition.scenes:
                result = compare(fingerprint, {CAMERA: scenes[:m]}).cameras[0]
                quantities = {change.quantity for change in result.changes if change.moved}
                tally = tallies[condition.name, m]
                tally.trials += 1
                tally.moved += bool(quantities)
                tally.found += bool(quantities & set(condition.expected))
                tally.undecided += result.verdict == "cannot tell"
    return tallies


def share(k: int, n: int) -> str:
    """A share in percent with its 95% interval."""
    low, high = wilson(k, n)
    return f"{percent(k / n)} [{percent(low)}, {percent(high)}]"


def table(domains: list[str], demos: int, count: int, seed: int) -> str:
    """Both tables in Markdown."""
    pooled: dict[tuple[str, int], Tally] = {}
    rows = []
    for i, name in enumerate(domains):
        for j, (words, layout) in enumerate(LAYOUTS.items()):
            maker = Accumulator()
            for pictures in episodes(DOMAINS[name], layout, demos, np.random.default_rng([seed, i, j])):
                maker.add(CAMERA, pictures)
            made = maker.result()
            spread = {k: float(v.std(ddof=1)) for k, v in made.cameras[CAMERA].values.items()}
            found = trials(made, DOMAINS[name], layout, count, [seed, i, j])
            alarms, moves, turns = (found[c.name, 3] for c in CONDITIONS[:3])
            rows.append(
                f"| {name}, {words} | {spread['right']:.2f}, {spread['down']:.2f} px | {spread['turn']:.2f} | "
                f"{alarms.moved}/{count} | {moves.found}/{count} | {turns.found}/{count} |"
            )
            print(rows[-1], flush=True)
            for key, tally in found.items():
                into = pooled.setdefault(key, Tally())
                for part in vars(tally):
                    setattr(into, part, getattr(into, part) + getattr(tally, part))
    lines = ["| what is different | scenes of five pictures | trials | told rightly | said moved | cannot tell |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for condition in CONDITIONS:
        for m in condition.scenes:
            tally = pooled[condition.name, m]
            right = share(tally.found, tally.trials) if condition.expected else "-"
            said, open_ = share(tally.moved, tally.trials), percent(tally.undecided / tally.trials)
            lines.append(f"| {condition.name} | {m} | {tally.trials} | {right} | {said} | {open_} |")
    head = [
        "| demonstrations | spread right, down | spread of turn, degrees | false alarms | moves seen | turns seen |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*lines, "", "By domain, with three scenes:", "", *head, *rows])


PAGE = """# Has the camera moved since the demonstrations?

`vla preprocess` stores a fingerprint of every demo camera (`fingerprint.json`): what stands still in its pictures, and
how much position, turn, light, colour, sharpness and edges differ from one demonstration to the next. `--compare
FRAMES` holds a deployment's pictures against it and says what has changed, in words, or that nothing has, or how many
scenes it takes to tell.

**What can be seen is what stands still.** On a wooden table (T) the grain gives the pose to a part of a pixel from one
scene. On a plain table seen from above (base, V, W) nothing stands still to the pixel: there are four plates that are
put back by hand (within 2 pixels) and the objects, so that one scene tells the pose to half a pixel and little more
than a degree, and the amounts that are reported are up to a third too small. A border, a wall or a bracket in the
picture makes it as good as the wooden table. A camera on the arm has no background: the answer is "cannot tell".

**How many pictures.** Any three or more pictures of a scene will do; more of the same scene hardly help, other scenes
do. Three scenes of five pictures are enough for a move of 5% of the picture (3 of 60 pixels) or a turn of 5 degrees.
One scene is enough for the light.

## Measured

{table}

Told rightly: the quantity that was changed is among those that are said to have. Said moved: any quantity is. Shares
with 95% Wilson intervals; trials against the same fingerprint are not quite independent. {note}
"""


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", default="base,V,W,T", help="[base,V,W,T]")
    parser.add_argument("--demos", type=int, default=20, help="demonstrations in a fingerprint [20]")
    parser.add_argument("--trials", type=int, default=25, help="of each condition, domain and layout [25]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the page here")
    args = parser.parse_args(arguments)
    begun = time.process_time()
    found = table(args.domains.split(","), args.demos, args.trials, args.seed)
    options = f"--domains {args.domains} --demos {args.demos} --trials {args.trials} --seed {args.seed}"
    took = time.process_time() - begun
    note = f"`python benchmarks/fingerprint.py {options}`, {took:.0f} seconds of processor time."
    print(f"\n{found}\n\n{note}")
    if args.out:
        write_text(args.out, PAGE.format(table=found, note=note))


if __name__ == "__main__":
    main()
