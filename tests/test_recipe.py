"""Recipes: all that ship can be loaded, and a bad one is refused with all its problems at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from vla_cli.errors import ConfigError
from vla_cli.recipe import load_recipe, recipe_names
from vla_cli.retention import RETENTION


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


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("method: magic\nstpes: 10\nrank: 2.5\nlearning_rate: yes\nclip: -1\n")
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(bad))
    for part in ("unknown key 'stpes'", "method is 'magic'", "rank is 2.5", "learning_rate is True", "clip is -1"):
        assert part in str(caught.value)


def test_yaml_cannot_build_objects(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("method: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_recipe(str(bad))
