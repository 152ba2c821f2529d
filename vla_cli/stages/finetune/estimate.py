"""The memory and the time that a fine-tuning would take, for its dry run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vla_cli.adapter import FLOW
from vla_cli.policies.adaptation import layout_of, make_trainable
from vla_cli.policies.checkpoint import family_of, load_config, load_prompts
from vla_cli.policies.device import pick_device, set_threads
from vla_cli.policies.estimate import Pass, activation_bytes, memory, no_time, sizes_of, time_of, untrained
from vla_cli.policies.trainer import Trainer
from vla_cli.retention.composition import Composition, shares
from vla_cli.retention.selection import numbers_kept
from vla_cli.stages.finetune.preparation import Plan, keeps_the_base, loop_settings, train_heads
from vla_cli.windows import Windows


def estimate_run(prepared: Plan) -> dict[str, Any]:
    """Memory and time that training takes; see `policies.estimate`."""
    recipe, methods = prepared.recipe, prepared.methods
    model = load_config(prepared.files.directory)
    sizes = sizes_of(model, layout=layout_of(recipe), train_heads=train_heads(prepared))
    copies = 2 if keeps_the_base(prepared) else 1
    if not recipe.trains:
        return {**memory(sizes, copies=copies), **no_time("no weight is trained")}
    kept = numbers_kept(methods.values(), trained=sizes.trained, outright=sizes.outright, held=sizes.held)
    kept += sizes.trained if recipe.early_stopping else 0
    own = recipe.at_once - sum(shares(methods, recipe.at_once).values())
    activations = None
    if prepared.spec.family == FLOW:
        passed = Pass(
            windows=recipe.at_once,
            draws=recipe.noise_draws,
            cameras=len(prepared.spec.cameras),
            tokens=_longest_prompt(prepared),
        )
        activations = activation_bytes(model, passed, layout=layout_of(recipe), train_heads=train_heads(prepared))
    took = time_of(
        lambda: _step(prepared, model),
        sizes,
        steps=loop_settings(prepared, own).steps,
        beside=list(methods),
        certain=recipe.adapt == "always" or prepared.spec.statistics_from != "base",
    )
    return {**memory(sizes, copies=copies, kept=kept, activations=activations), **took}


def _longest_prompt(prepared: Plan) -> int:
    """Tokens of the longest prompt of a batch, the pictures' included."""
    shown = sorted({text for demo in prepared.dataset.split("train") for text in demo.instructions}) or [""]
    ids, _ = load_prompts(prepared.files, prepared.spec.tokenizer)(shown, len(prepared.spec.cameras))
    return ids.shape[1]


def _step(prepared: Plan, model_config: Any) -> Callable[[int], object]:
    """A function that does a training step of a number, on weights drawn at random and without retention methods."""
    config, recipe, spec = prepared.config, prepared.recipe, prepared.spec
    family = family_of(prepared.files.directory)
    model = untrained(family.for_training(model_config))
    set_threads(model, config.threads)
    model = make_trainable(model, layout_of(recipe), train_heads=train_heads(prepared), seed=config.seed)
    policy = family.policy(model, load_prompts(prepared.files, spec.tokenizer), spec, pick_device(config.device))
    windows = Windows(prepared.dataset.split("train"), spec.cameras, spec.chunk_size)
    hooks = Composition({}, windows, recipe.at_once, config.seed)
    # no length that could make the loss infinite, which says nothing of the base's own weights
    settings = replace(loop_settings(prepared, recipe.at_once), learning_rate=1e-9)
    trainer = Trainer(policy, settings, config.out)  # a single step writes none of its files
    return lambda number: trainer.step(number, hooks)
