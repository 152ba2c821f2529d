"""What a fine-tuning was asked for, checked and read before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vla_cli.adapter import Kind, PolicySpec, digest_tokenizer, has_spec, load_spec
from vla_cli.calibration import FILE_NAME as DOMAIN
from vla_cli.configs import FinetuneConfig
from vla_cli.dataset import Dataset, load_dataset
from vla_cli.errors import ConfigError, InputError
from vla_cli.files import check_output, check_resumable
from vla_cli.language.alternatives import Alternative, document, load_alternatives
from vla_cli.matching import Base, adapted_spec, replay_differs
from vla_cli.policies.adaptation import layout_of
from vla_cli.policies.checkpoint import (
    BaseFiles,
    family_of,
    load_config,
    load_prompts,
    locate_base,
    locate_tokenizer,
)
from vla_cli.policies.device import pick_device
from vla_cli.policies.dose import Data, dose_for
from vla_cli.policies.quantization import check_available
from vla_cli.policies.trainer import Settings
from vla_cli.policies.weight_files import count_weights
from vla_cli.progress import Progress
from vla_cli.provenance import RunRecord, describe_input
from vla_cli.recipe import AUTO, Recipe
from vla_cli.replay import load_replay
from vla_cli.retention import Method
from vla_cli.retention.composition import shares
from vla_cli.retention.selection import select_methods
from vla_cli.stages.finetune.options import recipe_for
from vla_cli.windows import Windows

STAGE = "finetune"


@dataclass
class Plan:
    """Everything read and checked before any weight is loaded.

    Attributes:
        config: what was asked for.
        recipe: how to fine-tune.
        dataset: demonstrations.
        files: of the base.
        spec: how the adapted policy is to be fed.
        request: what determines the adapter.
        warnings: sentences a person should read.
        alternatives: what else could be asked in the demonstrated scenes.
        methods: of retention, by name.
        left_out: optional methods that cannot work with what was given, and why.
        fed_otherwise: the base has statistics of its own, and is fed with the demonstrations': it cannot teach.
        used: what of "replay" and "alternatives" can change the adapter.
    """

    config: FinetuneConfig
    recipe: Recipe
    dataset: Dataset
    files: BaseFiles
    spec: PolicySpec
    request: dict[str, Any]
    warnings: list[str]
    alternatives: list[Alternative]
    methods: dict[str, Method]
    left_out: dict[str, str]
    fed_otherwise: bool
    used: set[str]


def prepare(config: FinetuneConfig) -> Plan:
    """Check the options, and read all that they name but weights."""
    check_output(config.out, overwrite=config.overwrite, resume=config.resume, inputs=config.inputs())
    recipe = recipe_for(config)
    pick_device(config.device)
    dataset = load_dataset(config.dataset)
    if not dataset.train:
        raise InputError(
            f"{config.dataset} has no training episodes", hint="vla preprocess with a smaller --val-fraction"
        )
    _check_held_out(config, recipe, dataset)
    if recipe.is_quantized:
        check_available()
    files = locate_base(config.base)
    warnings: list[str] = []
    base = _base(files)
    recipe, dose = _dosed(config, recipe, files, Data(sum(len(d) for d in dataset.split("train")), base.chunk_size))
    warnings += [dose] if dose else []
    Windows(dataset.split("train"), dataset.cameras, base.chunk_size)  # refused before any weight is loaded
    spec = adapted_spec(dataset, base, recipe, kind=_kind(recipe), tokenizer=config.tokenizer, warnings=warnings)
    spec = replace(spec, tokenizer_digest=digest_tokenizer(locate_tokenizer(files, spec.tokenizer), spec.family))
    prompts = load_prompts(files, spec.tokenizer)  # refused before any weight is loaded, and where none is trained
    instructions = sorted({text for d in dataset.split("train") for text in d.instructions})
    if not instructions:
        warnings.append(
            "No training episode has an instruction: the policy is trained on the empty prompt and cannot be steered. "
            "vla collect-ingest --instruction states one."
        )
    alternatives = load_alternatives(config.alternatives) if config.alternatives else []
    warnings += prompts.beyond_usual([*instructions, *(alternative.instruction for alternative in alternatives)])
    request = {
        **config.request(),
        "alternatives": document(alternatives),
        "recipe": recipe.document(),
        "dataset": describe_input(config.dataset),
        "base": {"name": files.reference.name, "digest": files.reference.digest},
        "domain": describe_input(files.directory / DOMAIN) if (files.directory / DOMAIN).is_file() else None,
        "replay": describe_input(config.replay) if config.replay else None,
    }
    # they change speed, or how often the run can be picked up again, not what comes out of it
    for key in ("checkpoint_every", "threads"):
        request.pop(key)
    for key in ("early_stopping", "quantize", "micro_batch", "rank_energy"):  # as older versions wrote it
        if request[key] is None:
            request.pop(key)
    check_resumable(config.out, request, resume=config.resume)
    given = {"replay": config.replay is not None, "alternatives": bool(alternatives)}
    fed_otherwise = base.own is not None and spec.statistics_from != "base"
    methods, left_out = select_methods(recipe, given, config.dataset, fed_otherwise=fed_otherwise)
    _check_quantized(recipe, methods)
    used = _uses(recipe, methods, files, spec, fed_otherwise=fed_otherwise)
    warnings += [
        f"--{name} is given, but recipe '{recipe.name}' does not use it."
        for name, there in given.items()
        if there and name not in used
    ]
    shares(methods, recipe.at_once)  # refused before any weight is loaded
    warnings += [text for method in methods.values() for text in method.caveats(recipe.at_once)]
    return Plan(
        config, recipe, dataset, files, spec, request, warnings, alternatives, methods, left_out, fed_otherwise, used
    )


def _dosed(config: FinetuneConfig, recipe: Recipe, files: BaseFiles, data: Data) -> tuple[Recipe, str]:
    options = ("steps", "learning_rate", "rank", "micro_batch")
    given = [name for name in options if getattr(config, name) is not None]
    return dose_for(recipe, parameters=count_weights(files.directory), data=data, given=given)


def _check_held_out(config: FinetuneConfig, recipe: Recipe, dataset: Dataset) -> None:
    """Refuse early stopping where nothing tells when to stop.

    Raises:
        ConfigError: no demonstration is held out.
    """
    if recipe.early_stopping and recipe.trains and not dataset.valid:
        raise ConfigError(
            f"Early stopping after {recipe.early_stopping} steps goes by the loss on demonstrations that are not "
            f"trained on, and {config.dataset} holds none out",
            expected="a dataset with held-out episodes",
            hint="vla preprocess with --val-fraction 0.1 or --split operator, or --early-stopping 0",
        )


def _check_quantized(recipe: Recipe, methods: Mapping[str, Method]) -> None:
    """Refuse methods that no base in 4 bits can serve.

    Raises:
        ConfigError: there is one.
    """
    asking = [name for name, method in methods.items() if method.differentiates_base]
    if recipe.is_quantized and asking:
        raise ConfigError(
            f"The recipe's '{asking[0]}' takes gradients of the base's own weights, and a base in 4 bits has none",
            expected=f"a whole base, or a recipe without '{asking[0]}'",
            hint="--quantize none",
        )


def _uses(
    recipe: Recipe, methods: dict[str, Method], files: BaseFiles, spec: PolicySpec, *, fed_otherwise: bool
) -> set[str]:
    """What of "replay" and "alternatives" can change the adapter."""
    used = {need for method in methods.values() for need in method.needs()}
    if recipe.calibrate and spec.statistics_from == "base" and not (files.directory / DOMAIN).is_file():
        used.add("replay")
    if measures_guidance(recipe, fed_otherwise=fed_otherwise):
        used.add("alternatives")
    return used


def of_no_use(prepared: Plan) -> list[str]:
    """What was given for the training of weights alone, and so is of no use where none are trained."""
    given = {"replay": prepared.config.replay is not None, "alternatives": bool(prepared.alternatives)}
    # of a frozen base no guidance is measured
    anyway = _uses(prepared.recipe, {}, prepared.files, prepared.spec, fed_otherwise=True)
    return [name for name, there in given.items() if there and name in prepared.used - anyway]


def measures_guidance(recipe: Recipe, *, fed_otherwise: bool) -> bool:
    """Whether a weight of guidance is to be measured, which takes trained weights and a base to compare with."""
    return recipe.trains and recipe.guidance.get("weight") == AUTO and not fed_otherwise


def keeps_the_base(prepared: Plan) -> bool:
    """Whether the frozen base stays in memory beside the policy that trains."""
    asked = measures_guidance(prepared.recipe, fed_otherwise=prepared.fed_otherwise) and bool(prepared.alternatives)
    return prepared.recipe.trains and (asked or any(method.keeps_base for method in prepared.methods.values()))


def _base(files: BaseFiles) -> Base:
    family = family_of(files.directory)
    own = load_spec(files.directory) if has_spec(files.directory) else None
    limits = family.limits(load_config(files.directory), own)
    return Base(
        reference=files.reference,
        own=own,
        action_limit=limits.actions,
        state_limit=limits.state,
        image_size=limits.image_size,
        chunk_size=limits.chunk_size,
        family=family.name,
        action_tokens={} if own else family.action_tokens(files),
        heads=limits.heads,
    )


def loop_settings(prepared: Plan, own: float) -> Settings:
    """Of the training loop, where `own` of the windows computed at once are the demonstrations' on average."""
    config, recipe = prepared.config, prepared.recipe
    return Settings(
        # the demonstrations are seen as often as without the windows that others fill: N / (1 - lambda) steps
        steps=round(recipe.steps * recipe.at_once / own) if recipe.compensate else recipe.steps,
        learning_rate=recipe.learning_rate,
        noise_draws=recipe.noise_draws,
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        clip=recipe.clip,
        seed=config.seed,
        checkpoint_every=config.checkpoint_every,
        early_stopping=recipe.early_stopping,
        parts=recipe.parts,
    )


def _kind(recipe: Recipe) -> Kind:
    if not recipe.trains:
        return "frozen"
    return layout_of(recipe).kind


def train_heads(prepared: Plan) -> bool:
    """Whether the state and action projections are trained outright: a robot that is new to the base needs it."""
    wish = prepared.recipe.heads
    return wish == "full" or (wish == "auto" and prepared.spec.statistics_from == "dataset")


def replay_windows(prepared: Plan, record: RunRecord, progress: Progress) -> Windows | None:
    """Base-domain windows, when given and of use; a warning where they look like another robot's."""
    config = prepared.config
    if config.replay is None or "replay" not in prepared.used:
        return None
    replay, skipped = load_replay(config.replay, prepared.dataset, prepared.spec.chunk_size)
    for episode in skipped:
        record.skip(f"replay/{episode.name}", episode.reason)
    # under the base's own statistics replay is what the base was trained with, however unlike the demonstrations
    if prepared.spec.statistics_from == "dataset" and (said := replay_differs(prepared.dataset, replay.demonstrations)):
        record.warn(said)
        progress.note(said)
    return replay
