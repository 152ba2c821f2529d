"""Recipes: small YAML files that say how to fine-tune. Anyone can read one, copy it and pass the copy to `--recipe`.

summary: one line
method: full | lora | bottleneck | none         for all three modalities; none trains no weight at all
vision, language, action: full | frozen | lora | lora:RANK | bottleneck | bottleneck:WIDTH
                                                one modality otherwise than `method`; bottlenecks beside frozen alone
steps, batch_size, learning_rate, noise_draws, warmup, weight_decay, clip
micro_batch: windows                            of a batch that are computed at once; 0: all
rank, alpha, heads: full | lora | auto          for LoRA; alpha is of `rank`, lora:RANK has alpha = RANK. Bottlenecks
                                                have `rank` for a WIDTH, and heads that are full or the base's
rank_energy: share                              0.9: a layer's rank holds 90% of the task gradient; 0: all have `rank`
quantize: none | nf4                            nf4: the base's linear layers in 4 bits while LoRA trains (QLoRA)
early_stopping: steps                           ends where the held-out loss has not fallen for so many; 0: never
compensate: true | false                        N / (1 - lambda) steps where retention methods fill a share lambda
calibrate: true | false                         transforms between deployment and base first; see vla_cli/calibration
adapt: always | when-needed                     when-needed: no weights where the calibrated base can do the task
retention: {method: {option: value}}            see vla_cli/retention
optional: {method: [replay, alternatives]}      left out where that is not given, instead of refused
guidance: {kind: ..., weight: number | auto}    the adapter's default at test time; see vla_cli/guidance
large_base: {learning_rate, rank, windows_per_chunk, micro_batch}
                                                instead, for a base far larger than the embedded one, for which all
                                                other numbers are; see vla_cli/policies/dose.py
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from vla_cli.configs import RECIPE_FILES
from vla_cli.errors import ConfigError
from vla_cli.field_types import ill_typed
from vla_cli.guidance import KINDS, check_weight
from vla_cli.limits import above_0, between, beyond, from_0, limited, share
from vla_cli.yaml_files import read_options

FOLDER = Path(__file__).parent / "recipes"
MODALITY_KEYS = ("vision", "language", "action")
AUTO = "auto"
"""A guidance weight that is measured after training."""
NONE, NF4 = "none", "nf4"
BOTTLENECK = "bottleneck"
METHODS = ("full", "lora", BOTTLENECK, "none")
HIGHEST_RANK, MOST = 9999, 10**13
"""Four digits, as in `lora:RANK`: more than any adapter needs; and more steps or windows than any machine takes."""
_WAY = re.compile(r"full|frozen|(lora|bottleneck)(:[1-9]\d{0,3})?")


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe.

    Attributes:
        name: file stem.
        summary: one line for people.
        method: "full" (all weights), "lora", "bottleneck" (see policies.bottleneck) or "none" (no weights: calibration
            and motion only).
        vision, language, action: "full", "frozen", "lora", "lora:RANK", "bottleneck", "bottleneck:WIDTH", or "" for
            what `method` says.
        steps: optimiser steps.
        batch_size: windows a step, rehearsed ones included.
        micro_batch: of these, how many are computed at once, the others after them (gradient accumulation), which takes
            less memory; it divides `batch_size`, and 0 computes all at once.
        learning_rate: peak, reached after `warmup` steps, then a cosine down to a tenth.
        noise_draws: flow-matching noise draws a window.
        warmup: steps.
        weight_decay: AdamW's, on the trained weights.
        clip: largest gradient norm.
        early_stopping: training ends when the held-out loss has not fallen for so many steps, and the weights of the
            step where it was lowest are kept; 0 trains to the end and keeps the last. See policies.early_stopping.
        quantize: "nf4" holds what LoRA trains beside in 4 bits; "none". See policies.quantization.
        rank, alpha: LoRA's; the delta is alpha / rank * B A. A modality with a RANK of its own has alpha = RANK, so
            that its delta is B A; an alpha that is not the recipe's rank is refused beside one. `rank` is also the
            width of bottlenecks without a WIDTH of their own.
        rank_energy: LoRA's ranks are read off the task's gradient, layer by layer: the smallest that holds this share
            of its energy, and at most `rank`; 0 gives every layer `rank`. See policies.ranks.
        heads: how state and action projections are adapted with LoRA: "lora" (the output projection only), "full"
            (all of them trained outright), or "auto" (full when the robot is new to the base, else lora). Beside
            bottlenecks "lora" leaves them as they are.
        compensate: more steps, N / (1 - lambda), where retention methods fill a share lambda of each batch.
        calibrate: fit explicit transforms between the deployment and the base's own domain first.
        adapt: "always", or "when-needed": weights stay untouched where the calibrated base can do the task.
        retention: method name to its options.
        optional: method name to what it needs ("replay", "alternatives"); it is left out, and named, without.
        guidance: "kind" and "weight" (a number or "auto") of the adapter's default guidance.
        large_base: options of `LargeBase`.
    """

    name: str
    method: str
    summary: str = ""
    vision: str = ""
    language: str = ""
    action: str = ""
    steps: int = between(300, 1, MOST)
    batch_size: int = between(32, 1, MOST)
    micro_batch: int = between(0, 0, MOST)
    learning_rate: float = above_0(1e-3)
    noise_draws: int = between(2, 1, MOST)
    warmup: int = between(20, 0, MOST)
    weight_decay: float = from_0(0.0)
    clip: float = above_0(1.0)
    early_stopping: int = between(0, 0, MOST)
    quantize: str = limited(NONE, f"{NONE} or {NF4}", lambda quantize: quantize in (NONE, NF4))
    rank: int = between(8, 1, HIGHEST_RANK)
    alpha: float = above_0(8)
    rank_energy: float = share(0.0)
    heads: str = "auto"
    compensate: bool = False
    calibrate: bool = False
    adapt: str = "always"
    retention: dict[str, dict[str, Any]] = field(default_factory=dict)
    optional: dict[str, list[str]] = field(default_factory=dict)
    guidance: dict[str, Any] = field(default_factory=dict)
    large_base: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As JSON values; what is newer only where it is on, so that what older versions began can be gone on with."""
        found = asdict(self)
        del found["large_base"]  # what came of it is in the other keys
        if not self.early_stopping:
            del found["early_stopping"]
        if not self.is_quantized:
            del found["quantize"]
        if not self.rank_energy:
            del found["rank_energy"]
        if self.at_once == self.batch_size:
            del found["micro_batch"]
        return found

    @property
    def at_once(self) -> int:
        """Windows that are computed at once."""
        return self.micro_batch or self.batch_size

    @property
    def parts(self) -> int:
        """How many times that is done for a step."""
        return self.batch_size // self.at_once

    @property
    def is_quantized(self) -> bool:
        """Whether the base is held in 4 bits while weights train."""
        return self.quantize != NONE and self.trains

    @property
    def trains(self) -> bool:
        """Whether any weight is trained."""
        return any(way != "frozen" for way, _ in self.modalities().values())

    def modalities(self) -> dict[str, tuple[str, int]]:
        """Modality to how it is adapted: ("full", 0), ("frozen", 0), ("lora", rank) or ("bottleneck", width)."""
        return {name: self._way(text) for name, text in zip(MODALITY_KEYS, self.ways(), strict=True)}

    def ways(self) -> list[str]:
        """The same as it is written, in the order of `MODALITY_KEYS`, and none for what `modalities` calls frozen."""
        return [getattr(self, name) or self.method for name in MODALITY_KEYS]

    @property
    def takes_rank(self) -> bool:
        """Whether any modality has the recipe's own rank, or a bottleneck of that width."""
        return bool({"lora", BOTTLENECK} & set(self.ways()))

    def _way(self, text: str) -> tuple[str, int]:
        way, _, rank = text.partition(":")
        if way in ("lora", BOTTLENECK):
            return way, int(rank or self.rank)
        return ("frozen" if way == "none" else way), 0


@dataclass(frozen=True)
class LargeBase:
    """What a recipe does otherwise for a base far larger than the embedded one; 0 for nothing. See `policies.dose`.

    Attributes:
        learning_rate: instead of the recipe's.
        rank: instead of the recipe's.
        windows_per_chunk: windows that are drawn for every length of a chunk in the demonstrations: sets the steps.
        micro_batch: most windows that are computed at once.
    """

    learning_rate: float = from_0(0.0)
    rank: int = between(0, 0, HIGHEST_RANK)
    windows_per_chunk: float = from_0(0.0)
    micro_batch: int = between(0, 0, MOST)


def recipe_names() -> list[str]:
    """The recipes that ship with the tool."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_recipe(name: str, **overrides: Any) -> Recipe:
    """Load a recipe by name or YAML path; overrides that are None are left out.

    Raises:
        ConfigError: unknown recipe, unknown or ill-typed keys (all problems of a file at once), or nothing to be done.
    """
    path = Path(name) if name.endswith(RECIPE_FILES) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"There is no recipe '{name}'", expected=f"one of {', '.join(recipe_names())}, or the path of a YAML file"
        )
    document = read_options(path)
    document.update({key: value for key, value in overrides.items() if value is not None})
    problems = _problems(document)
    if problems:
        raise ConfigError(f"The recipe {name} cannot be used: {'; '.join(problems)}")
    recipe = Recipe(name=path.stem, **document)
    if not (recipe.trains or recipe.calibrate):
        raise ConfigError(
            f"The recipe {name} changes nothing: every modality is frozen, and it does not calibrate",
            expected="a modality that is trained, or calibrate: true",
            hint="--action lora, or --calibrate",
        )
    _check_bottlenecks(recipe)
    _check_alpha(recipe)
    _check_micro_batch(recipe)
    return recipe


def divisors(number: int) -> list[int]:
    """What divides a number, itself included, the smallest first."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _check_micro_batch(recipe: Recipe) -> None:
    """Refuse a batch that is no whole number of micro-batches.

    Raises:
        ConfigError: it is not.
    """
    if recipe.batch_size % recipe.at_once:
        fitting = divisors(recipe.batch_size)
        nearest = max(d for d in fitting if d <= recipe.at_once) if recipe.at_once < recipe.batch_size else 0
        raise ConfigError(
            f"A batch of {recipe.batch_size} windows is no whole number of micro-batches of {recipe.at_once}",
            expected=f"a micro-batch of {', '.join(map(str, fitting[:-1]))}, or 0 for the whole batch"
            if len(fitting) < 12
            else f"a micro-batch that divides {recipe.batch_size}, or 0 for the whole batch",
            hint=f"--micro-batch {nearest}",
        )


def _check_bottlenecks(recipe: Recipe) -> None:
    """Refuse bottlenecks beside weights of the base that move.

    Raises:
        ConfigError: another modality is trained otherwise.
    """
    ways = {name: way for name, (way, _) in recipe.modalities().items()}
    others = [f"{name}: {way}" for name, way in ways.items() if way not in (BOTTLENECK, "frozen")]
    if BOTTLENECK in ways.values() and others:
        own = [name for name, way in ways.items() if way == BOTTLENECK]
        raise ConfigError(
            f"The recipe {recipe.name} has bottlenecks in {' and '.join(own)} beside {', '.join(others)}: an adapter "
            "is of bottlenecks alone, or of LoRA and weights trained in full",
            expected="every modality bottleneck (or bottleneck:WIDTH) or frozen, or none of them bottleneck",
            hint=" ".join(f"--{other.partition(':')[0]} {BOTTLENECK}" for other in others) + ", or frozen",
        )


def _check_alpha(recipe: Recipe) -> None:
    """Refuse an alpha that a modality with a LoRA rank of its own would not follow.

    Raises:
        ConfigError: there is such a modality, and alpha / rank is not 1.
    """
    own = [
        f"{name}: lora:{rank}"
        for name, (way, rank) in recipe.modalities().items()
        if way == "lora" and rank != recipe.rank
    ]
    if own and recipe.alpha != recipe.rank:
        raise ConfigError(
            f"The recipe {recipe.name} scales LoRA by alpha / rank = {recipe.alpha:g} / {recipe.rank}, but has a rank "
            f"of its own for {', '.join(own)}, where alpha is that rank",
            expected="one rank for all that LoRA trains, or alpha equal to rank",
            hint="`rank` with that number and `lora` in the place of lora:RANK, or the same `rank` and `alpha`",
        )


def _problems(document: dict[str, Any]) -> list[str]:
    known = {f.name: f for f in fields(Recipe) if f.name != "name"}
    found = [f"unknown key '{key}' (known: {', '.join(known)})" for key in document if key not in known]
    if document.get("method") not in METHODS:
        found.append(f"method is {document.get('method')!r}, not {', '.join(METHODS[:-1])} or {METHODS[-1]}")
    for key in MODALITY_KEYS:
        value = document.get(key, "")
        if value and not (isinstance(value, str) and _WAY.fullmatch(value)):
            found.append(f"{key} is {value!r}, not full, frozen, lora, lora:RANK, bottleneck or bottleneck:WIDTH")
    if document.get("adapt", "always") not in ("always", "when-needed"):
        found.append(f"adapt is {document['adapt']!r}, not always or when-needed")
    for key in ("calibrate", "compensate"):
        if not isinstance(document.get(key, False), bool):
            found.append(f"{key} is {document[key]!r}, not true or false")
    optional = document.get("optional", {})
    if not isinstance(optional, dict) or any(
        not isinstance(needs, list) or set(needs) - {"replay", "alternatives"} for needs in optional.values()
    ):
        found.append("optional is not a mapping of method to [replay, alternatives]")
    found += _guidance_problems(document.get("guidance", {}))
    found += _large_base_problems(document.get("large_base", {}))
    if document.get("heads", "auto") not in ("full", "lora", "auto"):
        found.append(f"heads is {document['heads']!r}, not full, lora or auto")
    found += _number_problems({f.name: document[f.name] for f in known.values() if f.metadata and f.name in document})
    retention = document.get("retention", {})
    if not isinstance(retention, dict) or not all(isinstance(v, dict) for v in retention.values()):
        found.append("retention is not a mapping of method to options")
    return found


def _number_problems(given: dict[str, Any]) -> list[str]:
    """What is wrong with those keys whose fields have limits."""
    wrong = ill_typed(Recipe, given)
    sound = Recipe(name="", method="", **{key: value for key, value in given.items() if key not in wrong})
    return [f"{key} is {given[key]!r}, not {expected}" for key, expected in {**wrong, **beyond(sound)}.items()]


def _large_base_problems(given: Any) -> list[str]:
    known = [f.name for f in fields(LargeBase)]
    if not isinstance(given, dict) or set(given) - set(known):
        return [f"large_base is not a mapping of some of {', '.join(known)}"]
    wrong = ill_typed(LargeBase, given)
    sound = LargeBase(**{key: value for key, value in given.items() if key not in wrong})
    found = {**wrong, **beyond(sound)}
    return [f"large_base's {key} is {given[key]!r}, not {expected}" for key, expected in found.items()]


def _guidance_problems(guidance: Any) -> list[str]:
    """Both keys or none: a kind there is, and a number or "auto"."""
    if not isinstance(guidance, dict) or (guidance and set(guidance) != {"kind", "weight"}):
        return ["guidance is not a mapping of kind and weight"]
    found = []
    if guidance and guidance["kind"] not in KINDS:
        found.append(f"guidance's kind is {guidance['kind']!r}, not one of {', '.join(KINDS)}")
    if guidance and guidance["weight"] != AUTO:
        try:
            check_weight(guidance["weight"])
        except ConfigError:
            found.append(f"guidance's weight is {guidance['weight']!r}, not a finite number or {AUTO}")
    return found
