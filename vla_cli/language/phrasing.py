"""Other words for the same task: paraphrases without any model, from the forms of a lexicon.

A paraphrase changes the verb's form, the preposition's wording or what is wrapped around; object, attributes, place,
source and tool stay as they were written. It is offered only after it has been parsed back to the same meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from itertools import islice, pairwise, product

import numpy as np

from vla_cli.language.grammar import Parsed, Wording, parse
from vla_cli.language.lexicon import Form, Lexicon, Words, load_lexicon
from vla_cli.language.tokens import lower_of

_MOST_CHAINS = 512
_LONG = 4
_CARRIED = "movable"
_MANY = ("both", "all", "these", "those", "two", "three", "four", "five", "six")


def paraphrases(instruction: str, count: int, *, seed: int = 0, lexicon: Lexicon | None = None) -> list[str]:
    """At most `count` other phrasings of an instruction, all different, the same ones for the same seed.

    Other forms of the verb come first, then other wordings of the preposition, then carriers ("please ..."); the seed
    shuffles within each. Each parses to the meaning of the instruction. An instruction that is not understood has none.

    >>> paraphrases("fold the towel", 2)
    ['take the towel and fold it', 'pick up the towel and fold it']
    """
    lexicon = lexicon or load_lexicon()
    parsed = parse(instruction, lexicon)
    if parsed is None or count < 1:
        return []
    digest = sha256(" ".join(instruction.split()).encode()).digest()
    rng = np.random.default_rng([seed, *digest[:8]])
    found: dict[tuple[str, ...], str] = {}
    own = tuple(lower_of(instruction.split()))
    for tier in _tiers(parsed, lexicon):
        options = list(dict.fromkeys(tier))
        for index in rng.permutation(len(options)):
            if len(found) == count:
                return list(found.values())
            text = styled(options[index], parsed)
            key = tuple(lower_of(text.split()))
            if key == own or key in found:
                continue
            again = parse(text, lexicon)
            if again is not None and again.meaning == parsed.meaning:
                found[key] = text
    return list(found.values())


def _tiers(parsed: Parsed, lexicon: Lexicon) -> Iterator[list[str]]:
    """Candidates, the most natural first."""
    clauses = parsed.clauses()
    forms = [list(_forms(clause, lexicon)) for clause in clauses]
    plain = list(islice(map(" and ".join, product(*forms)), _MOST_CHAINS))
    yield plain
    worded = [[*own, *_worded(clause, lexicon)] for own, clause in zip(forms, clauses, strict=True)]
    yield list(islice(map(" and ".join, product(*worded)), _MOST_CHAINS))
    carried = [carrier[:2] for carrier in lexicon.carriers if carrier[2]]
    yield [" ".join([*before, text, *after]) for before, after in carried for text in plain]


def _forms(clause: Parsed, lexicon: Lexicon) -> Iterator[str]:
    """A clause in every form of its verb, in its own first."""
    own = say(clause, clause.wording.form, lexicon)
    if own is not None:
        yield own
    for form in said_forms(clause, lexicon):
        text = say(clause, form, lexicon)
        if text is not None:
            yield text


def _worded(clause: Parsed, lexicon: Lexicon) -> Iterator[str]:
    """A clause with other wordings of its preposition, in forms that end in the place."""
    if kind_of(clause, lexicon) != _CARRIED:  # "fold it in half" is not into
        return
    for preposition in lexicon.relations.get(clause.preposition, ()):
        for form in said_forms(clause, lexicon):
            if not form.after and (text := say(clause, form, lexicon, preposition=preposition)) is not None:
                yield text


def said_forms(clause: Parsed, lexicon: Lexicon) -> list[Form]:
    """The forms of a clause's verb in which it can be said with its place; none for an unknown verb."""
    verb = lexicon.verbs.get(clause.verb) if clause.known else None
    forms = [form for form in verb.forms if form.said and form.suits(clause.relation)] if verb else []
    if clause.source and kind_of(clause, lexicon) != _CARRIED:  # "take it from the left and fold it" is something else
        forms = [form for form in forms if "and" not in form.after]
    return forms


def say(
    clause: Parsed,
    form: Form,
    lexicon: Lexicon,
    *,
    thing: Words | None = None,
    preposition: Words | None = None,
    place: Words | None = None,
) -> str | None:
    """A clause in a form, with another object or place where these are given; None where it would be clumsy.

    Args:
        clause: what to say; its other clauses are left out.
        form: a form of its verb.
        lexicon: for the plain wording of its preposition.
        thing, preposition, place: words in place of the clause's own, articles included.
    """
    wording = clause.wording
    thing = wording.object if thing is None else thing
    place = wording.place if place is None else place
    preposition = wording.preposition if preposition is None else preposition
    halves = "and" in form.after
    if form is not wording.form and _clumsy(thing, wording, form, lexicon):
        return None
    if form.after and form is not wording.form:
        wordings = lexicon.relations.get(clause.preposition, ())
        preposition = wordings[0] if tuple(lower_of(preposition)) in wordings else preposition
    after = form.after
    if halves:
        # as it was said, as long as it is of the same thing
        pronoun = (wording.pronoun if thing == wording.object else "") or _pronoun(thing)
        if pronoun is None and form is not wording.form:
            return None
        pronoun = pronoun or wording.pronoun
        after = tuple(pronoun or "it" if word == "it" else word for word in after)
    words = [*thing, *wording.source, *after] if halves else [*thing, *after, *wording.source]
    return " ".join([*wording.manner, *form.before, *words, *preposition, *place, *wording.tool])


def _clumsy(thing: Words, wording: Wording, form: Form, lexicon: Lexicon) -> bool:
    """Whether nobody would say it so: "pick up it", "set the cup from the shelf down", a long object before "up"."""
    if is_pronoun(thing, lexicon):
        return len(form.before) > 1 or "and" in form.after
    return bool(form.after) and "and" not in form.after and (bool(wording.source) or len(thing) > _LONG)


def _pronoun(thing: Words) -> str | None:
    """What stands for the object in "and leave it"; None where that is not clear."""
    lower = lower_of(thing)
    several = any(one == "and" and other in ("the", "a", "an") for one, other in pairwise(lower))
    if lower[0] in _MANY or several:
        return "them"
    return None if lower[-1].endswith("s") and not lower[-1].endswith("ss") else "it"


def styled(text: str, parsed: Parsed) -> str:
    """A text with the capital and the full stop of the original."""
    text = text[:1].upper() + text[1:] if parsed.wording.capital else text
    return text + parsed.wording.ending


def kind_of(clause: Parsed, lexicon: Lexicon) -> str:
    """The kind of a clause's verb: objects are exchanged within one; an unknown verb is a kind of its own."""
    return lexicon.verbs[clause.verb].kind if clause.known else clause.verb


def is_pronoun(words: Words, lexicon: Lexicon) -> bool:
    """Whether words are only "it", "them" and the like."""
    return len(words) == 1 and words[0].casefold() in lexicon.pronouns
