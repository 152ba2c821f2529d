"""How much a base is trained that is far larger than the embedded one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vla_cli.configs import FinetuneConfig
from vla_cli.errors import ConfigError
from vla_cli.policies import dose
from vla_cli.policies.checkpoint import load_base
from vla_cli.policies.dose import FEWEST_STEPS, MOST_STEPS, Data, dose_for
from vla_cli.policies.weight_files import count_weights
from vla_cli.recipe import Recipe, load_recipe, recipe_names
from vla_cli.stages import finetune

PI0 = 3_500_000_000
DATA = Data(frames=18_000, chunk=50)


def dosed(recipe: Recipe, **changes: Any) -> tuple[Recipe, str]:
    return dose_for(recipe, **{"parameters": PI0, "data": DATA, "given": (), **changes})


@pytest.mark.parametrize("name", [name for name in recipe_names() if load_recipe(name).trains])
def test_a_shipped_recipe_trains_a_large_base_as_others_do(name: str) -> None:
    recipe, words = dosed(load_recipe(name))
    outright = any(way == "full" for way, _ in recipe.modalities().values())
    assert recipe.learning_rate == (2.5e-5 if outright else 2.5e-4)
    assert recipe.steps == round(175 * 18_000 / 50 / 32) == 1969 and recipe.warmup == 1969 // 30
    assert recipe.micro_batch == 4 and recipe.parts == 8
    assert {rank for way, rank in recipe.modalities().values() if way == "lora"} <= {16, 32}
    assert f"learning rate {recipe.learning_rate:g} (in place of 0.00" in words
    assert "steps 1,969 (in place of 300, for 18,000 frames at chunks of 50)" in words
    assert "windows at once 4 (in place of 32)" in words and "not measured by us" in words


def test_the_embedded_base_is_trained_as_the_recipe_says() -> None:
    recipe = load_recipe("steerable")
    assert dosed(recipe, parameters=1_300_000) == (recipe, "")
    frozen = load_recipe("calibrate")
    assert dosed(frozen) == (frozen, "")


def test_what_an_option_says_stays() -> None:
    recipe = replace(load_recipe("lora"), steps=50, rank=4, alpha=4)
    found, words = dosed(recipe, given=("steps", "rank"))
    assert (found.steps, found.rank, found.alpha, found.learning_rate) == (50, 4, 4, 2.5e-4)
    assert "steps" not in words.split("These are")[0] and "18,000" not in words
    everything = ("steps", "rank", "learning_rate", "micro_batch")
    kept, words = dosed(recipe, given=everything)
    assert (kept.steps, kept.learning_rate, kept.micro_batch) == (50, recipe.learning_rate, 0)
    assert words.startswith("The base has 3,500 million parameters") and "at a learning rate of 0.002" in words


def test_a_rank_is_for_what_has_the_recipes() -> None:
    for name in ("naive", "delock"):  # trained outright, and by LoRA of ranks of its own
        recipe = replace(load_recipe(name), large_base={"rank": 16})
        assert dosed(recipe) == (recipe, "")


def test_alpha_keeps_its_ratio_and_a_micro_batch_divides() -> None:
    found, _ = dosed(replace(load_recipe("lora"), rank=8, alpha=16, batch_size=30))
    assert (found.rank, found.alpha) == (16, 32)
    assert found.micro_batch == 3
    alone, _ = dosed(replace(load_recipe("lora"), batch_size=2))
    assert alone.micro_batch == 2 and alone.parts == 1


@pytest.mark.parametrize(("frames", "steps"), [(40, FEWEST_STEPS), (10**7, MOST_STEPS)])
def test_the_steps_have_bounds(frames: int, steps: int) -> None:
    assert dosed(load_recipe("lora"), data=Data(frames, 50))[0].steps == steps


def test_a_recipe_without_it_is_taken_at_its_word_and_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("method: lora\nlearning_rate: 2.0e-3\n")
    recipe = load_recipe(str(file))
    found, words = dosed(recipe)
    assert found == recipe and "others train such bases at 2.5e-5 (openpi) to 5e-4" in words
    assert dosed(replace(recipe, learning_rate=2.5e-4)) == (replace(recipe, learning_rate=2.5e-4), "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("3", "large_base is not a mapping of some of learning_rate, rank, windows_per_chunk, micro_batch"),
        ("{steps: 3}", "large_base is not a mapping of some of"),
        ("{rank: 2.5}", "large_base's rank is 2.5, not a whole number"),
        ("{learning_rate: -1}", "large_base's learning_rate is -1, not 0 or more"),
    ],
)
def test_what_it_cannot_be_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"method: lora\nlarge_base: {text}\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(file))
    assert said in str(caught.value)


def test_the_weights_are_counted_without_being_read(base: Path) -> None:
    assert count_weights(base) == sum(p.numel() for p in load_base(str(base))[0].parameters())


def test_a_run_takes_the_dose_and_says_so(
    dataset: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = FinetuneConfig(dataset=dataset, base=str(base), out=tmp_path / "out", recipe="lora", rank=4)
    small = finetune.plan(config)
    assert small["recipe"]["steps"] == 300 and "micro_batch" not in small["recipe"]
    monkeypatch.setattr(dose, "SMALL_MODEL", 1000)
    large = finetune.plan(config)
    assert (large["recipe"]["steps"], large["recipe"]["rank"], large["recipe"]["micro_batch"]) == (FEWEST_STEPS, 4, 4)
    whole, few = (plan["estimate"]["activation_bytes"] for plan in (small, large))
    assert few < whole / 6  # 4 windows at once, not 32
    (said,) = [text for text in large["warnings"] if text not in small["warnings"]]
    assert said.startswith("The base has 1 million parameters, and recipe 'lora' trains")
