"""The fine-tuning itself: calibration, then weights where they are needed, and what is measured of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.action_tokens import beyond_bins
from vla_cli.adapter import save_spec
from vla_cli.calibration import Calibration
from vla_cli.calibration.deployment import fit_calibration
from vla_cli.dataset import Dataset
from vla_cli.files import write_text
from vla_cli.matching import plain_guidance
from vla_cli.policies.adaptation import Layout, count_parameters, layout_of, make_trainable, save_trained
from vla_cli.policies.checkpoint import family_of, load_base
from vla_cli.policies.default_guidance import measured_guidance
from vla_cli.policies.device import pick_device, set_threads
from vla_cli.policies.need import weights_needed
from vla_cli.policies.policy import Policy
from vla_cli.policies.quantization import quantize
from vla_cli.policies.ranks import gradient_ranks, measuring
from vla_cli.policies.telemetry import WINDOWS as CHANGE_WINDOWS
from vla_cli.policies.telemetry import measure_change
from vla_cli.policies.trainer import Trainer, held_out_loss
from vla_cli.progress import Progress
from vla_cli.provenance import RunRecord
from vla_cli.recipe import AUTO
from vla_cli.retention import FED_OTHERWISE, Context
from vla_cli.retention.composition import Composition
from vla_cli.stages.finetune.preparation import STAGE, Plan, loop_settings, of_no_use, replay_windows, train_heads
from vla_cli.windows import Samples, Windows

HELD_OUT_WINDOWS = 64
MOST_BEYOND = 0.05
"""Share of a dimension's actions: two percent lie beyond the quantiles of their own statistics."""


def train(prepared: Plan, partial: Path, progress: Progress) -> RunRecord:
    """Write the adapter's files, but for the record, into `partial`, and pick up what an interrupted run left there.

    Args:
        prepared: what is to be done; its spec gets the calibration.
        partial: the output while it is not whole.
        progress: is told in words and steps.

    Returns:
        The record of the run.

    Raises:
        ConfigError: a retention method cannot work with what it finds.
        InputError: base or replay cannot be used, or the loss stopped being finite.
    """
    config, recipe, spec = prepared.config, prepared.recipe, prepared.spec
    record = RunRecord(STAGE, prepared.request, warnings=list(prepared.warnings))
    replay = replay_windows(prepared, record, progress)
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
        for name in of_no_use(prepared):
            record.skip(f"--{name}", "what would use it trains weights, and none were needed")
            progress.note(f"--{name} was not used: what would use it trains weights, and none were needed")
        record.counts = {**_episode_counts(prepared), "steps": 0}
        return record
    dataset = _as_the_base_sees(prepared.dataset, calibration)
    _check_bins(prepared, dataset, record, progress)
    demonstrations = Windows(dataset.split("train"), spec.cameras, spec.chunk_size)
    policy = _trainable_policy(prepared, demonstrations, record, progress)
    frozen = lru_cache(maxsize=1)(lambda: _frozen_policy(prepared))
    hooks = _retention(prepared, dataset, policy, demonstrations, replay, record, frozen)
    _check_words(prepared, policy, hooks, record, progress)
    settings = loop_settings(prepared, hooks.own)
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
    if recipe.is_quantized:
        spec = replace(spec, quantized=recipe.quantize)
    save_trained(policy.model, partial, base_name=config.base)
    save_spec(spec, partial)
    trainer.forget_checkpoint()
    trainer.release()
    record.facts["change"] = measure_change(policy, frozen, _seen_last(prepared, dataset))
    progress.note(record.facts["change"]["words"])
    record.counts = {**_episode_counts(prepared), "steps": steps}
    record.facts = {
        **record.facts,
        "trained_parameters": count_parameters(policy.model),
        "last_step": last,
        "statistics_from": spec.statistics_from,
        "retention": hooks.facts(),
    }
    return record


def _seen_last(prepared: Plan, dataset: Dataset) -> Samples:
    """A few windows to compare the trained policy's features on: of held-out demonstrations where there are any."""
    some = dataset.split("valid") or dataset.split("train")
    windows = Windows(some, prepared.spec.cameras, prepared.spec.chunk_size)
    return windows.gather(windows.spread(CHANGE_WINDOWS))


def _trainable_policy(prepared: Plan, demonstrations: Windows, record: RunRecord, progress: Progress) -> Policy:
    """The base with what the recipe trains, LoRA's ranks as the demonstrations call for where that is asked for."""
    recipe, layout = prepared.recipe, layout_of(prepared.recipe)
    if not recipe.rank_energy:
        return _laid_out(prepared, layout)
    policy = _laid_out(prepared, measuring(layout))
    ranks = gradient_ranks(
        policy,
        demonstrations,
        layout,
        energy=recipe.rank_energy,
        draws=recipe.noise_draws,
        at_once=recipe.at_once,
        seed=prepared.config.seed,
    )
    record.facts["ranks"] = ranks.document()
    progress.note(ranks.words)
    del policy  # a second model would be too much for some machines
    return _laid_out(prepared, replace(layout, by_layer=ranks.found))


def _laid_out(prepared: Plan, layout: Layout) -> Policy:
    model, prompts, _ = load_base(prepared.config.base, tokenizer=prepared.spec.tokenizer)
    set_threads(model, prepared.config.threads)
    model = make_trainable(model, layout, train_heads=train_heads(prepared), seed=prepared.config.seed)
    return _policy(prepared, model, prompts)


def _check_words(prepared: Plan, policy: Policy, hooks: Composition, record: RunRecord, progress: Progress) -> None:
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


def _check_bins(prepared: Plan, dataset: Dataset, record: RunRecord, progress: Progress) -> None:
    """Warn of actions that a token policy can only write as less than they are."""
    if not prepared.spec.action_tokens:
        return
    actions = np.concatenate([demonstration.actions for demonstration in dataset.split("train")])
    shares = beyond_bins(actions, prepared.spec.actions)
    far = [
        f"{n} {share:.0%}" for n, share in zip(prepared.spec.action_names, shares, strict=True) if share > MOST_BEYOND
    ]
    if far:
        record.warn(
            f"Of the demonstrated actions these shares lie beyond the range that is cut into tokens: {', '.join(far)}. "
            "They are written as its ends. The statistics are "
            f"{'those of the base' if prepared.spec.statistics_from == 'base' else 'of the demonstrations'}."
        )
        progress.note(record.warnings[-1])


def _guidance(
    prepared: Plan, policy: Policy, frozen: Callable[[], Policy], demonstrations: Windows, record: RunRecord
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


def _as_the_base_sees(dataset: Dataset, calibration: Calibration | None) -> Dataset:
    if calibration is None:
        return dataset
    return replace(dataset, demonstrations=[calibration.demonstration(d) for d in dataset.demonstrations])


def _retention(
    prepared: Plan,
    dataset: Dataset,
    policy: Policy,
    demonstrations: Windows,
    replay: Windows | None,
    record: RunRecord,
    frozen: Callable[[], Policy],
) -> Composition:
    config, recipe = prepared.config, prepared.recipe
    for name, why in prepared.left_out.items():
        record.skip(f"retention/{name}", why)
    hooks = Composition(prepared.methods, demonstrations, recipe.at_once, config.seed)
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
            batch_size=recipe.at_once,
            parts=recipe.parts,
            cache=_cache(),
        )
    )
    return hooks


def _frozen_policy(prepared: Plan) -> Policy:
    """The untouched base, fed like the policy that is trained, and in 4 bits where that one's is."""
    model, prompts, _ = load_base(prepared.config.base, tokenizer=prepared.spec.tokenizer)
    layout = layout_of(prepared.recipe)
    if layout.quantized:
        quantize(model, layout.full)
    model.requires_grad_(False).eval()
    return _policy(prepared, model, prompts)


def _policy(prepared: Plan, model: Any, prompts: Any) -> Policy:
    family = family_of(prepared.files.directory)
    return family.policy(model, prompts, prepared.spec, pick_device(prepared.config.device))


def _held_out(prepared: Plan, dataset: Dataset, policy: Policy) -> Any:
    valid = dataset.split("valid")
    if not valid:
        return None
    windows = Windows(valid, prepared.spec.cameras, prepared.spec.chunk_size)
    samples = windows.gather(windows.spread(HELD_OUT_WINDOWS))
    recipe = prepared.recipe
    at_once = recipe.at_once if recipe.parts > 1 else 0
    return lambda: held_out_loss(policy, samples, draws=4, seed=prepared.config.seed, at_once=at_once)
