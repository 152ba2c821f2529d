"""Which of a recipe's retention methods can work with what was given, and what they hold in memory together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from vla_cli.language.alternatives import FILE_NAME as ALTERNATIVES
from vla_cli.recipe import Recipe
from vla_cli.retention import FED_OTHERWISE, RETENTION, Method, lacking
from vla_cli.retention import fed_otherwise as fed_otherwise_error


def select_methods(
    recipe: Recipe, given: Mapping[str, bool], dataset: Path, *, fed_otherwise: bool
) -> tuple[dict[str, Method], dict[str, str]]:
    """The recipe's retention methods that can work with what was given, and the optional ones that cannot.

    Args:
        recipe: of the run.
        given: "replay" and "alternatives" to whether they were.
        dataset: directory of the demonstrations, where preprocess may have proposed alternatives.
        fed_otherwise: the base has statistics of its own, and is fed with the demonstrations'.

    Returns:
        Name to method, and name to why it is left out.

    Raises:
        ConfigError: one that is not optional cannot and is certain to be used, or has options that cannot be.
    """
    methods: dict[str, Method] = {}
    left_out = {}
    # else the calibrated base may do without; one that is fed otherwise never does
    certain = recipe.trains and (recipe.adapt == "always" or fed_otherwise)
    for name, options in recipe.retention.items():
        method = RETENTION.get(name)(**options)  # built even where it is left out: its options are checked
        # first what no data could mend
        if certain and fed_otherwise and method.asks_the_base():
            if name not in recipe.optional:
                raise fed_otherwise_error(name)
            left_out[name] = f"{FED_OTHERWISE}: what it would teach means nothing"
            continue
        if missing := [need for need in recipe.optional.get(name, ()) if not given[need]]:
            left_out[name] = f"no --{missing[0]} was given{_proposed(dataset, missing[0])}"
            continue
        methods[name] = method
        if certain and (missing := [need for need in method.needs() if not given[need]]):
            raise lacking(name, missing[0])
    return methods, left_out


def _proposed(dataset: Path, need: str) -> str:
    """Where to find what was not given: preprocess proposes alternatives, but only a person can vouch for them."""
    if need != "alternatives" or not (dataset / ALTERNATIVES).is_file():
        return ""
    # it goes into run.json, which names no place: places differ by machine
    return f" ({dataset.name}/{ALTERNATIVES} proposes some: read it, and cut what is not there)"


def numbers_kept(methods: Iterable[Method], *, trained: int, outright: int, held: int) -> int:
    """How many numbers methods hold in memory together while a step is done, beside the models.

    Args:
        methods: of the run.
        trained: parameters that train.
        outright: those of them that are weights of the base.
        held: weights of the base that are moved, outright or by LoRA.
    """
    methods = list(methods)
    remembered = outright if any(method.remembers_base for method in methods) else 0
    return remembered + sum(method.numbers_kept(trained, held) for method in methods)
