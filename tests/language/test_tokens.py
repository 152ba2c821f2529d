"""The words of an instruction, before any rule of grammar."""

from __future__ import annotations

import pytest

from vla_cli.language.lexicon import load_lexicon
from vla_cli.language.tokens import key_of, marks_of, words_of

LEXICON = load_lexicon()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Please, put the cup on the tray.", "put the cup on the tray"),
        ("could you please wipe the table?", "wipe the table"),
        ("open the box; then take the nut", "open the box and take the nut"),
        ("open the box. Take the nut", "open the box and Take the nut"),
        ("lift the large, red mug", "lift the large red mug"),
        ("put_it_on_the_tray", "put it on the tray"),
        ("  put\tit \n there ", "put it there"),
        ("put part 1.5 in bin B", "put part 1.5 in bin B"),
    ],
)
def test_joints_become_and_and_carriers_go(text: str, words: str) -> None:
    assert words_of(text, LEXICON)[0] == words.split()


def test_the_longest_preposition_counts() -> None:
    found = marks_of("the bowl on top of the box to the left of it from the sink".split(), LEXICON)  # noqa: SIM905
    assert [(m.start, m.noun, m.kind, m.relation) for m in found] == [
        (2, 5, "place", "on top of"),
        (7, 11, "place", "left of"),
        (12, 13, "source", ""),
    ]


def test_keys_forget_case_spelling_and_articles() -> None:
    assert key_of(["The", "Gray", "Tray"], LEXICON) == key_of(["grey", "tray"], LEXICON)
    assert key_of(["it"], LEXICON) == ("it",) and key_of(["this"], LEXICON) == ("this",)
