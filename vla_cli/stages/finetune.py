"""`vla finetune`: a dataset and a base policy become an adapter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.adapter import PolicySpec, has_spec, load_spec, save_spec
from vla_cli.configs import FinetuneConfig
from vla_cli.dataset import Dataset, load_dataset
from vla_cli.errors import ConfigError, InputError
from vla_cli.files import building, check_output, is_complete, read_json
from vla_cli.policies.adaptation import count_parameters, estimate, make_full, make_lora, save_trained
from vla_cli.policies.checkpoint import BaseFiles, load_base, load_config, locate_base
from vla_cli.policies.flow import FlowPolicy, pick_device, set_threads
from vla_cli.policies.trainer import Settings, Trainer, held_out_loss
from vla_cli.progress import SILENT, Progress
from vla_cli.provenance import FILE_NAME as RUN_FILE
from vla_cli.provenance import RunRecord, describe_input
from vla_cli.recipe import Recipe, load_recipe
from vla_cli.replay import load_replay
from vla_cli.retention import RETENTION, Context, Retention
from vla_cli.windows import Samples, Windows

STAGE = "finetune"
HELD_OUT_WINDOWS = 64
LARGEST_SCORE = 10.0
"""Above this normalised value the base's statistics do not describe the new robot's data any more."""


@dataclass
class Plan:
    """Everything read and checked before any weight is loaded."""

    config: FinetuneConfig
    recipe: Recipe
    dataset: Dataset
    files: BaseFiles
    spec: PolicySpec
    request: dict[str, Any]
    warnings: list[str]


def plan(config: FinetuneConfig) -> dict[str, Any]:
    """What a run would do, as JSON values (`--dry-run`)."""
    prepared = _prepare(config)
    recipe, dataset = prepared.recipe, prepared.dataset
    frames = sum(len(d) for d in dataset.split("train"))
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
        "estimate": estimate(
            load_config(prepared.files.directory),
            method=recipe.method,
            rank=recipe.rank,
            train_heads=_train_heads(prepared),
        ),
        "warnings": prepared.warnings,
    }


def run(config: FinetuneConfig, progress: Progress = SILENT) -> dict[str, Any]:
    """Fine-tune, and write `adapter/`.

    Raises:
        ConfigError: options or recipe that cannot be, an output in the way.
        InputError: dataset, base or replay that cannot be used.
    """
    check_output(config.out, overwrite=config.overwrite, resume=config.resume)
    prepared = _prepare(config)
    if is_complete(config.out, prepared.request, resume=config.resume):
        return _summary(config, read_json(config.out / RUN_FILE))
    for warning in prepared.warnings:
        progress.note(warning)
    with building(config.out, prepared.request, overwrite=config.overwrite, resume=config.resume) as partial:
        record = _train(prepared, partial, progress)
        record.save(partial)
    return _summary(config, record.document())


def _summary(config: FinetuneConfig, document: dict[str, Any]) -> dict[str, Any]:
    return {
        "stage": STAGE,
        "out": str(config.out),
        "recipe": document["request"]["recipe"]["name"],
        **{key: document[key] for key in ("counts", "facts", "warnings", "skipped")},
    }


def _prepare(config: FinetuneConfig) -> Plan:
    recipe = load_recipe(
        config.recipe,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        noise_draws=config.noise_draws,
        **({"rank": config.rank, "alpha": config.rank} if config.rank else {}),
    )
    recipe = _with_replay_fraction(recipe, config)
    dataset = load_dataset(config.dataset)
    if not dataset.train:
        raise InputError(
            f"{config.dataset} has no training episodes", hint="vla preprocess with a smaller --val-fraction"
        )
    files = locate_base(config.base)
    warnings: list[str] = []
    spec = _spec(dataset, files, recipe, config.tokenizer, warnings)
    instructions = sorted({text for d in dataset.split("train") for text in d.instructions})
    if not instructions:
        warnings.append(
            "No training episode has an instruction: the policy is trained on the empty prompt and cannot be steered. "
            "vla collect-ingest --instruction states one."
        )
    if config.replay is not None and not recipe.retention:
        warnings.append(f"--replay is given, but recipe '{recipe.name}' does not use it.")
    request = {
        **config.request(),
        "recipe": recipe.document(),
        "dataset": describe_input(config.dataset),
        "base": {"name": files.reference.name, "digest": files.reference.digest},
        "replay": describe_input(config.replay) if config.replay else None,
    }
    # they change speed, or how often the run can be picked up again, not what comes out of it
    for key in ("checkpoint_every", "threads"):
        request.pop(key)
    return Plan(config, recipe, dataset, files, spec, request, warnings)


def _with_replay_fraction(recipe: Recipe, config: FinetuneConfig) -> Recipe:
    if config.replay_fraction is None:
        return recipe
    if "rehearsal" not in recipe.retention:
        raise ConfigError(
            f"--replay-fraction is given, but recipe '{recipe.name}' does not rehearse", hint="--recipe rehearse"
        )
    rehearsal = {**recipe.retention["rehearsal"], "fraction": config.replay_fraction}
    return Recipe(**{**recipe.document(), "retention": {**recipe.retention, "rehearsal": rehearsal}})


def _spec(dataset: Dataset, files: BaseFiles, recipe: Recipe, tokenizer: str, warnings: list[str]) -> PolicySpec:
    """How the adapted policy is to be fed: the base's own way where it fits, else the dataset's."""
    model = load_config(files.directory)
    own = load_spec(files.directory) if has_spec(files.directory) else None
    for noun, names, limit in (
        ("action", dataset.action_names, model.max_action_dim),
        ("state", dataset.state_names, model.max_state_dim),
    ):
        if len(names) > limit:
            raise InputError(
                f"The dataset has {len(names)} {noun} dimensions, but the base takes at most {limit}",
                expected=f"at most {limit}",
                hint=f"vla preprocess with --{noun}-dims, e.g. --{noun}-dims 0-{limit - 1} "
                f"(they are: {', '.join(names[:4])}, ..., {names[-1]})",
            )
    keep = own is not None and _fits(dataset, own, warnings)
    statistics = (own.state, own.actions) if own is not None and keep else _dataset_statistics(dataset)
    if own is not None and abs(own.rate_hz - dataset.rate_hz) > 0.05 * own.rate_hz:
        warnings.append(
            f"The dataset's control rate is {dataset.rate_hz:g} Hz, the base's {own.rate_hz:g} Hz: "
            "one chunk covers another length of time than the base learned."
        )
    return PolicySpec(
        family="flow",
        kind="lora" if recipe.method == "lora" else "full",
        cameras=dataset.cameras,
        image_size=own.image_size if own else model.vlm_config.vision_config.image_size,
        state_names=dataset.state_names,
        action_names=dataset.action_names,
        rate_hz=dataset.rate_hz,
        chunk_size=model.chunk_size,
        execute_steps=own.execute_steps if own else max(1, model.chunk_size // 2),
        state=statistics[0],
        actions=statistics[1],
        statistics_from="base" if keep else "dataset",
        instructions=list(dict.fromkeys(text for d in dataset.split("train") for text in d.instructions)),
        base=files.reference,
        recipe=recipe.name,
        tokenizer=tokenizer,
        world=dataset.world,
    )


def _dataset_statistics(dataset: Dataset) -> tuple[Any, Any]:
    return dataset.statistics.state, dataset.statistics.actions


def _fits(dataset: Dataset, own: PolicySpec, warnings: list[str]) -> bool:
    """Whether the base's statistics describe this robot: equal widths, and no value far outside."""
    state, actions = dataset.statistics.state, dataset.statistics.actions
    if (len(state), len(actions)) != (len(own.state), len(own.actions)):
        warnings.append(
            f"The dataset has {len(state)} state and {len(actions)} action dimensions, the base was trained with "
            f"{len(own.state)} and {len(own.actions)}: this robot is new to the base. The dataset's own statistics are "
            "used and the state and action projections are trained outright; little of what the base could do "
            "can be expected to carry over."
        )
        return False
    largest = max(
        float(np.abs(base.normalise(bound)).max())
        for base, found in ((own.state, state), (own.actions, actions))
        for bound in (found.q01, found.q99)
    )
    if largest > LARGEST_SCORE:
        warnings.append(
            f"Under the base's statistics the demonstrations reach {largest:.1f} standard deviations: other units? "
            "The dataset's own statistics are used."
        )
    return largest <= LARGEST_SCORE


def _train(prepared: Plan, partial: Path, progress: Progress) -> RunRecord:
    config, recipe, spec = prepared.config, prepared.recipe, prepared.spec
    record = RunRecord(STAGE, prepared.request, warnings=list(prepared.warnings))
    demonstrations = Windows(prepared.dataset.split("train"), spec.cameras, spec.chunk_size)
    methods = _retention(prepared, demonstrations, record)
    policy = _trainable_policy(prepared)
    _check_words(policy, spec, record, progress)
    shares = {name: method.share(recipe.batch_size) for name, method in methods.items()}
    own = recipe.batch_size - sum(shares.values())
    if own < 1:
        raise ConfigError(f"The recipe leaves no window of a batch of {recipe.batch_size} to the demonstrations")

    def draw(rng: np.random.Generator) -> dict[str, Samples]:
        groups = {"demonstrations": demonstrations.draw(rng, own)}
        return {**groups, **{name: method.draw(rng, shares[name]) for name, method in methods.items()}}

    settings = Settings(
        steps=recipe.steps,
        learning_rate=recipe.learning_rate,
        noise_draws=recipe.noise_draws,
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        clip=recipe.clip,
        seed=config.seed,
        checkpoint_every=config.checkpoint_every,
    )
    last = Trainer(policy, settings, partial).run(draw, progress, _held_out(prepared, policy))
    save_trained(policy.model, partial, base_name=config.base)
    save_spec(spec, partial)
    record.counts = {
        "train_episodes": len(prepared.dataset.train),
        "held_out_episodes": len(prepared.dataset.valid),
        "train_windows": len(demonstrations),
        "steps": recipe.steps,
    }
    record.facts = {
        "trained_parameters": count_parameters(policy.model),
        "last_step": last,
        "statistics_from": spec.statistics_from,
        "retention": {name: method.facts() for name, method in methods.items()},
    }
    return record


def _trainable_policy(prepared: Plan) -> FlowPolicy:
    recipe = prepared.recipe
    model, prompts, _ = load_base(prepared.config.base, tokenizer=prepared.config.tokenizer)
    set_threads(model, prepared.config.threads)
    if recipe.method == "full":
        model = make_full(model)
    else:
        model = make_lora(
            model,
            rank=recipe.rank,
            alpha=recipe.alpha,
            train_heads=_train_heads(prepared),
            seed=prepared.config.seed,
        )
    return FlowPolicy(model, prompts, prepared.spec, pick_device(prepared.config.device))


def _train_heads(prepared: Plan) -> bool:
    """Whether the state and action projections are trained outright: a robot that is new to the base needs it."""
    wish = prepared.recipe.heads
    return wish == "full" or (wish == "auto" and prepared.spec.statistics_from == "dataset")


def _check_words(policy: FlowPolicy, spec: PolicySpec, record: RunRecord, progress: Progress) -> None:
    unknown = sorted({word for text in spec.instructions for word in policy.prompts.unknown_words(text)})
    if unknown:
        record.warn(
            f"The base's tokenizer does not know {len(unknown)} of the instructions' words ({', '.join(unknown[:8])}): "
            "it cannot tell them from each other."
        )
        progress.note(record.warnings[-1])


def _retention(prepared: Plan, demonstrations: Windows, record: RunRecord) -> dict[str, Retention]:
    methods = {name: RETENTION.get(name)(**options) for name, options in prepared.recipe.retention.items()}
    replay = None
    if prepared.config.replay is not None and methods:
        replay, skipped = load_replay(prepared.config.replay, prepared.dataset, prepared.spec.chunk_size)
        for episode in skipped:
            record.skip(f"replay/{episode.name}", episode.reason)
    for method in methods.values():
        method.prepare(Context(demonstrations, replay))
    return methods


def _held_out(prepared: Plan, policy: FlowPolicy) -> Any:
    valid = prepared.dataset.split("valid")
    if not valid:
        return None
    windows = Windows(valid, prepared.spec.cameras, prepared.spec.chunk_size)
    chosen = np.linspace(0, len(windows) - 1, min(HELD_OUT_WINDOWS, len(windows))).astype(int)
    samples = windows.gather(chosen)
    return lambda: held_out_loss(policy, samples, draws=4, seed=prepared.config.seed)
