"""The words of instructions: verbs and how they are said, prepositions, attributes; the built-in ones and a user's.

`phrasings.yaml`, beside this module, is the built-in lexicon and describes the schema. A user's file has the same keys
and adds to it: new verbs, more ways of saying one that is there, more attributes and relations. Where both say
something of one verb's `place`, `kind` or `tool`, the user's counts. Every scalar is text: YAML's `on` and `off` stay
words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from vla_cli.errors import ConfigError
from vla_cli.yaml_files import compose, read_yaml

BUILT_IN = Path(__file__).parent / "phrasings.yaml"
OBJECT, INSTRUCTION = "{object}", "{instruction}"
DIRECTION = "direction"
_LISTS = (
    *("directions", "sources", "tools", "sides", "articles", "pronouns", "placeholders"),
    *("negations", "manners", "numbers", "actions", "idioms"),
)
_VERB_KEYS = ("forms", "also", "place", "places", "tool", "kind")
_CHOICES = {"place": ("required", "optional", "none"), "tool": ("yes", "no")}
_SCHEMA = "the keys that vla_cli/language/phrasings.yaml has"

Words = tuple[str, ...]


@dataclass(frozen=True)
class Form:
    """One way of saying a verb: words before the object, words after it, and the relations it can be said with.

    Attributes:
        before, after: lower-case words; `before` has at least one.
        said: False for a form that is understood and never said.
        only: relations it can be said with; empty for all.
        never: relations it cannot be said with.
    """

    before: Words
    after: Words
    said: bool = True
    only: Words = ()
    never: Words = ()

    def suits(self, relation: str) -> bool:
        """Whether it can be said with a place of this relation ("" for no place)."""
        return not relation or ((not self.only or relation in self.only) and relation not in self.never)

    @property
    def weight(self) -> int:
        """How many words it fixes: of two forms that fit, the one that says more is meant."""
        return len(self.before) + len(self.after)


@dataclass(frozen=True)
class Verb:
    """One meaning, and how it is said; see phrasings.yaml."""

    name: str
    forms: tuple[Form, ...]
    place: str = "none"
    places: Words = ()
    tool: bool = False
    kind: str = "movable"


@dataclass(frozen=True)
class Lexicon:
    """All words; keys and values are lower case, wordings are split into words.

    Attributes:
        verbs: name to verb.
        relations: relation to its wordings that are said, the plainest first.
        prepositions: every wording to its relation.
        directions, sources, tools, sides: wordings.
        articles, pronouns, negations, manners, numbers, actions: single words.
        placeholders: texts that stand in an instruction's place and are none.
        idioms: wordings that mean something else than their words, and are left alone.
        attributes: every spelling to the word it stands for.
        carriers: (words before, words after, whether it is said).
    """

    verbs: Mapping[str, Verb]
    relations: Mapping[str, tuple[Words, ...]]
    prepositions: Mapping[Words, str]
    directions: frozenset[Words]
    sources: frozenset[Words]
    tools: frozenset[Words]
    sides: frozenset[Words]
    articles: frozenset[str]
    pronouns: frozenset[str]
    placeholders: frozenset[str]
    negations: frozenset[str]
    manners: frozenset[str]
    numbers: frozenset[str]
    actions: frozenset[str]
    idioms: frozenset[Words]
    attributes: Mapping[str, str]
    carriers: tuple[tuple[Words, Words, bool], ...]

    @cached_property
    def openings(self) -> frozenset[Words]:
        """What a clause can begin with: the words before the object of every form."""
        return frozenset(form.before for verb in self.verbs.values() for form in verb.forms)

    @cached_property
    def by_first_word(self) -> Mapping[str, tuple[tuple[Verb, Form], ...]]:
        """First word to the forms that begin with it, those that fix most words first."""
        found: dict[str, list[tuple[Verb, Form]]] = {}
        for verb in self.verbs.values():
            for form in verb.forms:
                found.setdefault(form.before[0], []).append((verb, form))
        return {word: tuple(sorted(pairs, key=lambda pair: -pair[1].weight)) for word, pairs in found.items()}


def load_lexicon(path: Path | None = None) -> Lexicon:
    """The built-in lexicon, with a user's YAML added to it.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is not understood; all problems at once, each
            with its line and key.
    """
    return _built_in() if path is None else _Builder().add(BUILT_IN).add(path).build()


@cache
def _built_in() -> Lexicon:
    return _Builder().add(BUILT_IN).build()


class _Node:
    """A YAML node with its key path and line; every scalar is text."""

    def __init__(self, node: yaml.Node, key: str, depth: int = 0) -> None:
        self.key, self.line, self.problems = key, node.start_mark.line + 1, []
        self.value: str | list[_Node] | dict[str, _Node] = ""
        if depth > 6:
            self.problems.append(f"line {self.line}: {key} is nested too deeply")
        elif isinstance(node, yaml.MappingNode):
            self.value = {}
            for name, item in node.value:
                text = str(name.value).casefold() if isinstance(name, yaml.ScalarNode) else "?"
                child = _Node(item, f"{key}.{text}" if key else text, depth + 1)
                if text in self.value:
                    self.problems.append(f"line {child.line}: {child.key} is there twice")
                self.value[text] = child
                self.problems += child.problems
        elif isinstance(node, yaml.SequenceNode):
            self.value = [_Node(item, key, depth + 1) for item in node.value]
            self.problems += [problem for child in self.value for problem in child.problems]
        else:
            self.value = str(node.value)


class _Builder:
    """Gathers files into one lexicon."""

    def __init__(self) -> None:
        self.verbs: dict[str, dict[str, Any]] = {}
        self.prepositions: dict[str, dict[str, list[str]]] = {}
        self.lists: dict[str, list[str]] = {key: [] for key in _LISTS}
        self.attributes: dict[str, str] = {}
        self.carriers: list[tuple[Words, Words, bool]] = []
        self.problems: list[str] = []

    def add(self, path: Path) -> _Builder:
        root = read_yaml(path, expected="a YAML file of phrasings", parser=compose)
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{path} is not a YAML mapping", expected=_SCHEMA)
        node = _Node(root, "")
        self.problems = node.problems
        for child in self._mapping(node, (*_LISTS, "verbs", "prepositions", "attributes", "carriers")):
            getattr(self, f"_add_{child.key}", self._add_list)(child)
        self._check_relations(node)
        if self.problems:
            raise ConfigError(f"{path} cannot be used: {'; '.join(self.problems)}", expected=_SCHEMA)
        return self

    def build(self) -> Lexicon:
        prepositions, relations = {}, {}
        for relation, wordings in self.prepositions.items():
            relations[relation] = tuple(tuple(text.split()) for text in wordings["say"])
            prepositions |= {tuple(text.split()): relation for key in ("say", "also") for text in wordings[key]}
        words = {key: frozenset(tuple(text.split()) for text in texts) for key, texts in self.lists.items()}
        return Lexicon(
            verbs={name: Verb(name, **{**verb, "forms": tuple(verb["forms"])}) for name, verb in self.verbs.items()},
            relations=relations,
            prepositions=prepositions,
            directions=words["directions"],
            sources=words["sources"],
            tools=words["tools"],
            sides=words["sides"],
            articles=frozenset(self.lists["articles"]),
            pronouns=frozenset(self.lists["pronouns"]),
            placeholders=frozenset(self.lists["placeholders"]),
            negations=frozenset(self.lists["negations"]),
            manners=frozenset(self.lists["manners"]),
            numbers=frozenset(self.lists["numbers"]),
            actions=frozenset(self.lists["actions"]),
            idioms=words["idioms"],
            attributes=self.attributes,
            carriers=tuple(self.carriers),
        )

    def _fault(self, node: _Node, what: str) -> None:
        self.problems.append(f"line {node.line}: {node.key} {what}")

    def _mapping(self, node: _Node, allowed: Sequence[str] | None) -> list[_Node]:
        """The children of a mapping; unknown keys are faults and left out."""
        if not isinstance(node.value, dict):
            self._fault(node, f"should hold keys{' such as ' + ', '.join(allowed[:4]) if allowed else ''}")
            return []
        for name, child in node.value.items():
            if allowed is not None and name not in allowed:
                self._fault(child, f"is not known (it is none of {', '.join(allowed)})")
        return [child for name, child in node.value.items() if allowed is None or name in allowed]

    def _texts(self, node: _Node) -> list[str]:
        if not isinstance(node.value, list):
            self._fault(node, "should be a list")
            return []
        return [text for child in node.value if (text := self._text(child))]

    def _text(self, node: _Node) -> str:
        if not isinstance(node.value, str) or not node.value.strip():
            self._fault(node, "should be text")
            return ""
        return " ".join(node.value.casefold().split())

    def _add_list(self, node: _Node) -> None:
        self.lists[node.key] += [text for text in self._texts(node) if text not in self.lists[node.key]]

    def _add_attributes(self, node: _Node) -> None:
        for group in self._mapping(node, None):
            if not isinstance(group.value, list):
                self._fault(group, "should be a list")
                continue
            for item in group.value:
                spellings = self._texts(item) if isinstance(item.value, list) else [self._text(item)]
                for spelling in spellings:
                    if " " in spelling:
                        self._fault(item, f"has '{spelling}', which is not one word")
                    elif spelling:
                        self.attributes.setdefault(spelling, spellings[0])

    def _add_prepositions(self, node: _Node) -> None:
        for child in self._mapping(node, None):
            relation = child.key.removeprefix("prepositions.")
            known = self.prepositions.setdefault(relation, {"say": [], "also": []})
            parts = {"say": child} if isinstance(child.value, list) else None
            for part in parts.values() if parts else self._mapping(child, ("say", "also")):
                key = "say" if parts else part.key.rpartition(".")[2]
                known[key] += [text for text in self._texts(part) if text not in known[key]]
            if not known["say"]:
                self._fault(child, "has no wording under say")

    def _add_carriers(self, node: _Node) -> None:
        for part in self._mapping(node, ("say", "also")):
            for text in self._texts(part):
                before, slot, after = text.replace(",", " ").partition(INSTRUCTION)
                if not slot or not (before.strip() or after.strip()):
                    self._fault(part, f"has '{text}', which has no {INSTRUCTION} among other words")
                else:
                    self.carriers.append((tuple(before.split()), tuple(after.split()), part.key.endswith("say")))

    def _add_verbs(self, node: _Node) -> None:
        for child in self._mapping(node, None):
            verb = self.verbs.setdefault(child.key.removeprefix("verbs."), {"forms": []})
            for part in self._mapping(child, _VERB_KEYS):
                key = part.key.rpartition(".")[2]
                if key in ("forms", "also"):
                    forms = self._forms(part, said=key == "forms")
                    known = {(form.before, form.after) for form in verb["forms"]}
                    verb["forms"] += [form for form in forms if (form.before, form.after) not in known]
                elif key == "places":
                    verb[key] = tuple(self._texts(part))
                elif (text := self._text(part)) and text not in _CHOICES.get(key, (text,)):
                    self._fault(part, f"is '{text}', not one of {', '.join(_CHOICES[key])}")
                else:
                    verb[key] = text == "yes" if key == "tool" else text
            if not any(form.said for form in verb["forms"]):
                self._fault(child, "has no forms")

    def _forms(self, node: _Node, *, said: bool) -> list[Form]:
        if not isinstance(node.value, list):
            self._fault(node, "should be a list")
            return []
        found = []
        for item in node.value:
            limits: dict[str, Words] = {}
            wording = item
            if isinstance(item.value, dict):
                parts = {part.key.rpartition(".")[2]: part for part in self._mapping(item, ("say", "only", "never"))}
                limits = {key: tuple(self._texts(parts[key])) for key in ("only", "never") if key in parts}
                wording = parts.get("say", item)
            before, slot, after = self._text(wording).partition(OBJECT)
            if not slot or not before.strip():
                self._fault(item, f"has a form that is not words followed by {OBJECT}")
            else:
                found.append(Form(tuple(before.split()), tuple(after.split()), said, **limits))
        return found

    def _check_relations(self, node: _Node) -> None:
        """Relations that a verb names must exist: a misspelt one would silently forbid a form."""
        verbs = node.value.get("verbs") if isinstance(node.value, dict) else None
        known = {*self.prepositions, DIRECTION}
        for child in verbs.value.values() if verbs is not None and isinstance(verbs.value, dict) else ():
            verb = self.verbs.get(child.key.removeprefix("verbs."), {"forms": []})
            named = {*verb.get("places", ()), *(r for form in verb["forms"] for r in (*form.only, *form.never))}
            for relation in sorted(named - known):
                self._fault(child, f"names the relation '{relation}', which is not among the prepositions")
