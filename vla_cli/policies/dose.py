"""How long, how fast and in what parts a base is trained that is far larger than the embedded one.

The numbers of the recipes that ship were measured on the embedded base, of a million parameters, on which a learning
rate of 2e-3 is right; for a π0 it is eighty times what its authors train it with. From `SMALL_MODEL` parameters on, a
recipe's `large_base` takes their place, where no option says otherwise:

    learning_rate        openpi's 2.5e-5 where weights are trained outright; 2.5e-4 where all is LoRA, which takes ten
                         times as much (LeRobot, docs "PEFT training": 1e-3 in place of SmolVLA's 1e-4)
    rank                 16, openpi's for π0's VLM and LeRobot's own; alpha stays as many times the rank as it was.
                         It is the width of bottlenecks too, for which we know of nobody's at that size
    windows_per_chunk    steps = windows_per_chunk * (frames / chunk) / batch, from 1000 to 30,000
    micro_batch          windows at once, as π0 takes 24 to 40 GB at 8 of them (LeRobot)

Frames are counted by the length of a chunk, because neighbours at 50 Hz are nearly one picture. The embedded base takes
300 steps of 32 windows for 445 frames at chunks of 8: 173 windows a chunk; openpi's π0 on LIBERO takes 30,000 of 32 for
273,465 frames at chunks of 50: 176. The bounds are openpi's 30,000 steps, and half of the 2000 in GR00T's example of 5
demonstrations. Warm-up takes a thirtieth of the steps, as openpi's 1000 of 30,000.

None of it has been tried by us at that size; it is what others train such bases with.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from vla_cli.policies.device import SMALL_MODEL
from vla_cli.recipe import LargeBase, Recipe, divisors

FEWEST_STEPS, MOST_STEPS = 1000, 30_000
WARMUP = 30
"""Steps of a run to one of its warm-up."""
UNUSUAL_RATE = 1e-3
"""Twice the highest that others train bases of billions of parameters with (OpenVLA's LoRA, 5e-4)."""


@dataclass(frozen=True)
class Data:
    """What is trained on.

    Attributes:
        frames: of the training demonstrations.
        chunk: actions that the base predicts at once.
    """

    frames: int
    chunk: int


def dose_for(recipe: Recipe, *, parameters: int, data: Data, given: Collection[str]) -> tuple[Recipe, str]:
    """A recipe as it trains a base of this size.

    Args:
        recipe: with the options that were given in the place of its own.
        parameters: of the base.
        data: what is trained on.
        given: keys of the recipe that an option stands for: they stay.

    Returns:
        The recipe, and what became of it in words; the same and nothing for a small base, or where nothing trains.
    """
    if parameters < SMALL_MODEL or not recipe.trains:
        return recipe, ""
    large = LargeBase(**recipe.large_base)
    changed = {key: value for key, value in _wanted(recipe, large, data).items() if key not in given}
    if "rank" in changed:
        changed["alpha"] = recipe.alpha * changed["rank"] / recipe.rank
    found = replace(recipe, **changed)
    return found, _words(recipe, found, parameters, data)


def _wanted(recipe: Recipe, large: LargeBase, data: Data) -> dict[str, float]:
    wanted: dict[str, float] = {}
    if large.learning_rate:
        wanted["learning_rate"] = large.learning_rate
    if large.rank and recipe.takes_rank:
        wanted["rank"] = large.rank
    if large.windows_per_chunk:
        steps = round(large.windows_per_chunk * data.frames / data.chunk / recipe.batch_size)
        wanted["steps"] = min(max(steps, FEWEST_STEPS), MOST_STEPS)
        wanted["warmup"] = max(recipe.warmup, wanted["steps"] // WARMUP)
    if large.micro_batch:
        wanted["micro_batch"] = max(d for d in divisors(recipe.batch_size) if d <= large.micro_batch)
    return wanted


def _words(recipe: Recipe, found: Recipe, parameters: int, data: Data) -> str:
    size = f"The base has {parameters / 1e6:,.0f} million parameters, and recipe '{recipe.name}'"
    names = {"learning_rate": "learning rate", "steps": "steps", "rank": "rank", "micro_batch": "windows at once"}
    why = {"steps": f", for {data.frames:,} frames at chunks of {data.chunk}"}
    new = [
        f"{words} {getattr(found, key):,.6g} (in place of {getattr(recipe, key) or recipe.batch_size:,.6g}"
        f"{why.get(key, '')})"
        for key, words in names.items()
        if getattr(found, key) != getattr(recipe, key)
    ]
    said = []
    if new:
        said.append(
            f"{size} trains one of that size otherwise: {', '.join(new)}. These are what others train such bases with, "
            "not measured by us; --learning-rate, --steps, --rank and --micro-batch set them."
        )
    if found.learning_rate > UNUSUAL_RATE:
        said.append(
            f"{size if not new else 'It'} trains at a learning rate of {found.learning_rate:g}: others train such "
            "bases at 2.5e-5 (openpi) to 5e-4 (OpenVLA's LoRA), and one that is too high undoes what the base knows."
        )
    return " ".join(said)
