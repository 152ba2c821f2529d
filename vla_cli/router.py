"""Which of several task adapters an instruction is for, or none of them: `router.json` of a bundle (methods.md 1).

An adapter that was trained on few instructions may be deaf to all others. Where it acts on its own task alone, and the
base as calibrated on everything else, nobody hears of that; no new skill is carried to another instruction either.

    meaning     an instruction that means what one adapter was trained on (`language.grammar`) is for that adapter;
                where all of these are understood, and nothing trained means the same, it is for none
    features    of any other, the base's own reading f of the words decides: with s_k(x) the highest cosine of f(x) with
                any text known to be for adapter k, k has it where s_k(x) >= limit_k, the lowest s_k of any of these
                texts itself; of several, the one that is furthest beyond. Nobody has it where that would take any
                text that is known to be for something else

Meaning comes first because features need not tell another object from other words: in the embedded base "put the blue
block on the right plate" is nearer to "put the red block on the left plate" than some paraphrases of that are, and
features are not asked. Texts and limits are in the file, to be read and to be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vla_cli.errors import ConfigError, InputError
from vla_cli.field_types import ill_typed
from vla_cli.files import read_json, write_json
from vla_cli.language.alternatives import plain
from vla_cli.language.counterfactuals import counterfactuals
from vla_cli.language.grammar import Parsed, parse, same_task
from vla_cli.language.lexicon import load_lexicon
from vla_cli.language.phrasing import paraphrases
from vla_cli.language.tokens import lower_of, words_of

FILE_NAME = "router.json"
ADAPTERS = "adapters"
"""Folder of the adapters, beside `router.json`."""
BASE, REFUSE = "base", "refuse"
ELSEWHERE = (BASE, REFUSE)
SCHEMA_VERSION = 1
PHRASINGS = 12
"""Other words for each trained instruction."""

_ROUNDING = 1e-9
"""Of cosines: the same texts are read again where the bundle is loaded, perhaps on another machine."""

Reading = Callable[[Sequence[str]], np.ndarray]
"""Texts to unit vectors float64 [N, D]: what the base makes of the words alone."""


@dataclass(frozen=True)
class Known:
    """What is known to be for one adapter.

    Attributes:
        instructions: those that it was trained on.
        phrasings: other words for them.
        limit: cosine from which on a text that is not understood is taken to be for it; None takes none.
    """

    instructions: list[str]
    phrasings: list[str] = field(default_factory=list)
    limit: float | None = None

    @property
    def texts(self) -> list[str]:
        """All of them."""
        return [*self.instructions, *self.phrasings]


@dataclass(frozen=True)
class Route:
    """Where an instruction goes.

    Attributes:
        adapter: whom it is for; None for none of them.
        why: a clause.
    """

    adapter: str | None
    why: str


@dataclass(frozen=True)
class Router:
    """See the module's docstring.

    Attributes:
        adapters: name to what is known to be for it; in the order given.
        elsewhere: what is done with an instruction that is for none: "base" or "refuse".
        place: whose calibration is in force then.
    """

    adapters: Mapping[str, Known]
    elsewhere: str
    place: str

    def route(
        self, instruction: str, reading: Reading, unknown: Callable[[str], Sequence[str]] = lambda text: []
    ) -> Route:
        """Whom an instruction is for.

        Args:
            instruction: as a robot is told.
            reading: the base's.
            unknown: the words of a text that the base cannot tell from each other.
        """
        parsed = parse(instruction)
        trained = {name: [(text, parse(text)) for text in known.instructions] for name, known in self.adapters.items()}
        for name, texts in trained.items():
            for text, meaning in texts:
                if plain(text) == plain(instruction):
                    return Route(name, "it was trained on these words")
                if parsed is not None and meaning is not None and same_task(parsed, meaning):
                    return Route(name, f"it means '{text}'")
        if _understood(parsed) and all(_understood(meaning) for texts in trained.values() for _, meaning in texts):
            return Route(None, "it means nothing that was trained")
        if _is_negated(instruction):
            return Route(None, "it says what is not to be done")
        if strange := list(unknown(instruction)):
            return Route(None, f"it is not understood, and the base does not know '{strange[0]}'")
        return self._by_features(reading([instruction]), reading)

    def _by_features(self, read: np.ndarray, reading: Reading) -> Route:
        beyond = {
            name: float((read @ reading(known.texts).T).max()) - known.limit
            for name, known in self.adapters.items()
            if known.limit is not None
        }
        best = max(beyond, key=lambda name: beyond[name], default=None)
        if best is not None and beyond[best] >= 0:
            return Route(best, f"it reads like what {best} was trained on")
        return Route(None, "it is not understood, and reads like nothing that was trained")

    def document(self) -> dict[str, Any]:
        """As the JSON document of `router.json`."""
        adapters = {name: asdict(known) for name, known in self.adapters.items()}
        return {
            "schema_version": SCHEMA_VERSION,
            "elsewhere": self.elsewhere,
            "place": self.place,
            ADAPTERS: adapters,
        }

    def save(self, directory: Path) -> None:
        """Write `router.json` into `directory`."""
        write_json(directory / FILE_NAME, self.document())


@dataclass(frozen=True)
class Recognition:
    """How well features alone would tell the texts that are known.

    Attributes:
        same: of how many other wordings of trained instructions ...
        recognised: ... their own adapter would be asked, each held out while it is,
        different: and of how many texts for something else ...
        mistaken: ... that adapter would be.
    """

    same: int
    recognised: int
    different: int
    mistaken: int

    @property
    def trusted(self) -> bool:
        """Whether features may decide at all: other instructions are known, and none of them is mistaken."""
        return self.different > 0 and self.mistaken == 0

    @property
    def words(self) -> str:
        """A sentence."""
        if not self.different:
            return "an instruction that is not understood is for none: no other is known that it could be held against"
        found = (
            f"recognises {self.recognised} of {self.same} other wordings of what was trained, and mistakes "
            f"{self.mistaken} of {self.different} other instructions for it"
        )
        if self.trusted:
            return f"where an instruction is not understood, the base's reading of its words decides, which {found}"
        return f"an instruction that is not understood is for none, as the base's reading of words {found}"


def learn(
    instructions: Mapping[str, Sequence[str]], *, elsewhere: str, place: str, reading: Reading
) -> tuple[Router, Recognition]:
    """A router for adapters by what they were trained on.

    Args:
        instructions: adapter to those it was trained on.
        elsewhere: "base" or "refuse".
        place: the adapter whose calibration is in force elsewhere.
        reading: the base's.

    Raises:
        ConfigError: two adapters were trained on the same, or one on nothing.
    """
    check_apart(instructions)
    same = {name: _other_words(texts) for name, texts in instructions.items()}
    shown = [parsed for texts in instructions.values() for text in texts if (parsed := parse(text)) is not None]
    different = [made.instruction for made in counterfactuals(shown)]
    adapters = {name: Known(list(texts), same[name]) for name, texts in instructions.items()}
    features = _Features(adapters, different, reading)
    found = features.recognition()
    if found.trusted:
        adapters = {name: replace(known, limit=features.limit(name)) for name, known in adapters.items()}
    return Router(adapters, elsewhere, place), found


class _Features:
    """Cosines of all texts that are known with those known to be for each adapter."""

    def __init__(self, adapters: Mapping[str, Known], different: Sequence[str], reading: Reading) -> None:
        texts = [text for known in adapters.values() for text in known.texts] + list(different)
        owners = [name for name, known in adapters.items() for _ in known.texts]
        self._own = {name: [i for i, owner in enumerate(owners) if owner == name] for name in adapters}
        self._trained = {name: len(known.instructions) for name, known in adapters.items()}
        self._all = range(len(texts))
        read = reading(texts)
        self._cosines = read @ read.T

    def limit(self, name: str, without: int = -1) -> float | None:
        """The lowest of an adapter's texts' highest cosines with its others, one held out; None where it has no two."""
        own = [i for i in self._own[name] if i != without]
        return min(self._nearest(i, name, without) for i in own) - _ROUNDING if len(own) > 1 else None

    def recognition(self) -> Recognition:
        """Other wordings held out one by one, and all that is for something else."""
        reworded = [(i, name) for name, own in self._own.items() for i in own[self._trained[name] :]]
        others = [(i, name) for name, own in self._own.items() for i in self._all if i not in own]
        mistaken = {i for i, name in others if self._takes(name, i)}
        recognised = sum(self._takes(name, i, without=i) for i, name in reworded)
        return Recognition(len(reworded), recognised, len({i for i, _ in others}), len(mistaken))

    def _takes(self, name: str, text: int, without: int = -1) -> bool:
        limit = self.limit(name, without)
        return limit is not None and self._nearest(text, name, without) >= limit

    def _nearest(self, text: int, name: str, without: int) -> float:
        own = [i for i in self._own[name] if i not in (text, without)]
        return float(self._cosines[text, own].max())


def load_router(directory: Path) -> Router:
    """Read `router.json`.

    Raises:
        InputError: it is missing, of another version, or malformed.
    """
    path = directory / FILE_NAME
    document = read_json(path)
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(f"{path} has schema_version {version}", expected=str(SCHEMA_VERSION))
    try:
        wrong = {
            f"{name}'s {key}": expected
            for name, known in document[ADAPTERS].items()
            for key, expected in ill_typed(Known, known).items()
        }
        if wrong:
            raise TypeError("; ".join(f"{key} is not {expected}" for key, expected in wrong.items()))
        adapters = {name: Known(**known) for name, known in document[ADAPTERS].items()}
        router = Router(adapters, document["elsewhere"], document["place"])
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is malformed ({error})", hint="vla export-adapter again") from None
    if router.elsewhere not in ELSEWHERE or router.place not in adapters:
        raise InputError(
            f"{path} is malformed (elsewhere is '{router.elsewhere}', place '{router.place}')",
            expected=f"elsewhere one of {', '.join(ELSEWHERE)}, and place one of its adapters: {', '.join(adapters)}",
            hint="vla export-adapter again",
        )
    return router


def check_apart(instructions: Mapping[str, Sequence[str]]) -> None:
    """Refuse adapters that nothing tells apart.

    Raises:
        ConfigError: two were trained on the same, or one on nothing.
    """
    seen: list[tuple[str, str, Parsed | None]] = []
    for name, texts in instructions.items():
        if not texts:
            raise ConfigError(
                f"The adapter {name} was trained on no instruction: nothing can be for it",
                expected="demonstrations with instructions",
                hint='vla collect-ingest --instruction "..."',
            )
        for text in texts:
            parsed = parse(text)
            for other, shown, meaning in seen:
                same = parsed is not None and meaning is not None and same_task(parsed, meaning)
                if other != name and (same or plain(shown) == plain(text)):
                    raise ConfigError(
                        f"The adapters {other} and {name} were both trained on one task ('{shown}' and '{text}'): "
                        "no instruction could say which of them is meant",
                        expected="adapters of different tasks",
                        hint="one of them alone, or vla finetune on the demonstrations of both",
                    )
            seen.append((name, text, parsed))


def _other_words(texts: Sequence[str]) -> list[str]:
    found = dict.fromkeys(other for text in texts for other in paraphrases(text, PHRASINGS))
    return [other for other in found if other not in texts]


def _is_negated(text: str) -> bool:
    """Whether an instruction forbids something: features of words hardly see that."""
    lexicon = load_lexicon()
    return bool(lexicon.negations.intersection(lower_of(words_of(text, lexicon)[0])))


def _understood(parsed: Parsed | None) -> bool:
    """Whether every verb is one that is known: of others it cannot be said what else means the same."""
    return parsed is not None and all(clause.known for clause in parsed.clauses())
