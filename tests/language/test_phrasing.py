"""Paraphrases say the same in other words: checked by parsing them back, over tasks drawn at random."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vla_cli.language.grammar import parse
from vla_cli.language.phrasing import paraphrases
from vla_cli.worlds.tabletop.scene import ALL_PHRASINGS

TASKS = [
    "pick up the {thing}",
    "put the {thing} {place}",
    "place {thing} {place}",
    "move the {thing} to the tray",
    "pick the {thing} from the counter and place it {place}",
    "push the {thing} to the left",
    "open the {thing}",
    "close the {thing} and put it {place}",
    "turn the {thing} clockwise",
    "turn on the {thing}",
    "stack the {thing} {place}",
    "pour the {thing} {place}",
    "fold the {thing}",
    "wipe the {thing} with the sponge",
    "Insert the {thing} in the slot.",
    "calibrate the {thing}",
]
THINGS = [
    "flange",
    "red block",
    "big yellow and white mug",
    "M6 nut",
    "moka pot",
    "drawer of the cabinet",
    "scissors",
    "Teil 4",
]
PLACES = [
    "on the left plate",
    "in bin B",
    "into the sink",
    "next to the ramekin",
    "on top of the rack",
    "to the right of it",
]

instructions = st.builds(
    lambda task, thing, place: task.format(thing=thing, place=place),
    *(st.sampled_from(options) for options in (TASKS, THINGS, PLACES)),
)


@settings(max_examples=60, deadline=None)
@given(instructions, st.integers(0, 5), st.integers(1, 30))
def test_a_paraphrase_means_the_same_and_keeps_the_things_as_written(text: str, seed: int, count: int) -> None:
    parsed = parse(text)
    assert parsed is not None
    found = paraphrases(text, count, seed=seed)
    assert found == paraphrases(text, count, seed=seed)
    assert 1 <= len(found) <= count
    assert len({*(t.casefold() for t in found), text.casefold()}) == len(found) + 1
    for other in found:
        again = parse(other)
        assert again is not None and again.meaning == parsed.meaning, other
        for one, two in zip(parsed.clauses(), again.clauses(), strict=True):
            assert (two.object_phrase, two.place, two.tool) == (one.object_phrase, one.place, one.tool), other
            assert two.source == one.source and two.attributes == one.attributes, other
        assert other[0].isupper() == text[0].isupper() and other.endswith(".") == text.endswith(".")


@pytest.mark.parametrize("task", TASKS[:-1])
def test_every_kind_of_task_has_other_words_before_there_is_a_please(task: str) -> None:
    text = task.format(thing="flange", place="on the tray")
    found = paraphrases(text, 20)
    assert len(found) >= 10
    plain = [t for t in found if not any(word in t.casefold() for word in ("please", "now", "task", "robot", "i want"))]
    assert found[: len(plain)] == plain and len(plain) >= 2


def test_another_seed_finds_others() -> None:
    text = "put the flange in bin B"
    assert paraphrases(text, 4, seed=0) != paraphrases(text, 4, seed=1)
    assert set(paraphrases(text, 500, seed=0)) == set(paraphrases(text, 500, seed=1))


def test_every_phrasing_of_the_tabletop_has_others() -> None:
    for text in ALL_PHRASINGS[::17]:
        assert len(paraphrases(text, 5)) == 5


@pytest.mark.parametrize("text", ["", "valid", "blocks", "red block"])
def test_what_is_not_understood_has_no_paraphrase(text: str) -> None:
    assert paraphrases(text, 5) == []


def test_pronouns_fit_the_object() -> None:
    several = paraphrases("put both the soup and the sauce in the basket", 100)
    assert any(" them " in t for t in several) and not any(" it " in t for t in several)
    assert not any(" it " in t for t in paraphrases("put the scissors in the box", 100))
    assert any(" it " in t for t in paraphrases("put the glass in the box", 100))


@pytest.mark.parametrize(
    "text",
    [
        "take the cups and put them on the shelf",
        "pick up the scissors and put them in the drawer",
        "put the soup and the sauce in the basket",
    ],
)
def test_several_things_are_never_it(text: str) -> None:
    found = paraphrases(text, 100)
    assert any(" them " in other for other in found) and not any(" it " in other for other in found)


def test_how_it_is_done_stays_in_front() -> None:
    found = paraphrases("Carefully pick up the cup.", 4)
    assert len(found) == 4 and all((t.startswith("Carefully ") and t.endswith(" cup.")) or " up." in t for t in found)
