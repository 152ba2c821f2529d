"""Paraphrase training (MCSI, arXiv 2601.04052): the same behaviour under several phrasings of its instruction.

A share of each batch's demonstrations is told another phrasing, drawn anew every step, so that the loss is in
expectation a mean over phrasings: the demonstrated one weighs 1 - `probability`, the others the rest in equal parts.
Nothing but the words changes. Published: 31 -> 42 after 100 steps.

Phrasings come from the recipe, as a list (one instruction was demonstrated) or by instruction. Without any, the opening
verb is replaced by others of its group in `VERBS`, and every other word stays. These are generic words: whether the
base's tokenizer knows them is not checked here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vla_cli.errors import ConfigError
from vla_cli.language.lexicon import load_lexicon
from vla_cli.language.tokens import is_idiom, lower_of, marks_of, words_of
from vla_cli.limits import share
from vla_cli.retention import Context, Method, read_options
from vla_cli.windows import Samples

_CARRY, _GRASP = ("put", "place", "set", "move", "bring"), ("pick up", "grab", "lift", "take")
VERBS = (_CARRY, _GRASP)
"""Openings that mean the same."""
_PARTICLES = frozenset({"aside", "away", "back", "down", "me", "off", "on", "out", "over", "together", "up", "us"})
"""With these an opening means something else: "take off the lid", "take the lid off", "bring me the cup"."""


@dataclass(frozen=True)
class ParaphraseOptions:
    """Options of `retention: paraphrase:` in a recipe.

    Attributes:
        probability: share of the demonstrations' windows that are reworded.
        phrasings: whole sentences that mean the demonstrated instruction, or instruction to such sentences.
    """

    probability: float = share(0.8)
    phrasings: Any = field(default=())


class Paraphrase(Method):
    """See the module's docstring.

    Args:
        options: as in the recipe.

    Raises:
        ConfigError: unknown or impossible options.
    """

    def __init__(self, **options: Any) -> None:
        self.options = read_options("paraphrase", ParaphraseOptions, options)
        given = self.options.phrasings
        lists = list(given.values()) if isinstance(given, Mapping) else [given]
        if not all(isinstance(x, (list, tuple)) and all(isinstance(t, str) and t.strip() for t in x) for x in lists):
            raise ConfigError(f"paraphrase's phrasings are {given!r}", expected="a list of sentences")
        self._phrasings: dict[str, list[str]] = {}

    def prepare(self, context: Context) -> None:
        """Find the phrasings of each demonstrated instruction.

        Raises:
            ConfigError: there are none, or it is unclear which instruction they belong to.
        """
        instructions = {text for demo in context.demonstrations.demonstrations for text in demo.instructions}
        found = self._given(sorted(instructions)) or {text: synonyms(text) for text in sorted(instructions)}
        self._phrasings = {text: phrasings for text, phrasings in found.items() if phrasings}
        if not self._phrasings:
            openings = ", ".join(verb for group in VERBS for verb in group)
            raise ConfigError(
                f"The recipe's 'paraphrase' knows no other words for {sorted(instructions)}",
                expected=f"phrasings, or instructions that begin with one of: {openings}",
                hint="retention: {paraphrase: {phrasings: [..]}} in the recipe",
            )

    def rephrase(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """The same windows, some in other words."""
        reworded = rng.random(len(samples)) < self.options.probability
        choice = rng.random(len(samples))
        told = [
            self._one(text, float(u)) if new else text
            for text, new, u in zip(samples.instructions, reworded, choice, strict=True)
        ]
        return replace(samples, instructions=told)

    def facts(self) -> dict[str, Any]:
        """What the demonstrations were told."""
        return {"probability": self.options.probability, "phrasings": self._phrasings}

    def _one(self, text: str, u: float) -> str:
        phrasings = self._phrasings.get(text)
        return phrasings[int(u * len(phrasings))] if phrasings else text

    def _given(self, instructions: list[str]) -> dict[str, list[str]]:
        given = self.options.phrasings
        if isinstance(given, Mapping):
            unknown = sorted(set(given) - set(instructions))
            if unknown:
                raise ConfigError(f"paraphrase has phrasings of {unknown[0]!r}", expected=f"one of {instructions}")
            return {text: list(phrasings) for text, phrasings in given.items()}
        if given and len(instructions) != 1:
            raise ConfigError(
                f"paraphrase has one list of phrasings, but {len(instructions)} instructions were demonstrated",
                expected="phrasings: {instruction: [..], ..}",
            )
        return {instructions[0]: list(given)} if given else {}


def synonyms(instruction: str) -> list[str]:
    """The instruction with other opening verbs of the same meaning; empty where its own is not in `VERBS`.

    Empty too where the others would mean something else: in an idiom ("set the table"), beside a particle, where no
    place is said to put it, or one to take it to.

    >>> synonyms("grab the cup")
    ['pick up the cup', 'lift the cup', 'take the cup']
    """
    lower = instruction.casefold()
    for group in VERBS:
        for verb in group:
            if lower.startswith(verb + " ") and _means_the_same(group, instruction, lower[len(verb) :].split()):
                others = [other + instruction[len(verb) :] for other in group if other != verb]
                return [text[0].upper() + text[1:] for text in others] if instruction[0].isupper() else others
    return []


def _means_the_same(group: tuple[str, ...], instruction: str, rest: list[str]) -> bool:
    """Whether the openings of a group can stand for each other before the rest of an instruction."""
    lexicon = load_lexicon()
    words = lower_of(words_of(instruction, lexicon)[0])
    first = words[: words.index("and")] if "and" in words else words
    if is_idiom(words, lexicon) or _PARTICLES.intersection([*rest[:1], *first[-1:]]):
        return False
    places = [m for m in marks_of(words, lexicon) if m.kind == "place" and m.noun < len(words)]
    if group is _CARRY:
        return bool(places)
    return not any(m.relation == "to" or words[m.start] in ("into", "onto") for m in places if m.noun < len(first))
