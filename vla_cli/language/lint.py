"""What is wrong with the instructions of a set of demonstrations, in words: the texts, and what the arm did with them.

A policy that is trained on few demonstrations reads an instruction only if it needs to. Where the named object always
stands in the same place, position alone explains what to do, and the words are ignored from then on: arXiv 2604.23121
names the fixation on the trained object and on the trained place. So texts are checked, and positions beside them.

Spread is the root mean square distance from the mean. It is compared with that of everything the arm visits. On the
tabletop, with 10 episodes: an object on one mark (± 3.5 cm) has 0.15 to 0.18 of it, a plate 0.09 to 0.20; an object on
two neighbouring marks 0.56 and more; one that stands anywhere 0.94 to 1.04. `SAME_SPOT` is between.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vla_cli.language.grammar import Parsed, parse
from vla_cli.language.lexicon import Lexicon, load_lexicon
from vla_cli.operators.grasps import Told, reach, spread
from vla_cli.outline import printable

SAME_SPOT = 0.3
"""Spread of a grasp or release, as a share of the arm's own, below which its place never varied."""
FEWEST = 5
"""Episodes of one instruction from which its spread is judged: five places drawn at random in two dimensions come as
close as `SAME_SPOT` in one of 2000 cases (chi-squared with 8 degrees of freedom)."""
MOST_WORDS = 36
"""pi0 reads 48 tokens (openpi `pi0_config.py`, `max_token_len`), about 4 for 3 English words."""

Severity = Literal["error", "warning", "info"]
_SEVERITIES = ("error", "warning", "info")
_NUMBERED = re.compile(
    r"((test|task|demo|demonstration|episode|trial|run|debug|recording|sample|instruction|traj)s? ?)?\d+"
)
_FILE = re.compile(r".*\.(hdf5|h5|bag|mcap|zarr|parquet|npz|npy|json|mp4|pkl|tfrecord)", re.IGNORECASE)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    Attributes:
        check: which check found it.
        severity: "error" (do not train on this), "warning" or "info".
        episodes: the names of those concerned, in order.
        message: what was found, a plain sentence or two.
        fix: what to do.
    """

    check: str
    severity: Severity
    episodes: tuple[str, ...]
    message: str
    fix: str

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "check": self.check,
            "severity": self.severity,
            "episodes": list(self.episodes),
            "message": self.message,
            "fix": self.fix,
        }


class _Texts:
    """The distinct instructions of a set of episodes."""

    def __init__(self, episodes: Sequence[Told], lexicon: Lexicon) -> None:
        self.all, self.lexicon = episodes, lexicon
        self.episodes: dict[str, list[str]] = {}
        for told in episodes:
            for text in dict.fromkeys(told.instructions):
                self.episodes.setdefault(text, []).append(told.episode)
        self.placeholders = {text for text in self.episodes if self._stands_for_nothing(text)}
        self.usable = [text for text in self.episodes if plain(text) and text not in self.placeholders]
        self.parsed: dict[str, Parsed | None] = {text: parse(text, lexicon) for text in self.usable}

    def _stands_for_nothing(self, text: str) -> bool:
        words = plain(text)
        named = {plain(name) for told in self.all if text in told.instructions for name in (told.episode, *told.names)}
        return bool(words) and (
            words in self.lexicon.placeholders
            or words in named
            or bool(_NUMBERED.fullmatch(words))
            or words.split()[0] == "lorem"
            or bool(_FILE.fullmatch(text.strip()))
            or (words.isascii() and len(set(words)) == 1)
        )

    def task(self, text: str) -> Any:
        """What is equal for texts about one task."""
        parsed = self.parsed.get(text)
        return parsed.meaning if parsed else plain(text)

    def episodes_of(self, texts: Sequence[str]) -> tuple[str, ...]:
        """The episodes that were told any of these, in order."""
        names = {name for text in texts for name in self.episodes[text]}
        return tuple(told.episode for told in self.all if told.episode in names)


def lint(episodes: Sequence[Told], lexicon: Lexicon | None = None) -> list[Finding]:
    """Everything found about the instructions of a set of episodes, the gravest first; empty when there is nothing."""
    texts = _Texts(episodes, lexicon or load_lexicon())
    found = [finding for check in _CHECKS for finding in check(texts)]
    return sorted(found, key=lambda finding: _SEVERITIES.index(finding.severity))


def plain(text: str) -> str:
    """A text as variants agree on it: lower case, single spaces, no punctuation."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("_", " ")
    return " ".join(re.sub(r"[^\w\s]", " ", folded).split())


def tidy(text: str) -> str:
    """A text without stray spaces, underscores for spaces and closing punctuation."""
    text = " ".join(text.split())
    return (text if " " in text else text.replace("_", " ")).rstrip(" .!?,;:")


# ---- texts


def _empty(texts: _Texts) -> Iterator[Finding]:
    silent = [told for told in texts.all if not any(plain(text) for text in told.instructions)]
    if silent:
        names = tuple(told.episode for told in silent)
        what = f"{len(silent)} of {len(texts.all)} episodes have no instruction: they teach a policy not to listen."
        yield Finding("empty", "error", names, what, 'vla collect-ingest ... --instruction "put the ... on the ..."')


def _placeholder(texts: _Texts) -> Iterator[Finding]:
    for text in sorted(texts.placeholders):
        what = f"{quoted(text)} is no instruction but a placeholder, a label or a file's name."
        fix = 'say what was done: vla collect-ingest ... --instruction "..."; a flag beside a real one is to be removed'
        yield Finding("placeholder", "error", texts.episodes_of([text]), what, fix)
    for text in texts.usable:
        words = plain(text).split()
        if len(words) == 1 and words[0].isascii() and words[0] not in texts.lexicon.by_first_word:
            what = f"{quoted(text)} is one word and no action: it does not say what to do."
            yield Finding("one-word", "warning", texts.episodes_of([text]), what, "name the action and the object")


def _single(texts: _Texts) -> Iterator[Finding]:
    tasks = {texts.task(text) for text in texts.usable}
    if len(tasks) == 1 and len(texts.episodes_of(texts.usable)) > 1:
        what = (
            f"All episodes show one task ({quoted(texts.usable[0])}). A policy that is trained on one instruction "
            "goes deaf: it does this task whatever it is told."
        )
        fix = (
            "vla finetune --recipe steerable --replay DATASET --alternatives FILE keeps it listening (preprocess "
            "writes such a FILE from what it knows); better still, record a second task in the same scene"
        )
        yield Finding("single-instruction", "info", texts.episodes_of(texts.usable), what, fix)


def _variants(texts: _Texts) -> Iterator[Finding]:
    groups: dict[str, list[str]] = {}
    for text in texts.usable:
        groups.setdefault(plain(text), []).append(text)
    for group in groups.values():
        merged = tidy(min(group, key=lambda text: (-len(texts.episodes[text]), _untidiness(text), text)))
        if len(group) > 1:
            listed = ", ".join(f"{quoted(t)} ({len(texts.episodes[t])})" for t in group)
            what = f"{len(group)} spellings of one instruction differ in case, punctuation or spaces: {listed}."
            yield Finding("variants", "warning", texts.episodes_of(group), what, f"use one: '{printable(merged, 120)}'")
        elif group[0] != " ".join(group[0].split()):
            what = f"{quoted(group[0])} has stray spaces or line breaks."
            yield Finding("whitespace", "info", texts.episodes_of(group), what, f"use '{printable(merged, 120)}'")


def _untidiness(text: str) -> tuple[bool, int]:
    """What tells the plain form among equally frequent ones: not tidy, and how many capitals."""
    return text != tidy(text), sum(c.isupper() for c in text)


def _near_duplicates(texts: _Texts) -> Iterator[Finding]:
    """Texts that differ in articles only, or in one letter of one word."""
    lexicon, known = texts.lexicon, _known_words(texts.lexicon)
    first = {plain(text): text for text in reversed(texts.usable)}
    bare: dict[tuple, list[str]] = {}
    holes: dict[tuple, list[tuple[str, str]]] = {}
    for key, text in sorted(first.items()):
        words = key.split()
        bare.setdefault(tuple(w for w in words if w not in lexicon.articles), []).append(text)
        for i, word in enumerate(words[:MOST_WORDS]):
            holes.setdefault((*words[:i], None, *words[i + 1 :]), []).append((word, text))
    for group in bare.values():
        if len(group) > 1:
            what = f"{', '.join(map(quoted, group))} differ in articles only."
            yield Finding("near-duplicate", "warning", texts.episodes_of(group), what, "use one of them")
    for group in holes.values():
        for i, (one, a) in enumerate(group):
            for other, b in group[i + 1 :]:
                if _typo(one, other) and not {one, other} <= known:
                    rare, common = sorted((a, b), key=lambda text: (len(texts.episodes[text]), text))
                    what = f"{quoted(rare)} and {quoted(common)} differ in one letter ('{one}', '{other}')."
                    fix = f"if it is a slip, use {quoted(common)}"
                    yield Finding("near-duplicate", "warning", texts.episodes_of([a, b]), what, fix)


def _known_words(lexicon: Lexicon) -> set[str]:
    wordings = (*lexicon.openings, *lexicon.prepositions, *lexicon.directions, *lexicon.sides)
    return {*lexicon.attributes, *lexicon.articles, *(word for wording in wordings for word in wording)}


def _typo(one: str, other: str) -> bool:
    """Whether two words look like one with a slip: one letter more, less, other or swapped; not a plural.

    Never in a script without letter case: Chinese and Japanese write whole sentences without a space, and each of their
    characters is a word.
    """
    if any(unicodedata.category(c) == "Lo" for c in one + other):
        return False
    short, long = sorted((one, other), key=len)
    if len(short) < 4 or one[0] != other[0] or not (one + other).isalpha() or long == short + "s":
        return False
    if len(long) == len(short):
        apart = [i for i in range(len(one)) if one[i] != other[i]]
        swapped = len(apart) == 2 and apart[1] == apart[0] + 1 and one[apart[0]] == other[apart[1]]
        return (len(apart) == 1 and len(one) > 4) or (swapped and one[apart[1]] == other[apart[0]])
    return len(long) == len(short) + 1 and any(long[:i] + long[i + 1 :] == short for i in range(len(long)))


def _characters(texts: _Texts) -> Iterator[Finding]:
    for text in texts.episodes:
        bad = sorted({c for c in text if _is_stray(c, text)})
        if bad:
            codes = ", ".join(f"U+{ord(c):04X}" for c in bad[:5])
            what = f"{quoted(text)} holds characters that nobody sees or meant ({codes}): a tokenizer reads them."
            clean = tidy("".join(_instead(c) if c in bad else c for c in text))
            fix = f"use '{printable(clean, 120)}'" if clean else "give the instruction anew"
            yield Finding("characters", "warning", texts.episodes_of([text]), what, fix)


def _is_stray(c: str, text: str) -> bool:
    if c in "\t\n\r" or (c in "\u200c\u200d" and any(ord(other) > 0x590 and other.isalpha() for other in text)):
        return False
    return c == "\ufffd" or unicodedata.category(c) in ("Cc", "Cf", "Co", "Cs", "Cn")


def _instead(c: str) -> str:
    """What a stray character leaves: nothing where it is invisible and no space (U+200B is one, without width)."""
    return "" if unicodedata.category(c) == "Cf" and c != "\u200b" else " "


def _long(texts: _Texts) -> Iterator[Finding]:
    for text in texts.usable:
        words = len(text.split())
        if words > MOST_WORDS or len(text) > 8 * MOST_WORDS:
            what = (
                f"{quoted(text)} has {words} words ({len(text)} characters); pi0 was trained with about {MOST_WORDS} "
                "at most, and openpi and LeRobot drop the rest."
            )
            yield Finding("long", "warning", texts.episodes_of([text]), what, "say it in one short sentence")


def _not_understood(texts: _Texts) -> Iterator[Finding]:
    unknown = [text for text in texts.usable if texts.parsed[text] is None]
    if unknown:
        listed = ", ".join(map(quoted, unknown[:3])) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        what = f"{len(unknown)} of {len(texts.usable)} instructions are not understood: no paraphrases of {listed}."
        fix = (
            "add their verbs to a YAML of phrasings (vla_cli/language/phrasings.yaml says how), or begin with a verb; "
            "what is negated has none"
        )
        yield Finding("not-understood", "info", texts.episodes_of(unknown), what, fix)


# ---- what never varied


def _never_varied(texts: _Texts) -> Iterator[Finding]:
    """An object or a place that every one of several tasks names."""
    clauses = [parsed.clauses() for text in texts.usable if (parsed := texts.parsed[text])]
    if len(clauses) < len(texts.usable) or len({texts.task(text) for text in texts.usable}) < 2:
        return
    for part, where, words in (
        ("object", slice(1, 3), lambda c: c.object_phrase),
        ("place", slice(3, 4), lambda c: c.place),
    ):
        named = {c.meaning[where] for chain in clauses for c in chain}
        if len(named) == 1 and words(clauses[0][0]):
            what = (
                f"All {len(texts.usable)} instructions name the same {part} ('{words(clauses[0][0])}'): a policy has "
                f"no reason to listen to that part, and will not know another {part}."
            )
            fix = f"record a second {part}, or train with alternatives that name one (vla finetune --alternatives)"
            yield Finding(f"one-{part}", "info", texts.episodes_of(texts.usable), what, fix)


def _position(texts: _Texts) -> Iterator[Finding]:
    """Instructions that the place of the object, or of the target, explains without words."""
    arm = reach(texts.all)
    groups: dict[Any, list[Told]] = {}
    for told in texts.all:
        first = next((text for text in told.instructions if text in texts.parsed), None)
        if first is not None:
            groups.setdefault(texts.task(first), []).append(told)
    for group in groups.values():
        if arm <= 0 or len(group) < FEWEST:
            continue
        text = next(t for t in group[0].instructions if t in texts.parsed)
        said = _spots(group, texts.parsed[text], arm)
        if said:
            what = (
                f"{quoted(text)} ({len(group)} episodes): {' and '.join(said)}. Position alone explains this "
                "instruction, and that is what makes a policy deaf: it need not read."
            )
            fix = (
                "move the object and the target between episodes, and ask for other objects from the same spot; "
                "without new recordings: vla finetune --recipe steerable --alternatives FILE"
            )
            yield Finding("position", "warning", tuple(told.episode for told in group), what, fix)


def _spots(group: Sequence[Told], parsed: Parsed | None, arm: float) -> list[str]:
    """What stayed in its place in the episodes of one task, in words."""
    thing = f"the {parsed.object_phrase}" if parsed else "the object"
    target = f"the {parsed.place}" if parsed and parsed.preposition else "the target"
    keys = ("grasp", "release", "end")
    grasp, release, end = (spread([getattr(told, key) for told in group], FEWEST) for key in keys)
    found = []
    if grasp is not None and grasp < SAME_SPOT * arm:
        found.append(f"{thing} was always grasped at the same spot (spread {grasp / arm:.0%} of the arm's own)")
    if release is not None and release < SAME_SPOT * arm:
        found.append(f"{target} never moved: the arm always let go there ({release / arm:.0%})")
    if grasp is None and release is None and end is not None and end < SAME_SPOT * arm:
        away = [
            np.linalg.norm(told.end - told.start) for told in group if told.end is not None and told.start is not None
        ]
        if np.mean(away) > arm:  # an arm that goes home ends where it began, whatever it did
            found.append(f"the arm always ended at the same spot ({end / arm:.0%})")
    return found


def quoted(text: str) -> str:
    """A text as findings name it."""
    return f"'{printable(text, 80)}'"


_CHECKS: tuple[Callable[[_Texts], Iterator[Finding]], ...] = (
    *(_empty, _placeholder, _variants, _near_duplicates, _characters, _long),
    *(_position, _single, _never_varied, _not_understood),
)
