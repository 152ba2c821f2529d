"""The words of an instruction: what joins clauses, what is wrapped around them, and where prepositions stand."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from vla_cli.language.lexicon import Lexicon, Words

_DEGREES = frozenset({"very", "really", "quite", "extremely"})
_AFTER_IDIOMS = frozenset({"at", "for", "of", "to", "with", "using", "before", "after"})
"""What may follow an idiom; a noun, and where a thing is put, make it one no more."""


class Mark(NamedTuple):
    """A preposition, words [start, noun) of a clause: its kind ("place", "source" or "tool") and a place's relation."""

    start: int
    noun: int
    kind: str
    relation: str


def words_of(instruction: str, lexicon: Lexicon) -> tuple[list[str], str]:
    """An instruction's words as written, and how it ended ("." or "").

    What joins clauses (", then", ". ", "; ") becomes "and"; other punctuation and carriers ("please") are left out.
    Underscores count as spaces where there are none.
    """
    text = instruction if re.search(r"\s", instruction.strip()) else instruction.replace("_", " ")
    ending = "." if text.rstrip().endswith(".") else ""
    words = re.sub(r"([,;.!?:]+)(?=\s|$)", r" , ", text).split()
    found: list[str] = []
    for i, word in enumerate(words):
        joint = word == "," or word.casefold() in ("and", "then")
        if joint and word.casefold() != "and" and not (found and opens(lower_of(_after_joints(words, i)), lexicon)):
            # "then" is a word like others unless a clause follows; a comma is never one
            found += [word] if word != "," else []
        elif not joint or not found or found[-1] != "and":
            found.append("and" if joint else word)
    return _without_carriers(found, lexicon), ending


def _after_joints(words: Sequence[str], start: int) -> list[str]:
    rest = list(words[start:])
    while rest and (rest[0] == "," or rest[0].casefold() in ("and", "then")):
        rest.pop(0)
    return rest


def lower_of(words: Sequence[str]) -> list[str]:
    """The words as they are compared with the lexicon's."""
    return [word.casefold() for word in words]


def opens(lower: Sequence[str], lexicon: Lexicon) -> bool:
    """Whether a clause could begin here, be it with how it is done."""
    words = lower[manner_of(lower, lexicon) :]
    known = any(tuple(words[:size]) in lexicon.openings for size in range(1, 5))
    return known or bool(words and words[0] in lexicon.actions)


def manner_of(lower: Sequence[str], lexicon: Lexicon) -> int:
    """How many words in front only say how it is done: 3 of "slowly and carefully pick up the cup"."""
    size = 0
    for i, word in enumerate(lower):
        how = word in lexicon.manners and (word,) not in lexicon.directions
        much = word in _DEGREES and i + 1 < len(lower) and lower[i + 1] in lexicon.manners
        if not (how or much or (size and word == "and")):
            return size
        size = i + 1
    return 0


def is_idiom(lower: Sequence[str], lexicon: Lexicon) -> bool:
    """Whether a clause means something else than its words: "set the table for two", not "set the table lamp down"."""
    for idiom in lexicon.idioms:
        if tuple(lower[: len(idiom)]) == idiom:
            rest = list(lower[len(idiom) :])
            if not rest or rest[0] in _AFTER_IDIOMS or (rest[0] == "and" and opens(rest[1:], lexicon)):
                return True
    return False


def _without_carriers(words: list[str], lexicon: Lexicon) -> list[str]:
    changed = True
    while changed and words:
        changed = False
        words = words[words[0] == "and" :]  # what is left of "please, ..."
        lower = tuple(lower_of(words))
        for before, after, _ in lexicon.carriers:
            size = len(lower) - len(after)
            if len(before) < size and lower[: len(before)] == before and lower[size:] == after:
                words, changed = words[len(before) : size], True
                break
    return words


def key_of(words: Sequence[str], lexicon: Lexicon) -> Words:
    """Words as they are compared: lower case, one spelling, no articles."""
    lower = [lexicon.attributes.get(word.casefold(), word.casefold()) for word in words]
    return tuple(word for word in lower if word not in lexicon.articles) or tuple(lower)


def marks_of(lower: Sequence[str], lexicon: Lexicon) -> list[Mark]:
    """Every preposition, the longest that fits, from the left; `lower` are lower-case words."""
    found, i = [], 0
    while i < len(lower):
        for size in range(min(6, len(lower) - i), 0, -1):
            kind = _kind(tuple(lower[i : i + size]), lexicon)
            if kind:
                found.append(Mark(i, i + size, *kind))
                i += size - 1
                break
        i += 1
    return found


def _kind(words: Words, lexicon: Lexicon) -> tuple[str, str] | None:
    if words in lexicon.prepositions:
        return "place", lexicon.prepositions[words]
    if words in lexicon.sources:
        return "source", ""
    return ("tool", "") if words in lexicon.tools else None
