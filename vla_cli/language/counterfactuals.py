"""What else could be asked: counterfactual instructions about the objects and places known in the data.

A counterfactual asks for something that was not demonstrated: with another object (novel-concept), another place
(novel-spatial) or both (novel-both), the conditions of eval-steer (`worlds/contract.py`). Retention methods use them as
alternatives (`alternatives.py`): another object makes sense only while the gripper is empty, another place also while
the demonstrated object is held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import yaml

from vla_cli.language.alternatives import Alternative
from vla_cli.language.grammar import Parsed, parse, same_task
from vla_cli.language.lexicon import DIRECTION, Lexicon, Words, load_lexicon
from vla_cli.language.phrasing import is_pronoun, kind_of, said_forms, say, styled
from vla_cli.language.tokens import key_of, lower_of, marks_of

CONDITIONS = {
    "novel-concept": "another object, the demonstrated place",
    "novel-spatial": "the demonstrated object, another place",
    "novel-both": "another object and another place",
}
"""The conditions of eval-steer that a counterfactual can be for, in the words of `worlds/contract.py`."""
_LONG = 5
_DESCRIBING = {"which", "that", "where", "who"}


@dataclass(frozen=True)
class Counterfactual:
    """Something else that could be asked in a demonstrated scene.

    Attributes:
        instruction: the words.
        condition: a key of `CONDITIONS`.
        moment: in which half of an episode it makes sense: "empty", or "always"; see `alternatives`.
        shown: the demonstrated instruction that it departs from.
    """

    instruction: str
    condition: str
    moment: str
    shown: str

    @property
    def alternative(self) -> Alternative:
        """For retention methods."""
        return Alternative(self.instruction, self.moment)


@dataclass(frozen=True)
class _Thing:
    """An object as written, and whether it is taken from where the demonstrated one is."""

    words: Words
    same_source: bool


@dataclass(frozen=True)
class _Place:
    """A place as written, with its preposition (empty: the demonstrated one) and its relation."""

    preposition: Words
    words: Words
    relation: str


def counterfactuals(
    shown: Sequence[Parsed], objects: Iterable[str] = (), places: Iterable[str] = (), lexicon: Lexicon | None = None
) -> list[Counterfactual]:
    """Instructions about the objects and places known in the data that were not demonstrated.

    Objects are exchanged between verbs of one kind (what can be carried is not switched on). None is a paraphrase of a
    demonstrated instruction, none stands there twice; one that departs from several demonstrated instructions gets the
    first condition that applies. Instructions of several clauses lend objects and places, and get none themselves.

    A thing that is known from another instruction need not have been in the scene: where scenes differ, give the
    demonstrations of one scene, or check the list. Another place is for "always" only where all demonstrated
    instructions name the same object: what is in the gripper is not known else.

    Args:
        shown: the demonstrated instructions, parsed.
        objects: more things in the scene: "blue ball", "the green wedge".
        places: more places: "right plate" (with the demonstrated preposition) or "in the drawer".
        lexicon: the one they were parsed with.

    Returns:
        Those with another object first, then another place, then both; in the order of what is known.
    """
    lexicon = lexicon or load_lexicon()
    clauses = [c for parsed in shown for c in parsed.clauses() if not is_pronoun(c.wording.object, lexicon)]
    one_object = len({clause.meaning[1:3] for clause in clauses}) == 1
    given_things = [_Thing(tuple(text.split()), True) for text in objects if text.strip()]
    given_places = [_given_place(text, lexicon) for text in places if text.strip()]
    starts = _distinct([c for c in shown if c.then is None and not is_pronoun(c.wording.object, lexicon)])
    taken, found, tried = _Taken(shown), [], set()
    for condition, parsed in product(CONDITIONS, starts):
        kin = [c for c in clauses if kind_of(c, lexicon) == kind_of(parsed, lexicon)]
        things, spots = [_Thing(parsed.wording.object, True)], [_place_of(parsed)]
        if condition != "novel-spatial":
            things = [*_things(parsed, kin, lexicon), *given_things]
        if condition != "novel-concept":
            spots = [*_places(kin, lexicon), *given_places] if parsed.place else []
        for thing, spot in product(things, spots):
            key = parsed.verb, key_of(thing.words, lexicon), spot.relation, key_of(spot.words, lexicon)
            if key in tried:
                continue
            made = _made(parsed, thing, spot, lexicon)
            if made is not None and _departs(made, parsed, condition) and taken.add(made):
                tried.add(key)
                moment = "always" if condition == "novel-spatial" and one_object else "empty"
                found.append(Counterfactual(made.text, condition, moment, parsed.text))
    return found


class _Taken:
    """What was demonstrated or found already."""

    def __init__(self, shown: Sequence[Parsed]) -> None:
        self._by_object: dict[tuple, list[Parsed]] = {}
        for parsed in shown:
            self._by_object.setdefault(parsed.meaning[1:3], []).append(parsed)
            for clause in parsed.clauses() if parsed.then else ():  # each part of it was demonstrated too
                self._by_object.setdefault(clause.meaning[1:3], []).append(replace(clause, then=None))

    def add(self, made: Parsed) -> bool:
        """Take it in, unless it could be the same task as one that is there."""
        known = self._by_object.setdefault(made.meaning[1:3], [])
        if any(same_task(made, other) for other in known):
            return False
        known.append(made)
        return True


def alternatives(
    shown: Sequence[Parsed], objects: Iterable[str] = (), places: Iterable[str] = (), lexicon: Lexicon | None = None
) -> list[Alternative]:
    """`counterfactuals` for retention methods; `alternatives.document` writes them, `load_alternatives` reads them."""
    return [found.alternative for found in counterfactuals(shown, objects, places, lexicon)]


def alternatives_yaml(found: Sequence[Counterfactual]) -> str:
    """A YAML list for `--alternatives`, which a person is meant to read and to cut: one line each, by condition."""
    lines = ["# What else could be asked in these scenes. Delete what is not there or cannot be done.\n"]
    for condition, meaning in CONDITIONS.items():
        chosen = [c for c in found if c.condition == condition]
        lines += [f"\n# {condition}: {meaning}\n"] if chosen else []
        for c in chosen:
            entry = {"instruction": c.instruction, "while": c.moment}
            lines.append(
                yaml.safe_dump([entry], default_flow_style=None, sort_keys=False, width=10**6, allow_unicode=True)
            )
    return "".join(lines)


def _distinct(shown: Sequence[Parsed]) -> list[Parsed]:
    """One of each meaning, the first."""
    found: dict[tuple, Parsed] = {}
    for parsed in shown:
        found.setdefault(parsed.meaning, parsed)
    return list(found.values())


def _things(parsed: Parsed, kin: Sequence[Parsed], lexicon: Lexicon) -> list[_Thing]:
    """Objects of clauses of one kind, without doubles; what is described at length is left out."""
    found: dict[tuple, _Thing] = {}
    for clause in kin:
        words = clause.wording.object
        lower = lower_of(words)
        how = len(lower) > 1 and lower[-1] in lexicon.manners
        if len(lower) <= _LONG and not how and not marks_of(lower, lexicon) and not _DESCRIBING & set(lower):
            found.setdefault(clause.meaning[1:3], _Thing(words, clause.meaning[5] == parsed.meaning[5]))
    return list(found.values())


def _places(kin: Sequence[Parsed], lexicon: Lexicon) -> list[_Place]:
    """Places of clauses of one kind, without doubles."""
    found: dict[tuple, _Place] = {}
    for clause in kin:
        if clause.place and not is_pronoun(clause.wording.place, lexicon):
            found.setdefault(clause.meaning[3:5], _place_of(clause))
    return list(found.values())


def _place_of(clause: Parsed) -> _Place:
    return _Place(clause.wording.preposition, clause.wording.place, clause.relation)


def _given_place(text: str, lexicon: Lexicon) -> _Place:
    words = tuple(text.split())
    lower = lower_of(words)
    if tuple(lower) in lexicon.directions:
        return _Place((), words, DIRECTION)
    marks = [m for m in marks_of(lower, lexicon) if m.start == 0 and m.kind == "place" and m.noun < len(words)]
    mark = marks[0] if marks else None
    return _Place(words[: mark.noun], words[mark.noun :], mark.relation) if mark else _Place((), words, "")


def _made(parsed: Parsed, other: _Thing, spot: _Place, lexicon: Lexicon) -> Parsed | None:
    """The demonstrated instruction about another thing or place; None where it cannot be said, or makes no sense."""
    if not other.same_source:
        parsed = replace(parsed, source="", wording=replace(parsed.wording, source=()))
    thing = _with_article(other.words, parsed.wording.object, lexicon)
    relation = spot.relation or parsed.relation
    place, preposition = spot.words, spot.preposition
    if place and spot.relation != DIRECTION:
        place = _with_article(place, parsed.wording.place, lexicon) if parsed.preposition else place
        preposition = preposition or parsed.wording.preposition
    if place and key_of(place, lexicon) == key_of(thing, lexicon):
        return None
    forms = [parsed.wording.form, *said_forms(parsed, lexicon)]
    form = next((form for form in forms if form.suits(relation)), None)
    text = form and say(parsed, form, lexicon, thing=thing, preposition=preposition, place=place)
    made = parse(styled(text, parsed), lexicon) if text else None
    wanted = (key_of(thing, lexicon), key_of(place, lexicon) if place else ())
    if made is None or made.verb != parsed.verb:
        return None
    return made if (key_of(made.wording.object, lexicon), key_of(made.wording.place, lexicon)) == wanted else None


def _with_article(words: Words, like: Words, lexicon: Lexicon) -> Words:
    """Words with the article that others have, where they have none and can have one."""
    if not like or like[0].casefold() not in lexicon.articles or words[0].casefold() in lexicon.articles:
        return words
    if words[0].casefold() in lexicon.numbers or words[0][:1].isdigit():
        return words
    return (like[0], *words)


def _departs(made: Parsed, parsed: Parsed, condition: str) -> bool:
    """Whether exactly that differs which the condition names."""
    other_thing = made.meaning[1:3] != parsed.meaning[1:3]
    other_place = made.meaning[3:5] != parsed.meaning[3:5]
    return (other_thing, other_place) == (condition != "novel-spatial", condition != "novel-concept")
