"""The router: an adapter is asked for what it was trained on, and for nothing else that is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest

from vla_cli.errors import ConfigError, InputError
from vla_cli.files import read_json, write_json
from vla_cli.router import FILE_NAME, Known, Reading, Router, learn, load_router

RED, BLUE = "put the red block on the left plate", "put the blue ball on the right plate"
TRAINED = {"one": [RED], "two": [BLUE]}
ASIDE = ("red block left plate", "blue ball right plate", "red block right plate")
"""Not understood by the grammar: they mean what one was trained on, what two was, and neither."""


def bag(texts: Sequence[str]) -> np.ndarray:
    """A reading that knows how often each word stands there, and no more."""
    rows = np.zeros((len(texts), 4096))
    for row, text in zip(rows, texts, strict=True):
        for word in text.split():
            row[crc32(word.encode()) % 4096] += 1
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def wise(texts: Sequence[str]) -> np.ndarray:
    """A reading that tells object and place, whatever the words around them."""
    things = ("red", "blue", "block", "ball", "left", "right")
    rows = np.array([[float(thing in text.split()) for thing in things] for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def router(reading: Reading = bag, **adapters: list[str]) -> Router:
    return learn(adapters or TRAINED, elsewhere="base", place=next(iter(adapters or TRAINED)), reading=reading)[0]


@pytest.mark.parametrize(
    ("instruction", "adapter"),
    [
        (RED, "one"),
        ("Put the red block on the left plate.", "one"),
        ("pick up the red block and place it on the left plate", "one"),
        ("please move the blue ball onto the right plate", "two"),
        ("put the blue block on the left plate", None),
        ("put the red block on the right plate", None),
        ("put the red block on the right plate and the blue ball on the left plate", None),
        ("do not put the red block on the left plate", None),
    ],
)
def test_what_is_understood_goes_by_its_meaning(instruction: str, adapter: str | None) -> None:
    for reading in (bag, wise):
        assert router(reading).route(instruction, reading).adapter == adapter


def test_what_is_not_understood_goes_by_features_where_these_can_tell() -> None:
    made, found = learn(TRAINED, elsewhere="base", place="one", reading=wise)
    assert found.trusted and found.recognised > 20 and found.same == 24 and found.mistaken == 0 < found.different
    assert [made.route(text, wise).adapter for text in ASIDE] == ["one", "two", None]


def test_features_that_mistake_other_instructions_are_not_asked() -> None:
    made, found = learn(TRAINED, elsewhere="base", place="one", reading=bag)
    assert found.mistaken > 0 and not found.trusted and "is for none, as the base's reading" in found.words
    assert [made.route(text, bag).adapter for text in ASIDE] == [None, None, None]


def test_without_other_instructions_features_are_not_asked() -> None:
    made, found = learn({"one": [RED]}, elsewhere="base", place="one", reading=wise)
    assert found.different == 0 and not found.trusted
    assert made.route(ASIDE[0], wise).adapter is None and made.route(RED, wise).adapter == "one"


def test_negations_and_words_that_the_base_does_not_know_are_unsure() -> None:
    made = router(wise)
    assert made.route("never red block left plate", wise).adapter is None
    assert made.route(ASIDE[0], wise, lambda text: ["plate"]).adapter is None
    assert "'plate'" in made.route(ASIDE[0], wise, lambda text: ["plate"]).why


def test_a_verb_that_is_not_known_leaves_other_verbs_open() -> None:
    made = router(wise, crimp=["crimp the red block"], put=[BLUE])
    assert made.route("crimp the red block", wise).adapter == "crimp"
    # whether to squeeze is to crimp, the grammar does not know
    assert "means nothing" not in made.route("squeeze the red block", wise).why


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [1.0, 0.1])
def test_no_instruction_that_is_known_to_be_another_s_is_taken(seed: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    seen: dict[str, np.ndarray] = {}

    def anything(texts: Sequence[str]) -> np.ndarray:
        rows = np.array(
            [seen.setdefault(text, bag_of_places(text) + spread * rng.standard_normal(3)) for text in texts]
        )
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def bag_of_places(text: str) -> np.ndarray:
        return np.array([text.count("left"), text.count("right"), 1.0])

    made, found = learn(TRAINED, elsewhere="base", place="one", reading=anything)
    own = {text: name for name, known in made.adapters.items() for text in known.texts}
    for text in seen:
        # as if the grammar understood nothing
        went = made._by_features(anything([text]), anything).adapter
        assert went in (None, own.get(text)), (text, found)


def test_a_limit_is_how_far_an_adapter_s_own_texts_are_from_each_other() -> None:
    angles: dict[str, float] = {}

    def fan(texts: Sequence[str]) -> np.ndarray:
        # one's 13 texts a degree apart, but for the last that is 5 from the next; two's 13 and all others far off
        for text in texts:
            number = len(angles)
            angles.setdefault(text, np.radians(number + 4 * (number == 12) + 90 * (number > 12) + 60 * (number > 25)))
        return np.array([[np.cos(angles[text]), np.sin(angles[text])] for text in texts])

    made, found = learn(TRAINED, elsewhere="base", place="one", reading=fan)
    assert found.trusted and made.adapters["one"].limit == pytest.approx(np.cos(np.radians(5)), abs=1e-8)
    # the one that is far off is not recognised where it is not known: the others are a degree apart
    assert found.recognised == found.same - 1


def test_adapters_of_one_task_are_refused() -> None:
    with pytest.raises(ConfigError, match="both trained on one task"):
        router(one=[RED], two=["place the red block onto the left plate"])
    with pytest.raises(ConfigError, match="both trained on one task"):
        router(one=["le bloc rouge"], two=["Le bloc  rouge"])
    with pytest.raises(ConfigError, match="no instruction"):
        router(one=[RED], two=[])


def test_the_file_round_trips_and_can_be_changed(tmp_path: Path) -> None:
    made = router(wise)
    made.save(tmp_path)
    assert load_router(tmp_path) == made
    known = made.adapters["one"]
    opened = replace(made, adapters={**made.adapters, "one": Known(known.instructions, known.phrasings, -1.0)})
    opened.save(tmp_path)
    assert load_router(tmp_path).route("red hop", wise).adapter == "one"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("elsewhere", "moon", "elsewhere one of base, refuse"),
        ("place", "nobody", "place one of its adapters"),
        ("adapters", {"one": {"instructions": "put"}}, "malformed"),
        ("adapters", [], "malformed"),
        ("schema_version", 2, "schema_version 2"),
    ],
)
def test_a_file_that_cannot_be_is_refused(key: str, value: object, said: str, tmp_path: Path) -> None:
    router(wise).save(tmp_path)
    document = read_json(tmp_path / FILE_NAME)
    assert isinstance(document, dict)
    write_json(tmp_path / FILE_NAME, {**document, key: value})
    with pytest.raises(InputError) as caught:
        load_router(tmp_path)
    assert said in str(caught.value)
