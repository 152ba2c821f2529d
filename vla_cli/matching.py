"""How a dataset of demonstrations and a base policy fit together: statistics, dimensions and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vla_cli.adapter import BaseReference, Kind, PolicySpec
from vla_cli.dataset import Dataset, Demonstration
from vla_cli.errors import ConfigError, InputError
from vla_cli.guidance import PLAIN_KIND, negatives_of
from vla_cli.recipe import AUTO, Recipe
from vla_cli.stats import Statistics, compute

LARGEST_SCORE = 10.0
"""Above this normalised value the base's statistics do not describe the new robot's data any more."""


@dataclass(frozen=True)
class Base:
    """What a base policy can be fed.

    Attributes:
        reference: which base it is.
        own: how it was fed itself; None where it carries no `policy.json`.
        action_limit, state_limit: dimensions that its projections take.
        image_size: edge of its pictures in pixels.
        chunk_size: steps a chunk.
        family: key of `policies.FAMILIES`.
        action_tokens: how it writes actions, where it carries no `policy.json` and writes them.
        heads: whether state and actions go through projections that belong to one robot.
    """

    reference: BaseReference
    own: PolicySpec | None
    action_limit: int
    state_limit: int
    image_size: int
    chunk_size: int
    family: str
    action_tokens: dict[str, Any] = field(default_factory=dict)
    heads: bool = True


def adapted_spec(
    dataset: Dataset, base: Base, recipe: Recipe, *, kind: Kind, tokenizer: str, warnings: list[str]
) -> PolicySpec:
    """How the adapted policy is to be fed: the base's own way where it fits, else the dataset's.

    Args:
        dataset: the demonstrations.
        base: what is adapted.
        recipe: how.
        kind: of the adapter.
        tokenizer: where the tokenizer is, when the base carries none; empty for where the base says.
        warnings: what does not fit is added in words.

    Raises:
        InputError: the dataset has more dimensions than the base takes.
    """
    own = base.own
    for noun, names, limit in (
        ("action", dataset.action_names, base.action_limit),
        ("state", dataset.state_names, base.state_limit),
    ):
        if len(names) > limit:
            raise InputError(
                f"The dataset has {len(names)} {noun} dimensions, but the base takes at most {limit}",
                expected=f"at most {limit}",
                hint=f"vla preprocess with --{noun}-dims, e.g. --{noun}-dims 0-{limit - 1} "
                f"(they are: {', '.join(names[:4])}, ..., {names[-1]})",
            )
    instructions = list(dict.fromkeys(text for d in dataset.split("train") for text in d.instructions))
    keep = own is not None and _fits(dataset, own, warnings, heads=base.heads)
    statistics = (own.state, own.actions) if own is not None and keep else _dataset_statistics(dataset)
    if own is not None and (said := _cameras_differ(dataset.cameras, own.cameras)):
        warnings.append(said)
    if own is not None and abs(own.rate_hz - dataset.rate_hz) > 0.05 * own.rate_hz:
        warnings.append(
            f"The dataset's control rate is {dataset.rate_hz:g} Hz, the base's {own.rate_hz:g} Hz: "
            "one chunk covers another length of time than the base learned."
        )
    return PolicySpec(
        family=base.family,
        kind=kind,
        cameras=dataset.cameras,
        image_size=own.image_size if own else base.image_size,
        state_names=dataset.state_names,
        action_names=dataset.action_names,
        rate_hz=dataset.rate_hz,
        chunk_size=base.chunk_size,
        execute_steps=own.execute_steps if own else max(1, base.chunk_size // 2),
        state=statistics[0],
        actions=statistics[1],
        statistics_from="base" if keep else "dataset",
        instructions=instructions,
        base=base.reference,
        recipe=recipe.name,
        tokenizer=tokenizer or (own.tokenizer if own else ""),
        world=dataset.world,
        guidance=_guidance(recipe, instructions, warnings),
        squared=dataset.squared,
        action_tokens=own.action_tokens if own else base.action_tokens,
    )


def _guidance(recipe: Recipe, instructions: list[str], warnings: list[str]) -> dict[str, Any]:
    """The recipe's default guidance, as `policy.json` says it; plain where a weight is still to be measured."""
    if not recipe.guidance:
        return plain_guidance("the recipe names none")
    kind = recipe.guidance["kind"]
    try:
        negatives_of(kind, instructions)
    except ConfigError:
        why = f"the recipe's '{kind}' moves away from the trained instruction, and there is none"
        warnings.append(f"The adapter gets no default guidance: {why}.")
        return plain_guidance(why)
    if recipe.guidance["weight"] == AUTO:
        return plain_guidance("the weights are the base's, and so is the response to words")
    return {"kind": kind, "weight": recipe.guidance["weight"], "why": "the recipe's"}


def plain_guidance(why: str) -> dict[str, Any]:
    """Plain prompting, as `policy.json` says it, and why."""
    return {"kind": PLAIN_KIND, "weight": 1.0, "why": why}


def _cameras_differ(here: list[str], known: list[str]) -> str:
    """What a person should know where the dataset's cameras are not the base's, which go by their order; or nothing."""
    if here == known:
        return ""
    if sorted(here) == sorted(known):
        order = " ".join(f"--camera {camera}" for camera in known)
        return (
            f"The dataset's cameras are {', '.join(here)}, the base's {', '.join(known)}: the same in another "
            f"order, so that one is taken for the other. vla preprocess {order} puts them in its order."
        )
    if len(here) == len(known):
        pairs = ", ".join(f"'{mine}' is taken for the base's '{its}'" for mine, its in zip(here, known, strict=True))
        return f"Cameras correspond by their order: {pairs} (vla preprocess --camera, repeated, sets the order)."
    return (
        f"The dataset has {len(here)} camera(s) ({', '.join(here)}), the base was trained with {len(known)} "
        f"({', '.join(known)}): what it knows of one view need not hold for others."
    )


def _dataset_statistics(dataset: Dataset) -> tuple[Any, Any]:
    return dataset.statistics.state, dataset.statistics.actions


def replay_differs(dataset: Dataset, replay: list[Demonstration]) -> str:
    """What a person should know where replay looks like another robot's than the demonstrations; or nothing.

    Both are normalised by the demonstrations' statistics where the base has none of its own. Other units then show as
    values far outside, of the replay under the demonstrations' statistics or the other way round.

    Args:
        dataset: the demonstrations.
        replay: of as many state and action dimensions.
    """
    found = [
        (noun, max(_reach(mine, its), _reach(its, mine)))
        for noun, mine, its in (
            ("state", dataset.statistics.state, compute(np.concatenate([d.state for d in replay]))),
            ("actions", dataset.statistics.actions, compute(np.concatenate([d.actions for d in replay]))),
        )
    ]
    noun, largest = max(found, key=lambda pair: pair[1])
    if largest <= LARGEST_SCORE:
        return ""
    return (
        f"The {noun} of --replay and of the demonstrations lie up to {largest:.1f} of each other's standard deviations "
        "apart: other units, or another robot? The base carries no statistics of its own, so that both are normalised "
        "by the demonstrations', which is right for data of the same robot in the same units only."
    )


def _reach(statistics: Statistics, of: Statistics) -> float:
    """The largest normalised value of the middle 98% of some data under other data's statistics."""
    return max(float(np.abs(statistics.normalise(bound)).max()) for bound in (of.q01, of.q99))


def _fits(dataset: Dataset, own: PolicySpec, warnings: list[str], *, heads: bool) -> bool:
    """Whether the base's statistics describe this robot: equal widths, and no value far outside."""
    state, actions = dataset.statistics.state, dataset.statistics.actions
    if (len(state), len(actions)) != (len(own.state), len(own.actions)):
        warnings.append(
            f"The dataset has {len(state)} state and {len(actions)} action dimensions, the base was trained with "
            f"{len(own.state)} and {len(own.actions)}: this robot is new to the base. The dataset's own statistics are "
            f"used{' and the state and action projections are trained outright' if heads else ''}; little of what the "
            "base could do can be expected to carry over."
        )
        return False
    largest = max(_reach(own.state, state), _reach(own.actions, actions))
    if largest > LARGEST_SCORE:
        warnings.append(
            f"Under the base's statistics the demonstrations reach {largest:.1f} standard deviations: other units? "
            "The dataset's own statistics are used."
        )
    return largest <= LARGEST_SCORE
