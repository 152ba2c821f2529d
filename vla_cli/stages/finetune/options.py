"""The recipe that a command asks for, with the command's options in the place of its own."""

from __future__ import annotations

from dataclasses import replace

from vla_cli.configs import FinetuneConfig
from vla_cli.errors import ConfigError
from vla_cli.recipe import BOTTLENECK, NONE, Recipe, load_recipe


def recipe_for(config: FinetuneConfig) -> Recipe:
    """The recipe that is asked for, with the options that are given in the place of its own.

    Raises:
        ConfigError: as for `load_recipe`; or an option is given that this recipe has no use for.
    """
    recipe = load_recipe(
        config.recipe,
        steps=config.steps,
        batch_size=config.batch_size,
        micro_batch=config.micro_batch,
        learning_rate=config.learning_rate,
        noise_draws=config.noise_draws,
        early_stopping=config.early_stopping,
        quantize=config.quantize,
        vision=config.vision,
        language=config.language,
        action=config.action,
        calibrate=config.calibrate,
        rank=config.rank,
        alpha=config.rank,
        rank_energy=config.rank_energy,
    )
    if config.deployment_only and not recipe.calibrate:
        raise ConfigError(
            f"--deployment-only is given, but recipe '{recipe.name}' does not calibrate: there is nothing to keep on",
            hint="the same with --calibrate, or without --deployment-only",
        )
    if config.rank is not None and not recipe.takes_rank:
        raise ConfigError(
            f"--rank is given, but recipe '{recipe.name}' trains no modality by LoRA of the recipe's rank, or by "
            "bottlenecks of that width",
            hint="--recipe lora, or --vision, --language or --action with lora:RANK or bottleneck:WIDTH",
        )
    if recipe.rank_energy and not any(way == "lora" for way, _ in recipe.modalities().values()):
        raise ConfigError(
            f"Recipe '{recipe.name}' is to read LoRA's ranks off the task's gradient, but trains nothing by LoRA",
            hint="--recipe lora, or the same with --rank-energy 0",
        )
    if recipe.is_quantized and not any(way == "lora" for way, _ in recipe.modalities().values()):
        raise ConfigError(
            f"Recipe '{recipe.name}' is to hold the base in 4 bits, but trains nothing by LoRA: "
            + (
                "bottlenecks are trained beside a whole base"
                if any(way == BOTTLENECK for way, _ in recipe.modalities().values())
                else "weights that are trained outright cannot be held so"
            ),
            expected="LoRA beside the 4-bit weights (QLoRA)",
            hint="--recipe lora --quantize nf4, or the same without --quantize",
        )
    if config.quantize not in (None, NONE) and not recipe.trains:
        raise ConfigError(
            f"--quantize is given, but recipe '{recipe.name}' trains no weight: nothing is held in 4 bits",
            hint="the same without --quantize, or a recipe that trains, such as --recipe lora",
        )
    if config.early_stopping and not recipe.trains:
        raise ConfigError(
            f"--early-stopping is given, but recipe '{recipe.name}' trains no weight: there is nothing to stop",
            hint="the same without --early-stopping, or a recipe that trains, such as --recipe lora",
        )
    if config.replay_fraction is None:
        return recipe
    if "rehearsal" not in recipe.retention:
        raise ConfigError(
            f"--replay-fraction is given, but recipe '{recipe.name}' does not rehearse",
            hint="--recipe steerable or rehearse",
        )
    rehearsal = {**recipe.retention["rehearsal"], "fraction": config.replay_fraction}
    return replace(recipe, retention={**recipe.retention, "rehearsal": rehearsal})
