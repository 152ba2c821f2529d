"""Paraphrase: the words change, nothing else does, and the generator decides which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vla_cli.configs import FinetuneConfig
from vla_cli.dataset import Demonstration
from vla_cli.errors import ConfigError
from vla_cli.policies.flow import load
from vla_cli.retention import Context
from vla_cli.retention.paraphrase import Paraphrase, synonyms
from vla_cli.stages import finetune
from vla_cli.windows import Windows

PUT = "put the red block on the left plate"


def context(*instructions: str) -> Context:
    rng = np.random.default_rng(0)
    demos = [
        Demonstration(
            f"demo{i}",
            {"top": rng.integers(0, 255, (6, 8, 8, 3), dtype=np.uint8)},
            rng.normal(size=(6, 4)).astype(np.float32),
            rng.normal(size=(6, 3)).astype(np.float32),
            [text],
        )
        for i, text in enumerate(instructions)
    ]
    unused: Any = None
    return Context(unused, unused, Windows(demos, ["top"], 4), None, None)


def prepared(method: Paraphrase, *instructions: str) -> tuple[Paraphrase, Windows]:
    known = context(*instructions)
    method.prepare(known)
    return method, known.demonstrations


def test_only_the_words_change() -> None:
    method, windows = prepared(Paraphrase(probability=1.0), PUT)
    plain, told = windows.gather(range(6)), method.rephrase(windows.gather(range(6)), np.random.default_rng(0))
    for key in ("images", "state", "actions", "real_steps"):
        np.testing.assert_array_equal(getattr(told, key), getattr(plain, key))
    assert plain.instructions == [PUT] * 6 and PUT not in told.instructions
    assert all(text.endswith("the red block on the left plate") for text in told.instructions)


def test_the_same_generator_gives_the_same_words_and_the_share_is_the_probability() -> None:
    method, windows = prepared(Paraphrase(probability=0.3, phrasings=["a", "b"]), PUT)
    samples = windows.draw(np.random.default_rng(0), 2000)
    first, again, other = (method.rephrase(samples, np.random.default_rng(s)).instructions for s in (1, 1, 2))
    assert first == again != other
    assert first.count(PUT) / 2000 == pytest.approx(0.7, abs=0.04)
    assert first.count("a") / 2000 == pytest.approx(0.15, abs=0.04)


def test_each_of_several_instructions_keeps_its_own_phrasings() -> None:
    phrasings = {PUT: ["set it down"], "pick up the cup": ["lift it"]}
    method, windows = prepared(Paraphrase(probability=1, phrasings=phrasings), PUT, "pick up the cup")
    told = method.rephrase(windows.gather(range(12)), np.random.default_rng(0)).instructions
    assert told == ["set it down"] * 6 + ["lift it"] * 6
    assert method.facts()["phrasings"] == phrasings


def test_generic_synonyms_are_words_the_embedded_base_knows(base: Path) -> None:
    prompts = load(str(base), device="cpu").prompts
    known = [*synonyms(PUT), *synonyms("pick up the green wedge")]
    assert len(known) == 7 and not any(prompts.unknown_words(text) for text in known)
    assert synonyms("putt the ball") == synonyms("fold the shirt") == []
    assert synonyms("Grab the cup") == ["Pick up the cup", "Lift the cup", "Take the cup"]
    assert len(synonyms("set the table lamp on the desk")) == 4
    idioms = ("set the table", "Set the table for two.", "take a picture of the cup")
    elsewhere = ("take the lid off", "take the cup to the table", "move the cup", "put the cup down")
    for text in ("take off the lid", "bring me the cup", "put on the lid", "lift up the cup", *idioms, *elsewhere):
        assert synonyms(text) == [], "another opening would mean something else"


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="no other words"):
        prepared(Paraphrase(), "fold the shirt")
    with pytest.raises(ConfigError, match="2 instructions"):
        prepared(Paraphrase(phrasings=["a"]), PUT, "pick up the cup")
    with pytest.raises(ConfigError, match="phrasings of 'other'"):
        prepared(Paraphrase(phrasings={"other": ["a"]}), PUT)
    for options in ({"probability": 1.2}, {"phrasings": "one"}, {"phrasings": [1]}, {"phrasings": {PUT: "a"}}):
        with pytest.raises(ConfigError):
            Paraphrase(**options)


def test_a_fine_tuning_trains_on_phrasings_and_names_them(dataset: Path, base: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "words.yaml"
    recipe.write_text(f"method: lora\nretention: {{paraphrase: {{phrasings: [{PUT.replace('put', 'place')}]}}}}\n")
    done = finetune.run(
        FinetuneConfig(dataset=dataset, base=str(base), out=tmp_path / "out", recipe=str(recipe), steps=6, batch_size=8)
    )
    assert done["facts"]["retention"]["paraphrase"]["phrasings"] == {PUT: [PUT.replace("put", "place")]}
