"""`vla finetune`: a dataset and a base policy become an adapter."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from vla_cli.adapter import Kind, PolicySpec, digest_tokenizer, has_spec, load_spec, save_spec
from vla_cli.calibration import FILE_NAME as DOMAIN
from vla_cli.calibration import Calibration
from vla_cli.calibration.deployment import fit_calibration
from vla_cli.configs import FinetuneConfig
from vla_cli.dataset import Dataset, load_dataset
from vla_cli.errors import ConfigError, InputError, within_memory
from vla_cli.files import building, check_output, check_resumable, is_complete, read_json, write_text
from vla_cli.language.alternatives import Alternative, document, load_alternatives
from vla_cli.matching import Base, adapted_spec, plain_guidance, replay_differs
from vla_cli.policies.adaptation import count_parameters, layout_of, make_trainable, save_trained
from vla_cli.policies.checkpoint import BaseFiles, load_base, load_config, load_prompts, locate_base, locate_tokenizer
from vla_cli.policies.default_guidance import measured_guidance
from vla_cli.policies.estimate import memory, no_time, sizes_of, time_of, untrained
from vla_cli.policies.flow import FlowPolicy, pick_device, set_threads
from vla_cli.policies.need import weights_needed
from vla_cli.policies.trainer import Settings, Trainer, held_out_loss
from vla_cli.progress import SILENT, Progress
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.provenance import RunRecord, describe_input
from vla_cli.recipe import AUTO, Recipe, recipe_for
from vla_cli.replay import load_replay
from vla_cli.retention import FED_OTHERWISE, Context, Method
from vla_cli.retention.composition import Composition, shares
from vla_cli.retention.selection import numbers_kept, select_methods
from vla_cli.windows import Windows

STAGE = "finetune"
_SMALLER = "fewer --noise-draws, lora in place of full (--vision lora, ...), or --device cpu"
HELD_OUT_WINDOWS = 64


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


def plan(config: FinetuneConfig) -> dict[str, Any]:
    """What a run would do, as JSON values (`--dry-run`)."""
    prepared = _prepare(config)
    recipe, dataset = prepared.recipe, prepared.dataset
    record = RunRecord(STAGE, {}, warnings=list(prepared.warnings))
    _replay(prepared, record, SILENT)  # refused where a run would refuse it
    frames = sum(len(d) for d in dataset.split("train"))
    with _fitting_into_memory(recipe):
        estimate = _estimate(prepared)
    return {
        "stage": STAGE,
        "dry_run": True,
        "out": str(config.out),
        "recipe": recipe.document(),
        "base": prepared.spec.base.name if prepared.spec.base else "",
        "statistics_from": prepared.spec.statistics_from,
        "train_episodes": len(dataset.train),
        "train_frames": frames,
        "epochs": round(recipe.steps * recipe.batch_size / max(1, frames), 2),
        "estimate": estimate,
        "warnings": record.warnings,
    }


def _estimate(prepared: Plan) -> dict[str, Any]:
    """Memory and time that training takes; see `policies.estimate`."""
    recipe, methods = prepared.recipe, prepared.methods
    model = load_config(prepared.files.directory)
    sizes = sizes_of(model, layout=layout_of(recipe), train_heads=_train_heads(prepared))
    copies = 2 if _keeps_the_base(prepared) else 1
    if not recipe.trains:
        return {**memory(sizes, copies=copies), **no_time("no weight is trained")}
    kept = numbers_kept(methods.values(), trained=sizes.trained, outright=sizes.outright, held=sizes.held)
    kept += sizes.trained if recipe.early_stopping else 0
    own = recipe.batch_size - sum(shares(methods, recipe.batch_size).values())
    took = time_of(
        lambda: _step(prepared, model),
        sizes,
        steps=_settings(prepared, own).steps,
        beside=list(methods),
        certain=recipe.adapt == "always" or prepared.spec.statistics_from != "base",
    )
    return {**memory(sizes, copies=copies, kept=kept), **took}


def _step(prepared: Plan, model_config: Any) -> Callable[[int], object]:
    """A function that does a training step of a number, on weights drawn at random and without retention methods."""
    config, recipe, spec = prepared.config, prepared.recipe, prepared.spec
    model_config.loss_reduction = "none"
    model = untrained(model_config)
    set_threads(model, config.threads)
    model = make_trainable(model, layout_of(recipe), train_heads=_train_heads(prepared), seed=config.seed)
    policy = FlowPolicy(model, load_prompts(prepared.files, spec.tokenizer), spec, pick_device(config.device))
    windows = Windows(prepared.dataset.split("train"), spec.cameras, spec.chunk_size)
    hooks = Composition({}, windows, recipe.batch_size, config.seed)
    # no length that could make the loss infinite, which says nothing of the base's own weights
    settings = replace(_settings(prepared, recipe.batch_size), learning_rate=1e-9)
    trainer = Trainer(policy, settings, config.out)  # a single step writes none of its files
    return lambda number: trainer.step(number, hooks)


def run(config: FinetuneConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Fine-tune, and write `adapter/`.

    Raises:
        ConfigError: options or recipe that cannot be, an output in the way, or more than memory holds.
        InputError: dataset, base or replay that cannot be used.
    """
    prepared = _prepare(config)
    if is_complete(config.out, prepared.request, resume=config.resume):
        return _summary(config, read_json(config.out / RUN_FILE))
    for warning in prepared.warnings:
        progress.note(warning)
    with building(config.out, prepared.request, overwrite=config.overwrite, resume=config.resume) as partial:
        with _fitting_into_memory(prepared.recipe):
            record = _train(prepared, partial, progress)
        record.save(partial)
    return _summary(config, record.document())


def _fitting_into_memory(recipe: Recipe) -> AbstractContextManager[None]:
    return within_memory("Fine-tuning", hint=f"a --batch-size below {recipe.batch_size}, {_SMALLER}")


def _summary(config: FinetuneConfig, document: dict[str, Any]) -> dict[str, Any]:
    return {
        "stage": STAGE,
        "out": str(config.out),
        "recipe": document["request"]["recipe"]["name"],
        **{key: document[key] for key in ("counts", "facts", "warnings", "skipped")},
    }


def _prepare(config: FinetuneConfig) -> Plan:
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
    files = locate_base(config.base)
    warnings: list[str] = []
    base = _base(files)
    Windows(dataset.split("train"), dataset.cameras, base.chunk_size)  # refused before any weight is loaded
    spec = adapted_spec(dataset, base, recipe, kind=_kind(recipe), tokenizer=config.tokenizer, warnings=warnings)
    spec = replace(spec, tokenizer_digest=digest_tokenizer(locate_tokenizer(files, spec.tokenizer)))
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
    if config.early_stopping is None:  # as older versions wrote it
        request.pop("early_stopping")
    check_resumable(config.out, request, resume=config.resume)
    given = {"replay": config.replay is not None, "alternatives": bool(alternatives)}
    fed_otherwise = base.own is not None and spec.statistics_from != "base"
    methods, left_out = select_methods(recipe, given, config.dataset, fed_otherwise=fed_otherwise)
    used = _uses(recipe, methods, files, spec, fed_otherwise=fed_otherwise)
    warnings += [
        f"--{name} is given, but recipe '{recipe.name}' does not use it."
        for name, there in given.items()
        if there and name not in used
    ]
    shares(methods, recipe.batch_size)  # refused before any weight is loaded
    warnings += [text for method in methods.values() for text in method.caveats(recipe.batch_size)]
    return Plan(
        config, recipe, dataset, files, spec, request, warnings, alternatives, methods, left_out, fed_otherwise, used
    )


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


def _uses(
    recipe: Recipe, methods: dict[str, Method], files: BaseFiles, spec: PolicySpec, *, fed_otherwise: bool
) -> set[str]:
    """What of "replay" and "alternatives" can change the adapter."""
    used = {need for method in methods.values() for need in method.needs()}
    if recipe.calibrate and spec.statistics_from == "base" and not (files.directory / DOMAIN).is_file():
        used.add("replay")
    if _measures_guidance(recipe, fed_otherwise=fed_otherwise):
        used.add("alternatives")
    return used


def _of_no_use(prepared: Plan) -> list[str]:
    """What was given for the training of weights alone, and so is of no use where none are trained."""
    given = {"replay": prepared.config.replay is not None, "alternatives": bool(prepared.alternatives)}
    # of a frozen base no guidance is measured
    anyway = _uses(prepared.recipe, {}, prepared.files, prepared.spec, fed_otherwise=True)
    return [name for name, there in given.items() if there and name in prepared.used - anyway]


def _measures_guidance(recipe: Recipe, *, fed_otherwise: bool) -> bool:
    """Whether a weight of guidance is to be measured, which takes trained weights and a base to compare with."""
    return recipe.trains and recipe.guidance.get("weight") == AUTO and not fed_otherwise


def _base(files: BaseFiles) -> Base:
    model = load_config(files.directory)
    return Base(
        reference=files.reference,
        own=load_spec(files.directory) if has_spec(files.directory) else None,
        action_limit=model.max_action_dim,
        state_limit=model.max_state_dim,
        image_size=model.vlm_config.vision_config.image_size,
        chunk_size=model.chunk_size,
    )


def _train(prepared: Plan, partial: Path, progress: Progress) -> RunRecord:
    config, recipe, spec = prepared.config, prepared.recipe, prepared.spec
    record = RunRecord(STAGE, prepared.request, warnings=list(prepared.warnings))
    replay = _replay(prepared, record, progress)
    calibration = None
    if recipe.calibrate:
        calibration = fit_calibration(
            prepared.dataset,
            spec,
            prepared.files.directory,
            replay,
            only_here=config.deployment_only,
            record=record,
            progress=progress,
        )
    if calibration is not None:
        spec = prepared.spec = replace(spec, calibration=calibration.document())
        calibration.save(partial)
    needed = weights_needed(
        recipe,
        prepared.dataset,
        lambda: _frozen_policy(prepared),
        calibration,
        statistics_from=spec.statistics_from,
        seed=config.seed,
        record=record,
        progress=progress,
    )
    if not needed:
        save_spec(replace(spec, kind="frozen"), partial)
        for name in _of_no_use(prepared):
            record.skip(f"--{name}", "what would use it trains weights, and none were needed")
            progress.note(f"--{name} was not used: what would use it trains weights, and none were needed")
        record.counts = {**_episode_counts(prepared), "steps": 0}
        return record
    dataset = _as_the_base_sees(prepared.dataset, calibration)
    demonstrations = Windows(dataset.split("train"), spec.cameras, spec.chunk_size)
    policy = _trainable_policy(prepared)
    frozen = lru_cache(maxsize=1)(lambda: _frozen_policy(prepared))
    hooks = _retention(prepared, dataset, policy, demonstrations, replay, record, frozen)
    _check_words(prepared, policy, hooks, record, progress)
    settings = _settings(prepared, hooks.own)
    steps = settings.steps
    held_out = _held_out(prepared, dataset, policy)
    trainer = Trainer(policy, settings, partial)
    last, warnings = trainer.run(hooks, progress, held_out)
    if trainer.kept is not None:
        steps = trainer.kept.steps_done
        spec = replace(spec, early_stopping=trainer.kept.document())
        record.facts["early_stopping"] = spec.early_stopping
        progress.note(trainer.kept.words)
    if hooks.after_training():  # what was measured at the end of training is not of the weights that are saved
        watched, warnings = hooks.watch(steps)
        last = {**last, **watched, **({"held_out_loss": held_out()} if held_out is not None else {})}
    for warning in warnings:
        record.warn(warning)
        progress.note(warning)
    for file, svg in hooks.pictures().items():
        write_text(partial / file, svg)
    if recipe.guidance.get("weight") == AUTO:
        spec = replace(spec, guidance=_guidance(prepared, policy, frozen, demonstrations, record))
    save_trained(policy.model, partial, base_name=config.base)
    save_spec(spec, partial)
    record.counts = {**_episode_counts(prepared), "steps": steps}
    record.facts = {
        **record.facts,
        "trained_parameters": count_parameters(policy.model),
        "last_step": last,
        "statistics_from": spec.statistics_from,
        "retention": hooks.facts(),
    }
    return record


def _settings(prepared: Plan, own: float) -> Settings:
    """Of the training loop, where `own` windows of a batch are the demonstrations' on average."""
    config, recipe = prepared.config, prepared.recipe
    return Settings(
        # the demonstrations are seen as often as without the windows that others fill: N / (1 - lambda) steps
        steps=round(recipe.steps * recipe.batch_size / own) if recipe.compensate else recipe.steps,
        learning_rate=recipe.learning_rate,
        noise_draws=recipe.noise_draws,
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        clip=recipe.clip,
        seed=config.seed,
        checkpoint_every=config.checkpoint_every,
        early_stopping=recipe.early_stopping,
    )


def _trainable_policy(prepared: Plan) -> FlowPolicy:
    recipe = prepared.recipe
    model, prompts, _ = load_base(prepared.config.base, tokenizer=prepared.spec.tokenizer)
    set_threads(model, prepared.config.threads)
    model = make_trainable(model, layout_of(recipe), train_heads=_train_heads(prepared), seed=prepared.config.seed)
    return FlowPolicy(model, prompts, prepared.spec, pick_device(prepared.config.device))


def _kind(recipe: Recipe) -> Kind:
    if not recipe.trains:
        return "frozen"
    return "lora" if layout_of(recipe).is_peft else "full"


def _train_heads(prepared: Plan) -> bool:
    """Whether the state and action projections are trained outright: a robot that is new to the base needs it."""
    wish = prepared.recipe.heads
    return wish == "full" or (wish == "auto" and prepared.spec.statistics_from == "dataset")


def _keeps_the_base(prepared: Plan) -> bool:
    """Whether the frozen base stays in memory beside the policy that trains."""
    asked = _measures_guidance(prepared.recipe, fed_otherwise=prepared.fed_otherwise) and bool(prepared.alternatives)
    return prepared.recipe.trains and (asked or any(method.keeps_base for method in prepared.methods.values()))


def _check_words(prepared: Plan, policy: FlowPolicy, hooks: Composition, record: RunRecord, progress: Progress) -> None:
    """Warn of words that the policy is told but cannot read."""
    phrasings = hooks.facts().get("paraphrase", {}).get("phrasings", {})
    told = {
        "the instructions'": prepared.spec.instructions,
        "the alternatives'": [alternative.instruction for alternative in prepared.alternatives],
        "the paraphrases'": [text for texts in phrasings.values() for text in texts],
    }
    for whose, texts in told.items():
        unknown = sorted({word for text in texts for word in policy.prompts.unknown_words(text)})
        if unknown:
            record.warn(
                f"The base's tokenizer does not know {len(unknown)} of {whose} words ({', '.join(unknown[:8])}): "
                "it cannot tell them from each other."
            )
            progress.note(record.warnings[-1])


def _guidance(
    prepared: Plan, policy: FlowPolicy, frozen: Callable[[], FlowPolicy], demonstrations: Windows, record: RunRecord
) -> dict[str, Any]:
    """The adapter's default guidance, its weight measured where there is a base to measure it beside."""
    if prepared.fed_otherwise:
        return plain_guidance(f"its weight is to be measured beside the base, but {FED_OTHERWISE}")
    return measured_guidance(
        prepared.recipe.guidance["kind"],
        prepared.spec,
        policy,
        frozen,
        demonstrations,
        prepared.alternatives,
        seed=prepared.config.seed,
        record=record,
    )


def _cache() -> Path:
    """Where what depends on base and base-domain data alone is kept between runs (EWC's Fisher information)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vla-cli" / "fisher"


def _episode_counts(prepared: Plan) -> dict[str, int]:
    return {
        "train_episodes": len(prepared.dataset.train),
        "held_out_episodes": len(prepared.dataset.valid),
        "train_windows": sum(len(d) for d in prepared.dataset.split("train")),
    }


def _replay(prepared: Plan, record: RunRecord, progress: Progress) -> Windows | None:
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


def _as_the_base_sees(dataset: Dataset, calibration: Calibration | None) -> Dataset:
    if calibration is None:
        return dataset
    return replace(dataset, demonstrations=[calibration.demonstration(d) for d in dataset.demonstrations])


def _retention(
    prepared: Plan,
    dataset: Dataset,
    policy: FlowPolicy,
    demonstrations: Windows,
    replay: Windows | None,
    record: RunRecord,
    frozen: Callable[[], FlowPolicy],
) -> Composition:
    config, recipe = prepared.config, prepared.recipe
    for name, why in prepared.left_out.items():
        record.skip(f"retention/{name}", why)
    hooks = Composition(prepared.methods, demonstrations, recipe.batch_size, config.seed)
    held_out = dataset.split("valid")
    hooks.prepare(
        Context(
            policy=policy,
            frozen=frozen,
            demonstrations=demonstrations,
            held_out=Windows(held_out, prepared.spec.cameras, prepared.spec.chunk_size) if held_out else None,
            replay=replay,
            alternatives=prepared.alternatives,
            seed=config.seed,
            steps=recipe.steps,
            batch_size=recipe.batch_size,
            cache=_cache(),
        )
    )
    return hooks


def _frozen_policy(prepared: Plan) -> FlowPolicy:
    """The untouched base, fed like the policy that is trained."""
    model, prompts, _ = load_base(prepared.config.base, tokenizer=prepared.spec.tokenizer)
    model.requires_grad_(False).eval()
    return FlowPolicy(model, prompts, prepared.spec, pick_device(prepared.config.device))


def _held_out(prepared: Plan, dataset: Dataset, policy: FlowPolicy) -> Any:
    valid = dataset.split("valid")
    if not valid:
        return None
    windows = Windows(valid, prepared.spec.cameras, prepared.spec.chunk_size)
    samples = windows.gather(windows.spread(HELD_OUT_WINDOWS))
    return lambda: held_out_loss(policy, samples, draws=4, seed=prepared.config.seed)
