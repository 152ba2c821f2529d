"""What an instruction asks for: verb, object with attributes, place; by rules over a lexicon, without any model.

    put the red block on the left plate      put   object block  attributes red  place left plate  preposition on
    pick the pear from the counter and place it in the plate
                                             put   object pear   source from the counter   place plate   preposition in
    put the flange in bin B                  put   object flange                  place bin B       preposition in

The lexicon knows verbs, prepositions and attributes; things are whatever stands between them, so that a lab's own
objects need no registration. Several clauses ("open the drawer and put the cup in it") become a chain.

Which preposition begins the place, where there are several: "into", "onto" and "to" before the rest; "on the left" and
the like belong to the object when another follows; else the first ("the cup on [the plate in the sink]").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import NamedTuple

from vla_cli.language.lexicon import DIRECTION, Form, Lexicon, Verb, Words, load_lexicon
from vla_cli.language.tokens import Mark, is_idiom, key_of, lower_of, manner_of, marks_of, opens, words_of

LONGEST = 64
"""Words beyond which nothing is parsed: pi0 reads 48 tokens (openpi `pi0_config.py`, `max_token_len`)."""
_TOWARDS = {"to", "into", "onto", "toward", "towards", "over"}
_VAGUE = {"to", "on", "in", "on top of"}


@dataclass(frozen=True)
class Wording:
    """How a clause was said: its form, and each part's words as written, articles included.

    `pronoun` is what stood for the object in the form's second half ("them"), lower case; `manner` what was said before
    the verb ("carefully").
    """

    form: Form
    object: Words
    preposition: Words = ()
    place: Words = ()
    source: Words = ()
    tool: Words = ()
    pronoun: str = ""
    manner: Words = ()
    capital: bool = False
    ending: str = ""


@dataclass(frozen=True)
class Parsed:
    """What one clause asks for.

    Attributes:
        verb: a verb of the lexicon, or the instruction's own word (then `known` is False).
        object: the thing without article and attributes, as written: "block".
        attributes: what tells it from others, in the lexicon's spelling: ("red",).
        place: the place without article, as written: "left plate"; a direction ("left"); or empty.
        preposition: the lexicon's relation of the place ("on" also for "onto"); empty for a direction or no place.
        source: where it is taken from, with its preposition: "from the counter"; or empty.
        tool: with what, with its preposition: "with the sponge"; or empty.
        known: whether the lexicon has the verb.
        then: the next clause, or None.
        text: the whole instruction as it was given; only of the first clause.
        object_phrase: attributes and object as written, without an article: "red block".
        wording: how it was said; no part of what it means.
        meaning: what is equal for instructions that mean the same: spelling, case, articles and wording do not matter.
    """

    verb: str
    object: str
    attributes: tuple[str, ...] = ()
    place: str = ""
    preposition: str = ""
    source: str = ""
    tool: str = ""
    known: bool = True
    then: Parsed | None = None
    text: str = field(default="", compare=False)
    object_phrase: str = field(default="", compare=False)
    wording: Wording = field(default=Wording(Form(("",), ()), ()), compare=False, repr=False)
    meaning: tuple = field(default=(), compare=False, repr=False)

    @property
    def relation(self) -> str:
        """The place's relation, "direction" for a place without preposition, or "" without a place."""
        return self.preposition or (DIRECTION if self.place else "")

    def clauses(self) -> list[Parsed]:
        """This clause and those after it."""
        return [self, *(self.then.clauses() if self.then else [])]


def parse(instruction: str, lexicon: Lexicon | None = None) -> Parsed | None:
    """What an instruction asks for, or None where it is not understood.

    A verb that the lexicon does not know is taken as it is when an article follows ("crimp the hose"), and one of its
    `actions` always ("write hello"). No more than `LONGEST` words are parsed, no idiom and no negation.
    Underscores between words count as spaces.
    """
    lexicon = lexicon or load_lexicon()
    tokens, ending = words_of(instruction, lexicon)
    if not 2 <= len(tokens) <= LONGEST or lexicon.negations.intersection(lower_of(tokens)):
        return None
    parsed = _clauses(tokens, lexicon)
    if parsed is None:
        return None
    wording = replace(parsed.wording, capital=instruction.strip()[:1].isupper(), ending=ending)
    return replace(parsed, text=instruction, wording=wording)


def same_task(one: Parsed, other: Parsed) -> bool:
    """Whether two instructions could be about the same task: cautious, so that no paraphrase passes for another task.

    "to", "on" and "in the plate" agree (people do not tell them apart); verbs that carry something to a place agree
    with each other; a source, a tool or (of one verb) a place that only one of them names makes no difference.
    """
    a, b = one.clauses(), other.clauses()
    return len(a) == len(b) and all(map(_same_clause, a, b))


def _same_clause(one: Parsed, other: Parsed) -> bool:
    relations = {one.preposition, other.preposition}
    carried = bool(one.place and other.place)
    return (
        (one.verb == other.verb or carried)
        and one.meaning[1:3] == other.meaning[1:3]
        and (not carried or one.meaning[3] == other.meaning[3])
        and (not carried or len(relations) == 1 or relations <= _VAGUE)
        and all(a == b or not a or not b for a, b in zip(one.meaning[5:7], other.meaning[5:7], strict=True))
    )


# ---- clauses


def _clauses(tokens: list[str], lexicon: Lexicon) -> Parsed | None:
    """A whole instruction: one clause, or several that "and" joins; "pick up X and place it Y" is one."""
    lower = lower_of(tokens)
    cuts = [i for i, word in enumerate(lower) if word == "and" and i > 0 and _begins(lower[i + 1 :], lexicon)]
    bounds = [0, *cuts, len(tokens)]
    pieces = [tokens[start + (start > 0) : end] for start, end in pairwise(bounds)]
    found: list[Parsed] = []
    i = 0
    while i < len(pieces):
        joined = _joined(pieces[i], pieces[i + 1], lexicon) if i + 1 < len(pieces) else None
        single = joined or _clause(pieces[i], lexicon)
        if single is None:
            return _clause(tokens, lexicon) if len(pieces) > 1 else None
        found.append(single)
        i += 2 if joined else 1
    chain: Parsed | None = None
    for clause in reversed(found):
        meaning = (*clause.meaning, chain.meaning) if chain else clause.meaning
        chain = replace(clause, then=chain, meaning=meaning)
    return chain


def _joined(first: list[str], second: list[str], lexicon: Lexicon) -> Parsed | None:
    """Two pieces as one clause of a form with an "and"; how the second half is done is said before the first."""
    size = manner_of(lower_of(second), lexicon)
    made = _clause([*first, "and", *second[size:]], lexicon, joined=True)
    if made is None or not size or made.wording.manner:
        return made
    return replace(made, wording=replace(made.wording, manner=_manner(second[:size])))


def _begins(lower: list[str], lexicon: Lexicon) -> bool:
    """Whether a clause begins here; "trace a line" may be one although nobody knows the verb."""
    lower = lower[manner_of(lower, lexicon) :]
    words = {*lexicon.articles, *lexicon.attributes}
    unknown = len(lower) > 2 and lower[0] not in words and lower[1] in ("a", "an", "the")
    return opens(lower, lexicon) or unknown


def _clause(tokens: list[str], lexicon: Lexicon, *, joined: bool = False) -> Parsed | None:
    """One clause by the form that fixes most of its words; `joined` asks for a form that holds an "and"."""
    if not tokens:
        return None
    lower = lower_of(tokens)
    if size := manner_of(lower, lexicon):
        made = _clause(tokens[size:], lexicon, joined=joined)
        return made and replace(made, wording=replace(made.wording, manner=_manner(tokens[:size])))
    if is_idiom(lower, lexicon):
        return None
    for verb, form in lexicon.by_first_word.get(lower[0], ()):
        if joined == ("and" in form.after):
            for parts in _fits(lower, verb, form, lexicon):
                return _made(tokens, verb, form, parts, lexicon)
    told = lower[0] in lexicon.actions or (lower[0].isalpha() and len(lower) > 2 and lower[1] in lexicon.articles)
    unknown = told and len(lower) > 1 and not joined
    if not unknown or lower[0] in lexicon.by_first_word or marks_of(lower[:1], lexicon) or lower[0] in lexicon.articles:
        return None
    verb, form = Verb(lower[0], (), place="optional", tool=True, kind=lower[0]), Form((lower[0],), ())
    made = next((_made(tokens, verb, form, parts, lexicon) for parts in _fits(lower, verb, form, lexicon)), None)
    return made and replace(made, known=False)


def _manner(words: list[str]) -> Words:
    return tuple(words[:-1] if words[-1].casefold() == "and" else words)


class _Part(NamedTuple):
    """Words [start, end) of a clause, of which those before `noun` are the preposition."""

    start: int
    noun: int
    end: int
    relation: str = ""


_Parts = dict[str, _Part]
"""By "object", "source", "place" and "tool"."""


def _fits(lower: list[str], verb: Verb, form: Form, lexicon: Lexicon) -> Iterator[_Parts]:
    """The ways in which a clause is an instance of a form."""
    first = len(form.before)
    if tuple(lower[:first]) != form.before:
        return
    size = len(form.after)
    ends = range(first + 1, len(lower) - size + 1) if size else [len(lower)]
    for end in ends:
        if not all(_alike(a, b, lexicon) for a, b in zip(form.after, lower[end : end + size], strict=True)):
            continue
        body = _split(lower, first, end, verb if not size else _BARE, lexicon)
        tail = _split(lower, end + size, len(lower), verb, lexicon) if size else {}
        if "object" not in body or "object" in tail or ({*body} & {*tail}):
            continue
        parts = body | tail
        relation = parts["place"].relation if "place" in parts else ""
        if ("place" not in parts and verb.place == "required") or not (form.said or form.suits(relation)):
            continue
        if marks_of([lower[parts["object"].start]], lexicon) or not _noun(lower, parts["object"], lexicon):
            continue
        if relation == "to" and _does(lower[parts["place"].noun : parts["place"].end], lexicon):
            continue
        yield parts


_BARE = Verb("", ())


def _alike(fixed: str, word: str, lexicon: Lexicon) -> bool:
    return fixed == word or (fixed in lexicon.pronouns and word in lexicon.pronouns)


def _noun(lower: list[str], part: _Part, lexicon: Lexicon) -> bool:
    """Whether anything but articles stands there."""
    return any(w not in lexicon.articles or w in lexicon.pronouns for w in lower[part.noun : part.end])


def _does(lower: list[str], lexicon: Lexicon) -> bool:
    """Whether what follows "to" is done, and no place: "wipe the counter", "open the drawer", but not "open drawer"."""
    return opens(lower, lexicon) and (lower[0] not in lexicon.attributes or lower[1:2] in (["the"], ["a"], ["an"]))


def _split(lower: list[str], first: int, last: int, verb: Verb, lexicon: Lexicon) -> _Parts:
    """Words [first, last) into object, source, place and tool; what stands before the first of these is the object."""
    marks = [Mark(first + m.start, first + m.noun, m.kind, m.relation) for m in marks_of(lower[first:last], lexicon)]
    marks = [m for m in marks if m.noun < last]
    end = last
    starts: dict[str, tuple[int, int, str]] = {}
    tool = next((m for m in marks if m.kind == "tool"), None) if verb.tool else None
    if tool:
        starts["tool"], end = (tool.start, tool.noun, ""), tool.start
    source = next((m for m in marks if m.kind == "source" and m.start < end), None)
    if source:
        starts["source"] = (source.start, source.noun, "")
    if verb.place != "none":
        allowed = [m for m in marks if m.kind == "place" and m.start < end and _allowed(m.relation, verb)]
        later = [m for m in allowed if source and m.start > source.start]
        chosen = _choose(lower, later or allowed, lexicon) or _direction(lower, first, end, verb, lexicon)
        if chosen:
            starts["place"] = chosen
    order = sorted(starts.items(), key=lambda item: item[1][0])
    edges = [start[0] for _, start in order] + [last]
    parts = {name: _Part(*start[:2], edges[i + 1], start[2]) for i, (name, start) in enumerate(order)}
    if edges[0] > first:
        parts["object"] = _Part(first, first, edges[0])
    return parts


def _allowed(relation: str, verb: Verb) -> bool:
    return not verb.places or relation in verb.places


def _choose(lower: list[str], marks: list[Mark], lexicon: Lexicon) -> tuple[int, int, str] | None:
    """Which of several prepositions begins the place; see the module's text."""
    chosen = next((m for m in marks if lower[m.start] in _TOWARDS), None)
    while chosen is None and len(marks) > 1 and key_of(lower[marks[0].noun : marks[1].start], lexicon) in lexicon.sides:
        marks = marks[1:]
    chosen = chosen or (marks[0] if marks else None)
    return (chosen.start, chosen.noun, chosen.relation) if chosen else None


def _direction(lower: list[str], first: int, end: int, verb: Verb, lexicon: Lexicon) -> tuple[int, int, str] | None:
    """A direction at the end: a place without a preposition."""
    for size in (3, 2, 1):
        if end - size >= first and tuple(lower[end - size : end]) in lexicon.directions and _allowed(DIRECTION, verb):
            return end - size, end - size, DIRECTION
    return None


def _made(tokens: list[str], verb: Verb, form: Form, parts: _Parts, lexicon: Lexicon) -> Parsed:
    def words(name: str) -> Words:
        part = parts.get(name)
        return tuple(tokens[part.noun : part.end]) if part else ()

    def whole(name: str) -> Words:
        part = parts.get(name)
        return tuple(tokens[part.start : part.end]) if part else ()

    thing, attributes = _noun_phrase(words("object"), lexicon)
    tail = range(parts["object"].end, len(tokens))
    pronoun = next((w for i in tail if (w := tokens[i].casefold()) in lexicon.pronouns), "") if form.after else ""
    relation = parts["place"].relation if "place" in parts else ""
    place = words("place")
    preposition = whole("place")[: len(whole("place")) - len(place)]
    meaning = (
        verb.name,
        key_of(_without_manner(thing, lexicon), lexicon),
        tuple(sorted(attributes)),
        key_of(_without_manner(place, lexicon, but=lexicon.directions), lexicon),
        relation,
        key_of(words("source"), lexicon),
        key_of(words("tool"), lexicon),
    )
    return Parsed(
        verb=verb.name,
        object=" ".join(thing),
        attributes=attributes,
        place=" ".join(_without_article(place, lexicon)),
        preposition="" if relation == DIRECTION else relation,
        source=" ".join(whole("source")),
        tool=" ".join(whole("tool")),
        wording=Wording(form, words("object"), preposition, place, whole("source"), whole("tool"), pronoun),
        object_phrase=" ".join(_without_article(words("object"), lexicon)),
        meaning=meaning,
    )


def _without_article(words: Words, lexicon: Lexicon) -> Words:
    while len(words) > 1 and words[0].casefold() in lexicon.articles:
        words = words[1:]
    return words


def _without_manner(words: Words, lexicon: Lexicon, but: frozenset[Words] = frozenset()) -> Words:
    """Words without how it is done at their end: "cup gently"; "the far back" is a place all the same."""
    while len(words) > 1 and (last := words[-1].casefold()) in lexicon.manners and (last,) not in but:
        words = words[:-1]
    return words


def _noun_phrase(words: Words, lexicon: Lexicon) -> tuple[Words, Words]:
    """(the thing, its attributes): attributes are known words in front; "yellow and white" is one of them."""
    words = _without_article(words, lexicon)
    found: list[str] = []
    while len(words) > 1:
        first = lexicon.attributes.get(words[0].casefold())
        pair = len(words) > 3 and words[1].casefold() == "and" and lexicon.attributes.get(words[2].casefold())
        if not first:
            break
        found.append(f"{first} and {pair}" if pair else first)
        words = words[3 if pair else 1 :]
    return words, tuple(found)
