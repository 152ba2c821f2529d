"""Recipes: all that ship can be loaded, and a bad one is refused with all its problems at once."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from vla_cli.adapter import load_spec
from vla_cli.configs import FinetuneConfig
from vla_cli.errors import ConfigError
from vla_cli.files import read_json
from vla_cli.policies.adaptation import layout_of, make_trainable
from vla_cli.policies.checkpoint import load_base
from vla_cli.recipe import load_recipe, recipe_names
from vla_cli.retention import RETENTION
from vla_cli.stages import finetune
from vla_cli.stages.finetune.options import recipe_for

BASE = Path(__file__).resolve().parents[1] / "sample_data" / "base"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_ships_loads_and_builds_its_methods(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.summary
    for method, options in recipe.retention.items():
        RETENTION.get(method)(**options)


def test_a_copy_of_a_recipe_can_be_edited(tmp_path: Path) -> None:
    copy = tmp_path / "mine.yaml"
    copy.write_text("method: lora\nrank: 16\nsteps: 10\n")
    recipe = load_recipe(str(copy), steps=20, rank=None)
    assert (recipe.name, recipe.rank, recipe.steps) == ("mine", 16, 20)


@pytest.mark.parametrize(
    ("guidance", "words"),
    [
        ("1.5", "guidance is not a mapping"),
        ("{kind: contrast}", "guidance is not a mapping of kind and weight"),
        ("{kind: contrast, weight: 1.5, prompt: x}", "guidance is not a mapping of kind and weight"),
        ("{kind: cpg, weight: 1.5}", "kind is 'cpg', not one of contrast"),
        ("{kind: 'null', weight: lots}", "weight is 'lots', not a finite number or auto"),
        ("{kind: 'null', weight: .nan}", "weight is nan"),
        ("{kind: 'null', weight: true}", "weight is True"),
    ],
)
def test_impossible_guidance_is_refused(tmp_path: Path, guidance: str, words: str) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(f"method: lora\nguidance: {guidance}\n")
    with pytest.raises(ConfigError, match=words):
        load_recipe(str(bad))


@pytest.mark.parametrize(
    ("guidance", "with_alternatives", "kind", "why"),
    [
        ("{kind: 'null', weight: 1.4}", False, "null", "the recipe's"),
        ("{kind: contrast, weight: auto}", False, "none", "no --alternatives"),
        # two steps leave the base's response to words as it was
        ("{kind: contrast, weight: auto}", True, "none", "still responds as its base"),
    ],
)
def test_a_recipes_guidance_becomes_the_adapters_default(
    dataset: Path, base: Path, tmp_path: Path, guidance: str, with_alternatives: bool, kind: str, why: str
) -> None:
    recipe, others = tmp_path / "mine.yaml", tmp_path / "others.yaml"
    recipe.write_text(f"method: lora\ncalibrate: true\nsteps: 2\nbatch_size: 4\nguidance: {guidance}\n")
    others.write_text("- put the blue ball on the left plate\n- put the red block on the left plate\n")
    out = tmp_path / "adapter"
    given = others if with_alternatives else None
    finetune.run(FinetuneConfig(dataset=dataset, base=str(base), out=out, recipe=str(recipe), alternatives=given))
    found = load_spec(out).guidance
    assert found["kind"] == kind and why in found["why"]
    assert found["weight"] == (1.4 if kind == "null" else 1.0)
    record = read_json(out / "run.json")
    assert ("response" in record["facts"]) == with_alternatives
    assert not [warning for warning in record["warnings"] if "does not use it" in warning]


def test_words_that_the_base_cannot_read_are_named(dataset: Path, base: Path, tmp_path: Path) -> None:
    recipe, others = tmp_path / "mine.yaml", tmp_path / "others.yaml"
    recipe.write_text("method: lora\nsteps: 1\nbatch_size: 4\nretention: {paraphrase: {phrasings: [shove it over]}}\n")
    others.write_text("- put the teapot on the left plate\n")
    out = tmp_path / "adapter"
    finetune.run(FinetuneConfig(dataset=dataset, base=str(base), out=out, recipe=str(recipe), alternatives=others))
    said = " ".join(read_json(out / "run.json")["warnings"])
    assert "1 of the alternatives' words (teapot)" in said
    assert "1 of the paraphrases' words (shove)" in said
    assert "the instructions' words" not in said


@pytest.mark.parametrize(
    ("recipe", "named"),
    [("lora", ["replay", "alternatives"]), ("delock", ["replay", "alternatives"]), ("rehearse", ["alternatives"])],
)
def test_what_a_recipe_has_no_use_for_is_said(
    dataset: Path, base: Path, tmp_path: Path, recipe: str, named: list[str]
) -> None:
    others = tmp_path / "others.yaml"
    others.write_text("- put the blue ball on the left plate\n")
    config = FinetuneConfig(dataset=dataset, base=str(base), out=tmp_path / "out", replay=dataset, alternatives=others)
    said = [f"--{name} is given, but recipe '{recipe}' does not use it." for name in named]
    assert [w for w in finetune.plan(replace(config, recipe=recipe))["warnings"] if "use it" in w] == said
    assert not [w for w in finetune.plan(config)["warnings"] if "use it" in w]


@pytest.mark.parametrize("recipe", ["naive", "delock", "calibrate"])
def test_a_rank_that_no_modality_takes_is_refused(recipe: str) -> None:
    config = FinetuneConfig(dataset=Path("d"), base="b", out=Path("o"), recipe=recipe, rank=4)
    with pytest.raises(ConfigError, match=rf"--rank is given, but recipe '{recipe}' trains no modality by LoRA"):
        recipe_for(config)
    taken = recipe_for(replace(config, action="lora"))
    assert taken.modalities()["action"] == ("lora", 4) and taken.alpha == 4


def test_early_stopping_is_the_recipes_or_the_options(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("method: lora\nearly_stopping: 40\n")
    config = FinetuneConfig(dataset=Path("d"), base="b", out=Path("o"), recipe=str(file))
    assert recipe_for(config).document()["early_stopping"] == 40
    assert recipe_for(replace(config, early_stopping=20)).early_stopping == 20
    # off, it is not said: what older versions wrote of the same recipe says the same
    assert "early_stopping" not in recipe_for(replace(config, early_stopping=0)).document()
    with pytest.raises(ConfigError, match="'calibrate' trains no weight: there is nothing to stop"):
        recipe_for(replace(config, recipe="calibrate", early_stopping=20))
    with pytest.raises(ConfigError, match="early_stopping is -1, not from 0"):
        recipe_for(replace(config, early_stopping=-1))


def test_a_micro_batch_divides_the_batch() -> None:
    config = FinetuneConfig(dataset=Path("d"), base="b", out=Path("o"), recipe="lora", micro_batch=8)
    recipe = recipe_for(config)
    assert (recipe.at_once, recipe.parts, recipe.document()["micro_batch"]) == (8, 4, 8)
    # all at once, it is not said: what older versions wrote of the same recipe says the same
    for whole in (None, 0, 32):
        recipe = recipe_for(replace(config, micro_batch=whole))
        assert (recipe.at_once, recipe.parts) == (32, 1) and "micro_batch" not in recipe.document()
    with pytest.raises(ConfigError) as caught:
        recipe_for(replace(config, micro_batch=12))
    assert "A batch of 32 windows is no whole number of micro-batches of 12" in str(caught.value)
    assert "1, 2, 4, 8, 16, or 0 for the whole batch" in str(caught.value) and "--micro-batch 8" in str(caught.value)
    with pytest.raises(ConfigError, match=r"a micro-batch that divides 720, or 0 .*--micro-batch 0"):
        recipe_for(replace(config, batch_size=720, micro_batch=721))


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    huge = "1" + "0" * 400
    bad.write_text(f"method: magic\nstpes: 10\nrank: 2.5\nlearning_rate: yes\nclip: -1\nwarmup: {huge}\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(bad))
    odd = ("rank is 2.5, not a whole number", "learning_rate is True, not a number", "clip is -1, not above 0")
    odd += (f"warmup is {huge}, not from 0 to 1000000000",)
    for part in ("unknown key 'stpes'", "method is 'magic'", *odd):
        assert part in str(caught.value)


def test_yaml_cannot_build_objects(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("method: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_recipe(str(bad))


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("language: lora:16\naction: lora:32\nalpha: 64", "language: lora:16, action: lora:32"),
        ("vision: frozen\nlanguage: frozen\naction: lora:32\nalpha: 64", "action: lora:32"),
        ("action: lora:32\nrank: 16", "alpha / rank = 8 / 16"),
        ("action: lora:32", ""),
        ("action: lora:32\nrank: 16\nalpha: 16", ""),
        ("rank: 32\nalpha: 64", ""),
        ("action: lora:32\nrank: 32\nalpha: 64", ""),
    ],
)
def test_an_alpha_is_followed_by_every_modality_or_refused(tmp_path: Path, text: str, refused: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"method: lora\n{text}\n")
    if refused:
        with pytest.raises(ConfigError, match=re.escape(refused)):
            load_recipe(str(path))
        return
    recipe = load_recipe(str(path))
    model = make_trainable(load_base(str(BASE))[0], layout_of(recipe), train_heads=False, seed=0)
    strengths = {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")}
    assert strengths == {recipe.alpha / recipe.rank}


def test_one_modality_with_a_rank_of_its_own_is_as_strong_as_several(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("method: lora\nvision: frozen\nlanguage: frozen\naction: lora:32\n")
    assert layout_of(load_recipe(str(path))).alpha in (0, 32), "0 is alpha = rank"
